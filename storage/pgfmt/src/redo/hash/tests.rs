use proptest::prelude::*;
use treering_types::{Fork, Key, Lsn, PAGE_SIZE, RelTag};

use super::{
    index_tuple::{self, NO_BLOCK},
    page::{Special, flag},
    *,
};
use crate::{change::PartBlock, item::Placement, version::PgMajor};

const REL: RelTag = RelTag { tablespace: 1663, database: 5, relation: 16384, fork: Fork::Main };
const END: Lsn = Lsn(0x0100_0000_2000);
const BEFORE: Lsn = Lsn(0x0100_0000_1000);
/// Numbers of the blocks that [`part`] references, by id.
const BLOCKS: [u32; 7] = [7, 8, 9, 10, 0, 12, 13];

fn part(info: u8, block_id: u8, data: Vec<u8>, main: Vec<u8>) -> RecordPart<'static> {
    let blocks = BLOCKS.into_iter().enumerate();
    let blocks = blocks.map(|(id, block)| PartBlock { id: id as u8, block, has_data: true });
    RecordPart {
        rmid: crate::redo::rmgr::HASH,
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

fn tuple(key: u8) -> Vec<u8> {
    let mut tuple = vec![key; 16];
    index_tuple::set_info(&mut tuple, 16).unwrap();
    tuple
}

fn items(page: &Page<'_>) -> Vec<u8> {
    (1..=page.max_offset()).map(|offset| page.item(offset).unwrap()[0]).collect()
}

fn numbers(numbers: &[u16]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

const BUCKET: Special = Special { prev: 3, next: 40, bucket: 5, flags: 2 | flag::HAS_DEAD_TUPLES };

/// A bucket page with the tuples of these keys.
fn bucket(page: &mut Page<'_>, keys: &[u8]) {
    page::init(page, BUCKET).unwrap();
    for key in keys {
        let next = page.max_offset() + 1;
        page.add_item(&tuple(*key), next, Placement::Insert).unwrap();
    }
    page.set_lsn(BEFORE);
}

/// A meta page for `tuples`, before its first bitmap page.
fn meta(page: &mut Page<'_>, tuples: f64) {
    let mut main = tuples.to_le_bytes().to_vec();
    main.extend(words(&[400]));
    main.extend(numbers(&[307]));
    run(&part(kind::INIT_META_PAGE, 0, vec![], main), page).unwrap();
}

fn word(page: &Page<'_>, at: usize) -> u32 {
    page.u32_at(at).unwrap()
}

fn tuples(page: &Page<'_>) -> f64 {
    f64::from_bits(page.u64_at(32).unwrap())
}

/// Values computed by `_hash_spareindex` and `_hash_get_totalbuckets`.
#[test]
fn buckets_come_in_phases() {
    let phases = [(1, 0), (2, 1), (3, 2), (512, 9), (513, 10), (640, 10), (641, 11), (1024, 13)];
    for (buckets, phase) in phases.into_iter().chain([(1025, 14), (0x4000_0000, 93)]) {
        assert_eq!(meta::phase_of(buckets), phase, "{buckets}");
        assert!(meta::buckets_up_to(phase) >= buckets);
        assert!(phase == 0 || meta::buckets_up_to(phase - 1) < buckets);
    }
    assert_eq!(meta::buckets_up_to(10), 640);
    assert_eq!(meta::buckets_up_to(14), 1280);
}

#[test]
fn the_meta_page_is_computed_from_the_expected_tuples() {
    let mut bytes = [0; PAGE_SIZE];
    let mut page = Page(&mut bytes);
    for (expected, max_bucket, high_mask, phase) in [
        (f64::NAN, 1, 3, 1),
        (0.0, 1, 3, 1),
        (307.0 * 3.9, 3, 7, 2),
        (307.0 * 513.0, 639, 1023, 10),
        (1e300, 0x3fff_ffff, 0x7fff_ffff, 93),
    ] {
        meta(&mut page, expected);
        let found = [48, 52, 56, 60].map(|at| word(&page, at));
        assert_eq!(found, [max_bucket, high_mask, high_mask >> 1, phase], "{expected}");
        assert_eq!(word(&page, 76 + 4 * phase as usize), 1);
        assert_eq!((tuples(&page), word(&page, 68), word(&page, 72)), (0.0, 0, 400));
    }
    let sizes = [40, 42, 44, 46].map(|at| page.u16_at(at).unwrap());
    assert_eq!(sizes, [307, 8152, 4096, 15]);
    assert_eq!((page.lower(), page.upper(), page.lsn()), (4568, 8176, END));
    let special = Special { flags: flag::META, ..Special::default() };
    assert_eq!(Special::read(&page), Ok(special));
}

#[test]
fn an_overflow_page_joins_its_chain() {
    let mut bytes = [0; PAGE_SIZE];
    let mut page = Page(&mut bytes);
    let grown = [4096u16.to_le_bytes().to_vec(), vec![0]].concat();
    let record = |block, data| part(kind::ADD_OVFL_PAGE, block, data, grown.clone());

    run(&record(0, words(&[5])), &mut page).unwrap();
    let special = Special { prev: BLOCKS[1], next: NO_BLOCK, bucket: 5, flags: flag::OVERFLOW };
    assert_eq!(Special::read(&page), Ok(special));

    bucket(&mut page, &[]);
    run(&record(1, vec![]), &mut page).unwrap();
    assert_eq!(Special::read(&page), Ok(Special { next: BLOCKS[0], ..BUCKET }));

    run(&record(3, vec![]), &mut page).unwrap();
    assert_eq!((page.lower(), word(&page, 24), word(&page, 4116)), (4120, !0, !0));
    run(&part(kind::SQUEEZE_PAGE, 5, words(&[33]), vec![]), &mut page).unwrap();
    assert_eq!((word(&page, 24), word(&page, 28)), (!0, !2));
    run(&record(2, words(&[33])), &mut page).unwrap();
    assert_eq!(word(&page, 28), !0);
    let outside = record(2, words(&[8152 * 8]));
    assert!(run(&outside, &mut page).is_err());
}

#[test]
fn the_meta_page_follows_the_growth() {
    let mut bytes = [0; PAGE_SIZE];
    let mut page = Page(&mut bytes);
    meta(&mut page, 0.0);
    run(&part(kind::INIT_BITMAP_PAGE, 1, vec![], vec![]), &mut page).unwrap();
    assert_eq!((word(&page, 68), word(&page, 468)), (1, 3));
    let overflow = |freed, blocks: &[u8]| {
        let main = [4096u16.to_le_bytes().to_vec(), vec![freed]].concat();
        let mut part = part(kind::ADD_OVFL_PAGE, 4, words(&[6]), main);
        part.blocks.retain(|block| blocks.contains(&block.id));
        part
    };
    // A freed page was taken; the index grew; it grew by a bitmap page too.
    for (record, spares, maps) in [
        (overflow(1, &[0, 1, 2, 4]), 1, 1),
        (overflow(0, &[0, 1, 4]), 2, 1),
        (overflow(0, &[0, 1, 3, 4]), 4, 2),
    ] {
        run(&record, &mut page).unwrap();
        assert_eq!((word(&page, 64), word(&page, 80), word(&page, 68)), (6, spares, maps));
    }
    assert_eq!(word(&page, 472), BLOCKS[3]);

    let mut main = words(&[2]);
    main.extend(numbers(&[0, 0]));
    main.push(3);
    let record = part(kind::SPLIT_ALLOCATE_PAGE, 2, words(&[3, 7, 2, 4]), main);
    run(&record, &mut page).unwrap();
    assert_eq!([48, 56, 52, 60, 84].map(|at| word(&page, at)), [2, 3, 7, 2, 4]);
}

#[test]
fn a_split_sets_flags_and_the_last_bucket() {
    let mut bytes = [0; PAGE_SIZE];
    let mut page = Page(&mut bytes);
    bucket(&mut page, &[1, 2]);
    let mut main = words(&[6]);
    main.extend(numbers(&[0x22, 0x12]));
    main.push(0);
    run(&part(kind::SPLIT_ALLOCATE_PAGE, 0, vec![], main.clone()), &mut page).unwrap();
    assert_eq!(Special::read(&page), Ok(Special { prev: 6, flags: 0x22, ..BUCKET }));
    assert_eq!(items(&page), [1, 2]);
    let complete = |block| part(kind::SPLIT_COMPLETE, block, vec![], numbers(&[0x42, 0x02]));
    run(&complete(0), &mut page).unwrap();
    assert_eq!(Special::read(&page), Ok(Special { prev: 6, flags: 0x42, ..BUCKET }));
    run(&part(kind::SPLIT_CLEANUP, 0, vec![], vec![]), &mut page).unwrap();
    assert_eq!(Special::read(&page), Ok(Special { prev: 6, flags: 0x02, ..BUCKET }));

    run(&part(kind::SPLIT_ALLOCATE_PAGE, 1, vec![], main), &mut page).unwrap();
    let special = Special { prev: 6, next: NO_BLOCK, bucket: 6, flags: 0x12 };
    assert_eq!((Special::read(&page), page.max_offset()), (Ok(special), 0));
    run(&complete(1), &mut page).unwrap();
    assert_eq!(Special::read(&page), Ok(Special { flags: 0x02, ..special }));
}

#[test]
fn moved_tuples_go_to_their_offsets_one_after_another() {
    let mut bytes = [0; PAGE_SIZE];
    let mut page = Page(&mut bytes);
    bucket(&mut page, &[10, 20, 30]);
    let mut data = numbers(&[1, 5]);
    data.extend([tuple(5), tuple(40)].concat());
    let main = [numbers(&[2]), vec![1]].concat();
    run(&part(kind::MOVE_PAGE_CONTENTS, 1, data.clone(), main.clone()), &mut page).unwrap();
    assert_eq!(items(&page), [5, 10, 20, 30, 40]);
    run(&part(kind::MOVE_PAGE_CONTENTS, 2, numbers(&[1, 3, 4]), main.clone()), &mut page).unwrap();
    assert_eq!(items(&page), [10, 40]);
    data.extend(tuple(50));
    assert!(run(&part(kind::MOVE_PAGE_CONTENTS, 1, data, main), &mut page).is_err());
}

fn squeeze(tuples: u16, write_page_is_previous: u8) -> Vec<u8> {
    [words(&[60, 61]), numbers(&[tuples]), vec![1, write_page_is_previous]].concat()
}

/// 17 and later do not touch a write page that gets neither tuples nor a link; 15 and 16 move its LSN.
#[test]
fn a_squeeze_may_leave_the_write_page_alone() {
    let mut bytes = [0; PAGE_SIZE];
    for (major, main, lsn, next) in [
        (PgMajor::V15, squeeze(0, 0), END, BUCKET.next),
        (PgMajor::V16, squeeze(0, 0), END, BUCKET.next),
        (PgMajor::V17, squeeze(0, 0), BEFORE, BUCKET.next),
        (PgMajor::V18, squeeze(0, 0), BEFORE, BUCKET.next),
        (PgMajor::V17, squeeze(0, 1), END, 61),
    ] {
        let mut page = Page(&mut bytes);
        bucket(&mut page, &[1]);
        run_as(major, &part(kind::SQUEEZE_PAGE, 1, vec![], main), &mut page).unwrap();
        assert_eq!((page.lsn(), Special::read(&page).unwrap().next), (lsn, next), "{major}");
    }
    let mut page = Page(&mut bytes);
    let data = [numbers(&[2]), tuple(9)].concat();
    run_as(PgMajor::V17, &part(kind::SQUEEZE_PAGE, 1, data, squeeze(1, 0)), &mut page).unwrap();
    assert_eq!((page.lsn(), items(&page)), (END, vec![1, 9]));
}

#[test]
fn a_squeezed_page_leaves_its_chain() {
    let mut bytes = [0; PAGE_SIZE];
    let mut page = Page(&mut bytes);
    for (block, expected) in [
        (2, Special::default()),
        (3, Special { next: 61, ..BUCKET }),
        (4, Special { prev: 60, ..BUCKET }),
    ] {
        bucket(&mut page, &[1]);
        run(&part(kind::SQUEEZE_PAGE, block, vec![], squeeze(0, 0)), &mut page).unwrap();
        assert_eq!((Special::read(&page), page.lsn()), (Ok(expected), END));
    }
}

#[test]
fn vacuuming_one_page_has_two_layouts() {
    let mut bytes = [0; PAGE_SIZE];
    let old = [words(&[700, 3]), numbers(&[1, 3, 4])].concat();
    let new = [words(&[700]), numbers(&[3]), vec![1, 0], numbers(&[1, 3, 4])].concat();
    for (major, main) in [(PgMajor::V15, old), (PgMajor::V16, new)] {
        let mut page = Page(&mut bytes);
        bucket(&mut page, &[1, 2, 3, 4, 5]);
        let record = |block| part(kind::VACUUM_ONE_PAGE, block, vec![], main.clone());
        run_as(major, &record(0), &mut page).unwrap();
        assert_eq!((items(&page), Special::read(&page).unwrap().flags), (vec![2, 5], 2));
        meta(&mut page, 0.0);
        let counted = 10.5f64.to_le_bytes().to_vec();
        run(&part(kind::UPDATE_META_PAGE, 0, vec![], counted), &mut page).unwrap();
        run_as(major, &record(1), &mut page).unwrap();
        run(&part(kind::INSERT, 1, vec![], vec![]), &mut page).unwrap();
        assert_eq!(tuples(&page), 8.5);
    }
}

#[test]
fn deletion_clears_the_dead_hint_when_told() {
    let mut bytes = [0; PAGE_SIZE];
    let mut page = Page(&mut bytes);
    bucket(&mut page, &[1, 2, 3]);
    run(&part(kind::DELETE, 1, numbers(&[2]), vec![0, 1]), &mut page).unwrap();
    assert_eq!((items(&page), Special::read(&page)), (vec![1, 3], Ok(BUCKET)));
    run(&part(kind::DELETE, 1, numbers(&[1]), vec![1, 1]), &mut page).unwrap();
    assert_eq!((items(&page), Special::read(&page).unwrap().flags), (vec![3], 2));
    run(&part(kind::INSERT, 0, tuple(1), numbers(&[1])), &mut page).unwrap();
    assert_eq!(items(&page), [1, 3]);
}

#[test]
fn unknown_records_are_not_guessed() {
    let mut bytes = [0; PAGE_SIZE];
    for (info, block) in [(0xd0, 0), (kind::DELETE, 0), (kind::SQUEEZE_PAGE, 7)] {
        let result = run(&part(info, block, vec![], vec![]), &mut Page(&mut bytes));
        assert_eq!(result, Err(RedoReason::Unhandled));
    }
}

prop_compose! {
    /// A page that is mostly sound, with some bytes overwritten.
    fn damaged_page()(
        is_meta in any::<bool>(),
        keys in prop::collection::vec(any::<u8>(), 0..60),
        damage in prop::collection::vec((0..PAGE_SIZE, any::<u8>()), 0..12),
        header in prop::collection::vec((0usize..120, any::<u8>()), 0..3),
    ) -> Box<[u8; PAGE_SIZE]> {
        let mut bytes = Box::new([0; PAGE_SIZE]);
        let mut page = Page(&mut bytes);
        match is_meta {
            true => meta(&mut page, 1e6),
            false => bucket(&mut page, &keys),
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
    let tuples = prop::collection::vec((1u16..9, any::<u8>()), 0..6).prop_map(|list| {
        let (offsets, keys): (Vec<_>, Vec<_>) = list.into_iter().unzip();
        [numbers(&offsets), keys.into_iter().flat_map(tuple).collect()].concat()
    });
    prop_oneof![small, tuples, prop::collection::vec(any::<u8>(), 0..300)]
}

proptest! {
    #[test]
    fn hostile_bytes_never_panic(
        mut bytes in damaged_page(),
        info in any::<u8>(),
        block_id in 0u8..8,
        major in 0..PgMajor::ALL.len(),
        data in plausible_bytes(),
        main in plausible_bytes(),
    ) {
        let major = PgMajor::ALL[major];
        let _ = run_as(major, &part(info, block_id, data, main), &mut Page(&mut bytes));
    }
}
