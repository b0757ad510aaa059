//! `depth`: pages read at the end of 1,024 nested branches against the same at the end of one. Engine time, one thread, warm.
//!
//! Every branch writes: a few pages of the table and its size. `flushed`: each into a layer file of its own; `in memory`: all into
//! open layers. Reads draw from the whole table, most of which only the root has. The ratio is of the medians, taken in turns.

use std::{sync::Arc, time::Instant};

use anyhow::Context;
use rand::{Rng, SeedableRng, rngs::StdRng};
use treering_bench::{TABLE, heap_insert, memory::PeakMemory};
use treering_engine::{
    Engine, EngineOptions, NewTenant, RelMeta, Tenant, Timeline, Value, WriteBatch,
};
use treering_fs::RealFs;
use treering_pgfmt::{change::PageChange, version::PgMajor};
use treering_types::{Key, Lsn, TenantId, TimelineId};

use super::{Size, histogram, memory_report};
use crate::report::{Bar, Report, Spread};

const RATIO: f64 = 1.2;
/// Pages that each branch writes.
const PAGES_WRITTEN: u32 = 16;
const SEED: u64 = 5;

pub fn run(size: Size) -> anyhow::Result<Vec<Report>> {
    let (depth, blocks, reads) = match size {
        Size::Full => (1024, 50_000, 50_000),
        Size::Smoke => (20, 200, 500),
    };
    let mut reports = Vec::new();
    for flushed in [true, false] {
        reports.extend(at_depth(depth, blocks, reads, flushed)?);
    }
    Ok(reports)
}

fn at_depth(depth: u32, blocks: u32, reads: usize, flushed: bool) -> anyhow::Result<Vec<Report>> {
    let folder = tempfile::tempdir()?;
    let options =
        EngineOptions { open_layer_age_max: std::time::Duration::MAX, ..EngineOptions::default() };
    let limit = options.memory_bytes_max();
    let memory = PeakMemory::watch();
    let engine = Engine::open(Arc::new(RealFs), folder.path(), options)?;
    let new = NewTenant { id: TenantId([1; 16]), pg_major: PgMajor::V15, system_id: 7 };
    let tenant = engine.create_tenant(new)?;
    let root = root(&tenant, blocks)?;
    let mut line = vec![Arc::clone(&root)];
    let mut rng = StdRng::seed_from_u64(SEED);
    for n in 1..=depth {
        let parent = &line[line.len() - 1];
        let branch = tenant.branch(id(n), parent.id(), parent.last_record_lsn())?;
        write_pages(&branch, blocks, &mut rng)?;
        if flushed {
            branch.flush()?;
        }
        line.push(branch);
    }
    let (first, last) = (&line[1], line.last().context("a line")?);
    let (mut near, mut far) = (histogram(), histogram());
    // The first round warms up.
    for round in 0..5 {
        if round == 1 {
            near.reset();
            far.reset();
        }
        for (timeline, times) in [(first, &mut near), (last, &mut far)] {
            for _ in 0..reads / 4 {
                let key = Key::rel_block(TABLE, rng.random_range(0..blocks));
                let began = Instant::now();
                std::hint::black_box(timeline.get_page(key, timeline.last_record_lsn())?);
                times.record(began.elapsed().as_nanos() as u64)?;
            }
        }
    }
    let kind = if flushed { "flushed" } else { "in memory" };
    let near = Report::latency("depth", format!("1 branch, {kind}"), "us", 1e3, &near);
    let label = format!("{depth} nested branches, {kind}");
    let far = Report::latency("depth", label.clone(), "us", 1e3, &far);
    let ratio = Some(far.p50 / near.p50);
    let mut peak = Spread::default();
    peak.push(memory.bytes() as f64 / f64::from(1 << 20));
    let memory = memory_report("depth", label, &peak, limit);
    Ok(vec![near, Report { ratio, bar: Some(Bar::RatioAtMost(RATIO)), ..far }, memory])
}

fn id(n: u32) -> TimelineId {
    let mut id = [0; 16];
    id[..4].copy_from_slice(&n.to_be_bytes());
    TimelineId(id)
}

/// A table of `blocks` images of random bytes, none of which is like another.
fn root(tenant: &Arc<Tenant>, blocks: u32) -> anyhow::Result<Arc<Timeline>> {
    let start = Lsn(0x1000_0000);
    let root = tenant.create_root(id(0), start, 0)?;
    let mut rng = StdRng::seed_from_u64(SEED);
    let mut page = Box::new([0; 8192]);
    for first in (0..blocks).step_by(1000) {
        let mut batch = WriteBatch::new(start);
        for block in first..blocks.min(first + 1000) {
            // Half of it does not compress.
            rng.fill(&mut page[4096..]);
            let change = PageChange::Image(page.clone().into());
            batch.put(Key::rel_block(TABLE, block), start, Value::whole(change.encode()));
        }
        root.write(batch)?;
        root.flush()?;
    }
    let mut meta = RelMeta::created_by_write(start);
    meta.grow(blocks);
    let mut batch = WriteBatch::new(start);
    batch.put(Key::rel_meta(TABLE), start, Value::whole(meta.encode()));
    root.write(batch)?;
    root.finish_import(start)?;
    Ok(root)
}

/// A row of its own on some pages, as the first change of the page here.
fn write_pages(branch: &Timeline, blocks: u32, rng: &mut StdRng) -> anyhow::Result<()> {
    let mut lsn = branch.last_record_lsn();
    let mut batch = WriteBatch::new(lsn);
    for _ in 0..PAGES_WRITTEN {
        lsn = lsn + 64;
        let change = heap_insert(1);
        let value = Value { base: change.is_base(), bytes: change.encode() };
        batch.put(Key::rel_block(TABLE, rng.random_range(0..blocks)), lsn, value);
    }
    let meta = branch.tip_rel_meta(TABLE)?.context("the table is there")?;
    batch.put(Key::rel_meta(TABLE), lsn, Value::whole(meta.encode()));
    batch.last_record_lsn = lsn;
    Ok(branch.write(batch)?)
}
