//! A timeline: one log's worth of pages, and its ancestor's below its fork LSN.
//!
//! Owners within: [`write`] takes batches, [`read`] answers, [`index`] finds LSNs, [`retention`] knows what must stay readable,
//! `flush` makes layers durable, `compact` merges them. Lock order: writer → tip metadata; compacting → manifest → the tenant's
//! lock → retained. Readers take none: they hold a snapshot of the layers.

mod index;
mod read;
mod retention;
mod state;
mod write;

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering},
    },
};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use treering_pgfmt::version::PgMajor;
use treering_types::{Lsn, TenantId, TimelineId};

use crate::{
    branch::RetainedSet,
    context::{Context, Traffic, TrafficInfo},
    error::{EngineError, Result},
    latch::Latch,
    layer::{LayerOwner, open::OpenLayer},
    layer_map::{LayerMap, LayerSet, Run},
    manifest::{TimelineEntry, TimelineManifest},
    progress::Progress,
    read::ancestry::{Group, Lineages},
    tenant::Tenant,
};
use state::Saved;
use write::TipMetas;
pub(crate) use write::is_page;

/// What never changes about a timeline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TimelineIdentity {
    pub tenant: TenantId,
    pub timeline: TimelineId,
    pub pg_major: PgMajor,
    /// Postgres's system identifier.
    pub system_id: u64,
    /// Postgres's own number for this timeline.
    pub pg_tli: u32,
    /// The fork LSN, or where the import stands.
    pub start_lsn: Lsn,
    /// µs since 2000-01-01.
    pub created_at: i64,
}

/// A timeline's watermarks and sizes at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TimelineInfo {
    pub tenant: TenantId,
    pub timeline: TimelineId,
    /// The ancestor and the fork LSN.
    pub ancestor: Option<(TimelineId, Lsn)>,
    pub pg_tli: u32,
    pub pg_major: PgMajor,
    pub system_id: u64,
    /// µs since 2000-01-01.
    pub created_at: i64,
    pub start_lsn: Lsn,
    pub last_record_lsn: Lsn,
    pub disk_consistent_lsn: Lsn,
    /// `None` without a source of layers.
    pub remote_consistent_lsn: Option<Lsn>,
    /// Layer files, and their bytes.
    pub layers: usize,
    pub layer_bytes: u64,
    /// Of these, bytes on the local disk.
    pub local_layer_bytes: u64,
    /// Memory in the open layer; frozen layers, and their memory.
    pub open_bytes: usize,
    pub frozen_layers: usize,
    pub frozen_bytes: usize,
    /// Runs of layer files: how many files a read may have to look at.
    pub runs: usize,
    /// Bytes of files that the next merge would read, 0 when none is due; and about how many bytes nobody can ask for any more.
    pub compaction_due_bytes: u64,
    pub garbage_bytes: u64,
    /// Below it the timeline's own history has been given up, but for branches and leases.
    pub cut_off: Lsn,
    /// The lowest LSN from which on everything can be read, ancestors included.
    pub earliest_lsn: Lsn,
    pub traffic: TrafficInfo,
    /// Timelines forked from this one.
    pub children: usize,
    /// Why nothing more is written until the engine is opened again.
    pub latched: Option<String>,
}

/// In which part of its life a timeline is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum Phase {
    /// Filled by an import; neither durable nor visible.
    Importing = 0,
    Live = 1,
    Deleted = 2,
    /// Kept, and not to be used.
    Archived = 3,
}

/// See the module.
pub struct Timeline {
    pub(crate) identity: TimelineIdentity,
    pub(crate) context: Arc<Context>,
    tenant: Weak<Tenant>,
    ancestor: Option<(Arc<Timeline>, Lsn)>,
    /// Names its pages in the cache.
    serial: u64,
    /// The tenant's.
    lineages: Arc<Lineages>,
    /// Of the 64 timelines that end with this one, if a branch below needed it.
    group: Mutex<Option<Arc<Group>>>,
    pub(crate) directory: PathBuf,
    layers: ArcSwap<LayerSet>,
    /// Held while `layers` is replaced.
    layers_change: Mutex<()>,
    pub(crate) progress: Progress,
    phase: AtomicU8,
    pub(crate) latch: Latch,
    /// One writer at a time.
    writer: Mutex<()>,
    tip_metas: Mutex<TipMetas>,
    /// Held throughout a merge: one at a time.
    pub(crate) compacting: Mutex<()>,
    /// The manifest as it is on disk; held by whoever flushes, and while a merge is published.
    pub(crate) manifest: Mutex<TimelineManifest>,
    /// The same with its files, for those who must not wait for a flush: always as it is on disk, or as it was a moment ago.
    saved: ArcSwap<Saved>,
    /// The source of layers, if there is one, holds everything up to here.
    remote_consistent: AtomicU64,
    /// Number of the next layer file. Flushes and merges take numbers as they begin, and may give them up.
    pub(crate) layer_numbers: AtomicU64,
    /// The cut-off at which compaction last looked for copied relations without pages of their own.
    pub(crate) copies_looked_at: AtomicU64,
    /// They cannot be given any, until the engine is opened again.
    pub(crate) copies_stay: AtomicBool,
    /// Why the last flush failed, while it may succeed later.
    pub(crate) flush_problem: Mutex<Option<EngineError>>,
    /// Why the last merge failed, while it may succeed later.
    pub(crate) merge_problem: Mutex<Option<EngineError>>,
    retained: Mutex<RetainedSet>,
    /// A copy of the retained set's, for readers.
    cut_off: AtomicU64,
    pub(crate) traffic: Traffic,
}

/// Where a timeline comes from.
pub(crate) struct Origin {
    pub identity: TimelineIdentity,
    pub ancestor: Option<(Arc<Timeline>, Lsn)>,
    pub tenant: Weak<Tenant>,
    pub lineages: Arc<Lineages>,
    pub directory: PathBuf,
}

impl Timeline {
    /// A timeline with the files that its manifest names.
    pub(crate) fn new(
        context: &Arc<Context>,
        origin: Origin,
        manifest: TimelineManifest,
        phase: Phase,
    ) -> Arc<Timeline> {
        let Origin { identity, ancestor, tenant, lineages, directory } = origin;
        let files = open_files(context, &directory, &manifest);
        let open = OpenLayer::new(Arc::clone(&context.open_bytes));
        let layers = LayerSet::of_files(files, open);
        let saved = Saved { manifest: manifest.clone(), files: Arc::clone(&layers.files) };
        let cut_off = manifest.cut_off.max(identity.start_lsn);
        Arc::new(Timeline {
            identity,
            context: Arc::clone(context),
            tenant,
            ancestor,
            serial: context.next_serial(),
            lineages,
            group: Mutex::default(),
            directory,
            layers: ArcSwap::from_pointee(layers),
            layers_change: Mutex::new(()),
            progress: Progress::at(manifest.disk_consistent_lsn),
            phase: AtomicU8::new(phase as u8),
            latch: Latch::default(),
            writer: Mutex::new(()),
            compacting: Mutex::new(()),
            layer_numbers: AtomicU64::new(manifest.next_layer),
            retained: Mutex::new(RetainedSet::new(cut_off, manifest.leases.iter().copied())),
            cut_off: AtomicU64::new(cut_off.0),
            tip_metas: Mutex::default(),
            manifest: Mutex::new(manifest),
            copies_looked_at: AtomicU64::new(0),
            copies_stay: AtomicBool::new(false),
            saved: ArcSwap::from_pointee(saved),
            remote_consistent: AtomicU64::new(0),
            flush_problem: Mutex::new(None),
            merge_problem: Mutex::new(None),
            traffic: Traffic::default(),
        })
    }

    pub fn id(&self) -> TimelineId {
        self.identity.timeline
    }

    /// Names it in the caches.
    pub(crate) fn serial(&self) -> u64 {
        self.serial
    }

    /// What never changes about it.
    pub fn identity(&self) -> &TimelineIdentity {
        &self.identity
    }

    /// The fork LSN, or where the import stands.
    pub fn start_lsn(&self) -> Lsn {
        self.identity.start_lsn
    }

    /// Everything up to here can be read.
    pub fn last_record_lsn(&self) -> Lsn {
        self.progress.last_record_lsn()
    }

    /// Everything up to here survives a crash.
    pub fn disk_consistent_lsn(&self) -> Lsn {
        self.progress.disk_consistent_lsn()
    }

    /// The ancestor and the fork LSN; `None` for a root.
    pub fn ancestor(&self) -> Option<(&Arc<Timeline>, Lsn)> {
        self.ancestor.as_ref().map(|(ancestor, lsn)| (ancestor, *lsn))
    }

    /// Postgres's timeline numbers of all ancestors, oldest first, each with the LSN at which history leaves it: the
    /// lines of the history file.
    pub fn ancestry(&self) -> Vec<(u32, Lsn)> {
        let mut lines = Vec::new();
        let mut at = self.ancestor();
        while let Some((ancestor, lsn)) = at {
            lines.push((ancestor.identity.pg_tli, lsn));
            at = ancestor.ancestor();
        }
        lines.reverse();
        lines
    }

    /// Watermarks and sizes now.
    pub fn info(&self) -> TimelineInfo {
        let TimelineIdentity { tenant, timeline, pg_major, system_id, pg_tli, .. } = self.identity;
        let disk_consistent_lsn = self.disk_consistent_lsn();
        let layers = self.layers();
        let debt = self.debt();
        let latched = self.latch.check(String::new).err().map(|error| error.to_string());
        TimelineInfo {
            tenant,
            timeline,
            ancestor: self.ancestor().map(|(ancestor, lsn)| (ancestor.id(), lsn)),
            pg_tli,
            pg_major,
            system_id,
            created_at: self.identity.created_at,
            start_lsn: self.start_lsn(),
            last_record_lsn: self.last_record_lsn(),
            disk_consistent_lsn,
            remote_consistent_lsn: self.remote_consistent_lsn(),
            layers: layers.files.files().count(),
            layer_bytes: layers.files.files().map(|file| file.desc.size).sum(),
            local_layer_bytes: layers.files.files().map(|file| file.local_bytes()).sum(),
            open_bytes: layers.open.bytes(),
            frozen_layers: layers.frozen.len(),
            frozen_bytes: layers.frozen.iter().map(|layer| layer.bytes()).sum(),
            runs: layers.files.runs.len(),
            compaction_due_bytes: debt.due_bytes,
            garbage_bytes: debt.garbage_bytes,
            cut_off: self.cut_off(),
            earliest_lsn: self.earliest_lsn(),
            traffic: self.traffic.now(),
            children: self.retained.lock().branches().count(),
            latched,
        }
    }

    /// The layers now.
    pub(crate) fn layers(&self) -> Arc<LayerSet> {
        self.layers.load_full()
    }

    /// Replaces the layers.
    pub(crate) fn change_layers(&self, change: impl FnOnce(&LayerSet) -> LayerSet) {
        {
            let _changing = self.layers_change.lock();
            let next = change(&self.layers.load());
            self.layers.store(Arc::new(next));
        }
        // Only now: whoever looks at the ancestors after this finds the new ones.
        if self.retained.lock().branches().next().is_some() {
            self.lineages.forget();
        }
    }

    /// Takes a number for a layer file.
    pub(crate) fn next_layer_number(&self) -> u64 {
        self.layer_numbers.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn owner(&self) -> LayerOwner {
        LayerOwner { tenant: self.identity.tenant, timeline: self.identity.timeline }
    }

    pub(crate) fn tenant(&self) -> Result<Arc<Tenant>> {
        self.tenant.upgrade().ok_or(EngineError::Shutdown)
    }

    pub(crate) fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Acquire) {
            0 => Phase::Importing,
            1 => Phase::Live,
            3 => Phase::Archived,
            _ => Phase::Deleted,
        }
    }

    pub(crate) fn set_phase(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Release);
        self.progress.notify();
    }

    pub(crate) fn check_not_deleted(&self) -> Result<Phase> {
        match self.phase() {
            Phase::Deleted => Err(EngineError::NoTimeline(self.id())),
            Phase::Archived => Err(EngineError::Archived(self.id())),
            phase @ (Phase::Importing | Phase::Live) => Ok(phase),
        }
    }

    /// True for a timeline that has to be unarchived before it is used.
    pub fn is_archived(&self) -> bool {
        self.phase() == Phase::Archived
    }

    /// The tenant's entry for it.
    pub(crate) fn entry(&self, flushed: bool) -> TimelineEntry {
        TimelineEntry {
            ancestor: self.ancestor().map(|(ancestor, lsn)| (ancestor.id(), lsn)),
            pg_tli: self.identity.pg_tli,
            start_lsn: self.identity.start_lsn,
            created_at: self.identity.created_at,
            flushed,
            archived: self.is_archived(),
        }
    }
}

/// Ancestor chains can be long: they are let go one by one, not by recursion.
impl Drop for Timeline {
    fn drop(&mut self) {
        let mut next = self.ancestor.take();
        while let Some((ancestor, _)) = next {
            next = Arc::into_inner(ancestor).and_then(|mut ancestor| ancestor.ancestor.take());
        }
    }
}

fn open_files(context: &Context, directory: &Path, manifest: &TimelineManifest) -> LayerMap {
    let owner = LayerOwner { tenant: manifest.tenant, timeline: manifest.timeline };
    let open = |desc: &crate::layer::LayerDesc| {
        let file = context.open_layer(directory, owner, manifest.pg_tli, desc.clone());
        if let Some(error) = file.broken() {
            tracing::error!(%error, timeline = %manifest.timeline, "layer cannot be read");
        }
        Arc::new(file)
    };
    let runs = manifest
        .runs
        .iter()
        .map(|run| Run { layers: run.layers.iter().map(open).collect(), kept: run.kept });
    LayerMap { runs: runs.collect() }
}
