//! A merge, carried out: planned over a snapshot, written apart from everything else, published under the manifest's lock.
//!
//! Order, each step durable before the next: new layer files → timeline manifest (one replacement swaps the runs) → layer map → old
//! files removed. A crash in between leaves files that no manifest names; they are removed when the engine is opened. Flushes
//! go on meanwhile: they only put runs above. Readers keep the files of their snapshot open.

use std::{path::PathBuf, sync::atomic::Ordering};

use treering_types::Lsn;

use super::{
    copies::{CopyOut, KnownCopies},
    merge::Merge,
    output::Output,
    past::TimelinePast,
    plan::{Job, Limits, Reason, RunShape, garbage_bytes, plan},
    points::Points,
    sieve::{Rules, Sieve},
};
use crate::{
    error::{EngineError, Result},
    layer::writer::WriteFailure,
    layer_map::{LayerMap, Run},
    manifest::{Kept, RunDesc, TimelineManifest},
    timeline::{Phase, Timeline},
};

/// Entries between two looks whether to go on.
const LOOK_EVERY: usize = 256;

/// What compaction has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Compacted {
    pub merges: usize,
    /// Bytes of layer files.
    pub bytes_read: u64,
    pub bytes_written: u64,
}

/// How much compaction there is to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Debt {
    /// Bytes of the files that the next merge would read; 0 when none is due.
    pub due_bytes: u64,
    /// About how many bytes of files nobody can ask for any more.
    pub garbage_bytes: u64,
}

impl Timeline {
    /// Merges what is worth merging, until nothing is. `force`: everything into one run, whatever it costs.
    ///
    /// # Errors
    /// `Io` when the disk refuses (it may be tried again), `Latched` after a failed sync, `Corrupt` naming a damaged layer,
    /// `NoTimeline` when it is deleted meanwhile, `Shutdown`. Nothing is lost then, and nothing is left behind.
    pub fn compact(&self, force: bool) -> Result<Compacted> {
        let mut done = Compacted::default();
        if force {
            done.add(self.compact_once(true)?);
        }
        loop {
            let merged = self.compact_once(false)?;
            if merged.merges == 0 {
                return Ok(done);
            }
            done.add(merged);
        }
    }

    /// One merge, if one is due. What failed is kept for writers that wait for it.
    pub(crate) fn compact_once(&self, force: bool) -> Result<Compacted> {
        let merged = self.merge_next(force);
        *self.merge_problem.lock() = merged.as_ref().err().cloned();
        self.progress.notify();
        merged
    }

    pub(crate) fn debt(&self) -> Debt {
        let (cut_off, lsns) = self.retained_now();
        let points = Points::new(cut_off, lsns);
        let files = &self.layers().files;
        let shapes = shapes(files, &points);
        let due = plan(&shapes, &self.limits(cut_off));
        let due = due.and_then(|job| shapes.get(job.runs)).unwrap_or_default();
        Debt {
            due_bytes: due.iter().map(|run| run.bytes).sum(),
            garbage_bytes: shapes.iter().map(|run| garbage_bytes(run, cut_off)).sum(),
        }
    }

    fn limits(&self, cut_off: Lsn) -> Limits {
        let options = &self.context.options;
        Limits { fan_in: options.fan_in, runs_max: options.runs_max, cut_off }
    }

    fn merge_next(&self, force: bool) -> Result<Compacted> {
        let _one_at_a_time = self.compacting.lock();
        self.check_may_merge()?;
        // Before the layers are looked at: whatever lies at or below the cut-off is in files then.
        let (cut_off, lsns) = self.retained_now();
        let files = std::sync::Arc::clone(&self.layers().files);
        let points = Points::new(cut_off, lsns.iter().copied());
        let shapes = shapes(&files, &points);
        let job = match force && !files.runs.is_empty() {
            true => Some(Job { runs: 0..files.runs.len(), reason: Reason::Forced }),
            false => plan(&shapes, &self.limits(cut_off)),
        };
        let has_moved = self.copies_looked_at.swap(cut_off.0, Ordering::Relaxed) != cut_off.0;
        let copies = match cut_off > self.start_lsn() && (job.is_some() || has_moved) {
            true => KnownCopies::of(self, &files)?,
            false => KnownCopies::default(),
        };
        let due = copies.run_due(cut_off).filter(|_| !self.copies_stay.load(Ordering::Relaxed));
        let copies_job = due.map(|run| Job { runs: run..run + 1, reason: Reason::Copies });
        let Some(job) = job.or(copies_job) else { return Ok(Compacted::default()) };
        let all = Points::new(cut_off, lsns.into_iter().chain(copies.pinned()));
        let (bytes_read, run, desc) = self.write_merged(&files, &job, &all, &points)?;
        let done = Compacted { merges: 1, bytes_read, bytes_written: run.bytes() };
        let merged = files.runs.get(job.runs.clone()).unwrap_or_default();
        self.publish_merge(merged, run, desc)?;
        self.traffic.count_merge(done.bytes_read, done.bytes_written);
        self.context.traffic.count_merge(done.bytes_read, done.bytes_written);
        tracing::debug!(timeline = %self.id(), reason = ?job.reason, runs = merged.len(), ?done, "merged");
        Ok(done)
    }

    pub(super) fn check_may_merge(&self) -> Result<()> {
        if self.context.is_stopping() {
            return Err(EngineError::Shutdown);
        }
        self.check_latch()?;
        match self.check_not_deleted()? {
            Phase::Importing => {
                Err(EngineError::Importing { timeline: self.id(), importing: true })
            }
            Phase::Live | Phase::Deleted | Phase::Archived => Ok(()),
        }
    }

    /// Writes the run that the job's runs become; nothing names it yet. `points`: what to keep; `singles`: the same without
    /// copies, which the plan does not know. Returns the bytes read, too.
    fn write_merged(
        &self,
        files: &LayerMap,
        job: &Job,
        points: &Points,
        singles: &Points,
    ) -> Result<(u64, Run, RunDesc)> {
        let runs = files.runs.get(job.runs.clone()).unwrap_or_default();
        let is_bottom = job.runs.end == files.runs.len() && self.ancestor().is_none();
        let (bytes_read, written) = loop {
            let copies_stay = self.copies_stay.load(Ordering::Relaxed);
            let below = if copies_stay { Lsn::INVALID } else { points.cut_off() };
            let mut output = Output::new(self, is_bottom);
            let sifted = self.sift(runs, points, is_bottom, CopyOut::new(below), &mut output);
            let opened = sifted.and_then(|sifted| match sifted {
                Some(bytes_read) => Ok(Some((bytes_read, output.open()?))),
                None => Ok(None),
            });
            match opened {
                Ok(Some(written)) => break written,
                Ok(None) => {
                    output.discard();
                    self.copies_stay.store(true, Ordering::Relaxed);
                    tracing::warn!(timeline = %self.id(), "pages of a copied database cannot be written out; it pins its source");
                }
                Err(error) => {
                    output.discard();
                    return Err(error);
                }
            }
        };
        let mut run = Run { layers: written.layers, kept: Kept::default() };
        run.kept = Kept {
            cut_off: points.cut_off(),
            points: singles.count_in(run.lsns()),
            history_bytes: written.history_bytes,
        };
        let layers = run.layers.iter().map(|layer| layer.desc.clone()).collect();
        let desc = RunDesc { layers, kept: run.kept };
        Ok((bytes_read, run, desc))
    }

    /// Reads the runs and writes what is kept of them. Returns the bytes read; `None` when a page of a copied relation cannot be made.
    fn sift(
        &self,
        runs: &[Run],
        points: &Points,
        is_bottom: bool,
        mut copies: CopyOut,
        output: &mut Output<'_>,
    ) -> Result<Option<u64>> {
        // Shares of the bound: an eighth for blocks that images are made of, an eighth for values that wait; a layer's filter
        // and index, and a block of each run, take the rest.
        let options = &self.context.options;
        let share = options.merge_bytes_max / 8;
        let chain_max = options.chain_max.max(1);
        let rules = Rules { chain_max, is_bottom, pending_bytes_max: share };
        let mut sieve = Sieve::new(points, TimelinePast::new(self, share), rules);
        let mut merge = Merge::new(runs)?;
        let mut count = 0usize;
        let mut next = merge.next()?;
        loop {
            if count.is_multiple_of(LOOK_EVERY) {
                self.check_may_merge()?;
            }
            count += 1;
            let place = next.as_ref().map(|entry| (entry.key, entry.lsn));
            if let Some((key, lsn)) = copies.next_before(place) {
                if !sieve.push_page(key, lsn) {
                    return Ok(None);
                }
            } else if let Some(mut entry) = next.take() {
                copies.look(&mut entry);
                sieve.push(entry);
                next = merge.next()?;
            } else {
                break;
            }
            for kept in sieve.take_kept() {
                output.push(&kept).map_err(|failure| self.refuse(failure))?;
            }
        }
        sieve.finish();
        for kept in sieve.take_kept() {
            output.push(&kept).map_err(|failure| self.refuse(failure))?;
        }
        output.finish().map_err(|failure| self.refuse(failure))?;
        Ok(Some(merge.bytes_read()))
    }

    /// What a failed write comes to: after a sync of unknown outcome nothing more is written.
    pub(crate) fn refuse(&self, failure: WriteFailure) -> EngineError {
        let io = |path: PathBuf, error| EngineError::io("writing", path, error);
        match failure {
            WriteFailure::Retry(path, error) => io(path, error),
            WriteFailure::Latch(path, error) => self.latch.close(io(path, error)),
        }
    }

    /// Swaps runs in the manifest, then in the layer map, then removes the old files.
    fn publish_merge(&self, merged: &[Run], run: Run, desc: RunDesc) -> Result<()> {
        let numbers: Vec<u64> = merged.iter().map(Run::number).collect();
        let names = |run: &Run| -> Vec<String> {
            run.layers.iter().map(|layer| layer.desc.file_name()).collect()
        };
        // Of a run of which nothing was left there is nothing to name.
        let is_empty = run.layers.is_empty();
        {
            let mut manifest = self.manifest.lock();
            let desc = (!is_empty).then_some(desc);
            let saved = self.check_may_merge().and_then(|()| {
                self.change_manifest(&mut manifest, |next| swap_runs(next, &numbers, desc))
            });
            self.remove_unless_published(&saved, names(&run).into_iter());
            saved?;
            let run = (!is_empty).then_some(run);
            self.change_layers(|layers| layers.with_merged(&numbers, run));
            self.note_saved(&manifest);
        }
        self.retire_layers(merged);
        Ok(())
    }
}

impl Compacted {
    fn add(&mut self, other: Compacted) {
        self.merges += other.merges;
        self.bytes_read += other.bytes_read;
        self.bytes_written += other.bytes_written;
    }
}

fn shapes(files: &LayerMap, points: &Points) -> Vec<RunShape> {
    let shape = |run: &Run| {
        let lsns = run.lsns();
        RunShape { bytes: run.bytes(), lsns, kept: run.kept, points: points.count_in(lsns) }
    };
    files.runs.iter().map(shape).collect()
}

/// Flushes may have put runs above since the merge was planned.
fn swap_runs(next: &mut TimelineManifest, merged: &[u64], run: Option<RunDesc>) {
    let number = |run: &RunDesc| run.layers.first().map(|layer| layer.number);
    let at = next.runs.iter().position(|run| number(run) == merged.first().copied());
    let at = at.expect("merged runs are in the manifest");
    let gone: Vec<_> =
        next.runs.drain(at..at + merged.len()).filter_map(|run| number(&run)).collect();
    assert_eq!(gone, merged, "merged runs are side by side");
    if let Some(run) = run {
        next.runs.insert(at, run);
    }
}
