//! An attached tenant: one generation's way to change what is in the store.
//!
//! The order, and what each step rests on:
//!
//! 1. *Upload* layers and timeline manifests under names that only this generation uses. Nothing refers to them yet.
//! 2. *Publish*: put the next index. It is settled (known to be there, byte for byte) before another one is made.
//! 3. *Confirm*: claim *g* + 1 does not exist. Only now may anybody be told of what the index says: whoever claims later looks for indexes
//!    after claiming, and finds this one or a newer one.
//! 4. *Delete* what earlier indexes named and this one does not, once no reader here needs it. Whoever attaches later begins with this index or a
//!    newer one, and no name is ever used again: nobody can need them.
//!
//! One thread publishes and deletes at a time; fetches wait for neither.

use std::{
    any::Any,
    collections::{BTreeMap, BTreeSet, HashMap},
    path::Path,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use treering_fs::FileSystem;
use treering_types::{TenantId, TimelineId};

use crate::{
    attach::Found,
    error::{RemoteError, Result},
    generation::{self, Generation},
    index::{Index, TimelineAt, TimelineObject},
    names::{self, TimelineLife},
    retry::{Asking, Counters},
    snapshot::{Content, LayerId, LayerSnapshot, TenantSnapshot, TimelineSnapshot, unused},
    store::Store,
    verify,
};

/// See the module.
pub struct Attached {
    store: Arc<dyn Store>,
    asking: Asking,
    tenant: TenantId,
    generation: Generation,
    /// Objects that wait to be deleted, for those who only want to know how many.
    garbage_count: AtomicUsize,
    /// Layers in the store, and who wrote them; what is fetched is looked up here.
    layers: RwLock<HashMap<(TimelineLife, u64), Generation>>,
    state: Mutex<State>,
    is_fenced: AtomicBool,
}

struct State {
    /// The newest index that is known to be there. Before this generation's first, an earlier generation's.
    index: Option<Index>,
    /// Layers of the timelines in `index`.
    layers: Layers,
    /// An index of ours that may be there.
    pending: Option<Next>,
    /// This generation was the newest after `index` was put.
    is_confirmed: bool,
    /// In the store, and named by no index that anybody may begin with once `is_confirmed`.
    garbage: BTreeMap<String, Garbage>,
    /// The last snapshot is published with all its layers: what is named by nothing now will not be named again. A layer that waits for
    /// its timeline must not be deleted, not even by a call that fails and happens later.
    is_complete: bool,
    /// What earlier generations left is gone.
    is_swept: bool,
    is_deleted: bool,
}

type Layers = BTreeMap<TimelineLife, BTreeMap<u64, LayerAt>>;

#[derive(Clone)]
struct LayerAt {
    generation: Generation,
    in_use: Weak<dyn Any + Send + Sync>,
}

/// An object that waits to be deleted: of a layer, which one, and who may still read it.
type Garbage = Option<((TimelineLife, u64), Weak<dyn Any + Send + Sync>)>;

/// What the next index says.
struct Next {
    index: Index,
    layers: Layers,
}

impl Attached {
    /// Goes on from what was found. Nothing is in the store under the new generation before the first [`Attached::publish`].
    pub fn new(store: Arc<dyn Store>, asking: Asking, tenant: TenantId, found: &Found) -> Attached {
        let layers = layers_found(found);
        let known = layers.iter().flat_map(|(life, layers)| {
            layers.iter().map(|(number, at)| ((*life, *number), at.generation))
        });
        Attached {
            store,
            asking,
            tenant,
            generation: found.claimed.generation,
            garbage_count: AtomicUsize::new(0),
            layers: RwLock::new(known.collect()),
            state: Mutex::new(State {
                index: found.index.clone(),
                pending: None,
                is_confirmed: false,
                layers,
                garbage: BTreeMap::new(),
                is_complete: false,
                is_swept: false,
                is_deleted: false,
            }),
            is_fenced: AtomicBool::new(false),
        }
    }

    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// True once another generation was seen: nothing will be published any more.
    pub fn is_fenced(&self) -> bool {
        self.is_fenced.load(Ordering::Acquire)
    }

    /// Objects that wait to be deleted.
    pub fn garbage_count(&self) -> usize {
        self.garbage_count.load(Ordering::Relaxed)
    }

    /// True when the timeline is in the store as it was at this count of writes: a snapshot may leave its content out.
    pub fn has(&self, life: TimelineLife, sequence: u64) -> bool {
        let state = self.state.lock();
        let index = state.index.as_ref().filter(|index| index.generation == self.generation);
        let at = index.and_then(|index| index.timelines.get(&life.timeline));
        at.is_some_and(|at| at.pg_tli == life.pg_tli && at.sequence == sequence)
    }

    /// Layers of a snapshot that are not in the store yet, timeline by timeline.
    pub fn missing<'s>(
        &self,
        snapshot: &'s TenantSnapshot,
    ) -> Vec<(TimelineLife, &'s LayerSnapshot)> {
        let stored = self.layers.read();
        let mut missing = Vec::new();
        for timeline in &snapshot.timelines {
            let life = timeline.life();
            let layers = timeline.content.iter().flat_map(|content| &content.layers);
            let lacks = |layer: &&LayerSnapshot| !stored.contains_key(&(life, layer.number));
            missing.extend(layers.filter(lacks).map(|layer| (life, layer)));
        }
        missing
    }

    /// Step 1: uploads a layer, once its digest is found right. Nothing names it before an index does.
    ///
    /// # Errors
    /// `Local` with NotFound when the file is gone: it has been merged away. `Corrupt` for one that fails its digest. `Fenced`, `Deleted`,
    /// `Unavailable`, `Stopping`.
    pub fn upload(
        &self,
        fs: &dyn FileSystem,
        life: TimelineLife,
        layer: &LayerSnapshot,
    ) -> Result<()> {
        verify::digest(fs, &layer.path, layer.size, &layer.digest)?;
        let name = names::layer(self.tenant, life, self.generation, layer.number);
        let key = (life, layer.number);
        {
            let mut state = self.state.lock();
            self.check_usable(&state)?;
            let layer = Some((key, layer.in_use.clone()));
            state.garbage.insert(name.clone(), layer);
        }
        self.asking.ask(|| self.store.upload(&name, fs, &layer.path))?;
        self.layers.write().insert(key, self.generation);
        Counters::add(&self.asking.counters.uploaded_layers, 1);
        Counters::add(&self.asking.counters.uploaded_bytes, layer.size);
        Ok(())
    }

    /// Steps 2 and 3: publishes a snapshot and confirms it. On return the tenant's manifest, and everything before it, may be acknowledged;
    /// of a timeline what [`Attached::has`] says. A timeline of which layers are missing stays what it was in the last index. `false`, and
    /// nothing is published, while layers of a new root are missing. It may be called again after any failure, with this snapshot or a later one.
    ///
    /// # Errors
    /// `Fenced` and `Deleted` for good; `Unavailable`, `Stopping`.
    pub fn publish(&self, snapshot: &TenantSnapshot) -> Result<bool> {
        let mut state = self.state.lock();
        self.check_usable(&state)?;
        state.is_complete = false;
        self.settle(&mut state)?;
        let Some(next) = self.compose(&mut state, snapshot)? else { return Ok(false) };
        let current = state.index.as_ref().filter(|index| index.generation == self.generation);
        if current.is_none_or(|index| !index.says_the_same(&next.index)) {
            state.pending = Some(next);
            self.settle(&mut state)?;
        } else {
            // Handles of layers may be new: of a timeline that was opened again.
            state.layers = next.layers;
        }
        self.confirm(&mut state)?;
        state.is_complete = self.missing(snapshot).is_empty();
        Ok(true)
    }

    /// Deletes the tenant: publishes an index that says so, then removes everything else of it but its claims. Durable on return, though some
    /// objects may stay until a later attach or call.
    ///
    /// # Errors
    /// As [`Attached::publish`].
    pub fn delete_tenant(&self) -> Result<()> {
        let mut state = self.state.lock();
        if !state.is_deleted {
            self.check_usable(&state)?;
            self.settle(&mut state)?;
            let sequence = state.index.as_ref().map_or(0, |index| index.sequence);
            let index = self.index_after(&state, sequence, None, BTreeMap::new());
            state.pending = Some(Next { index, layers: Layers::new() });
            self.settle(&mut state)?;
            self.confirm(&mut state)?;
            state.is_deleted = true;
            state.is_complete = true;
        }
        state.garbage.values_mut().for_each(|garbage| *garbage = None);
        self.sweep(&mut state)?;
        self.collect(&mut state)
    }

    /// Deletes what is not needed any more. Returns how many objects went.
    ///
    /// # Errors
    /// As [`Attached::publish`]; what could not be deleted is tried again by the next call.
    pub fn clean(&self) -> Result<usize> {
        let mut state = self.state.lock();
        if state.is_deleted || !state.is_confirmed || self.is_fenced() {
            return Ok(0);
        }
        let before = state.garbage.len();
        let swept = if state.is_swept { 0 } else { self.sweep(&mut state)? };
        self.collect(&mut state)?;
        Ok(before + swept - state.garbage.len())
    }

    /// Makes a new local file of a layer, to be checked by the caller.
    ///
    /// # Errors
    /// `Missing` when it is not in the store; `Unavailable`, `Local`, `Stopping`.
    pub fn fetch(&self, layer: LayerId, fs: &dyn FileSystem, to: &Path) -> Result<()> {
        let generation = self.layers.read().get(&(layer.life, layer.number)).copied();
        let name = |generation| names::layer(self.tenant, layer.life, generation, layer.number);
        let generation = generation.ok_or_else(|| RemoteError::missing(&name(self.generation)))?;
        self.asking.ask(|| {
            // A part may be there from the last attempt.
            let _ = fs.remove_file(to);
            self.store.download(&name(generation), fs, to)
        })?;
        let counters = &self.asking.counters;
        Counters::add(&counters.downloaded_layers, 1);
        Counters::add(&counters.downloaded_bytes, fs.file_len(to).unwrap_or(0));
        Ok(())
    }

    fn check_usable(&self, state: &State) -> Result<()> {
        if self.is_fenced() {
            return Err(self.fenced());
        }
        match state.is_deleted {
            true => Err(RemoteError::Deleted { tenant: self.tenant }),
            false => Ok(()),
        }
    }

    fn fenced(&self) -> RemoteError {
        RemoteError::Fenced { tenant: self.tenant, generation: self.generation }
    }

    fn index_after(
        &self,
        state: &State,
        sequence: u64,
        manifest: Option<Bytes>,
        timelines: BTreeMap<TimelineId, TimelineAt>,
    ) -> Index {
        let ours = state.index.as_ref().filter(|index| index.generation == self.generation);
        let version = ours.map_or(0, |index| index.version) + 1;
        let (tenant, generation) = (self.tenant, self.generation);
        Index { tenant, generation, version, sequence, manifest, timelines }
    }

    /// What the next index says; `None` while that would be a tenant without its root. Puts the manifests that it names.
    fn compose(&self, state: &mut State, snapshot: &TenantSnapshot) -> Result<Option<Next>> {
        let mut timelines = BTreeMap::new();
        let mut layers = BTreeMap::new();
        for timeline in &snapshot.timelines {
            let life = timeline.life();
            if let Some((at, named)) = self.compose_timeline(state, life, timeline)? {
                timelines.insert(timeline.timeline, at);
                layers.insert(life, named);
            } else if timeline.is_root {
                return Ok(None);
            }
        }
        let manifest = Some(snapshot.manifest.clone());
        let index = self.index_after(state, snapshot.sequence, manifest, timelines);
        Ok(Some(Next { index, layers }))
    }

    /// `None` for a timeline that cannot be in the store yet.
    fn compose_timeline(
        &self,
        state: &mut State,
        life: TimelineLife,
        timeline: &TimelineSnapshot,
    ) -> Result<Option<(TimelineAt, BTreeMap<u64, LayerAt>)>> {
        let before = state.index.as_ref().and_then(|index| index.timelines.get(&life.timeline));
        let before = before.copied().filter(|at| at.pg_tli == life.pg_tli);
        let before_layers = || state.layers.get(&life).cloned().unwrap_or_default();
        let content = timeline.content.as_ref();
        let Some((content, named)) =
            content.and_then(|content| Some((content, self.stored(life, content)?)))
        else {
            return Ok(before.map(|at| (at, before_layers())));
        };
        if let Some(at) = before.filter(|at| at.sequence == timeline.sequence) {
            return Ok(Some((at, named)));
        }
        let at = TimelineAt {
            pg_tli: life.pg_tli,
            generation: self.generation,
            sequence: timeline.sequence,
            disk_consistent_lsn: timeline.disk_consistent_lsn,
        };
        let object = TimelineObject {
            manifest: content.manifest.clone(),
            layers: named.iter().map(|(number, at)| (*number, at.generation)).collect(),
        };
        let name = names::manifest(self.tenant, life, at.generation, at.sequence);
        state.garbage.insert(name.clone(), None);
        self.put_settled(&name, object.encode(self.tenant, life))?;
        Ok(Some((at, named)))
    }

    /// The layers of a timeline, if all are in the store.
    fn stored(&self, life: TimelineLife, content: &Content) -> Option<BTreeMap<u64, LayerAt>> {
        let stored = self.layers.read();
        let at = |layer: &LayerSnapshot| {
            let generation = *stored.get(&(life, layer.number))?;
            Some((layer.number, LayerAt { generation, in_use: layer.in_use.clone() }))
        };
        content.layers.iter().map(at).collect()
    }

    /// Creates an object that only we can have created before: with these bytes.
    fn put_settled(&self, name: &str, bytes: Bytes) -> Result<()> {
        match self.asking.ask(|| self.store.put_new(name, bytes.clone())) {
            Err(RemoteError::Exists { .. }) => {
                match self.asking.ask(|| self.store.get(name))? == bytes {
                    true => Ok(()),
                    // Somebody else works under our generation: a copy of us.
                    false => {
                        self.is_fenced.store(true, Ordering::Release);
                        Err(self.fenced())
                    }
                }
            }
            other => other,
        }
    }

    /// Step 2: makes sure that an index which was made is there. Then, and not before, another one is made.
    fn settle(&self, state: &mut State) -> Result<()> {
        let Some(Next { index, .. }) = &state.pending else { return Ok(()) };
        self.put_settled(&index.name(), index.encode())?;
        let Some(Next { index, layers }) = state.pending.take() else { return Ok(()) };
        Counters::add(&self.asking.counters.published_indexes, 1);
        state.is_confirmed = false;
        let previous = state.index.replace(index);
        let previous_layers = std::mem::replace(&mut state.layers, layers);
        if let Some(previous) = previous {
            self.retire_manifests(state, &previous);
        }
        self.retire_layers(state, previous_layers);
        Ok(())
    }

    /// What an index named and its successor does not is garbage.
    fn retire_manifests(&self, state: &mut State, previous: &Index) {
        let mut retired = Vec::new();
        if previous.generation == self.generation && previous.version > 1 {
            // The one before stays: a listing that lags a little is followed forward from there.
            retired.push(names::index(self.tenant, self.generation, previous.version - 1));
        }
        for (id, at) in &previous.timelines {
            let still = state.index.as_ref().and_then(|index| index.timelines.get(id));
            if still != Some(at) {
                let life = at.life(*id);
                retired.push(names::manifest(self.tenant, life, at.generation, at.sequence));
            }
        }
        state.garbage.extend(retired.into_iter().map(|name| (name, None)));
    }

    fn retire_layers(&self, state: &mut State, previous: Layers) {
        for (life, layers) in previous {
            let still = state.layers.get(&life);
            for (number, at) in layers {
                if still.is_none_or(|still| !still.contains_key(&number)) {
                    let name = names::layer(self.tenant, life, at.generation, number);
                    let layer = Some(((life, number), at.in_use));
                    state.garbage.insert(name, layer);
                }
            }
        }
    }

    /// Step 3.
    fn confirm(&self, state: &mut State) -> Result<()> {
        if state.is_confirmed {
            return Ok(());
        }
        let newest = self
            .asking
            .ask(|| generation::is_newest(self.store.as_ref(), self.tenant, self.generation))?;
        if !newest {
            self.is_fenced.store(true, Ordering::Release);
            return Err(self.fenced());
        }
        state.is_confirmed = true;
        Ok(())
    }

    /// Step 4.
    fn collect(&self, state: &mut State) -> Result<()> {
        if !state.is_confirmed || !state.is_complete || state.pending.is_some() {
            return Ok(());
        }
        let named = self.named(state);
        let is_read =
            |garbage: &Garbage| garbage.as_ref().is_some_and(|(_, users)| users.strong_count() > 0);
        let mut left = BTreeMap::new();
        let mut result = Ok(());
        for (name, garbage) in std::mem::take(&mut state.garbage) {
            if named.contains(&name) {
                // Uploaded before the index that names it.
                continue;
            }
            if is_read(&garbage) || result.is_err() {
                left.insert(name, garbage);
                continue;
            }
            match self.asking.ask(|| self.store.delete(&name)) {
                Ok(()) => {
                    Counters::add(&self.asking.counters.deleted_objects, 1);
                    if let Some((key, _)) = garbage {
                        self.layers.write().remove(&key);
                    }
                }
                Err(error) => {
                    result = Err(error);
                    left.insert(name, garbage);
                }
            }
        }
        self.garbage_count.store(left.len(), Ordering::Relaxed);
        state.garbage = left;
        result
    }

    /// Every object that the index names, itself included.
    fn named(&self, state: &State) -> BTreeSet<String> {
        let Some(index) = &state.index else { return BTreeSet::new() };
        let manifests = index
            .timelines
            .iter()
            .map(|(id, at)| names::manifest(self.tenant, at.life(*id), at.generation, at.sequence));
        let layers = state.layers.iter().flat_map(|(life, layers)| {
            layers
                .iter()
                .map(|(number, at)| names::layer(self.tenant, *life, at.generation, *number))
        });
        manifests.chain(layers).chain([index.name()]).collect()
    }

    /// Finds what earlier generations left: objects of theirs that our index does not name. Ours are known one by one.
    fn sweep(&self, state: &mut State) -> Result<usize> {
        let mut named = self.named(state);
        named.extend(state.garbage.keys().cloned());
        let top = names::tenant_folder(self.tenant);
        let mut found = Vec::new();
        for folder in self.asking.ask(|| self.store.list(&top))? {
            if names::parse_life(&folder).is_none()
                && format!("{top}{folder}") != names::indexes_folder(self.tenant)
            {
                continue;
            }
            let folder = format!("{top}{folder}");
            for file in self.asking.ask(|| self.store.list(&folder))? {
                let older = names::parse_numbered(&file).is_some_and(|(generation, _)| {
                    generation < self.generation || state.is_deleted
                });
                let name = format!("{folder}{file}");
                if older && !named.contains(&name) {
                    found.push((name, None));
                }
            }
        }
        let count = found.len();
        state.garbage.extend(found);
        state.is_swept = true;
        Ok(count)
    }
}

fn layers_found(found: &Found) -> Layers {
    let Some(index) = &found.index else { return Layers::new() };
    let of = |(id, object): (&TimelineId, &TimelineObject)| {
        let at = |(number, generation): (&u64, &Generation)| {
            (*number, LayerAt { generation: *generation, in_use: unused() })
        };
        let life = index.timelines.get(id)?.life(*id);
        Some((life, object.layers.iter().map(at).collect()))
    };
    found.objects.iter().filter_map(of).collect()
}

#[cfg(test)]
mod tests;
