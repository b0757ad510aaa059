//! The bounds on what one read has to redo, with no page cache to hide behind.

use std::{path::Path, sync::Arc};

use treering_fs::CrashFs;
use treering_pgfmt::change::PageChange;
use treering_types::{SlruKind, TenantId};

use super::*;
use crate::{Engine, EngineOptions, NewTenant, Timeline, Value, WriteBatch};

const START: Lsn = Lsn(0x100_0000);

fn options() -> EngineOptions {
    EngineOptions {
        page_cache_bytes: 0,
        chain_max: 8,
        open_chain_max: 16,
        runs_hard_max: 1000,
        block_bytes: 200,
        background: false,
        ..EngineOptions::default()
    }
}

fn key() -> Key {
    Key::slru(SlruKind::MultiOffsets, 3)
}

fn root() -> (Arc<Engine>, Arc<Timeline>) {
    let fs = Arc::new(CrashFs::new());
    let engine = Engine::open(fs, Path::new("/engine"), options()).unwrap();
    let new = NewTenant { id: TenantId([1; 16]), pg_major: PgMajor::V15, system_id: 1 };
    let tenant = engine.create_tenant(new).unwrap();
    let root = tenant.create_root(TimelineId([1; 16]), START, 0).unwrap();
    root.finish_import(START).unwrap();
    (engine, root)
}

/// Sets word `n` to `n` by the `n`th change since the start.
fn change(timeline: &Timeline, n: u64) {
    let lsn = START + n;
    let change = PageChange::MultiOffsets(vec![(n as u32, n as u32)]);
    let mut batch = WriteBatch::new(lsn);
    batch.put(key(), lsn, Value::change(change.encode()));
    timeline.write(batch).unwrap();
}

fn check(timeline: &Timeline, n: u64, bound: usize) {
    let lsn = START + n;
    let view = timeline.view_unchecked(lsn).unwrap();
    let mut chain = Chain::default();
    fetch::collect(&view, key(), Lsn::INVALID, lsn, &mut chain).unwrap();
    assert!(chain.changes.len() <= bound, "{} changes for one page at {n}", chain.changes.len());
    let page = timeline.get_page(key(), lsn).unwrap();
    for word in 1..=(n as usize).min(2047) {
        assert_eq!(page[word * 4..word * 4 + 4], (word as u32).to_le_bytes(), "word {word} at {n}");
    }
}

#[test]
fn a_hot_page_in_the_open_layer() {
    let (_engine, root) = root();
    (1..=200).for_each(|n| change(&root, n));
    // The image itself counts as one.
    (1..=200).for_each(|n| check(&root, n, 17));
    root.flush().unwrap();
    (1..=200).for_each(|n| check(&root, n, 9));
}

#[test]
fn chains_across_many_layers_are_bounded() {
    let (_engine, root) = root();
    for n in 1..=120 {
        change(&root, n);
        if n % 3 == 0 {
            root.flush().unwrap();
        }
    }
    assert!(root.info().layers >= 40);
    root.flush().unwrap();
    (1..=120).for_each(|n| check(&root, n, 9));
}

#[test]
fn chains_through_many_ancestors_are_bounded() {
    let (engine, root) = root();
    let tenant = engine.tenant(TenantId([1; 16])).unwrap();
    let mut timeline = root;
    for n in 1..=100 {
        change(&timeline, n);
        timeline.flush().unwrap();
        if n % 2 == 0 {
            let id = TimelineId([n as u8 + 1; 16]);
            timeline = tenant.branch(id, timeline.id(), START + n).unwrap();
        }
    }
    assert_eq!(timeline.ancestry().len(), 50);
    (1..=100).for_each(|n| check(&timeline, n, 9));
}

#[test]
fn a_read_of_a_long_chain_leaves_its_page_for_the_next() {
    let fs = Arc::new(CrashFs::new());
    let options = EngineOptions { page_cache_bytes: 1 << 20, ..options() };
    let engine = Engine::open(fs, Path::new("/engine"), options).unwrap();
    let new = NewTenant { id: TenantId([1; 16]), pg_major: PgMajor::V15, system_id: 1 };
    let root = engine.create_tenant(new).unwrap();
    let root = root.create_root(TimelineId([1; 16]), START, 0).unwrap();
    root.finish_import(START).unwrap();
    (1..=6).for_each(|n| change(&root, n));
    check(&root, 6, 6);
    check(&root, 6, 0);
    change(&root, 7);
    check(&root, 7, 1);
    // An older LSN has a page of its own.
    check(&root, 4, 4);
    check(&root, 4, 0);
}
