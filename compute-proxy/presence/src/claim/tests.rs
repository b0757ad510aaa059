extern crate std;
use std::vec::Vec;

use crate::map::tests::{filled, zeros};
use crate::{BLOCK_SIZE, Block, History, Map, NotReady, Reason, State};

fn states(map: Map<'_>) -> Vec<(State, History, bool)> {
    let blocks = (0..map.block_count()).map(|block| map.block(block).unwrap());
    blocks.map(|block: Block| (block.state, block.history, block.zero)).collect()
}

const ABSENT: (State, History, bool) = (State::Absent, History::Clean, false);
const CLEAN: (State, History, bool) = (State::Present, History::Clean, false);
const DIRTY: (State, History, bool) = (State::Present, History::Dirty, false);
const ZERO: (State, History, bool) = (State::Present, History::Dirty, true);

#[test]
fn a_write_claims_what_it_covers() {
    let words = zeros(4);
    let map = filled(&words, 4, 1);
    // Part of block 0, which is present; 1 and 2 whole; past the map nothing is claimed.
    let held = map.write(100, 3 * BLOCK_SIZE - 100).advance().unwrap();
    assert_eq!(map.block(3).unwrap().state, State::Absent);
    assert!(map.block(0).unwrap().backed && !map.block(1).unwrap().backed);
    assert_eq!(held.finish(3 * BLOCK_SIZE - 100), 3 * BLOCK_SIZE - 100);
    assert_eq!(states(map), [DIRTY, DIRTY, DIRTY, ABSENT]);
    let held = map.write(3 * BLOCK_SIZE, 2 * BLOCK_SIZE).advance().unwrap();
    assert_eq!(held.finish(2 * BLOCK_SIZE), 2 * BLOCK_SIZE);
    assert_eq!(states(map), [DIRTY; 4]);
    assert_eq!(map.write(4 * BLOCK_SIZE, 5).advance().unwrap().finish(5), 5);
}

#[test]
fn part_of_an_absent_block_needs_a_fetch_and_the_claim_waits() {
    let words = zeros(3);
    let map = filled(&words, 3, 1);
    let needed = NotReady { block: 2, reason: Reason::Absent };
    let (pending, why) = map.write(0, 2 * BLOCK_SIZE + 1).advance().unwrap_err();
    assert_eq!(why, needed);
    assert_eq!(map.block(1).unwrap().state, State::Writing);
    let (pending, why) = pending.advance().unwrap_err();
    assert_eq!(why, needed);
    drop(pending);
    assert_eq!(states(map), [CLEAN, ABSENT, ABSENT]);
}

#[test]
fn a_short_write_is_reported_up_to_what_counts() {
    for (present, written, reported, after) in [
        (0, 0, 0, [ABSENT, ABSENT]),
        (0, 4096, 0, [ABSENT, ABSENT]),
        (0, 8192, 8192, [DIRTY, ABSENT]),
        (0, 12288, 8192, [DIRTY, ABSENT]),
        (0, 16384, 16384, [DIRTY, DIRTY]),
        (1, 4096, 4096, [DIRTY, ABSENT]),
        (1, 12288, 8192, [DIRTY, ABSENT]),
        (2, 0, 0, [DIRTY, DIRTY]),
        (2, 12288, 12288, [DIRTY, DIRTY]),
        (2, 1 << 40, 16384, [DIRTY, DIRTY]),
    ] {
        let words = zeros(2);
        let map = filled(&words, 2, present);
        let held = map.write(0, 2 * BLOCK_SIZE).advance().unwrap();
        assert_eq!(held.finish(written), reported, "{present} present, {written} written");
        assert_eq!(states(map), after, "{present} present, {written} written");
    }
}

#[test]
fn a_short_write_past_the_map_counts_all_of_the_map() {
    let words = zeros(1);
    let map = filled(&words, 1, 0);
    let held = map.write(0, 3 * BLOCK_SIZE).advance().unwrap();
    assert_eq!(held.finish(2 * BLOCK_SIZE + 7), 2 * BLOCK_SIZE + 7);
    assert_eq!(states(map), [DIRTY]);
}

#[test]
fn claims_given_up_leave_blocks_right() {
    let words = zeros(2);
    let map = filled(&words, 2, 1);
    map.write(0, 2 * BLOCK_SIZE).advance().unwrap().release();
    assert_eq!(states(map), [CLEAN, ABSENT]);
    drop(map.write(0, 2 * BLOCK_SIZE).advance().unwrap());
    assert_eq!(states(map), [DIRTY, ABSENT]);
    let held = map.write(0, BLOCK_SIZE).advance().unwrap();
    let (other, why) = map.write(0, BLOCK_SIZE).advance().unwrap_err();
    assert_eq!(why, NotReady { block: 0, reason: Reason::Writing });
    assert_eq!(held.finish(BLOCK_SIZE), BLOCK_SIZE);
    assert!(other.advance().is_ok());
}

#[test]
fn a_truncation_cuts_what_the_file_says() {
    for (asked, found, after) in [
        (BLOCK_SIZE, BLOCK_SIZE, [CLEAN, ZERO, ZERO]),
        (0, 0, [ZERO, ZERO, ZERO]),
        (3 * BLOCK_SIZE, 3 * BLOCK_SIZE, [CLEAN, CLEAN, ABSENT]),
        // In the middle of a block; its rest is zeros, its start is kept.
        (BLOCK_SIZE + 1, BLOCK_SIZE + 1, [CLEAN, ZERO, ZERO]),
        // Failed, nothing cut; failed, something cut.
        (0, 3 * BLOCK_SIZE, [CLEAN, CLEAN, ABSENT]),
        (0, 2 * BLOCK_SIZE, [CLEAN, CLEAN, ZERO]),
    ] {
        let words = zeros(3);
        let map = filled(&words, 3, 2);
        map.truncate(asked).advance().unwrap().finish(found);
        assert_eq!(states(map), after, "{asked} asked, {found} found");
    }
    let words = zeros(2);
    let map = filled(&words, 2, 1);
    let needed = NotReady { block: 1, reason: Reason::Absent };
    assert_eq!(map.truncate(BLOCK_SIZE + 1).advance().unwrap_err().1, needed);
    assert_eq!(states(map), [CLEAN, ABSENT]);
}

#[test]
fn a_cut_block_counts_as_written_when_it_is_written_whole() {
    let words = zeros(1);
    let map = filled(&words, 1, 0);
    map.truncate(0).advance().unwrap().finish(0);
    // A part: the file may end inside the block, so that a page fetched later would reach past its end.
    assert_eq!(map.write(0, 10).advance().unwrap().finish(10), 10);
    assert_eq!(states(map), [ZERO]);
    assert_eq!(map.write(0, BLOCK_SIZE).advance().unwrap().finish(BLOCK_SIZE), BLOCK_SIZE);
    assert_eq!(states(map), [DIRTY]);
}
