//! Reconstruction: a chain of changes becomes a page.

use std::sync::Arc;

use treering_pgfmt::{change::PageChange, redo, version::PgMajor};
use treering_types::{Key, Lsn, PAGE_SIZE, PageImage, TimelineId};

use super::{
    View,
    fetch::{Chain, Change},
};
use crate::{
    cache::PageKey,
    error::{EngineError, Result},
};

/// Redoes a chain, oldest change first, from its cached base or from zeros. A page that took redo is kept in the cache.
///
/// # Errors
/// A change that cannot be decoded or redone; the page is not served then.
pub(crate) fn page(view: &View<'_>, chain: Chain) -> Result<PageImage> {
    view.caches.count_read(chain.layers);
    let mut page: PageImage = match &chain.cached {
        Some((_, cached)) => Box::new(**cached),
        None => Box::new([0; PAGE_SIZE]),
    };
    for change in chain.changes.iter().rev() {
        let Change { timeline, page: PageKey { key, lsn, .. }, bytes } = change;
        apply(view.pg_major, *timeline, (*key, *lsn), bytes, &mut page)?;
    }
    // A lone image in a cached block is as cheap as the cache itself.
    let took_redo =
        chain.changes.len() > 1 || (chain.cached.is_some() && !chain.changes.is_empty());
    if let Some(newest) = chain.changes.first().filter(|_| took_redo) {
        view.caches.put_page(newest.page, Arc::new(*page));
    }
    Ok(page)
}

/// Redoes one stored change on the page before it.
///
/// # Errors
/// A change that cannot be decoded or redone; the page is of no use then.
pub(crate) fn apply(
    pg_major: PgMajor,
    timeline: TimelineId,
    (key, lsn): (Key, Lsn),
    bytes: &[u8],
    page: &mut [u8; PAGE_SIZE],
) -> Result<()> {
    if bytes.is_empty() {
        page.fill(0);
        return Ok(());
    }
    let decoded = PageChange::decode(bytes).map_err(|error| EngineError::CorruptValue {
        timeline,
        key,
        lsn,
        what: error.to_string(),
    })?;
    Ok(redo::apply(pg_major, &key, lsn, &decoded, page)?)
}
