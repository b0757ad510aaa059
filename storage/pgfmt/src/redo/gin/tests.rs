use std::collections::BTreeSet;

use proptest::prelude::*;
use smallvec::smallvec;
use treering_types::{Fork, Key, Lsn, PAGE_SIZE, RelTag};

use super::{
    codec::{self, Encoder, Segment},
    index_tuple::{NO_BLOCK, Tid, tid},
    page::{DATA, Special, flag},
    *,
};
use crate::{change::PartBlock, version::PgMajor};

const REL: RelTag = RelTag { tablespace: 1663, database: 5, relation: 16384, fork: Fork::Main };
const END: Lsn = Lsn(0x0100_0000_2000);

fn part(info: u8, block_id: u8, data: Vec<u8>, main: Vec<u8>) -> RecordPart<'static> {
    RecordPart {
        rmid: crate::redo::rmgr::GIN,
        info,
        xid: 700,
        block_id,
        will_init: false,
        hints_logged: false,
        blocks: smallvec![PartBlock { id: block_id, block: 7, has_data: true }],
        data: data.into(),
        main: main.into(),
    }
}

fn run(part: &RecordPart<'_>, page: &mut Page<'_>) -> Result<(), RedoReason> {
    let ctx = Context { major: PgMajor::V15, lsn: END, key: &Key::rel_block(REL, 7) };
    redo(&ctx, part, page)
}

/// A number as an item pointer: 11 bits of offset, which is never 0.
fn pointer(number: u64) -> Tid {
    tid((number / 2047) as u32, (number % 2047) as u16 + 1)
}

fn segment(numbers: &BTreeSet<u64>) -> Vec<u8> {
    let mut out = vec![0; PAGE_SIZE];
    let mut encoder = Encoder::new(&mut out);
    for number in numbers {
        encoder.push(codec::item_of(pointer(*number)).unwrap()).unwrap();
    }
    let size = encoder.finish().unwrap();
    out.truncate(size);
    out
}

fn items(segment: &[u8]) -> Vec<u64> {
    Segment::leading(segment).unwrap().items().collect::<Result<_, _>>().unwrap()
}

fn expected(numbers: &BTreeSet<u64>) -> Vec<u64> {
    numbers.iter().map(|number| codec::item_of(pointer(*number)).unwrap()).collect()
}

fn posting_leaf(page: &mut Page<'_>, segments: &[Vec<u8>]) {
    let lists = segments.concat();
    let mut main = (lists.len() as u32).to_le_bytes().to_vec();
    main.extend(lists);
    run(&part(kind::CREATE_PTREE, 0, vec![], main), page).unwrap();
}

fn lists<'a>(page: &'a Page<'_>) -> &'a [u8] {
    &page.bytes()[DATA..page.lower()]
}

fn set(numbers: impl IntoIterator<Item = u64>) -> BTreeSet<u64> {
    numbers.into_iter().collect()
}

#[test]
fn an_odd_segment_is_padded() {
    let two = segment(&set([5, 6]));
    assert_eq!(two, [0, 0, 0, 0, 6, 0, 1, 0, 1, 0]);
    assert_eq!(items(&two), [6, 7]);
}

#[test]
fn recompression_carries_out_every_action() {
    let mut bytes = [0; PAGE_SIZE];
    let mut page = Page(&mut bytes);
    let old: Vec<_> = (0..5).map(|index| segment(&set(index * 100..index * 100 + 9))).collect();
    posting_leaf(&mut page, &old);
    let (inserted, replaced) = (segment(&set([150])), segment(&set([201, 203])));
    let mut data = 4u16.to_le_bytes().to_vec();
    data.extend([1, 2]);
    data.extend(&inserted);
    data.extend([1, 1]);
    data.extend([2, 3]);
    data.extend(&replaced);
    data.extend([3, 4, 2, 0]);
    data.extend(pointer(304));
    data.extend(pointer(350));
    run(&part(kind::VACUUM_DATA_LEAF_PAGE, 0, data, vec![]), &mut page).unwrap();
    let merged = segment(&set((300..309).chain([350])));
    let expected = [&old[0], &inserted, &replaced, &merged, &old[4]].map(|segment| &segment[..]);
    assert_eq!(lists(&page), expected.concat());
    assert_eq!(page.lsn(), END);
}

#[test]
fn actions_beyond_the_segments_are_errors() {
    let mut bytes = [0; PAGE_SIZE];
    let mut page = Page(&mut bytes);
    posting_leaf(&mut page, &[segment(&set([1, 2]))]);
    for (number, action) in [(1, 1), (1, 3), (1, 4), (2, 2), (0, 9)] {
        let mut data = vec![1, 0, number, action];
        data.extend(segment(&set([5, 6, 7])));
        assert!(run(&part(kind::VACUUM_DATA_LEAF_PAGE, 0, data, vec![]), &mut page).is_err());
    }
    let mut data = vec![1, 0, 1, 2];
    data.extend(segment(&set([5, 6, 7])));
    run(&part(kind::VACUUM_DATA_LEAF_PAGE, 0, data, vec![]), &mut page).unwrap();
}

#[test]
fn an_old_leaf_is_compressed_first() {
    let mut bytes = [0; PAGE_SIZE];
    let mut page = Page(&mut bytes);
    super::page::init(&mut page, flag::DATA | flag::LEAF).unwrap();
    Special::edit(&mut page, |special| special.count = 3).unwrap();
    for (index, number) in [3, 40, 500].into_iter().enumerate() {
        page.write(DATA + index * 6, &pointer(number)).unwrap();
    }
    run(&part(kind::VACUUM_DATA_LEAF_PAGE, 0, vec![0, 0], vec![]), &mut page).unwrap();
    assert_eq!(lists(&page), segment(&set([3, 40, 500])));
    let flags = flag::DATA | flag::LEAF | flag::COMPRESSED;
    assert_eq!(Special::read(&page), Ok(Special { right: NO_BLOCK, count: 0, flags }));
}

#[test]
fn a_downlink_goes_before_the_half_it_left() {
    let mut bytes = [0; PAGE_SIZE];
    let mut page = Page(&mut bytes);
    super::page::init(&mut page, flag::DATA).unwrap();
    Special::edit(&mut page, |special| special.count = 1).unwrap();
    let downlink = |block: u32, key: u16| [&tid(block, 0)[..4], &tid(1, key)].concat();
    page.write(DATA, &downlink(11, 5)).unwrap();
    let mut data = vec![1, 0];
    data.extend(downlink(11, 3));
    let main = [&[1, 0][..], &tid(11, 0)[..4], &tid(12, 0)[..4]].concat();
    run(&part(kind::INSERT, 0, data, main), &mut page).unwrap();
    assert_eq!(lists(&page), [downlink(11, 3), downlink(12, 5)].concat());
    run(&part(kind::DELETE_PAGE, 1, vec![], vec![1, 0, 0, 0]), &mut page).unwrap();
    assert_eq!(lists(&page), downlink(12, 5));
    assert!(run(&part(kind::DELETE_PAGE, 1, vec![], vec![2, 0, 0, 0]), &mut page).is_err());
}

/// Item numbers, near to each other and far apart (up to the 43 bits there are).
fn item_numbers(count: usize) -> impl Strategy<Value = BTreeSet<u64>> {
    let near = 0..3000u64;
    let far = 0..(u64::from(u32::MAX) * 2047);
    prop::collection::btree_set(prop_oneof![3 => near, 1 => far], 1..count)
}

fn plausible_bytes() -> impl Strategy<Value = Vec<u8>> {
    let actions = prop::collection::vec((0u8..4, 0u8..5, item_numbers(4)), 0..4);
    let actions = actions.prop_map(|actions| {
        let mut bytes = (actions.len() as u16).to_le_bytes().to_vec();
        for (number, action, numbers) in actions {
            bytes.extend([number, action]);
            bytes.extend(segment(&numbers));
        }
        bytes
    });
    let small = prop::collection::vec(0u16..20, 0..60)
        .prop_map(|list| list.into_iter().flat_map(u16::to_le_bytes).collect());
    prop_oneof![actions, small, prop::collection::vec(any::<u8>(), 0..200)]
}

proptest! {
    #[test]
    fn encoding_and_decoding_are_opposites(numbers in item_numbers(400)) {
        prop_assert_eq!(items(&segment(&numbers)), expected(&numbers));
    }

    #[test]
    fn merging_equals_encoding_the_union(old in item_numbers(200), added in item_numbers(200)) {
        let stored = segment(&old);
        let pointers: Vec<u8> = added.iter().flat_map(|number| pointer(*number)).collect();
        let mut out = vec![0xff; PAGE_SIZE];
        let size = codec::merge(&mut out, &Segment::leading(&stored).unwrap(), &pointers).unwrap();
        prop_assert_eq!(&out[..size], segment(&old.union(&added).copied().collect()));
    }

    #[test]
    fn hostile_bytes_never_panic(
        segments in prop::collection::vec(item_numbers(20), 0..4),
        flags in prop_oneof![Just(flag::DATA), Just(0x83), any::<u16>()],
        damage in prop::collection::vec((0..PAGE_SIZE, any::<u8>()), 0..8),
        header in prop::collection::vec((0usize..100, any::<u8>()), 0..3),
        (info, block_id) in (any::<u8>(), 0u8..4),
        data in plausible_bytes(),
        main in plausible_bytes(),
    ) {
        let mut bytes = [0; PAGE_SIZE];
        let mut page = Page(&mut bytes);
        posting_leaf(&mut page, &segments.iter().map(segment).collect::<Vec<_>>());
        Special::edit(&mut page, |special| {
            special.flags = flags;
            special.count = 9;
        }).unwrap();
        for (at, byte) in damage.into_iter().chain(header) {
            bytes[at] = byte;
        }
        let _ = run(&part(info, block_id, data, main), &mut Page(&mut bytes));
    }
}
