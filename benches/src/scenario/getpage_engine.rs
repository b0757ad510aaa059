//! `getpage-random`, `getpage-scan`: pages out of a timeline of 10 GB on which TPC-B has run (full-page writes off, as Treering's
//! computes have them), compaction at rest. Engine time: one thread calls the engine, no wire. The engine has its default caches;
//! its files are in the kernel's.
//!
//! The scan is the largest relation from its beginning, by one caller, and by as many as there are cores, each with a part of its own.
//!
//! `layers` is how many layers a page was read out of, of the same reads.

use std::{
    thread::{available_parallelism, scope},
    time::Instant,
};

use anyhow::{bail, ensure};
use rand::{Rng, SeedableRng, rngs::StdRng};
use treering_bench::{
    cpu::thread_time,
    log::control_file,
    memory::PeakMemory,
    source::{Written, loaded, place, write_log},
    store::Store,
};
use treering_engine::EngineOptions;
use treering_stock::Cluster;
use treering_types::{Fork, Key, KeyClass, RelTag};

use super::{Size, histogram, memory_report, tpcb_until};
use crate::report::{Bar, Report, Spread};

/// Of one page, µs.
const RANDOM_US: f64 = 60.0;
const LAYERS_P99: f64 = 4.0;
const SCAN_PAGES_PER_SECOND: f64 = 100_000.0;
/// As many pages as a compute asks for at once.
const BATCH: usize = 128;
const SEED: u64 = 5;

pub fn run(size: Size) -> anyhow::Result<Vec<Report>> {
    // 15 MB a scale.
    let (scale, log_bytes, reads) = match size {
        Size::Full => (670, 150_000_000, 100_000),
        Size::Smoke => (1, 2_000_000, 500),
    };
    let (folder, _remove) = place(&format!("store-{scale}"), |at| make(at, scale, log_bytes))?;
    let memory = PeakMemory::watch();
    let options = EngineOptions::default();
    let limit = options.memory_bytes_max();
    let store = Store::open(&folder, options)?;
    let relations = relations(&store)?;
    let bytes: u64 = relations.iter().map(|(_, blocks)| u64::from(*blocks) * 8192).sum();
    let label = format!("{:.1} GB, {} runs", bytes as f64 / 1e9, store.timeline.info().runs);
    let mut reports = random(&store, &relations, reads, &label)?;
    reports.extend(scan(&store, &relations, reads, &label)?);
    let mut peak = Spread::default();
    peak.push(memory.bytes() as f64 / f64::from(1 << 20));
    reports.push(memory_report("getpage-random", label, &peak, limit));
    Ok(reports)
}

fn make(at: &std::path::Path, scale: u32, log_bytes: u64) -> anyhow::Result<()> {
    eprintln!("  loading scale {scale}, then TPC-B until {} MB of log", log_bytes / 1_000_000);
    let mut cluster = loaded(false, |cluster: &Cluster| {
        cluster
            .pgbench(&["-i", "-q", "-I", "dtGvp", "-s", &scale.to_string(), "postgres"])
            .map(|_| ())
    })?;
    let checkpoint = control_file(&cluster.data())?.checkpoint_start();
    eprintln!("  importing");
    let store = Store::import_at(at, &cluster.data(), EngineOptions::default())?;
    write_log(&mut cluster, |cluster| tpcb_until(cluster, log_bytes))?;
    eprintln!("  applying the log");
    store.apply(&Written::from(checkpoint, &cluster.wal_dir())?)?;
    store.settle()
}

/// All main forks with their sizes in blocks.
fn relations(store: &Store) -> anyhow::Result<Vec<(RelTag, u32)>> {
    let timeline = &store.timeline;
    let all =
        timeline.relations(Key::class_range(KeyClass::RelMeta), timeline.last_record_lsn())?;
    let main = all.into_iter().filter(|(rel, meta)| rel.fork == Fork::Main && meta.blocks > 0);
    Ok(main.map(|(rel, meta)| (rel, meta.blocks)).collect())
}

/// Single pages, drawn from all blocks of all relations.
fn random(
    store: &Store,
    relations: &[(RelTag, u32)],
    reads: usize,
    label: &str,
) -> anyhow::Result<Vec<Report>> {
    let total: u64 = relations.iter().map(|(_, blocks)| u64::from(*blocks)).sum();
    let mut rng = StdRng::seed_from_u64(SEED);
    let mut draw = || {
        let mut at = rng.random_range(0..total);
        for (rel, blocks) in relations {
            match at.checked_sub(u64::from(*blocks)) {
                Some(rest) => at = rest,
                None => return Key::rel_block(*rel, at as u32),
            }
        }
        unreachable!("a number below the total is in a relation")
    };
    let (timeline, lsn) = (&store.timeline, store.timeline.last_record_lsn());
    let mut latencies = histogram();
    let mut before = store.engine.reads_by_layers();
    for turn in 0..reads * 3 / 2 {
        // A third of the reads before those that count: warm means that caches are full.
        if turn == reads / 2 {
            latencies.reset();
            before = store.engine.reads_by_layers();
        }
        let key = draw();
        let began = Instant::now();
        std::hint::black_box(timeline.get_page(key, lsn)?);
        latencies.record(began.elapsed().as_nanos() as u64)?;
    }
    let mut layers = histogram();
    let after = store.engine.reads_by_layers();
    for (slot, (after, before)) in after.iter().zip(before).enumerate() {
        layers.record_n(slot as u64, after - before)?;
    }
    let time = Report::latency("getpage-random", label.to_owned(), "us", 1e3, &latencies);
    let layers = Report::latency("getpage-random", label.to_owned(), "layers", 1.0, &layers);
    Ok(vec![
        Report { bar: Some(Bar::AtMost(RANDOM_US)), ..time },
        Report { ours: layers.p99, bar: Some(Bar::AtMost(LAYERS_P99)), ..layers },
    ])
}

/// The largest relation in batches: by one caller, and by one for each core.
fn scan(
    store: &Store,
    relations: &[(RelTag, u32)],
    pages: usize,
    label: &str,
) -> anyhow::Result<Vec<Report>> {
    let largest = relations.iter().max_by_key(|(_, blocks)| *blocks);
    let (rel, blocks) = *largest.ok_or_else(|| anyhow::anyhow!("no relation"))?;
    let cores = available_parallelism()?.get();
    let batches = (blocks as usize).min(pages * 2) / BATCH / cores;
    let part = &|number: usize| scan_part(store, rel, number * batches * BATCH, batches);
    // Once for the kernel's cache.
    (0..cores).try_for_each(|number| part(number).map(|_| ()))?;
    let (mut alone, mut on_core, mut together) =
        (Spread::default(), Spread::default(), Spread::default());
    let count = (batches * BATCH) as f64;
    for _ in 0..5 {
        let began = Instant::now();
        on_core.push(count / part(0)?);
        alone.push(count / began.elapsed().as_secs_f64());
        let began = Instant::now();
        scope(|scope| {
            let callers: Vec<_> = (0..cores).map(|n| scope.spawn(move || part(n))).collect();
            callers.into_iter().try_for_each(|caller| match caller.join() {
                Ok(scanned) => scanned.map(|_| ()),
                Err(_) => bail!("a caller panicked"),
            })
        })?;
        together.push(count * cores as f64 / began.elapsed().as_secs_f64());
    }
    let figure = |callers: &str, spread| {
        let label = format!("{label}, batches of {BATCH}, {callers}");
        Report::figure("getpage-scan", label, "pages/s", spread)
    };
    Ok(vec![
        figure("one caller", &alone),
        figure("one caller, by core time", &on_core),
        Report {
            bar: Some(Bar::AtLeast(SCAN_PAGES_PER_SECOND)),
            ..figure(&format!("{cores} callers"), &together)
        },
    ])
}

/// Reads a part of a relation; answers with the seconds that took on the caller's core.
fn scan_part(store: &Store, rel: RelTag, first: usize, batches: usize) -> anyhow::Result<f64> {
    let (timeline, lsn) = (&store.timeline, store.timeline.last_record_lsn());
    let began = thread_time();
    for batch in 0..batches {
        let first = first + batch * BATCH;
        let keys: Vec<Key> =
            (first..first + BATCH).map(|block| Key::rel_block(rel, block as u32)).collect();
        for page in timeline.get_pages(&keys, lsn) {
            ensure!(page?.len() == 8192, "a page has 8 KiB");
        }
    }
    Ok((thread_time() - began).as_secs_f64())
}
