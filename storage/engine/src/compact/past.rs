//! What the merge asks of the timeline's own history: cuts of relations, and pages as reads see them.

use std::collections::HashMap;

use bytes::Bytes;
use treering_pgfmt::change::PageChange;
use treering_types::{Key, KeyClass, Lsn, PageImage, RelTag};

use super::sieve::Past;
use crate::{
    cache::Caches,
    error::{EngineError, Result},
    relation::RelMeta,
    timeline::Timeline,
};

/// Answers from the read path itself, at retained LSNs only, with a block cache of its own.
pub(crate) struct TimelinePast<'t> {
    timeline: &'t Timeline,
    caches: Caches,
    /// Metadata of one relation fork at the LSNs asked about.
    rel: Option<RelTag>,
    metas: HashMap<Lsn, Option<RelMeta>>,
}

impl<'t> TimelinePast<'t> {
    /// `cache_bytes`: memory for blocks.
    pub fn new(timeline: &'t Timeline, cache_bytes: usize) -> TimelinePast<'t> {
        let caches = Caches::new(0, cache_bytes);
        TimelinePast { timeline, caches, rel: None, metas: HashMap::new() }
    }

    /// The page up to `lsn`, with the relation's cuts and copies as they are at `at`: those at `lsn` may have been dropped.
    fn page(&mut self, key: &Key, lsn: Lsn, at: Lsn) -> Result<PageImage> {
        let meta = match key.class() {
            Ok(KeyClass::RelBlock) => {
                let rel = key.rel().ok_or(EngineError::NotAPage(*key))?;
                let meta = self.meta(rel, at)?.cloned();
                Some((rel, meta.ok_or(EngineError::NoRelation { rel, lsn: at })?))
            }
            _ => None,
        };
        let view = self.timeline.view_through(at, &self.caches)?;
        view.page_of(key, lsn, meta.as_ref())
    }

    fn meta(&mut self, rel: RelTag, at: Lsn) -> Result<Option<&RelMeta>> {
        if self.rel != Some(rel) {
            self.rel = Some(rel);
            self.metas.clear();
        }
        if !self.metas.contains_key(&at) {
            let view = self.timeline.view_through(at, &self.caches)?;
            self.metas.insert(at, view.rel_meta(rel, at)?);
        }
        Ok(self.metas.get(&at).and_then(Option::as_ref))
    }
}

impl Past for TimelinePast<'_> {
    fn floor(&mut self, key: &Key, at: Lsn) -> Lsn {
        let of_a_relation = matches!(key.class(), Ok(KeyClass::RelBlock | KeyClass::Unhandled));
        let Some(rel) = key.rel().filter(|_| of_a_relation) else { return Lsn::INVALID };
        match self.meta(rel, at) {
            Ok(Some(meta)) => meta.floor(key.block()),
            // No relation: whatever comes into being under its number later begins above this LSN.
            Ok(None) => Lsn::MAX,
            // Damaged, or an ancestor is still catching up.
            Err(error) => {
                tracing::debug!(%error, ?key, "cuts of a relation cannot be read now");
                Lsn::INVALID
            }
        }
    }

    fn image(&mut self, key: &Key, lsn: Lsn, at: Lsn) -> Option<Bytes> {
        match self.page(key, lsn, at) {
            Ok(page) => Some(PageChange::Image(page.into()).encode()),
            Err(error) => {
                tracing::debug!(%error, ?key, "no image in the merge");
                None
            }
        }
    }
}
