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

#[test]
fn a_few_changes_a_flush_are_bounded_too() {
    let fs = Arc::new(CrashFs::new());
    let options = EngineOptions { chain_max: 64, ..options() };
    let engine = Engine::open(fs, Path::new("/engine"), options).unwrap();
    let new = NewTenant { id: TenantId([1; 16]), pg_major: PgMajor::V15, system_id: 1 };
    let root = engine.create_tenant(new).unwrap();
    let root = root.create_root(TimelineId([1; 16]), START, 0).unwrap();
    root.finish_import(START).unwrap();
    for n in 1..=300 {
        change(&root, n);
        root.flush().unwrap();
        check(&root, n, 65);
    }
}

#[test]
fn reads_are_counted_by_the_layers_they_look_into() {
    let (engine, root) = root();
    for n in 1..=3 {
        change(&root, n);
        root.flush().unwrap();
    }
    change(&root, 4);
    let before = engine.reads_by_layers();
    root.get_page(key(), START + 4).unwrap();
    root.get_page(key(), START + 1).unwrap();
    let after = engine.reads_by_layers();
    let counted: Vec<u64> = after.iter().zip(before).map(|(a, b)| a - b).collect();
    assert_eq!(counted[..6], [0, 1, 0, 0, 1, 0]);
}

fn page(number: u32) -> Key {
    Key::slru(SlruKind::MultiOffsets, number)
}

/// Makes the page, with `word` in it, as the next record of the timeline.
fn put(timeline: &Timeline, number: u32, word: u32) {
    let lsn = timeline.last_record_lsn() + 8;
    let mut image = Box::new([0; 8192]);
    image[..4].copy_from_slice(&word.to_le_bytes());
    let mut batch = WriteBatch::new(lsn);
    batch.put(page(number), lsn, Value::whole(PageChange::Image(image.into()).encode()));
    timeline.write(batch).unwrap();
}

fn word(timeline: &Timeline, number: u32) -> Option<u32> {
    let page = timeline.get_page(page(number), timeline.last_record_lsn()).ok()?;
    Some(u32::from_le_bytes(page[..4].try_into().unwrap()))
}

/// `depth` branches below `from`, each with a page of its own; every third is flushed.
fn line(engine: &Engine, from: &Arc<Timeline>, depth: u32) -> Vec<Arc<Timeline>> {
    let tenant = engine.tenant(TenantId([1; 16])).unwrap();
    let mut line = vec![Arc::clone(from)];
    for n in 1..=depth {
        let mut id = [9; 16];
        id[..4].copy_from_slice(&n.to_le_bytes());
        let parent = &line[line.len() - 1];
        let branch = tenant.branch(TimelineId(id), parent.id(), parent.last_record_lsn()).unwrap();
        put(&branch, n, n);
        if n % 3 == 0 {
            branch.flush().unwrap();
        }
        line.push(branch);
    }
    line
}

/// Timelines that a read of the page asks.
fn asked(timeline: &Timeline, number: u32) -> usize {
    let view = timeline.view_unchecked(timeline.last_record_lsn()).unwrap();
    view.levels_of(&page(number)).count()
}

#[test]
fn a_deep_branch_asks_only_who_may_know() {
    let (engine, root) = root();
    put(&root, 1000, 7);
    let line = line(&engine, &root, 200);
    let leaf = &line[200];
    for n in 1..=200 {
        assert_eq!(word(leaf, n), Some(n));
    }
    assert_eq!((word(leaf, 1000), word(leaf, 999)), (Some(7), None));
    assert_eq!([asked(leaf, 1000), asked(leaf, 70), asked(leaf, 999)], [2, 2, 1]);
    assert_eq!((word(&line[150], 151), word(&line[150], 150)), (None, Some(150)));
    // Whatever form the ancestors take, their branches see the same.
    line.iter().for_each(|timeline| timeline.flush().unwrap());
    put(&line[100], 50, 12345);
    line.iter().for_each(|timeline| assert!(timeline.compact(true).is_ok()));
    for n in 1..=200 {
        assert_eq!(word(leaf, n), Some(n));
    }
    assert_eq!([asked(leaf, 1000), asked(leaf, 70), asked(leaf, 999)], [2, 2, 1]);
}

/// Branches of one timeline share what is known of the 64 that end with it, wherever they fork.
#[test]
fn what_a_timeline_writes_later_is_known_to_later_branches() {
    let (engine, root) = root();
    let line = line(&engine, &root, 63);
    let parent = &line[63];
    let tenant = engine.tenant(TenantId([1; 16])).unwrap();
    let fork = |id| tenant.branch(TimelineId([id; 16]), parent.id(), parent.last_record_lsn());
    let early = fork(100).unwrap();
    assert_eq!((word(&early, 63), word(&early, 500)), (Some(63), None));
    put(parent, 500, 5);
    let late = fork(101).unwrap();
    assert_eq!((word(&late, 63), word(&late, 500)), (Some(63), Some(5)));
    assert_eq!((word(&early, 63), word(&early, 500)), (Some(63), None));
}

#[test]
fn branches_hold_on_to_no_layers_of_the_past() {
    let (engine, root) = root();
    put(&root, 1000, 7);
    let line = line(&engine, &root, 70);
    assert_eq!(word(&line[70], 1000), Some(7));
    let held: Vec<_> =
        line[..70].iter().map(|timeline| Arc::downgrade(&timeline.layers())).collect();
    for timeline in &line[..70] {
        put(timeline, 2000, 1);
        timeline.flush().unwrap();
    }
    assert!(held.iter().all(|layers| layers.upgrade().is_none()));
}
