//! Agents that do not answer, die, refuse, lie; shared files that are none.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::agent::Reply;
use crate::pages::{PAGE, assert_same, original};
use crate::reads::open;
use crate::stage::{Setting, Stage, USUAL, library, set};

const HASTY: Setting = Setting { wait_limit_ms: 300, ..USUAL };

/// A read fails with EIO after about the limit, and a partial write too.
fn fails(folder: &Path, code: i32, after_ms: std::ops::Range<u128>) {
    let file = open(folder, "a");
    let start = Instant::now();
    let error = file.read_exact_at(&mut vec![0; PAGE], 0).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(code));
    let took = start.elapsed().as_millis();
    assert!(after_ms.contains(&took), "{took} ms");
    assert_eq!(file.write_at(b"part", 5).unwrap_err().raw_os_error(), Some(code));
}

#[track_caller]
fn said(output: &Output, sentence: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{told}\n{said}");
    let ours: Vec<_> = said.lines().filter(|line| line.contains("treering pages:")).collect();
    assert!(ours.iter().any(|line| line.contains(sentence)), "{said}");
    // On a busy machine the time may be up before the last of the agent's answers is there.
    let is_due =
        |line: &&str| line.contains(sentence) || line.contains("the agent does not answer");
    assert!(ours.iter().all(is_due), "{said}");
}

#[test]
fn a_silent_agent() {
    let setting = Setting { rule: |_| Reply::Silence, ..HASTY };
    let Some(stage) = set(&setting, |folder| fails(folder, libc::EIO, 280..2000)) else { return };
    said(&stage.run(), "block 0 of file 0 did not come within 300 ms: the agent does not answer");
}

#[test]
fn an_agent_that_hangs_up() {
    let setting = Setting { rule: |_| Reply::HangUp, ..HASTY };
    let Some(stage) = set(&setting, |folder| fails(folder, libc::EIO, 280..2000)) else { return };
    said(&stage.run(), "block 0 of file 0 did not come within 300 ms: the agent ended");
    assert!(stage.memory.fetches().len() > 5, "it is tried again");
}

#[test]
fn an_agent_that_answers_and_does_nothing() {
    let setting = Setting { rule: |_| Reply::LookAgain, ..HASTY };
    let Some(stage) = set(&setting, |folder| fails(folder, libc::EIO, 280..2000)) else { return };
    said(&stage.run(), "block 0 of file 0 was not to be had within 300 ms");
    assert!(stage.memory.fetches().len() < 10_000, "without haste");
}

#[test]
fn an_agent_that_talks_nonsense() {
    let setting = Setting { rule: |_| Reply::Garbage, ..HASTY };
    let Some(stage) = set(&setting, |folder| fails(folder, libc::EIO, 280..2000)) else { return };
    said(&stage.run(), "the agent gives an answer that is none");
}

#[test]
fn an_agent_that_fails_says_why() {
    let rule = |_| Reply::Fail(libc::ENOSPC, "no room for\npages");
    let setting = Setting { rule, ..USUAL };
    let Some(stage) = set(&setting, |folder| fails(folder, libc::ENOSPC, 0..10_000)) else {
        return;
    };
    said(&stage.run(), "treering pages: no room for pages");
    let rule = |_| Reply::Fail(libc::EAGAIN, "what does that mean");
    let setting = Setting { rule, ..HASTY };
    // In the child, this half is never reached.
    let stage = set(&setting, |_| ()).unwrap();
    assert!(!stage.run().status.success(), "another errno than the two is EIO");
}

#[test]
fn an_agent_that_is_late_for_one_call_serves_the_next() {
    let rule = |nth| if nth < 3 { Reply::Silence } else { Reply::Serve };
    let setting = Setting { rule, ..HASTY };
    let child = |folder: &Path| {
        fails(folder, libc::EIO, 280..2000);
        let mut page = vec![0; PAGE];
        open(folder, "a").read_exact_at(&mut page, 0).unwrap();
        assert_same(&page, &original(0, 0));
    };
    let Some(stage) = set(&setting, child) else { return };
    said(&stage.run(), "does not answer");
}

#[test]
fn another_agent_takes_its_place() {
    let child = |folder: &Path| {
        let file = open(folder, "a");
        let mut page = vec![0; PAGE];
        for block in 0..300 {
            file.read_exact_at(&mut page, block * PAGE as u64).unwrap();
            assert_same(&page, &original(0, block as u32));
        }
    };
    let rule = |nth| if nth % 60 == 30 { Reply::HangUp } else { Reply::Serve };
    let Some(stage) = set(&Setting { rule, ..USUAL }, child) else { return };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while stage.memory.fetches().len() < 100 {
                std::thread::yield_now();
            }
            stage.restart_agent(|| std::thread::sleep(Duration::from_millis(300)));
        });
        let output = stage.run();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    });
    assert!(stage.memory.fetches().len() > 304);
}

#[test]
fn damaged_words_are_not_read() {
    let child = |folder: &Path| {
        let file = open(folder, "a");
        let start = Instant::now();
        for block in [0, 1, 2] {
            let error = file.read_exact_at(&mut vec![0; PAGE], block * PAGE as u64).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EIO));
            let error = file.write_all_at(&vec![0; PAGE], block * PAGE as u64).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EIO));
        }
        assert_eq!(file.set_len(0).unwrap_err().raw_os_error(), Some(libc::EIO));
        assert!(start.elapsed() < Duration::from_secs(2));
        let mut page = vec![0; PAGE];
        file.read_exact_at(&mut page, 3 * PAGE as u64).unwrap();
        assert_same(&page, &original(0, 3));
    };
    let Some(stage) = set(&USUAL, child) else { return };
    let place = stage.directory().places().next().unwrap();
    let first = place.unit as usize * 16 + treering_presence::HEADER_WORDS;
    for (block, word) in [7, 4 | 1 << 7, 4 | 1 << 3].into_iter().enumerate() {
        stage.words[first + block].store(word, Ordering::SeqCst);
    }
    said(&stage.run(), "the presence map of file 0 is damaged at block");
}

#[test]
fn a_file_whose_map_is_damaged_is_not_opened() {
    let child = |folder: &Path| {
        let error = File::open(folder.join("a")).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EIO));
    };
    let Some(stage) = set(&USUAL, child) else { return };
    let place = stage.directory().places().next().unwrap();
    stage.words[place.unit as usize * 16].store(0, Ordering::SeqCst);
    said(&stage.run(), "the presence map of descriptor");
}

#[track_caller]
fn refused(output: &Output, sentence: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains(sentence) && said.lines().count() == 1, "{said}");
}

/// The child's half is never reached.
fn refused_with(setting: &Setting, change: impl FnOnce(&Stage), sentence: &str) {
    let stage = set(setting, |_| ()).expect("the parent");
    change(&stage);
    refused(&stage.run(), sentence);
}

#[test]
fn shared_files_that_are_none() {
    let words =
        |word: usize, value| move |stage: &Stage| stage.words[word].store(value, Ordering::SeqCst);
    refused_with(&USUAL, words(0, 1), "no directory of presence maps here");
    refused_with(&USUAL, words(2, 4), "presence maps of version 4");
    refused_with(&USUAL, words(3, 2), "presence maps of version 2");
    refused_with(&USUAL, words(4, 64), "the file has another length");
    for (value, sentence) in [
        ("banana", "is not the number of a descriptor"),
        ("777", "is not open (errno 9)"),
        ("0", "are no directory of presence maps"),
    ] {
        let mut command = Command::new("/bin/true");
        command.stdin(File::open("/dev/null").unwrap());
        command.env("LD_PRELOAD", library()).env("TREERING_PAGES", value);
        refused(&command.output().unwrap(), sentence);
    }
}

#[test]
fn agents_that_are_none() {
    let gone = |stage: &Stage| *stage.listening.lock().unwrap() = None;
    refused_with(&HASTY, gone, "the agent cannot be reached (errno 2)");
    let silent = Setting { welcome: Reply::Silence, ..HASTY };
    refused_with(&silent, |_| (), "the agent does not answer");
    let deaf = Setting { welcome: Reply::HangUp, ..HASTY };
    let output = set(&deaf, |_| ()).expect("the parent").run();
    // As in `said`: the time may be up before the last hanging up is seen.
    let is_late = String::from_utf8_lossy(&output.stderr).contains("does not answer");
    let sentence = if is_late { "does not answer" } else { "the agent ended the connection" };
    refused(&output, sentence);
}

#[test]
fn without_an_agent_it_does_nothing() {
    let mut command = Command::new("/bin/cat");
    let output = command.arg("/etc/hostname").env("LD_PRELOAD", library()).output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty());
}
