//! A crash at every file-system call of import, flush, branch, deletion, compaction and gc, in several states that the disk may be
//! in afterwards: whatever was acknowledged stands, and everything that is served is right.

mod support;

use std::collections::BTreeSet;

use support::*;
use treering_engine::{Engine, Result};
use treering_fs::{CrashFs, FileSystem};
use treering_types::{Lsn, TimelineId};

/// What callers were told before the crash.
#[derive(Default)]
struct Acknowledged {
    tenant: bool,
    timelines: Vec<(TimelineId, Option<(TimelineId, Lsn)>)>,
    disk_consistent: Vec<(TimelineId, Lsn)>,
    deleted: BTreeSet<TimelineId>,
}

/// One fixed life of a tenant. Stops at the first error, with everything acknowledged until then in `told`.
fn live(fs: &CrashFs, world: &mut World<CrashFs>, told: &mut Acknowledged) -> Result<()> {
    world.engine = Some(open(fs)?);
    world.engine().create_tenant(new_tenant())?;
    told.tenant = true;
    world.import_root()?;
    told.timelines.push((timeline_id(1), None));
    note_flushed(world, 0, told);

    write(world, 0, 1)?;
    write(world, 0, 2)?;
    flush(world, 0, told)?;
    write(world, 0, 3)?;
    // Above the root's disk_consistent_lsn: the branch may outlive what it was forked from.
    let at = world.timelines[0].last;
    let child = branch(world, 0, at, told)?;
    write(world, child, 4)?;
    flush(world, child, told)?;
    write(world, 0, 5)?;
    flush(world, 0, told)?;

    let middle = Lsn(START.0 + 16);
    let doomed = branch(world, child, middle, told)?;
    write(world, doomed, 6)?;
    flush(world, doomed, told)?;
    let grandchild = branch(world, child, world.timelines[child].last, told)?;
    world.timelines[doomed].deleted = true;
    world.tenant().delete_timeline(timeline_id(doomed as u8 + 1))?;
    told.deleted.insert(timeline_id(doomed as u8 + 1));
    write(world, grandchild, 7)?;
    flush(world, grandchild, told)?;
    flush(world, grandchild, told)?;
    compaction(world, child, told)
}

/// Merges and gc on a root with branches, one of them deleted meanwhile.
fn compaction(world: &mut World<CrashFs>, child: usize, told: &mut Acknowledged) -> Result<()> {
    world.timeline(0).compact(true)?;
    for seed in 8..11 {
        write(world, 0, seed)?;
        flush(world, 0, told)?;
    }
    let pinned = branch(world, 0, Lsn(world.timelines[0].last.0 - 40), told)?;
    // Also the branch of a branch, and with it the pin of its fork, in the middle of what goes.
    world.gc(child, world.timelines[child].last)?;
    world.gc(0, world.timelines[0].last)?;
    world.timeline(0).compact(true)?;
    assert!(
        world.timeline(0).info().cut_off > world.timelines[pinned].ancestor.map_or(START, |a| a.1)
    );
    world.timelines[pinned].deleted = true;
    world.tenant().delete_timeline(timeline_id(pinned as u8 + 1))?;
    told.deleted.insert(timeline_id(pinned as u8 + 1));
    write(world, 0, 11)?;
    flush(world, 0, told)?;
    world.gc(0, world.timelines[0].last)?;
    world.timeline(0).compact(true)?;
    let late = branch(world, 0, world.timelines[0].last, told)?;
    write(world, late, 12)?;
    flush(world, late, told)?;
    world.timeline(child).compact(true)?;
    moves(world, late, told)
}

/// Merges that take layers over: a relation that is written in order.
fn moves(world: &mut World<CrashFs>, on: usize, told: &mut Acknowledged) -> Result<()> {
    for part in 1..7 {
        world.write_part(on, rel(5, 0), part)?;
        flush(world, on, told)?;
        let before = world.layer_files(on);
        if world.timeline(on).compact(false)?.merges > 0 {
            let after = world.layer_files(on);
            let moved = before.keys().filter(|name| after.contains_key(*name)).count();
            // A crash behind the manifest is not an error of the merge.
            assert!(moved > 1 || world.fs.has_crashed(), "{before:?} {after:?}");
        }
    }
    Ok(())
}

fn write(world: &mut World<CrashFs>, index: usize, seed: u32) -> Result<()> {
    let target = rel(5, seed % RELATIONS);
    let delta = |n: u32| vec![Act::Delta(target, n % 2, n % 3, seed * 1000 + n)];
    let mut records: Vec<Vec<Act>> = (0..10).map(delta).collect();
    records.push(vec![Act::Truncate(target, 1)]);
    records.push(vec![Act::Image(target, 2, seed as u8), Act::SlruDelta(0, seed, seed)]);
    records.push(vec![Act::Put(seed, seed as u8), Act::Remove(seed - 1)]);
    records.push(vec![Act::Copy(rel(6, seed % RELATIONS))]);
    world.write(index, &records)
}

fn flush(world: &World<CrashFs>, index: usize, told: &mut Acknowledged) -> Result<()> {
    let result = world.timeline(index).flush();
    // Also after an error: the watermark may be read at any time.
    note_flushed(world, index, told);
    result
}

fn note_flushed(world: &World<CrashFs>, index: usize, told: &mut Acknowledged) {
    let timeline = world.timeline(index);
    told.disk_consistent.push((timeline.id(), timeline.disk_consistent_lsn()));
}

fn branch(
    world: &mut World<CrashFs>,
    from: usize,
    at: Lsn,
    told: &mut Acknowledged,
) -> Result<usize> {
    let index = world.branch(from, at)?;
    let model = &world.timelines[index];
    told.timelines.push((model.id, model.ancestor));
    Ok(index)
}

fn check_after_crash(world: &mut World<CrashFs>, told: &Acknowledged, engine: &Engine) {
    let Ok(tenant) = engine.tenant(TENANT) else {
        assert!(!told.tenant, "an acknowledged tenant is gone");
        return;
    };
    for (id, ancestor) in told.timelines.iter().filter(|(id, _)| !told.deleted.contains(id)) {
        let pending_deletion = world.timelines.iter().any(|t| t.id == *id && t.deleted);
        match tenant.timeline(*id) {
            Ok(timeline) => assert_eq!(timeline.info().ancestor, *ancestor),
            Err(error) => assert!(pending_deletion, "acknowledged timeline {id}: {error}"),
        }
    }
    for id in &told.deleted {
        assert!(tenant.timeline(*id).is_err(), "deleted timeline {id} is back");
    }
    for (id, lsn) in &told.disk_consistent {
        if let Ok(timeline) = tenant.timeline(*id) {
            assert!(timeline.disk_consistent_lsn() >= *lsn, "timeline {id} went back");
            assert_eq!(timeline.last_record_lsn(), timeline.disk_consistent_lsn());
        }
    }
}

/// Drops from the model what was never acknowledged and is not there; keeps what is there though it was not.
fn settle(world: &mut World<CrashFs>) {
    let tenant = world.tenant();
    world.timelines.retain(|model| tenant.timeline(model.id).is_ok());
    world.timelines.iter_mut().for_each(|model| model.deleted = false);
}

fn crash_and_check(n: u64, seed: u64) -> bool {
    let fs = CrashFs::new();
    fs.crash_at(n);
    let mut world =
        World { fs: fs.clone(), options: tiny_options(), engine: None, timelines: Vec::new() };
    let mut told = Acknowledged::default();
    let finished = live(&fs, &mut world, &mut told).is_ok();
    assert!(finished || fs.has_crashed(), "an error without a crash");

    world.reopen(fs.crash(seed)).unwrap_or_else(|error| panic!("call {n}, seed {seed}: {error}"));
    let engine = world.engine().clone();
    check_after_crash(&mut world, &told, &engine);
    if engine.tenant(TENANT).is_err() || world.timelines.is_empty() {
        return finished;
    }
    settle(&mut world);
    assert_no_strays(&world);
    let findings = engine.scrub().findings;
    assert!(findings.is_empty(), "call {n}, seed {seed}: {findings:?}");
    // The root needs nobody else: what it calls consistent is.
    if !world.timelines.is_empty() {
        let root = world.timeline(0);
        world.check(0, root.disk_consistent_lsn());
        world.check(0, START);
    }
    for index in world.live() {
        world.send_again(index).unwrap();
    }
    world.check_all(3);
    engine.flush_all().unwrap();
    world.check_all(1);
    assert_no_strays(&world);
    finished
}

/// Nothing but what manifests name is left on disk.
fn assert_no_strays(world: &World<CrashFs>) {
    let tenant = world.engine().tenant(TENANT).unwrap();
    let root = std::path::Path::new("/engine").join(TENANT.to_string());
    let known: Vec<String> =
        tenant.timelines().iter().map(|timeline| timeline.id().to_string()).collect();
    for name in world.fs.list(&root).unwrap() {
        let ours = name == "manifest" || known.contains(&name);
        assert!(ours || name.ends_with(".tmp"), "{name} is left over");
    }
    for timeline in tenant.timelines() {
        let directory = root.join(timeline.id().to_string());
        let layers = world.fs.list(&directory).unwrap_or_default();
        let layers = layers.iter().filter(|name| name.ends_with(".layer")).count();
        assert_eq!(layers, timeline.info().layers);
    }
}

#[test]
fn whatever_was_acknowledged_survives_a_crash_at_any_call() {
    let mut n = 1;
    loop {
        let mut finished = false;
        for seed in [0, u64::MAX, n, n + 1_000_003] {
            finished = crash_and_check(n, seed);
        }
        if finished {
            break;
        }
        n += 1;
    }
    assert!(n > 60, "the life had only {n} calls");
}

#[test]
fn a_crash_while_recovering_is_recovered_from() {
    let fs = CrashFs::new();
    let mut world =
        World { fs: fs.clone(), options: tiny_options(), engine: None, timelines: Vec::new() };
    let mut told = Acknowledged::default();
    // Somewhere in the flush of the doomed branch, with its directory half made.
    fs.crash_at(75);
    assert!(live(&fs, &mut world, &mut told).is_err());
    world.engine = None;
    let after = fs.crash(u64::MAX);
    for n in 1..40 {
        let again = after.crash(u64::MAX);
        again.crash_at(n);
        let opened = open(&again).is_ok();
        world.reopen(again.crash(n)).unwrap();
        let engine = world.engine().clone();
        check_after_crash(&mut world, &told, &engine);
        if opened {
            return;
        }
    }
    panic!("opening takes more than 40 calls");
}
