//! What all files of a timeline would weigh, merged into one run, if other LSNs were retained: the merge itself, with nothing written.

use std::sync::Arc;

use treering_fs::DryFs;

use super::{
    copies::KnownCopies,
    merge::Merge,
    past::TimelinePast,
    points::Points,
    sieve::{Rules, Sieve},
};
use crate::{
    error::{EngineError, Result},
    layer::{
        Entry,
        writer::{LayerWriter, WriteFailure},
    },
    layer_map::LayerMap,
    timeline::Timeline,
};

/// Sets of points that are tried in one reading of the files; each holds a layer under construction.
const TRIED_AT_ONCE: usize = 8;
/// Entries between two looks whether to go on.
const LOOK_EVERY: usize = 256;

impl Timeline {
    /// Bytes of the layer files that a merge of everything would leave, for each set of retained LSNs. Database copies are retained
    /// besides. Writes nothing, and holds nothing up; the memory that it takes is that of one merge.
    ///
    /// # Errors
    /// Corrupt, Io, Shutdown, NoTimeline when it is deleted meanwhile.
    pub(crate) fn weigh(&self, files: &LayerMap, tries: &[Points]) -> Result<Vec<u64>> {
        let copies = KnownCopies::of(self, files)?.pinned();
        let tries: Vec<Points> =
            tries.iter().map(|points| points.and(copies.iter().copied())).collect();
        let fs = DryFs::over(Arc::clone(&self.context.fs));
        let mut weights = Vec::with_capacity(tries.len());
        for at_once in tries.chunks(TRIED_AT_ONCE) {
            weights.extend(self.weigh_at_once(files, at_once, &fs)?);
        }
        Ok(weights)
    }

    fn weigh_at_once(&self, files: &LayerMap, tries: &[Points], fs: &DryFs) -> Result<Vec<u64>> {
        let options = &self.context.options;
        let share = options.merge_bytes_max / (8 * tries.len().max(1));
        let rules = Rules {
            chain_max: options.chain_max.max(1),
            is_bottom: self.ancestor().is_none(),
            pending_bytes_max: share,
        };
        let sieve = |points| Sieve::new(points, TimelinePast::new(self, share), rules);
        let mut scales: Vec<_> =
            tries.iter().map(|points| (sieve(points), Scale::new(self, fs))).collect();
        let mut merge = Merge::new(&files.runs)?;
        let mut count = 0usize;
        while let Some(entry) = merge.next()? {
            if count.is_multiple_of(LOOK_EVERY) {
                self.check_may_merge()?;
            }
            count += 1;
            for (sieve, scale) in &mut scales {
                sieve.push(entry.clone());
                sieve.take_kept().try_for_each(|kept| scale.push(&kept))?;
            }
        }
        let finish = |(mut sieve, mut scale): (Sieve<'_, _>, Scale<'_>)| {
            sieve.finish();
            sieve.take_kept().try_for_each(|kept| scale.push(&kept))?;
            scale.finish()
        };
        scales.into_iter().map(finish).collect()
    }
}

/// Takes entries as the output of a merge does, and keeps nothing but the number of bytes.
struct Scale<'t> {
    timeline: &'t Timeline,
    fs: &'t DryFs,
    writer: Option<LayerWriter<'t>>,
    last_key: Option<treering_types::Key>,
    bytes: u64,
}

impl<'t> Scale<'t> {
    fn new(timeline: &'t Timeline, fs: &'t DryFs) -> Scale<'t> {
        Scale { timeline, fs, writer: None, last_key: None, bytes: 0 }
    }

    fn push(&mut self, entry: &Entry) -> Result<()> {
        let options = &self.timeline.context.options;
        let is_full = |writer: &LayerWriter<'_>| writer.position() >= options.layer_bytes_max;
        if self.last_key != Some(entry.key) && self.writer.as_ref().is_some_and(is_full) {
            self.end_layer()?;
        }
        self.last_key = Some(entry.key);
        let writer = match &mut self.writer {
            Some(writer) => writer,
            None => {
                let (directory, owner) = (&self.timeline.directory, self.timeline.owner());
                let writer = LayerWriter::create(self.fs, directory, owner, 0, options.block_bytes);
                self.writer.insert(writer.map_err(failed)?)
            }
        };
        writer.push(entry).map_err(failed)
    }

    fn end_layer(&mut self) -> Result<()> {
        if let Some(writer) = self.writer.take() {
            let desc = writer.finish(false).map_err(failed)?;
            self.bytes += desc.map_or(0, |desc| desc.size);
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<u64> {
        self.end_layer()?;
        Ok(self.bytes)
    }
}

/// Nothing was written, so nothing is latched.
fn failed(failure: WriteFailure) -> EngineError {
    let (WriteFailure::Retry(path, error) | WriteFailure::Latch(path, error)) = failure;
    EngineError::io("weighing", path, error)
}
