use proptest::prelude::*;

use super::*;
use crate::page::flag;

fn with_items(special: usize, items: &[&[u8]]) -> Box<[u8; PAGE_SIZE]> {
    let mut bytes = Box::new([0; PAGE_SIZE]);
    let mut page = Page::new(&mut bytes);
    page.init(special);
    for item in items {
        let offset = page.max_offset() + 1;
        page.add_item(item, offset, Placement::Insert).unwrap();
    }
    bytes
}

fn items(page: &Page<'_>) -> Vec<Vec<u8>> {
    (1..=page.max_offset()).map(|offset| page.item(offset).unwrap().to_vec()).collect()
}

#[test]
fn inserting_shifts_later_line_pointers() {
    let mut bytes = with_items(16, &[b"one", b"three"]);
    let mut page = Page::new(&mut bytes);
    assert_eq!(page.add_item(b"two", 2, Placement::Insert), Ok(2));
    assert_eq!(items(&page), [&b"one"[..], b"two", b"three"]);
    assert_eq!((page.lower(), page.upper()), (24 + 12, 8192 - 16 - 24));
    assert!(page.add_item(b"gap", 5, Placement::Insert).is_err());
    assert!(page.add_item(&[0; 8192], 4, Placement::Insert).is_err());
}

#[test]
fn a_taken_line_pointer_is_not_reused_and_a_free_one_is() {
    let mut bytes = with_items(0, &[b"one", b"two"]);
    let mut page = Page::new(&mut bytes);
    assert!(page.add_item(b"x", 1, Placement::Heap).is_err());
    page.set_line_pointer(1, LinePointer::UNUSED).unwrap();
    assert_eq!(page.add_item(b"end", 0, Placement::Heap), Ok(3), "the hint says nothing is free");
    page.set_flags(flag::HAS_FREE_LINES);
    assert_eq!(page.add_item(b"x", 0, Placement::Heap), Ok(1));
    assert_eq!(page.add_item(b"y", 0, Placement::Heap), Ok(4));
    assert_eq!(page.flags() & flag::HAS_FREE_LINES, 0, "a wrong hint is reset");
}

#[test]
fn a_heap_page_holds_291_tuples() {
    let mut bytes = with_items(0, &[]);
    let mut page = Page::new(&mut bytes);
    for offset in 1..=291 {
        page.add_item(b"", offset, Placement::Heap).unwrap();
    }
    assert!(page.add_item(b"", 292, Placement::Heap).is_err());
    assert!(page.add_item(b"", 292, Placement::Reuse).is_ok());
}

#[test]
fn deleting_without_compaction_keeps_numbers() {
    let mut bytes = with_items(8, &[b"a", b"bb", b"ccc"]);
    let mut page = Page::new(&mut bytes);
    page.index_tuple_delete_no_compact(2).unwrap();
    assert_eq!(page.line_pointer(2), Ok(LinePointer::UNUSED));
    assert_eq!((page.item(1), page.item(3)), (Ok(&b"a"[..]), Ok(&b"ccc"[..])));
    page.index_tuple_delete_no_compact(3).unwrap();
    assert_eq!((page.max_offset(), page.upper()), (2, 8192 - 8 - 8));
}

#[test]
fn truncation_leaves_the_first_line_pointer() {
    let mut bytes = with_items(0, &[b"a", b"b", b"c", b"d"]);
    let mut page = Page::new(&mut bytes);
    for offset in [1, 3, 4] {
        page.set_line_pointer(offset, LinePointer::UNUSED).unwrap();
    }
    page.truncate_line_pointer_array().unwrap();
    assert_eq!((page.max_offset(), page.flags()), (2, flag::HAS_FREE_LINES));
    page.set_line_pointer(2, LinePointer::UNUSED).unwrap();
    page.truncate_line_pointer_array().unwrap();
    assert_eq!((page.max_offset(), page.flags()), (1, flag::HAS_FREE_LINES));
}

#[test]
fn repair_closes_gaps_and_drops_free_ends() {
    let mut bytes = with_items(0, &[b"aaaaaaaa", b"b", b"cccccccc", b"d"]);
    let mut page = Page::new(&mut bytes);
    for offset in [2, 4] {
        page.set_line_pointer(offset, LinePointer::UNUSED).unwrap();
    }
    page.repair_fragmentation().unwrap();
    assert_eq!((page.max_offset(), page.flags()), (3, flag::HAS_FREE_LINES));
    assert_eq!((page.item(1), page.item(3)), (Ok(&b"aaaaaaaa"[..]), Ok(&b"cccccccc"[..])));
    assert_eq!(page.upper(), 8192 - 16);
    for offset in [1, 3] {
        page.set_line_pointer(offset, LinePointer::UNUSED).unwrap();
    }
    page.repair_fragmentation().unwrap();
    assert_eq!((page.max_offset(), page.upper(), page.flags()), (0, 8192, 0));
}

/// One change to an index page and to the list of its items.
#[derive(Clone, Debug)]
enum Step {
    Add(usize, Vec<u8>),
    Delete(usize),
    MultiDelete(Vec<usize>),
    Overwrite(usize, Vec<u8>),
    Repair,
}

fn step() -> impl Strategy<Value = Step> {
    let item = || prop::collection::vec(any::<u8>(), 1..200);
    prop_oneof![
        4 => (any::<usize>(), item()).prop_map(|(at, item)| Step::Add(at, item)),
        1 => any::<usize>().prop_map(Step::Delete),
        1 => prop::collection::vec(any::<usize>(), 0..12).prop_map(Step::MultiDelete),
        2 => (any::<usize>(), item()).prop_map(|(at, item)| Step::Overwrite(at, item)),
        1 => Just(Step::Repair),
    ]
}

fn apply(step: &Step, page: &mut Page<'_>, model: &mut Vec<Vec<u8>>) {
    let offset = |at: usize| (at + 1) as u16;
    match step {
        Step::Add(at, item) => {
            let at = at % (model.len() + 1);
            if page.add_item(item, offset(at), Placement::Insert).is_ok() {
                model.insert(at, item.clone());
            }
        }
        _ if model.is_empty() => {}
        Step::Delete(at) => {
            let at = at % model.len();
            page.index_tuple_delete(offset(at)).unwrap();
            model.remove(at);
        }
        Step::MultiDelete(list) => {
            let mut list: Vec<usize> = list.iter().map(|at| at % model.len()).collect();
            list.sort_unstable();
            list.dedup();
            page.index_multi_delete(list.iter().map(|at| offset(*at))).unwrap();
            list.iter().rev().for_each(|at| drop(model.remove(*at)));
        }
        Step::Overwrite(at, item) => {
            let at = at % model.len();
            if page.index_tuple_overwrite(offset(at), item).is_ok() {
                model[at] = item.clone();
            }
        }
        Step::Repair => page.repair_fragmentation().unwrap(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn an_index_page_is_a_list(steps in prop::collection::vec(step(), 1..80)) {
        let mut bytes = with_items(16, &[]);
        let mut page = Page::new(&mut bytes);
        let mut model = Vec::new();
        for step in &steps {
            apply(step, &mut page, &mut model);
            prop_assert_eq!(&items(&page), &model);
            let used: usize = model.iter().map(|item| max_align(item.len())).sum();
            prop_assert_eq!(page.upper(), PAGE_SIZE - 16 - used);
        }
    }
}
