//! What the library costs on a read of a page that is there: `cargo bench -p treering-pages`.
//!
//! Everything in one process under the library, by turns: the system call past the library, `pread` of a file
//! without a map, and of one with a map; one page again and again, and the pages of 2 MiB, which push the library's
//! few lines out of the nearest cache. The figures are medians of rounds, and of the ratios within a round.

#![allow(unsafe_code)]

#[allow(dead_code)]
#[path = "../tests/preload/agent.rs"]
mod agent;
#[allow(dead_code)]
#[path = "../tests/preload/pages.rs"]
mod pages;
#[allow(dead_code)]
#[path = "../tests/preload/stage.rs"]
mod stage;

use std::env;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Instant;

use pages::PAGE;
use stage::{Setting, Stage, USUAL};

const BLOCKS: u32 = 256;
/// How often a round reads each page.
const TURNS: u32 = 4;
const ROUNDS: usize = 501;
/// What `cargo bench` passes; without it only that it works is of interest.
const FULL: &str = "--bench";

fn main() {
    let rounds = if env::args().any(|argument| argument == FULL) { ROUNDS } else { 3 };
    if let Some(folder) = env::var_os(stage::FOLDER) {
        return measure(Path::new(&folder), rounds);
    }
    let setting = Setting { files: &[("a", BLOCKS)], ..USUAL };
    let arguments: Vec<String> = env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let status = Stage::new(&setting, "").command(&arguments).status().unwrap();
    assert!(status.success());
}

fn measure(folder: &Path, rounds: usize) {
    let lazy = File::open(folder.join("a")).unwrap();
    let bytes = pages::originals(0, 0..BLOCKS);
    std::fs::write(folder.join("plain"), &bytes).unwrap();
    let plain = File::open(folder.join("plain")).unwrap();
    let mut found = vec![0; bytes.len()];
    lazy.read_exact_at(&mut found, 0).unwrap();
    pages::assert_same(&found, &bytes);
    for spread in [1, BLOCKS] {
        report(&lazy, &plain, spread, rounds);
    }
}

fn report(lazy: &File, plain: &File, spread: u32, rounds: usize) {
    let times: Vec<[f64; 4]> = (0..rounds)
        .map(|_| {
            let past = round(lazy, spread, past_the_library);
            let through = [plain, lazy].map(|file| round(file, spread, through_it));
            [past, through[0], through[1], round(lazy, spread, past_the_library)]
        })
        .collect();
    let median = |of: &dyn Fn(&[f64; 4]) -> f64| {
        let mut values: Vec<f64> = times.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    println!("{spread} pages");
    for (index, name) in ["system call", "plain file", "present block", "again"].iter().enumerate()
    {
        let ratio = median(&|times| times[index] / ((times[0] + times[3]) / 2.0));
        println!("{name:>14} {:7.1} ns {ratio:6.3}", median(&|times| times[index]));
    }
}

type Read = fn(&File, &mut [u8], i64) -> isize;

fn past_the_library(file: &File, page: &mut [u8], at: i64) -> isize {
    let (fd, into) = (file.as_raw_fd(), page.as_mut_ptr());
    // SAFETY: a page's room.
    unsafe { libc::syscall(libc::SYS_pread64, fd, into, PAGE, at) as isize }
}

fn through_it(file: &File, page: &mut [u8], at: i64) -> isize {
    // SAFETY: a page's room.
    unsafe { libc::pread(file.as_raw_fd(), page.as_mut_ptr().cast(), PAGE, at) }
}

/// Nanoseconds a read, after a turn that brings the file into the cache that the last round left to another.
fn round(file: &File, spread: u32, read: Read) -> f64 {
    let mut page = vec![0; PAGE];
    let mut turns = |count: u32| {
        for turn in 0..count * BLOCKS {
            let block = turn.wrapping_mul(97) % spread;
            let got = read(file, &mut page, i64::from(block) * PAGE as i64);
            assert_eq!(got, PAGE as isize);
        }
    };
    turns(1);
    let start = Instant::now();
    turns(TURNS);
    start.elapsed().as_nanos() as f64 / f64::from(TURNS * BLOCKS)
}
