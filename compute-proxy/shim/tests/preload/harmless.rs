//! Calls that are not intercepted do on a file with a map what they do without the library. Each case is run in two
//! folders that look the same: in one the file is lazy and the library is there, in the other neither. One line a
//! case: what the call returned and what could be seen of it.

use std::ffi::{CString, c_int};
use std::fmt::Debug;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use treering_presence::State;

use crate::pages::PAGE;
use crate::reads::open;
use crate::stage::{Stage, USUAL, play};

type Case = (&'static str, fn(&Path) -> String);

const RESULTS: &str = "results";

/// The names as in `compute-proxy/src/pages/imports/names.rs`.
const CASES: &[Case] = &[
    ("access", |folder| {
        let path = CString::new(folder.join("a").to_str().unwrap()).unwrap();
        // SAFETY: a path that ends.
        let results = [libc::F_OK, libc::R_OK | libc::W_OK]
            .map(|how| number(unsafe { libc::access(path.as_ptr(), how) }));
        format!("{results:?}")
    }),
    ("stat", |folder| status(&fs::metadata(folder.join("a")))),
    ("lstat", |folder| {
        symlink("a", folder.join("link")).unwrap();
        let seen = fs::symlink_metadata(folder.join("link")).unwrap();
        fs::remove_file(folder.join("link")).unwrap();
        format!("{} {}", seen.len(), seen.is_symlink())
    }),
    ("fstat", |folder| status(&open(folder, "a").metadata())),
    ("opendir, readdir, closedir", |folder| {
        let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
        let mut names: Vec<_> = names.filter(|name| name == "a" || name == "b").collect();
        names.sort();
        shown(&names)
    }),
    ("mkdir, rmdir", |folder| {
        let path = folder.join("directory");
        let made = (fs::create_dir(&path), fs::create_dir(folder.join("a")), fs::remove_dir(&path));
        shown(&(made, fs::remove_dir(folder.join("a"))))
    }),
    ("fsync", |folder| shown(&open(folder, "a").sync_all())),
    // SAFETY: no memory is passed, here and below.
    ("syncfs", |folder| shown(&number(unsafe { libc::syncfs(open(folder, "a").as_raw_fd()) }))),
    ("sync_file_range", |folder| {
        let file = open(folder, "a");
        let how = libc::SYNC_FILE_RANGE_WRITE | libc::SYNC_FILE_RANGE_WAIT_AFTER;
        let page = PAGE as i64;
        shown(&number(unsafe { libc::sync_file_range(file.as_raw_fd(), page, 2 * page, how) }))
    }),
    ("posix_fadvise", |folder| {
        let file = open(folder, "a");
        let advised = [libc::POSIX_FADV_DONTNEED, libc::POSIX_FADV_WILLNEED, 99]
            .map(|how| unsafe { libc::posix_fadvise(file.as_raw_fd(), 300 << 13, 8192, how) });
        shown(&advised)
    }),
    ("posix_fallocate", |folder| {
        let file = open(folder, "a");
        let room = [(-1, 10), (0, 0), (299 << 13, 2 << 13)]
            .map(|(at, length)| unsafe { libc::posix_fallocate(file.as_raw_fd(), at, length) });
        let grown = file.metadata().unwrap().len();
        file.set_len(300 << 13).unwrap();
        shown(&(room, grown))
    }),
    ("fcntl", |folder| {
        let file = open(folder, "a");
        let call = |command, argument: c_int| {
            number(unsafe { libc::fcntl(file.as_raw_fd(), command, argument) })
        };
        shown(&[
            call(libc::F_GETFD, 0),
            call(libc::F_SETFD, 0),
            call(libc::F_GETFD, 0),
            call(libc::F_GETFL, 0),
            call(libc::F_SETFL, libc::O_NONBLOCK),
            call(libc::F_DUPFD, 500),
            call(libc::F_DUPFD, -1),
            call(9999, 0),
        ])
    }),
    ("lseek", |folder| {
        let file = open(folder, "a");
        let sought =
            [(5, libc::SEEK_SET), (7, libc::SEEK_CUR), (1, libc::SEEK_END), (-1, 0), (0, 99)];
        shown(&sought.map(|(by, from)| {
            let place = unsafe { libc::lseek(file.as_raw_fd(), by, from) };
            (place, errno_of(place < 0))
        }))
    }),
    ("chmod, chown, utime", |folder| {
        let path = folder.join("a");
        let mode = fs::set_permissions(&path, PermissionsExt::from_mode(0o640));
        let owner = std::os::unix::fs::chown(&path, None, None);
        let text = CString::new(path.to_str().unwrap()).unwrap();
        let times = libc::utimbuf { actime: 1_000_000, modtime: 2_000_000 };
        // SAFETY: a path and two times.
        let set = number(unsafe { libc::utime(text.as_ptr(), &times) });
        let seen = fs::metadata(&path).unwrap();
        shown(&(mode, owner, set, seen.mode(), seen.mtime()))
    }),
    ("link, rename, unlink", |folder| {
        let path = |name| folder.join(name);
        let linked = (fs::hard_link(path("a"), path("c")), fs::hard_link(path("a"), path("c")));
        let counted = fs::metadata(path("a")).unwrap().nlink();
        let renamed = (fs::rename(path("c"), path("d")), fs::rename(path("c"), path("d")));
        let removed = (fs::remove_file(path("d")), fs::remove_file(path("d")));
        shown(&(linked, counted, renamed, removed, fs::metadata(path("a")).unwrap().nlink()))
    }),
    ("symlink, readlink, realpath", |folder| {
        symlink("a", folder.join("e")).unwrap();
        let read = fs::read_link(folder.join("e"));
        let real = fs::canonicalize(folder.join("e")).unwrap();
        fs::remove_file(folder.join("e")).unwrap();
        shown(&(read, real.file_name()))
    }),
    ("chdir, getcwd", |folder| {
        let before = std::env::current_dir().unwrap();
        std::env::set_current_dir(folder).unwrap();
        let seen = (fs::metadata("a").unwrap().len(), File::open("a").is_ok());
        let there = std::env::current_dir().unwrap() == folder;
        std::env::set_current_dir(before).unwrap();
        shown(&(seen, there))
    }),
    ("open", |folder| {
        let path = CString::new(folder.join("a").to_str().unwrap()).unwrap();
        let create = libc::O_CREAT | libc::O_EXCL | libc::O_RDWR;
        shown(&[create, libc::O_DIRECTORY, libc::O_PATH, libc::O_RDONLY].map(|flags| {
            // SAFETY: a path that ends.
            let fd = unsafe { libc::open(path.as_ptr(), flags, 0o600) };
            let code = errno_of(fd < 0);
            unsafe { libc::close(fd) };
            (fd > 2, code)
        }))
    }),
    ("calls on what is not open", |_| {
        let mut byte = 0_u8;
        let to = (&raw mut byte).cast();
        // SAFETY: a byte's room.
        let results = unsafe {
            [
                number(libc::read(-1, to, 1) as c_int),
                number(libc::pread(999, to, 1, 0) as c_int),
                number(libc::write(-1, to, 1) as c_int),
                number(libc::pwrite(70_000, to, 1, 0) as c_int),
                number(libc::close(-1)),
                number(libc::close(999)),
                number(libc::dup(-1)),
                number(libc::ftruncate(-1, 0)),
                libc::posix_fallocate(-1, 0, 1),
                libc::posix_fadvise(-1, 0, 1, 0),
            ]
        };
        shown(&results)
    }),
    ("popen, system", |folder| {
        let listed =
            Command::new("/bin/sh").arg("-c").arg("wc -c < a").current_dir(folder).output();
        shown(&listed.map(|output| String::from_utf8(output.stdout)))
    }),
];

fn errno_of(failed: bool) -> Option<i32> {
    failed.then(|| io::Error::last_os_error().raw_os_error()).flatten()
}

/// The result of a call, or minus its errno; a descriptor is only told from an error.
fn number(result: c_int) -> c_int {
    errno_of(result < 0).map_or(result, |code| -code)
}

fn shown(what: &impl Debug) -> String {
    format!("{what:?}")
}

fn status(metadata: &io::Result<fs::Metadata>) -> String {
    let seen = metadata.as_ref().unwrap();
    format!("{} {:o} {} {}", seen.len(), seen.mode(), seen.nlink(), seen.is_file())
}

fn run_all(folder: &Path) -> String {
    CASES.iter().map(|(name, case)| format!("{name}: {}\n", case(folder))).collect()
}

#[test]
fn they_behave_as_without_the_library() {
    let child = |folder: &Path| fs::write(folder.join(RESULTS), run_all(folder)).unwrap();
    let Some(stage) = play(&USUAL, child) else { return };
    let plain = tempfile::tempdir().unwrap();
    let file = File::create_new(plain.path().join("a")).unwrap();
    file.set_len(300 * PAGE as u64).unwrap();
    let lazily = fs::read_to_string(stage.folder.path().join(RESULTS)).unwrap();
    assert_eq!(lazily, run_all(plain.path()));
    nothing_was_fetched(&stage);
}

fn nothing_was_fetched(stage: &Stage) {
    assert_eq!(stage.memory.fetches(), []);
    assert!((0..300).all(|block| stage.memory.block(0, block).state == State::Absent));
}
