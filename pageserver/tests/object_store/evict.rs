//! The local disk as a cache: what is evicted comes back when it is read, once for all who want it, and only if it is what it was.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use treering_fs::{CrashFs, FileSystem};
use treering_remote::{
    Store,
    sim::{Call, Fault, SimStore},
};
use treering_types::{ErrorKind, Key, Lsn};

use super::{
    node::{ENGINE, Node},
    support::{new_tenant, rel},
};

fn begin(store: &SimStore) -> Node {
    let shared = Arc::new(store.clone()) as Arc<dyn Store>;
    let mut node = Node::begin(&CrashFs::new(), shared).expect("begin");
    node.remote.create_tenant(new_tenant()).expect("tenant");
    node.world.import_root().expect("root");
    for seed in 1..4 {
        node.write(0, seed).expect("write");
        node.flush(0).expect("flush");
    }
    node
}

fn layers_on_disk(node: &Node) -> usize {
    let root = std::path::Path::new(ENGINE).join(super::support::TENANT.to_string());
    let timelines = node.world.fs.list(&root).expect("list");
    let files = timelines
        .iter()
        .filter(|name| *name != "manifest")
        .flat_map(|name| node.world.fs.list(&root.join(name)).expect("list"));
    files.filter(|name| name.contains(".layer")).count()
}

#[test]
fn only_what_the_store_has_is_evicted_and_the_oldest_first() {
    let store = SimStore::new();
    let mut node = begin(&store);
    let info = || node.world.timeline(0).info();
    assert_eq!(node.world.engine().shrink_layers(0).unwrap(), info().layer_bytes, "none is stored");
    let bytes = info().layer_bytes;
    node.turn().expect("published");
    let engine = Arc::clone(node.world.engine());
    let left = engine.shrink_layers(bytes - 1).unwrap();
    let info = node.world.timeline(0).info();
    assert!(0 < left && left < bytes && info.local_layer_bytes == left);
    assert_eq!(engine.residence().evicted_layers, 1, "no more than needed");
    // What was just read stays when the next one goes.
    node.world.check(0, node.world.timelines[0].last);
    assert_eq!(engine.residence().fetched_layers, 1);
    assert_eq!(node.world.timeline(0).info().local_layer_bytes, bytes);
    assert_eq!(engine.shrink_layers(0).unwrap(), 0);
    assert_eq!(layers_on_disk(&node), 0);
    node.world.check_all(4);
    node.world.timeline(0).compact(true).expect("compact");
    node.world.check_all(4);
    assert!(layers_on_disk(&node) <= node.world.timeline(0).info().layers);
}

#[test]
fn many_readers_share_one_fetch() {
    let store = SimStore::new();
    let mut node = begin(&store);
    node.turn().expect("published");
    node.world.engine().shrink_layers(0).unwrap();
    let downloads = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&downloads);
    store.set_rule(move |call, _| {
        if call == Call::Download {
            counter.fetch_add(1, Ordering::SeqCst);
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        None
    });
    let timeline = node.world.timeline(0);
    let layers = timeline.info().layers;
    let lsn = timeline.last_record_lsn();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| timeline.rel_meta(rel(5, 0), lsn).expect("read"));
        }
    });
    let count = downloads.load(Ordering::SeqCst);
    assert!((1..=layers).contains(&count), "{count} downloads of {layers} layers");
    node.read(0).expect("all of it");
    node.world.check_all(2);
    assert_eq!(downloads.load(Ordering::SeqCst), layers, "each layer once");
}

/// What does not come, or comes damaged, is an error and never a wrong page; and nothing of it stays.
#[test]
fn a_fetch_that_fails_is_an_error_and_the_next_one_is_right() {
    for (fault, kind) in [
        (Fault::Refused, ErrorKind::Unavailable),
        (Fault::Torn, ErrorKind::Unavailable),
        (Fault::AnswerLost, ErrorKind::Unavailable),
        (Fault::BitFlip, ErrorKind::Corrupt),
    ] {
        let store = SimStore::new();
        let mut node = begin(&store);
        node.turn().expect("published");
        node.world.engine().shrink_layers(0).unwrap();
        // Also of a node that has never seen them.
        let shared = Arc::new(store.survivor(false)) as Arc<dyn Store>;
        let (timelines, told) = (node.world.timelines.clone(), node.told.clone());
        let stranger = Node::take_over(&CrashFs::new(), shared, timelines, told).expect("attach");
        drop(stranger);
        store.set_rule(move |call, _| (call == Call::Download).then_some(fault));
        let timeline = node.world.timeline(0);
        let lsn = timeline.last_record_lsn();
        let failed = timeline.get_page(Key::rel_block(rel(5, 0), 0), lsn);
        assert_eq!(failed.map_err(|error| error.kind()).err(), Some(kind), "{fault:?}");
        assert!(timeline.relations(Key::rel_meta_of_database(1663, 5), Lsn(lsn.0)).is_err());
        assert_eq!(layers_on_disk(&node), 0, "{fault:?} leaves something");
        store.clear_rule();
        node.world.check_all(2);
    }
}

/// An object that is damaged in the store is named, whoever asks, and its neighbours are read.
#[test]
fn a_node_that_never_had_the_layers_fails_reads_it_cannot_serve() {
    let store = SimStore::new();
    let mut node = begin(&store);
    node.turn().expect("published");
    let shared = Arc::new(store.clone()) as Arc<dyn Store>;
    let (timelines, told) = (node.world.timelines.clone(), node.told.clone());
    let stranger = Node::take_over(&CrashFs::new(), shared, timelines, told).expect("attach");
    store.set_rule(|call, _| (call == Call::Download).then_some(Fault::Refused));
    let timeline = stranger.world.timeline(0);
    let lsn = timeline.last_record_lsn();
    let meta = timeline.rel_meta(rel(5, 0), lsn);
    assert_eq!(meta.map_err(|error| error.kind()).err(), Some(ErrorKind::Unavailable));
    assert!(timeline.compact(true).is_err(), "a merge of layers that are not there");
    assert!(!timeline.verify().findings.is_empty());
    store.clear_rule();
    stranger.world.check_all(3);
    timeline.compact(true).expect("compact");
    stranger.world.check_all(3);
}
