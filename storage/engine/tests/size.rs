//! What sizes say is what happens: a branch is deleted, gc and a merge run, and the files weigh what was foretold.

mod support;

use std::path::Path;

use support::*;
use treering_engine::{EngineOptions, TimelineSize, Value, WriteBatch};
use treering_fs::{CrashFs, FileSystem};
use treering_pgfmt::change::PageChange;
use treering_types::{Key, Lsn, TimelineId};

const PAGES: u32 = 400;

/// A small generator: the same pages every time.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: u32) -> u32 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as u32 % below
    }
}

/// Options with layers and blocks as large as this test can afford.
fn options() -> EngineOptions {
    EngineOptions {
        open_layer_bytes_max: 64 << 20,
        block_bytes: 32 << 10,
        layer_bytes_max: 1 << 20,
        merge_bytes_max: 64 << 20,
        chain_max: 8,
        ..tiny_options()
    }
}

/// Changes some pages; rows that differ by page and moment, as a table's would.
fn churn(world: &World<CrashFs>, index: usize, lsn: &mut Lsn, dice: &mut Dice, changes: u32) {
    let timeline = world.timeline(index);
    let mut batch = WriteBatch::default();
    for _ in 0..changes {
        *lsn = *lsn + 64;
        let block = dice.roll(PAGES);
        let change = if dice.roll(3) == 0 {
            let mut page = filled(0);
            page.chunks_mut(40).for_each(|row| {
                let text = format!("row {block} {} of {}", dice.roll(1 << 20), lsn.0);
                row[..text.len().min(40)].copy_from_slice(&text.as_bytes()[..text.len().min(40)]);
            });
            PageChange::Image(page.into())
        } else {
            PageChange::MultiOffsets(vec![(dice.roll(2000), dice.roll(u32::MAX))])
        };
        let value = Value { base: change.is_base(), bytes: change.encode() };
        batch.put(Key::slru(treering_types::SlruKind::MultiOffsets, block), *lsn, value);
    }
    batch.last_record_lsn = *lsn;
    timeline.write(batch).unwrap();
    timeline.flush().unwrap();
}

fn bytes_below(fs: &CrashFs, directory: &Path) -> u64 {
    let names = fs.list(directory).unwrap();
    let bytes = |name: String| {
        let path = directory.join(name);
        fs.file_len(&path).unwrap_or_else(|_| bytes_below(fs, &path))
    };
    names.into_iter().map(bytes).sum()
}

fn size_of(sizes: &[TimelineSize], id: TimelineId) -> &TimelineSize {
    sizes.iter().find(|size| size.timeline_id == id).expect("a size of each timeline")
}

fn settle(world: &World<CrashFs>) {
    for timeline in world.tenant().timelines() {
        timeline.gc_below(timeline.disk_consistent_lsn()).unwrap();
        timeline.compact(true).unwrap();
    }
}

#[test]
fn deleting_a_branch_frees_what_was_foretold() {
    for seed in 1..=4 {
        let fs = CrashFs::new();
        let mut world = World::begin_with(fs.clone(), options()).unwrap();
        let (mut lsn, mut dice) = (START, Dice(seed));
        churn(&world, 0, &mut lsn, &mut dice, PAGES * 3);
        // Two at one LSN: neither alone pins anything. One never written to.
        let mut branches = Vec::new();
        for round in 0..3 {
            world.timelines[0].last = lsn;
            branches.push(world.branch(0, lsn).unwrap());
            if round == 1 {
                branches.push(world.branch(0, lsn).unwrap());
            }
            churn(&world, 0, &mut lsn, &mut dice, PAGES);
        }
        for branch in &branches[..3] {
            let mut own = world.timelines[*branch].last;
            churn(&world, *branch, &mut own, &mut dice, PAGES / 4);
        }
        settle(&world);
        let root = Path::new("/engine");
        let mut deleted = 0;
        while let Some(branch) = branches.pop() {
            let id = world.timelines[branch].id;
            let before = bytes_below(&fs, root);
            let calls = fs.calls();
            let sizes = world.tenant().sizes().unwrap();
            assert_eq!(fs.calls(), calls, "measuring changed something");
            check_totals(&world, &sizes, before);
            let own = size_of(&sizes, id).layer_bytes;
            let pinned = size_of(&sizes, timeline_id(1)).pinned_by(id);
            world.tenant().delete_timeline(id).unwrap();
            world.timelines[branch].deleted = true;
            settle(&world);
            let freed = before - bytes_below(&fs, root);
            let foretold = own + pinned;
            // Manifests are a few hundred bytes each.
            let tolerance = (freed / 100).max(1024);
            assert!(freed.abs_diff(foretold) <= tolerance, "seed {seed}: {foretold}, but {freed}");
            deleted += usize::from(pinned > 10_000);
        }
        assert!(deleted >= 3, "branches pinned too little to show anything: {deleted}");
        let last = world.tenant().sizes().unwrap();
        assert_eq!((last.len(), last[0].pinned_bytes, last[0].pins.len()), (1, 0, 0));
    }
}

fn check_totals(world: &World<CrashFs>, sizes: &[TimelineSize], on_disk: u64) {
    let layers: u64 = sizes.iter().map(|size| size.layer_bytes).sum();
    assert!(on_disk.abs_diff(layers) <= 4096, "{layers} in layers, {on_disk} on disk");
    for size in sizes {
        let parts = size.live_bytes + size.window_bytes + size.pinned_bytes + size.garbage_bytes;
        assert!(parts.abs_diff(size.layer_bytes) <= size.layer_bytes / 100, "{size:?}");
        // All was merged just now, and the cut-off is the newest LSN.
        assert!(size.garbage_bytes <= size.layer_bytes / 100, "{size:?}");
        assert!(size.window_bytes <= size.layer_bytes / 100, "{size:?}");
        let alone: u64 = size.pins.iter().map(|pin| pin.alone_bytes).sum();
        assert!(alone <= size.pinned_bytes + size.layer_bytes / 100, "{size:?}");
        let is_branch = size.timeline_id != timeline_id(1);
        assert_eq!(is_branch, size.ancestor_bytes > 0, "{size:?}");
    }
    assert_eq!(sizes.len(), world.live().len());
}

/// History that is not collected yet is the window's, and it is garbage once the cut-off has passed it.
#[test]
fn history_is_the_windows_until_the_cut_off_passes_it() {
    let mut world = World::begin_with(CrashFs::new(), options()).unwrap();
    let (mut lsn, mut dice) = (START, Dice(9));
    for _ in 0..4 {
        churn(&world, 0, &mut lsn, &mut dice, PAGES);
    }
    let root = world.timeline(0);
    root.compact(true).unwrap();
    let kept = root.size().unwrap();
    assert!(kept.window_bytes > kept.layer_bytes / 3, "{kept:?}");
    assert_eq!((kept.pinned_bytes, kept.pins.len()), (0, 0));
    world.timelines[0].last = lsn;
    // Above the cut-off a branch pins nothing that the window does not.
    world.branch(0, lsn).unwrap();
    assert_eq!(root.size().unwrap(), kept);
    root.set_leases([START + 64 * 400]).unwrap();
    let options = options();
    assert!(options.fan_in > 2, "one run is not merged by itself");
    root.gc_below(Lsn(lsn.0 - 64)).unwrap();
    let collected = root.size().unwrap();
    assert!(collected.window_bytes < kept.window_bytes / 10, "{collected:?}");
    assert!(collected.pinned_bytes > 0 && collected.pins.is_empty(), "a lease pins: {collected:?}");
}
