//! A copied database pins the versions that it shows of its source, until compaction has given it pages of its own.

use std::{path::Path, sync::Arc, time::Duration};

use treering_engine::{
    CopyOf, Engine, EngineOptions, NewTenant, RelMeta, Timeline, Value, WriteBatch,
};
use treering_fs::CrashFs;
use treering_pgfmt::{change::PageChange, version::PgMajor};
use treering_types::{Fork, Key, Lsn, PAGE_SIZE, RelTag, TenantId, TimelineId};

const START: Lsn = Lsn(0x100_0000);
const SOURCE: RelTag = RelTag { tablespace: 1663, database: 5, relation: 7, fork: Fork::Main };
const COPY: RelTag = RelTag { database: 6, ..SOURCE };
const BLOCKS: u32 = 100;

fn engine(fs: &CrashFs) -> Arc<Engine> {
    let options = EngineOptions {
        background: false,
        gc_delay: Duration::ZERO,
        layer_bytes_max: 256 << 10,
        ..EngineOptions::default()
    };
    Engine::open(Arc::new(fs.clone()), Path::new("/engine"), options).expect("opens")
}

fn root(engine: &Engine) -> Arc<Timeline> {
    let new = NewTenant { id: TenantId([1; 16]), pg_major: PgMajor::V15, system_id: 1 };
    let tenant = engine.create_tenant(new).expect("a tenant");
    let root = tenant.create_root(TimelineId([2; 16]), START, 0).expect("a root");
    root.finish_import(START).expect("an empty import");
    root
}

/// One record.
fn write(timeline: &Timeline, values: impl IntoIterator<Item = (Key, Value)>) -> Lsn {
    let lsn = timeline.last_record_lsn() + 64;
    let mut batch = WriteBatch::new(lsn);
    values.into_iter().for_each(|(key, value)| batch.put(key, lsn, value));
    timeline.write(batch).expect("written");
    lsn
}

fn meta(rel: RelTag, meta: &RelMeta) -> (Key, Value) {
    (Key::rel_meta(rel), Value::whole(meta.encode()))
}

/// Pages that do not compress, others for every seed.
fn pages(seed: u64) -> Vec<Box<[u8; PAGE_SIZE]>> {
    let mut state = seed;
    let page = |_| {
        let mut page = Box::new([0; PAGE_SIZE]);
        for word in page.as_chunks_mut::<8>().0 {
            // xorshift64.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            *word = state.to_le_bytes();
        }
        page
    };
    (0..BLOCKS).map(page).collect()
}

fn images(pages: &[Box<[u8; PAGE_SIZE]>]) -> Vec<(Key, Value)> {
    let images = pages.iter().map(|page| PageChange::Image(page.clone().into()).encode());
    (0..).zip(images).map(|(n, image)| (Key::rel_block(SOURCE, n), Value::whole(image))).collect()
}

/// A table, its copy, and then other contents of the table; flushed. The LSN of the copy.
fn copied(timeline: &Timeline) -> Lsn {
    let mut source = RelMeta::created(timeline.last_record_lsn() + 63);
    source.grow(BLOCKS);
    write(timeline, [meta(SOURCE, &source)].into_iter().chain(images(&pages(1))));
    let lsn = timeline.last_record_lsn() + 64;
    let copy = CopyOf { tablespace: 1663, database: 5, lsn };
    assert_eq!(write(timeline, [meta(COPY, &RelMeta::copied(copy, BLOCKS))]), lsn);
    timeline.flush().expect("flushed");
    write(timeline, images(&pages(2)));
    timeline.flush().expect("flushed");
    lsn
}

fn assert_shows(timeline: &Timeline, rel: RelTag, wanted: &[Box<[u8; PAGE_SIZE]>]) {
    for (block, page) in (0..).zip(wanted) {
        let found = timeline.get_page(Key::rel_block(rel, block), timeline.last_record_lsn());
        assert!(found.expect("a page") == *page, "block {block} of {rel}");
    }
}

fn copied_out(timeline: &Timeline) -> bool {
    let meta = timeline.rel_meta(COPY, timeline.last_record_lsn());
    meta.expect("readable").expect("the copy").copied_out
}

/// Sizes of the files in whole tables.
fn tables(timeline: &Timeline) -> f64 {
    timeline.info().layer_bytes as f64 / f64::from(BLOCKS) / PAGE_SIZE as f64
}

#[test]
fn a_copy_gets_pages_of_its_own_and_lets_go_of_its_source() {
    let fs = CrashFs::new();
    let opened = engine(&fs);
    let timeline = root(&opened);
    copied(&timeline);
    timeline.compact(true).expect("compacts");
    assert!(!copied_out(&timeline), "all of it can be read anyway");
    assert_shows(&timeline, COPY, &pages(1));

    // The cut-off passes the copy: nobody has to ask for a merge.
    timeline.gc_below(timeline.last_record_lsn()).expect("gc");
    assert!(copied_out(&timeline));
    assert_shows(&timeline, COPY, &pages(1));
    assert_shows(&timeline, SOURCE, &pages(2));
    timeline.compact(true).expect("compacts");
    assert!((1.9..2.2).contains(&tables(&timeline)), "{} tables", tables(&timeline));

    // Metadata that ingest wrote before it knew.
    let lsn = timeline.rel_meta(COPY, timeline.last_record_lsn()).expect("readable");
    let copy = lsn.expect("the copy").copy_of.expect("is one");
    let mut unaware = RelMeta::copied(copy, BLOCKS);
    unaware.grow(BLOCKS + 1);
    write(&timeline, [meta(COPY, &unaware)]);
    timeline.flush().expect("flushed");
    assert_shows(&timeline, COPY, &pages(1));
    timeline.gc_below(timeline.last_record_lsn()).expect("gc");
    timeline.compact(true).expect("compacts");
    assert!(copied_out(&timeline), "merges hand the mark on");
    assert!((1.9..2.2).contains(&tables(&timeline)), "{} tables", tables(&timeline));
    let grown = timeline.get_page(Key::rel_block(COPY, BLOCKS), timeline.last_record_lsn());
    assert!(grown.expect("zeros").iter().all(|byte| *byte == 0));

    drop((timeline, opened));
    let opened = engine(&fs);
    let timeline = opened.timeline(TenantId([1; 16]), TimelineId([2; 16])).expect("opened");
    assert_shows(&timeline, COPY, &pages(1));
}

#[test]
fn a_branch_sees_the_copy_as_it_was_at_its_fork() {
    let opened = engine(&CrashFs::new());
    let timeline = root(&opened);
    let lsn = copied(&timeline);
    let tenant = opened.tenant(TenantId([1; 16])).expect("the tenant");
    let branch = tenant.branch(TimelineId([3; 16]), timeline.id(), lsn).expect("a branch");
    let change = PageChange::Image(pages(3).remove(0).into());
    write(&timeline, [(Key::rel_block(COPY, 0), Value::whole(change.encode()))]);
    timeline.flush().expect("flushed");
    timeline.gc_below(timeline.last_record_lsn()).expect("gc");
    timeline.compact(true).expect("compacts");
    assert!(copied_out(&timeline));
    assert_shows(&branch, COPY, &pages(1));
    assert_shows(&branch, SOURCE, &pages(1));
    assert_shows(&timeline, COPY, &pages(3)[..1]);
    tenant.delete_timeline(branch.id()).expect("deleted");
    timeline.compact(true).expect("compacts");
    assert!((1.9..2.2).contains(&tables(&timeline)), "{} tables", tables(&timeline));
}

#[test]
fn a_copy_of_what_cannot_be_read_goes_on_pinning_it() {
    let opened = engine(&CrashFs::new());
    let timeline = root(&opened);
    copied(&timeline);
    // Made before the copy of a copy, which this page keeps from being written out.
    let unknown = Value::whole(vec![99]);
    write(&timeline, [(Key::rel_block(COPY, 5), unknown)]);
    let third = RelTag { database: 7, ..SOURCE };
    let lsn = timeline.last_record_lsn() + 64;
    let copy = CopyOf { tablespace: 1663, database: 6, lsn };
    write(&timeline, [meta(third, &RelMeta::copied(copy, BLOCKS))]);
    write(&timeline, images(&pages(3)));
    timeline.flush().expect("flushed");
    timeline.gc_below(timeline.last_record_lsn()).expect("gc");
    timeline.compact(true).expect("compacts");
    let last = timeline.last_record_lsn();
    let third_meta = timeline.rel_meta(third, last).expect("readable").expect("the copy");
    assert!(!third_meta.copied_out);
    assert_shows(&timeline, third, &pages(1)[..5]);
    assert!(timeline.get_page(Key::rel_block(third, 5), last).is_err());
}
