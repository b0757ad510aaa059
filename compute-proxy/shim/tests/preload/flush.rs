//! `fdatasync` waits for the agent's word.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use crate::reads::open;
use crate::stage::{Stage, USUAL, set};

/// The word of the shared file with the postmaster's process id.
const REPORTED: usize = 13;
const SHORT: Duration = Duration::from_millis(400);

fn pipe(stage: &Stage) -> File {
    let path = stage.folder.path().join("s.flush");
    let text = CString::new(path.to_str().unwrap()).unwrap();
    // SAFETY: a path that ends.
    assert_eq!(unsafe { libc::mkfifo(text.as_ptr(), 0o600) }, 0);
    File::options().read(true).write(true).open(path).unwrap()
}

/// What [`Stage`]'s agent does not: says that all is durable which was asked for.
fn flush(stage: &Stage, request: u32) {
    let directory = stage.directory();
    directory.set_flushed(request);
    let word = directory.flush_word().unwrap();
    // SAFETY: a word that stays mapped.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, i32::MAX) };
}

/// Ends all waits when a test ends, however it does.
struct Release<'s>(&'s Stage);

impl Drop for Release<'_> {
    fn drop(&mut self) {
        flush(self.0, 1000);
    }
}

fn said(stage: &Stage, what: &str) {
    let path = stage.folder.path().join(what);
    let until = Instant::now() + Duration::from_secs(20);
    while !path.exists() {
        assert!(Instant::now() < until, "{what}");
        thread::yield_now();
    }
}

fn say(folder: &Path, what: &str) {
    fs::write(folder.join(what), "").unwrap();
}

#[test]
fn it_returns_when_the_quorum_has_the_log() {
    let Some(stage) = set(&USUAL, |folder| {
        let file = File::create(folder.join("log")).unwrap();
        for round in 0..3 {
            say(folder, &format!("asks {round}"));
            file.sync_data().unwrap();
            say(folder, &format!("has {round}"));
        }
        // What else is written out need not be.
        file.sync_all().unwrap();
        open(folder, "a").sync_all().unwrap();
        // SAFETY: no memory is passed.
        assert_eq!(unsafe { libc::syncfs(file.as_raw_fd()) }, 0);
        // Two at once: the later word is for both.
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| file.sync_data().unwrap());
            }
        });
    }) else {
        return;
    };
    let mut pipe = pipe(&stage);
    thread::scope(|scope| {
        let run = scope.spawn(|| stage.run());
        let _release = Release(&stage);
        let mut byte = [0];
        for round in 0..3 {
            pipe.read_exact(&mut byte).unwrap();
            said(&stage, &format!("asks {round}"));
            let request = stage.directory().flush_request().unwrap();
            assert_eq!(request, round + 1);
            thread::sleep(SHORT);
            assert!(!stage.folder.path().join(format!("has {round}")).exists(), "returned early");
            flush(&stage, request);
            said(&stage, &format!("has {round}"));
        }
        let until = Instant::now() + Duration::from_secs(20);
        while stage.directory().flush_request() != Some(5) {
            assert!(Instant::now() < until);
            thread::yield_now();
        }
        flush(&stage, 5);
        let output = run.join().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    });
}

#[test]
fn an_agent_that_comes_later_is_woken_too() {
    let Some(stage) = set(&USUAL, |folder| {
        File::create(folder.join("log")).unwrap().sync_data().unwrap();
    }) else {
        return;
    };
    thread::scope(|scope| {
        let run = scope.spawn(|| stage.run());
        let _release = Release(&stage);
        while stage.directory().flush_request().is_none() {
            thread::yield_now();
        }
        thread::sleep(SHORT);
        let mut pipe = pipe(&stage);
        pipe.read_exact(&mut [0]).unwrap();
        flush(&stage, 1);
        let output = run.join().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    });
}

#[test]
fn a_process_without_its_postmaster_does_not_wait() {
    let Some(stage) = set(&USUAL, |folder| {
        File::create(folder.join("log")).unwrap().sync_data().unwrap();
        say(folder, "returned");
    }) else {
        return;
    };
    // Neither this process nor its child.
    stage.words[REPORTED].store(1, Ordering::SeqCst);
    let output = stage.run();
    assert_eq!(output.status.code(), Some(2));
    assert!(!stage.folder.path().join("returned").exists());
}

#[test]
fn the_pipe_is_not_the_programs_to_close() {
    let Some(stage) = set(&USUAL, |folder| {
        let file = File::create(folder.join("log")).unwrap();
        file.sync_data().unwrap();
        let is_pipe = |fd: &i32| {
            let to = fs::read_link(format!("/proc/self/fd/{fd}"));
            to.is_ok_and(|to| to.to_str().is_some_and(|path| path.ends_with(".flush")))
        };
        let pipe = (3..5000).find(is_pipe).unwrap();
        // SAFETY: numbers only, here and below.
        assert_eq!(unsafe { libc::close(pipe) }, -1);
        file.sync_data().unwrap();
        // Given to another file, it is that file's; the library opens the pipe again.
        assert_eq!(unsafe { libc::dup2(file.as_raw_fd(), pipe) }, pipe);
        file.sync_data().unwrap();
        assert_eq!(file.metadata().unwrap().len(), 0);
    }) else {
        return;
    };
    let mut pipe = pipe(&stage);
    thread::scope(|scope| {
        let run = scope.spawn(|| stage.run());
        let _release = Release(&stage);
        for request in 1..=3 {
            pipe.read_exact(&mut [0]).unwrap();
            flush(&stage, request);
        }
        let output = run.join().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    });
}
