use proptest::prelude::*;
use treering_types::{Fork, Key, Lsn, PAGE_SIZE, RelTag};

use super::{
    index_tuple::{NO_BLOCK, tid},
    page::Kind,
    *,
};
use crate::{change::PartBlock, page::LinePointer, version::PgMajor};

const REL: RelTag = RelTag { tablespace: 1663, database: 5, relation: 16384, fork: Fork::Main };
const END: Lsn = Lsn(0x0100_0000_2000);

/// A part of a record whose blocks 0, 1, 2 are numbered 7, 8, 9.
fn part(info: u8, block_id: u8, data: Vec<u8>, main: Vec<u8>) -> RecordPart<'static> {
    let blocks = (0..3).map(|id| PartBlock { id, block: u32::from(id) + 7, has_data: true });
    RecordPart {
        rmid: crate::redo::rmgr::BRIN,
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
    let ctx = Context { major: PgMajor::V15, lsn: END, key: &Key::rel_block(REL, 7) };
    redo(&ctx, part, page)
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// `xl_brin_insert`.
fn insert_main(heap_block: u32, range_size: u32, offset: u16) -> Vec<u8> {
    [words(&[heap_block, range_size]), offset.to_le_bytes().to_vec()].concat()
}

/// `xl_brin_update`.
fn update_main(old_offset: u16, insert: Vec<u8>) -> Vec<u8> {
    [old_offset.to_le_bytes().to_vec(), vec![0xee; 2], insert].concat()
}

/// A regular page with these tuples at offsets 1 and up.
fn regular(page: &mut Page<'_>, tuples: &[Vec<u8>]) {
    page::init(page, Kind::Regular).unwrap();
    for (index, tuple) in tuples.iter().enumerate() {
        let main = insert_main(0, 1, index as u16 + 1);
        run(&part(kind::INSERT, 0, tuple.clone(), main), page).unwrap();
    }
}

#[test]
fn the_first_tuple_makes_the_page() {
    for (info, main) in [
        (kind::INSERT, insert_main(256, 128, 1)),
        (kind::UPDATE, update_main(5, insert_main(256, 128, 1))),
    ] {
        let mut bytes = [0xff; PAGE_SIZE];
        let mut page = Page(&mut bytes);
        let mut record = part(info | kind::INIT_PAGE, 0, vec![9; 20], main);
        run(&record, &mut page).unwrap();
        assert_eq!((page.special(), page.upper(), page.lower()), (8184, 8160, 28));
        assert_eq!(&page.bytes()[8184..], [0, 0, 0, 0, 0, 0, 0x93, 0xf0]);
        assert_eq!((page.item(1), page.lsn()), (Ok(&[9; 20][..]), END));
        record.info = info;
        assert!(run(&record, &mut page).is_err(), "the line pointer is taken");
    }
}

#[test]
fn a_removed_tuple_leaves_its_line_pointer_for_reuse() {
    let mut bytes = [0; PAGE_SIZE];
    let mut page = Page(&mut bytes);
    regular(&mut page, &[vec![1; 16], vec![2; 24], vec![3; 16]]);
    run(&part(kind::UPDATE, 2, vec![], update_main(2, insert_main(0, 1, 1))), &mut page).unwrap();
    assert_eq!(page.line_pointer(2), Ok(LinePointer::UNUSED));
    assert_eq!((page.item(1), page.item(3)), (Ok(&[1; 16][..]), Ok(&[3; 16][..])));
    run(&part(kind::INSERT, 0, vec![4; 32], insert_main(0, 1, 2)), &mut page).unwrap();
    assert_eq!((page.max_offset(), page.item(2)), (3, Ok(&[4; 32][..])));
    let last = [words(&[1, 0]), vec![3, 0]].concat();
    run(&part(kind::DESUMMARIZE, 1, vec![], last), &mut page).unwrap();
    assert_eq!(page.max_offset(), 2);
    run(&part(kind::SAMEPAGE_UPDATE, 0, vec![5; 8], vec![1, 0]), &mut page).unwrap();
    assert_eq!((page.item(1), page.item(2)), (Ok(&[5; 8][..]), Ok(&[4; 32][..])));
    assert_eq!(page.upper(), 8184 - 32 - 8);
}

#[test]
fn the_revmap_is_an_array_that_starts_over_on_each_page() {
    let mut bytes = [0; PAGE_SIZE];
    let mut page = Page(&mut bytes);
    run(&part(kind::REVMAP_EXTEND, 1, vec![], words(&[8])), &mut page).unwrap();
    assert_eq!(&page.bytes()[8190..], [0x92, 0xf0]);
    // Ranges of 16 blocks, 1360 to a page: the last of the first page, then the first of the second.
    let last = insert_main(1359 * 16 + 15, 16, 3);
    run(&part(kind::INSERT, 1, vec![], last), &mut page).unwrap();
    let first = insert_main(1360 * 16, 16, 0x1234);
    run(&part(kind::UPDATE, 1, vec![], update_main(1, first)), &mut page).unwrap();
    assert_eq!(page.slice(24 + 1359 * 6, 6), Ok(&tid(7, 3)[..]));
    assert_eq!(page.slice(24, 6), Ok(&tid(7, 0x1234)[..]));
    let forgotten = [words(&[16, 1360 * 16]), vec![1, 0]].concat();
    run(&part(kind::DESUMMARIZE, 0, vec![], forgotten), &mut page).unwrap();
    assert_eq!(page.slice(24, 6), Ok(&tid(NO_BLOCK, 0)[..]));
    assert!(run(&part(kind::INSERT, 1, vec![], insert_main(0, 0, 1)), &mut page).is_err());
}

#[test]
fn the_meta_page_counts_revmap_pages() {
    let mut bytes = [0; PAGE_SIZE];
    let mut page = Page(&mut bytes);
    let main = [words(&[32]), vec![1, 0]].concat();
    run(&part(kind::CREATE_INDEX | kind::INIT_PAGE, 0, vec![], main), &mut page).unwrap();
    assert_eq!(page.slice(24, 16), Ok(&words(&[0xa810_9cfa, 1, 32, 0])[..]));
    // An index from before 11 has its fields in the hole.
    page.set_lower(24);
    run(&part(kind::REVMAP_EXTEND, 0, vec![], words(&[2])), &mut page).unwrap();
    assert_eq!((page.lower(), page.u32_at(36)), (40, Ok(2)));
    assert_eq!(&page.bytes()[8190..], [0x91, 0xf0]);
}

#[test]
fn records_meet_their_kind_of_page_only() {
    let mut bytes = [0; PAGE_SIZE];
    let mut page = Page(&mut bytes);
    page::init(&mut page, Kind::Revmap).unwrap();
    for (info, block_id) in [(kind::REVMAP_EXTEND, 0), (kind::INSERT, 0), (kind::DESUMMARIZE, 1)] {
        let result = run(&part(info, block_id, vec![0; 8], insert_main(1, 1, 1)), &mut page);
        assert_eq!(result, Err(RedoReason::Malformed("not that kind of BRIN page")));
    }
    for (info, block_id) in [(0x60, 0), (0x70, 0), (kind::INSERT, 2), (kind::CREATE_INDEX, 1)] {
        let result = run(&part(info, block_id, vec![], vec![]), &mut page);
        assert_eq!(result, Err(RedoReason::Unhandled));
    }
}

/// Main data that may be cut short.
fn plausible_main() -> impl Strategy<Value = Vec<u8>> {
    (prop::collection::vec(0u32..9, 0..5), 0usize..4).prop_map(|(numbers, cut)| {
        let mut main = words(&numbers);
        main.truncate(main.len().saturating_sub(cut));
        main
    })
}

proptest! {
    #[test]
    fn hostile_bytes_never_panic(
        kind in prop::sample::select(&[Kind::Meta, Kind::Revmap, Kind::Regular][..]),
        sizes in prop::collection::vec(1usize..200, 0..30),
        damage in prop::collection::vec((0..PAGE_SIZE, any::<u8>()), 0..12),
        header in prop::collection::vec((0usize..120, any::<u8>()), 0..3),
        info in prop_oneof![prop::sample::select(&[0x10u8, 0x20, 0x30, 0x50][..]), any::<u8>()],
        block_id in 0u8..4,
        data in prop::collection::vec(any::<u8>(), 0..300),
        main in plausible_main(),
    ) {
        let mut bytes = [0; PAGE_SIZE];
        let mut page = Page(&mut bytes);
        regular(&mut page, &sizes.into_iter().map(|size| vec![7; size]).collect::<Vec<_>>());
        if kind != Kind::Regular {
            page::init(&mut page, kind).unwrap();
        }
        for (at, byte) in damage.into_iter().chain(header) {
            bytes[at] = byte;
        }
        let _ = run(&part(info, block_id, data, main), &mut Page(&mut bytes));
    }
}
