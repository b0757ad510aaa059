extern crate std;

use core::sync::atomic::AtomicU32;

use super::*;
use crate::map::tests::{IDENTITY, filled, zeros};
use crate::{BLOCK_SIZE, HEADER_WORDS, NotReady, Reason, VERSION_MAX};

fn write(map: Map<'_>, block: u32) {
    let held = map.write(u64::from(block) * BLOCK_SIZE, BLOCK_SIZE).advance().unwrap();
    assert_eq!(held.finish(BLOCK_SIZE), BLOCK_SIZE);
}

fn why(map: Map<'_>) -> Reason {
    map.begin_read(0, 1).unwrap_err().reason
}

#[test]
fn a_fetch_lands_only_on_what_it_was_planned_for() {
    let words = zeros(1);
    let map = Map::create(&words, 1, IDENTITY, 1).unwrap();
    let (agent, _) = Agent::take_over(map);
    let plan = agent.plan_fetch(0).unwrap();
    let claim = agent.claim_fetch(plan).unwrap();
    assert_eq!(why(map), Reason::Fetching);
    assert!(agent.plan_fetch(0).is_none() && agent.claim_fetch(plan).is_none());
    agent.abort_fetch(claim).unwrap();
    assert_eq!(why(map), Reason::Absent);
    // Nothing came between: the plan still holds.
    let claim = agent.claim_fetch(plan).unwrap();
    agent.publish_fetch(claim).unwrap();
    let claim = agent.claim_drop(0, DropRule::OnlyClean).unwrap();
    assert_eq!(why(map), Reason::Dropping);
    agent.finish_drop(claim).unwrap();
    assert_eq!(agent.claim_fetch(plan), None);
    assert!(agent.plan_fetch(0).is_some_and(|plan| !plan.was_written()));
}

#[test]
fn written_blocks_go_after_a_note_only() {
    let words = zeros(1);
    let map = filled(&words, 1, 1);
    let (agent, _) = Agent::take_over(map);
    assert!(!agent.note(0));
    write(map, 0);
    assert_eq!(agent.claim_drop(0, DropRule::NotedToo), None);
    assert!(agent.note(0) && !agent.note(0));
    assert_eq!(agent.claim_drop(0, DropRule::OnlyClean), None);
    write(map, 0);
    assert_eq!(agent.claim_drop(0, DropRule::NotedToo), None);
    assert!(agent.note(0));
    agent.finish_drop(agent.claim_drop(0, DropRule::NotedToo).unwrap()).unwrap();
    let plan = agent.plan_fetch(0).unwrap();
    assert!(plan.was_written());
    agent.publish_fetch(agent.claim_fetch(plan).unwrap()).unwrap();
    assert_eq!(map.block(0).unwrap().history, History::Clean);
}

#[test]
fn a_block_being_written_is_not_noted_dropped_or_fetched() {
    let words = zeros(1);
    let map = filled(&words, 1, 1);
    let (agent, _) = Agent::take_over(map);
    write(map, 0);
    let held = map.write(0, BLOCK_SIZE).advance().unwrap();
    assert!(!agent.note(0) && agent.plan_fetch(0).is_none());
    assert_eq!(agent.claim_drop(0, DropRule::NotedToo), None);
    // A read of it is as good as without us.
    assert!(map.begin_read(0, 1).is_ok());
    held.release();
}

#[test]
fn zeros_stay() {
    let words = zeros(1);
    let map = filled(&words, 1, 1);
    let (agent, _) = Agent::take_over(map);
    agent.finish_drop_zero(agent.claim_drop(0, DropRule::OnlyClean).unwrap()).unwrap();
    assert!(map.is_present(0, 1) && map.block(0).unwrap().zero);
    assert_eq!(agent.claim_drop(0, DropRule::NotedToo), None);
    write(map, 0);
    assert!(!map.block(0).unwrap().zero);
}

#[test]
fn a_worn_out_block_stays() {
    let words = zeros(1);
    let map = filled(&words, 1, 1);
    let (agent, _) = Agent::take_over(map);
    let word = words.get(HEADER_WORDS).unwrap();
    word.fetch_add((VERSION_MAX - 1) << 8, Ordering::Relaxed);
    let claim = agent.claim_drop(0, DropRule::OnlyClean).unwrap();
    agent.finish_drop(claim).unwrap();
    let claim = agent.claim_fetch(agent.plan_fetch(0).unwrap()).unwrap();
    agent.publish_fetch(claim).unwrap();
    assert_eq!(map.block(0).unwrap().version, VERSION_MAX);
    assert_eq!(agent.claim_drop(0, DropRule::OnlyClean), None);
}

#[test]
fn a_new_agent_ends_what_the_old_one_began() {
    let words = zeros(6);
    let map = filled(&words, 6, 4);
    let (old, _) = Agent::take_over(map);
    write(map, 1);
    write(map, 2);
    assert!(old.note(1) && old.note(2));
    let dropping = old.claim_drop(0, DropRule::OnlyClean).unwrap();
    let held = map.write(2 * BLOCK_SIZE, BLOCK_SIZE).advance().unwrap();
    let fetching = old.claim_fetch(old.plan_fetch(4).unwrap()).unwrap();

    let (agent, met) = Agent::take_over(map);
    let expected = TakeOver { present: 3, fetching: 1, dropping: 1, noted: 2, damaged: 0 };
    assert_eq!(met, expected);
    held.release();
    assert_eq!(map.block(1).unwrap().history, History::Dirty);
    assert_eq!(map.block(2).unwrap().history, History::Dirty);
    assert_eq!(map.begin_read(0, 1).unwrap_err(), NotReady { block: 0, reason: Reason::Absent });
    assert_eq!(old.publish_fetch(fetching), Err(Lost { block: 4 }));
    assert_eq!(old.finish_drop(dropping), Err(Lost { block: 0 }));
    assert_eq!(Agent::take_over(map).1, TakeOver { present: 3, ..TakeOver::default() });
    assert!(agent.plan_fetch(4).is_some());
}

#[test]
fn maps_are_of_real_atomics_in_one_slice() {
    let words = zeros(4);
    let map = filled(&words, 2, 2);
    assert_eq!(Map::<AtomicU32>::words_for(2), 18);
    assert_eq!(Agent::take_over(map).0.map().block_count(), 2);
}
