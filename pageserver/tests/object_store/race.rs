//! Two pageservers, one of which does not know that it was replaced.

use std::sync::Arc;

use treering_fs::CrashFs;
use treering_remote::{Store, sim::SimStore};

use super::{
    node::Node,
    support::{TENANT, new_tenant},
};

fn shared(store: &SimStore) -> Arc<dyn Store> {
    Arc::new(store.clone())
}

/// The same store, and a disk that knows nothing.
fn elsewhere(store: &SimStore) -> (CrashFs, Arc<dyn Store>) {
    (CrashFs::new(), shared(store))
}

/// A node with some history in the store, and some only on its disk.
fn begin(store: &SimStore) -> Node {
    let mut node = Node::begin(&CrashFs::new(), shared(store)).expect("begin");
    node.remote.create_tenant(new_tenant()).expect("tenant");
    node.world.import_root().expect("root");
    node.turn().expect("published");
    node.write(0, 1).expect("write");
    node.flush(0).expect("flush");
    node.turn().expect("published");
    node.write(0, 2).expect("write");
    node.flush(0).expect("flush");
    node
}

/// Each step of the old one stands at each place among the steps of the new one.
#[test]
fn a_stale_pageserver_harms_nobody_whenever_it_wakes_up() {
    for wake in 0..7 {
        let store = SimStore::new();
        let mut old = begin(&store);
        let (timelines, told) = (old.world.timelines.clone(), old.told.clone());
        let mut new =
            Node::take_over(&CrashFs::new(), shared(&store), timelines, told).expect("new");
        new.world.send_again(0).expect("the log is there");
        for step in 0..7 {
            if step == wake {
                let before = old.told.durable.clone();
                old.write(0, 3).expect("write");
                old.flush(0).expect("flush");
                old.world.timeline(0).compact(true).expect("compact");
                assert!(old.turn().is_err(), "a stale pageserver acknowledges something");
                assert!(old.turn().is_err());
                assert!(old.tenant_remote().progress().fenced.is_some());
                assert_eq!(old.told.durable, before, "the log would be trimmed");
                assert!(old.remote.delete_tenant(TENANT).is_err(), "a stale pageserver deletes");
                assert!(old.tenant_remote().attached.clean().unwrap_or(0) == 0);
            }
            match step {
                0 => new.flush(0).expect("flush"),
                1 => new.turn().expect("published"),
                2 => new.write(0, 4).expect("write"),
                3 => new.flush(0).expect("flush"),
                4 => drop(new.world.timeline(0).compact(true).expect("compact")),
                5 => new.turn().expect("published"),
                _ => drop(new.world.engine().shrink_layers(0).expect("evict")),
            }
        }
        new.check(|| elsewhere(&store), &format!("woken at {wake}"));
    }
}

/// The old disk comes back after somebody else had the tenant: it is the past, and is thrown away.
#[test]
fn a_disk_that_missed_something_begins_with_the_store() {
    let store = SimStore::new();
    let old = begin(&store);
    let Node { world, told, .. } = old;
    let disk = world.fs.clone();
    let timelines = world.timelines.clone();
    drop(world);
    let new = Node::take_over(&CrashFs::new(), shared(&store), timelines, told).expect("new");
    let mut new = new;
    new.world.send_again(0).expect("send");
    new.write(0, 9).expect("write");
    new.flush(0).expect("flush");
    let branch = new.branch(0, new.world.timelines[0].last).expect("branch");
    new.write(branch, 10).expect("write");
    new.flush(branch).expect("flush");
    new.turn().expect("published");
    let (timelines, told) = (new.world.timelines.clone(), new.told.clone());
    let mut back = Node::take_over(&disk, shared(&store), timelines, told).expect("back");
    assert!(new.turn().is_ok() || new.tenant_remote().progress().fenced.is_some());
    back.check(|| elsewhere(&store), "the old disk");
}

/// A copy of a disk started beside the original: one of the two loses, and whoever loses acknowledges nothing.
#[test]
fn of_two_copies_of_a_disk_the_later_one_has_the_tenant() {
    let store = SimStore::new();
    let mut original = begin(&store);
    let copy = original.world.fs.crash(u64::MAX);
    let (timelines, told) = (original.world.timelines.clone(), original.told.clone());
    let mut copied = Node::take_over(&copy, shared(&store), timelines, told).expect("copy");
    assert!(original.turn().is_err());
    copied.write(0, 9).expect("write");
    copied.flush(0).expect("flush");
    copied.turn().expect("published");
    // The original starts again: its disk has been left behind, though it looks newer by its own count.
    for seed in 20..26 {
        original.write(0, seed).expect("write");
        original.flush(0).expect("flush");
    }
    original.world.engine = None;
    let (timelines, told) = (copied.world.timelines.clone(), copied.told.clone());
    let mut again =
        Node::take_over(&original.world.fs, shared(&store), timelines, told).expect("again");
    assert!(copied.write(0, 11).is_ok() && copied.flush(0).is_ok() && copied.turn().is_err());
    again.check(|| elsewhere(&store), "the original");
}

#[test]
fn a_deleted_tenant_does_not_come_back() {
    let store = SimStore::new();
    let mut node = begin(&store);
    node.turn().expect("published");
    let disk = node.world.fs.clone();
    node.remote.delete_tenant(TENANT).expect("deleted");
    assert!(
        store.names().iter().all(|name| name.contains("/claims/") || name.contains("/indexes/"))
    );
    drop(node);
    for fs in [disk.clone(), CrashFs::new()] {
        let next = Node::begin(&fs, shared(&store)).expect("start");
        assert!(next.world.engine().tenant(TENANT).is_err());
    }
    // The same id may be used again.
    let mut next = Node::begin(&disk, shared(&store)).expect("start");
    next.remote.create_tenant(new_tenant()).expect("tenant");
    next.world.import_root().expect("root");
    next.turn().expect("published");
    next.check(|| elsewhere(&store), "made again");
}
