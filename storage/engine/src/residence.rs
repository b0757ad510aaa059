//! Layers that are not here: with a source behind it, the local disk is only a cache of layer files.
//!
//! A layer whose file is missing is fetched when it is first needed: one fetch for all who wait, under a temporary name, its digest checked and its
//! bytes synced before it gets its own. So a file under a layer's name is always whole, and a crash leaves at most a `.tmp`. A layer may be
//! evicted once the source holds it for good; readers that are in it keep it open.

use std::{
    any::Any,
    fmt, io,
    path::{Path, PathBuf},
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
};

use treering_fs::{FileSystem, OpenMode};
use treering_types::{TenantId, TimelineId};

use crate::{
    error::{EngineError, Result},
    layer::{LayerDesc, file},
    timeline::Timeline,
};

/// A layer that the source is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredLayer {
    pub tenant: TenantId,
    pub timeline: TimelineId,
    /// Which life of the timeline id.
    pub pg_tli: u32,
    pub number: u64,
    pub size: u64,
}

/// Where layers come from that are not on the local disk.
pub trait LayerSource: Send + Sync + 'static {
    /// Makes a new file `to` with the layer's bytes. May block for as long as that takes.
    ///
    /// # Errors
    /// Whatever keeps it from that; a part of the file may be there. `NotFound`: the source has no such layer.
    fn fetch(&self, layer: &StoredLayer, to: &Path) -> io::Result<()>;

    /// Something of the tenant has become durable on the local disk that the source may want to know. Must not block.
    fn changed(&self, tenant: TenantId);
}

/// What the cache of layer files has done since the engine was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ResidenceInfo {
    pub fetched_layers: u64,
    pub fetched_bytes: u64,
    pub failed_fetches: u64,
    pub evicted_layers: u64,
    pub evicted_bytes: u64,
}

/// See the module. Shared by all layers of an engine.
pub(crate) struct Residence {
    fs: Arc<dyn FileSystem>,
    source: Arc<dyn LayerSource>,
    /// Counts uses of layers; the least recently used one has the smallest number.
    uses: AtomicU64,
    fetched_layers: AtomicU64,
    fetched_bytes: AtomicU64,
    failed_fetches: AtomicU64,
    evicted_layers: AtomicU64,
    evicted_bytes: AtomicU64,
}

impl fmt::Debug for Residence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Residence")
    }
}

impl Residence {
    pub fn new(fs: Arc<dyn FileSystem>, source: Arc<dyn LayerSource>) -> Residence {
        Residence {
            fs,
            source,
            uses: AtomicU64::new(0),
            fetched_layers: AtomicU64::new(0),
            fetched_bytes: AtomicU64::new(0),
            failed_fetches: AtomicU64::new(0),
            evicted_layers: AtomicU64::new(0),
            evicted_bytes: AtomicU64::new(0),
        }
    }

    pub fn info(&self) -> ResidenceInfo {
        let now = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        ResidenceInfo {
            fetched_layers: now(&self.fetched_layers),
            fetched_bytes: now(&self.fetched_bytes),
            failed_fetches: now(&self.failed_fetches),
            evicted_layers: now(&self.evicted_layers),
            evicted_bytes: now(&self.evicted_bytes),
        }
    }

    pub fn next_use(&self) -> u64 {
        self.uses.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub fn changed(&self, tenant: TenantId) {
        self.source.changed(tenant);
    }

    pub fn has_file(&self, path: &Path) -> Result<bool> {
        self.fs.exists(path).map_err(|error| EngineError::io("looking for", path, error))
    }

    pub fn fs(&self) -> &dyn FileSystem {
        self.fs.as_ref()
    }

    /// Brings a layer's file to its place.
    ///
    /// # Errors
    /// `NotFetched`, `Corrupt` when what came is not the layer, `Io`.
    pub fn fetch(&self, layer: &StoredLayer, path: &Path, desc: &LayerDesc) -> Result<()> {
        let temporary = path.with_extension("layer.fetch.tmp");
        let fetched = self.fetch_to(layer, &temporary, path, desc);
        match &fetched {
            Ok(()) => {
                self.fetched_layers.fetch_add(1, Ordering::Relaxed);
                self.fetched_bytes.fetch_add(layer.size, Ordering::Relaxed);
            }
            Err(_) => {
                self.failed_fetches.fetch_add(1, Ordering::Relaxed);
                let _ = self.fs.remove_file(&temporary);
            }
        }
        fetched
    }

    fn fetch_to(
        &self,
        layer: &StoredLayer,
        temporary: &Path,
        path: &Path,
        desc: &LayerDesc,
    ) -> Result<()> {
        let _ = self.fs.remove_file(temporary);
        self.source.fetch(layer, temporary).map_err(|error| EngineError::NotFetched {
            path: path.to_owned(),
            cause: error.to_string(),
        })?;
        let failed = |error| EngineError::io("fetching", path, error);
        let copy = self.fs.open(temporary, OpenMode::Read).map_err(failed)?;
        file::check_digest(copy.as_ref(), path, desc)?;
        copy.sync_all().map_err(failed)?;
        // The name need not be durable: without it the layer is fetched again.
        self.fs.rename(temporary, path).map_err(failed)
    }

    /// Removes the file of a layer that the source holds.
    ///
    /// # Errors
    /// `Io`.
    pub fn evict(&self, path: &Path, size: u64) -> Result<()> {
        self.fs.remove_file(path).map_err(|error| EngineError::io("removing", path, error))?;
        self.evicted_layers.fetch_add(1, Ordering::Relaxed);
        self.evicted_bytes.fetch_add(size, Ordering::Relaxed);
        Ok(())
    }
}

/// A tenant as its local disk has it, for a source that keeps it: everything here is durable.
pub struct TenantState {
    /// Counts the writes of the tenant's manifest.
    pub sequence: u64,
    /// The file, byte for byte.
    pub manifest: Vec<u8>,
    /// Timelines with a manifest of their own.
    pub timelines: Vec<TimelineState>,
    /// The others.
    pub unflushed: Vec<Arc<Timeline>>,
}

/// One timeline of it.
pub struct TimelineState {
    pub timeline: TimelineId,
    pub pg_tli: u32,
    pub is_root: bool,
    /// Counts the writes of the timeline's manifest.
    pub sequence: u64,
    pub disk_consistent_lsn: treering_types::Lsn,
    /// `None` when it was not asked for.
    pub content: Option<TimelineContent>,
}

/// Its manifest and layers.
pub struct TimelineContent {
    /// The file, byte for byte.
    pub manifest: Vec<u8>,
    pub layers: Vec<LayerState>,
}

/// One layer.
pub struct LayerState {
    pub number: u64,
    pub size: u64,
    /// SHA-256 as in the footer.
    pub digest: [u8; 32],
    pub path: PathBuf,
    /// Alive while somebody may read the layer.
    pub in_use: Weak<dyn Any + Send + Sync>,
}

/// A tenant as a source had it, to be opened here.
pub struct TenantImage {
    /// The manifest file of the tenant, and of each timeline that was flushed.
    pub manifest: Vec<u8>,
    pub timelines: Vec<(TimelineId, Vec<u8>)>,
}
