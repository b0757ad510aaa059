//! One tenant's way to the store: snapshots of the engine, published; and who waits for that.

use std::{
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};
use tokio::{sync::watch, time::timeout};
use treering_engine::{Tenant, TenantState, TimelineContent};
use treering_fs::FileSystem;
use treering_remote::{
    Attached, RemoteError,
    names::TimelineLife,
    snapshot::{Content, LayerSnapshot, TenantSnapshot, TimelineSnapshot},
};
use treering_types::{ErrorKind, TenantId};

use crate::error::ServiceError;

/// How far the store has come.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    /// The tenant's manifest that the store has: the engine's count of its writes.
    pub sequence: u64,
    /// Why it does not get on.
    pub failure: Option<String>,
    /// Another pageserver has the tenant: it never will.
    pub fenced: Option<RemoteError>,
}

/// See the module.
pub struct TenantRemote {
    pub id: TenantId,
    fs: Arc<dyn FileSystem>,
    pub attached: Attached,
    tenant: Weak<Tenant>,
    progress: watch::Sender<Progress>,
    bell: Mutex<Bell>,
    rung: Condvar,
    /// What is to be uploaded.
    pub queued_layers: AtomicU64,
    pub queued_bytes: AtomicU64,
}

#[derive(Default)]
struct Bell {
    work: bool,
    stop: bool,
}

impl TenantRemote {
    pub(super) fn new(
        fs: Arc<dyn FileSystem>,
        attached: Attached,
        tenant: &Arc<Tenant>,
    ) -> Arc<TenantRemote> {
        Arc::new(TenantRemote {
            id: tenant.id(),
            fs,
            attached,
            tenant: Arc::downgrade(tenant),
            progress: watch::Sender::new(Progress::default()),
            bell: Mutex::new(Bell { work: true, stop: false }),
            rung: Condvar::new(),
            queued_layers: AtomicU64::new(0),
            queued_bytes: AtomicU64::new(0),
        })
    }

    pub fn progress(&self) -> Progress {
        self.progress.borrow().clone()
    }

    /// There is something to publish.
    pub(super) fn ring(&self) {
        self.bell.lock().work = true;
        self.rung.notify_one();
    }

    pub(super) fn stop(&self) {
        self.bell.lock().stop = true;
        self.rung.notify_one();
    }

    /// Waits for work, or for `pause` to be over; false when it is time to stop.
    pub(super) fn wait_for_work(&self, pause: Duration) -> bool {
        let until = Instant::now() + pause;
        let mut bell = self.bell.lock();
        while !bell.work && !bell.stop {
            if self.rung.wait_until(&mut bell, until).timed_out() {
                break;
            }
        }
        bell.work = false;
        !bell.stop
    }

    /// True when it was told to stop while it paused.
    pub(super) fn rest(&self, pause: Duration) -> bool {
        let until = Instant::now() + pause;
        let mut bell = self.bell.lock();
        while !bell.stop {
            if self.rung.wait_until(&mut bell, until).timed_out() {
                break;
            }
        }
        bell.stop
    }

    /// Publishes what the engine has, uploads what the store lacks of it, until there is nothing more; then deletes what is not
    /// needed any more.
    ///
    /// # Errors
    /// `Fenced` and `Deleted` for good. After others it may be called again.
    pub fn turn(&self) -> Result<(), RemoteError> {
        let ended = self.publish_all();
        self.progress.send_modify(|progress| {
            progress.failure = ended.as_ref().err().map(|error| error.to_string());
            progress.fenced = ended.as_ref().err().filter(|error| is_final(error)).cloned();
        });
        ended?;
        self.attached.clean().map(drop)
    }

    fn publish_all(&self) -> Result<(), RemoteError> {
        // Layers that are damaged here; the others go on.
        let mut damaged = Vec::new();
        let mut failure = Ok(());
        loop {
            let (snapshot, state) = self.snapshot()?;
            if self.attached.publish(&snapshot)? {
                self.note_published(&snapshot, &state);
            }
            let missing = self.attached.missing(&snapshot);
            let bytes = missing.iter().map(|(_, layer)| layer.size).sum();
            self.queued_layers.store(missing.len() as u64, Ordering::Relaxed);
            self.queued_bytes.store(bytes, Ordering::Relaxed);
            let next =
                missing.into_iter().find(|(life, layer)| !damaged.contains(&(*life, layer.number)));
            let Some((life, layer)) = next else { return failure };
            match self.attached.upload(self.fs.as_ref(), life, layer) {
                Ok(()) => {}
                // It has been merged away meanwhile.
                Err(RemoteError::Local { source, .. })
                    if source.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) if error.kind() == ErrorKind::Corrupt => {
                    tracing::error!(%error, tenant = %self.id, "a damaged layer is not uploaded");
                    damaged.push((life, layer.number));
                    failure = Err(error);
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn snapshot(&self) -> Result<(TenantSnapshot, TenantState), RemoteError> {
        let gone = || RemoteError::Deleted { tenant: self.id };
        let tenant = self.tenant.upgrade().ok_or(RemoteError::Stopping)?;
        let is_new = |timeline, pg_tli, sequence| {
            !self.attached.has(TimelineLife { timeline, pg_tli }, sequence)
        };
        let mut state = tenant.state(is_new).map_err(|_| gone())?;
        let mut timelines = Vec::new();
        for timeline in &mut state.timelines {
            let content = timeline.content.take();
            timelines.push(TimelineSnapshot {
                timeline: timeline.timeline,
                pg_tli: timeline.pg_tli,
                is_root: timeline.is_root,
                sequence: timeline.sequence,
                disk_consistent_lsn: timeline.disk_consistent_lsn,
                content: content.as_ref().map(published_content),
            });
        }
        let manifest = std::mem::take(&mut state.manifest).into();
        let snapshot = TenantSnapshot { sequence: state.sequence, manifest, timelines };
        Ok((snapshot, state))
    }

    /// The store has it, for good: layers may be evicted, logs may be trimmed, whoever waits may go on.
    fn note_published(&self, snapshot: &TenantSnapshot, state: &TenantState) {
        let Some(tenant) = self.tenant.upgrade() else { return };
        for timeline in &snapshot.timelines {
            if !self.attached.has(timeline.life(), timeline.sequence) {
                continue;
            }
            if let Ok(live) = tenant.timeline(timeline.timeline)
                && live.identity().pg_tli == timeline.pg_tli
            {
                live.note_stored(timeline.sequence);
                live.note_remote_consistent(timeline.disk_consistent_lsn);
            }
        }
        for timeline in &state.unflushed {
            timeline.note_remote_consistent(timeline.start_lsn());
        }
        self.progress.send_modify(|progress| progress.sequence = snapshot.sequence);
    }

    /// Waits until `done`.
    ///
    /// # Errors
    /// `Fenced` or `Deleted`; `NotPublished` after `patience`.
    pub async fn wait(
        &self,
        patience: Duration,
        mut done: impl FnMut(&Progress) -> bool,
    ) -> Result<(), ServiceError> {
        let mut progress = self.progress.subscribe();
        let ready = progress.wait_for(|progress| done(progress) || progress.fenced.is_some());
        match timeout(patience, ready).await {
            Ok(Ok(progress)) if done(&progress) => Ok(()),
            Ok(Ok(progress)) => {
                Err(progress.fenced.clone().map_or(ServiceError::Shutdown, Into::into))
            }
            Ok(Err(_)) => Err(ServiceError::Shutdown),
            Err(_) => {
                let failure = self.progress().failure;
                Err(ServiceError::NotPublished { tenant: self.id, waited: patience, failure })
            }
        }
    }
}

/// Nothing will be published any more.
pub(super) fn is_final(error: &RemoteError) -> bool {
    matches!(error, RemoteError::Fenced { .. } | RemoteError::Deleted { .. })
}

fn published_content(content: &TimelineContent) -> Content {
    let layer = |layer: &treering_engine::LayerState| LayerSnapshot {
        number: layer.number,
        size: layer.size,
        digest: layer.digest,
        path: layer.path.clone(),
        in_use: layer.in_use.clone(),
    };
    let layers = content.layers.iter().map(layer).collect();
    Content { manifest: content.manifest.clone().into(), layers }
}
