//! Archived timelines: in the store alone, unusable, and after unarchiving what they were.

use std::sync::Arc;

use treering_fs::CrashFs;
use treering_remote::{Store, sim::SimStore};
use treering_types::ErrorKind;

use super::{
    node::Node,
    support::{Act, kind_of, new_tenant, rel},
};

#[test]
fn an_archived_timeline_is_kept_unused_and_comes_back() {
    let store = SimStore::new();
    let shared = || Arc::new(store.clone()) as Arc<dyn Store>;
    let mut node = Node::begin(&CrashFs::new(), shared()).expect("begin");
    node.remote.create_tenant(new_tenant()).expect("tenant");
    node.world.import_root().expect("root");
    node.write(0, 1).expect("write");
    let child = node.branch(0, node.world.timelines[0].last).expect("branch");
    node.write(child, 2).expect("write");
    let grandchild = node.branch(child, node.world.timelines[child].last).expect("branch");
    let ids: Vec<_> = node.world.timelines.iter().map(|model| model.id).collect();

    // Branches first.
    let tenant = node.world.tenant();
    let refused = tenant.archive_timeline(ids[child]).map(drop);
    assert_eq!(kind_of(refused), Some(ErrorKind::Conflict));
    node.archive(grandchild).expect("archive");
    node.archive(child).expect("archive");
    tenant.archive_timeline(ids[child]).expect("once more does nothing");

    let archived = node.world.timeline(child);
    assert!(archived.is_archived());
    assert_eq!(archived.info().local_layer_bytes, 0);
    assert!(archived.info().layer_bytes > 0);
    let lsn = archived.disk_consistent_lsn();
    assert_eq!(kind_of(archived.rel_meta(rel(5, 0), lsn)), Some(ErrorKind::Conflict));
    let write = node.world.write(child, &[vec![Act::Put(1, 1)]]);
    assert_eq!(kind_of(write), Some(ErrorKind::Conflict));
    node.world.timelines[child].acts.pop();
    node.world.timelines[child].batches.pop();
    node.world.timelines[child].last = lsn;
    assert_eq!(kind_of(archived.compact(true)), Some(ErrorKind::Conflict));
    assert_eq!(kind_of(archived.flush()), None, "there is nothing to flush");
    let branch = tenant.branch(treering_types::TimelineId([99; 16]), ids[child], lsn).map(drop);
    assert_eq!(kind_of(branch), Some(ErrorKind::Conflict));
    // The root keeps what they need.
    node.write(0, 3).expect("write");
    node.flush(0).expect("flush");
    node.world.gc(0, node.world.timelines[0].last).expect("gc");
    node.world.timeline(0).compact(true).expect("compact");
    node.turn().expect("published");

    // Elsewhere they are archived too, and can be had back, ancestors first.
    let (timelines, told) = (node.world.timelines.clone(), node.told.clone());
    let mut next = Node::take_over(&CrashFs::new(), shared(), timelines, told).expect("attach");
    assert!(next.world.timeline(child).is_archived());
    next.turn().expect("published");
    assert_eq!(next.world.timeline(child).durable_lsn(), lsn);
    let early = next.world.tenant().unarchive_timeline(ids[grandchild]).map(drop);
    assert_eq!(kind_of(early), Some(ErrorKind::Conflict));
    next.unarchive(child).expect("unarchive");
    next.unarchive(grandchild).expect("unarchive");
    for index in [child, grandchild] {
        next.world.check(index, next.world.timelines[index].last);
    }
    next.write(grandchild, 5).expect("write");
    // Deleting what is archived is fine, and it stays deleted.
    next.archive(grandchild).expect("archive");
    next.delete(grandchild).expect("delete");
    next.told.archiving.remove(&ids[grandchild]);
    next.turn().expect("published");
    next.check(|| (CrashFs::new(), shared()), "at the end");
}
