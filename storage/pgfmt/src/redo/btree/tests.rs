use proptest::prelude::*;
use treering_types::{Fork, Key, Lsn, PAGE_SIZE, RelTag};

use super::{
    index_tuple::{self, Tid, tid},
    page::{self, Special, flag},
    posting::{self, LeafTuple},
    *,
};
use crate::{change::PartBlock, item::Placement, version::PgMajor};

const REL: RelTag = RelTag { tablespace: 1663, database: 5, relation: 16384, fork: Fork::Main };
const END: Lsn = Lsn(0x0100_0000_2000);

fn part(info: u8, block_id: u8, data: Vec<u8>, main: Vec<u8>) -> RecordPart<'static> {
    let blocks = [7, 8, 9, 10, 0].into_iter().enumerate();
    let blocks = blocks.map(|(id, block)| PartBlock { id: id as u8, block, has_data: true });
    RecordPart {
        rmid: crate::redo::rmgr::BTREE,
        info,
        xid: 700,
        block_id,
        will_init: false,
        hints_logged: false,
        blocks: blocks.collect(),
        data: data.into(),
        main: main.into(),
    }
}

fn run(part: &RecordPart<'_>, page: &mut Page<'_>) -> Result<(), RedoReason> {
    run_as(PgMajor::V15, part, page)
}

fn run_as(major: PgMajor, part: &RecordPart<'_>, page: &mut Page<'_>) -> Result<(), RedoReason> {
    redo(&Context { major, lsn: END, key: &Key::rel_block(REL, 7) }, part, page)
}

/// Key bytes with room for a header before them; `key` tells tuples apart.
fn tuple(key: u8, pointers: &[Tid]) -> Vec<u8> {
    let mut plain = vec![key; 16];
    index_tuple::set_info(&mut plain, 16).unwrap();
    let tids = pointers.concat();
    let mut out = vec![0; posting::formed_size(&plain, &tids)];
    posting::form(&mut out, &plain, &tids).unwrap();
    out
}

fn pointers(first: u16, count: u16) -> Vec<Tid> {
    (first..first + count).map(|posid| tid(3, posid)).collect()
}

/// A leaf with a right sibling, so its first tuple is a high key.
fn leaf(page: &mut Page<'_>, tuples: &[Vec<u8>]) {
    let flags = flag::LEAF | flag::HAS_GARBAGE;
    page::init(page, Special { prev: 4, next: 5, flags, cycle_id: 6, ..Special::default() })
        .unwrap();
    for tuple in tuples {
        page::append(page, tuple).unwrap();
    }
}

fn items(page: &Page<'_>) -> Vec<Vec<u8>> {
    (1..=page.max_offset()).map(|offset| page.item(offset).unwrap().to_vec()).collect()
}

fn numbers(numbers: &[u16]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}

#[test]
fn a_single_item_pointer_makes_a_plain_tuple() {
    let plain = tuple(9, &pointers(1, 1));
    assert_eq!((plain.len(), index_tuple::info(&plain)), (16, Ok(16)));
    let list = tuple(9, &pointers(1, 3));
    assert_eq!((list.len(), index_tuple::info(&list)), (40, Ok(40 | posting::ALTERNATIVE_TID)));
    let read = LeafTuple::read(&list).unwrap();
    assert_eq!((read.key.len(), read.tids), (16, &pointers(1, 3).concat()[..]));
}

#[test]
fn a_posting_split_moves_the_last_item_pointer_out() {
    let mut bytes = [0; PAGE_SIZE];
    let mut page = Page(&mut bytes);
    leaf(&mut page, &[tuple(1, &pointers(1, 1)), tuple(1, &pointers(10, 4))]);
    let mut data = numbers(&[2]);
    data.extend(tuple(1, &[tid(2, 99)]));
    run(&part(kind::INSERT_POST, 0, data, numbers(&[3])), &mut page).unwrap();
    let expected = [tid(3, 10), tid(3, 11), tid(2, 99), tid(3, 12)];
    assert_eq!(items(&page)[1], tuple(1, &expected));
    assert_eq!(items(&page)[2], tuple(1, &[tid(3, 13)]));
    assert_eq!(page.lsn(), END);
    // The last place of the list is one a tuple may take, the first is not.
    let mut list = tuple(1, &pointers(10, 4));
    assert_eq!(posting::swap(&mut list, tid(2, 99), 3), Ok(tid(3, 13)));
    assert!(posting::swap(&mut list, tid(2, 99), 0).is_err());
    assert!(posting::swap(&mut list, tid(2, 99), 4).is_err());
}

#[test]
fn deduplication_merges_the_named_intervals_only() {
    let mut bytes = [0; PAGE_SIZE];
    let mut page = Page(&mut bytes);
    let high_key = tuple(9, &pointers(1, 1));
    let before = [
        high_key.clone(),
        tuple(1, &pointers(1, 1)),
        tuple(1, &pointers(2, 1)),
        tuple(2, &pointers(3, 1)),
        tuple(3, &pointers(4, 2)),
        tuple(3, &pointers(6, 1)),
    ];
    leaf(&mut page, &before);
    let record = part(kind::DEDUP, 0, numbers(&[2, 2, 5, 2]), numbers(&[2]));
    run(&record, &mut page).unwrap();
    let after =
        [high_key, tuple(1, &pointers(1, 2)), tuple(2, &pointers(3, 1)), tuple(3, &pointers(4, 3))];
    assert_eq!(items(&page), after);
    assert_eq!(Special::read(&page).unwrap().flags, flag::LEAF);
    let outside = part(kind::DEDUP, 0, numbers(&[4, 2]), numbers(&[1]));
    assert!(run(&outside, &mut page).is_err());
}

#[test]
fn deletion_thins_posting_lists_before_it_removes_tuples() {
    let mut bytes = [0; PAGE_SIZE];
    let mut page = Page(&mut bytes);
    let high_key = tuple(9, &pointers(1, 1));
    let before = [
        high_key.clone(),
        tuple(1, &pointers(1, 1)),
        tuple(2, &pointers(1, 5)),
        tuple(3, &pointers(6, 2)),
    ];
    leaf(&mut page, &before);
    // Deleted: 2. Updated: 3 loses places 0 and 3; 4 loses place 1 and becomes plain.
    let data = numbers(&[2, 3, 4, 2, 0, 3, 1, 1]);
    let record = part(kind::VACUUM, 0, data, numbers(&[1, 2]));
    run_as(PgMajor::V18, &record, &mut page).unwrap();
    let after = [high_key, tuple(2, &[tid(3, 2), tid(3, 3), tid(3, 5)]), tuple(3, &pointers(6, 1))];
    assert_eq!(items(&page), after);
    let special = Special::read(&page).unwrap();
    assert_eq!((special.flags, special.cycle_id), (flag::LEAF, 0));
}

#[test]
fn a_split_keeps_the_left_tuples_and_links_right() {
    let mut bytes = [0; PAGE_SIZE];
    let mut page = Page(&mut bytes);
    let before: Vec<_> = (0..5).map(|key| tuple(key, &pointers(1, 1))).collect();
    leaf(&mut page, &before);
    let (new, high_key) = (tuple(70, &pointers(1, 1)), tuple(80, &pointers(1, 1)));
    let data = [new.clone(), high_key.clone()].concat();
    // Level 0, tuples from 4 on go right, the new one before 4, no posting list is split.
    let main = numbers(&[0, 0, 4, 4, 0]);
    run(&part(kind::SPLIT_L, 0, data, main.clone()), &mut page).unwrap();
    assert_eq!(items(&page), [high_key, before[1].clone(), before[2].clone(), new]);
    let flags = flag::LEAF | flag::INCOMPLETE_SPLIT;
    let special = Special { prev: 4, next: 8, level: 0, flags, cycle_id: 0 };
    assert_eq!(Special::read(&page), Ok(special));
    // Tuples lie on the page from the last to the first.
    let area = [before[4].clone(), before[3].clone()].concat();
    run(&part(kind::SPLIT_L, 1, area, main), &mut page).unwrap();
    assert_eq!(items(&page), before[3..]);
    let special = Special { prev: 7, next: 9, level: 0, flags: flag::LEAF, cycle_id: 0 };
    assert_eq!(Special::read(&page), Ok(special));
}

#[test]
fn unknown_records_are_not_guessed() {
    let mut bytes = [0; PAGE_SIZE];
    for (info, block) in [(0xd0, 0), (0xf0, 0), (kind::INSERT_LEAF, 1), (kind::DEDUP, 9)] {
        let result = run(&part(info, block, vec![], vec![]), &mut Page(&mut bytes));
        assert_eq!(result, Err(RedoReason::Unhandled));
    }
}

prop_compose! {
    /// A page that is mostly sound, with some bytes overwritten.
    fn damaged_page()(
        keys in prop::collection::vec((any::<u8>(), 1u16..40), 0..60),
        damage in prop::collection::vec((0..PAGE_SIZE, any::<u8>()), 0..12),
        header in prop::collection::vec((0usize..120, any::<u8>()), 0..3),
    ) -> Box<[u8; PAGE_SIZE]> {
        let mut bytes = Box::new([0; PAGE_SIZE]);
        let mut page = Page(&mut bytes);
        leaf(&mut page, &[]);
        for (key, count) in keys {
            let next = page.max_offset() + 1;
            let _ = page.add_item(&tuple(key, &pointers(1, count)), next, Placement::Insert);
        }
        for (at, byte) in damage.into_iter().chain(header) {
            bytes[at] = byte;
        }
        bytes
    }
}

/// Numbers small enough to often mean something.
fn plausible_bytes() -> impl Strategy<Value = Vec<u8>> {
    let small = prop::collection::vec(0u16..60, 0..40).prop_map(|list| numbers(&list));
    let tuples = prop::collection::vec((any::<u8>(), 1u16..5), 0..6).prop_map(|list| {
        list.into_iter().flat_map(|(key, count)| tuple(key, &pointers(1, count))).collect()
    });
    prop_oneof![small, tuples, prop::collection::vec(any::<u8>(), 0..300)]
}

proptest! {
    #[test]
    fn hostile_bytes_never_panic(
        mut bytes in damaged_page(),
        info in any::<u8>(),
        block_id in 0u8..5,
        data in plausible_bytes(),
        main in plausible_bytes(),
    ) {
        let _ = run_as(PgMajor::V18, &part(info, block_id, data, main), &mut Page(&mut bytes));
    }

    #[test]
    fn forming_and_reading_a_posting_list_are_opposites(
        list in prop::collection::vec((any::<u32>(), any::<u16>()), 1..300),
    ) {
        let list: Vec<_> = list.into_iter().map(|(block, posid)| tid(block, posid)).collect();
        let formed = tuple(5, &list);
        prop_assert_eq!(LeafTuple::read(&formed).unwrap().tids, list.concat());
    }
}
