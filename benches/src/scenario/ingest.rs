//! `ingest`, `ingest-bulk`: a log into an engine with its defaults, as the pageserver does it: decoded, applied to the open layer,
//! flushed, merged. The clock stops when everything is durable and compaction has nothing more to do.
//!
//! `ingest` takes the log of TPC-B. With full-page images (a checkpoint half-way) the figure is the log's bytes per second, without them its records.
//! The same by time on cores, which hardly depends on what else the machine does: two cores that are busy
//! throughout reach the first bar if a unit takes no more than the second.
//! `ingest-bulk` takes the log of statements that write relations anew (VACUUM FULL, CREATE INDEX), full-page writes off: what
//! it needs of cores, the Postgres beside it lacks.
//! `written` is what the process handed to the kernel for files, of whatever kind, per byte of log.

use std::time::Instant;

use treering_bench::{cpu::process_time, memory::PeakMemory, source::Source, store::Store};
use treering_engine::EngineOptions;
use treering_stock::Cluster;

use super::{Size, memory_report, tpcb_until};
use crate::report::{Bar, Report, Spread};

const MB_PER_SECOND: f64 = 120.0;
const RECORDS_PER_SECOND: f64 = 300_000.0;
/// Cores that the bars are meant for.
const CORES: f64 = 2.0;
const WRITTEN_PER_BYTE: f64 = 2.5;

/// What the log is of.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// TPC-B with full-page images.
    Images,
    /// TPC-B without.
    Records,
    /// Relations written anew.
    Bulk,
}

pub fn run(size: Size) -> anyhow::Result<Vec<Report>> {
    let mut reports = Vec::new();
    for kind in [Kind::Images, Kind::Records] {
        let bytes = match (size, kind) {
            (Size::Full, Kind::Images) => 1_500_000_000,
            (Size::Full, _) => 500_000_000,
            (Size::Smoke, _) => 16_000_000,
        };
        reports.extend(of(&tpcb(scale(size), bytes, kind)?, kind, rounds(size))?);
    }
    Ok(reports)
}

pub fn bulk(size: Size) -> anyhow::Result<Vec<Report>> {
    of(&rewritten(scale(size))?, Kind::Bulk, rounds(size))
}

fn scale(size: Size) -> u32 {
    if size == Size::Full { 50 } else { 1 }
}

fn rounds(size: Size) -> usize {
    if size == Size::Full { 3 } else { 1 }
}

fn load(scale: u32, cluster: &Cluster) -> anyhow::Result<()> {
    cluster.pgbench(&["-i", "-q", "-s", &scale.to_string(), "postgres"])?;
    Ok(())
}

/// TPC-B on `scale`, until there are so many bytes of log.
fn tpcb(scale: u32, bytes: u64, kind: Kind) -> anyhow::Result<Source> {
    let name = if kind == Kind::Images { "images" } else { "records" };
    eprintln!("  TPC-B at scale {scale} until {} MB of log, {name}", bytes / 1_000_000);
    let place = format!("tpcb-{scale}-{name}-{}", bytes / 1_000_000);
    let work = |cluster: &Cluster| tpcb_until(cluster, bytes);
    Source::get(&place, kind == Kind::Images, |cluster| load(scale, cluster), work)
}

/// pgbench's largest table and its index written anew, twice, and another index of it.
fn rewritten(scale: u32) -> anyhow::Result<Source> {
    eprintln!("  VACUUM FULL and CREATE INDEX at scale {scale}");
    let work = |cluster: &Cluster| {
        for _ in 0..2 {
            cluster.sql("VACUUM FULL pgbench_accounts")?;
        }
        cluster.sql("CREATE INDEX ON pgbench_accounts (abalance, aid)")?;
        Ok(())
    };
    Source::get(&format!("bulk-{scale}"), false, |cluster| load(scale, cluster), work)
}

fn of(source: &Source, kind: Kind, rounds: usize) -> anyhow::Result<Vec<Report>> {
    let (mut speed, mut on_cores) = (Spread::default(), Spread::default());
    let (mut written, mut peak) = (Spread::default(), Spread::default());
    let options = EngineOptions::default();
    let limit = options.memory_bytes_max();
    let mut label = String::new();
    for _ in 0..rounds {
        let store = Store::import(&source.base, options.clone())?;
        store.settle()?;
        let wal = source.log.end.bytes_since(store.timeline.last_record_lsn()).unwrap_or(0) as f64;
        let memory = PeakMemory::watch();
        let (before, began, busy) = (bytes_written()?, Instant::now(), process_time());
        store.apply(&source.log)?;
        let applied = began.elapsed();
        store.settle()?;
        let took = began.elapsed().as_secs_f64();
        let busy = (process_time() - busy).as_secs_f64();
        let amplification = (bytes_written()? - before) as f64 / wal;
        let (megabytes, records) = (wal / 1e6 / took, source.log.records as f64 / took);
        let info = store.timeline.info();
        eprintln!(
            "  applied in {applied:.2?}, settled after {took:.2} s ({busy:.2} s on cores): {megabytes:.0} MB/s, {:.0} k records/s, {amplification:.2} \
             bytes written per byte, {} MB of memory; {} runs, {} MB flushed, {} MB by merges",
            records / 1e3,
            memory.bytes() >> 20,
            info.runs,
            info.traffic.flushed_bytes >> 20,
            info.traffic.merge_written_bytes >> 20,
        );
        let (rate, units) = match kind {
            Kind::Images | Kind::Bulk => (megabytes, wal / 1e6),
            Kind::Records => (records, source.log.records as f64),
        };
        speed.push(rate);
        on_cores.push(busy * 1e6 / units);
        written.push(amplification);
        peak.push(memory.bytes() as f64 / f64::from(1 << 20));
        let of = match kind {
            Kind::Images => "with images",
            Kind::Records => "without images",
            Kind::Bulk => "relations written anew",
        };
        label = format!("{:.0} MB, {} k records, {of}", wal / 1e6, source.log.records / 1000);
    }
    let (unit, per, bar) = match kind {
        Kind::Images | Kind::Bulk => ("MB/s", "core us/MB", MB_PER_SECOND),
        Kind::Records => ("records/s", "core us/record", RECORDS_PER_SECOND),
    };
    let scenario = if kind == Kind::Bulk { "ingest-bulk" } else { "ingest" };
    let on_cores = Report::figure(scenario, label.clone(), per, &on_cores);
    let speed = Report::figure(scenario, label.clone(), unit, &speed);
    let bytes = Report::figure(scenario, label.clone(), "bytes written/byte", &written);
    Ok(vec![
        Report { bar: Some(Bar::AtLeast(bar)), ..speed },
        Report { bar: Some(Bar::AtMost(CORES * 1e6 / bar)), ..on_cores },
        Report { bar: Some(Bar::AtMost(WRITTEN_PER_BYTE)), ..bytes },
        memory_report(scenario, label, &peak, limit),
    ])
}

/// Bytes that this process has given to write calls.
fn bytes_written() -> anyhow::Result<u64> {
    let io = std::fs::read_to_string("/proc/self/io")?;
    let line = io.lines().find_map(|line| line.strip_prefix("wchar:"));
    Ok(line.unwrap_or_default().trim().parse()?)
}
