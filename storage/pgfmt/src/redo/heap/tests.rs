use treering_types::{Fork, Key, Lsn, PAGE_SIZE, RelTag};

use super::*;
use crate::{
    change::{PageChange, PartBlock},
    redo::{apply, rmgr},
    version::PgMajor,
};

const REL: RelTag = RelTag { tablespace: 1663, database: 5, relation: 16384, fork: Fork::Main };
const LSN: Lsn = Lsn(0x1000);
const HOT_UPDATED: u16 = 0x4000;

fn part(info: u8, block_id: u8, blocks: &[u32], main: &[u8], data: &[u8]) -> RecordPart<'static> {
    RecordPart {
        rmid: rmgr::HEAP,
        info,
        xid: 700,
        block_id,
        will_init: info & INIT_PAGE != 0 && block_id == 0,
        hints_logged: false,
        blocks: (0..)
            .zip(blocks)
            .map(|(id, block)| PartBlock { id, block: *block, has_data: false })
            .collect(),
        data: data.to_vec().into(),
        main: main.to_vec().into(),
    }
}

fn redo_on(page: &mut [u8; PAGE_SIZE], part: RecordPart<'_>) -> Result<(), RedoReason> {
    let block = part.blocks[usize::from(part.block_id)].block;
    let key = Key::rel_block(REL, block);
    apply(PgMajor::V15, &key, LSN, &PageChange::Record(part), page).map_err(|error| error.reason)
}

/// A page with one tuple at offset 1 whose data is `body` (after one byte of padding).
fn page_with(body: &[u8]) -> Box<[u8; PAGE_SIZE]> {
    let mut page = Box::new([0; PAGE_SIZE]);
    let data = [&[1, 0, 2, 8, 24, 0][..], body].concat();
    redo_on(&mut page, part(0x80, 0, &[3], &[1, 0, 0], &data)).unwrap();
    page
}

#[test]
fn an_insert_into_a_new_page() {
    let mut bytes = page_with(b"payload");
    let page = Page::new(&mut bytes);
    assert_eq!((page.lsn(), page.max_offset()), (LSN, 1));
    let tuple = page.item(1).unwrap();
    // xmin 700; xmax and command id 0; ctid (3,1); infomask2 1; infomask 0x0802; hoff 24.
    let header = [188, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0, 1, 0, 1, 0, 2, 8, 24, 0];
    assert_eq!(tuple[..24], header);
    assert_eq!(&tuple[24..], b"payload");
}

#[test]
fn a_delete_marks_the_tuple_and_the_page() {
    let mut bytes = page_with(b"x");
    Page::new(&mut bytes).set_flags(flag::ALL_VISIBLE);
    let main = [9, 3, 0, 0, 1, 0, 0x10, 1]; // xmax 777, offset 1, KEYS_UPDATED, all-visible cleared
    redo_on(&mut bytes, part(0x10, 0, &[3], &main, &[])).unwrap();
    let mut page = Page::new(&mut bytes);
    assert_eq!((page.prune_xid(), page.flags()), (700, 0));
    let header = Header::of(&mut page, 1).unwrap();
    assert_eq!((header.infomask(), header.infomask2()), (2, 0x2001));
    assert_eq!(header.0[4..8], 777u32.to_le_bytes());
}

#[test]
fn a_super_delete_takes_the_tuple_back_and_a_moved_row_points_nowhere() {
    let mut bytes = page_with(b"x");
    redo_on(&mut bytes, part(0x10, 0, &[3], &[9, 3, 0, 0, 1, 0, 0, 1 << 3], &[])).unwrap();
    assert_eq!(Page::new(&mut bytes).item(1).unwrap()[..8], [0; 8], "neither xmin nor xmax");
    let mut bytes = page_with(b"x");
    redo_on(&mut bytes, part(0x10, 0, &[3], &[9, 3, 0, 0, 1, 0, 0, 1 << 4], &[])).unwrap();
    let page = Page::new(&mut bytes);
    assert_eq!(page.item(1).unwrap()[12..18], [0xff, 0xff, 0xff, 0xff, 0xfd, 0xff]);
}

/// Main data of an update of offset 1 to offset `new`.
fn update_main(flags: u8, new: u16) -> Vec<u8> {
    [&[9, 3, 0, 0, 1, 0, 0, flags, 0, 0, 0, 0][..], &new.to_le_bytes()].concat()
}

#[test]
fn a_hot_update_borrows_both_ends_of_the_old_tuple() {
    let mut bytes = page_with(b"front middle back");
    // Prefix 6, suffix 5; header; one byte of padding, then the bytes between.
    let data = [&[6, 0, 5, 0, 1, 0x80, 2, 8, 24, 0][..], b"center"].concat();
    redo_on(&mut bytes, part(0x40, 0, &[3], &update_main(3 << 5, 2), &data)).unwrap();
    let mut page = Page::new(&mut bytes);
    assert_eq!(&page.item(2).unwrap()[24..], b"front center back");
    let old = Header::of(&mut page, 1).unwrap();
    assert_eq!((old.infomask2() & HOT_UPDATED, old.ctid_offset()), (HOT_UPDATED, 2));
    assert_eq!(page.prune_xid(), 700);
}

#[test]
fn an_update_with_a_suffix_only() {
    let mut bytes = page_with(b"front back");
    let data = [&[5, 0, 1, 0x80, 2, 8, 24, 0][..], b"new"].concat();
    redo_on(&mut bytes, part(0x40, 0, &[3], &update_main(1 << 6, 2), &data)).unwrap();
    assert_eq!(&Page::new(&mut bytes).item(2).unwrap()[24..], b"new back");
}

#[test]
fn an_update_across_pages_changes_each_alone() {
    let (mut new, mut old) = (Box::new([0; PAGE_SIZE]), page_with(b"old"));
    let data = [&[1, 0, 2, 8, 24, 0][..], b"new"].concat();
    let main = update_main(0, 1);
    redo_on(&mut new, part(0xa0, 0, &[8, 3], &main, &data)).unwrap();
    redo_on(&mut old, part(0xa0, 1, &[8, 3], &main, &[])).unwrap();
    assert_eq!(&Page::new(&mut new).item(1).unwrap()[24..], b"new");
    let page = Page::new(&mut old);
    assert_eq!(page.item(1).unwrap()[12..18], [0, 0, 8, 0, 1, 0], "points to the new tuple");
    assert_eq!(page.max_offset(), 1);
}

#[test]
fn a_lock_keeps_the_chain_of_an_updated_row() {
    let mut bytes = page_with(b"front back");
    let data = [&[1, 0x80, 2, 8, 24, 0][..], b"new"].concat();
    redo_on(&mut bytes, part(0x40, 0, &[3], &update_main(0, 2), &data)).unwrap();
    // A multixact with an updater: not lock-only.
    redo_on(&mut bytes, part(0x60, 0, &[3], &[5, 0, 0, 0, 1, 0, 0x01, 0], &[])).unwrap();
    let mut page = Page::new(&mut bytes);
    assert_eq!(Header::of(&mut page, 1).unwrap().ctid_offset(), 2);
    // Only locked: the chain ends here.
    redo_on(&mut bytes, part(0x60, 0, &[3], &[5, 0, 0, 0, 1, 0, 0x03, 0], &[])).unwrap();
    let mut page = Page::new(&mut bytes);
    let header = Header::of(&mut page, 1).unwrap();
    assert_eq!((header.ctid_offset(), header.infomask2() & HOT_UPDATED), (1, 0));
}

#[test]
fn an_in_place_update_has_the_same_length() {
    let mut bytes = page_with(b"before");
    redo_on(&mut bytes, part(0x70, 0, &[3], &[1, 0], b"after!")).unwrap();
    assert_eq!(&Page::new(&mut bytes).item(1).unwrap()[24..], b"after!");
    assert!(redo_on(&mut bytes, part(0x70, 0, &[3], &[1, 0], b"longer!")).is_err());
}

#[test]
fn what_contradicts_itself_is_an_error() {
    let cases: [(u8, &[u8], &[u8]); 8] = [
        (0x00, &[3, 0, 0], &[1, 0, 2, 8, 24]),  // a gap
        (0x00, &[0, 0, 0], &[1, 0, 2, 8, 24]),  // offset 0
        (0x00, &[1, 0, 0], &[1, 0, 2, 8, 24]),  // taken
        (0x00, &[2, 0, 0], &[1, 0]),            // short
        (0x10, &[9, 3, 0, 0, 2, 0, 0, 0], &[]), // no such tuple
        (0x30, &[], &[]),                       // has no pages
        (0x40, &update_main(1 << 5, 2), &[255, 255, 1, 0, 2, 8, 24]), // prefix beyond the page
        (0x40, &update_main(1 << 6, 2), &[0, 32, 1, 0, 2, 8, 24]), // suffix beyond the page
    ];
    for (info, main, data) in cases {
        let mut bytes = page_with(b"x");
        let found = redo_on(&mut bytes, part(info, 0, &[3], main, data));
        let reason = found.expect_err("a contradiction");
        assert_ne!(reason, RedoReason::Unhandled, "{info:#x} {main:?}");
    }
}
