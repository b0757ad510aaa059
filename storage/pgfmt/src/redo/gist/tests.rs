use proptest::prelude::*;
use treering_types::{Fork, Key, Lsn, PAGE_SIZE, RelTag};

use super::{
    index_tuple::{self, NO_BLOCK},
    page::{Special, flag},
    *,
};
use crate::{change::PartBlock, page::HEADER_SIZE, version::PgMajor};

const REL: RelTag = RelTag { tablespace: 1663, database: 5, relation: 16384, fork: Fork::Main };
const END: Lsn = Lsn(0x0000_0001_2345_6780);
const OLD_NSN: Lsn = Lsn(0x0000_0007_0000_0009);

/// A part of a record whose blocks have these numbers, from id 0 on.
fn part(
    info: u8,
    block_id: u8,
    blocks: &[u32],
    data: Vec<u8>,
    main: Vec<u8>,
) -> RecordPart<'static> {
    let blocks = blocks.iter().enumerate();
    let blocks =
        blocks.map(|(id, block)| PartBlock { id: id as u8, block: *block, has_data: true });
    RecordPart {
        rmid: crate::redo::rmgr::GIST,
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

fn run_as(major: PgMajor, part: &RecordPart<'_>, page: &mut Page<'_>) -> Result<(), RedoReason> {
    redo(&Context { major, lsn: END, key: &Key::rel_block(REL, 7) }, part, page)
}

fn run(part: &RecordPart<'_>, page: &mut Page<'_>) -> Result<(), RedoReason> {
    run_as(PgMajor::V15, part, page)
}

/// A tuple of `size` bytes, all of its key `key`.
fn tuple(key: u8, size: u16) -> Vec<u8> {
    let mut tuple = vec![key; usize::from(size)];
    index_tuple::set_info(&mut tuple, size).unwrap();
    tuple
}

fn filled(page: &mut Page<'_>, flags: u16, tuples: &[Vec<u8>]) {
    page::init(page, flags).unwrap();
    Special::edit(page, |special| special.nsn = OLD_NSN).unwrap();
    for tuple in tuples {
        page::append_leading(page, tuple).unwrap();
    }
}

fn items(page: &Page<'_>) -> Vec<Vec<u8>> {
    (1..=page.max_offset()).map(|offset| page.item(offset).unwrap().to_vec()).collect()
}

fn numbers(numbers: &[u16]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}

/// `gistxlogPageSplit` of a leaf whose old right link is 99.
fn split_main(pages: u16, follow_right: bool) -> Vec<u8> {
    let mut main = [99u32.to_le_bytes(), [0xee; 4]].concat();
    main.extend(OLD_NSN.0.to_le_bytes());
    main.extend([1, 0xee]);
    main.extend(pages.to_le_bytes());
    main.extend([u8::from(follow_right), 0xee, 0xee, 0xee]);
    main
}

fn split_data(tuples: &[Vec<u8>]) -> Vec<u8> {
    [(tuples.len() as u32).to_le_bytes().to_vec(), tuples.concat()].concat()
}

#[test]
fn one_tuple_for_one_keeps_its_place() {
    let mut bytes = [0; PAGE_SIZE];
    let mut page = Page(&mut bytes);
    filled(&mut page, flag::LEAF, &[tuple(1, 16), tuple(2, 16), tuple(3, 16)]);
    let data = [numbers(&[2]), tuple(9, 24)].concat();
    run(&part(kind::PAGE_UPDATE, 0, &[7], data.clone(), numbers(&[1, 1])), &mut page).unwrap();
    assert_eq!(items(&page), [tuple(1, 16), tuple(9, 24), tuple(3, 16)]);
    assert_eq!(Special::read(&page).unwrap().flags, flag::LEAF, "nothing counts as deleted");
    assert_eq!(page.lsn(), END);
    // With another tuple to come the first one goes, and both are added at the end.
    let data = [data, tuple(8, 16)].concat();
    let record = part(kind::PAGE_UPDATE, 0, &[7], data, numbers(&[1, 2]));
    run_as(PgMajor::V18, &record, &mut page).unwrap();
    assert_eq!(items(&page), [tuple(1, 16), tuple(3, 16), tuple(9, 24), tuple(8, 16)]);
    assert_eq!(Special::read(&page).unwrap().flags, flag::LEAF | flag::TUPLES_DELETED);
}

#[test]
fn deletion_from_an_inner_page_is_not_noted() {
    let mut bytes = [0; PAGE_SIZE];
    let mut page = Page(&mut bytes);
    filled(&mut page, 0, &[tuple(1, 16), tuple(2, 16)]);
    let record = part(kind::PAGE_UPDATE, 0, &[7], numbers(&[1]), numbers(&[1, 0]));
    run_as(PgMajor::V18, &record, &mut page).unwrap();
    assert_eq!((items(&page), Special::read(&page).unwrap().flags), (vec![tuple(2, 16)], 0));
}

#[test]
fn offsets_of_dead_tuples_moved_in_16() {
    let before = [tuple(1, 16), tuple(2, 16), tuple(3, 16), tuple(4, 16)];
    for major in PgMajor::ALL {
        let mut bytes = [0; PAGE_SIZE];
        let mut page = Page(&mut bytes);
        filled(&mut page, flag::LEAF | flag::HAS_GARBAGE, &before);
        let moved = if major == PgMajor::V15 { vec![] } else { vec![1, 0xee] };
        let main = [vec![0; 4], numbers(&[3]), moved, numbers(&[1, 2, 4])].concat();
        run_as(major, &part(kind::DELETE, 0, &[7], vec![], main), &mut page).unwrap();
        assert_eq!(items(&page), [tuple(3, 16)]);
        let marked = if major == PgMajor::V15 { 0 } else { flag::TUPLES_DELETED };
        assert_eq!(Special::read(&page).unwrap().flags, flag::LEAF | marked);
    }
}

#[test]
fn pages_of_a_split_link_to_each_other() {
    let blocks = [5, 7, 8, 9];
    let data = split_data(&[tuple(1, 16), tuple(2, 24)]);
    for (block_id, right, follows) in [(1, 8, true), (2, 9, true), (3, 99, false)] {
        for mark in [false, true] {
            let mut bytes = [0; PAGE_SIZE];
            let mut page = Page(&mut bytes);
            let main = split_main(3, mark);
            run(&part(kind::PAGE_SPLIT, block_id, &blocks, data.clone(), main), &mut page).unwrap();
            let follow_right = if follows && mark { flag::FOLLOW_RIGHT } else { 0 };
            let special = Special { nsn: OLD_NSN, right, flags: flag::LEAF | follow_right };
            assert_eq!(Special::read(&page), Ok(special));
            assert_eq!(items(&page), [tuple(1, 16), tuple(2, 24)]);
            assert_eq!(&page.bytes()[8176..8184], [7, 0, 0, 0, 9, 0, 0, 0]);
            assert_eq!(&page.bytes()[8190..], [0x81, 0xff]);
        }
    }
    let outside = part(kind::PAGE_SPLIT, 4, &blocks, data, split_main(3, true));
    assert!(run(&outside, &mut Page(&mut [0; PAGE_SIZE])).is_err());
}

#[test]
fn a_split_root_stays_root_and_marks_nobody() {
    let blocks = [5, page::ROOT, 8, 9];
    let expected = [(1, NO_BLOCK, 0), (2, 9, flag::LEAF), (3, 99, flag::LEAF)];
    for (block_id, right, flags) in expected {
        let mut bytes = [0; PAGE_SIZE];
        let mut page = Page(&mut bytes);
        let data = split_data(&[tuple(1, 16)]);
        let record = part(kind::PAGE_SPLIT, block_id, &blocks, data, split_main(3, true));
        run(&record, &mut page).unwrap();
        assert_eq!(Special::read(&page), Ok(Special { nsn: OLD_NSN, right, flags }));
    }
}

#[test]
fn the_left_half_gets_the_end_of_the_record_as_nsn() {
    for (info, block_id) in [(kind::PAGE_UPDATE, 1), (kind::PAGE_SPLIT, 0)] {
        let mut bytes = [0; PAGE_SIZE];
        let mut page = Page(&mut bytes);
        filled(&mut page, flag::LEAF | flag::FOLLOW_RIGHT, &[tuple(1, 16)]);
        run(&part(info, block_id, &[7, 8], vec![], vec![]), &mut page).unwrap();
        let special = Special { nsn: END, right: NO_BLOCK, flags: flag::LEAF };
        assert_eq!(Special::read(&page), Ok(special));
        assert_eq!(page.bytes()[8176..8184], page.bytes()[..8], "stored as the page LSN is");
    }
}

#[test]
fn a_deleted_page_keeps_its_bytes_and_says_since_when() {
    let mut bytes = [0; PAGE_SIZE];
    let mut page = Page(&mut bytes);
    filled(&mut page, flag::LEAF, &[tuple(1, 16), tuple(2, 16), tuple(3, 16)]);
    page.index_multi_delete([1, 2, 3].into_iter()).unwrap();
    page.put_u32(32, 0xabcd).unwrap();
    let main = [0x1_0000_02bcu64.to_le_bytes().to_vec(), numbers(&[2])].concat();
    run(&part(kind::PAGE_DELETE, 0, &[7, 8], vec![], main.clone()), &mut page).unwrap();
    assert_eq!((page.lower(), page.u64_at(HEADER_SIZE)), (32, Ok(0x1_0000_02bc)));
    assert_eq!(page.u32_at(32), Ok(0xabcd), "old line pointers stay in the hole");
    assert_eq!(Special::read(&page).unwrap().flags, flag::LEAF | flag::DELETED);
    filled(&mut page, 0, &[tuple(1, 16), tuple(2, 16), tuple(3, 16)]);
    run(&part(kind::PAGE_DELETE, 1, &[7, 8], vec![], main), &mut page).unwrap();
    assert_eq!(items(&page), [tuple(1, 16), tuple(3, 16)]);
}

#[test]
fn records_without_pages_are_not_guessed() {
    for (info, block_id) in [(0x20, 0), (0x70, 0), (0x40, 0), (kind::DELETE, 1)] {
        let result = run(&part(info, block_id, &[7], vec![], vec![]), &mut Page(&mut [0; 8192]));
        assert_eq!(result, Err(RedoReason::Unhandled));
    }
}

/// Numbers small enough to often mean something.
fn plausible_bytes() -> impl Strategy<Value = Vec<u8>> {
    let small = prop::collection::vec(0u16..20, 0..40).prop_map(|list| numbers(&list));
    let sized = (any::<u8>(), 8u16..400).prop_map(|(key, size)| tuple(key, size));
    let tuples = (0u16..9, prop::collection::vec(sized, 0..9))
        .prop_map(|(number, tuples)| [numbers(&[number]), tuples.concat()].concat());
    let main = (0u16..5, any::<bool>()).prop_map(|(pages, mark)| split_main(pages, mark));
    prop_oneof![small, tuples, main, prop::collection::vec(any::<u8>(), 0..300)]
}

proptest! {
    #[test]
    fn hostile_bytes_never_panic(
        tuples in prop::collection::vec((any::<u8>(), 8u16..200), 0..30),
        damage in prop::collection::vec((0..PAGE_SIZE, any::<u8>()), 0..12),
        header in prop::collection::vec((0usize..120, any::<u8>()), 0..3),
        info in prop_oneof![Just(0), Just(0x10), Just(0x30), Just(0x60), any::<u8>()],
        block_id in prop_oneof![0u8..5, any::<u8>()],
        major in prop::sample::select(&PgMajor::ALL[..]),
        data in plausible_bytes(),
        main in plausible_bytes(),
    ) {
        let mut bytes = [0; PAGE_SIZE];
        let mut page = Page(&mut bytes);
        let tuples: Vec<_> = tuples.into_iter().map(|(key, size)| tuple(key, size)).collect();
        filled(&mut page, flag::LEAF, &tuples);
        for (at, byte) in damage.into_iter().chain(header) {
            bytes[at] = byte;
        }
        let record = part(info, block_id, &[7, 0, 8, 9], data, main);
        let _ = run_as(major, &record, &mut Page(&mut bytes));
    }
}
