//! What all timelines of one engine share: file system, bounds, caches, the flush queue, the memory gauge.

use std::sync::{
    Arc,
    atomic::{AtomicU64, AtomicUsize, Ordering},
};

use treering_fs::FileSystem;

use crate::{background::FlushQueue, cache::Caches, options::EngineOptions};

/// See the module. No globals: two engines in one process share nothing.
pub(crate) struct Context {
    pub fs: Arc<dyn FileSystem>,
    pub options: EngineOptions,
    pub caches: Caches,
    pub flush_queue: FlushQueue,
    /// Memory of all open and frozen layers.
    pub open_bytes: Arc<AtomicUsize>,
    serials: AtomicU64,
}

impl Context {
    pub fn new(fs: Arc<dyn FileSystem>, options: EngineOptions) -> Context {
        let caches = Caches::new(options.page_cache_bytes, options.block_cache_bytes);
        Context {
            fs,
            options,
            caches,
            flush_queue: FlushQueue::default(),
            open_bytes: Arc::default(),
            serials: AtomicU64::new(1),
        }
    }

    /// A number that names a timeline or a file in the caches; never given twice.
    pub fn next_serial(&self) -> u64 {
        self.serials.fetch_add(1, Ordering::Relaxed)
    }

    /// True when open layers take more memory than they may.
    pub fn is_over_budget(&self) -> bool {
        self.open_bytes.load(Ordering::Relaxed) > self.options.open_bytes_total_max
    }
}
