extern crate std;
use std::vec::Vec;

use super::*;
use crate::{Agent, VERSION};

pub(crate) const IDENTITY: FileIdentity = FileIdentity { device: 7, inode: 1 << 40, birth_ns: 5 };

pub(crate) fn zeros(block_count: u32) -> Vec<AtomicU32> {
    (0..Map::<AtomicU32>::words_for(block_count)).map(|_| AtomicU32::new(0)).collect()
}

/// The first `present` blocks are.
pub(crate) fn filled(words: &[AtomicU32], block_count: u32, present: u32) -> Map<'_> {
    let map = Map::create(words, 9, IDENTITY, block_count).unwrap();
    let (agent, _) = Agent::take_over(map);
    for block in 0..present {
        let claim = agent.claim_fetch(agent.plan_fetch(block).unwrap()).unwrap();
        agent.publish_fetch(claim).unwrap();
    }
    map
}

#[test]
fn the_header_is_these_bytes() {
    let words = zeros(3);
    let map = Map::create(&words, 0x0807_0605_0403_0201, IDENTITY, 3).unwrap();
    let bytes: Vec<u8> =
        words[..16].iter().flat_map(|word| word.load(Ordering::Relaxed).to_le_bytes()).collect();
    let mut expected = Vec::new();
    expected.extend_from_slice(b"TRPRESNC");
    expected.extend_from_slice(&[1, 0, 0, 0, 0, 0x20, 0, 0]);
    expected.extend_from_slice(&[1, 2, 3, 4, 5, 6, 7, 8]);
    expected.extend_from_slice(&[7, 0, 0, 0, 0, 0, 0, 0]);
    expected.extend_from_slice(&[0, 0, 0, 0, 0, 1, 0, 0]);
    expected.extend_from_slice(&[5, 0, 0, 0, 0, 0, 0, 0]);
    expected.extend_from_slice(&[0, 0x60, 0, 0, 0, 0, 0, 0]);
    expected.extend_from_slice(&[3, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(bytes, expected);
    assert_eq!((map.block_count(), map.file_number()), (3, 0x0807_0605_0403_0201));
    assert!(map.is_of(IDENTITY));
    assert!(!map.is_of(FileIdentity { birth_ns: 6, ..IDENTITY }));
    assert!(!map.is_unlinked());
    map.mark_unlinked();
    assert!(map.is_unlinked());
}

#[test]
fn what_is_no_map_is_refused() {
    let words = zeros(3);
    assert_eq!(Map::open(&words).unwrap_err(), HeaderError::Magic);
    assert_eq!(Map::open(&words[..15]).unwrap_err(), HeaderError::Short);
    let nobirth = FileIdentity { birth_ns: 0, ..IDENTITY };
    assert_eq!(Map::create(&words, 1, nobirth, 3).unwrap_err(), HeaderError::NoBirthTime);
    assert_eq!(Map::create(&words, 1, IDENTITY, 4).unwrap_err(), HeaderError::BlockCount(4));
    Map::create(&words, 1, IDENTITY, 3).unwrap();
    assert_eq!(Map::open(&words[..18]).unwrap_err(), HeaderError::BlockCount(3));
    let damaged = |index: usize, value: u32| {
        let was = words[index].swap(value, Ordering::Relaxed);
        let error = Map::open(&words).unwrap_err();
        words[index].store(was, Ordering::Relaxed);
        error
    };
    assert_eq!(damaged(2, VERSION + 1), HeaderError::Version(VERSION + 1));
    assert_eq!(damaged(3, 4096), HeaderError::BlockSize(4096));
    assert_eq!(damaged(14, 2), HeaderError::Size { size_bytes: 3 * 8192, block_count: 2 });
    assert_eq!(damaged(10, 0), HeaderError::NoBirthTime);
    assert!(Map::open(&words).is_ok());
}

#[test]
fn reads_touch_the_blocks_they_touch() {
    let words = zeros(4);
    let map = filled(&words, 4, 2);
    for (offset, length, first_missing) in [
        (0, 0, None),
        (0, 1, None),
        (0, 2 * 8192, None),
        (2 * 8192, 0, None),
        (0, 2 * 8192 + 1, Some(2)),
        (2 * 8192 - 1, 1, None),
        (2 * 8192 - 1, 2, Some(2)),
        (3 * 8192, 1, Some(3)),
        (4 * 8192, 1 << 20, None),
        (4 * 8192 - 1, 1 << 20, Some(3)),
        (1, u64::MAX, Some(2)),
        (u64::MAX, u64::MAX, None),
    ] {
        let missing = map.begin_read(offset, length).err();
        let expected = first_missing.map(|block| NotReady { block, reason: Reason::Absent });
        assert_eq!(missing, expected, "{offset} {length}");
        assert_eq!(map.is_present(offset, length), first_missing.is_none());
    }
}

#[test]
fn damaged_words_are_not_read_written_or_indexed_by() {
    let words = zeros(2);
    let map = filled(&words, 2, 2);
    let (agent, _) = Agent::take_over(map);
    for garbage in [5, 6, 7, 0x84, 0x8a, 0x0c, 0x34, u32::MAX] {
        words[HEADER_WORDS].store(garbage, Ordering::Relaxed);
        let damaged = NotReady { block: 0, reason: Reason::Damaged };
        assert_eq!(map.block(0), None);
        assert_eq!(map.write(0, 8192).advance().unwrap_err().1, damaged);
        assert_eq!(map.truncate(0).advance().unwrap_err().1, damaged);
        assert!(agent.plan_fetch(0).is_none() && !agent.note(0));
        assert_eq!(Agent::take_over(map).1.damaged, 1);
    }
    words[14].store(u32::MAX, Ordering::Relaxed);
    assert_eq!(map.block_count(), 2);
    assert!(map.block(2).is_none() && agent.plan_fetch(2).is_none());
}

#[test]
fn a_read_beside_a_drop_is_not_valid_and_beside_a_write_it_is() {
    let words = zeros(2);
    let map = filled(&words, 2, 2);
    let (agent, _) = Agent::take_over(map);
    let before = map.begin_read(0, 2 * 8192).unwrap();
    drop(map.write(8192, 10).advance().unwrap());
    assert!(map.validate(&before));
    let claim = agent.claim_drop(0, crate::DropRule::OnlyClean).unwrap();
    assert!(!map.validate(&before));
    agent.abort_drop(claim).unwrap();
    assert!(!map.validate(&before));
    assert!(map.validate(&map.begin_read(0, 2 * 8192).unwrap()));
}
