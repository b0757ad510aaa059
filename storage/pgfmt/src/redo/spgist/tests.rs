use std::borrow::Cow;

use proptest::prelude::*;
use treering_types::{Fork, Key, Lsn, PAGE_SIZE, RelTag};

use super::{
    index_tuple::{NO_BLOCK, Tid, tid},
    page::{Special, flag},
    tuple::{Grave, State},
    *,
};
use crate::{
    change::PartBlock,
    item::Placement,
    version::PgMajor,
    wal::record::{Block, Record},
};

const REL: RelTag = RelTag { tablespace: 1663, database: 5, relation: 16384, fork: Fork::Main };
const END: Lsn = Lsn(0x0100_0000_2000);
const XID: u32 = 700;
/// Block numbers of the records here, by block id.
const BLOCKS: [u32; 4] = [7, 8, 9, 10];

fn part(
    info: u8,
    block_id: u8,
    block_ids: &[u8],
    main: impl Into<Cow<'static, [u8]>>,
) -> RecordPart<'static> {
    let blocks = block_ids.iter().map(|id| PartBlock {
        id: *id,
        block: BLOCKS[usize::from(*id)],
        has_data: false,
    });
    RecordPart {
        rmid: crate::redo::rmgr::SPGIST,
        info,
        xid: XID,
        block_id,
        will_init: false,
        hints_logged: false,
        blocks: blocks.collect(),
        data: Cow::Borrowed(&[]),
        main: main.into(),
    }
}

fn run(part: &RecordPart<'_>, page: &mut Page<'_>) -> Result<(), RedoReason> {
    run_as(PgMajor::V15, part, page)
}

fn run_as(major: PgMajor, part: &RecordPart<'_>, page: &mut Page<'_>) -> Result<(), RedoReason> {
    redo(&Context { major, lsn: END, key: &Key::rel_block(REL, 7) }, part, page)
}

/// `main` as it is stored for one block.
fn cut(info: u8, block_id: u8, block_ids: &[u8], main: &[u8]) -> Vec<u8> {
    let block = |id: &u8| Block {
        id: *id,
        rel: REL,
        block: BLOCKS[usize::from(*id)],
        will_init: false,
        image: None,
        data: &[],
    };
    let record = Record {
        start: Lsn(END.0 - 64),
        end: END,
        prev: Lsn(0),
        xid: XID,
        rmid: crate::redo::rmgr::SPGIST,
        info,
        toplevel_xid: None,
        origin: None,
        main,
        blocks: block_ids.iter().map(block).collect(),
        raw: &Vec::new().into(),
    };
    main_for(&record, block_id).into_owned()
}

fn numbers(numbers: &[u16]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}

/// A live leaf tuple of `words` times 8 bytes (at least 2); `key` tells tuples apart.
fn leaf_tuple(key: u8, words: usize, next: u16) -> Vec<u8> {
    let mut tuple = vec![key; words.max(2) * 8];
    let size = tuple.len() as u32;
    tuple[..4].copy_from_slice(&(size << 2).to_le_bytes());
    tuple[4..6].copy_from_slice(&next.to_le_bytes());
    tuple
}

/// An inner tuple: a prefix of `prefix_words` times 8 bytes, and nodes of 8 or 16 bytes by turns.
fn inner_tuple(key: u8, prefix_words: usize, nodes: u16) -> Vec<u8> {
    let mut tuple = vec![0; 8];
    tuple.extend(vec![key; prefix_words * 8]);
    for node in 0..nodes {
        let size = 8 + (node % 2) * 8;
        tuple.extend(tid(NO_BLOCK, 0));
        tuple.extend((size | 0x8000).to_le_bytes());
        tuple.extend(vec![key; usize::from(size) - 8]);
    }
    let word = u32::from(nodes) << 3 | (prefix_words as u32 * 8) << 16;
    tuple[..4].copy_from_slice(&word.to_le_bytes());
    let size = tuple.len() as u16;
    tuple[4..6].copy_from_slice(&size.to_le_bytes());
    tuple
}

/// A page with these tuples; placeholders and redirects among them are counted.
fn fill(page: &mut Page<'_>, flags: u16, tuples: &[Vec<u8>]) {
    page::init(page, flags).unwrap();
    for tuple in tuples {
        let next = page.max_offset() + 1;
        if page.add_item(tuple, next, Placement::Insert).is_err() {
            break;
        }
        let state = tuple::state(tuple).unwrap();
        Special::edit(page, |special| {
            special.redirects += u16::from(state == State::Redirect);
            special.placeholders += u16::from(state == State::Placeholder);
        })
        .unwrap();
    }
}

fn items(page: &Page<'_>) -> Vec<Vec<u8>> {
    (1..=page.max_offset()).map(|offset| page.item(offset).unwrap().to_vec()).collect()
}

fn grave(state: State, target: Tid) -> Vec<u8> {
    Grave { xid: XID, target }.tuple(state).to_vec()
}

fn placeholder() -> Vec<u8> {
    grave(State::Placeholder, tid(0, 0))
}

/// `spgxlogState`.
fn origin(is_build: bool) -> Vec<u8> {
    [&XID.to_le_bytes()[..], &[u8::from(is_build), 0, 0, 0]].concat()
}

fn counts(page: &Page<'_>) -> (u16, u16) {
    let special = Special::read(page).unwrap();
    (special.redirects, special.placeholders)
}

/// `spgxlogAddLeaf` with a downlink in node 1 of tuple 2.
fn add_leaf(offset: u16, head: u16, tuple: &[u8]) -> Vec<u8> {
    [&[0, 0][..], &numbers(&[offset, head, 2, 1]), tuple].concat()
}

/// `spgxlogMoveLeafs` of tuples 5 and 3 to `inserted`.
fn move_leafs(new_page: bool, replace_dead: bool, inserted: &[u16]) -> Vec<u8> {
    let deleted: &[u16] = if replace_dead { &[5] } else { &[5, 3] };
    let mut main = numbers(&[deleted.len() as u16]);
    main.extend([u8::from(new_page), u8::from(replace_dead), 1, 0]);
    main.extend(numbers(&[2, 1, 0]));
    main.extend(origin(false));
    main.extend(numbers(deleted));
    main.extend(numbers(inserted));
    for offset in inserted {
        main.extend(leaf_tuple(*offset as u8, 2 + usize::from(*offset % 3), 0));
    }
    main
}

/// `spgxlogAddNode`: tuple 2 becomes tuple `new`; the downlink is in node 0 of tuple 1.
fn add_node(new: u16, parent_block: i8, tuple: &[u8]) -> Vec<u8> {
    let mut main = numbers(&[2, new]);
    main.extend([0, parent_block as u8]);
    main.extend(numbers(&[1, 0, 0]));
    main.extend(origin(false));
    main.extend(tuple);
    main
}

/// `spgxlogSplitTuple` of tuple 2.
fn split_tuple(postfix: u16, same_page: bool) -> Vec<u8> {
    let mut main = numbers(&[2, postfix]);
    main.extend([0, u8::from(same_page)]);
    main.extend(inner_tuple(0x51, 1, 1));
    main.extend(inner_tuple(0x52, 2, 3));
    main
}

/// `spgxlogPickSplit`: the downlink is in node 0 of tuple 1. Each insert is (offset, page selector).
fn pick_split(
    (new_source, new_destination, new_inner): (bool, bool, bool),
    inner_is_parent: bool,
    deleted: &[u16],
    inserted: &[(u16, u8)],
) -> Vec<u8> {
    let mut main = vec![0, 0];
    main.extend(numbers(&[deleted.len() as u16, inserted.len() as u16]));
    main.extend([u8::from(new_source), u8::from(new_destination)]);
    main.extend(numbers(&[2]));
    main.extend([u8::from(new_inner), 1, u8::from(inner_is_parent), 0]);
    main.extend(numbers(&[1, 0, 0]));
    main.extend(origin(false));
    main.extend(numbers(deleted));
    main.extend(inserted.iter().flat_map(|(offset, _)| offset.to_le_bytes()));
    main.extend(inserted.iter().map(|(_, selected)| selected));
    main.extend(inner_tuple(0x50, 1, 3));
    for (offset, selected) in inserted {
        main.extend(leaf_tuple(*offset as u8, 2 + usize::from(*selected), 0));
    }
    main
}

#[test]
fn a_leaf_joins_its_chain_and_takes_a_placeholder() {
    let mut bytes = [0; PAGE_SIZE];
    let mut page = Page(&mut bytes);
    let head = leaf_tuple(1, 3, 0x8000);
    fill(&mut page, flag::LEAF, &[head, placeholder(), grave(State::Dead, tid(0, 0))]);
    let new = leaf_tuple(2, 5, 0);
    run(&part(kind::ADD_LEAF, 0, &[0], add_leaf(2, 1, &new)), &mut page).unwrap();
    assert_eq!(items(&page)[..2], [leaf_tuple(1, 3, 0x8002), new.clone()]);
    assert_eq!((counts(&page), page.lsn()), ((0, 0), END));
    // The dead tuple may be replaced only where the record says so.
    let wrong = part(kind::ADD_LEAF, 0, &[0], add_leaf(3, 0, &new));
    assert!(run(&wrong, &mut page).is_err());
    run(&part(kind::ADD_LEAF, 0, &[0], add_leaf(3, 3, &new)), &mut page).unwrap();
    assert_eq!(items(&page)[2], new);
}

#[test]
fn a_downlink_is_found_behind_the_prefix() {
    let mut tuple = inner_tuple(9, 2, 4);
    tuple::set_downlink(&mut tuple, 2, tid(0x0001_0002, 3)).unwrap();
    let mut expected = inner_tuple(9, 2, 4);
    expected[8 + 16 + 8 + 16..][..6].copy_from_slice(&[1, 0, 2, 0, 3, 0]);
    assert_eq!(tuple, expected);
    assert!(tuple::set_downlink(&mut tuple, 4, tid(1, 1)).is_err());
}

#[test]
fn the_first_tuple_named_redirects_whatever_its_place() {
    let mut bytes = [0; PAGE_SIZE];
    let mut page = Page(&mut bytes);
    let old: Vec<_> = (1..=6).map(|key| leaf_tuple(key, 4, 0)).collect();
    fill(&mut page, flag::LEAF, &old);
    let main = move_leafs(false, false, &[3, 1, 9]);
    run(&part(kind::MOVE_LEAFS, 0, &[0, 1, 2], main), &mut page).unwrap();
    let mut expected = old;
    expected[2] = placeholder();
    expected[4] = vec![0x41, 0, 0, 0, 0, 0, 0, 0, 8, 0, 9, 0, 0xbc, 2, 0, 0];
    assert_eq!(items(&page), expected);
    assert_eq!(placeholder(), [0x43, 0, 0, 0, 0, 0, 255, 255, 255, 255, 0, 0, 0, 0, 0, 0]);
    assert_eq!(counts(&page), (1, 1));
}

#[test]
fn the_parent_of_a_grown_tuple_is_on_any_of_three_pages() {
    let grown = &inner_tuple(3, 0, 3);
    let old = [inner_tuple(1, 0, 1), inner_tuple(2, 0, 2)];
    let linked = |target| {
        let mut parent = old[0].clone();
        tuple::set_downlink(&mut parent, 0, target).unwrap();
        parent
    };
    let after = |block_id, parent_block| {
        let mut bytes = [0; PAGE_SIZE];
        let mut page = Page(&mut bytes);
        fill(&mut page, 0, &old);
        let main = add_node(3, parent_block, grown);
        let result = run(&part(kind::ADD_NODE, block_id, &[0, 1, 2], main), &mut page);
        result.map(|()| items(&page))
    };
    let redirect = grave(State::Redirect, tid(8, 3));
    let (linked, unlinked) = (linked(tid(8, 3)), old[0].clone());
    assert_eq!(after(0, 0).unwrap(), [linked.clone(), redirect.clone()]);
    assert_eq!(after(0, 1).unwrap(), [unlinked.clone(), redirect]);
    assert_eq!(after(1, 1).unwrap(), [linked.clone(), old[1].clone(), grown.clone()]);
    assert_eq!(after(1, 2).unwrap(), [unlinked, old[1].clone(), grown.clone()]);
    assert_eq!(after(2, 2).unwrap(), [linked, old[1].clone()]);
    assert!(after(2, 0).is_err());
}

#[test]
fn vacuum_moves_a_later_tuple_to_the_head() {
    let mut bytes = [0; PAGE_SIZE];
    let mut page = Page(&mut bytes);
    let old: Vec<_> = (1..=6).map(|key| leaf_tuple(key, 3, 0)).collect();
    fill(&mut page, flag::LEAF, &old);
    // 1 is an emptied chain, 2 goes, 5 takes the place of 3, whose next becomes 6.
    let mut main = numbers(&[1, 1, 1, 1]);
    main.extend(origin(false));
    main.extend(numbers(&[1, 2, 5, 3, 3, 6]));
    run(&part(kind::VACUUM_LEAF, 0, &[0], main), &mut page).unwrap();
    let expected = [
        grave(State::Dead, tid(0, 0)),
        placeholder(),
        leaf_tuple(5, 3, 6),
        old[3].clone(),
        placeholder(),
        old[5].clone(),
    ];
    assert_eq!(items(&page), expected);
    assert_eq!(counts(&page), (0, 2));
}

#[test]
fn vacuumed_redirects_keep_their_xid_and_placeholders_at_the_end_go() {
    let redirect = grave(State::Redirect, tid(8, 3));
    let mut expected = placeholder();
    expected[12..].copy_from_slice(&XID.to_le_bytes());
    for (major, horizon) in [(PgMajor::V15, &[0; 4][..]), (PgMajor::V16, &[0, 0, 0, 0, 1, 0])] {
        let mut bytes = [0; PAGE_SIZE];
        let mut page = Page(&mut bytes);
        let live = leaf_tuple(1, 3, 0);
        let old = [redirect.clone(), live.clone(), placeholder(), redirect.clone()];
        fill(&mut page, flag::LEAF, &old);
        let main = [&numbers(&[2, 3])[..], horizon, &numbers(&[4, 1])].concat();
        run_as(major, &part(kind::VACUUM_REDIRECT, 0, &[0], main), &mut page).unwrap();
        assert_eq!(items(&page), [expected.clone(), live]);
        assert_eq!(counts(&page), (0, 1));
    }
}

#[test]
fn a_root_that_is_a_leaf_just_loses_tuples() {
    let mut bytes = [0; PAGE_SIZE];
    let mut page = Page(&mut bytes);
    let old: Vec<_> = (1..=5).map(|key| leaf_tuple(key, 3, 0)).collect();
    fill(&mut page, flag::LEAF, &old);
    let main = [&numbers(&[3, 0])[..], &origin(false), &numbers(&[1, 2, 4])].concat();
    run(&part(kind::VACUUM_ROOT, 0, &[0], main), &mut page).unwrap();
    assert_eq!(items(&page), [old[2].clone(), old[4].clone()]);
}

#[test]
fn a_split_chain_goes_to_two_pages() {
    let main = pick_split((false, true, true), false, &[2, 1], &[(1, 1), (2, 0), (2, 1)]);
    let after = |block_id| {
        let mut bytes = [0; PAGE_SIZE];
        let mut page = Page(&mut bytes);
        let flags = if block_id == 0 { flag::LEAF } else { 0 };
        let old = [vec![inner_tuple(1, 0, 1)], vec![placeholder(); 2]].concat();
        fill(&mut page, flags, &old);
        let result = run(&part(kind::PICKSPLIT, block_id, &[0, 1, 2, 3], main.clone()), &mut page);
        (result, items(&page), Special::read(&page).unwrap())
    };
    // The redirect is where the record wants a tuple: the record is wrong.
    assert!(after(0).0.is_err());
    let (result, leaves, special) = after(1);
    assert_eq!(result, Ok(()));
    assert_eq!(leaves, [leaf_tuple(1, 3, 0), leaf_tuple(2, 3, 0)]);
    assert_eq!(special.flags, flag::LEAF | flag::NULLS);
    // A new inner page is empty, so tuple 2 would leave a gap.
    assert!(after(2).0.is_err());
    let (result, parents, _) = after(3);
    assert_eq!(result, Ok(()));
    assert_eq!(&parents[0][8..14], tid(9, 2));
}

#[test]
fn the_source_of_a_split_keeps_the_numbers() {
    let mut bytes = [0; PAGE_SIZE];
    let mut page = Page(&mut bytes);
    let old: Vec<_> = (1..=4).map(|key| leaf_tuple(key, 4, 0)).collect();
    fill(&mut page, flag::LEAF, &old);
    let inserted = [(1, 1), (1, 0), (4, 0), (2, 1)];
    let main = pick_split((false, false, false), false, &[3, 1, 4], &inserted);
    run(&part(kind::PICKSPLIT, 0, &[0, 1, 2, 3], main), &mut page).unwrap();
    let redirect = grave(State::Redirect, tid(9, 2));
    let expected = [leaf_tuple(1, 2, 0), old[1].clone(), redirect, leaf_tuple(4, 2, 0)];
    assert_eq!(items(&page), expected);
    assert_eq!(counts(&page), (1, 0));
}

#[test]
fn a_cut_keeps_what_its_page_needs() {
    let all = [0, 1, 2, 3];
    let main = add_leaf(2, 1, &leaf_tuple(2, 20, 0));
    assert_eq!(cut(kind::ADD_LEAF, 0, &all, &main), main);
    assert_eq!(cut(kind::ADD_LEAF, 1, &all, &main), main[..10]);

    let main = move_leafs(false, false, &[3, 1, 9]);
    let source = [&main[..3], &[1], &main[4..20], &numbers(&[5, 3, 9])].concat();
    assert_eq!(cut(kind::MOVE_LEAFS, 0, &all, &main), source);
    assert_eq!(cut(kind::MOVE_LEAFS, 1, &all, &main), main);
    let parent = [&[0, 0], &main[2..20], &numbers(&[9])].concat();
    assert_eq!(cut(kind::MOVE_LEAFS, 2, &all, &main), parent);

    let main = add_node(3, 0, &inner_tuple(1, 1, 9));
    assert_eq!(cut(kind::ADD_NODE, 0, &all, &main), main[..20]);
    assert_eq!(cut(kind::ADD_NODE, 0, &[0], &main), main);

    let (prefix, postfix) = (inner_tuple(0x51, 1, 1), inner_tuple(0x52, 2, 3));
    let main = split_tuple(4, false);
    assert_eq!(cut(kind::SPLIT_TUPLE, 0, &all, &main), main[..6 + prefix.len()]);
    let kept = [&main[..6], &[0, 0, 0, 0, 8, 0, 0, 0], &postfix].concat();
    assert_eq!(cut(kind::SPLIT_TUPLE, 1, &all, &main), kept);
    let main = split_tuple(4, true);
    assert_eq!(cut(kind::SPLIT_TUPLE, 0, &all, &main), main);

    let main = pick_split((false, true, false), false, &[3, 1], &[(1, 1), (4, 0), (2, 1)]);
    let header =
        |deletes, inserts| [&main[..2], &numbers(&[deletes, inserts]), &main[6..28]].concat();
    let source = [header(2, 1), numbers(&[3, 1, 4]), vec![0, 0, 0, 0, 0, 8, 0, 0, 0]].concat();
    let source = [source, leaf_tuple(4, 2, 0)].concat();
    assert_eq!(cut(kind::PICKSPLIT, 0, &all, &main), source);
    let inner = [header(0, 0), inner_tuple(0x50, 1, 3)].concat();
    assert_eq!(cut(kind::PICKSPLIT, 2, &all, &main), inner);
    assert_eq!(cut(kind::PICKSPLIT, 3, &all, &main), main[..28]);
}

#[test]
fn broken_main_data_is_kept_whole() {
    let main = pick_split((false, true, false), false, &[3, 1], &[(1, 1), (4, 0), (2, 1)]);
    let broken = &main[..main.len() - 1];
    for block_id in [0, 1] {
        assert_eq!(cut(kind::PICKSPLIT, block_id, &[0, 1, 2, 3], broken), broken);
    }
    assert_eq!(cut(kind::PICKSPLIT, 3, &[0, 1, 2, 3], &main[..20]), main[..20]);
    assert_eq!(cut(kind::MOVE_LEAFS, 0, &[0, 1, 2], &[9; 20]), [9; 20][..]);
}

#[test]
fn unknown_records_are_not_guessed() {
    let mut bytes = [0; PAGE_SIZE];
    for (info, block) in [(0, 0), (0x90, 0), (kind::ADD_LEAF, 2), (kind::VACUUM_LEAF, 1)] {
        let result = run(&part(info, block, &[0, 1], vec![]), &mut Page(&mut bytes));
        assert_eq!(result, Err(RedoReason::Unhandled));
    }
}

/// A tuple that a page may hold.
fn any_tuple() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        3 => (any::<u8>(), 2usize..9, 0u16..9).prop_map(|(key, words, next)| leaf_tuple(key, words, next)),
        2 => (any::<u8>(), 0usize..3, 1u16..9).prop_map(|(key, words, nodes)| inner_tuple(key, words, nodes)),
        1 => Just(grave(State::Redirect, tid(8, 3))),
        1 => Just(grave(State::Dead, tid(0, 0))),
        3 => Just(placeholder()),
    ]
}

/// A record as Postgres may write it, with offsets that are likely to be on a page.
fn any_record() -> impl Strategy<Value = (u8, Vec<u8>)> {
    let offset = || 1u16..12;
    let offsets = || prop::collection::vec(1u16..12, 1..6);
    let leaf = (any::<u8>(), 2usize..9).prop_map(|(key, words)| leaf_tuple(key, words, 0));
    let inner = (any::<u8>(), 0usize..3, 1u16..9);
    let inner = inner.prop_map(|(key, words, nodes)| inner_tuple(key, words, nodes));
    let moves = (any::<(bool, bool)>(), offsets()).prop_map(|((new, dead), mut inserted)| {
        inserted.resize(if dead { 1 } else { 3 }, 4);
        (kind::MOVE_LEAFS, move_leafs(new, dead, &inserted))
    });
    let inserts = prop::collection::vec((1u16..12, 0u8..2), 0..6);
    let pick = (any::<(bool, bool, bool)>(), any::<bool>(), offsets(), inserts);
    prop_oneof![
        (offset(), 0u16..12, leaf)
            .prop_map(|(at, head, leaf)| (kind::ADD_LEAF, add_leaf(at, head, &leaf))),
        moves,
        (offset(), -1i8..3, inner)
            .prop_map(|(new, parent, tuple)| (kind::ADD_NODE, add_node(new, parent, &tuple))),
        (offset(), any::<bool>()).prop_map(|(at, same)| (kind::SPLIT_TUPLE, split_tuple(at, same))),
        pick.prop_map(|(new, is_parent, deleted, inserted)| {
            (kind::PICKSPLIT, pick_split(new, is_parent, &deleted, &inserted))
        }),
    ]
}

fn plausible_bytes() -> impl Strategy<Value = Vec<u8>> {
    let small = prop::collection::vec(0u16..14, 0..40).prop_map(|list| numbers(&list));
    let cut_off = (any_record(), 0usize..200).prop_map(|((_, mut main), size)| {
        main.truncate(size);
        main
    });
    let odd = (any_record(), 0usize..60, any::<u8>()).prop_map(|((_, mut main), at, byte)| {
        if let Some(place) = main.get_mut(at) {
            *place = byte;
        }
        main
    });
    prop_oneof![small, cut_off, odd, prop::collection::vec(any::<u8>(), 0..200)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// What is stored of a record for one block does to its page what the whole record would do.
    #[test]
    fn a_cut_record_is_redone_as_the_whole(
        tuples in prop::collection::vec(any_tuple(), 0..12),
        (info, main) in any_record(),
        block_id in 0u8..4,
        block_ids in prop::sample::select(vec![&[0, 1, 2, 3][..], &[0, 1, 2], &[0, 2, 3], &[0]]),
    ) {
        let mut whole = [0; PAGE_SIZE];
        fill(&mut Page(&mut whole), flag::LEAF, &tuples);
        let mut stored = whole;
        let kept = cut(info, block_id, block_ids, &main);
        prop_assert!(kept.len() <= main.len());
        let expected = run(&part(info, block_id, block_ids, main), &mut Page(&mut whole));
        let result = run(&part(info, block_id, block_ids, kept), &mut Page(&mut stored));
        prop_assert_eq!(&result, &expected);
        prop_assert!(result.is_err() || whole == stored);
    }

    #[test]
    fn hostile_bytes_never_panic(
        tuples in prop::collection::vec(any_tuple(), 0..60),
        damage in prop::collection::vec((0..PAGE_SIZE, any::<u8>()), 0..12),
        header in prop::collection::vec((0usize..100, any::<u8>()), 0..3),
        (info, block_id) in ((0u8..16).prop_map(|kind| kind << 4), 0u8..4),
        main in plausible_bytes(),
    ) {
        let mut whole = [0; PAGE_SIZE];
        fill(&mut Page(&mut whole), flag::LEAF, &tuples);
        for (at, byte) in damage.into_iter().chain(header) {
            whole[at] = byte;
        }
        let mut stored = whole;
        let kept = cut(info, block_id, &[0, 1, 2, 3], &main);
        prop_assert!(kept.len() <= main.len());
        let all = [0, 1, 2, 3];
        let expected = run_as(PgMajor::V18, &part(info, block_id, &all, main), &mut Page(&mut whole));
        let result = run_as(PgMajor::V18, &part(info, block_id, &all, kept), &mut Page(&mut stored));
        prop_assert_eq!(&result, &expected);
        prop_assert!(result.is_err() || whole == stored);
    }
}
