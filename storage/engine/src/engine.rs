//! The engine: all tenants below one directory.
//!
//! ```text
//! <root>/<tenant>/manifest
//! <root>/<tenant>/<timeline>/manifest
//! <root>/<tenant>/<timeline>/<number>.layer
//! ```

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    thread::JoinHandle,
};

use parking_lot::{Mutex, RwLock};
use treering_fs::{FileSystem, create_dir_durably};
use treering_types::{TenantId, TimelineId};

use crate::{
    background,
    cache::READ_LAYERS_SLOTS,
    compact,
    context::{Context, TrafficInfo},
    error::{EngineError, Result},
    options::EngineOptions,
    recover,
    residence::{LayerSource, Residence, ResidenceInfo, TenantImage},
    tenant::{NewTenant, Tenant},
    timeline::Timeline,
};

/// See the module. Dropping it stops its threads and writes nothing: what was not flushed is to be ingested again.
pub struct Engine {
    root: PathBuf,
    context: Arc<Context>,
    tenants: RwLock<BTreeMap<TenantId, Arc<Tenant>>>,
    /// Held while tenants come and go.
    changing: Mutex<()>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Engine {
    /// Opens the engine at `root`, creating it if need be. Each timeline stands at its `disk_consistent_lsn`, whatever
    /// happened before; files that no manifest names are removed.
    ///
    /// One engine per directory: the caller sees to that.
    ///
    /// # Errors
    /// Corrupt naming a manifest that fails its checks, Conflict for files of a newer format, Io. A damaged *layer* does not
    /// keep the engine from opening: reads that need it fail, and [`Engine::scrub`] names it.
    pub fn open(
        fs: Arc<dyn FileSystem>,
        root: &Path,
        options: EngineOptions,
    ) -> Result<Arc<Engine>> {
        Engine::open_with_source(fs, root, options, None)
    }

    /// The same with a local disk that is only a cache: layers that are not there come from `source`.
    ///
    /// # Errors
    /// As [`Engine::open`].
    pub fn open_with_source(
        fs: Arc<dyn FileSystem>,
        root: &Path,
        options: EngineOptions,
        source: Option<Arc<dyn LayerSource>>,
    ) -> Result<Arc<Engine>> {
        create_dir_durably(fs.as_ref(), root)
            .map_err(|error| EngineError::io("creating", root, error))?;
        let background = options.background;
        let residence = source.map(|source| Arc::new(Residence::new(Arc::clone(&fs), source)));
        let context = Arc::new(Context::new(fs, options, residence));
        let tenants = open_tenants(&context, root)?;
        let engine = Arc::new(Engine {
            root: root.to_owned(),
            context: Arc::clone(&context),
            tenants: RwLock::new(tenants),
            changing: Mutex::new(()),
            threads: Mutex::default(),
        });
        if background {
            let error = |error| EngineError::io("starting", root, error);
            let flush = background::spawn(Arc::clone(&context), Arc::downgrade(&engine));
            let flush = flush.map_err(error)?;
            let compaction = compact::thread::spawn(context, Arc::downgrade(&engine));
            engine.threads.lock().extend([flush, compaction.map_err(error)?]);
        }
        Ok(engine)
    }

    /// Creates a tenant; durable on return. The same call again answers with the tenant that is there.
    ///
    /// # Errors
    /// Conflict when it exists with other properties, Io.
    pub fn create_tenant(&self, new: NewTenant) -> Result<Arc<Tenant>> {
        let _changing = self.changing.lock();
        if let Ok(existing) = self.tenant(new.id) {
            let same = existing.properties() == new;
            return if same { Ok(existing) } else { Err(EngineError::TenantExists(new.id)) };
        }
        let directory = self.root.join(new.id.to_string());
        create_dir_durably(self.context.fs.as_ref(), &directory)
            .map_err(|error| EngineError::io("creating", directory.clone(), error))?;
        let tenant = Tenant::create(&self.context, &directory, new)?;
        self.tenants.write().insert(new.id, Arc::clone(&tenant));
        Ok(tenant)
    }

    /// Deletes a tenant with all its timelines. It is gone on return, also after a crash.
    ///
    /// # Errors
    /// NotFound, Io.
    pub fn delete_tenant(&self, id: TenantId) -> Result<()> {
        let _changing = self.changing.lock();
        let tenant = self.tenant(id)?;
        let fs = self.context.fs.as_ref();
        let directory = self.root.join(id.to_string());
        let gone = self.root.join(format!("{id}{}", recover::DELETED_SUFFIX));
        tenant.abandon();
        self.tenants.write().remove(&id);
        recover::remove_directory(fs, &gone)?;
        let renamed = fs.rename(&directory, &gone).and_then(|()| fs.sync_dir(&self.root));
        renamed.map_err(|error| EngineError::io("renaming", directory, error))?;
        recover::remove_directory(fs, &gone)
    }

    /// Opens a tenant that a source had; durable on return. Layers come when they are needed.
    ///
    /// # Errors
    /// Conflict when there is such a tenant here, Corrupt for an image that cannot be, NewerFormat, Io.
    pub fn install_tenant(&self, id: TenantId, image: &TenantImage) -> Result<Arc<Tenant>> {
        let _changing = self.changing.lock();
        if self.tenant(id).is_ok() {
            return Err(EngineError::TenantExists(id));
        }
        let directory = recover::install(self.context.fs.as_ref(), &self.root, id, image)?;
        let tenant = open_tenant(&self.context, &directory, id)?;
        let tenant = tenant.ok_or(EngineError::NoTenant(id))?;
        self.tenants.write().insert(id, Arc::clone(&tenant));
        Ok(tenant)
    }

    /// Evicts layers that the source holds, least recently used first, until those on the local disk take at most `bytes_max`, or
    /// none can be evicted any more. Returns the bytes that are left.
    ///
    /// # Errors
    /// `Io`.
    pub fn shrink_layers(&self, bytes_max: u64) -> Result<u64> {
        let mut left = 0;
        let mut evictable = Vec::new();
        for timeline in self.timelines() {
            for file in timeline.layers().files.files() {
                left += file.local_bytes();
                evictable.extend(file.evictable_since().map(|use_| (use_, Arc::clone(file))));
            }
        }
        evictable.sort_by_key(|(last_use, _)| *last_use);
        for (_, file) in evictable {
            if left <= bytes_max {
                break;
            }
            left = left.saturating_sub(file.evict()?);
        }
        Ok(left)
    }

    /// What the cache of layer files has done; zeros without a source.
    pub fn residence(&self) -> ResidenceInfo {
        self.context.residence.as_ref().map(|residence| residence.info()).unwrap_or_default()
    }

    /// # Errors
    /// NotFound.
    pub fn tenant(&self, id: TenantId) -> Result<Arc<Tenant>> {
        self.tenants.read().get(&id).cloned().ok_or(EngineError::NoTenant(id))
    }

    /// All tenants, by id.
    pub fn tenants(&self) -> Vec<Arc<Tenant>> {
        self.tenants.read().values().cloned().collect()
    }

    /// One timeline of one tenant.
    ///
    /// # Errors
    /// NotFound.
    pub fn timeline(&self, tenant: TenantId, timeline: TimelineId) -> Result<Arc<Timeline>> {
        self.tenant(tenant)?.timeline(timeline)
    }

    /// All timelines of all tenants.
    pub fn timelines(&self) -> Vec<Arc<Timeline>> {
        self.tenants().iter().flat_map(|tenant| tenant.timelines()).collect()
    }

    /// Flushes every timeline: for a clean stop. Goes on past failures and gives the first.
    ///
    /// # Errors
    /// As [`Timeline::flush`].
    pub fn flush_all(&self) -> Result<()> {
        let results: Vec<_> = self.timelines().iter().map(|timeline| timeline.flush()).collect();
        results.into_iter().collect()
    }

    /// What flushes and merges have read and written, of all timelines.
    pub fn traffic(&self) -> TrafficInfo {
        self.context.traffic.now()
    }

    /// Page reads since the engine was opened, by how many layers each had to look into, ancestors' included: files whose filters let it
    /// pass, and layers in memory that held changes of the page.
    pub fn reads_by_layers(&self) -> [u64; READ_LAYERS_SLOTS] {
        self.context.caches.reads_by_layers()
    }

    pub(crate) fn context(&self) -> &Context {
        &self.context
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.context.stop();
        let threads = std::mem::take(&mut *self.threads.lock());
        for thread in threads {
            // The thread itself may hold the last reference for a moment; it ends by itself then.
            if thread.thread().id() != std::thread::current().id() && thread.join().is_err() {
                tracing::error!("a background thread panicked");
            }
        }
    }
}

fn open_tenants(context: &Arc<Context>, root: &Path) -> Result<BTreeMap<TenantId, Arc<Tenant>>> {
    let mut tenants = BTreeMap::new();
    for name in recover::list(context.fs.as_ref(), root)? {
        let directory = root.join(&name);
        let unfinished = name.ends_with(recover::INSTALLING_SUFFIX);
        if unfinished || name.ends_with(recover::DELETED_SUFFIX) {
            recover::remove_directory(context.fs.as_ref(), &directory)?;
        } else if let Ok(id) = name.parse::<TenantId>()
            && let Some(tenant) = open_tenant(context, &directory, id)?
        {
            tenants.insert(id, tenant);
        }
    }
    Ok(tenants)
}

/// `None`, and no directory, when the tenant's creation was cut short.
fn open_tenant(
    context: &Arc<Context>,
    directory: &Path,
    id: TenantId,
) -> Result<Option<Arc<Tenant>>> {
    match recover::judge_tenant(context.fs.as_ref(), directory, id)? {
        Some(manifest) => Tenant::open(context, directory, manifest).map(Some),
        None => {
            recover::remove_directory(context.fs.as_ref(), directory)?;
            Ok(None)
        }
    }
}
