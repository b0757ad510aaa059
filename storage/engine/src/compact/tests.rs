//! What merges leave in files, beyond what reads show.

use std::{path::Path, sync::Arc};

use treering_fs::CrashFs;
use treering_pgfmt::{change::PageChange, version::PgMajor};
use treering_types::{Key, Lsn, SlruKind, TenantId, TimelineId};

use super::{merge::Merge, run::Compacted};
use crate::{Engine, EngineOptions, NewTenant, Timeline, Value, WriteBatch, layer_map::Run};

const START: Lsn = Lsn(0x100_0000);

fn options() -> EngineOptions {
    EngineOptions {
        background: false,
        chain_max: 8,
        gc_delay: std::time::Duration::ZERO,
        ..EngineOptions::default()
    }
}

fn root(options: EngineOptions) -> (Arc<Engine>, Arc<Timeline>) {
    let fs = Arc::new(CrashFs::new());
    let engine = Engine::open(fs, Path::new("/engine"), options).unwrap();
    let new = NewTenant { id: TenantId([1; 16]), pg_major: PgMajor::V15, system_id: 1 };
    let tenant = engine.create_tenant(new).unwrap();
    let root = tenant.create_root(TimelineId([1; 16]), START, 0).unwrap();
    root.finish_import(START).unwrap();
    (engine, root)
}

fn key(page: u32) -> Key {
    Key::slru(SlruKind::MultiOffsets, page)
}

/// Sets word `n` of a page to `n`, by a record that ends `n` bytes after the start.
fn change(timeline: &Timeline, page: u32, n: u64) {
    let change = PageChange::MultiOffsets(vec![(n as u32, n as u32)]);
    let mut batch = WriteBatch::new(START + n);
    batch.put(key(page), START + n, Value::change(change.encode()));
    timeline.write(batch).unwrap();
}

fn words(bytes: &[u8]) -> Vec<u32> {
    let Ok(PageChange::Image(page)) = PageChange::decode(bytes) else { return Vec::new() };
    let page = page.to_page();
    let words = page.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word));
    words.filter(|word| *word > 0).collect()
}

fn runs(timeline: &Timeline) -> Vec<Run> {
    timeline.layers().files.runs.clone()
}

/// An image of a merge once held what a newer run, not part of the merge, held above it: redo then saw those changes twice.
#[test]
fn an_image_holds_nothing_above_its_lsn() {
    let (_engine, root) = root(EngineOptions { fan_in: 4, chain_max: 1000, ..options() });
    // Four runs with a long chain, and a small one above them that does not join.
    for n in 1..=600 {
        change(&root, 1, n);
        if n % 150 == 0 {
            root.flush().unwrap();
        }
    }
    change(&root, 1, 601);
    root.flush().unwrap();
    assert_eq!(runs(&root).len(), 5);
    root.gc_below(root.last_record_lsn()).unwrap();
    assert_eq!(runs(&root).len(), 2);
    let mut merge = Merge::new(&runs(&root)[1..]).unwrap();
    let entry = merge.next().unwrap().unwrap();
    assert_eq!((entry.key, entry.lsn, entry.base), (key(1), START + 600, true));
    assert_eq!(words(&entry.bytes), (1..=600).collect::<Vec<u32>>());
    assert!(merge.next().unwrap().is_none());
    let page = root.get_page(key(1), root.last_record_lsn()).unwrap();
    assert_eq!(page[601 * 4..602 * 4], 601u32.to_le_bytes());
}

/// What any number of threads leaves of the same runs, cut-off included.
#[test]
fn threads_leave_what_one_leaves() {
    let merged = |merge_threads| {
        let options = EngineOptions {
            merge_threads,
            merge_part_bytes_min: 1,
            block_bytes: 512,
            fan_in: 1000,
            runs_max: 1000,
            ..options()
        };
        let (_engine, root) = root(options);
        for n in 1..=900 {
            change(&root, (n % 40) as u32, n);
            if n % 300 == 0 {
                root.flush().unwrap();
            }
        }
        root.set_leases([START + 500]).unwrap();
        root.gc_below(START + 700).unwrap();
        root.compact(true).unwrap();
        let run = runs(&root).remove(0);
        assert_eq!(run.layers.len(), merge_threads);
        assert!(run.layers.is_sorted_by(|a, b| a.desc.key_last < b.desc.key_first));
        let mut merge = Merge::new(&[run]).unwrap();
        let entries = std::iter::from_fn(|| merge.next().unwrap());
        let entries: Vec<_> = entries.map(|e| (e.key, e.lsn, e.base, e.chain, e.bytes)).collect();
        entries
    };
    let one = merged(1);
    assert!(one.len() > 100);
    assert!(merged(2) == one && merged(3) == one);
}

#[test]
fn layers_of_a_run_are_cut_at_keys_and_complete_at_the_bottom() {
    let options = EngineOptions { layer_bytes_max: 4 << 10, block_bytes: 512, ..options() };
    let (_engine, root) = root(options);
    let mut n = 0;
    for round in 0..20u64 {
        for page in 0..50 {
            n += 1;
            let image = PageChange::Image(Box::new([round as u8; 8192]).into());
            let mut batch = WriteBatch::new(START + n);
            batch.put(key(page), START + n, Value::whole(image.encode()));
            root.write(batch).unwrap();
            n += 1;
            change(&root, page, n);
        }
    }
    root.flush().unwrap();
    let before = root.info();
    let Compacted { merges, bytes_read, bytes_written } = root.compact(true).unwrap();
    let after = root.info();
    assert_eq!((merges, bytes_written), (1, after.layer_bytes));
    assert!(bytes_read > 0 && bytes_read <= before.layer_bytes);
    assert_eq!(
        (after.traffic.flushed_bytes, after.traffic.merge_written_bytes),
        (before.layer_bytes, bytes_written)
    );
    let run = &runs(&root)[0];
    assert!(run.layers.len() > 4, "{}", run.layers.len());
    assert!(run.layers.is_sorted_by(|a, b| a.desc.key_last < b.desc.key_first));
    assert!(run.layers.iter().all(|layer| layer.desc.complete));
    // Nineteen of twenty versions are history. It is garbage once the cut-off has passed.
    let share = run.kept.history_bytes as f64 / run.bytes() as f64;
    assert!((0.9..1.0).contains(&share), "{share}");
    assert_eq!(after.garbage_bytes, 0);
    root.set_leases([START + n / 2]).unwrap();
    let done = root.gc_below(root.last_record_lsn()).unwrap();
    assert_eq!(done.merges, 1, "garbage is worth a merge");
    let pinned = root.info().layer_bytes;
    assert!(pinned * 5 < after.layer_bytes, "{pinned} of {}", after.layer_bytes);
    // What only the lease pinned is garbage without it.
    root.set_leases([]).unwrap();
    assert!(root.info().garbage_bytes > 0);
    assert_eq!(root.compact(false).unwrap().merges, 1);
    assert!(root.info().layer_bytes * 3 < pinned * 2);
    assert_eq!(root.compact(false).unwrap().merges, 0, "a merge that is done is done");
}
