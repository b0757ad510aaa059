//! Which runs to merge: a pure function of sizes and LSNs. Run numbers here count from the newest, 0.
//!
//! Size-tiered: adjacent runs merge once `fan_in` of similar size lie side by side, so a byte is rewritten about once
//! each time its run grows `fan_in`-fold. Arithmetic, in units of what a flush writes (`tests::long_run` asserts
//! it; nothing is dropped there, which is the worst case): after 320 flushes (64 MiB of open layer each, 20 GB of changes) 4.7 units
//! are written per unit flushed and a read finds at most 8 runs; after 4,096 (a quarter of a terabyte) 7.5 and 8. At 0.3 bytes of
//! compressed layer per byte of log that is 1.4 and 2.3 bytes written per byte of log; with gc the upper runs shrink as they
//! merge, and the larger number is not reached.

use std::ops::Range;

use treering_types::{Lsn, LsnRange};

use crate::manifest::Kept;

/// What is to be known of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RunShape {
    /// Bytes of its files.
    pub bytes: u64,
    pub lsns: LsnRange,
    pub kept: Kept,
    /// Single retained LSNs below the cut-off that lie in `lsns` now.
    pub points: u32,
}

/// Bounds of the plan.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub fan_in: usize,
    pub runs_max: usize,
    pub cut_off: Lsn,
}

/// Why runs are to be merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// Enough of similar size lie side by side.
    Tier,
    /// There are more runs than reads should have to look at.
    TooMany,
    /// Above the oldest run lies half as much again that is past the cut-off: together they shrink.
    Bottom,
    /// A quarter of the run is not retained any more.
    Garbage,
    /// Copied relations are to get pages of their own.
    Copies,
    /// Someone asked for it.
    Forced,
}

/// Adjacent runs that become one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Job {
    pub runs: Range<usize>,
    pub reason: Reason,
}

/// The next merge that is worth its while, if any.
pub(crate) fn plan(runs: &[RunShape], limits: &Limits) -> Option<Job> {
    let job = |reason| move |runs| Job { runs, reason };
    tier(runs, limits.fan_in.max(2))
        .map(job(Reason::Tier))
        .or_else(|| too_many(runs, limits.runs_max.max(1)).map(job(Reason::TooMany)))
        .or_else(|| bottom(runs, limits.cut_off).map(job(Reason::Bottom)))
        .or_else(|| garbage(runs, limits.cut_off).map(job(Reason::Garbage)))
}

/// From each run on: those behind it that are at most half as large again as all before them together. (Exactly as large would be
/// enough if flushes were; theirs differ, and runs that just miss each other pile up.)
fn tier(runs: &[RunShape], fan_in: usize) -> Option<Range<usize>> {
    (0..runs.len()).find_map(|start| {
        let mut total = 0;
        let similar = runs.get(start..)?.iter().take_while(|run| {
            let fits = total == 0 || run.bytes <= total + total / 2;
            total += run.bytes;
            fits
        });
        let count = similar.count();
        (count >= fan_in).then_some(start..start + count)
    })
}

/// The fewest bytes that bring the number down to the bound.
fn too_many(runs: &[RunShape], runs_max: usize) -> Option<Range<usize>> {
    let width = (runs.len() + 1).checked_sub(runs_max).filter(|width| *width >= 2)?;
    let cost = |window: &[RunShape]| window.iter().map(|run| run.bytes).sum::<u64>();
    let cheapest = runs.windows(width).enumerate().min_by_key(|(_, window)| cost(window));
    cheapest.map(|(start, _)| start..start + width)
}

/// All runs that lie past the cut-off in whole, when those above the oldest hold half as much as it does.
fn bottom(runs: &[RunShape], cut_off: Lsn) -> Option<Range<usize>> {
    let first = runs.iter().position(|run| run.lsns.end <= cut_off)?;
    let (oldest, above) = runs.get(first..)?.split_last()?;
    let held: u64 = above.iter().map(|run| run.bytes).sum();
    (!above.is_empty() && held >= oldest.bytes / 2).then_some(first..runs.len())
}

fn garbage(runs: &[RunShape], cut_off: Lsn) -> Option<Range<usize>> {
    let at = runs.iter().position(|run| {
        let estimate = garbage_bytes(run, cut_off);
        estimate > 0 && estimate >= run.bytes / 4
    })?;
    Some(at..at + 1)
}

/// About how many bytes of a run nobody can ask for any more: the part of its history that the cut-off has passed since it was
/// written, or that was kept for single LSNs that are not retained now. Exact once the run is written again.
pub(crate) fn garbage_bytes(run: &RunShape, cut_off: Lsn) -> u64 {
    let written_at = run.kept.cut_off.max(run.lsns.start);
    let passed = cut_off.min(run.lsns.end).bytes_since(written_at).unwrap_or(0);
    let span = run.lsns.end.bytes_since(written_at).unwrap_or(0).max(1);
    let released = run.kept.points.saturating_sub(run.points);
    let by_cut_off = share(run.kept.history_bytes, passed, span);
    let by_points = share(run.kept.history_bytes, released.into(), run.kept.points.max(1).into());
    by_cut_off.max(by_points)
}

fn share(bytes: u64, part: u64, whole: u64) -> u64 {
    let share = u128::from(bytes) * u128::from(part) / u128::from(whole.max(1));
    u64::try_from(share).unwrap_or(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMITS: Limits = Limits { fan_in: 4, runs_max: 8, cut_off: Lsn(0) };

    fn run(bytes: u64, start: u64, end: u64) -> RunShape {
        let lsns = LsnRange { start: Lsn(start), end: Lsn(end) };
        RunShape { bytes, lsns, kept: Kept::default(), points: 0 }
    }

    fn merge(runs: &mut Vec<RunShape>, job: &Job) -> u64 {
        let gone: Vec<RunShape> = runs.drain(job.runs.clone()).collect();
        let bytes = gone.iter().map(|run| run.bytes).sum();
        let (newest, oldest) = (gone[0], gone[gone.len() - 1]);
        runs.insert(job.runs.start, run(bytes, oldest.lsns.start.0, newest.lsns.end.0));
        bytes
    }

    /// Flushes of 25 MB, more or less, nothing ever dropped: (bytes written per byte flushed, most runs, mean runs).
    fn long_run(flushes: u64, spread: u64) -> (f64, usize, f64) {
        let (mut runs, mut written, mut flushed, mut most, mut sum) = (Vec::new(), 0, 0, 0, 0);
        for n in 0..flushes {
            let bytes = (25 << 20) - (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) * spread / 16;
            runs.insert(0, run(bytes, n * 10 + 1, n * 10 + 11));
            written += bytes;
            flushed += bytes;
            while let Some(job) = plan(&runs, &LIMITS) {
                written += merge(&mut runs, &job);
            }
            most = most.max(runs.len());
            sum += runs.len();
        }
        (written as f64 / flushed as f64, most, sum as f64 / flushes as f64)
    }

    #[test]
    fn a_long_run_writes_little_and_leaves_few_runs() {
        for spread in [0, 8, 16] {
            for (flushes, writes_max) in [(64, 4.5), (320, 5.2), (1024, 6.3), (4096, 8.0)] {
                let (writes, most, mean) = long_run(flushes, spread);
                println!(
                    "{flushes} flushes ({spread}): {writes:.2} written, {most} runs, {mean:.1} mean"
                );
                assert!(writes <= writes_max, "{writes} after {flushes} flushes");
                assert!(most <= LIMITS.runs_max);
            }
        }
    }

    /// Updates of a database of fixed size, the cut-off close behind: a merge with the oldest run gives the database again.
    #[test]
    fn a_short_window_bounds_disk_and_writes() {
        let database = 1000u64;
        let (mut runs, mut written, mut worst) = (vec![run(database, 1, 2)], 0, 0);
        for n in 1..2000u64 {
            runs.insert(0, run(25, n * 10, n * 10 + 10));
            written += 25;
            let limits = Limits { cut_off: Lsn(n * 10), ..LIMITS };
            while let Some(job) = plan(&runs, &limits) {
                let to_bottom = job.runs.end == runs.len();
                let before: u64 = merge(&mut runs, &job);
                written += if to_bottom { database } else { before };
                if let Some(last) = runs.last_mut().filter(|_| to_bottom) {
                    last.bytes = database;
                }
            }
            worst = worst.max(runs.iter().map(|run| run.bytes).sum::<u64>());
        }
        let amplification = written as f64 / (2000.0 * 25.0);
        println!("short window: {amplification:.2} written, {worst} of {database} bytes on disk");
        assert!(worst <= database * 3 / 2 + 50, "{worst}");
        assert!(amplification <= 5.0, "{amplification}");
    }

    #[test]
    fn garbage_follows_the_cut_off_and_released_points() {
        let mut bottom = run(1000, 100, 200);
        bottom.kept = Kept { cut_off: Lsn(120), points: 4, history_bytes: 800 };
        bottom.points = 4;
        assert_eq!(garbage_bytes(&bottom, Lsn(120)), 0);
        assert_eq!(garbage_bytes(&bottom, Lsn(160)), 400);
        assert_eq!(garbage_bytes(&bottom, Lsn(900)), 800);
        bottom.points = 3;
        assert_eq!(garbage_bytes(&bottom, Lsn(120)), 200);
        let limits = |cut_off| Limits { cut_off: Lsn(cut_off), ..LIMITS };
        assert_eq!(plan(&[bottom], &limits(120)), None);
        bottom.points = 2;
        let job = Job { runs: 0..1, reason: Reason::Garbage };
        assert_eq!(plan(&[bottom], &limits(120)), Some(job));
    }

    proptest! {
        #[test]
        fn plans_are_adjacent_runs_and_end(sizes in prop::collection::vec(1..1_000_000u64, 0..60),
                                           cut_off in 0..700u64) {
            let count = sizes.len() as u64;
            let runs = sizes.iter().zip(0..);
            let mut runs: Vec<RunShape> =
                runs.map(|(bytes, n)| run(*bytes, (count - n) * 10, (count - n) * 10 + 10)).collect();
            let limits = Limits { cut_off: Lsn(cut_off), ..LIMITS };
            let mut jobs = 0;
            while let Some(job) = plan(&runs, &limits) {
                prop_assert!(job.runs.start < job.runs.end && job.runs.end <= runs.len());
                prop_assert!(job.runs.len() > 1 || job.reason == Reason::Garbage);
                merge(&mut runs, &job);
                prop_assert!(runs.is_sorted_by(|newer, older| older.lsns.end <= newer.lsns.start));
                jobs += 1;
                prop_assert!(jobs <= 60);
            }
            prop_assert!(runs.len() <= limits.runs_max);
        }
    }
}
