//! Writing into holes, whole and in part.

use std::fs::File;
use std::io::{IoSlice, Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use treering_presence::{History, State};

use crate::pages::{PAGE, assert_same, filled, original};
use crate::reads::open;
use crate::stage::{USUAL, play};

#[test]
fn a_whole_block_needs_no_fetch() {
    let stage = play(&USUAL, |folder| {
        let file = open(folder, "a");
        let page = filled(1 << 60);
        file.write_all_at(&page, 5 * PAGE as u64).unwrap();
        let pieces = [IoSlice::new(&page), IoSlice::new(&page)];
        // SAFETY: an IoSlice is an iovec.
        let wrote =
            unsafe { libc::pwritev(file.as_raw_fd(), pieces.as_ptr().cast(), 2, 7 * PAGE as i64) };
        assert_eq!(wrote, 2 * PAGE as isize);
        let mut found = vec![0; 2 * PAGE];
        file.read_exact_at(&mut found, 7 * PAGE as u64).unwrap();
        assert_same(&found, &[&page[..], &page[..]].concat());
        // Past the end of the start: no map, no question.
        file.write_all_at(&page, 300 * PAGE as u64).unwrap();
        file.read_exact_at(&mut found[..PAGE], 300 * PAGE as u64).unwrap();
        assert_same(&found[..PAGE], &page);
    });
    let Some(stage) = stage else { return };
    assert_eq!(stage.memory.fetches(), []);
    for block in [5, 7, 8] {
        let block = stage.memory.block(0, block);
        assert_eq!((block.state, block.history), (State::Present, History::Dirty));
    }
    assert_eq!(stage.memory.block(0, 6).state, State::Absent);
}

#[test]
fn a_part_of_a_block_is_fetched_first() {
    let stage = play(&USUAL, |folder| {
        let mut file = open(folder, "a");
        file.seek(SeekFrom::Start(2 * PAGE as u64 - 10)).unwrap();
        file.write_all(&[9; PAGE + 20]).unwrap();
        assert_eq!(file.stream_position().unwrap(), 3 * PAGE as u64 + 10);
        file.seek(SeekFrom::Start(PAGE as u64)).unwrap();
        let mut found = vec![0; 3 * PAGE];
        file.read_exact(&mut found).unwrap();
        let mut expected = [original(0, 1), original(0, 2), original(0, 3)].concat();
        expected[PAGE - 10..2 * PAGE + 10].fill(9);
        assert_same(&found, &expected);
    });
    let Some(stage) = stage else { return };
    assert_eq!(stage.memory.fetches(), [(0, 1, 1), (0, 3, 1)]);
}

#[test]
fn appending_goes_to_the_end() {
    let stage = play(&USUAL, |folder| {
        let mut file = File::options().append(true).read(true).open(folder.join("a")).unwrap();
        file.write_all(b"more").unwrap();
        assert_eq!(file.stream_position().unwrap(), 300 * PAGE as u64 + 4);
        file.set_len(10).unwrap();
        file.write_all(b"short").unwrap();
        let mut found = Vec::new();
        file.seek(SeekFrom::Start(0)).unwrap();
        file.read_to_end(&mut found).unwrap();
        assert_same(&found, &[&original(0, 0)[..10], b"short"].concat());
    });
    assert!(stage.is_none_or(|stage| stage.memory.fetches() == [(0, 0, 1)]));
}

#[test]
fn a_write_that_stops_inside_an_absent_block_is_rounded_down() {
    let stage = play(&USUAL, |folder| {
        let mut file = open(folder, "a");
        // The kernel copies from memory up to where it ends: two pages and a half of it.
        // SAFETY: a mapping of our own, cut by another.
        let memory = unsafe {
            let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE);
            let kind = kind | libc::MAP_ANONYMOUS;
            let all = libc::mmap(std::ptr::null_mut(), 8 * PAGE, access, kind, -1, 0);
            assert_eq!(libc::munmap(all.byte_add(2 * PAGE + PAGE / 2), PAGE), 0);
            std::slice::from_raw_parts_mut(all.cast::<u8>(), 2 * PAGE + PAGE / 2)
        };
        memory.fill(5);
        // SAFETY: the kernel finds out that it is too long.
        let wrote = |at: usize, length| unsafe {
            libc::write(file.as_raw_fd(), memory[at..].as_ptr().cast(), length)
        };
        assert_eq!(wrote(0, 4 * PAGE), 2 * PAGE as isize);
        // SAFETY: no memory is passed.
        assert_eq!(unsafe { libc::lseek(file.as_raw_fd(), 0, libc::SEEK_CUR) }, 2 * PAGE as i64);
        assert_eq!(wrote(2 * PAGE, PAGE), -1, "nothing is left of half a block");
        assert_eq!(std::io::Error::last_os_error().raw_os_error(), Some(libc::ENOSPC));
        let mut found = vec![0; PAGE];
        file.seek(SeekFrom::Start(2 * PAGE as u64)).unwrap();
        file.read_exact(&mut found).unwrap();
        assert_same(&found, &original(0, 2));
        file.seek(SeekFrom::Start(2 * PAGE as u64)).unwrap();
        // The block is here now: what was written counts.
        // SAFETY: as above.
        let wrote =
            unsafe { libc::write(file.as_raw_fd(), memory[2 * PAGE..].as_ptr().cast(), PAGE) };
        assert_eq!(wrote, PAGE as isize / 2);
    });
    let Some(stage) = stage else { return };
    assert_eq!(stage.memory.block(0, 3).state, State::Absent);
}
