//! Merges and gc among everything else: sick disks, readers, deletions, stops, leases, writers that are too fast.

mod support;

use std::{
    io,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use support::*;
use treering_engine::{Engine, EngineError, EngineOptions, TimeEntry, Timeline, Value, WriteBatch};
use treering_fs::{Call, CrashFs, FaultyFs, FileSystem};
use treering_types::{ErrorKind, Key, Lsn};

type World = support::World<FaultyFs<CrashFs>>;

/// Patience with a machine that is busy with other things.
const SOON: Duration = Duration::from_secs(20);

/// A root with a few runs, and a branch that pins its middle.
fn world() -> World {
    let mut world = World::begin(FaultyFs::new(CrashFs::new())).unwrap();
    for seed in 1..4 {
        grow(&mut world, seed);
    }
    world.branch(0, START + 88).unwrap();
    world
}

fn grow(world: &mut World, seed: u32) {
    let deltas = (0..12).map(|n| {
        vec![Act::Delta(rel(5, n % 3), n % 2, n, seed * 100 + n), Act::Put(n % 8, seed as u8)]
    });
    let records: Vec<Vec<Act>> = deltas.collect();
    world.write(0, &records).unwrap();
    world.timeline(0).flush().unwrap();
}

fn layer_files(world: &World) -> usize {
    let directory = Path::new("/engine").join(TENANT.to_string()).join(timeline_id(1).to_string());
    let names = world.fs.list(&directory).unwrap();
    names.iter().filter(|name| name.contains(".layer")).count()
}

/// Reads of layer files take their time from now on.
fn slow_down(fs: &FaultyFs<CrashFs>) {
    fs.set_rule(|call, path| {
        if call == Call::Read && path.to_string_lossy().ends_with(".layer") {
            std::thread::sleep(Duration::from_millis(5));
        }
        None
    });
}

/// Waits until a merge has begun to write.
fn wait_for_merge(fs: &FaultyFs<CrashFs>) -> Arc<AtomicBool> {
    let writing = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&writing);
    fs.set_rule(move |call, path| {
        let name = path.to_string_lossy();
        seen.fetch_or(call == Call::Open && name.ends_with(".layer.tmp"), Ordering::SeqCst);
        if call == Call::Read && name.ends_with(".layer") && seen.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(5));
        }
        None
    });
    writing
}

fn spin(until: impl Fn() -> bool) {
    let deadline = Instant::now() + SOON;
    while !until() {
        assert!(Instant::now() < deadline, "waited in vain");
        std::thread::yield_now();
    }
}

#[test]
fn a_full_disk_drops_the_merge_and_nothing_else() {
    let mut world = world();
    let root = world.timeline(0);
    let before = root.info();
    world.fs.fill_disk();
    assert_eq!(kind_of(root.compact(true)), Some(ErrorKind::Io));
    world.check_all(5);
    // Room for the layer, but not for the manifest.
    let mut written = 0;
    world.fs.set_rule(move |call, _| {
        let writes = matches!(call, Call::Write(_));
        written += u32::from(writes);
        (writes && written > 1).then(|| io::Error::from(io::ErrorKind::StorageFull))
    });
    assert_eq!(kind_of(root.compact(true)), Some(ErrorKind::Io));
    world.fs.clear();
    let after = root.info();
    assert_eq!((after.layers, after.runs, after.latched), (before.layers, before.runs, None));
    assert_eq!(layer_files(&world), before.layers, "nothing is left behind");
    root.compact(true).unwrap();
    assert_eq!(root.info().runs, 1);
    world.check_all(5);
    grow(&mut world, 9);
    world.check_all(5);
}

#[test]
fn files_that_cannot_be_removed_are_removed_later() {
    let mut world = world();
    world.fs.set_rule(|call, _| (call == Call::Remove).then(|| io::Error::other("stuck")));
    world.timeline(0).compact(true).unwrap();
    assert!(layer_files(&world) > world.timeline(0).info().layers);
    world.fs.clear();
    let fs = world.fs.clone();
    world.reopen(fs).unwrap();
    assert_eq!(layer_files(&world), world.timeline(0).info().layers);
    world.check_all(5);
}

#[test]
fn after_a_failed_sync_of_a_merge_nothing_is_written_until_reopened() {
    for stage in 0..20 {
        let mut world = world();
        let root = world.timeline(0);
        let mut syncs = 0;
        world.fs.set_rule(move |call, _| {
            let is_sync = matches!(call, Call::Sync | Call::SyncDir);
            syncs += u32::from(is_sync);
            (is_sync && syncs == stage + 1).then(|| io::Error::other("EIO"))
        });
        let Err(error) = root.gc_below(root.last_record_lsn()).and_then(|_| root.compact(true))
        else {
            assert!(stage >= 6, "a merge has at least six syncs");
            return;
        };
        assert_eq!(error.kind(), ErrorKind::Io);
        world.fs.clear();
        assert!(matches!(root.compact(true), Err(EngineError::Latched { .. })), "stage {stage}");
        let more = root.write(WriteBatch::new(root.last_record_lsn() + 8));
        assert!(matches!(more, Err(EngineError::Latched { .. })));
        world.check_all(3);
        drop(root);
        let fs = world.fs.clone();
        world.reopen(fs).unwrap();
        world.check_all(3);
        world.timeline(0).compact(true).unwrap();
        world.check_all(3);
    }
    panic!("the merge never ended");
}

#[test]
fn a_damaged_layer_is_named_and_keeps_no_writer_waiting() {
    let world = world();
    let root = world.timeline(0);
    let directory = Path::new("/engine").join(TENANT.to_string()).join(timeline_id(1).to_string());
    let names = world.fs.list(&directory).unwrap();
    let layer = names.iter().rfind(|name| name.ends_with(".layer")).unwrap();
    let file = world.fs.open(&directory.join(layer), treering_fs::OpenMode::ReadWrite).unwrap();
    file.write_all_at(&[0xEE; 8], 40).unwrap();
    let before = root.info();
    assert_eq!(kind_of(root.compact(true)), Some(ErrorKind::Corrupt));
    assert_eq!(layer_files(&world), before.layers);
    for seed in 0..10 {
        let _ = root.compact(true);
        let mut batch = WriteBatch::new(root.last_record_lsn() + 8);
        batch.put(Key::two_phase(5), batch.last_record_lsn, Value::whole(vec![seed]));
        root.write(batch).unwrap();
        root.flush().unwrap();
    }
}

/// A damaged or failing compaction is not hidden from writers for ever.
#[test]
fn writers_wait_for_compaction_and_learn_why_it_fails() {
    let world = world();
    world.fs.set_rule(|call, path| {
        // Written before: a flush reads what it has just written.
        let first = path.to_string_lossy().ends_with("0001.layer");
        (call == Call::Read && first).then(|| io::Error::other("EIO"))
    });
    let mut refused = None;
    for n in 0..60u8 {
        let root = world.timeline(0);
        let at = root.last_record_lsn() + 8;
        let mut batch = WriteBatch::new(at);
        batch.put(Key::two_phase(7), at, Value::whole(vec![n; 60_000]));
        refused = kind_of(root.write(batch));
        if refused.is_some() {
            break;
        }
        assert!(root.info().runs <= 8);
    }
    assert_eq!(refused, Some(ErrorKind::Io));
    world.fs.clear();
    let root = world.timeline(0);
    root.write(WriteBatch::new(root.last_record_lsn())).unwrap();
    root.flush().unwrap();
    assert!(root.info().runs <= 5, "{}", root.info().runs);
}

#[test]
fn a_branch_made_while_a_merge_runs_sees_all() {
    let mut world = world();
    let root = world.timeline(0);
    root.gc_below(START + 200).unwrap();
    let writing = wait_for_merge(&world.fs);
    std::thread::scope(|scope| {
        let merge = scope.spawn(|| root.compact(true));
        spin(|| writing.load(Ordering::SeqCst) || merge.is_finished());
        // At the cut-off, above it, below it, and while the log goes on.
        assert_eq!(kind_of(world.branch(0, START + 96)), Some(ErrorKind::Gone));
        world.branch(0, START + 200).unwrap();
        world.branch(0, START + 240).unwrap();
        grow(&mut world, 7);
        world.branch(0, world.timelines[0].last).unwrap();
        merge.join().unwrap().unwrap();
    });
    world.fs.clear();
    assert_eq!(root.info().runs, 2, "one was flushed while the others were merged");
    world.check_all(7);
    world.gc(0, world.timelines[0].last).unwrap();
    root.compact(true).unwrap();
    world.check_all(7);
}

#[test]
fn a_deletion_does_not_wait_for_the_merge_to_end() {
    let world = world();
    let root = world.timeline(0);
    world.tenant().delete_timeline(timeline_id(2)).unwrap();
    let writing = wait_for_merge(&world.fs);
    std::thread::scope(|scope| {
        let merge = scope.spawn(|| root.compact(true));
        spin(|| writing.load(Ordering::SeqCst) || merge.is_finished());
        world.tenant().delete_timeline(timeline_id(1)).unwrap();
        let outcome = merge.join().unwrap();
        assert!(matches!(outcome, Ok(_) | Err(EngineError::NoTimeline(_))), "{outcome:?}");
    });
    let directory = Path::new("/engine").join(TENANT.to_string());
    assert_eq!(world.fs.list(&directory).unwrap(), ["manifest"]);
    assert_eq!(kind_of(root.compact(true)), Some(ErrorKind::NotFound));
}

fn put(timeline: &Timeline, n: u64, bytes: usize) -> Result<(), EngineError> {
    let at = START + n * 8;
    let mut batch = WriteBatch::new(at);
    batch.put(Key::two_phase(n % 64), at, Value::whole(vec![n as u8; bytes]));
    let (key, value) = TimeEntry::put(n as i64, Lsn(at.0 - 8));
    batch.put(key, at, value);
    timeline.write(batch)
}

fn background(fs: impl FileSystem, options: EngineOptions) -> (Arc<Engine>, Arc<Timeline>) {
    let engine = Engine::open(Arc::new(fs), Path::new("/engine"), options).unwrap();
    let tenant = engine.create_tenant(new_tenant()).unwrap();
    let root = tenant.create_root(timeline_id(1), START, 0).unwrap();
    root.finish_import(START).unwrap();
    (engine, root)
}

#[test]
fn the_background_thread_compacts_and_collects() {
    let options = EngineOptions {
        background: true,
        open_layer_bytes_max: 40 << 10,
        pitr_window: Duration::from_secs(1),
        gc_interval: Duration::ZERO,
        ..tiny_options()
    };
    let hard_max = options.runs_hard_max;
    let (engine, root) = background(CrashFs::new(), options);
    for n in 1..=1500 {
        put(&root, n, 2000).unwrap();
        // The flush thread may add what was frozen before the writer had to wait.
        assert!(root.info().runs <= hard_max + 2, "{}", root.info().runs);
    }
    root.flush().unwrap();
    // Stamps are of the year 2000: all of it lies before the window.
    let last = root.last_record_lsn();
    spin(|| root.cut_off() == last);
    spin(|| root.info().compaction_due_bytes == 0);
    let info = root.info();
    assert!(info.runs <= 4 && info.traffic.merge_written_bytes > 0, "{info:?}");
    let found = root.scan(Key::MIN..Key::MAX, last, treering_engine::Direction::Forward, 999);
    let values = found.unwrap().into_iter().filter(|(key, _, _)| key.full_xid().is_some());
    assert_eq!(values.count(), 64);
    drop((root, engine));
}

#[test]
fn a_stop_does_not_wait_for_the_merge_to_end() {
    let fs = FaultyFs::new(CrashFs::new());
    let options = EngineOptions {
        background: true,
        open_layer_bytes_max: 40 << 10,
        runs_hard_max: 1000,
        fan_in: 20,
        runs_max: 1000,
        ..tiny_options()
    };
    let (engine, root) = background(fs.clone(), options);
    slow_down(&fs);
    for n in 1..=2000 {
        put(&root, n, 2000).unwrap();
    }
    spin(|| root.info().compaction_due_bytes > 0 || root.info().traffic.merge_written_bytes > 0);
    let began = Instant::now();
    drop((root, engine));
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
}

#[test]
fn readers_are_consistent_while_layers_are_merged_and_collected() {
    let mut world = support::World::begin(CrashFs::new()).unwrap();
    let timeline = world.timeline(0);
    let (seen, merges, done) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let lsn = timeline.last_record_lsn();
                std::thread::yield_now();
                let page = match timeline.get_page(Key::rel_block(rel(5, 0), 0), lsn) {
                    Ok(page) => page,
                    Err(EngineError::BelowCutOff { .. }) => continue,
                    Err(error) => panic!("{error}"),
                };
                let n = u32::from_le_bytes(page[..4].try_into().unwrap());
                assert!(lsn == START || u64::from(n) == (lsn.0 - START.0) / 8, "{n} at {lsn}");
                seen.fetch_add(1, Ordering::Relaxed);
            }
        });
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let collected = timeline.gc_below(timeline.disk_consistent_lsn()).unwrap();
                let forced = timeline.compact(true).unwrap();
                let count = (collected.merges + forced.merges) as u64;
                merges.fetch_add(count, Ordering::Relaxed);
            }
        });
        let deadline = Instant::now() + SOON;
        let mut n = 0;
        let least = || seen.load(Ordering::Relaxed).min(merges.load(Ordering::Relaxed) * 10);
        while (n < 400 || least() < 100) && Instant::now() < deadline {
            n += 1;
            world.write(0, &[vec![Act::Delta(rel(5, 0), 0, 0, n)]]).unwrap();
            if n % 20 == 0 {
                world.timeline(0).flush().unwrap();
            }
        }
        done.store(true, Ordering::Relaxed);
        assert!(least() >= 100, "readers or merges never had their turns");
    });
}

#[test]
fn the_cut_off_and_leases_survive_a_restart() {
    let mut world = world();
    let last = world.timelines[0].last;
    let root = world.timeline(0);
    root.set_leases([START + 40, START + 48]).unwrap();
    root.gc_below(START + 160).unwrap();
    root.compact(true).unwrap();
    let refused = root.get_value(Key::two_phase(1), START + 56).unwrap_err();
    assert!(
        refused.to_string().ends_with(&format!("history begins at {}", START + 160)),
        "{refused}"
    );
    assert_eq!(refused.kind(), ErrorKind::Gone);
    for leases in [vec![START + 40, START + 56], vec![Lsn(START.0 - 8)]] {
        root.set_leases(leases).unwrap_err();
    }
    root.set_leases([START + 40]).unwrap();
    root.flush().unwrap();
    grow(&mut world, 8);
    drop(root);
    let fs = world.fs.clone();
    world.reopen(fs).unwrap();
    let root = world.timeline(0);
    assert_eq!((root.cut_off(), root.earliest_lsn()), (START + 160, START + 160));
    assert_eq!(root.retained().lsns(), [START + 40, START + 88]);
    world.check_all(20);
    // Its holder asks again in time: it stays. Otherwise it goes with the first gc.
    root.set_leases([START + 40]).unwrap();
    root.gc_below(last).unwrap();
    assert!(root.retained().allows(START + 40));
    world.check(0, START + 40);
    root.set_leases([]).unwrap();
    assert_eq!(kind_of(root.set_leases([START + 40])), Some(ErrorKind::Gone));
    world.check_all(20);
}

#[test]
fn no_gc_before_leases_could_be_renewed() {
    let fs = CrashFs::new();
    let options = EngineOptions { gc_delay: SOON * 100, ..tiny_options() };
    let (_engine, root) = background(fs, options);
    for n in 1..=50 {
        put(&root, n, 2000).unwrap();
    }
    root.flush().unwrap();
    root.gc(i64::MAX).unwrap();
    root.gc_below(root.last_record_lsn()).unwrap();
    assert_eq!(root.cut_off(), START);
}

#[test]
fn the_window_is_time_and_bytes() {
    for (window, bytes, first) in
        [(0, 0, 50), (20, 0, 30), (0, 160, 30), (20, 240, 20), (400, 0, 0)]
    {
        let options = EngineOptions {
            pitr_window: Duration::from_micros(window),
            pitr_bytes: bytes,
            ..tiny_options()
        };
        let (_engine, root) = background(CrashFs::new(), options);
        (1..=50).for_each(|n| put(&root, n, 10).unwrap());
        root.gc(50).unwrap();
        assert_eq!(root.cut_off(), START, "nothing is durable yet");
        root.flush().unwrap();
        root.gc(50).unwrap();
        assert_eq!(root.cut_off(), START + first * 8, "window {window}, bytes {bytes}");
        // It does not go back.
        root.gc(10).unwrap();
        assert_eq!(root.cut_off(), START + first * 8);
        if first > 1 {
            let error = root.get_value(Key::two_phase(1), START + 8).unwrap_err();
            let told = match error {
                EngineError::BelowCutOff { earliest, earliest_time, .. } => {
                    (earliest, earliest_time)
                }
                other => panic!("{other}"),
            };
            assert_eq!(told, (START + first * 8, Some(first as i64)));
        }
    }
}
