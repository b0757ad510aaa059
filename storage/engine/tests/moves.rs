//! Relations that are written in order: files of their own from each flush, which merges take over as they are.

mod support;

use std::{collections::BTreeMap, io};

use support::*;
use treering_engine::{Compacted, EngineOptions};
use treering_fs::{Call, CrashFs, FaultyFs, FileSystem};
use treering_types::{ErrorKind, Lsn};

/// Four runs are a merge.
fn options() -> EngineOptions {
    EngineOptions {
        open_layer_bytes_max: 1 << 20,
        fan_in: 4,
        runs_max: 8,
        runs_hard_max: 100,
        ..tiny_options()
    }
}

fn world<F: FileSystem + Clone>(fs: F) -> World<F> {
    World::begin_with(fs, options()).unwrap()
}

/// A branch of the root: all of it lies above its cut-off.
fn branched() -> (World<CrashFs>, usize) {
    let mut world = world(CrashFs::new());
    let branch = world.branch(0, START).unwrap();
    (world, branch)
}

fn part<F: FileSystem + Clone>(world: &mut World<F>, on: usize, part: u32) {
    world.write_part(on, rel(5, 1), part).unwrap();
    world.timeline(on).flush().unwrap();
}

fn check<F: FileSystem + Clone>(world: &World<F>) {
    world.check_all(7);
    let report = world.engine().scrub();
    assert!(report.findings.is_empty(), "{:?}", report.findings);
}

/// Compacts, and says what was done and which files are in both states.
fn compact(world: &World<CrashFs>, on: usize) -> (Compacted, Vec<String>) {
    let before = world.layer_files(on);
    let done = world.timeline(on).compact(false).unwrap();
    let after = world.layer_files(on);
    // What was not moved was read, and what is new was written.
    let only = |files: &BTreeMap<String, u64>, others: &BTreeMap<String, u64>| -> u64 {
        files.iter().filter(|(name, _)| !others.contains_key(*name)).map(|(_, len)| len).sum()
    };
    if done.merges == 1 {
        assert!(done.bytes_read > 0 && done.bytes_read < only(&before, &after));
        assert_eq!(done.bytes_written, only(&after, &before));
    }
    (done, before.into_keys().filter(|name| after.contains_key(name)).collect())
}

#[test]
fn parts_of_a_relation_are_moved() {
    let (mut world, branch) = branched();
    let mut parts = Vec::new();
    for number in 1..5 {
        let before = world.layer_files(branch);
        part(&mut world, branch, number);
        let mut files = world.layer_files(branch);
        files.retain(|name, _| !before.contains_key(name));
        assert_eq!(files.len(), 3, "what lies before, the part, what lies behind");
        parts.extend(files.into_keys().nth(1));
    }
    let (done, moved) = compact(&world, branch);
    assert_eq!((done.merges, &moved), (1, &parts));
    let info = world.timeline(branch).info();
    assert_eq!((info.runs, info.layers), (1, 6), "the parts in one run, and a layer on each side");
    assert_eq!(info.traffic.merge_written_bytes, done.bytes_written);
    check(&world);
    // Again and again, and over a restart.
    let fs = world.fs.crash(u64::MAX);
    world.reopen(fs).unwrap();
    for number in 5..40 {
        part(&mut world, branch, number);
        let (_, still) = compact(&world, branch);
        assert!(parts.iter().all(|name| still.contains(name)), "{number}");
    }
    check(&world);
    assert!(world.timeline(branch).info().runs <= 8);
}

#[test]
fn what_shares_keys_is_merged() {
    let (mut world, branch) = branched();
    (1..4).for_each(|number| part(&mut world, branch, number));
    let before = world.layer_files(branch);
    // Into the middle of the second part, as the upper pages of an index are.
    world.write(branch, &[vec![Act::Image(rel(5, 1), 14, 0xee)]]).unwrap();
    part(&mut world, branch, 4);
    let parts: Vec<String> = before.into_keys().collect();
    let (done, moved) = compact(&world, branch);
    assert_eq!(done.merges, 1);
    assert_eq!(moved[..2], [parts[1].clone(), parts[7].clone()]);
    assert_eq!(moved.len(), 3);
    check(&world);
}

/// What moves leave is what merges leave: value by value, at every LSN, and once the cut-off has passed it is gone.
#[test]
fn the_cut_off_ends_it() {
    let (mut world, branch) = branched();
    for number in 1..5 {
        part(&mut world, branch, number);
    }
    let timeline = world.timeline(branch);
    let (_, moved) = compact(&world, branch);
    assert_eq!(moved.len(), 4);
    // Written once more: the first ones are history.
    for number in 1..5 {
        part(&mut world, branch, number);
    }
    let before = world.layer_files(branch);
    world.gc(branch, timeline.last_record_lsn()).unwrap();
    timeline.compact(true).unwrap();
    let after = world.layer_files(branch);
    assert!(before.keys().all(|name| !after.contains_key(name)));
    assert!(timeline.info().layer_bytes < before.values().sum());
    check(&world);
    // Below the cut-off nothing is moved: there may be something to drop.
    let (mut world, branch) = branched();
    for number in 1..5 {
        part(&mut world, branch, number);
        let timeline = world.timeline(branch);
        timeline.set_leases([timeline.disk_consistent_lsn()]).unwrap();
    }
    let before = world.layer_files(branch);
    let last = world.timelines[branch].last;
    world.gc(branch, last).unwrap();
    let after = world.layer_files(branch);
    assert!(before.keys().all(|name| !after.contains_key(name)));
    check(&world);
}

/// What a long load leaves is packed into larger layers as it goes: no run is made of any number of small ones.
#[test]
fn a_merge_moves_a_bounded_number() {
    let options = EngineOptions { fan_in: 70, runs_max: 100, ..options() };
    let mut world = World::begin_with(CrashFs::new(), options).unwrap();
    let branch = world.branch(0, START).unwrap();
    (1..71).for_each(|number| part(&mut world, branch, number));
    let before = world.timeline(branch).info();
    assert_eq!((before.runs, before.layers), (70, 210));
    let (done, moved) = compact(&world, branch);
    assert_eq!((done.merges, moved.len()), (1, 64));
    check(&world);
}

/// Of the files of a flush all are named, or none is there.
#[test]
fn a_flush_that_fails_leaves_no_file() {
    for stage in 0.. {
        let mut world = world(FaultyFs::new(CrashFs::new()));
        part(&mut world, 0, 1);
        let before = world.layer_files(0);
        world.write_part(0, rel(5, 1), 2).unwrap();
        let mut calls = 0;
        world.fs.set_rule(move |call, path| {
            let name = path.to_string_lossy();
            let is_layer = name.ends_with(".layer.tmp") && matches!(call, Call::Write(_));
            calls += u32::from(is_layer);
            (is_layer && calls == stage + 1).then(|| io::Error::from(io::ErrorKind::StorageFull))
        });
        let flushed = world.timeline(0).flush();
        world.fs.clear();
        if flushed.is_ok() {
            assert_eq!(stage, 3, "three files are written");
            return;
        }
        assert_eq!(kind_of(flushed), Some(ErrorKind::Io));
        assert_eq!(world.layer_files(0), before, "stage {stage}");
        world.timeline(0).flush().unwrap();
        assert_eq!(world.layer_files(0).len(), before.len() + 3);
        check(&world);
    }
}

/// A merge that moves layers and fails keeps them, wherever it fails.
#[test]
fn a_merge_that_fails_keeps_what_it_moves() {
    for stage in 0.. {
        let mut world = world(FaultyFs::new(CrashFs::new()));
        (1..5).for_each(|number| part(&mut world, 0, number));
        let before = world.layer_files(0);
        let mut calls = 0;
        world.fs.set_rule(move |call, _| {
            let writes = matches!(call, Call::Write(_));
            calls += u32::from(writes);
            (writes && calls == stage + 1).then(|| io::Error::from(io::ErrorKind::StorageFull))
        });
        let done = world.timeline(0).compact(false);
        world.fs.clear();
        if let Ok(done) = done {
            assert!(done.merges > 0 && stage > 2, "{stage}");
            return;
        }
        assert_eq!(world.layer_files(0), before, "stage {stage}");
        check(&world);
        assert!(world.timeline(0).compact(false).unwrap().merges > 0);
        check(&world);
    }
}

#[test]
fn the_root_moves_too_and_branches_see_it() {
    let mut world = world(CrashFs::new());
    for number in 1..9 {
        part(&mut world, 0, number);
        let middle = Lsn(world.timelines[0].last.0 - 24);
        world.branch(0, middle).unwrap();
    }
    let (done, moved) = compact(&world, 0);
    assert!(done.merges > 0 && moved.len() >= 8, "{done:?} {moved:?}");
    check(&world);
}
