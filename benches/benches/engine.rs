//! The engine alone: a write batch into the open layer, and pages out of the open layer and out of a layer file.

use std::sync::Arc;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use treering_bench::{TABLE, heap_insert};
use treering_engine::{Engine, EngineOptions, NewTenant, RelMeta, Timeline, Value, WriteBatch};
use treering_fs::RealFs;
use treering_pgfmt::version::PgMajor;
use treering_types::{Key, Lsn, TenantId, TimelineId};

/// Pages of the table.
const BLOCKS: u32 = 2_000;
/// Changes of each page.
const CHANGES: u16 = 40;

fn timeline(dir: &std::path::Path) -> Arc<Timeline> {
    let options = EngineOptions { page_cache_bytes: 0, ..EngineOptions::default() };
    let engine = Engine::open(Arc::new(RealFs), dir, options).expect("opens");
    let new = NewTenant { id: TenantId([1; 16]), pg_major: PgMajor::V15, system_id: 7 };
    let tenant = engine.create_tenant(new).expect("a tenant");
    let timeline = tenant.create_root(TimelineId([2; 16]), Lsn(0x1000), 0).expect("a timeline");
    timeline.finish_import(Lsn(0x1000)).expect("an empty import");
    std::mem::forget(engine);
    timeline
}

fn fill(timeline: &Timeline) {
    let mut lsn = timeline.last_record_lsn();
    let mut meta = RelMeta::created(lsn + 8);
    meta.grow(BLOCKS);
    let mut batch = WriteBatch::new(lsn);
    batch.put(Key::rel_meta(TABLE), lsn + 8, Value::whole(meta.encode()));
    for offset in 1..=CHANGES {
        let change = heap_insert(offset);
        for block in 0..BLOCKS {
            lsn = lsn + 64;
            let value = Value { base: change.is_base(), bytes: change.encode() };
            batch.put(Key::rel_block(TABLE, block), lsn, value);
        }
    }
    batch.last_record_lsn = lsn;
    timeline.write(batch).expect("written");
}

fn engine(c: &mut Criterion) {
    let dir = tempfile::tempdir().expect("temporary directory");
    let timeline = timeline(dir.path());
    let mut group = c.benchmark_group("engine");
    group.throughput(Throughput::Elements(u64::from(BLOCKS) * u64::from(CHANGES)));
    group.sample_size(10);
    group.bench_function("write batch", |b| b.iter(|| fill(&timeline)));
    group.throughput(Throughput::Elements(1));
    group.sample_size(100);
    let mut block = 0;
    let mut read = move |timeline: &Timeline| {
        block = (block + 7919) % BLOCKS;
        timeline.get_page(Key::rel_block(TABLE, block), timeline.last_record_lsn()).expect("a page")
    };
    group.bench_function("page from the open layer", |b| b.iter(|| read(&timeline)));
    timeline.flush().expect("flushed");
    group.bench_function("page from a layer file", |b| b.iter(|| read(&timeline)));
    group.finish();
}

criterion_group!(benches, engine);
criterion_main!(benches);
