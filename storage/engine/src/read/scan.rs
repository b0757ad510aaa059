//! Scans: the newest value at or before an LSN of each key of a range, merged over all layers and ancestors.

use bytes::Bytes;
use treering_types::{Key, KeyRange, Lsn};

use super::{
    Level, View,
    fetch::{self, Found},
    plan::{self, Source, Step},
};
use crate::{
    error::Result,
    layer::{file::LayerFile, open::OpenLayer},
    value::Direction,
};

/// A layer that may hold keys of the range, and the next of them.
struct Cursor<'v> {
    layer: LayerRef<'v>,
    next: Key,
}

#[derive(Clone, Copy)]
enum LayerRef<'v> {
    Memory(&'v OpenLayer),
    File(&'v LayerFile),
}

impl LayerRef<'_> {
    fn first_key(
        &self,
        view: &View<'_>,
        range: &KeyRange,
        direction: Direction,
    ) -> Result<Option<Key>> {
        match self {
            LayerRef::Memory(layer) => Ok(layer.first_key(range, direction)),
            LayerRef::File(layer) => layer.first_key(range, direction, view.caches),
        }
    }
}

/// Up to `limit` keys of `range` in scan order; keys that are gone or not there yet at `lsn` are skipped and not counted.
pub(crate) fn scan(
    view: &View<'_>,
    range: KeyRange,
    lsn: Lsn,
    direction: Direction,
    limit: usize,
) -> Result<Vec<(Key, Lsn, Bytes)>> {
    let mut rest = range;
    let mut cursors = open_cursors(view, &rest, lsn, direction)?;
    let mut out = Vec::new();
    while out.len() < limit {
        let Some(key) = first(&cursors, direction) else { break };
        if let Some(found) = view.newest(&key, lsn)?.filter(|found| !found.bytes.is_empty()) {
            out.push((key, found.lsn, found.bytes));
        }
        match direction {
            Direction::Forward => rest.start = key.next(),
            Direction::Backward => rest.end = key,
        }
        cursors = advance(view, cursors, key, &rest, direction)?;
    }
    Ok(out)
}

fn first(cursors: &[Cursor<'_>], direction: Direction) -> Option<Key> {
    let keys = cursors.iter().map(|cursor| cursor.next);
    match direction {
        Direction::Forward => keys.min(),
        Direction::Backward => keys.max(),
    }
}

fn open_cursors<'v>(
    view: &'v View<'_>,
    range: &KeyRange,
    lsn: Lsn,
    direction: Direction,
) -> Result<Vec<Cursor<'v>>> {
    let mut cursors = Vec::new();
    for (level, upto) in plan::levels(view, Lsn::INVALID, lsn) {
        let memory = level.layers.in_memory().map(|layer| LayerRef::Memory(layer));
        let files = level.layers.files.files().filter(|layer| layer.desc.lsns.start <= upto);
        for layer in memory.chain(files.map(|layer| LayerRef::File(layer))) {
            if let Some(next) = layer.first_key(view, range, direction)? {
                cursors.push(Cursor { layer, next });
            }
        }
    }
    Ok(cursors)
}

/// Moves the cursors that stand on `key` into the rest of the range; those that find nothing end.
fn advance<'v>(
    view: &View<'_>,
    cursors: Vec<Cursor<'v>>,
    key: Key,
    rest: &KeyRange,
    direction: Direction,
) -> Result<Vec<Cursor<'v>>> {
    let mut kept = Vec::with_capacity(cursors.len());
    for cursor in cursors {
        let next = match cursor.next == key {
            true => cursor.layer.first_key(view, rest, direction)?,
            false => Some(cursor.next),
        };
        kept.extend(next.map(|next| Cursor { next, ..cursor }));
    }
    Ok(kept)
}

/// The newest values of the last keys of `range` that one timeline of the view holds by itself, newest LSN whatever
/// it be: for indexes whose values outlive their LSN.
pub(crate) fn last_own_values(
    view: &View<'_>,
    level: &Level,
    range: KeyRange,
    limit: usize,
) -> Result<Vec<(Key, Found)>> {
    let mut rest = range;
    let mut out = Vec::new();
    while out.len() < limit {
        let mut last = None;
        for layer in level.layers.in_memory() {
            last = last.max(layer.first_key(&rest, Direction::Backward));
        }
        for layer in level.layers.files.files() {
            last = last.max(layer.first_key(&rest, Direction::Backward, view.caches)?);
        }
        let Some(key) = last else { break };
        let memory = level.layers.in_memory().map(Source::Memory);
        let files = level.layers.files.candidates(key, Lsn::INVALID, Lsn::MAX);
        let files = files.map(|(layer, block)| Source::File(layer, block));
        for source in memory.chain(files) {
            let step = Step { level, upto: Lsn::MAX, source };
            if let Some(found) = fetch::newest_of(&step, &key, view.caches)? {
                out.push((key, found));
                break;
            }
        }
        rest.end = key;
    }
    Ok(out)
}
