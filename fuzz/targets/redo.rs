//! Any record on any page: redo answers with a page or an error, and what it leaves can be masked.
#![no_main]

use libfuzzer_sys::{fuzz_crossover, fuzz_mutator, fuzz_target, fuzzer_mutate};
use treering_fuzz::{
    memory,
    redo_case::{self, RedoCase},
};
use treering_pgfmt::{mask::mask_page, page::Page, redo};
use treering_types::{Fork, Key, Lsn, RelTag};

const REL: RelTag = RelTag { tablespace: 1663, database: 5, relation: 16384, fork: Fork::Main };
const LSN: Lsn = Lsn(0x1_2345_6789_abc8);
/// A few copies of a page; data and main data are read where they are.
const BYTES_MAX: usize = 256 * 1024;

fuzz_target!(|bytes: &[u8]| {
    let case = RedoCase::read(bytes);
    let change = case.change();
    let (before, rmid) = (Page::new(&mut case.page.clone()).lsn(), case.part.rmid);
    let mut page = case.page;
    let key = Key::rel_block(REL, case.page_number);
    let done =
        memory::bounded(BYTES_MAX, || redo::apply(case.major, &key, LSN, &change, &mut page));
    match done {
        Ok(()) => {
            let after = Page::new(&mut page).lsn();
            assert!(after == LSN || after == before || after == Lsn(0), "LSN became {after}");
        }
        Err(error) => {
            assert_eq!((error.lsn, error.key, error.rmid), (LSN, key, rmid));
            assert!(!error.to_string().is_empty());
        }
    }
    memory::bounded(BYTES_MAX, || mask_page(rmid, &mut page, case.page_number));
});

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    if seed % 16 == 0 {
        return fuzzer_mutate(data, size, max_size);
    }
    redo_case::mutate(data, size, seed, fuzzer_mutate)
});

fuzz_crossover!(|record: &[u8], page: &[u8], out: &mut [u8], _seed: u32| {
    redo_case::cross(record, page, out)
});
