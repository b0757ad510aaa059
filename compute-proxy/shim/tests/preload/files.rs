//! Which file a descriptor is, whatever its path was or is.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::process::Command;

use crate::pages::{PAGE, assert_same, original};
use crate::reads::open;
use crate::stage::{Setting, USUAL, play};

#[test]
fn a_path_used_again_is_another_file() {
    let stage = play(&USUAL, |folder| {
        let old = open(folder, "a");
        fs::remove_file(folder.join("a")).unwrap();
        let new = File::options().read(true).write(true).create_new(true).open(folder.join("a"));
        let new = new.unwrap();
        new.set_len(300 * PAGE as u64).unwrap();
        let mut page = vec![1; PAGE];
        new.read_exact_at(&mut page, 7 * PAGE as u64).unwrap();
        assert_same(&page, &[0; PAGE]);
        open(folder, "a").read_exact_at(&mut page, 7 * PAGE as u64).unwrap();
        assert_same(&page, &[0; PAGE]);
        // The old one is still read, though its path is gone.
        old.read_exact_at(&mut page, 7 * PAGE as u64).unwrap();
        assert_same(&page, &original(0, 7));
    });
    let Some(stage) = stage else { return };
    assert!(stage.memory.files[0].map().is_unlinked());
    assert_eq!(stage.memory.fetches(), [(0, 7, 1)]);
}

#[test]
fn renamed_and_linked_it_is_the_same() {
    let setting = Setting { files: &[("a", 300), ("b", 5), ("c", 5)], ..USUAL };
    let stage = play(&setting, |folder| {
        fs::rename(folder.join("a"), folder.join("b")).unwrap();
        fs::hard_link(folder.join("c"), folder.join("d")).unwrap();
        fs::remove_file(folder.join("c")).unwrap();
        std::os::unix::fs::symlink("d", folder.join("e")).unwrap();
        let mut page = vec![0; PAGE];
        open(folder, "b").read_exact_at(&mut page, 0).unwrap();
        assert_same(&page, &original(0, 0));
        open(folder, "e").read_exact_at(&mut page, 0).unwrap();
        assert_same(&page, &original(2, 0));
    });
    let Some(stage) = stage else { return };
    let gone = stage.memory.files.iter().map(|lazy| lazy.map().is_unlinked());
    assert_eq!(gone.collect::<Vec<_>>(), [false, true, false]);
}

#[test]
fn a_number_beyond_the_table_is_not_handed_out() {
    play(&USUAL, |folder| {
        let most = libc::rlimit { rlim_cur: 70_000, rlim_max: 70_000 };
        // SAFETY: memory with a limit.
        if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &most) } != 0 {
            return;
        }
        let file = open(folder, "a");
        // SAFETY: numbers only.
        let copies = unsafe {
            use std::os::fd::AsRawFd;
            let plain = libc::open(c"/dev/null".as_ptr(), libc::O_RDONLY);
            [file.as_raw_fd(), plain].map(|fd| libc::fcntl(fd, libc::F_DUPFD, 65_536))
        };
        assert_eq!(copies, [-1, 65_536]);
    });
}

#[test]
fn what_it_executes_knows_nothing_of_the_library() {
    play(&USUAL, |folder| {
        let output = Command::new("/bin/sh").args(["-c", "env; cat /proc/$$/maps"]).output();
        let said = String::from_utf8(output.unwrap().stdout).unwrap();
        assert!(said.contains("PAGES_TEST_FOLDER") && !said.contains("LD_PRELOAD"));
        assert!(!said.contains("TREERING_PAGES") && !said.contains("treering_pages"));
        // It gets no descriptor either: neither the shared file nor a connection.
        let mut page = vec![0; PAGE];
        open(folder, "a").read_exact_at(&mut page, 0).unwrap();
        let output = Command::new("/bin/ls").arg("-l").arg("/proc/self/fd").output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(!said.contains("memfd:pages") && !said.contains("-> socket"), "{said}");
    });
}

#[test]
fn the_connection_is_not_the_programs_to_close() {
    let stage = play(&USUAL, |folder| {
        let file = open(folder, "a");
        let mut page = vec![0; PAGE];
        file.read_exact_at(&mut page, 0).unwrap();
        let socket = fs::read_dir("/proc/self/fd").unwrap().map(|entry| entry.unwrap());
        let socket = socket.filter(|entry| {
            fs::read_link(entry.path()).is_ok_and(|to| to.to_str().unwrap().starts_with("socket:"))
        });
        let numbers: Vec<i32> =
            socket.map(|entry| entry.file_name().to_str().unwrap().parse().unwrap()).collect();
        let number = *numbers.iter().max().unwrap();
        assert!(number > 500, "{numbers:?}");
        // SAFETY: numbers only.
        let closed = unsafe { libc::close(number) };
        assert_eq!(closed, -1);
        file.read_exact_at(&mut page, PAGE as u64).unwrap();
        // Given to another file, it is that file's; the library connects again.
        // SAFETY: numbers only.
        assert_eq!(unsafe { libc::dup2(2, number) }, number);
        file.read_exact_at(&mut page, 2 * PAGE as u64).unwrap();
        assert_same(&page, &original(0, 2));
    });
    let Some(stage) = stage else { return };
    assert_eq!(stage.memory.fetches().len(), 3);
}
