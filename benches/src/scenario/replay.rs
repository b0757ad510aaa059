//! `replay`: a cold copy and the WAL of TPC-B after it, full-page writes on: applied in memory by us, recovered by stock
//! Postgres, in turns on one core. The pages of both must be the same.
//!
//! The ratio is stock's time over ours, by the clock and, in a line of its own, by time on the core: that one hardly
//! depends on what else the machine does.

use std::time::Duration;

use anyhow::ensure;
use treering_bench::{
    cpu::Pinned,
    memory::FreeMemory,
    recovery::{Course, Recovered, settle},
    replay::{Replayed, replay},
};

use super::Size;
use crate::report::{Report, Spread};

pub fn run(size: Size) -> anyhow::Result<Vec<Report>> {
    let (scale, bytes, rounds) =
        if size == Size::Full { (50, 1_000_000_000, 9) } else { (1, 16_000_000, 1) };
    eprintln!("  loading scale {scale}, then TPC-B until {} MB of WAL", bytes / 1_000_000);
    let course = Course::run(scale, bytes)?;
    let pinned = Pinned::to_last_core()?;
    let (mut by_clock, mut by_core) = (Turns::default(), Turns::default());
    let mut label = String::new();
    for round in 0..rounds {
        let (theirs, ours) = one_round(&course)?;
        by_clock.note(theirs.elapsed, ours.elapsed);
        by_core.note(theirs.cpu, ours.cpu);
        label = format!(
            "{} MB, {} k records, core {}",
            ours.wal_bytes / 1_000_000,
            ours.records / 1000,
            pinned.core
        );
        eprintln!(
            "  round {round}: stock {:.2?} ({:.2?} cpu, {:.2?} kernel), ours {:.2?} ({:.2?} cpu, {:.2?} kernel); {} pages, {} read",
            theirs.elapsed,
            theirs.cpu,
            theirs.system,
            ours.elapsed,
            ours.cpu,
            ours.system,
            ours.pages.held(),
            ours.pages.read
        );
    }
    Ok(vec![by_clock.report(label.clone()), by_core.report(format!("{label}, cpu time"))])
}

/// Both, and the proof that they did the same.
fn one_round(course: &Course) -> anyhow::Result<(Recovered, Replayed)> {
    let (theirs, recovered) = course.recover()?;
    let (base, wal) = (course.base(), course.wal_dir());
    settle(FreeMemory::HugePages, &[base.clone(), wal.clone()])?;
    let ours = replay(&base, &wal)?;
    let (ends, theirs_ends) = (ours.last_record, theirs.last_record);
    ensure!(ends == theirs_ends, "replay ends with {ends}, recovery with {theirs_ends}");
    let differences = ours.pages.differences(&recovered.data())?;
    let first = differences.iter().take(5).collect::<Vec<_>>();
    ensure!(differences.is_empty(), "{} pages differ: {first:?}", differences.len());
    Ok((theirs, ours))
}

/// Times of both, in seconds.
#[derive(Default)]
struct Turns {
    theirs: Spread,
    ours: Spread,
    ratios: Spread,
}

impl Turns {
    fn note(&mut self, theirs: Duration, ours: Duration) {
        let (theirs, ours) = (theirs.as_secs_f64(), ours.as_secs_f64());
        self.theirs.push(theirs);
        self.ours.push(ours);
        self.ratios.push(theirs / ours);
    }

    fn report(self, size: String) -> Report {
        Report {
            ratio: Some(self.ratios.median()),
            vanilla: Some(self.theirs.median()),
            ..Report::figure("replay", size, "s", &self.ours)
        }
    }
}
