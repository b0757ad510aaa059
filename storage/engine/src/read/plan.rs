//! The plan of a read: where values of a key can be, newest first. Pure: ranges, bloom filters and indexes only.

use std::sync::Arc;

use treering_types::{Key, Lsn};

use super::{Level, View};
use crate::layer::{file::LayerFile, open::OpenLayer};

/// One place to look for values at or below `upto`.
pub(crate) struct Step<'v> {
    pub level: &'v Level,
    pub upto: Lsn,
    pub source: Source<'v>,
}

pub(crate) enum Source<'v> {
    Memory(&'v Arc<OpenLayer>),
    /// The file, and the block that holds the newest such value if the file has one.
    File(&'v Arc<LayerFile>, usize),
}

/// Steps for values of `key` at or below `lsn` and above `floor`, newest first, through all ancestors. Lazy: a read that has
/// found its base plans no further.
pub(crate) fn steps<'v>(
    view: &'v View<'_>,
    key: Key,
    floor: Lsn,
    lsn: Lsn,
) -> impl Iterator<Item = Step<'v>> {
    let levels = view.levels_of(&key);
    clipped(levels, floor, lsn).flat_map(move |(level, upto)| {
        let memory = level.layers.in_memory().map(Source::Memory);
        let files = level.layers.files.candidates(key, floor, upto);
        let files = files.map(|(layer, block)| Source::File(layer, block));
        memory.chain(files).map(move |source| Step { level, upto, source })
    })
}

/// The timelines that can hold values in `(floor, lsn]`, each with the last LSN that counts there.
pub(crate) fn levels<'v>(
    view: &'v View<'_>,
    floor: Lsn,
    lsn: Lsn,
) -> impl Iterator<Item = (&'v Level, Lsn)> {
    clipped(view.levels(), floor, lsn)
}

fn clipped<'v>(
    levels: impl Iterator<Item = &'v Level>,
    floor: Lsn,
    lsn: Lsn,
) -> impl Iterator<Item = (&'v Level, Lsn)> {
    let in_view = levels.map(move |level| (level, lsn.min(level.clip)));
    in_view.filter(move |(level, upto)| level.start_lsn <= *upto && floor < *upto)
}
