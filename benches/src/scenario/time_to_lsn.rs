//! `time-to-lsn`: where a time is in the log of a million commits, in layer files, compaction at rest. Engine time: what a
//! branch "as of" a time waits for before it is made. Times are drawn from all over the history.

use std::time::Instant;

use anyhow::{Context, ensure};
use rand::{Rng, SeedableRng, rngs::StdRng};
use treering_bench::{memory::PeakMemory, source::Source, store::Store};
use treering_engine::{EngineOptions, TimeAnswer};
use treering_stock::Cluster;

use super::{Size, histogram, memory_report};
use crate::report::{Bar, Report, Spread};

/// p99, ms.
const MILLISECONDS: f64 = 10.0;
const SEED: u64 = 5;

pub fn run(size: Size) -> anyhow::Result<Vec<Report>> {
    let (commits, asked) = if size == Size::Full { (1_000_000, 10_000) } else { (2_000, 100) };
    eprintln!("  {commits} commits");
    let name = format!("commits-{commits}");
    let source = Source::get(&name, false, |_| Ok(()), |cluster| write_commits(cluster, commits))?;
    let options = EngineOptions::default();
    let limit = options.memory_bytes_max();
    let memory = PeakMemory::watch();
    let store = Store::import(&source.base, options)?;
    let timeline = &store.timeline;
    let start = timeline.last_record_lsn();
    store.apply(&source.log)?;
    store.settle()?;
    let first = match timeline.lsn_before_time(i64::MIN + 1)? {
        TimeAnswer::At(lsn) => timeline.time_at(lsn + 200)?,
        _ => None,
    };
    let last = timeline.time_at(timeline.last_record_lsn())?.context("no commit")?;
    let first = first.unwrap_or(last - i64::from(commits));
    let mut rng = StdRng::seed_from_u64(SEED);
    let mut latencies = histogram();
    for _ in 0..asked {
        let time = rng.random_range(first..last);
        let began = Instant::now();
        let answer = timeline.lsn_before_time(time)?;
        latencies.record(began.elapsed().as_nanos() as u64)?;
        ensure!(matches!(answer, TimeAnswer::At(lsn) if lsn >= start), "{answer:?} for {time}");
    }
    let label = format!("{commits} commits, {} runs", timeline.info().runs);
    let report = Report::latency("time-to-lsn", label.clone(), "ms", 1e6, &latencies);
    let mut peak = Spread::default();
    peak.push(memory.bytes() as f64 / f64::from(1 << 20));
    Ok(vec![
        Report { ours: report.p99, bar: Some(Bar::AtMost(MILLISECONDS)), ..report },
        memory_report("time-to-lsn", label, &peak, limit),
    ])
}

/// Transactions that only take a transaction id: a commit record each.
fn write_commits(cluster: &Cluster, commits: u32) -> anyhow::Result<()> {
    let sql = format!(
        "DO $$ BEGIN FOR i IN 1..{commits} LOOP PERFORM pg_current_xact_id(); COMMIT; END LOOP; END $$"
    );
    cluster.sql(&sql).map(|_| ())
}
