//! The object store behind the engine: which tenants are attached, and with what they began.
//!
//! The local disk is a cache of layer files, and the place where manifests are made; [`uploader`] carries them to the store. What the
//! pageserver acknowledges to others (a branch, a deletion, how far the safekeeper may trim) rests on the store alone.

mod tenant;
mod uploader;

use std::{
    collections::{BTreeSet, HashMap},
    io,
    path::Path,
    sync::{Arc, OnceLock, Weak},
    time::Duration,
};

use parking_lot::{Mutex, RwLock};
use treering_engine::{Engine, LayerSource, NewTenant, StoredLayer, Tenant, TenantImage};
use treering_fs::FileSystem;
use treering_remote::{
    Attached, RemoteError, Store,
    attach::{self, Begin, Found, LocalState},
    generation,
    identity::Identity,
    names::{self, TimelineLife},
    retry::Asking,
    snapshot::LayerId,
};
use treering_types::{ErrorKind, TenantId};

use crate::error::ServiceError;
pub use tenant::{Progress, TenantRemote};

/// See the module.
pub struct Remote {
    fs: Arc<dyn FileSystem>,
    store: Arc<dyn Store>,
    pub asking: Asking,
    identity: Identity,
    engine: OnceLock<Weak<Engine>>,
    attached: RwLock<HashMap<TenantId, Arc<TenantRemote>>>,
    /// Held while tenants come and go.
    attaching: Mutex<()>,
    /// Threads of their own for uploads. Without them the owner carries out [`TenantRemote::turn`] (simulations).
    background: bool,
}

impl Remote {
    pub fn new(
        fs: Arc<dyn FileSystem>,
        store: Arc<dyn Store>,
        asking: Asking,
        identity: Identity,
        background: bool,
    ) -> Arc<Remote> {
        Arc::new(Remote {
            fs,
            store,
            asking,
            identity,
            engine: OnceLock::new(),
            attached: RwLock::default(),
            attaching: Mutex::new(()),
            background,
        })
    }

    pub fn describe(&self) -> String {
        self.store.describe()
    }

    /// Attaches every tenant that the engine or the store knows. The engine has this as its source of layers.
    ///
    /// # Errors
    /// The first tenant that cannot be attached.
    pub fn attach_all(self: &Arc<Self>, engine: &Arc<Engine>) -> Result<(), ServiceError> {
        let _ = self.engine.set(Arc::downgrade(engine));
        let mut ids: BTreeSet<TenantId> =
            engine.tenants().iter().map(|tenant| tenant.id()).collect();
        let folders = self.asking.ask(|| self.store.list(""))?;
        ids.extend(
            folders.iter().filter_map(|name| name.strip_suffix('/')?.parse::<TenantId>().ok()),
        );
        for id in ids {
            let _attaching = self.attaching.lock();
            if self.tenant(id).is_none() {
                self.attach(engine, id, None)?;
            }
        }
        Ok(())
    }

    /// Forgets earlier lives of the directory: every tenant is attached by this one.
    pub fn settle_identity(&self, directory: &Path) {
        let mut identity = self.identity.clone();
        if let Err(error) = identity.forget_earlier(self.fs.as_ref(), directory) {
            tracing::debug!(%error, "earlier lives stay in the identity");
        }
    }

    /// Creates a tenant, here and in the store, or answers with the one that is there.
    ///
    /// # Errors
    /// Conflict when it exists with other properties; those of the store.
    pub fn create_tenant(self: &Arc<Self>, new: NewTenant) -> Result<Arc<Tenant>, ServiceError> {
        let engine = self.engine()?;
        let _attaching = self.attaching.lock();
        if self.tenant(new.id).is_none() {
            self.attach(&engine, new.id, Some(new))?;
        }
        Ok(engine.create_tenant(new)?)
    }

    /// Deletes a tenant in the store, then here.
    ///
    /// # Errors
    /// NotFound; those of the store: then it may still be there, and the call is to be made again.
    pub fn delete_tenant(&self, id: TenantId) -> Result<(), ServiceError> {
        let engine = self.engine()?;
        let _attaching = self.attaching.lock();
        if let Some(remote) = self.tenant(id) {
            match remote.attached.delete_tenant() {
                // Rubbish that stays is swept by the next start.
                Ok(()) | Err(RemoteError::Deleted { .. }) => {}
                Err(error) => return Err(error.into()),
            }
            remote.stop();
            self.attached.write().remove(&id);
        }
        Ok(engine.delete_tenant(id)?)
    }

    /// An attached tenant.
    pub fn tenant(&self, id: TenantId) -> Option<Arc<TenantRemote>> {
        self.attached.read().get(&id).cloned()
    }

    /// All of them.
    pub fn tenants(&self) -> Vec<Arc<TenantRemote>> {
        self.attached.read().values().cloned().collect()
    }

    /// Waits until the store has what the tenant's manifest says now.
    ///
    /// # Errors
    /// `Fenced` when another pageserver has the tenant; `NotPublished` after `patience`: what was asked is done here and may or may not last.
    pub async fn wait_published(
        &self,
        tenant: &Tenant,
        patience: Duration,
    ) -> Result<(), ServiceError> {
        let sequence = tenant.sequence();
        let remote = self.tenant(tenant.id());
        let remote = remote.ok_or(RemoteError::Deleted { tenant: tenant.id() })?;
        remote.wait(patience, |progress| progress.sequence >= sequence).await
    }

    /// Ends uploads; what is under way ends soon.
    pub fn stop(&self) {
        self.asking.stop.stop();
        let attached = std::mem::take(&mut *self.attached.write());
        attached.values().for_each(|remote| remote.stop());
    }

    fn engine(&self) -> Result<Arc<Engine>, ServiceError> {
        self.engine.get().and_then(Weak::upgrade).ok_or(ServiceError::Shutdown)
    }

    /// `new`: created if there is no such tenant. Called with `attaching` held.
    fn attach(
        self: &Arc<Self>,
        engine: &Arc<Engine>,
        id: TenantId,
        new: Option<NewTenant>,
    ) -> Result<(), ServiceError> {
        let here = engine.tenant(id).ok();
        if here.is_none() && new.is_none() && self.is_only_a_tombstone(id)? {
            return Ok(());
        }
        let claimed =
            self.asking.ask(|| generation::claim(self.store.as_ref(), id, &self.identity))?;
        let found = attach::find(self.store.as_ref(), &self.asking, id, claimed)?;
        let local = here.as_ref().map(|tenant| local_state(tenant)).transpose()?;
        let begin = attach::begin(id, &found, local.as_ref())?;
        tracing::info!(tenant = %id, generation = ?claimed.generation, ?begin, "attached");
        let attached = Attached::new(Arc::clone(&self.store), self.asking.clone(), id, &found);
        match begin {
            Begin::Local => {}
            Begin::Store => {
                if here.is_some() {
                    engine.delete_tenant(id)?;
                }
                engine.install_tenant(id, &image(&found)?)?;
            }
            Begin::Deleted if here.is_some() => engine.delete_tenant(id)?,
            Begin::Deleted | Begin::Nothing => {}
        }
        let tenant = match (begin, new) {
            (Begin::Local | Begin::Store, _) => engine.tenant(id)?,
            (Begin::Deleted | Begin::Nothing, Some(new)) => engine.create_tenant(new)?,
            (Begin::Deleted, None) => {
                if let Err(error) = attached.delete_tenant() {
                    tracing::warn!(%error, tenant = %id, "rubbish of a deleted tenant stays until the next start");
                }
                return Ok(());
            }
            (Begin::Nothing, None) => return Ok(()),
        };
        let remote = TenantRemote::new(Arc::clone(&self.fs), attached, &tenant);
        self.attached.write().insert(id, Arc::clone(&remote));
        if self.background {
            uploader::spawn(remote)?;
        }
        Ok(())
    }

    /// True for a tenant that was deleted to the end: nothing is left to do, so no generation is spent on it.
    fn is_only_a_tombstone(&self, id: TenantId) -> Result<bool, ServiceError> {
        let top = names::tenant_folder(id);
        let folders = self.asking.ask(|| self.store.list(&top))?;
        if folders.iter().any(|folder| names::parse_life(folder).is_some()) {
            return Ok(false);
        }
        let indexes = self.asking.ask(|| self.store.list(&names::indexes_folder(id)))?;
        Ok(match indexes.as_slice() {
            [] => true,
            [only] => {
                let name = format!("{}{only}", names::indexes_folder(id));
                let bytes = self.asking.ask(|| self.store.get(&name))?;
                let (generation, version) = names::parse_numbered(only).unwrap_or_default();
                let index = treering_remote::index::Index::decode(id, generation, version, &bytes)?;
                index.manifest.is_none()
            }
            [..] => false,
        })
    }
}

fn local_state(tenant: &Tenant) -> Result<LocalState, ServiceError> {
    let state = tenant.state(|_, _, _| false)?;
    let timelines = state.timelines.iter();
    let timelines = timelines.map(|at| (at.timeline, (at.pg_tli, at.sequence))).collect();
    Ok(LocalState { sequence: state.sequence, timelines })
}

fn image(found: &Found) -> Result<TenantImage, ServiceError> {
    let manifest = found.index.as_ref().and_then(|index| index.manifest.clone());
    let manifest = manifest.map(|bytes| bytes.to_vec()).unwrap_or_default();
    let timelines = found.objects.iter();
    let timelines = timelines.map(|(id, object)| (*id, object.manifest.to_vec())).collect();
    Ok(TenantImage { manifest, timelines })
}

impl LayerSource for Remote {
    fn fetch(&self, layer: &StoredLayer, to: &Path) -> io::Result<()> {
        let StoredLayer { tenant, timeline, pg_tli, number, .. } = *layer;
        let life = TimelineLife { timeline, pg_tli };
        let remote = self.tenant(tenant).ok_or_else(|| io::Error::other("not attached"))?;
        let fetched = remote.attached.fetch(LayerId { tenant, life, number }, self.fs.as_ref(), to);
        fetched.map_err(|error| match error.kind() {
            ErrorKind::NotFound => io::Error::new(io::ErrorKind::NotFound, error),
            _ => io::Error::other(error),
        })
    }

    fn changed(&self, tenant: TenantId) {
        if let Some(remote) = self.attached.read().get(&tenant) {
            remote.ring();
        }
    }
}
