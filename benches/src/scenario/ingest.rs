//! `ingest`: the log of TPC-B into an engine with its defaults, as the pageserver does it: decoded, applied to the open layer,
//! flushed, merged. The clock stops when everything is durable and compaction has nothing more to do.
//!
//! With full-page images (a checkpoint half-way) the figure is the log's bytes per second, without them its records.
//! The same by time on cores, which hardly depends on what else the machine does: two cores that are busy
//! throughout reach the first bar if a unit takes no more than the second.
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

pub fn run(size: Size) -> anyhow::Result<Vec<Report>> {
    let full = size == Size::Full;
    let mut reports = Vec::new();
    for images in [true, false] {
        let bytes = match (full, images) {
            (true, true) => 1_500_000_000,
            (true, false) => 500_000_000,
            (false, _) => 16_000_000,
        };
        let scale = if full { 50 } else { 1 };
        let source = source(scale, bytes, images)?;
        reports.extend(of(&source, images, if full { 3 } else { 1 })?);
    }
    Ok(reports)
}

/// TPC-B on `scale`, until there are so many bytes of log.
fn source(scale: u32, bytes: u64, images: bool) -> anyhow::Result<Source> {
    let kind = if images { "images" } else { "records" };
    eprintln!("  TPC-B at scale {scale} until {} MB of log, {kind}", bytes / 1_000_000);
    let load = |cluster: &Cluster| {
        cluster.pgbench(&["-i", "-q", "-s", &scale.to_string(), "postgres"]).map(|_| ())
    };
    let work = |cluster: &Cluster| tpcb_until(cluster, bytes);
    Source::get(&format!("tpcb-{scale}-{kind}-{}", bytes / 1_000_000), images, load, work)
}

fn of(source: &Source, images: bool, rounds: usize) -> anyhow::Result<Vec<Report>> {
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
        speed.push(if images { megabytes } else { records });
        on_cores.push(busy * 1e6 / if images { wal / 1e6 } else { source.log.records as f64 });
        written.push(amplification);
        peak.push(memory.bytes() as f64 / f64::from(1 << 20));
        let kind = if images { "with images" } else { "without images" };
        label = format!("{:.0} MB, {} k records, {kind}", wal / 1e6, source.log.records / 1000);
    }
    let (unit, per, bar) = match images {
        true => ("MB/s", "core us/MB", MB_PER_SECOND),
        false => ("records/s", "core us/record", RECORDS_PER_SECOND),
    };
    let on_cores = Report::figure("ingest", label.clone(), per, &on_cores);
    let speed = Report::figure("ingest", label.clone(), unit, &speed);
    let bytes = Report::figure("ingest", label.clone(), "bytes written/byte", &written);
    Ok(vec![
        Report { bar: Some(Bar::AtLeast(bar)), ..speed },
        Report { bar: Some(Bar::AtMost(CORES * 1e6 / bar)), ..on_cores },
        Report { bar: Some(Bar::AtMost(WRITTEN_PER_BYTE)), ..bytes },
        memory_report("ingest", label, &peak, limit),
    ])
}

/// Bytes that this process has given to write calls.
fn bytes_written() -> anyhow::Result<u64> {
    let io = std::fs::read_to_string("/proc/self/io")?;
    let line = io.lines().find_map(|line| line.strip_prefix("wchar:"));
    Ok(line.unwrap_or_default().trim().parse()?)
}
