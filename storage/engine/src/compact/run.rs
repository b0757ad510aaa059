//! A merge, carried out: planned over a snapshot, written apart from everything else, published under the manifest's lock.
//!
//! Order, each step durable before the next: new layer files → timeline manifest (one replacement swaps the runs) → layer map → old
//! files removed. A crash in between leaves files that no manifest names; they are removed when the engine is opened. Flushes
//! go on meanwhile: they only put runs above. Readers keep the files of their snapshot open.

use std::{
    panic::resume_unwind,
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
};

use parking_lot::MutexGuard;
use treering_types::{KeyRange, Lsn};

use super::{
    copies::{CopyOut, KnownCopies},
    merge::Merge,
    moves::Moves,
    output::{Output, Written},
    pace::Pace,
    parts::ranges,
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

/// How a merge is asked for.
#[derive(Clone, Copy, Debug)]
struct Wish {
    /// Everything into one run, due or not.
    force: bool,
    /// Not at the cost of others ([`Pace`]).
    give_way: bool,
}

/// How much compaction there is to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Debt {
    /// Bytes of the files that the next merge would read, or name where they lie alone; 0 when none is due.
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
        let once = |force| self.compact_locked(Wish { force, give_way: false }, self.hold_merges());
        if force {
            done.add(once(true)?);
        }
        loop {
            let merged = once(false)?;
            if merged.merges == 0 {
                return Ok(done);
            }
            done.add(merged);
        }
    }

    /// Waits for a merge that is under way, which hurries; none begins while the guard is held.
    pub(crate) fn hold_merges(&self) -> MutexGuard<'_, ()> {
        let _awaited = self.context.haste.await_merge();
        self.compacting.lock()
    }

    /// One merge, if one is due, behind everyone's back: it gives way to others while there is time. What failed is kept for
    /// writers that wait for it.
    pub(crate) fn compact_behind(&self) -> Result<Compacted> {
        self.compact_locked(Wish { force: false, give_way: true }, self.compacting.lock())
    }

    /// The same, unless a merge is under way. For those who want its outcome, not to do the next one as well.
    pub(crate) fn compact_unless_busy(&self) -> Result<Option<Compacted>> {
        let guard = self.compacting.try_lock();
        let wish = Wish { force: false, give_way: false };
        guard.map(|guard| self.compact_locked(wish, guard)).transpose()
    }

    fn compact_locked(&self, wish: Wish, guard: MutexGuard<'_, ()>) -> Result<Compacted> {
        let merged = self.merge_next(wish);
        drop(guard);
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

    /// With `compacting` held: one at a time.
    fn merge_next(&self, wish: Wish) -> Result<Compacted> {
        self.check_may_merge()?;
        // Before the layers are looked at: whatever lies at or below the cut-off is in files then.
        let (cut_off, lsns) = self.retained_now();
        let files = std::sync::Arc::clone(&self.layers().files);
        let points = Points::new(cut_off, lsns.iter().copied());
        let shapes = shapes(&files, &points);
        let job = match wish.force && !files.runs.is_empty() {
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
        let moves = self.moves(&files, &job, &all, &copies)?;
        let (bytes_read, run) =
            self.write_merged(&files, &job, &all, (&points, &copies, &moves), wish.give_way)?;
        let bytes_written = run.bytes() - moves.bytes();
        let done = Compacted { merges: 1, bytes_read, bytes_written };
        let merged = files.runs.get(job.runs.clone()).unwrap_or_default();
        self.publish_merge(merged, run, &moves)?;
        self.traffic.count_merge(done.bytes_read, done.bytes_written);
        self.context.traffic.count_merge(done.bytes_read, done.bytes_written);
        tracing::debug!(timeline = %self.id(), reason = ?job.reason, runs = merged.len(), moved = moves.bytes(), ?done, "merged");
        Ok(done)
    }

    /// What of a merge need not be done. Others than these two are there to write runs anew.
    fn moves(
        &self,
        files: &LayerMap,
        job: &Job,
        points: &Points,
        copies: &KnownCopies,
    ) -> Result<Moves> {
        match job.reason {
            Reason::Tier | Reason::TooMany if !copies.any_due(points.cut_off()) => {
                let runs = files.runs.get(job.runs.clone()).unwrap_or_default();
                let bytes_min = self.context.options.moved_bytes_min;
                Moves::of(runs, points.cut_off(), bytes_min, &self.context.caches)
            }
            _ => Ok(Moves::default()),
        }
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

    /// Writes the run that the job's runs become, but for what is moved; nothing names it yet. `points`: what to keep; `singles`: the
    /// same without copies, which the plan does not know. Returns the bytes read, too.
    fn write_merged(
        &self,
        files: &LayerMap,
        job: &Job,
        points: &Points,
        (singles, copies, moves): (&Points, &KnownCopies, &Moves),
        give_way: bool,
    ) -> Result<(u64, Run)> {
        let runs = &moves.rest_of(files.runs.get(job.runs.clone()).unwrap_or_default());
        let is_bottom = job.runs.end == files.runs.len() && self.ancestor().is_none();
        let (bytes_read, written) = loop {
            let copies_stay = self.copies_stay.load(Ordering::Relaxed);
            let copy_below = if copies_stay { Lsn::INVALID } else { points.cut_off() };
            let options = &self.context.options;
            let threads = if copies.any_due(copy_below) { 1 } else { options.merge_threads };
            let ranges = ranges(runs, threads, options.merge_part_bytes_min);
            let sift = Sift { runs, points, is_bottom, copy_below, parts: ranges.len(), give_way };
            let output = || Output::new(self, is_bottom, moves.cuts());
            let mut parts: Vec<_> = ranges.into_iter().map(|range| (range, output())).collect();
            let sifted = self.sift_all(&sift, &mut parts);
            let opened = sifted.and_then(|sifted| match sifted {
                Some(bytes_read) => Ok(Some((bytes_read, open_all(&parts)?))),
                None => Ok(None),
            });
            match opened {
                Ok(Some(written)) => break written,
                Ok(None) => {
                    parts.iter_mut().for_each(|(_, output)| output.discard());
                    self.copies_stay.store(true, Ordering::Relaxed);
                    tracing::warn!(timeline = %self.id(), "pages of a copied database cannot be written out; it pins its source");
                }
                Err(error) => {
                    parts.iter_mut().for_each(|(_, output)| output.discard());
                    return Err(error);
                }
            }
        };
        let mut run = Run { layers: written.layers, kept: Kept::default() };
        run.layers.extend(moves.layers.iter().cloned());
        run.layers.sort_by_key(|layer| layer.desc.key_first);
        run.kept = Kept {
            cut_off: points.cut_off(),
            points: singles.count_in(run.lsns()),
            history_bytes: written.history_bytes + moves.history_bytes,
        };
        Ok((bytes_read, run))
    }

    /// All parts of a merge, each but the first on a thread of its own. Returns the bytes read; `None` when a page of a copied relation
    /// cannot be made.
    fn sift_all(
        &self,
        sift: &Sift<'_>,
        parts: &mut [(KeyRange, Output<'_>)],
    ) -> Result<Option<u64>> {
        let given_up = AtomicBool::new(false);
        let work = |(range, output): &mut (KeyRange, Output<'_>)| {
            let sifted = self.sift(sift, range, output, &given_up);
            if sifted.is_err() {
                given_up.store(true, Ordering::Relaxed);
            }
            sifted
        };
        let work = &work;
        let Some((first, others)) = parts.split_first_mut() else { return Ok(Some(0)) };
        let all = std::thread::scope(|scope| {
            let spawn = |part| {
                let thread = std::thread::Builder::new().name("treering-merge".to_owned());
                thread.spawn_scoped(scope, move || work(part))
            };
            let others: Vec<_> = others.iter_mut().map(spawn).collect();
            let mut all = vec![work(first)];
            all.extend(others.into_iter().map(|other| match other {
                Ok(thread) => thread.join().unwrap_or_else(|panic| resume_unwind(panic)),
                Err(error) => {
                    Err(EngineError::io("starting a thread for", self.directory.clone(), error))
                }
            }));
            all
        });
        // Who gave up did so on account of another's failure.
        let mut bytes_read = Some(0);
        for part in all {
            bytes_read = bytes_read.zip(part?).map(|(sum, bytes)| sum + bytes);
        }
        Ok(bytes_read)
    }

    /// Reads a range of keys and writes what is kept of it. Returns the bytes read; `None` when a page of a copied relation cannot be
    /// made, or when another part has `given_up`.
    fn sift(
        &self,
        sift: &Sift<'_>,
        range: &KeyRange,
        output: &mut Output<'_>,
        given_up: &AtomicBool,
    ) -> Result<Option<u64>> {
        // Shares of the bound, and of that a part's: an eighth for blocks that images are made of, an eighth for values that wait; a layer's
        // filter and index, and a block of each run, take the rest.
        let options = &self.context.options;
        let share = options.merge_bytes_max / 8 / sift.parts;
        let chain_max = options.chain_max.max(1);
        let rules = Rules { chain_max, is_bottom: sift.is_bottom, pending_bytes_max: share };
        let mut sieve = Sieve::new(sift.points, TimelinePast::new(self, share), rules);
        let mut copies = CopyOut::new(sift.copy_below);
        let mut merge = Merge::of_range(sift.runs, range)?;
        let mut pace = sift.give_way.then(|| Pace::of_this_thread(&self.context));
        let mut count = 0usize;
        let mut next = merge.next()?;
        loop {
            if count.is_multiple_of(LOOK_EVERY) {
                pace.iter_mut().for_each(Pace::keep);
                self.check_may_merge()?;
                if given_up.load(Ordering::Relaxed) {
                    return Ok(None);
                }
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
    fn publish_merge(&self, merged: &[Run], run: Run, moves: &Moves) -> Result<()> {
        let numbers: Vec<u64> = merged.iter().map(Run::number).collect();
        let desc = RunDesc {
            layers: run.layers.iter().map(|layer| layer.desc.clone()).collect(),
            kept: run.kept,
        };
        let written = moves.others_of(&run.layers).map(|layer| layer.desc.file_name());
        let written: Vec<String> = written.collect();
        // Of a run of which nothing was left there is nothing to name.
        let is_empty = run.layers.is_empty();
        {
            let mut manifest = self.manifest.lock();
            let desc = (!is_empty).then_some(desc);
            let saved = self.check_may_merge().and_then(|()| {
                self.change_manifest(&mut manifest, |next| swap_runs(next, &numbers, desc))
            });
            self.remove_unless_published(&saved, written.into_iter());
            saved?;
            let run = (!is_empty).then_some(run);
            self.change_layers(|layers| layers.with_merged(&numbers, run));
            self.note_saved(&manifest);
        }
        self.retire_layers(moves.others_of(merged.iter().flat_map(|run| &run.layers)));
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

/// What all parts of a merge have in common.
struct Sift<'a> {
    /// Adjacent, newest first.
    runs: &'a [Run],
    points: &'a Points,
    is_bottom: bool,
    /// Copies below it are copied out; none when it is invalid.
    copy_below: Lsn,
    /// How many there are.
    parts: usize,
    give_way: bool,
}

/// Opens what the parts have written: together a run.
fn open_all(parts: &[(KeyRange, Output<'_>)]) -> Result<Written> {
    let mut all = Written { layers: Vec::new(), history_bytes: 0 };
    for (_, output) in parts {
        let Written { layers, history_bytes } = output.open()?;
        all.layers.extend(layers);
        all.history_bytes += history_bytes;
    }
    Ok(all)
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
