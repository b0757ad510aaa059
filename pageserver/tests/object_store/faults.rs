//! A store that fails at random, with each thing that a time-out can mean: slow, never wrong.

use std::sync::Arc;

use treering_fs::CrashFs;
use treering_remote::{
    Store,
    sim::{Call, Fault, SimStore},
};

use super::{
    node::{Node, Outcome},
    support::new_tenant,
};

/// splitmix64 (Steele, Lea, Flood 2014).
fn dice(seed: u64) -> impl FnMut() -> u64 + Send {
    let mut state = seed;
    move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// Four calls of ten fail.
fn rule(seed: u64) -> impl FnMut(Call, &str) -> Option<Fault> + Send {
    let mut dice = dice(seed);
    move |_, _| match dice() % 20 {
        0..3 => Some(Fault::Refused),
        3..5 => Some(Fault::AnswerLost),
        5..7 => Some(Fault::Late),
        7 => Some(Fault::Torn),
        8 => Some(Fault::BitFlip),
        _ => None,
    }
}

fn until_it_works(what: &str, mut step: impl FnMut() -> Outcome) {
    for _ in 0..2000 {
        if step().is_ok() {
            return;
        }
    }
    panic!("{what}: never");
}

#[test]
fn a_store_that_fails_all_the_time_is_slow_and_never_wrong() {
    for seed in 0..12 {
        let store = SimStore::new();
        let shared = || Arc::new(store.clone()) as Arc<dyn Store>;
        let mut node = Node::begin(&CrashFs::new(), shared()).expect("begin");
        store.set_rule(rule(seed));
        until_it_works("tenant", || Ok(node.remote.create_tenant(new_tenant()).map(drop)?));
        node.world.import_root().expect("root");
        until_it_works("publish", || node.turn());
        let mut child = 0;
        for round in 0..6 {
            node.write(child, round).expect("write");
            node.flush(child).expect("flush");
            if round % 2 == 0 {
                store.deliver_late();
            }
            until_it_works("publish", || node.turn());
            node.world.engine().shrink_layers(0).expect("evict");
            until_it_works("read", || node.read(0));
            if round == 2 {
                child = node.branch(0, node.world.timelines[0].last).expect("branch");
            }
            until_it_works("compact", || Ok(node.world.timeline(0).compact(true).map(drop)?));
        }
        until_it_works("publish", || node.turn());
        let (timelines, told) = (node.world.timelines.clone(), node.told.clone());
        drop(node);
        // What timed out long ago arrives now, or never.
        let survivor = store.survivor(seed % 2 == 0);
        let again = || Arc::new(survivor.clone()) as Arc<dyn Store>;
        let next = Node::take_over(&CrashFs::new(), again(), timelines, told).expect("attach");
        let mut next = next;
        next.check(|| (CrashFs::new(), again()), &format!("seed {seed}"));
    }
}
