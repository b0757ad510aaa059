//! Four processes read and write at random while the agent drops and fetches, notes and refetches. Each process
//! knows what is in its own blocks; in those of the others it must never see a hole.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::pages::{PAGE, assert_same, filled, original};
use crate::reads::open;
use crate::stage::{Setting, Stage, USUAL, set};

const PROCESSES: u32 = 4;
const BLOCKS: u32 = 64;
const LASTS: Duration = Duration::from_secs(3);
const LARGEST: u32 = 6;

/// One process: what it has in the blocks `number`, `number + 4`, ...
struct Member {
    number: u32,
    file: File,
    random: StdRng,
    /// By block; empty: nothing was written yet.
    model: Vec<Vec<u8>>,
}

impl Member {
    fn new(folder: &Path, number: u32, seed: u64) -> Member {
        Member {
            number,
            file: open(folder, "a"),
            random: StdRng::seed_from_u64(seed ^ u64::from(number)),
            model: (0..BLOCKS).map(|block| original(0, block)).collect(),
        }
    }

    fn step(&mut self) {
        match self.random.random_range(0..10) {
            0..5 => self.read(),
            5..8 => self.write_whole(),
            _ => self.write_part(),
        }
    }

    fn own_block(&mut self) -> u32 {
        self.random.random_range(0..BLOCKS / PROCESSES) * PROCESSES + self.number
    }

    fn read(&mut self) {
        let count = self.random.random_range(1..=LARGEST);
        let first = self.random.random_range(0..=BLOCKS - count);
        let mut found = vec![0; count as usize * PAGE];
        self.file.read_exact_at(&mut found, u64::from(first) * PAGE as u64).unwrap();
        for (block, page) in (first..).zip(found.chunks_exact(PAGE)) {
            if block % PROCESSES == self.number {
                assert_same(page, &self.model[block as usize]);
            }
            // Pages of ours have a one in every word, even where two are mixed.
            let hole = page.chunks_exact(8).position(|word| word == [0; 8]);
            assert_eq!(hole, None, "zeros in block {block}");
        }
    }

    fn write_whole(&mut self) {
        let (block, seed) = (self.own_block(), self.random.random());
        self.model[block as usize] = filled(seed);
        self.write(block, 0..PAGE);
    }

    fn write_part(&mut self) {
        let (block, seed) = (self.own_block(), self.random.random());
        let from = self.random.random_range(0..PAGE / 8) * 8;
        let to = self.random.random_range(from / 8 + 1..=PAGE / 8) * 8;
        self.model[block as usize][from..to].copy_from_slice(&filled(seed)[from..to]);
        self.write(block, from..to);
    }

    fn write(&self, block: u32, bytes: std::ops::Range<usize>) {
        let at = u64::from(block) * PAGE as u64 + bytes.start as u64;
        self.file.write_all_at(&self.model[block as usize][bytes], at).unwrap();
    }
}

fn run(folder: &Path, processes: u32) {
    let seed = std::fs::read_to_string(folder.join("seed")).unwrap().parse().unwrap();
    let children: Vec<i32> = (0..processes)
        .map(|number| {
            // SAFETY: this program has one thread.
            let child = unsafe { libc::fork() };
            if child == 0 {
                let done = std::panic::catch_unwind(|| one_member(folder, number, seed));
                // SAFETY: ends the child.
                unsafe { libc::_exit(i32::from(done.is_err())) }
            }
            child
        })
        .collect();
    for child in children {
        let mut status = -1;
        // SAFETY: our child.
        unsafe { libc::waitpid(child, &mut status, 0) };
        assert_eq!(status, 0);
    }
}

fn one_member(folder: &Path, number: u32, seed: u64) {
    let mut member = Member::new(folder, number, seed);
    let start = Instant::now();
    while start.elapsed() < LASTS {
        member.step();
    }
    for block in (0..BLOCKS).filter(|block| block % PROCESSES == number) {
        let mut page = vec![0; PAGE];
        member.file.read_exact_at(&mut page, u64::from(block) * PAGE as u64).unwrap();
        assert_same(&page, &member.model[block as usize]);
    }
}

/// Drops at random until the members are done; how many blocks.
fn drop_at_random(stage: &Stage, seed: u64, ends: &AtomicBool) -> u64 {
    let mut random = StdRng::seed_from_u64(!seed);
    let mut dropped = 0;
    while !ends.load(Ordering::Relaxed) {
        let block = random.random_range(0..BLOCKS);
        dropped += u64::from(stage.memory.drop_block(0, block));
        if random.random_ratio(1, 16) {
            std::thread::sleep(Duration::from_micros(100));
        }
    }
    dropped
}

#[test]
fn none_sees_a_hole_or_an_older_page() {
    let setting = Setting { files: &[("a", BLOCKS)], ..USUAL };
    let Some(stage) = set(&setting, |folder| run(folder, PROCESSES)) else { return };
    let seed: u64 =
        std::env::var("TREERING_SEED").map_or_else(|_| rand::random(), |s| s.parse().unwrap());
    println!("TREERING_SEED={seed}");
    std::fs::write(stage.folder.path().join("seed"), seed.to_string()).unwrap();
    let (ends, dropped) = (AtomicBool::new(false), AtomicU64::new(0));
    let output = std::thread::scope(|scope| {
        scope.spawn(|| dropped.store(drop_at_random(&stage, seed, &ends), Ordering::Relaxed));
        let output = stage.run();
        ends.store(true, Ordering::Relaxed);
        output
    });
    let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
    assert!(output.status.success(), "{}{}", said[0], said[1]);
    let (fetched, dropped) = (stage.memory.fetches().len(), dropped.into_inner());
    println!("{dropped} drops, {fetched} fetches");
    assert!(dropped > 100 && fetched > 100);
}
