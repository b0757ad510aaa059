//! A crash at every call, of the disk and of the store, with several states that both may be in afterwards; then the local disk is there, or
//! it is lost too.

use std::sync::Arc;

use treering_fs::CrashFs;
use treering_remote::{Store, sim::SimStore};
use treering_types::Lsn;

use super::{
    node::{Node, Outcome, directory, lose_local_disk},
    support::{START, new_tenant},
};

/// One fixed life of a tenant. Stops at the first error.
fn live(node: &mut Node, store: impl Fn() -> Outcome<Arc<dyn Store>>) -> Outcome {
    node.remote.create_tenant(new_tenant())?;
    node.turn()?;
    node.world.import_root()?;
    node.turn()?;
    node.write(0, 1)?;
    node.flush(0)?;
    node.turn()?;
    node.write(0, 2)?;
    // Above what the root has flushed.
    let child = node.branch(0, node.world.timelines[0].last)?;
    node.turn()?;
    node.write(child, 3)?;
    node.flush(child)?;
    node.flush(0)?;
    node.turn()?;

    node.world.engine().shrink_layers(0)?;
    node.read(0)?;
    let doomed = node.branch(child, Lsn(START.0 + 16))?;
    node.write(doomed, 4)?;
    node.flush(doomed)?;
    node.turn()?;
    node.delete(doomed)?;
    node.turn()?;

    // Merges of layers that are evicted, and gc under a branch.
    node.write(0, 5)?;
    node.flush(0)?;
    node.world.engine().shrink_layers(0)?;
    node.world.timeline(0).compact(true)?;
    let pinned = node.branch(0, Lsn(node.world.timelines[0].last.0 - 40))?;
    node.turn()?;
    node.world.gc(0, node.world.timelines[0].last)?;
    node.world.timeline(0).compact(true)?;
    node.turn()?;
    node.delete(pinned)?;
    node.write(0, 6)?;
    node.flush(0)?;
    node.world.gc(0, node.world.timelines[0].last)?;
    node.world.timeline(0).compact(true)?;
    node.turn()?;

    node.archive(child)?;
    node.restart(store()?)?;
    node.turn()?;
    node.unarchive(child)?;
    node.write(child, 7)?;
    node.flush(child)?;
    node.world.engine().shrink_layers(0)?;
    node.turn()?;
    node.read(child)
}

/// After a crash: the node starts again, on its disk or on an empty one.
fn recover(
    node: Node,
    fs: &CrashFs,
    store: Arc<dyn Store>,
    elsewhere: impl Fn() -> (CrashFs, Arc<dyn Store>),
    disk_lost: bool,
    what: &str,
) {
    if disk_lost {
        lose_local_disk(fs);
    }
    let Node { world, told, .. } = node;
    let next = Node::take_over(fs, store, world.timelines, told);
    let mut next = next.unwrap_or_else(|error| panic!("{what}: {error}"));
    next.check(elsewhere, what);
}

/// Store and engine on one disk. Returns true when the life came to its end before the crash.
fn crash_on_disk(n: u64, seed: u64, disk_lost: bool) -> bool {
    let fs = CrashFs::new();
    fs.crash_at(n);
    let Ok(mut node) = Node::begin(
        &fs,
        match directory(&fs) {
            Ok(store) => store,
            Err(_) => return false,
        },
    ) else {
        return false;
    };
    let ended = live(&mut node, || directory(&fs));
    assert!(ended.is_ok() || fs.has_crashed(), "an error without a crash: {:?}", ended.err());
    node.world.engine = None;
    let after = fs.crash(seed);
    let store = directory(&after).expect("the store opens");
    // The same store on a disk that has nothing else.
    let elsewhere = || {
        let other = after.crash(0);
        lose_local_disk(&other);
        let store = directory(&other).expect("the store opens");
        (other, store)
    };
    let what = format!("call {n}, seed {seed}, lost {disk_lost}");
    recover(node, &after, store, elsewhere, disk_lost, &what);
    ended.is_ok()
}

/// A store elsewhere, which goes on; the pageserver loses power in its `n`th change.
fn crash_in_store(n: u64, happens: bool, disk_lost: bool) -> bool {
    let (fs, store) = (CrashFs::new(), SimStore::new());
    let disk = fs.clone();
    store.crash_at(n, happens, move || disk.crash_at(disk.calls()));
    let shared = || Ok(Arc::new(store.clone()) as Arc<dyn Store>);
    let Ok(mut node) = shared().and_then(|store| Node::begin(&fs, store)) else { return false };
    let ended = live(&mut node, shared);
    assert!(ended.is_ok() || fs.has_crashed(), "an error without a crash: {:?}", ended.err());
    node.world.engine = None;
    let (after, survivor) = (fs.crash(n), store.survivor(happens));
    let store = || Arc::new(survivor.clone()) as Arc<dyn Store>;
    let what = format!("change {n}, {happens}, lost {disk_lost}");
    recover(node, &after, store(), || (CrashFs::new(), store()), disk_lost, &what);
    ended.is_ok()
}

/// Calls until the life comes to its end, shared among threads.
fn every_call(crash: impl Fn(u64) -> bool + Sync) -> u64 {
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
    let (next, finished) = (AtomicU64::new(1), AtomicBool::new(false));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !finished.load(Ordering::SeqCst) {
                    if crash(next.fetch_add(1, Ordering::SeqCst)) {
                        finished.store(true, Ordering::SeqCst);
                    }
                }
            });
        }
    });
    next.into_inner()
}

#[test]
fn whatever_was_acknowledged_survives_a_crash_at_any_call_of_the_disk() {
    let calls = every_call(|n| {
        let whole = crash_on_disk(n, u64::MAX, false);
        crash_on_disk(n, 0, true);
        crash_on_disk(n, n, n % 2 == 0);
        whole
    });
    eprintln!("{calls} calls");
    assert!(calls > 400, "the life had only {calls} calls");
}

#[test]
fn whatever_was_acknowledged_survives_a_crash_at_any_change_of_the_store() {
    let changes = every_call(|n| {
        let whole = crash_in_store(n, true, false);
        crash_in_store(n, false, true);
        crash_in_store(n, n % 2 == 0, true);
        crash_in_store(n, n % 2 == 1, false);
        whole
    });
    eprintln!("{changes} changes");
    assert!(changes > 60, "the life had only {changes} changes");
}

/// The start from an empty disk, cut short at each of its calls, several times over.
#[test]
fn a_crash_while_attaching_is_recovered_from() {
    let (fs, store) = (CrashFs::new(), SimStore::new());
    let shared = || Ok(Arc::new(store.clone()) as Arc<dyn Store>);
    let mut node = shared().and_then(|store| Node::begin(&fs, store)).expect("begin");
    live(&mut node, shared).expect("a life");
    let (timelines, told) = (node.world.timelines.clone(), node.told.clone());
    drop(node);
    for n in 1.. {
        let disk = CrashFs::new();
        disk.crash_at(n);
        let survivor = store.survivor(false);
        let again = || Arc::new(survivor.clone()) as Arc<dyn Store>;
        let began = Node::take_over(&disk, again(), timelines.clone(), told.clone());
        let ended = began.and_then(|mut node| {
            node.read(0)?;
            node.turn()
        });
        let done = ended.is_ok();
        let after = disk.crash(n);
        let next = Node::take_over(&after, again(), timelines.clone(), told.clone());
        next.unwrap_or_else(|error| panic!("call {n}: {error}"))
            .check(|| (CrashFs::new(), again()), &format!("call {n}"));
        if done {
            assert!(n > 20, "attaching takes only {n} calls");
            return;
        }
    }
}
