use smallvec::smallvec;
use treering_types::{Fork, Key, Lsn, PAGE_SIZE, RelTag};

use super::*;
use crate::{
    change::{PageChange, PartBlock},
    item::Placement,
    page::{LinePointer, PointerState},
    redo::{apply, rmgr},
    version::PgMajor,
};

const REL: RelTag = RelTag { tablespace: 1663, database: 5, relation: 16384, fork: Fork::Main };
const LSN: Lsn = Lsn(0x2000);

fn part(info: u8, block_id: u8, main: &[u8], data: &[u8]) -> RecordPart<'static> {
    let block = |id, block| PartBlock { id, block, has_data: false };
    RecordPart {
        rmid: rmgr::HEAP2,
        info,
        xid: 700,
        block_id,
        will_init: info == 0xd0,
        hints_logged: false,
        blocks: smallvec![block(0, 0), block(1, 6)],
        data: data.to_vec().into(),
        main: main.to_vec().into(),
    }
}

fn redo_as(
    major: PgMajor,
    page: &mut [u8; PAGE_SIZE],
    part: RecordPart<'_>,
) -> Result<(), RedoReason> {
    let key = Key::rel_block(REL, 0);
    apply(major, &key, LSN, &PageChange::Record(part), page).map_err(|error| error.reason)
}

/// Five tuples of 32 bytes, each filled with its offset number.
fn five() -> Box<[u8; PAGE_SIZE]> {
    let mut bytes = Box::new([0; PAGE_SIZE]);
    let mut page = Page::new(&mut bytes);
    page.init(0);
    for offset in 1..=5 {
        page.add_item(&[offset as u8; 32], offset, Placement::Heap).unwrap();
    }
    bytes
}

fn numbers(list: &[u16]) -> Vec<u8> {
    list.iter().flat_map(|number| number.to_le_bytes()).collect()
}

fn states(bytes: &mut [u8; PAGE_SIZE]) -> Vec<PointerState> {
    let page = Page::new(bytes);
    (1..=page.max_offset()).map(|offset| page.line_pointer(offset).unwrap().state()).collect()
}

use PointerState::{Dead, Normal, Redirect, Unused};

/// What pruning 1 -> 2 redirected, 3 dead, 4 unused makes of [`five`], whatever the format.
fn check_pruned(bytes: &mut [u8; PAGE_SIZE]) {
    assert_eq!(states(bytes), [Redirect, Normal, Dead, Unused, Normal]);
    let page = Page::new(bytes);
    assert_eq!(page.line_pointer(1).unwrap().offset(), 2);
    assert_eq!((page.item(2).unwrap(), page.item(5).unwrap()), (&[2; 32][..], &[5; 32][..]));
    assert_eq!((page.upper(), page.lsn()), (8192 - 64, LSN));
}

#[test]
fn pruning_in_every_format() {
    for major in [PgMajor::V15, PgMajor::V16] {
        let mut bytes = five();
        // horizon, one redirection, one dead, and from 16 on the catalog flag
        let main = [&[9, 0, 0, 0][..], &numbers(&[1, 1]), &[1]].concat();
        let end = if major == PgMajor::V15 { 8 } else { 9 };
        redo_as(major, &mut bytes, part(0x10, 0, &main[..end], &numbers(&[1, 2, 3, 4]))).unwrap();
        check_pruned(&mut bytes);
    }
    for major in [PgMajor::V17, PgMajor::V18] {
        let mut bytes = five();
        // reason; cleanup lock, horizon, redirections, dead, unused; horizon
        let main = [0, 0x04 | 0x08 | 0x20 | 0x40 | 0x80, 9, 0, 0, 0];
        let data = numbers(&[1, 1, 2, 1, 3, 1, 4]);
        redo_as(major, &mut bytes, part(0x20, 0, &main, &data)).unwrap();
        check_pruned(&mut bytes);
    }
}

#[test]
fn vacuum_moves_no_tuple_in_every_format() {
    for major in PgMajor::ALL {
        let mut bytes = five();
        let mut page = Page::new(&mut bytes);
        for offset in [2, 5] {
            page.set_line_pointer(offset, LinePointer::new(0, Dead, 0)).unwrap();
        }
        let (main, data) = match major {
            PgMajor::V15 | PgMajor::V16 => (vec![2, 0], numbers(&[2, 5])),
            PgMajor::V17 | PgMajor::V18 => (vec![2, 0x80], numbers(&[2, 2, 5])),
        };
        let info = if major < PgMajor::V17 { 0x20 } else { 0x30 };
        redo_as(major, &mut bytes, part(info, 0, &main, &data)).unwrap();
        assert_eq!(states(&mut bytes), [Normal, Unused, Normal, Normal]);
        assert_eq!(Page::new(&mut bytes).upper(), 8192 - 5 * 32);
    }
}

/// Freezing offsets 1 and 4: xmax 0, infomask2 0x0102, infomask 0x0B03.
fn check_frozen(bytes: &mut [u8; PAGE_SIZE]) {
    let page = Page::new(bytes);
    for offset in [1, 4] {
        let tuple = page.item(offset).unwrap();
        assert_eq!(tuple[4..8], [0; 4]);
        assert_eq!(tuple[8..12], [2, 0, 0, 0], "xvac frozen");
        assert_eq!(tuple[18..22], [2, 1, 3, 0x0B]);
    }
    assert_eq!(page.item(2).unwrap(), [2; 32]);
}

#[test]
fn freezing_in_every_format() {
    let plan = [0, 0, 0, 0, 2, 1, 3, 0x0B, 0x02, 0, 2, 0]; // ..., flags, padding, two tuples
    let tuple = |offset: u8| [0, 0, 0, 0, offset, 0, 2, 1, 3, 0x0B, 0x02, 0];
    let offsets = numbers(&[1, 4]);
    for (major, info, main, data) in [
        (PgMajor::V15, 0x30, &[9, 0, 0, 0, 2, 0][..], [tuple(1), tuple(4)].concat()),
        (PgMajor::V16, 0x30, &[9, 0, 0, 0, 1, 0, 0], [&plan[..], &offsets].concat()),
        (PgMajor::V17, 0x20, &[1, 0x18, 9, 0, 0, 0], [&[1, 0, 0, 0], &plan[..], &offsets].concat()),
        (PgMajor::V18, 0x10, &[1, 0x18, 9, 0, 0, 0], [&[1, 0, 0, 0], &plan[..], &offsets].concat()),
    ] {
        let mut bytes = five();
        redo_as(major, &mut bytes, part(info, 0, main, &data)).unwrap();
        check_frozen(&mut bytes);
    }
}

#[test]
fn pruning_and_freezing_in_one_record() {
    let plan = [0, 0, 0, 0, 2, 1, 3, 0x0B, 0x02, 0, 1, 0];
    let data = [&[1, 0, 0, 0], &plan[..], &numbers(&[1, 4, 2])].concat(); // unused: 4; frozen: 2
    let mut bytes = five();
    redo_as(PgMajor::V17, &mut bytes, part(0x20, 0, &[1, 0x94], &data)).unwrap();
    assert_eq!(states(&mut bytes), [Normal, Normal, Normal, Unused, Normal]);
    let page = Page::new(&mut bytes);
    assert_eq!(page.item(2).unwrap()[18..22], [2, 1, 3, 0x0B]);
    assert_eq!(page.upper(), 8192 - 4 * 32);
}

#[test]
fn visible_sets_the_map_and_the_flag() {
    let main = [9, 0, 0, 0, 3];
    let mut map = Box::new([0; PAGE_SIZE]);
    redo_as(PgMajor::V15, &mut map, part(0x40, 0, &main, &[])).unwrap();
    let page = Page::new(&mut map);
    assert_eq!((page.u8_at(24 + 1), page.lsn()), (Ok(0b0011_0000), LSN), "heap block 6");
    for hints_logged in [false, true] {
        let mut heap = five();
        let part = RecordPart { hints_logged, ..part(0x40, 1, &main, &[]) };
        redo_as(PgMajor::V15, &mut heap, part).unwrap();
        let page = Page::new(&mut heap);
        assert_eq!(page.flags(), flag::ALL_VISIBLE);
        assert_eq!(page.lsn(), if hints_logged { LSN } else { Lsn(0) });
    }
}

#[test]
fn multi_insert_with_and_without_init() {
    let tuple =
        |byte: u8, size: u8| [&[size, 0, 1, 0, 2, 8, 24][..], &vec![byte; size as usize]].concat();
    // The second tuple begins at an even position: 7 + 4 bytes, then one of padding.
    let data = [&tuple(7, 4)[..], &[0], &tuple(8, 5)].concat();
    let mut bytes = Box::new([0; PAGE_SIZE]);
    redo_as(PgMajor::V15, &mut bytes, part(0xd0, 0, &[1 << 5, 0, 2, 0], &data)).unwrap();
    let page = Page::new(&mut bytes);
    assert_eq!((page.item(1).unwrap().len(), &page.item(2).unwrap()[23..]), (27, &[8; 5][..]));
    assert_eq!(page.flags(), flag::ALL_VISIBLE, "frozen while loaded");
    let mut bytes = five();
    Page::new(&mut bytes).set_line_pointer(3, LinePointer::UNUSED).unwrap();
    let main = [&[1, 0, 2, 0][..], &numbers(&[3, 6])].concat();
    redo_as(PgMajor::V15, &mut bytes, part(0x50, 0, &main, &data)).unwrap();
    let page = Page::new(&mut bytes);
    assert_eq!((page.item(3).unwrap().len(), page.item(6).unwrap().len()), (27, 28));
    let long = [&data[..], &[0]].concat();
    assert!(redo_as(PgMajor::V15, &mut five(), part(0x50, 0, &main, &long)).is_err());
}
