//! What all timelines of one engine share: file system, bounds, caches, the bells of its threads, the memory gauge.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Instant,
};

use treering_fs::FileSystem;
use treering_types::TenantId;

use crate::{
    background::Bell,
    cache::Caches,
    compact::Haste,
    layer::{LayerDesc, LayerOwner, file::LayerFile},
    options::EngineOptions,
    residence::Residence,
};

/// Bytes of layer files since the engine was opened.
#[derive(Default)]
pub(crate) struct Traffic {
    pub flushed: AtomicU64,
    pub merge_read: AtomicU64,
    pub merge_written: AtomicU64,
}

impl Traffic {
    pub fn count_flush(&self, bytes: u64) {
        self.flushed.fetch_add(bytes, Ordering::Relaxed);
    }

    pub fn count_merge(&self, read: u64, written: u64) {
        self.merge_read.fetch_add(read, Ordering::Relaxed);
        self.merge_written.fetch_add(written, Ordering::Relaxed);
    }

    pub fn now(&self) -> TrafficInfo {
        TrafficInfo {
            flushed_bytes: self.flushed.load(Ordering::Relaxed),
            merge_read_bytes: self.merge_read.load(Ordering::Relaxed),
            merge_written_bytes: self.merge_written.load(Ordering::Relaxed),
        }
    }
}

/// Bytes of layer files since the engine was opened: written by flushes, read and written by merges.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TrafficInfo {
    pub flushed_bytes: u64,
    pub merge_read_bytes: u64,
    pub merge_written_bytes: u64,
}

/// See the module. No globals: two engines in one process share nothing.
pub(crate) struct Context {
    pub fs: Arc<dyn FileSystem>,
    pub options: EngineOptions,
    /// Where layers come from that are not here; `None` when the local disk holds all.
    pub residence: Option<Arc<Residence>>,
    pub caches: Caches,
    pub flush_bell: Bell,
    pub compaction_bell: Bell,
    pub haste: Haste,
    /// Memory of all open and frozen layers.
    pub open_bytes: Arc<AtomicUsize>,
    /// Of all timelines, deleted ones included.
    pub traffic: Traffic,
    serials: AtomicU64,
    opened_at: Instant,
    stopping: AtomicBool,
}

impl Context {
    pub fn new(
        fs: Arc<dyn FileSystem>,
        options: EngineOptions,
        residence: Option<Arc<Residence>>,
    ) -> Context {
        let caches = Caches::new(options.page_cache_bytes, options.block_cache_bytes);
        Context {
            fs,
            options,
            residence,
            caches,
            flush_bell: Bell::default(),
            compaction_bell: Bell::default(),
            haste: Haste::default(),
            open_bytes: Arc::default(),
            traffic: Traffic::default(),
            serials: AtomicU64::new(1),
            opened_at: Instant::now(),
            stopping: AtomicBool::new(false),
        }
    }

    /// Opens a layer of a timeline; one that is elsewhere is fetched when it is needed.
    pub fn open_layer(
        &self,
        directory: &Path,
        owner: LayerOwner,
        pg_tli: u32,
        desc: LayerDesc,
    ) -> LayerFile {
        let serial = self.next_serial();
        match &self.residence {
            None => LayerFile::open(self.fs.as_ref(), directory, owner, desc, serial),
            Some(residence) => {
                LayerFile::open_at_home(residence, directory, owner, pg_tli, (desc, serial))
            }
        }
    }

    /// Tells the source of layers, if there is one, that something of a tenant is durable.
    pub fn changed(&self, tenant: TenantId) {
        if let Some(residence) = &self.residence {
            residence.changed(tenant);
        }
    }

    /// A number that names a timeline or a file in the caches; never given twice.
    pub fn next_serial(&self) -> u64 {
        self.serials.fetch_add(1, Ordering::Relaxed)
    }

    /// The engine goes: work that can be done again later ends soon.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
        self.flush_bell.stop();
        self.compaction_bell.stop();
    }

    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    /// True once whoever held a lease before the engine was opened has had time to ask again.
    pub fn may_collect(&self) -> bool {
        self.opened_at.elapsed() >= self.options.gc_delay
    }

    /// True when open layers take more memory than they may.
    pub fn is_over_budget(&self) -> bool {
        self.open_bytes.load(Ordering::Relaxed) > self.options.open_bytes_total_max
    }
}
