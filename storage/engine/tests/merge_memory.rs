//! A merge takes the memory that it may take, whatever it reads: an allocator counts.
//!
//! One test in a process of its own: nothing else allocates meanwhile.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use treering_engine::{Engine, EngineOptions, NewTenant, Value, WriteBatch};
use treering_fs::RealFs;
use treering_pgfmt::{change::PageChange, version::PgMajor};
use treering_types::{Fork, Key, Lsn, RelTag, SlruKind, TenantId, TimelineId};

struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator as it came.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = NOW.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(now, Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const START: Lsn = Lsn(0x100_0000);
const MERGE_BYTES_MAX: usize = 16 << 20;

/// Bytes that zstd cannot make less of.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (mixed ^ (mixed >> 27)) as u8
    };
    (0..len).map(|_| next()).collect()
}

#[test]
fn a_merge_of_much_takes_little() {
    let folder = tempfile_dir();
    let options = EngineOptions {
        background: false,
        merge_bytes_max: MERGE_BYTES_MAX,
        merge_threads: 2,
        layer_bytes_max: 16 << 20,
        open_layer_bytes_max: 16 << 20,
        runs_hard_max: 1000,
        gc_delay: Duration::ZERO,
        page_cache_bytes: 0,
        block_cache_bytes: 1 << 20,
        ..EngineOptions::default()
    };
    let engine = Engine::open(Arc::new(RealFs), &folder, options).unwrap();
    let new = NewTenant { id: TenantId([1; 16]), pg_major: PgMajor::V15, system_id: 1 };
    let tenant = engine.create_tenant(new).unwrap();
    let root = tenant.create_root(TimelineId([1; 16]), START, 0).unwrap();
    root.finish_import(START).unwrap();
    let rel = RelTag { tablespace: 1663, database: 5, relation: 16384, fork: Fork::Main };
    // A hundred megabytes of images and small values, and a page whose history is most of what there is.
    let mut lsn = START;
    for n in 0..12_000u32 {
        lsn = lsn + 8;
        let mut batch = WriteBatch::new(lsn);
        let page: [u8; 8192] = noise(n.into(), 8192).try_into().unwrap();
        let image = PageChange::Image(Box::new(page).into()).encode();
        batch.put(Key::rel_block(rel, n % 3000), lsn, Value::whole(image));
        for word in 0..4 {
            let change = PageChange::MultiOffsets(vec![(word, n)]).encode();
            batch.put(Key::slru(SlruKind::MultiOffsets, 7), lsn, Value::change(change));
        }
        root.write(batch).unwrap();
    }
    root.flush().unwrap();
    let read = root.info().layer_bytes;
    assert!(read > 90 << 20 && root.info().runs > 5);
    let before = NOW.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    let done = root.compact(true).unwrap();
    let peak = PEAK.load(Ordering::Relaxed) - before;
    println!("{} MB merged in {} KB", done.bytes_read >> 20, peak >> 10);
    assert!(peak <= MERGE_BYTES_MAX, "{peak}");
    PEAK.store(before, Ordering::Relaxed);
    root.gc_below(lsn).unwrap();
    root.compact(true).unwrap();
    let peak = PEAK.load(Ordering::Relaxed) - before;
    assert!(peak <= MERGE_BYTES_MAX, "{peak}");
    assert!(root.info().layer_bytes < read);
    drop((root, tenant, engine));
    std::fs::remove_dir_all(folder).unwrap();
}

fn tempfile_dir() -> std::path::PathBuf {
    let name = format!("treering-merge-memory-{}", std::process::id());
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}
