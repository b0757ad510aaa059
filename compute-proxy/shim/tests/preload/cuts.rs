//! Truncation: what was cut is zeros, and never fetched again.

use std::ffi::CString;
use std::fs::File;
use std::os::unix::fs::FileExt;

use treering_presence::State;

use crate::agent::Memory;
use crate::pages::{PAGE, assert_same, original};
use crate::reads::open;
use crate::stage::{USUAL, play};

fn assert_cut(memory: &Memory, from: u32) {
    for block in from..300 {
        let block = memory.block(0, block);
        assert!(block.state == State::Present && block.zero);
    }
    assert_eq!(memory.block(0, from - 1).state, State::Absent);
}

fn assert_zeros(file: &File, blocks: std::ops::Range<u64>) {
    for block in blocks {
        let mut found = vec![1; PAGE];
        file.read_exact_at(&mut found, block * PAGE as u64).unwrap();
        assert_same(&found, &[0; PAGE]);
    }
}

#[test]
fn cut_and_grown_again() {
    let stage = play(&USUAL, |folder| {
        let file = open(folder, "a");
        file.set_len(100 * PAGE as u64).unwrap();
        assert_eq!(file.read_at(&mut [0; 8], 100 * PAGE as u64).unwrap(), 0);
        file.set_len(200 * PAGE as u64).unwrap();
        assert_zeros(&file, 100..200);
    });
    let Some(stage) = stage else { return };
    assert_eq!(stage.memory.fetches(), []);
    assert_cut(&stage.memory, 100);
}

#[test]
fn cut_by_path() {
    let stage = play(&USUAL, |folder| {
        let path = CString::new(folder.join("a").to_str().unwrap()).unwrap();
        // SAFETY: paths that end.
        let done = unsafe {
            (
                libc::truncate(path.as_ptr(), 50 * PAGE as i64),
                libc::truncate(path.as_ptr(), -1),
                libc::truncate(c"/no/such".as_ptr(), 0),
            )
        };
        assert_eq!(done, (0, -1, -1));
        assert_eq!(std::io::Error::last_os_error().raw_os_error(), Some(libc::ENOENT));
        let file = open(folder, "a");
        file.set_len(60 * PAGE as u64).unwrap();
        assert_zeros(&file, 50..60);
    });
    let Some(stage) = stage else { return };
    assert_cut(&stage.memory, 50);
}

#[test]
fn a_cut_through_a_block_fetches_it() {
    let stage = play(&USUAL, |folder| {
        let file = open(folder, "a");
        file.set_len(10 * PAGE as u64 + 100).unwrap();
        file.set_len(11 * PAGE as u64).unwrap();
        let mut expected = original(0, 10);
        expected[100..].fill(0);
        let mut found = vec![0; PAGE];
        file.read_exact_at(&mut found, 10 * PAGE as u64).unwrap();
        assert_same(&found, &expected);
    });
    assert!(stage.is_none_or(|stage| stage.memory.fetches() == [(0, 10, 1)]));
}

#[test]
fn cut_by_opening() {
    let stage = play(&USUAL, |folder| {
        let file = File::create(folder.join("a")).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 0);
        file.write_all_at(b"x", 3 * PAGE as u64).unwrap();
        assert_zeros(&open(folder, "a"), 0..3);
        // A file without a map is cut as ever; one that cannot be written is not.
        std::fs::write(folder.join("plain"), "text").unwrap();
        assert_eq!(File::create(folder.join("plain")).unwrap().metadata().unwrap().len(), 0);
        let path = CString::new(folder.join("a").to_str().unwrap()).unwrap();
        // SAFETY: a path that ends.
        let fd = unsafe { libc::open(path.as_ptr(), libc::O_RDONLY | libc::O_TRUNC) };
        assert_eq!(fd, -1);
    });
    assert!(stage.is_none_or(|stage| stage.memory.fetches().is_empty()));
}

#[test]
fn a_refused_cut_leaves_the_blocks() {
    let stage = play(&USUAL, |folder| {
        let file = File::open(folder.join("a")).unwrap();
        assert_eq!(file.set_len(0).unwrap_err().raw_os_error(), Some(libc::EINVAL));
        let mut found = vec![0; PAGE];
        file.read_exact_at(&mut found, 9 * PAGE as u64).unwrap();
        assert_same(&found, &original(0, 9));
    });
    let Some(stage) = stage else { return };
    assert_eq!(stage.memory.block(0, 0).state, State::Absent);
}
