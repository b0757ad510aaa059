//! What every face of the pageserver shares: the engine, the live timelines, and the few acts on them.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::{
    runtime::{Handle, RuntimeFlavor},
    sync::{Notify, Semaphore, SemaphorePermit},
    task,
    time::sleep,
};
use tokio_util::sync::CancellationToken;
use treering_engine::{
    Boundary, Engine, EngineError, EngineOptions, LayerSource, NewTenant, Tenant,
};
use treering_fs::RealFs;
use treering_pgfmt::version::PgMajor;
use treering_remote::{
    identity::Identity,
    retry::{Asking, Patience},
};
use treering_types::{ErrorKind, Lsn, TenantId, TimelineId};

use crate::{
    clock,
    error::ServiceError,
    import::{self, Templates},
    live::LiveTimeline,
    metrics::Metrics,
    options::PageserverOptions,
    remote::Remote,
};

/// Blocking calls (engine reads and writes, imports) at once.
const BLOCKING_MAX: usize = 64;
/// Leases that ran out are let go of after a tenth of their length, within these bounds.
const EXPIRE_MIN: Duration = Duration::from_millis(100);
const EXPIRE_MAX: Duration = Duration::from_secs(30);
/// Between two looks at the cache of layer files.
const CACHE_TICK: Duration = Duration::from_secs(1);
/// Between two tries to attach while the object store does not answer at the start.
const ATTACH_PAUSE: Duration = Duration::from_secs(2);
/// Base backups at once; the others wait their turn.
const BACKUPS_MAX: usize = 8;

/// A branch that was made, or was there already.
pub struct Branched {
    pub live: Arc<LiveTimeline>,
    /// What was asked, before it was rounded down to a record end.
    pub asked: Lsn,
}

/// See the module.
pub struct Service {
    pub options: PageserverOptions,
    pub engine: Arc<Engine>,
    /// The object store; `None` when the local disk holds all there is.
    pub remote: Option<Arc<Remote>>,
    pub metrics: Metrics,
    templates: Templates,
    live: Mutex<HashMap<(TenantId, TimelineId), Arc<LiveTimeline>>>,
    /// Wakes the polls of the safekeepers, one each.
    pokes: Vec<Notify>,
    blocking: Semaphore,
    pub(crate) backups: Semaphore,
    pub cancel: CancellationToken,
}

impl Service {
    /// Opens the engine. Blocking.
    ///
    /// # Errors
    /// Those of [`Engine::open`].
    pub fn open(
        options: PageserverOptions,
        cancel: CancellationToken,
    ) -> Result<Arc<Service>, ServiceError> {
        let root = options.data_dir.join("tenants");
        std::fs::create_dir_all(&root)?;
        // No gc before every holder of a lease has had time to come again.
        let gc_delay = options.lsn_lease_length;
        let engine_options = EngineOptions { gc_delay, ..options.engine.clone() };
        let remote = open_remote(&options)?;
        let source = remote.clone().map(|remote| remote as Arc<dyn LayerSource>);
        let engine = Engine::open_with_source(Arc::new(RealFs), &root, engine_options, source)?;
        if let Some(remote) = &remote {
            attach_all(remote, &engine, &options, &cancel)?;
        }
        let pokes = options.safekeepers.iter().map(|_| Notify::new()).collect();
        let templates = Templates::new(&options.data_dir, options.pg_bin_dirs.clone());
        Ok(Arc::new(Service {
            options,
            engine,
            remote,
            metrics: Metrics::default(),
            templates,
            live: Mutex::default(),
            pokes,
            blocking: Semaphore::new(BLOCKING_MAX),
            backups: Semaphore::new(BACKUPS_MAX),
            cancel,
        }))
    }

    /// The right to do something that blocks, on a thread of one's own: so many at once.
    ///
    /// # Errors
    /// Shutdown.
    pub(crate) async fn slot(&self) -> Result<SemaphorePermit<'_>, ServiceError> {
        self.blocking.acquire().await.map_err(|_| ServiceError::Shutdown)
    }

    /// Runs something that blocks: in place where the runtime allows it (no hand-over between threads), else on its
    /// blocking pool. Bounded.
    ///
    /// # Errors
    /// Shutdown; else what `work` gives.
    pub async fn blocking<T, E>(
        &self,
        work: impl FnOnce() -> Result<T, E> + Send + 'static,
    ) -> Result<T, ServiceError>
    where
        T: Send + 'static,
        E: Into<ServiceError> + Send + 'static,
    {
        let _slot = self.slot().await?;
        let done = match Handle::current().runtime_flavor() {
            RuntimeFlavor::CurrentThread => {
                task::spawn_blocking(work).await.map_err(|error| match error.try_into_panic() {
                    Ok(panic) => std::panic::resume_unwind(panic),
                    Err(_) => ServiceError::Shutdown,
                })?
            }
            _ => task::block_in_place(work),
        };
        done.map_err(Into::into)
    }

    /// Lets go of the leases that have run out, now and then, until the service stops.
    pub(crate) async fn expire_leases(self: Arc<Self>) {
        let pause = (self.options.lsn_lease_length / 10).clamp(EXPIRE_MIN, EXPIRE_MAX);
        while self.cancel.run_until_cancelled(sleep(pause)).await.is_some() {
            let all: Vec<_> = self.live.lock().values().cloned().collect();
            for live in all {
                live.leases.expire(Instant::now(), |lsns| live.timeline.set_leases(lsns));
            }
        }
    }

    /// Keeps the layer files on the local disk within their bound, until the service stops.
    pub(crate) async fn bound_layer_cache(self: Arc<Self>) {
        let Some(bytes_max) = self.options.layer_cache_bytes.filter(|_| self.remote.is_some())
        else {
            return;
        };
        while self.cancel.run_until_cancelled(sleep(CACHE_TICK)).await.is_some() {
            let engine = Arc::clone(&self.engine);
            let shrunk = self.blocking(move || engine.shrink_layers(bytes_max)).await;
            if let Err(error) = shrunk {
                tracing::warn!(%error, "layer files are not evicted");
            }
        }
    }

    /// Waits until what the tenant's manifest says now would outlive the local disk.
    ///
    /// # Errors
    /// `Fenced` when another pageserver has the tenant, `NotPublished`.
    async fn wait_published(&self, tenant: TenantId) -> Result<(), ServiceError> {
        let Some(remote) = &self.remote else { return Ok(()) };
        let tenant = self.engine.tenant(tenant)?;
        remote.wait_published(&tenant, self.options.publish_wait_max).await
    }

    /// Waits until the store has all that is flushed of a timeline.
    ///
    /// # Errors
    /// As [`Service::wait_published`].
    async fn wait_stored(&self, live: &LiveTimeline) -> Result<(), ServiceError> {
        let Some(remote) = &self.remote else { return Ok(()) };
        let tenant = live.tenant_id();
        let remote = remote.tenant(tenant).ok_or(EngineError::NoTenant(tenant))?;
        let flushed = live.timeline.disk_consistent_lsn();
        let is_stored = |_: &_| live.timeline.durable_lsn() >= flushed;
        remote.wait(self.options.publish_wait_max, is_stored).await
    }

    /// From where on WAL of a timeline has to be kept: by us, or by a safekeeper that is behind.
    pub(crate) fn needed_from(&self, live: &LiveTimeline) -> Lsn {
        let everywhere = live.sources.everywhere(self.options.safekeepers.len());
        live.timeline.durable_lsn().min(everywhere)
    }

    /// Asks the safekeepers for new WAL now rather than at the next poll.
    pub fn poke(&self) {
        self.pokes.iter().for_each(Notify::notify_one);
    }

    /// Returns when the poll of the `nth` safekeeper is to ask again.
    pub(crate) async fn poked(&self, nth: usize) {
        match self.pokes.get(nth) {
            Some(poke) => poke.notified().await,
            None => std::future::pending().await,
        }
    }

    /// A timeline that the engine has.
    ///
    /// # Errors
    /// NotFound.
    pub fn live(
        &self,
        tenant: TenantId,
        timeline: TimelineId,
    ) -> Result<Arc<LiveTimeline>, ServiceError> {
        let mut known = self.live.lock();
        if let Some(live) = known.get(&(tenant, timeline)) {
            return Ok(Arc::clone(live));
        }
        // The way up to the first ancestor that is known, then down again.
        let mut missing = vec![self.engine.timeline(tenant, timeline)?];
        while let Some((ancestor, _)) = missing[missing.len() - 1].ancestor()
            && !known.contains_key(&(tenant, ancestor.id()))
        {
            missing.push(Arc::clone(ancestor));
        }
        loop {
            let Some(next) = missing.pop() else { return Err(ServiceError::Shutdown) };
            let key = (tenant, next.id());
            let ancestor = next.ancestor().and_then(|(ancestor, fork)| {
                Some((Arc::clone(known.get(&(tenant, ancestor.id()))?), fork))
            });
            let (length, stop) = (self.options.lsn_lease_length, self.cancel.child_token());
            let live = Arc::new(LiveTimeline::new(next, ancestor, length, stop));
            known.insert(key, Arc::clone(&live));
            if missing.is_empty() {
                return Ok(live);
            }
        }
    }

    /// Creates a tenant, or answers with the one that is there with the same properties.
    ///
    /// # Errors
    /// Those of the engine.
    pub async fn create_tenant(
        self: &Arc<Self>,
        id: TenantId,
        pg_major: PgMajor,
    ) -> Result<Arc<Tenant>, ServiceError> {
        let service = Arc::clone(self);
        let tenant = self.blocking(move || {
            let engine = &service.engine;
            // The identifier is drawn once; asked again, the tenant keeps its own.
            let kept = engine.tenant(id).ok().map(|tenant| tenant.properties().system_id);
            let system_id = kept.unwrap_or_else(clock::fresh_system_id);
            let new = NewTenant { id, pg_major, system_id };
            match &service.remote {
                None => Ok(engine.create_tenant(new)?),
                Some(remote) => remote.create_tenant(new),
            }
        });
        let tenant = tenant.await?;
        self.wait_published(id).await?;
        Ok(tenant)
    }

    /// Imports the template of the tenant's major as its root timeline. The same call again answers with the root
    /// that is there.
    ///
    /// # Errors
    /// Conflict when the tenant has another root; those of the import.
    pub async fn create_root(
        self: &Arc<Self>,
        tenant: TenantId,
        timeline: TimelineId,
    ) -> Result<Arc<LiveTimeline>, ServiceError> {
        let service = Arc::clone(self);
        self.blocking(move || {
            let found = service.engine.tenant(tenant)?;
            if found.info().root == Some(timeline) {
                return Ok(());
            }
            let data = service.templates.of(found.properties().pg_major)?;
            import::import_cluster(&found, timeline, &data, clock::now())?;
            Ok::<_, ServiceError>(())
        })
        .await?;
        let live = self.live(tenant, timeline)?;
        self.wait_published(tenant).await?;
        self.wait_stored(&live).await?;
        Ok(live)
    }

    /// Forks `new` from `ancestor` at the last record end at or before `at` (`None`: at what is ingested now),
    /// waiting up to `patience` for `at` to be ingested.
    ///
    /// # Errors
    /// NotYet when it was not, Gone before the kept history, Conflict when `new` is something else already.
    pub async fn branch(
        self: &Arc<Self>,
        tenant: TenantId,
        new: TimelineId,
        ancestor: TimelineId,
        at: Option<Lsn>,
        patience: Duration,
    ) -> Result<Branched, ServiceError> {
        let parent = self.live(tenant, ancestor)?;
        let asked = at.unwrap_or_else(|| parent.timeline.last_record_lsn());
        self.wait_for(&parent, asked, patience).await?;
        let service = Arc::clone(self);
        self.blocking(move || {
            let boundary = boundary_at(&parent, asked)?;
            service.engine.tenant(tenant)?.branch(new, ancestor, boundary.end)?;
            Ok::<_, ServiceError>(())
        })
        .await?;
        self.wait_published(tenant).await?;
        Ok(Branched { live: self.live(tenant, new)?, asked })
    }

    /// [`LiveTimeline::wait_for`], asking the safekeepers at once.
    ///
    /// # Errors
    /// As there.
    pub async fn wait_for(
        &self,
        live: &LiveTimeline,
        lsn: Lsn,
        patience: Duration,
    ) -> Result<(), ServiceError> {
        if live.timeline.last_record_lsn() < lsn {
            self.poke();
        }
        live.wait_for(lsn, patience).await
    }

    /// # Errors
    /// NotFound; Conflict while it has branches.
    pub async fn delete_timeline(
        self: &Arc<Self>,
        tenant: TenantId,
        timeline: TimelineId,
    ) -> Result<(), ServiceError> {
        let service = Arc::clone(self);
        let deleted = self.blocking(move || {
            service.engine.tenant(tenant)?.delete_timeline(timeline)?;
            service.forget(|key| *key == (tenant, timeline));
            Ok::<_, ServiceError>(())
        });
        match deleted.await {
            // Perhaps by an earlier call that nobody heard the end of: "gone" is said only once it is so for good.
            Err(error) if error.kind() == ErrorKind::NotFound => {
                self.wait_published(tenant).await?;
                Err(error)
            }
            Err(error) => Err(error),
            Ok(()) => self.wait_published(tenant).await,
        }
    }

    /// Archives a timeline: all of it that is ingested is in the object store, none of its layers on the local disk. What is committed
    /// after that stays with the safekeeper until the timeline is unarchived.
    ///
    /// # Errors
    /// Conflict while branches of it are not archived, or without an object store; `NotPublished`.
    pub async fn archive_timeline(
        self: &Arc<Self>,
        tenant: TenantId,
        timeline: TimelineId,
    ) -> Result<(), ServiceError> {
        if self.remote.is_none() {
            return Err(ServiceError::NoObjectStore);
        }
        let live = self.live(tenant, timeline)?;
        if !live.timeline.is_archived() {
            let flushed = Arc::clone(&live);
            self.blocking(move || flushed.timeline.flush()).await?;
            self.wait_stored(&live).await?;
        }
        let service = Arc::clone(self);
        self.blocking(move || {
            service.engine.tenant(tenant)?.archive_timeline(timeline)?;
            service.forget(|key| *key == (tenant, timeline));
            Ok::<_, ServiceError>(())
        })
        .await?;
        self.wait_published(tenant).await?;
        let archived = self.engine.timeline(tenant, timeline)?;
        self.blocking(move || archived.evict_all()).await.map(drop)
    }

    /// Makes an archived timeline usable again. Its layers are fetched as they are read.
    ///
    /// # Errors
    /// Conflict while what it was forked from is archived; `NotPublished`.
    pub async fn unarchive_timeline(
        self: &Arc<Self>,
        tenant: TenantId,
        timeline: TimelineId,
    ) -> Result<(), ServiceError> {
        let service = Arc::clone(self);
        self.blocking(move || {
            service.engine.tenant(tenant)?.unarchive_timeline(timeline)?;
            service.forget(|key| *key == (tenant, timeline));
            Ok::<_, ServiceError>(())
        })
        .await?;
        self.wait_published(tenant).await?;
        self.poke();
        Ok(())
    }

    /// Deletes a tenant with all its timelines.
    ///
    /// # Errors
    /// NotFound.
    pub async fn delete_tenant(self: &Arc<Self>, tenant: TenantId) -> Result<(), ServiceError> {
        let service = Arc::clone(self);
        self.blocking(move || {
            match &service.remote {
                None => service.engine.delete_tenant(tenant)?,
                Some(remote) => remote.delete_tenant(tenant)?,
            }
            service.forget(|key| key.0 == tenant);
            Ok::<_, ServiceError>(())
        })
        .await
    }

    fn forget(&self, is_gone: impl Fn(&(TenantId, TimelineId)) -> bool) {
        self.live.lock().retain(|key, live| {
            if is_gone(key) {
                live.stop.cancel();
            }
            !is_gone(key)
        });
    }
}

/// The last record end at or before `lsn` that belongs to the history of `live`.
///
/// # Errors
/// Gone when there is none.
pub(crate) fn boundary_at(live: &LiveTimeline, lsn: Lsn) -> Result<Boundary, ServiceError> {
    let found = live.timeline.record_boundary(lsn)?;
    let (timeline, start_lsn) = (live.id(), live.timeline.start_lsn());
    found.ok_or(ServiceError::BeforeStart { timeline, lsn, start_lsn })
}

/// The object store, if one is wanted. Its identity is written down before anything is claimed.
fn open_remote(options: &PageserverOptions) -> Result<Option<Arc<Remote>>, ServiceError> {
    let Some(location) = &options.object_store else { return Ok(None) };
    let fs = Arc::new(RealFs);
    let identity = Identity::begin(fs.as_ref(), &options.data_dir, rand::random)?;
    let store = location.open(fs.clone(), rand::random())?;
    let asking = Asking::new(Patience::DEFAULT);
    Ok(Some(Remote::new(fs, store, asking, identity, true)))
}

/// Attaches all tenants; waits for a store that does not answer.
fn attach_all(
    remote: &Arc<Remote>,
    engine: &Arc<Engine>,
    options: &PageserverOptions,
    cancel: &CancellationToken,
) -> Result<(), ServiceError> {
    loop {
        match remote.attach_all(engine) {
            Ok(()) => {
                remote.settle_identity(&options.data_dir);
                return Ok(());
            }
            Err(error) if cancel.is_cancelled() => return Err(error),
            Err(error) if error.kind() == ErrorKind::Unavailable => {
                tracing::warn!(%error, store = remote.describe(), "waiting for the object store");
                std::thread::sleep(ATTACH_PAUSE);
            }
            Err(error) => return Err(error),
        }
    }
}
