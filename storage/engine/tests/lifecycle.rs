//! Tenants, timelines and writers: what is refused, what is idempotent, what a sick disk does.

mod support;

use std::{
    io,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use support::*;
use treering_engine::{Engine, EngineError, EngineOptions, NewTenant, Value, WriteBatch};
use treering_fs::{Call, CrashFs, FaultyFs, FileSystem};
use treering_types::{ErrorKind, Key, Lsn, TenantId};

fn world() -> World<CrashFs> {
    World::begin(CrashFs::new()).unwrap()
}

fn some_records(count: u32) -> Vec<Vec<Act>> {
    (0..count).map(|n| vec![Act::Delta(rel(5, 0), 0, n, n), Act::Put(1, n as u8)]).collect()
}

#[test]
fn creating_again_is_the_same_or_a_conflict() {
    let mut world = world();
    world.engine().create_tenant(new_tenant()).unwrap();
    let other = NewTenant { system_id: 43, ..new_tenant() };
    assert_eq!(kind_of(world.engine().create_tenant(other)), Some(ErrorKind::Conflict));

    let tenant = world.tenant();
    let again = tenant.create_root(timeline_id(9), START, 0);
    assert!(matches!(again, Err(EngineError::RootExists { root, .. }) if root == timeline_id(1)));

    world.write(0, &some_records(4)).unwrap();
    let at = world.timelines[0].last;
    let made = tenant.branch(timeline_id(2), timeline_id(1), at).unwrap();
    let same = tenant.branch(timeline_id(2), timeline_id(1), at).unwrap();
    assert!(Arc::ptr_eq(&made, &same));
    for other in [
        tenant.branch(timeline_id(2), timeline_id(1), START),
        tenant.branch(timeline_id(1), timeline_id(1), START),
    ] {
        assert_eq!(kind_of(other), Some(ErrorKind::Conflict));
    }
    assert_eq!(
        kind_of(tenant.branch(timeline_id(3), timeline_id(8), at)),
        Some(ErrorKind::NotFound)
    );
    let ahead = tenant.branch(timeline_id(3), timeline_id(1), at + 8);
    assert_eq!(kind_of(ahead), Some(ErrorKind::NotYet));
    let before = tenant.branch(timeline_id(3), timeline_id(1), Lsn(START.0 - 8));
    assert_eq!(kind_of(before), Some(ErrorKind::Gone));
}

#[test]
fn numbers_and_ancestry() {
    let mut world = world();
    world.write(0, &some_records(4)).unwrap();
    let first = world.branch(0, START + 16).unwrap();
    world.write(first, &some_records(4)).unwrap();
    let second = world.branch(first, START + 32).unwrap();
    assert_eq!(world.timeline(0).info().pg_tli, 1);
    assert_eq!(world.timeline(second).ancestry(), [(1, START + 16), (2, START + 32)]);
    let retained = world.timeline(0).retained();
    assert_eq!(retained.lsns(), [START + 16]);
    assert_eq!(
        world.timeline(first).retained().branches().collect::<Vec<_>>(),
        [(timeline_id(3), START + 32)]
    );

    let children = world.tenant().delete_timeline(timeline_id(2));
    assert!(
        matches!(children, Err(EngineError::HasChildren { children, .. }) if children == [timeline_id(3)])
    );
    world.tenant().delete_timeline(timeline_id(3)).unwrap();
    assert!(world.timeline(first).retained().lsns().is_empty());
    // Also a number that nobody uses any more is never given again.
    let third = world.tenant().branch(timeline_id(3), timeline_id(1), START).unwrap();
    assert_eq!(third.info().pg_tli, 4);
}

#[test]
fn an_lsn_below_a_branch_belongs_to_its_ancestor() {
    let mut world = world();
    world.write(0, &some_records(9)).unwrap();
    let child = world.branch(0, START + 64).unwrap();
    let made = world.branch(child, START + 24).unwrap();
    assert_eq!(world.timeline(made).info().ancestor, Some((timeline_id(1), START + 24)));
    world.check(made, START + 24);
    world.check(child, START + 24);
}

#[test]
fn an_import_is_invisible_until_it_is_finished() {
    let fs = CrashFs::new();
    let engine = open(&fs).unwrap();
    let tenant = engine.create_tenant(new_tenant()).unwrap();
    let root = tenant.create_root(timeline_id(1), START, 5).unwrap();
    let mut batch = WriteBatch::new(START);
    batch.put(Key::two_phase(1), START, Value::whole(&b"x"[..]));
    root.write(batch).unwrap();
    root.flush().unwrap();
    assert!(tenant.timelines().is_empty());
    assert_eq!(kind_of(root.get_value(Key::two_phase(1), START)), Some(ErrorKind::Conflict));
    // Killed: nothing of it is left.
    drop((root, tenant, engine));
    let engine = open(&fs).unwrap();
    let tenant = engine.tenant(TENANT).unwrap();
    assert!(tenant.timelines().is_empty());
    let directory = Path::new("/engine").join(TENANT.to_string());
    assert_eq!(fs.list(&directory).unwrap(), ["manifest"]);
    // Abandoned: another may begin.
    tenant.create_root(timeline_id(1), START, 5).unwrap();
    tenant.delete_timeline(timeline_id(1)).unwrap();
    let root = tenant.create_root(timeline_id(1), START, 5).unwrap();
    root.finish_import(START + 8).unwrap();
    assert_eq!(kind_of(root.finish_import(START + 8)), Some(ErrorKind::Conflict));
    let info = root.info();
    assert_eq!(
        (info.start_lsn, info.last_record_lsn, info.disk_consistent_lsn),
        (START, START + 8, START + 8)
    );
    assert_eq!(info.created_at, 5);
}

#[test]
fn batches_out_of_order_are_refused_whole() {
    let mut world = world();
    world.write(0, &some_records(2)).unwrap();
    let timeline = world.timeline(0);
    let last = timeline.last_record_lsn();
    let put = |values: &[(u64, Lsn)], end| {
        let mut batch = WriteBatch::new(end);
        for (key, lsn) in values {
            batch.put(Key::two_phase(*key), *lsn, Value::whole(&b"x"[..]));
        }
        kind_of(timeline.write(batch))
    };
    let invalid = Some(ErrorKind::Invalid);
    assert_eq!(put(&[(1, last)], last + 8), invalid);
    assert_eq!(put(&[(1, last + 16)], last + 8), invalid);
    assert_eq!(put(&[(1, last + 16), (2, last + 8)], last + 16), invalid);
    assert_eq!(put(&[], Lsn(last.0 - 1)), invalid);
    world.check(0, last);
    assert_eq!(put(&[(7, last + 8)], last + 8), None);
}

#[test]
fn a_deleted_timeline_is_gone_with_its_files_and_its_id_is_free() {
    let mut world = world();
    let child = world.branch(0, START).unwrap();
    world.write(child, &some_records(5)).unwrap();
    let held = world.timeline(child);
    held.flush().unwrap();
    let directory = Path::new("/engine").join(TENANT.to_string()).join(timeline_id(2).to_string());
    assert!(world.fs.exists(&directory).unwrap());
    world.tenant().delete_timeline(timeline_id(2)).unwrap();
    assert!(!world.fs.exists(&directory).unwrap());
    assert_eq!(kind_of(held.get_value(Key::two_phase(1), START)), Some(ErrorKind::NotFound));
    assert_eq!(
        kind_of(held.write(WriteBatch::new(held.last_record_lsn()))),
        Some(ErrorKind::NotFound)
    );
    assert_eq!(kind_of(held.flush()), None);
    assert!(!world.fs.exists(&directory).unwrap());
    let again = world.tenant().branch(timeline_id(2), timeline_id(1), START).unwrap();
    assert_eq!(again.last_record_lsn(), START);
    assert_eq!(again.get_value(Key::two_phase(1), START).unwrap(), None);
}

#[test]
fn what_a_deletion_left_behind_never_comes_back() {
    let faulty = FaultyFs::new(CrashFs::new());
    let mut world = World::begin(faulty.clone()).unwrap();
    let child = world.branch(0, START).unwrap();
    world.write(child, &some_records(5)).unwrap();
    world.timeline(child).flush().unwrap();
    faulty.set_rule(|call, _| (call == Call::Remove).then(|| io::Error::other("stuck")));
    world.tenant().delete_timeline(timeline_id(2)).unwrap();
    let stuck = world.tenant().branch(timeline_id(2), timeline_id(1), START);
    assert_eq!(kind_of(stuck), Some(ErrorKind::Io));
    faulty.clear();
    world.tenant().branch(timeline_id(2), timeline_id(1), START).unwrap();
    world.reopen(faulty).unwrap();
    assert_eq!(world.timeline(child).last_record_lsn(), START);
}

#[test]
fn a_deleted_tenant_is_gone() {
    let mut world = world();
    let held = world.timeline(0);
    world.engine().delete_tenant(TENANT).unwrap();
    assert_eq!(kind_of(world.engine().tenant(TENANT)), Some(ErrorKind::NotFound));
    assert_eq!(kind_of(held.get_value(Key::two_phase(1), START)), Some(ErrorKind::NotFound));
    assert_eq!(kind_of(world.engine().delete_tenant(TenantId([8; 16]))), Some(ErrorKind::NotFound));
    assert!(world.fs.list(Path::new("/engine")).unwrap().is_empty());
    world.timelines.clear();
    let fs = world.fs.clone();
    world.reopen(fs).unwrap();
    assert!(world.engine().tenants().is_empty());
    world.engine().create_tenant(new_tenant()).unwrap();
    world.import_root().unwrap();
    world.check_all(0);
}

#[test]
fn a_lost_manifest_is_not_an_empty_timeline() {
    let mut world = world();
    let child = world.branch(0, START).unwrap();
    world.write(child, &some_records(5)).unwrap();
    world.timeline(child).flush().unwrap();
    let tenant = Path::new("/engine").join(TENANT.to_string());
    world.fs.remove_file(&tenant.join(timeline_id(2).to_string()).join("manifest")).unwrap();
    let fs = world.fs.clone();
    assert_eq!(kind_of(world.reopen(fs)), Some(ErrorKind::Corrupt));
    world.fs.remove_file(&tenant.join("manifest")).unwrap();
    let fs = world.fs.clone();
    assert_eq!(kind_of(world.reopen(fs)), Some(ErrorKind::Corrupt));
}

#[test]
fn a_full_disk_stops_the_flush_until_there_is_room() {
    let faulty = FaultyFs::new(CrashFs::new());
    let mut world = World::begin(faulty.clone()).unwrap();
    world.write(0, &some_records(5)).unwrap();
    let timeline = world.timeline(0);
    let before = timeline.disk_consistent_lsn();
    faulty.set_rule(|call, path| {
        let full = matches!(call, Call::Write(_)) && path.to_string_lossy().contains(".layer");
        full.then(|| io::Error::from(io::ErrorKind::StorageFull))
    });
    assert_eq!(kind_of(timeline.flush()), Some(ErrorKind::Io));
    assert_eq!(timeline.disk_consistent_lsn(), before);
    world.check_all(4);
    assert_eq!(timeline.info().latched, None);
    // One frozen layer may wait; with it there, writers are told why they cannot go on.
    let refused = (0..3).map(|_| world.write(0, &some_records(3))).find(|result| result.is_err());
    assert_eq!(refused.and_then(kind_of), Some(ErrorKind::Io));
    faulty.clear();
    world.timelines[0].acts.clear();
    timeline.flush().unwrap();
    assert_eq!(timeline.disk_consistent_lsn(), timeline.last_record_lsn());
}

#[test]
fn after_a_failed_sync_nothing_is_written_until_reopened() {
    for stage in 0..8 {
        let faulty = FaultyFs::new(CrashFs::new());
        let mut world = World::begin(faulty.clone()).unwrap();
        world.write(0, &some_records(5)).unwrap();
        let timeline = world.timeline(0);
        let safe = timeline.disk_consistent_lsn();
        let mut syncs = 0;
        faulty.set_rule(move |call, _| {
            syncs += u32::from(matches!(call, Call::Sync | Call::SyncDir));
            (syncs == stage + 1 && matches!(call, Call::Sync | Call::SyncDir))
                .then(|| io::Error::other("EIO"))
        });
        let Err(error) = timeline.flush() else {
            assert!(stage >= 4, "a flush has at least four syncs");
            return;
        };
        assert_eq!(error.kind(), ErrorKind::Io);
        faulty.clear();
        assert!(matches!(timeline.flush(), Err(EngineError::Latched { .. })), "stage {stage}");
        let more = timeline.write(WriteBatch::new(timeline.last_record_lsn() + 8));
        assert!(matches!(more, Err(EngineError::Latched { .. })));
        assert!(timeline.info().latched.is_some());
        // Reads go on.
        world.check_all(2);
        drop(timeline);
        world.reopen(faulty).unwrap();
        assert!(world.timeline(0).disk_consistent_lsn() >= safe);
        world.send_again(0).unwrap();
        world.timeline(0).flush().unwrap();
        world.check_all(2);
    }
    panic!("the flush never ended");
}

#[test]
fn a_branch_whose_manifest_fails_to_sync_is_not_there() {
    let faulty = FaultyFs::new(CrashFs::new());
    let mut world = World::begin(faulty.clone()).unwrap();
    faulty.set_rule(|call, _| (call == Call::Sync).then(|| io::Error::other("EIO")));
    assert_eq!(kind_of(world.branch(0, START)), Some(ErrorKind::Io));
    faulty.clear();
    assert!(world.timeline(0).retained().lsns().is_empty());
    assert!(matches!(world.branch(0, START), Err(EngineError::Latched { .. })));
    world.reopen(faulty).unwrap();
    world.branch(0, START).unwrap();
}

#[test]
fn the_background_thread_flushes_and_holds_writers_back() {
    let fs: Arc<dyn FileSystem> = Arc::new(CrashFs::new());
    let options = EngineOptions {
        background: true,
        open_layer_bytes_max: 20 << 10,
        open_layer_age_max: Duration::ZERO,
        // Its layers are counted.
        fan_in: 1000,
        runs_max: 1000,
        runs_hard_max: 1000,
        ..tiny_options()
    };
    let engine = Engine::open(fs, Path::new("/engine"), options).unwrap();
    let tenant = engine.create_tenant(new_tenant()).unwrap();
    let root = tenant.create_root(timeline_id(1), START, 0).unwrap();
    root.finish_import(START).unwrap();
    for n in 1..=200u64 {
        let lsn = START + n;
        let mut batch = WriteBatch::new(lsn);
        batch.put(Key::two_phase(n), lsn, Value::whole(vec![n as u8; 4096]));
        root.write(batch).unwrap();
        assert!(root.info().frozen_layers <= 2);
    }
    let deadline = Instant::now() + Duration::from_secs(20);
    while root.disk_consistent_lsn() < root.last_record_lsn() {
        assert!(Instant::now() < deadline, "the open layer grows old unflushed");
        std::thread::yield_now();
    }
    assert!(root.info().layers > 5);
    let last = root.last_record_lsn();
    let found = root.scan(Key::MIN..Key::MAX, last, treering_engine::Direction::Forward, 999);
    assert_eq!(found.unwrap().len(), 200);
    drop((root, tenant, engine));
}

/// The flush thread once looked at visible timelines only: an import larger than the frozen layers' bound waited forever.
#[test]
fn an_import_of_any_size_is_flushed_behind() {
    let fs: Arc<dyn FileSystem> = Arc::new(CrashFs::new());
    let options =
        EngineOptions { background: true, fan_in: 1000, runs_max: 1000, ..tiny_options() };
    let engine = Engine::open(fs, Path::new("/engine"), options).unwrap();
    let tenant = engine.create_tenant(new_tenant()).unwrap();
    let root = tenant.create_root(timeline_id(1), START, 0).unwrap();
    for n in 0..100u64 {
        let mut batch = WriteBatch::new(START);
        batch.put(Key::two_phase(n), START, Value::whole(vec![n as u8; 4096]));
        root.write(batch).unwrap();
    }
    root.finish_import(START).unwrap();
    let found = root.scan(Key::MIN..Key::MAX, START, treering_engine::Direction::Forward, 999);
    assert_eq!(found.unwrap().len(), 100);
    assert!(root.info().layers > 3);
}

#[test]
fn readers_are_consistent_while_a_writer_writes_and_flushes() {
    let mut world = world();
    let timeline = world.timeline(0);
    let (seen, done) = (AtomicU32::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let lsn = timeline.last_record_lsn();
                let page = timeline.get_page(Key::rel_block(rel(5, 0), 0), lsn).unwrap();
                let n = u32::from_le_bytes(page[..4].try_into().unwrap());
                assert!(lsn == START || u64::from(n) == (lsn.0 - START.0) / 8, "{n} at {lsn}");
                seen.fetch_add(1, Ordering::Relaxed);
            }
        });
        let deadline = Instant::now() + Duration::from_secs(20);
        // Until both have had their turns, whatever the machine is busy with.
        let mut n = 0;
        while (n < 400 || seen.load(Ordering::Relaxed) < 100) && Instant::now() < deadline {
            n += 1;
            world.write(0, &[vec![Act::Delta(rel(5, 0), 0, 0, n)]]).unwrap();
            if n % 40 == 0 {
                world.timeline(0).flush().unwrap();
            }
        }
        done.store(true, Ordering::Relaxed);
    });
    assert!(seen.into_inner() >= 100);
}

#[test]
fn waiting_for_an_lsn() {
    let mut world = world();
    let timeline = world.timeline(0);
    let soon = Instant::now() + Duration::from_millis(1);
    assert!(!timeline.wait_for_lsn(START + 8, soon).unwrap());
    let deadline = Instant::now() + Duration::from_secs(20);
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| world.timeline(0).wait_for_lsn(START + 8, deadline));
        timeline.write(WriteBatch::new(START + 8)).unwrap();
        assert!(waiter.join().unwrap().unwrap());
    });
    world.timelines[0].last = START + 8;
    world.write(0, &some_records(1)).unwrap();
}
