//! All timelines of a safekeeper: found at start, created by a proposer's greeting, deleted by an operator.
//!
//! `<data_dir>/<tenant>/<timeline>/` holds `control` and the segments. A deleted timeline leaves a `deleted` mark
//! behind, so that a proposer which has not heard of it cannot bring it back empty; as long as the object store may hold
//! some of its log, the mark says so. One that cannot be opened
//! stays closed and is reported; the others are served. Where it was for lack of room, it is tried again.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use treering_consensus::Greeting;
use treering_fs::{FileSystem, create_dir_durably, read_file, write_atomically};
use treering_types::{ErrorKind, NodeId, TenantId, TimelineId};

use crate::{
    archive::Archive,
    control_file::{CONTROL_FILE, Identity},
    error::StoreError,
    member::Member,
    metrics::Metrics,
    room::Room,
    timeline::{ConnectionId, Timeline, run_blocking},
};

const DELETED_MARK: &str = "deleted";
/// What stands in the mark while the archive may hold some of the log; else it is empty.
const OBJECTS_LEFT: &[u8] = b"archive\n";

type Key = (TenantId, TimelineId);

#[derive(Clone)]
enum Slot {
    Open(Arc<Timeline>),
    /// It could not be opened: why.
    Broken {
        reason: Arc<str>,
        /// It may be opened once there is room.
        is_full: bool,
    },
    Deleted {
        has_objects: bool,
    },
}

/// What all timelines of a safekeeper have in common.
#[derive(Clone)]
pub struct Shared {
    /// What they may take of the disk.
    pub room: Arc<Room>,
    pub archive: Option<Arc<Archive>>,
    /// See [`SafekeeperOptions::lag_limit`](crate::SafekeeperOptions::lag_limit).
    pub lag_limit: u64,
    pub metrics: Arc<Metrics>,
}

/// The timelines of one data directory.
pub struct Timelines {
    fs: Arc<dyn FileSystem>,
    data_dir: PathBuf,
    node: NodeId,
    shared: Shared,
    slots: Mutex<BTreeMap<Key, Slot>>,
    /// Held while a timeline is created or deleted.
    changing: tokio::sync::Mutex<()>,
    connections: AtomicU64,
    stop: CancellationToken,
}

impl Timelines {
    /// Opens everything below `data_dir`. Timelines that cannot be opened are logged and stay closed.
    pub async fn open(
        fs: Arc<dyn FileSystem>,
        data_dir: PathBuf,
        node: NodeId,
        shared: Shared,
        stop: CancellationToken,
    ) -> Result<Timelines, StoreError> {
        let timelines = Timelines {
            fs,
            data_dir,
            node,
            shared,
            slots: Mutex::default(),
            changing: tokio::sync::Mutex::default(),
            connections: AtomicU64::new(0),
            stop,
        };
        let (fs, data_dir) = (timelines.fs.clone(), timelines.data_dir.clone());
        let found = run_blocking(move || find(&*fs, &data_dir)).await??;
        for key in found {
            if let Some(slot) = timelines.load(key).await {
                timelines.slots.lock().insert(key, slot);
            }
        }
        Ok(timelines)
    }

    fn directory(&self, (tenant, timeline): Key) -> PathBuf {
        self.data_dir.join(tenant.to_string()).join(timeline.to_string())
    }

    /// What the directory holds; `None` for one that a crash left before its creation was complete.
    async fn load(&self, key: Key) -> Option<Slot> {
        let (fs, directory, node) = (self.fs.clone(), self.directory(key), self.node);
        let opened = run_blocking(move || open_directory(fs, &directory, node)).await;
        match opened.and_then(|opened| opened) {
            Ok(Opened::Member(member)) => Some(Slot::Open(self.run(*member))),
            Ok(Opened::Deleted { has_objects }) => Some(Slot::Deleted { has_objects }),
            Ok(Opened::Nothing) => None,
            Err(error) => {
                tracing::error!(%error, timeline = %key.1, "timeline stays closed");
                let is_full = error.kind() == ErrorKind::Busy;
                Some(Slot::Broken { reason: error.to_string().into(), is_full })
            }
        }
    }

    /// Opens what could not be opened for lack of room.
    pub async fn open_what_was_full(&self) {
        let _guard = self.changing.lock().await;
        let waits = |slot: &Slot| matches!(slot, Slot::Broken { is_full: true, .. });
        let waiting: Vec<Key> = {
            let slots = self.slots.lock();
            slots.iter().filter(|(_, slot)| waits(slot)).map(|(key, _)| *key).collect()
        };
        for key in waiting {
            if let Some(slot) = self.load(key).await {
                self.slots.lock().insert(key, slot);
            }
        }
    }

    fn run(&self, member: Member) -> Arc<Timeline> {
        let member = member.charged_to(&self.shared.room);
        Arc::new(Timeline::start(member, self.shared.clone(), self.stop.child_token()))
    }

    /// All open timelines, in order of their ids.
    pub fn list(&self) -> Vec<Arc<Timeline>> {
        let slots = self.slots.lock();
        let open = slots.values().filter_map(|slot| match slot {
            Slot::Open(timeline) => Some(timeline.clone()),
            Slot::Broken { .. } | Slot::Deleted { .. } => None,
        });
        open.collect()
    }

    /// Timelines that could not be opened.
    pub fn broken(&self) -> usize {
        self.slots.lock().values().filter(|slot| matches!(slot, Slot::Broken { .. })).count()
    }

    /// # Errors
    /// [`StoreError::NotFound`], [`StoreError::Deleted`], [`StoreError::Latched`] for one that could not be opened.
    pub fn get(&self, tenant: TenantId, timeline: TimelineId) -> Result<Arc<Timeline>, StoreError> {
        match self.slots.lock().get(&(tenant, timeline)) {
            Some(Slot::Open(timeline)) => Ok(timeline.clone()),
            Some(Slot::Broken { reason, .. }) => Err(StoreError::Latched(reason.to_string())),
            Some(Slot::Deleted { .. }) => Err(StoreError::Deleted),
            None => Err(StoreError::NotFound),
        }
    }

    /// The timeline that a greeting describes; created if nobody has spoken of it before.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when the one that exists is of another system, version or Postgres timeline.
    pub async fn greet(&self, greeting: &Greeting) -> Result<Arc<Timeline>, StoreError> {
        let key = (greeting.tenant, greeting.timeline);
        let existing = match self.get(key.0, key.1) {
            Err(StoreError::NotFound) => self.create(key, greeting).await?,
            other => other?,
        };
        check_identity(existing.identity(), greeting)?;
        Ok(existing)
    }

    async fn create(&self, key: Key, greeting: &Greeting) -> Result<Arc<Timeline>, StoreError> {
        let _guard = self.changing.lock().await;
        match self.get(key.0, key.1) {
            Err(StoreError::NotFound) => {}
            other => return other,
        }
        if self.stop.is_cancelled() {
            return Err(StoreError::Shutdown);
        }
        let identity = Identity {
            tenant: greeting.tenant,
            timeline: greeting.timeline,
            system_id: greeting.system_id,
            pg_major: greeting.pg_major,
            pg_tli: greeting.pg_tli,
            pg_ancestors: greeting.pg_ancestors.clone(),
        };
        let (fs, directory, node) = (self.fs.clone(), self.directory(key), self.node);
        let start_lsn = greeting.start_lsn;
        let create = move || Member::create(fs, &directory, node, identity, start_lsn);
        let timeline = self.run(run_blocking(create).await??);
        self.slots.lock().insert(key, Slot::Open(timeline.clone()));
        tracing::info!(timeline = %key.1, %start_lsn, "timeline created");
        Ok(timeline)
    }

    /// Stops a timeline and removes its files; done already is done. What remains is the mark. One that is not known gets it, too:
    /// a proposer's greeting may be on its way to a member that was away. Its log in the archive goes later, when the store
    /// answers.
    pub async fn delete(&self, tenant: TenantId, timeline: TimelineId) -> Result<(), StoreError> {
        let key = (tenant, timeline);
        let _guard = self.changing.lock().await;
        let slot = self.slots.lock().get(&key).cloned();
        match slot {
            Some(Slot::Deleted { .. }) => return Ok(()),
            Some(Slot::Open(open)) => open.shut_down().await,
            Some(Slot::Broken { .. }) | None => {}
        }
        let (fs, directory) = (self.fs.clone(), self.directory(key));
        let has_objects = self.shared.archive.is_some();
        run_blocking(move || mark_deleted(&*fs, &directory, has_objects)).await??;
        self.slots.lock().insert(key, Slot::Deleted { has_objects: false });
        let (fs, directory) = (self.fs.clone(), self.directory(key));
        run_blocking(move || remove_content(&*fs, &directory)).await??;
        // From here on the mark is the archive keeper's.
        self.slots.lock().insert(key, Slot::Deleted { has_objects });
        tracing::info!(%timeline, "timeline deleted");
        Ok(())
    }

    /// Deleted timelines whose log may be in the archive.
    pub(crate) fn with_objects_left(&self) -> Vec<(TenantId, TimelineId)> {
        let slots = self.slots.lock();
        let is_left = |slot: &Slot| matches!(slot, Slot::Deleted { has_objects: true });
        slots.iter().filter(|(_, slot)| is_left(slot)).map(|(key, _)| *key).collect()
    }

    /// Notes that nothing of a deleted timeline is in the archive any more.
    pub(crate) fn note_objects_gone(&self, key: (TenantId, TimelineId)) -> Result<(), StoreError> {
        mark_deleted(&*self.fs, &self.directory(key), false)?;
        self.slots.lock().insert(key, Slot::Deleted { has_objects: false });
        Ok(())
    }

    pub(crate) fn archive(&self) -> Option<&Archive> {
        self.shared.archive.as_deref()
    }

    pub fn node(&self) -> NodeId {
        self.node
    }

    /// What the log may take of the disk, and takes.
    pub fn room(&self) -> &Room {
        &self.shared.room
    }

    /// What the file system has left.
    pub fn free_bytes(&self) -> Result<u64, StoreError> {
        self.fs
            .free_bytes(&self.data_dir)
            .map_err(StoreError::io("ask for the room at", &self.data_dir))
    }

    pub(crate) fn next_connection(&self) -> ConnectionId {
        self.connections.fetch_add(1, Ordering::Relaxed)
    }

    /// Stops all timelines, each with its commit position persisted.
    pub async fn shut_down(&self) {
        self.stop.cancel();
        for timeline in self.list() {
            timeline.shut_down().await;
        }
    }
}

enum Opened {
    Member(Box<Member>),
    Deleted { has_objects: bool },
    Nothing,
}

fn open_directory(
    fs: Arc<dyn FileSystem>,
    directory: &Path,
    node: NodeId,
) -> Result<Opened, StoreError> {
    let exists = |name: &str| {
        let path = directory.join(name);
        fs.exists(&path).map_err(StoreError::io("find", &path))
    };
    if exists(DELETED_MARK)? {
        remove_content(&*fs, directory)?;
        let mark = directory.join(DELETED_MARK);
        let content = read_file(&*fs, &mark).map_err(StoreError::io("read", &mark))?;
        return Ok(Opened::Deleted { has_objects: !content.is_empty() });
    }
    if !exists(CONTROL_FILE)? {
        return Ok(Opened::Nothing);
    }
    Member::open(fs, directory, node).map(Box::new).map(Opened::Member)
}

fn mark_deleted(
    fs: &dyn FileSystem,
    directory: &Path,
    has_objects: bool,
) -> Result<(), StoreError> {
    create_dir_durably(fs, directory).map_err(StoreError::io("create", directory))?;
    let path = directory.join(DELETED_MARK);
    let content = if has_objects { OBJECTS_LEFT } else { b"" };
    write_atomically(fs, &path, content).map_err(StoreError::io("write", &path))
}

fn remove_content(fs: &dyn FileSystem, directory: &Path) -> Result<(), StoreError> {
    for name in fs.list(directory).map_err(StoreError::io("list", directory))? {
        let path = directory.join(&name);
        if name != DELETED_MARK {
            fs.remove_file(&path).map_err(StoreError::io("remove", &path))?;
        }
    }
    Ok(())
}

/// Directories named by a tenant's and a timeline's id. Others are not ours to judge.
fn find(fs: &dyn FileSystem, data_dir: &Path) -> Result<Vec<Key>, StoreError> {
    let names = |path: &Path| fs.list(path).map_err(StoreError::io("list", path));
    let mut keys = Vec::new();
    for tenant in names(data_dir)? {
        let Ok(tenant_id) = tenant.parse::<TenantId>() else { continue };
        let timelines = names(&data_dir.join(tenant))?;
        keys.extend(timelines.iter().filter_map(|name| Some((tenant_id, name.parse().ok()?))));
    }
    Ok(keys)
}

fn check_identity(existing: &Identity, offered: &Greeting) -> Result<(), StoreError> {
    let facts = [
        ("system id", existing.system_id, offered.system_id),
        ("Postgres version", existing.pg_major.into(), offered.pg_major.into()),
        ("Postgres timeline", existing.pg_tli.into(), offered.pg_tli.into()),
    ];
    match facts.into_iter().find(|(_, existing, offered)| existing != offered) {
        None => Ok(()),
        Some((what, existing, offered)) => Err(StoreError::Conflict {
            what,
            existing: existing.to_string(),
            offered: offered.to_string(),
        }),
    }
}
