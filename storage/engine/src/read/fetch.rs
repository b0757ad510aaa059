//! Fetching: carries out a plan, newest to oldest, until a base is found. The only part of a read that touches files.

use std::ops::ControlFlow;

use bytes::Bytes;
use treering_types::{Key, Lsn, RelTag, TimelineId};

use super::{
    View,
    plan::{self, Source, Step},
};
use crate::{
    cache::{Caches, PageKey, SharedPage},
    error::{EngineError, Result},
    layer::file::LayerFile,
    relation::RelMeta,
};

/// Database copies of copies that one read follows; Postgres users have one or two.
const COPIES_MAX: usize = 1000;

/// A value and where it came from.
pub(crate) struct Found {
    pub timeline: TimelineId,
    pub lsn: Lsn,
    pub bytes: Bytes,
}

impl Found {
    /// The error for bytes that do not decode.
    pub fn corrupt(&self, key: Key, what: impl Into<String>) -> EngineError {
        let (timeline, lsn) = (self.timeline, self.lsn);
        EngineError::CorruptValue { timeline, key, lsn, what: what.into() }
    }
}

/// One stored change of a page.
pub(crate) struct Change {
    pub timeline: TimelineId,
    /// Its page, as the page cache would name it.
    pub page: PageKey,
    pub bytes: Bytes,
}

/// What has to be redone to get a page.
#[derive(Default)]
pub(crate) struct Chain {
    /// Newest first.
    pub changes: Vec<Change>,
    /// The page below the oldest change; zeros when there is none.
    pub cached: Option<(PageKey, SharedPage)>,
    /// Nothing older is needed.
    complete: bool,
    /// Layers that were looked into.
    pub layers: usize,
}

impl Chain {
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty() && self.cached.is_none()
    }

    /// True when the newest value says that the key is gone.
    pub fn ends_in_tombstone(&self) -> bool {
        self.changes.first().is_some_and(|change| change.bytes.is_empty())
    }

    /// Takes one more value, older than all before.
    fn visit(
        &mut self,
        step: &Step<'_>,
        caches: &Caches,
        key: &Key,
        lsn: Lsn,
        base: bool,
        bytes: impl FnOnce() -> Bytes,
    ) -> ControlFlow<()> {
        let page = PageKey { timeline: step.level.serial, key: *key, lsn };
        // A cached page holds *all* changes at its LSN: only the newest of them may be looked up.
        let is_newest_at_lsn = self.changes.last().is_none_or(|last| last.page != page);
        if is_newest_at_lsn && let Some(cached) = caches.page(&page) {
            self.cached = Some((page, cached));
            self.complete = true;
            return ControlFlow::Break(());
        }
        self.changes.push(Change { timeline: step.level.timeline, page, bytes: bytes() });
        if base {
            self.complete = true;
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    }
}

/// The newest value of `key` in one place.
pub(crate) fn newest_of(step: &Step<'_>, key: &Key, caches: &Caches) -> Result<Option<Found>> {
    let timeline = step.level.timeline;
    match &step.source {
        Source::Memory(layer) => {
            let found = layer.newest(key, step.upto);
            Ok(found.map(|(lsn, bytes)| Found { timeline, lsn, bytes }))
        }
        Source::File(layer, number) => {
            let block = layer.block(*number, caches)?;
            let newest = block.end_of(key, step.upto).checked_sub(1);
            let head = newest.and_then(|at| block.heads().get(at)).filter(|head| head.key == *key);
            Ok(head.map(|head| Found { timeline, lsn: head.lsn, bytes: block.value(head) }))
        }
    }
}

/// Collects changes of `key` in `(floor, lsn]` into `chain`, until a base or a cached page is found.
pub(crate) fn collect(
    view: &View<'_>,
    key: Key,
    floor: Lsn,
    lsn: Lsn,
    chain: &mut Chain,
) -> Result<()> {
    for step in plan::steps(view, key, floor, lsn) {
        let flow = match &step.source {
            Source::Memory(layer) => {
                let mut held = 0;
                let flow = layer.visit_back(&key, step.upto, |value| {
                    held = 1;
                    if value.lsn <= floor {
                        return ControlFlow::Break(());
                    }
                    let bytes = || value.bytes.clone();
                    chain.visit(&step, view.caches, &key, value.lsn, value.base, bytes)
                });
                chain.layers += held;
                flow
            }
            Source::File(layer, number) => {
                chain.layers += 1;
                collect_from_file(view, &step, layer, *number, &key, floor, chain)?
            }
        };
        if flow.is_break() {
            break;
        }
    }
    Ok(())
}

/// Walks back through a file's values of `key`, across block boundaries.
fn collect_from_file(
    view: &View<'_>,
    step: &Step<'_>,
    layer: &LayerFile,
    newest_block: usize,
    key: &Key,
    floor: Lsn,
    chain: &mut Chain,
) -> Result<ControlFlow<()>> {
    for number in (0..=newest_block).rev() {
        let block = layer.block(number, view.caches)?;
        let start = block.start_of(key);
        let end = block.end_of(key, step.upto);
        for head in block.heads().get(start..end).unwrap_or_default().iter().rev() {
            if head.lsn <= floor {
                return Ok(ControlFlow::Break(()));
            }
            let bytes = || block.value(head);
            if chain.visit(step, view.caches, key, head.lsn, head.base, bytes).is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        if start > 0 {
            break;
        }
    }
    Ok(ControlFlow::Continue(()))
}

/// The chain of a relation block: honours cuts, and goes on in the source where the relation is a copy.
pub(crate) fn rel_block_chain(
    view: &View<'_>,
    key: Key,
    rel: RelTag,
    lsn: Lsn,
    meta: &RelMeta,
) -> Result<Chain> {
    let block = key.block();
    let mut chain = Chain::default();
    let (mut rel, mut lsn, mut meta) = (rel, lsn, meta.clone());
    for _ in 0..COPIES_MAX {
        collect(view, Key::rel_block(rel, block), meta.floor(block), lsn, &mut chain)?;
        let Some(copy) = meta.copied_from(block).filter(|_| !chain.complete) else {
            return Ok(chain);
        };
        let source = copy.source(rel);
        let found = view.rel_meta(source, copy.lsn)?;
        let missing = || bad_copy(view, rel, lsn, "is a copy of a relation that does not exist");
        let source_meta = found.ok_or_else(missing)?;
        if block >= source_meta.blocks {
            return Ok(chain);
        }
        (rel, lsn, meta) = (source, copy.lsn, source_meta);
    }
    Err(bad_copy(view, rel, lsn, "is a copy of copies without end"))
}

fn bad_copy(view: &View<'_>, rel: RelTag, lsn: Lsn, what: &str) -> EngineError {
    let timeline = view.own.timeline;
    EngineError::CorruptValue { timeline, key: Key::rel_meta(rel), lsn, what: what.to_owned() }
}

/// Changes that a read of `key` at `lsn` would redo, counted up to `limit`. Cheap: files keep the count with each value.
pub(crate) fn chain_length(view: &View<'_>, key: Key, lsn: Lsn, limit: usize) -> Result<usize> {
    let mut length = 0;
    for step in plan::steps(view, key, Lsn::INVALID, lsn) {
        match &step.source {
            Source::Memory(layer) => {
                let flow = layer.visit_back(&key, step.upto, |value| {
                    length += usize::from(!value.base);
                    let done = value.base || length >= limit;
                    if done { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
                });
                if flow.is_break() {
                    return Ok(length);
                }
            }
            Source::File(layer, number) => {
                let block = layer.block(*number, view.caches)?;
                let newest = block.end_of(&key, step.upto).checked_sub(1);
                let head = newest.and_then(|at| block.heads().get(at));
                if let Some(head) = head.filter(|head| head.key == key) {
                    return Ok(length + usize::from(head.chain));
                }
            }
        }
    }
    Ok(length)
}
