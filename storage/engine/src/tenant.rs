//! A tenant: one Postgres system identifier, one family of timelines.
//!
//! The tenant manifest decides what exists. Everything that changes it holds `state`; the write is durable before its result is
//! visible or acknowledged. Look-ups take `timelines` only, so they never wait for the disk.

use std::{
    collections::{BTreeMap, HashSet},
    path::{Path, PathBuf},
    sync::{Arc, Weak},
    time::{SystemTime, UNIX_EPOCH},
};

use parking_lot::{Mutex, RwLock};
use treering_pgfmt::version::PgMajor;
use treering_types::{Lsn, TenantId, TimelineId};

use crate::{
    branch::owner_of,
    context::Context,
    error::{EngineError, Result},
    latch::Latch,
    manifest::{TenantManifest, TimelineEntry, TimelineManifest, invariants, store},
    read::ancestry::Lineages,
    recover,
    residence::TenantState,
    timeline::{Origin, Phase, Timeline, TimelineIdentity},
};

/// Postgres's number for the root timeline.
const ROOT_PG_TLI: u32 = 1;
/// Seconds from 1970-01-01 to 2000-01-01, Postgres's epoch.
const POSTGRES_EPOCH_SECONDS: i64 = 946_684_800;

/// Properties of a tenant; they never change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewTenant {
    pub id: TenantId,
    pub pg_major: PgMajor,
    /// Postgres's system identifier.
    pub system_id: u64,
}

/// A tenant at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TenantInfo {
    pub id: TenantId,
    pub pg_major: PgMajor,
    pub system_id: u64,
    pub root: Option<TimelineId>,
    pub timelines: usize,
}

/// See the module.
pub struct Tenant {
    properties: NewTenant,
    context: Arc<Context>,
    directory: PathBuf,
    state: Mutex<State>,
    timelines: RwLock<BTreeMap<TimelineId, Arc<Timeline>>>,
    importing: RwLock<BTreeMap<TimelineId, Arc<Timeline>>>,
    /// Held while a timeline is archived or unarchived.
    archiving: Mutex<()>,
    latch: Latch,
    lineages: Arc<Lineages>,
    itself: Weak<Tenant>,
}

struct State {
    /// As it is on disk.
    manifest: TenantManifest,
    /// Deleted, but the directory may still be there.
    leaving: HashSet<TimelineId>,
    /// The tenant itself is deleted.
    deleted: bool,
}

impl Tenant {
    /// Makes a tenant durable in its (existing) directory.
    pub(crate) fn create(
        context: &Arc<Context>,
        directory: &Path,
        new: NewTenant,
    ) -> Result<Arc<Tenant>> {
        let manifest = TenantManifest {
            tenant: new.id,
            sequence: 1,
            pg_major: new.pg_major,
            system_id: new.system_id,
            next_pg_tli: ROOT_PG_TLI,
            timelines: BTreeMap::new(),
        };
        // Whatever became of it: a tenant that is not acknowledged is made again, or cleared away.
        store::save(context.fs.as_ref(), directory, &manifest)
            .map_err(|failure| failure.latch(&Latch::default()))?;
        Ok(Tenant::with_manifest(context, directory, manifest))
    }

    fn with_manifest(
        context: &Arc<Context>,
        directory: &Path,
        manifest: TenantManifest,
    ) -> Arc<Tenant> {
        let TenantManifest { tenant: id, pg_major, system_id, .. } = manifest;
        Arc::new_cyclic(|itself| Tenant {
            properties: NewTenant { id, pg_major, system_id },
            context: Arc::clone(context),
            directory: directory.to_owned(),
            state: Mutex::new(State { manifest, leaving: HashSet::new(), deleted: false }),
            timelines: RwLock::default(),
            importing: RwLock::default(),
            archiving: Mutex::new(()),
            latch: Latch::default(),
            lineages: Arc::default(),
            itself: Weak::clone(itself),
        })
    }

    /// Opens a tenant with all its timelines, ancestors first, and clears away what its manifest does not name.
    pub(crate) fn open(
        context: &Arc<Context>,
        directory: &Path,
        manifest: TenantManifest,
    ) -> Result<Arc<Tenant>> {
        let mut entries: Vec<_> = manifest.timelines.iter().map(|(id, e)| (*id, *e)).collect();
        entries.sort_by_key(|(_, entry)| entry.pg_tli);
        let tenant = Tenant::with_manifest(context, directory, manifest);
        for (id, entry) in entries {
            let directory = tenant.timeline_directory(id);
            let empty = TimelineManifest::empty(tenant.id(), id, entry.pg_tli, entry.start_lsn);
            let fs = context.fs.as_ref();
            let manifest = recover::timeline_manifest(fs, &directory, empty, entry.flushed)?;
            let phase = if entry.archived { Phase::Archived } else { Phase::Live };
            let timeline = tenant.timeline_from(id, entry, manifest, phase)?;
            tenant.show(timeline);
        }
        let known = tenant.timelines.read().keys().copied().collect();
        recover::remove_unknown_timelines(context.fs.as_ref(), directory, &known)?;
        Ok(tenant)
    }

    fn timeline_from(
        &self,
        id: TimelineId,
        entry: TimelineEntry,
        manifest: TimelineManifest,
        phase: Phase,
    ) -> Result<Arc<Timeline>> {
        let ancestor = match entry.ancestor {
            None => None,
            Some((ancestor, lsn)) => Some((self.timeline(ancestor)?, lsn)),
        };
        let NewTenant { id: tenant, pg_major, system_id } = self.properties;
        let identity = TimelineIdentity {
            tenant,
            timeline: id,
            pg_major,
            system_id,
            pg_tli: entry.pg_tli,
            start_lsn: entry.start_lsn,
            created_at: entry.created_at,
        };
        let tenant = Weak::clone(&self.itself);
        let (lineages, directory) = (Arc::clone(&self.lineages), self.timeline_directory(id));
        let origin = Origin { identity, ancestor, tenant, lineages, directory };
        Ok(Timeline::new(&self.context, origin, manifest, phase))
    }

    /// Makes a live timeline visible, and known to its ancestor.
    fn show(&self, timeline: Arc<Timeline>) {
        if let Some((ancestor, lsn)) = timeline.ancestor() {
            ancestor.change_retained(|retained| retained.add_branch(lsn, timeline.id()));
        }
        self.timelines.write().insert(timeline.id(), timeline);
    }

    pub fn id(&self) -> TenantId {
        self.properties.id
    }

    /// What never changes about it.
    pub fn properties(&self) -> NewTenant {
        self.properties
    }

    /// The tenant now.
    pub fn info(&self) -> TenantInfo {
        let NewTenant { id, pg_major, system_id } = self.properties;
        let timelines = self.timelines.read();
        let root = timelines.values().find(|timeline| timeline.ancestor().is_none());
        let root = root.map(|timeline| timeline.id());
        TenantInfo { id, pg_major, system_id, root, timelines: timelines.len() }
    }

    /// # Errors
    /// NotFound.
    pub fn timeline(&self, id: TimelineId) -> Result<Arc<Timeline>> {
        self.timelines.read().get(&id).cloned().ok_or(EngineError::NoTimeline(id))
    }

    /// All timelines, by id.
    pub fn timelines(&self) -> Vec<Arc<Timeline>> {
        self.timelines.read().values().cloned().collect()
    }

    /// The tenant as it is on disk, consistent in itself: what its timelines have given up, no branch that it names needs. `with_content`: of
    /// which timelines manifest and layers are wanted, by Postgres's number and the count of writes.
    ///
    /// # Errors
    /// NotFound when it is deleted.
    pub fn state(
        &self,
        with_content: impl Fn(TimelineId, u32, u64) -> bool,
    ) -> Result<TenantState> {
        loop {
            // The tenant's manifest first: what it says of a timeline then holds of that timeline's manifest, or of an older one.
            let named = {
                let state = self.state.lock();
                self.check_usable(&state)?;
                state.manifest.clone()
            };
            let timelines: Vec<_> = {
                let timelines = self.timelines.read();
                named.timelines.keys().filter_map(|id| timelines.get(id).cloned()).collect()
            };
            let (mut flushed, mut unflushed) = (Vec::new(), Vec::new());
            for timeline in &timelines {
                let (id, pg_tli) = (timeline.id(), timeline.identity().pg_tli);
                match timeline.state(|sequence| with_content(id, pg_tli, sequence)) {
                    Some(state) => flushed.push(state),
                    None => unflushed.push(Arc::clone(timeline)),
                }
            }
            // A timeline that is deleted meanwhile frees what its ancestors kept for it: then the two do not belong together. One
            // that is just becoming visible, or was made again, is looked at again.
            let now = self.state.lock();
            let still = |(id, entry): (&TimelineId, &TimelineEntry)| {
                let now = now.manifest.timelines.get(id);
                now.is_some_and(|now| now.pg_tli == entry.pg_tli)
            };
            if timelines.len() == named.timelines.len() && named.timelines.iter().all(still) {
                let manifest = store::encode_file(&named);
                let (sequence, timelines) = (named.sequence, flushed);
                return Ok(TenantState { sequence, manifest, timelines, unflushed });
            }
            drop(now);
            std::thread::yield_now();
        }
    }

    /// Counts the writes of the tenant's manifest: what is acknowledged rests on this one or an earlier one.
    pub fn sequence(&self) -> u64 {
        self.state.lock().manifest.sequence
    }

    /// Timelines that are being imported.
    pub(crate) fn importing(&self) -> Vec<Arc<Timeline>> {
        self.importing.read().values().cloned().collect()
    }

    fn timeline_directory(&self, id: TimelineId) -> PathBuf {
        self.directory.join(id.to_string())
    }

    /// Begins an import: the timeline takes batches, all at or above `start_lsn`, but is neither durable nor visible before
    /// [`Timeline::finish_import`]. Abandoned by [`Tenant::delete_timeline`], or by the end of the process: nothing of it is left.
    ///
    /// # Errors
    /// Conflict when the id is taken or the tenant has a root, finished or not.
    pub fn create_root(
        &self,
        id: TimelineId,
        start_lsn: Lsn,
        created_at: i64,
    ) -> Result<Arc<Timeline>> {
        let state = self.state.lock();
        self.check_usable(&state)?;
        if let Some(root) =
            state.manifest.root().or_else(|| self.importing.read().keys().next().copied())
        {
            return Err(EngineError::RootExists { tenant: self.id(), root });
        }
        self.clear_way(&state, id)?;
        let pg_tli = ROOT_PG_TLI.max(state.manifest.next_pg_tli);
        let (ancestor, flushed, archived) = (None, false, false);
        let entry = TimelineEntry { ancestor, pg_tli, start_lsn, created_at, flushed, archived };
        let manifest = TimelineManifest::empty(self.id(), id, pg_tli, start_lsn);
        let timeline = self.timeline_from(id, entry, manifest, Phase::Importing)?;
        self.importing.write().insert(id, Arc::clone(&timeline));
        Ok(timeline)
    }

    /// The last step of an import: its layers and manifest are durable.
    pub(crate) fn publish_root(&self, timeline: &Timeline) -> Result<()> {
        let mut state = self.state.lock();
        let id = timeline.id();
        self.check_usable(&state)?;
        let importing = self.importing.read().get(&id).cloned();
        let importing = importing.ok_or(EngineError::NoTimeline(id))?;
        self.change_manifest(&mut state, |manifest| {
            manifest.timelines.insert(id, timeline.entry(true));
            manifest.next_pg_tli = manifest.next_pg_tli.max(timeline.identity().pg_tli + 1);
        })?;
        importing.set_phase(Phase::Live);
        self.show(importing);
        self.context.changed(self.id());
        self.importing.write().remove(&id);
        Ok(())
    }

    /// Branches `ancestor` at `at`, a record end: the new timeline sees exactly what lies at or below it. Durable on return.
    ///
    /// An LSN below `ancestor`'s own start branches the ancestor's ancestor that holds it. The same call again answers with the
    /// timeline that is there.
    ///
    /// # Errors
    /// NotFound, NotYet above the ancestor's `last_record_lsn`, Gone before the root's start and where gc has been, Conflict when `new` exists
    /// with another ancestor or LSN, Io.
    pub fn branch(&self, new: TimelineId, ancestor: TimelineId, at: Lsn) -> Result<Arc<Timeline>> {
        let mut state = self.state.lock();
        self.check_usable(&state)?;
        let parent = owner_of(&self.timeline(ancestor)?, at)?;
        let origin = Some((parent.id(), at));
        if let Ok(existing) = self.timeline(new) {
            let same = existing.entry(false).ancestor == origin;
            return if same { Ok(existing) } else { Err(EngineError::TimelineExists(new)) };
        }
        self.clear_way(&state, new)?;
        let pg_tli = state.manifest.next_pg_tli;
        let created_at = microseconds_since_2000();
        parent.check_not_deleted()?;
        let (flushed, archived) = (false, false);
        let entry = TimelineEntry {
            ancestor: origin,
            pg_tli,
            start_lsn: at,
            created_at,
            flushed,
            archived,
        };
        let manifest = TimelineManifest::empty(self.id(), new, pg_tli, at);
        let timeline = self.timeline_from(new, entry, manifest, Phase::Live)?;
        // Retained before the promise is made, under the lock that gc plans with: gc has dropped what is needed here, or will not.
        parent.retain_branch(at, new)?;
        let saved = self.change_manifest(&mut state, |manifest| {
            manifest.timelines.insert(new, entry);
            manifest.next_pg_tli = pg_tli + 1;
        });
        if let Err(error) = saved {
            parent.change_retained(|retained| retained.remove_branch(at, new));
            return Err(error);
        }
        self.show(Arc::clone(&timeline));
        Ok(timeline)
    }

    /// Deletes a timeline, or abandons an import. It is gone on return, also after a crash.
    ///
    /// # Errors
    /// Conflict naming the branches that it has, NotFound, Io.
    pub fn delete_timeline(&self, id: TimelineId) -> Result<()> {
        let timeline = self.forget(id)?;
        timeline.set_phase(Phase::Deleted);
        // Waits for a merge and a flush that are under way; none begins after it.
        let _merge = timeline.hold_merges();
        let _manifest = timeline.manifest.lock();
        let removed = self.remove_directory(&timeline.directory);
        self.state.lock().leaving.remove(&id);
        if let Err(error) = removed {
            // The manifest has spoken: the next open, or the next timeline of this id, clears it away.
            tracing::warn!(%error, timeline = %id, "directory of a deleted timeline is left");
        }
        Ok(())
    }

    /// Archives a timeline: it stays what it is, takes neither reads nor writes, and no memory. What was not flushed is to be
    /// written again after [`Tenant::unarchive_timeline`]. Durable on return.
    ///
    /// # Errors
    /// Conflict naming branches that are not archived, NotFound, Io.
    pub fn archive_timeline(&self, id: TimelineId) -> Result<Arc<Timeline>> {
        self.set_archived(id, true)
    }

    /// Makes an archived timeline usable again: what it was at its `disk_consistent_lsn`. Durable on return.
    ///
    /// # Errors
    /// Conflict naming an ancestor that is archived, NotFound, Io.
    pub fn unarchive_timeline(&self, id: TimelineId) -> Result<Arc<Timeline>> {
        self.set_archived(id, false)
    }

    fn set_archived(&self, id: TimelineId, archived: bool) -> Result<Arc<Timeline>> {
        let _archiving = self.archiving.lock();
        let old = self.timeline(id)?;
        let entry = {
            let mut state = self.state.lock();
            self.check_usable(&state)?;
            let entry = state.manifest.timelines.get(&id).copied();
            let entry = entry.ok_or(EngineError::NoTimeline(id))?;
            if entry.archived == archived {
                return Ok(old);
            }
            check_archivable(&state.manifest, id, &entry, archived)?;
            let entry = TimelineEntry { archived, ..entry };
            self.change_manifest(&mut state, |manifest| {
                manifest.timelines.insert(id, entry);
            })?;
            old.set_phase(Phase::Archived);
            entry
        };
        // Waits for a merge and a flush that are under way, not under the tenant's lock: they may want it.
        let _merge = old.hold_merges();
        let manifest = old.manifest.lock().clone();
        let phase = if archived { Phase::Archived } else { Phase::Live };
        let fresh = self.timeline_from(id, entry, manifest, phase)?;
        // The source has what it had.
        old.remote_consistent_lsn().into_iter().for_each(|lsn| fresh.note_remote_consistent(lsn));
        let state = self.state.lock();
        if !state.manifest.timelines.contains_key(&id) {
            return Err(EngineError::NoTimeline(id));
        }
        for (child, lsn) in state.manifest.children(id) {
            fresh.change_retained(|retained| retained.add_branch(lsn, child));
        }
        self.timelines.write().insert(id, Arc::clone(&fresh));
        Ok(fresh)
    }

    fn forget(&self, id: TimelineId) -> Result<Arc<Timeline>> {
        let mut state = self.state.lock();
        self.check_usable(&state)?;
        if let Some(importing) = self.importing.write().remove(&id) {
            state.leaving.insert(id);
            return Ok(importing);
        }
        let timeline = self.timeline(id)?;
        let children: Vec<_> = state.manifest.children(id).map(|(child, _)| child).collect();
        if !children.is_empty() {
            return Err(EngineError::HasChildren { timeline: id, children });
        }
        self.change_manifest(&mut state, |manifest| {
            manifest.timelines.remove(&id);
        })?;
        state.leaving.insert(id);
        self.timelines.write().remove(&id);
        if let Some((ancestor, lsn)) = timeline.ancestor() {
            ancestor.change_retained(|retained| retained.remove_branch(lsn, id));
        }
        Ok(timeline)
    }

    /// Notes once that a timeline has a manifest of its own, so that its loss would be noticed.
    pub(crate) fn note_flushed(&self, timeline: &Timeline) -> Result<()> {
        let mut state = self.state.lock();
        let id = timeline.id();
        let entry = state.manifest.timelines.get(&id).ok_or(EngineError::NoTimeline(id))?;
        if entry.flushed {
            return Ok(());
        }
        self.check_usable(&state)?;
        self.change_manifest(&mut state, |manifest| {
            manifest.timelines.insert(id, timeline.entry(true));
        })
    }

    fn change_manifest(
        &self,
        state: &mut State,
        change: impl FnOnce(&mut TenantManifest),
    ) -> Result<()> {
        let mut next = state.manifest.clone();
        change(&mut next);
        next.sequence += 1;
        if let Err(sentence) = invariants::tenant_step(&state.manifest, &next) {
            panic!("manifest of tenant {} would break: {sentence}", self.id());
        }
        store::save(self.context.fs.as_ref(), &self.directory, &next)
            .map_err(|failure| failure.latch(&self.latch))?;
        state.manifest = next;
        self.context.changed(self.id());
        Ok(())
    }

    fn check_usable(&self, state: &State) -> Result<()> {
        if state.deleted {
            return Err(EngineError::NoTenant(self.id()));
        }
        self.latch.check(|| format!("tenant {}", self.id()))
    }

    /// The id is free, and nothing of an earlier life of it is on disk.
    fn clear_way(&self, state: &State, id: TimelineId) -> Result<()> {
        let taken = state.manifest.timelines.contains_key(&id)
            || self.importing.read().contains_key(&id)
            || state.leaving.contains(&id);
        if taken {
            return Err(EngineError::TimelineExists(id));
        }
        self.remove_directory(&self.timeline_directory(id))
    }

    fn remove_directory(&self, directory: &Path) -> Result<()> {
        recover::remove_directory(self.context.fs.as_ref(), directory)
    }

    /// Marks everything deleted, and waits for merges and flushes that are under way: nothing is written below its directory after this.
    pub(crate) fn abandon(&self) {
        self.state.lock().deleted = true;
        let timelines = std::mem::take(&mut *self.timelines.write());
        let importing = std::mem::take(&mut *self.importing.write());
        // Not under the state's lock: a flush takes it while it holds its timeline's manifest.
        for timeline in timelines.into_values().chain(importing.into_values()) {
            timeline.set_phase(Phase::Deleted);
            drop(timeline.hold_merges());
            drop(timeline.manifest.lock());
        }
    }
}

/// Branches are archived before what they were forked from, and unarchived after it.
fn check_archivable(
    manifest: &TenantManifest,
    id: TimelineId,
    entry: &TimelineEntry,
    archived: bool,
) -> Result<()> {
    let is_used =
        |child: &TimelineId| manifest.timelines.get(child).is_some_and(|child| !child.archived);
    let children: Vec<_> = manifest.children(id).map(|(child, _)| child).filter(is_used).collect();
    if archived && !children.is_empty() {
        return Err(EngineError::HasChildren { timeline: id, children });
    }
    match entry.ancestor.filter(|(ancestor, _)| !archived && !is_used(ancestor)) {
        Some((ancestor, _)) => Err(EngineError::Archived(ancestor)),
        None => Ok(()),
    }
}

/// The clock, in Postgres's unit.
pub(crate) fn microseconds_since_2000() -> i64 {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let micros = i64::try_from(since_1970.as_micros()).unwrap_or(i64::MAX);
    micros.saturating_sub(POSTGRES_EPOCH_SECONDS * 1_000_000)
}
