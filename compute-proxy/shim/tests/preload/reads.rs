//! Every door through which bytes of a file come, over holes.

use std::ffi::{CString, c_int, c_void};
use std::fs::File;
use std::io::{IoSliceMut, Read, Seek, SeekFrom};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;
use std::path::Path;

use treering_presence::State;

use crate::pages::{PAGE, assert_same, original, originals};
use crate::stage::{Setting, USUAL, play};

pub fn open(folder: &Path, name: &str) -> File {
    File::options().read(true).write(true).open(folder.join(name)).unwrap()
}

#[test]
fn pread_fetches_what_it_needs_and_no_more() {
    let stage = play(&USUAL, |folder| {
        let file = open(folder, "a");
        let mut page = vec![0; PAGE];
        for block in [7, 7, 299, 0] {
            file.read_exact_at(&mut page, block * PAGE as u64).unwrap();
            assert_same(&page, &original(0, block as u32));
        }
        let mut some = vec![0; 5 * PAGE];
        file.read_exact_at(&mut some, 5 * PAGE as u64).unwrap();
        assert_same(&some, &originals(0, 5..10));
        // Across borders, and past the end.
        let mut piece = vec![0; 100];
        file.read_exact_at(&mut piece, 21 * PAGE as u64 - 50).unwrap();
        assert_same(&piece, &originals(0, 20..22)[PAGE - 50..PAGE + 50]);
        assert_eq!(file.read_at(&mut some, 299 * PAGE as u64).unwrap(), PAGE);
        assert_eq!(file.read_at(&mut some, 300 * PAGE as u64).unwrap(), 0);
        assert_eq!(file.read_at(&mut some, 9999 * PAGE as u64).unwrap(), 0);
    });
    let Some(stage) = stage else { return };
    let expected =
        [(7, 1), (299, 1), (0, 1), (5, 5), (20, 2)].map(|(first, count)| (0, first, count));
    assert_eq!(stage.memory.fetches(), expected);
    assert_eq!(stage.memory.block(0, 8).state, State::Present);
    assert_eq!(stage.memory.block(0, 22).state, State::Absent);
}

#[test]
fn read_and_seek_go_through_the_file() {
    let stage = play(&USUAL, |folder| {
        let mut file = open(folder, "a");
        let mut all = Vec::new();
        let mut piece = vec![0; 3 * PAGE + 17];
        loop {
            match file.read(&mut piece).unwrap() {
                0 => break,
                got => all.extend_from_slice(&piece[..got]),
            }
        }
        assert_same(&all, &originals(0, 0..300));
        assert_eq!(file.stream_position().unwrap(), 300 * PAGE as u64);
        assert_eq!(file.seek(SeekFrom::End(-5)).unwrap(), 300 * PAGE as u64 - 5);
        assert_eq!(file.read(&mut piece).unwrap(), 5);
    });
    assert!(stage.is_none_or(|stage| stage.memory.fetches().len() > 50));
}

#[test]
fn a_large_read_is_short_but_right() {
    let setting = Setting { files: &[("a", 1000)], ..USUAL };
    play(&setting, |folder| {
        let file = open(folder, "a");
        let mut all = vec![0; 1000 * PAGE];
        assert_eq!(file.read_at(&mut all, 0).unwrap(), 1 << 20);
        file.read_exact_at(&mut all, 0).unwrap();
        assert_same(&all, &originals(0, 0..1000));
    });
}

#[test]
fn preadv_fills_its_pieces() {
    play(&USUAL, |folder| {
        let file = open(folder, "a");
        let (mut one, mut two) = (vec![0; PAGE + 9], vec![0; 2 * PAGE - 9]);
        let mut pieces = [IoSliceMut::new(&mut one), IoSliceMut::new(&mut two)];
        let (fd, at) = (file.as_raw_fd(), 40 * PAGE as i64);
        // SAFETY: an IoSliceMut is an iovec.
        let got = unsafe { libc::preadv(fd, pieces.as_mut_ptr().cast(), 2, at) };
        assert_eq!(got, 3 * PAGE as isize);
        assert_same(&[one, two].concat(), &originals(0, 40..43));
        // SAFETY: no pieces are looked at.
        let refused = [-1, 1025].map(|n| unsafe { libc::preadv(fd, std::ptr::null(), n, at) });
        assert_eq!(refused, [-1, -1]);
        assert_eq!(std::io::Error::last_os_error().raw_os_error(), Some(libc::EINVAL));
    });
}

unsafe extern "C" {
    fn __read_chk(fd: c_int, into: *mut c_void, length: usize, room: usize) -> isize;
    fn __pread_chk(fd: c_int, into: *mut c_void, length: usize, at: i64, room: usize) -> isize;
}

#[test]
fn fortified_reads() {
    play(&USUAL, |folder| {
        let file = open(folder, "a");
        let mut page = vec![0_u8; PAGE];
        // SAFETY: a page's room.
        let got = unsafe { __read_chk(file.as_raw_fd(), page.as_mut_ptr().cast(), PAGE, PAGE) };
        assert_eq!(got, PAGE as isize);
        assert_same(&page, &original(0, 0));
        let (fd, at) = (file.as_raw_fd(), 9 * PAGE as i64);
        // SAFETY: a page's room.
        let got = unsafe { __pread_chk(fd, page.as_mut_ptr().cast(), PAGE, at, PAGE) };
        assert_eq!(got, PAGE as isize);
        assert_same(&page, &original(0, 9));
    });
}

#[test]
fn streams() {
    play(&USUAL, |folder| {
        let path = CString::new(folder.join("a").to_str().unwrap()).unwrap();
        let mut some = vec![0_u8; 4 * PAGE];
        // SAFETY: libc's streams, used as they should be.
        unsafe {
            let stream = libc::fopen(path.as_ptr(), c"rb".as_ptr());
            assert!(!stream.is_null());
            assert_eq!(libc::fseeko(stream, 60 * PAGE as i64 + 5, libc::SEEK_SET), 0);
            assert_eq!(libc::fread(some.as_mut_ptr().cast(), 1, 4 * PAGE, stream), 4 * PAGE);
            assert_same(&some, &originals(0, 60..65)[5..4 * PAGE + 5]);
            assert_eq!(libc::ftello(stream), 64 * PAGE as i64 + 5);
            assert_eq!(libc::fseeko(stream, 0, libc::SEEK_END), 0);
            assert_eq!(libc::fread(some.as_mut_ptr().cast(), 1, 4, stream), 0);
            assert_ne!(libc::feof(stream), 0);
            assert_eq!(libc::fclose(stream), 0);
            // A file without a map is libc's own stream.
            let path = CString::new(folder.join("plain").to_str().unwrap()).unwrap();
            let stream = libc::fopen(path.as_ptr(), c"w+xe".as_ptr());
            assert_eq!(libc::fputs(c"some text".as_ptr(), stream), 1);
            assert!(libc::fileno(stream) > 2);
            libc::rewind(stream);
            assert_eq!(libc::fgetc(stream), i32::from(b's'));
            assert_eq!(libc::fclose(stream), 0);
            assert!(libc::fopen(path.as_ptr(), c"wx".as_ptr()).is_null());
            assert!(libc::fopen(path.as_ptr(), c"?".as_ptr()).is_null());
        }
    });
}

#[test]
fn copies_in_the_kernel() {
    let setting = Setting { files: &[("a", 300), ("b", 4)], ..USUAL };
    play(&setting, |folder| {
        let (a, b) = (open(folder, "a"), open(folder, "b"));
        let mut copy = File::create_new(folder.join("copy")).unwrap();
        while std::io::copy(&mut &a, &mut copy).unwrap() > 0 {}
        assert_same(&std::fs::read(folder.join("copy")).unwrap(), &originals(0, 0..300));
        // Into a file with a map, a part of a block, by explicit offsets.
        let (mut from, mut to) = (10 * PAGE as i64, PAGE as i64 + 100);
        // SAFETY: offsets of our own.
        let copied = unsafe {
            libc::copy_file_range(a.as_raw_fd(), &mut from, b.as_raw_fd(), &mut to, 200, 0)
        };
        assert_eq!((copied, from, to), (200, 10 * PAGE as i64 + 200, PAGE as i64 + 300));
        let mut page = vec![0; PAGE];
        b.read_exact_at(&mut page, PAGE as u64).unwrap();
        let mut expected = original(1, 1);
        expected[100..300].copy_from_slice(&original(0, 10)[..200]);
        assert_same(&page, &expected);
    });
}

#[test]
fn a_duplicate_is_the_same_file() {
    play(&USUAL, |folder| {
        let file = open(folder, "a");
        let fd = file.as_raw_fd();
        // SAFETY: descriptors of our own.
        let copies = unsafe {
            let other = libc::open(c"/dev/null".as_ptr(), libc::O_RDONLY);
            [libc::dup(fd), libc::dup2(fd, other), libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 100)]
        };
        for (block, copy) in (0..).zip(copies) {
            assert!(copy > 2);
            // SAFETY: ours.
            let copy = unsafe { File::from_raw_fd(copy) };
            let mut page = vec![0; PAGE];
            copy.read_exact_at(&mut page, u64::from(block) * PAGE as u64).unwrap();
            assert_same(&page, &original(0, block));
        }
        // A number used again is not the file any more.
        drop(file);
        let null = File::open("/dev/null").unwrap();
        assert_eq!(null.as_raw_fd(), fd);
        assert_eq!(null.read_at(&mut [0; 8], 0).unwrap(), 0);
        // SAFETY: the same number onto itself, and one that is not open.
        assert_eq!(unsafe { (libc::dup2(fd, fd), libc::dup2(999, 999)) }, (fd, -1));
    });
}

#[test]
fn a_child_asks_for_itself() {
    let stage = play(&USUAL, |folder| {
        let file = open(folder, "a");
        let mut page = vec![0; PAGE];
        file.read_exact_at(&mut page, 0).unwrap();
        // SAFETY: the child only reads and ends.
        let child = unsafe { libc::fork() };
        for block in 1..200 {
            let block = if child == 0 { 299 - block } else { block };
            file.read_exact_at(&mut page, u64::from(block) * PAGE as u64).unwrap();
            assert_same(&page, &original(0, block));
        }
        if child == 0 {
            // SAFETY: ends the child.
            unsafe { libc::_exit(0) }
        }
        let mut status = -1;
        // SAFETY: our child.
        assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
        assert_eq!(status, 0);
    });
    let Some(stage) = stage else { return };
    let hellos = stage.memory.requests.lock().unwrap().iter().filter(|r| r.0 == 1).count();
    assert_eq!(hellos, 3, "at the start, and from each process");
}

#[test]
fn holes_are_not_shown_and_files_not_mapped() {
    play(&USUAL, |folder| {
        let file = open(folder, "a");
        let fd = file.as_raw_fd();
        // SAFETY: no memory is passed.
        let sought =
            unsafe { [libc::SEEK_DATA, libc::SEEK_HOLE].map(|how| libc::lseek(fd, 0, how)) };
        assert_eq!(sought, [-1, -1]);
        // SAFETY: a mapping of our own.
        let mapped = unsafe {
            libc::mmap(std::ptr::null_mut(), PAGE, libc::PROT_READ, libc::MAP_SHARED, fd, 0)
        };
        assert_eq!(mapped, libc::MAP_FAILED);
        assert_eq!(std::io::Error::last_os_error().raw_os_error(), Some(libc::ENODEV));
        // SAFETY: no offset.
        assert_eq!(unsafe { libc::sendfile(1, fd, std::ptr::null_mut(), 10) }, -1);
        // SAFETY: a path that ends.
        let direct = unsafe {
            let path = CString::new(folder.join("a").to_str().unwrap()).unwrap();
            libc::open(path.as_ptr(), libc::O_RDONLY | libc::O_DIRECT)
        };
        assert_eq!(direct, -1);
        assert_eq!(std::io::Error::last_os_error().raw_os_error(), Some(libc::EINVAL));
    });
}

#[test]
fn advice_is_passed_on() {
    let stage = play(&USUAL, |folder| {
        let file = open(folder, "a");
        let fd = file.as_raw_fd();
        file.read_exact_at(&mut vec![0; PAGE], 3 * PAGE as u64).unwrap();
        let page = PAGE as i64;
        for (at, length) in [(2, page), (3, page), (3, 4 * page), (290, 0), (400, page)] {
            // SAFETY: no memory is passed.
            let done =
                unsafe { libc::posix_fadvise(fd, at * page, length, libc::POSIX_FADV_WILLNEED) };
            assert_eq!(done, 0);
        }
        // A fetch after them on the same connection: all have arrived.
        file.read_exact_at(&mut vec![0; PAGE], 0).unwrap();
    });
    let Some(stage) = stage else { return };
    assert_eq!(stage.memory.advices(), [(0, 2, 1), (0, 4, 3), (0, 290, 10)]);
}

#[test]
fn a_success_leaves_errno() {
    play(&USUAL, |folder| {
        let file = open(folder, "a");
        let mut page = vec![0_u8; PAGE];
        // SAFETY: errno, and a page's room.
        unsafe {
            *libc::__errno_location() = 77;
            let got = libc::pread(file.as_raw_fd(), page.as_mut_ptr().cast(), PAGE, 0);
            assert_eq!((got, *libc::__errno_location()), (PAGE as isize, 77));
            let got = libc::pread(file.as_raw_fd(), page.as_mut_ptr().cast(), PAGE, -1);
            assert_eq!((got, *libc::__errno_location()), (-1, libc::EINVAL));
        }
    });
}
