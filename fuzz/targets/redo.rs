//! Any record on any page: redo answers with a page or an error, and what it leaves can be masked.
//!
//! Also: a record whose main data was cut to what the page needs makes the page that the whole record makes.
#![no_main]

use libfuzzer_sys::{fuzz_crossover, fuzz_mutator, fuzz_target, fuzzer_mutate};
use treering_fuzz::{
    memory,
    redo_case::{self, RedoCase},
};
use treering_pgfmt::{
    change::PageChange,
    mask::mask_page,
    page::Page,
    redo::{self, rmgr},
};
use treering_types::{Fork, Key, Lsn, PAGE_SIZE, RelTag};

const REL: RelTag = RelTag { tablespace: 1663, database: 5, relation: 16384, fork: Fork::Main };
const LSN: Lsn = Lsn(0x1_2345_6789_abc8);
/// A few copies of a page; data and main data are read where they are.
const BYTES_MAX: usize = 256 * 1024;

fuzz_target!(|bytes: &[u8]| {
    let case = RedoCase::read(bytes);
    let change = case.change();
    let (before, rmid) = (Page::new(&mut case.page.clone()).lsn(), case.part.rmid);
    let mut page = case.page.clone();
    let key = Key::rel_block(REL, case.page_number);
    let redo = |change: &PageChange<'_>, page: &mut [u8; PAGE_SIZE]| {
        memory::bounded(BYTES_MAX, || redo::apply(case.major, &key, LSN, change, page))
    };
    match redo(&change, &mut page) {
        Ok(()) => {
            let after = Page::new(&mut page).lsn();
            assert!(after == LSN || after == before || after == Lsn(0), "LSN became {after}");
            if rmid == rmgr::SPGIST {
                let mut from_cut = case.page.clone();
                assert_eq!(redo(&case.cut().change(), &mut from_cut), Ok(()), "not when cut");
                assert!(page == from_cut, "the cut record makes another page");
            }
        }
        Err(error) => {
            assert_eq!((error.lsn, error.key, error.rmid), (LSN, key, rmid));
            assert!(!error.to_string().is_empty());
        }
    }
    memory::bounded(BYTES_MAX, || mask_page(rmid, &mut page, case.page_number));
});

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    if seed.is_multiple_of(16) {
        return fuzzer_mutate(data, size, max_size);
    }
    redo_case::mutate(data, size, seed, fuzzer_mutate)
});

fuzz_crossover!(|record: &[u8], page: &[u8], out: &mut [u8], _seed: u32| {
    redo_case::cross(record, page, out)
});
