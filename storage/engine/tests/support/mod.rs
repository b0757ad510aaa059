//! A world for tests: an engine on a simulated disk, and a naive model that replays everything from the beginning.

#![allow(dead_code)] // Each test binary uses its own part of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
    time::Duration,
};

use treering_engine::{
    CopyOf, Direction, Engine, EngineError, EngineOptions, NewTenant, RelMeta, Result, Tenant,
    Timeline, Value, WriteBatch,
};
use treering_fs::FileSystem;
use treering_pgfmt::{change::PageChange, version::PgMajor};
use treering_types::{
    ErrorKind, Fork, Key, KeyClass, Lsn, PAGE_SIZE, RelTag, SlruKind, TenantId, TimelineId,
};

pub const TENANT: TenantId = TenantId([7; 16]);
pub const START: Lsn = Lsn(0x100_0000);
pub const RELATIONS: u32 = 3;
pub const BLOCKS: u32 = 5;
pub const SLRU_PAGES: u32 = 2;
pub const DATABASES: [u32; 2] = [5, 6];

type Page = Box<[u8; PAGE_SIZE]>;

/// Small enough that a few dozen changes freeze, flush and make images.
pub fn tiny_options() -> EngineOptions {
    EngineOptions {
        open_layer_bytes_max: 48 << 10,
        frozen_layers_max: 1,
        stretch_bytes_min: 24 << 10,
        page_cache_bytes: 256 << 10,
        block_cache_bytes: 256 << 10,
        chain_max: 4,
        open_chain_max: 7,
        block_bytes: 600,
        fan_in: 3,
        runs_max: 4,
        runs_hard_max: 6,
        layer_bytes_max: 2 << 10,
        moved_bytes_min: 1,
        merge_bytes_max: 64 << 10,
        pitr_window: Duration::ZERO,
        pitr_bytes: 0,
        gc_delay: Duration::ZERO,
        background: false,
        ..EngineOptions::default()
    }
}

pub fn new_tenant() -> NewTenant {
    NewTenant { id: TENANT, pg_major: PgMajor::V15, system_id: 42 }
}

pub fn open(fs: &(impl FileSystem + Clone)) -> Result<Arc<Engine>> {
    open_with(fs, tiny_options())
}

pub fn open_with(fs: &(impl FileSystem + Clone), options: EngineOptions) -> Result<Arc<Engine>> {
    Engine::open(Arc::new(fs.clone()), Path::new("/engine"), options)
}

pub fn timeline_id(number: u8) -> TimelineId {
    TimelineId([number; 16])
}

pub fn rel(database: u32, relation: u32) -> RelTag {
    RelTag { tablespace: 1663, database, relation: 16384 + relation, fork: Fork::Main }
}

pub fn all_rels() -> impl Iterator<Item = RelTag> {
    DATABASES.into_iter().flat_map(|db| (0..RELATIONS).map(move |number| rel(db, number)))
}

/// A page whose every byte is `fill`.
pub fn filled(fill: u8) -> Page {
    Box::new([fill; PAGE_SIZE])
}

/// One thing that a record does.
#[derive(Clone, Debug)]
pub enum Act {
    Create(RelTag),
    Truncate(RelTag, u32),
    Drop(RelTag),
    /// The relation becomes a copy of the same one in the other database, as it is then.
    Copy(RelTag),
    Image(RelTag, u32, u8),
    Zero(RelTag, u32),
    /// Sets one word of a page: order matters.
    Delta(RelTag, u32, u32, u32),
    SlruImage(u32, u8),
    SlruDelta(u32, u32, u32),
    Put(u32, u8),
    Remove(u32),
}

/// What the world holds after some prefix.
#[derive(Clone, Default, Debug)]
pub struct State {
    rels: BTreeMap<RelTag, (u32, BTreeMap<u32, Page>)>,
    slru: BTreeMap<u32, Page>,
    values: BTreeMap<u32, u8>,
}

fn set_word(page: &mut Page, index: u32, word: u32) {
    let at = (index % 2048 * 4) as usize;
    page[at..at + 4].copy_from_slice(&word.to_le_bytes());
}

impl State {
    fn page(&mut self, rel: RelTag, block: u32) -> &mut Page {
        let (blocks, pages) = self.rels.entry(rel).or_default();
        *blocks = (*blocks).max(block + 1);
        pages.entry(block).or_insert_with(|| filled(0))
    }

    fn apply(&mut self, act: &Act) {
        match act {
            Act::Create(rel) => drop(self.rels.insert(*rel, Default::default())),
            Act::Truncate(rel, to) => {
                let Some((blocks, pages)) = self.rels.get_mut(rel) else { return };
                *blocks = (*blocks).min(*to);
                pages.retain(|block, _| block < to);
            }
            Act::Drop(rel) => drop(self.rels.remove(rel)),
            Act::Copy(rel) => {
                if let Some(source) = self.rels.get(&other(*rel)).cloned() {
                    self.rels.insert(*rel, source);
                }
            }
            Act::Image(rel, block, fill) => *self.page(*rel, *block) = filled(*fill),
            Act::Zero(rel, block) => *self.page(*rel, *block) = filled(0),
            Act::Delta(rel, block, index, word) => {
                set_word(self.page(*rel, *block), *index, *word);
            }
            Act::SlruImage(page, fill) => drop(self.slru.insert(*page, filled(*fill))),
            Act::SlruDelta(page, index, word) => {
                set_word(self.slru.entry(*page).or_insert_with(|| filled(0)), *index, *word);
            }
            Act::Put(key, value) => drop(self.values.insert(*key, *value)),
            Act::Remove(key) => drop(self.values.remove(key)),
        }
    }
}

fn other(rel: RelTag) -> RelTag {
    RelTag { database: DATABASES[0] + DATABASES[1] - rel.database, ..rel }
}

/// A timeline as the model knows it.
#[derive(Clone, Debug)]
pub struct ModelTimeline {
    pub id: TimelineId,
    pub ancestor: Option<(TimelineId, Lsn)>,
    pub acts: Vec<(Lsn, Act)>,
    /// The same as engine batches, to be sent again after a crash.
    pub batches: Vec<WriteBatch>,
    pub last: Lsn,
    pub deleted: bool,
    /// The highest cut-off that anyone was told.
    pub cut_off: Lsn,
    /// Granted since the engine was opened.
    pub leases: BTreeSet<Lsn>,
}

/// Engine and model side by side.
pub struct World<F> {
    pub fs: F,
    pub options: EngineOptions,
    pub engine: Option<Arc<Engine>>,
    pub timelines: Vec<ModelTimeline>,
}

impl<F: FileSystem + Clone> World<F> {
    /// A tenant with an imported, empty root, all acknowledged.
    pub fn begin(fs: F) -> Result<World<F>> {
        World::begin_with(fs, tiny_options())
    }

    /// The same with other options.
    pub fn begin_with(fs: F, options: EngineOptions) -> Result<World<F>> {
        let engine = open_with(&fs, options.clone())?;
        let mut world = World { fs, options, engine: Some(engine), timelines: Vec::new() };
        world.engine().create_tenant(new_tenant())?;
        world.import_root()?;
        Ok(world)
    }

    pub fn import_root(&mut self) -> Result<()> {
        let root = self.tenant().create_root(timeline_id(1), START, 0)?;
        let mut model = ModelTimeline {
            id: timeline_id(1),
            ancestor: None,
            acts: Vec::new(),
            batches: Vec::new(),
            last: START,
            deleted: false,
            cut_off: START,
            leases: BTreeSet::new(),
        };
        for relation in 0..RELATIONS {
            let acts: Vec<Act> = (0..2).map(|b| Act::Image(rel(5, relation), b, 0x11)).collect();
            let mut batch = WriteBatch::new(START);
            for act in &acts {
                encode_act(&root, &mut batch, &mut Pending::new(), START, act)?;
            }
            let mut meta = RelMeta::created_by_write(START);
            meta.grow(2);
            batch.put(Key::rel_meta(rel(5, relation)), START, Value::whole(meta.encode()));
            root.write(batch)?;
            model.acts.extend(acts.into_iter().map(|act| (START, act)));
        }
        root.finish_import(START)?;
        self.timelines.push(model);
        Ok(())
    }

    pub fn engine(&self) -> &Arc<Engine> {
        self.engine.as_ref().expect("the engine is open")
    }

    pub fn tenant(&self) -> Arc<Tenant> {
        self.engine().tenant(TENANT).expect("the tenant exists")
    }

    pub fn live(&self) -> Vec<usize> {
        (0..self.timelines.len()).filter(|index| !self.timelines[*index].deleted).collect()
    }

    pub fn timeline(&self, index: usize) -> Arc<Timeline> {
        self.tenant().timeline(self.timelines[index].id).expect("the timeline exists")
    }

    /// The timeline's layer files, with their sizes.
    pub fn layer_files(&self, index: usize) -> BTreeMap<String, u64> {
        let id = self.timelines[index].id;
        let directory = Path::new("/engine").join(TENANT.to_string()).join(id.to_string());
        let names = self.fs.list(&directory).unwrap_or_default();
        let layers = names.into_iter().filter(|name| name.ends_with(".layer"));
        let len = |name: &String| self.fs.file_len(&directory.join(name)).expect("it is there");
        layers.map(|name| (name.clone(), len(&name))).collect()
    }

    /// Writes one part of a relation that is written in order: six blocks, as much as a flush gives a file of its own, and what
    /// every flush holds besides.
    pub fn write_part(&mut self, index: usize, rel: RelTag, part: u32) -> Result<()> {
        let image = |n: u32| vec![Act::Image(rel, 6 * part + n, ((6 * part + n) % 255) as u8 + 1)];
        let mut records: Vec<Vec<Act>> = (0..6).map(image).collect();
        records.push(vec![Act::SlruDelta(0, part % 9, part), Act::Put(part % 8, part as u8)]);
        self.write(index, &records)
    }

    /// Writes acts as one batch; each inner list shares one LSN.
    pub fn write(&mut self, index: usize, records: &[Vec<Act>]) -> Result<()> {
        let timeline = self.timeline(index);
        let mut lsn = self.timelines[index].last;
        let mut batch = WriteBatch::default();
        let mut pending = Pending::new();
        let mut acts = Vec::new();
        for record in records {
            lsn = lsn + 8;
            for act in record {
                encode_act(&timeline, &mut batch, &mut pending, lsn, act)?;
                acts.push((lsn, act.clone()));
            }
        }
        batch.last_record_lsn = lsn;
        let model = &mut self.timelines[index];
        model.acts.extend(acts);
        model.batches.push(batch.clone());
        model.last = lsn;
        timeline.write(batch)
    }

    /// Branches; the model knows the branch only once it is acknowledged.
    pub fn branch(&mut self, from: usize, at: Lsn) -> Result<usize> {
        let id = timeline_id(u8::try_from(self.timelines.len() + 1).expect("few timelines"));
        let ancestor = self.timelines[from].id;
        let made = self.tenant().branch(id, ancestor, at)?;
        let origin = made.info().ancestor;
        self.timelines.push(ModelTimeline {
            id,
            ancestor: origin,
            acts: Vec::new(),
            batches: Vec::new(),
            last: at,
            deleted: false,
            cut_off: at,
            leases: BTreeSet::new(),
        });
        Ok(self.timelines.len() - 1)
    }

    /// The model's state of a timeline at an LSN.
    pub fn state(&self, index: usize, lsn: Lsn) -> State {
        let mut parts = Vec::new();
        let (mut at, mut clip) = (&self.timelines[index], lsn);
        loop {
            parts.push((at, clip));
            let Some((ancestor, fork)) = at.ancestor else { break };
            clip = clip.min(fork);
            let found = self.timelines.iter().find(|timeline| timeline.id == ancestor);
            at = found.expect("the model knows ancestors");
        }
        let mut state = State::default();
        for (timeline, clip) in parts.into_iter().rev() {
            let visible = timeline.acts.iter().filter(|(lsn, _)| *lsn <= clip);
            visible.for_each(|(_, act)| state.apply(act));
        }
        state
    }

    /// The timeline whose log holds `lsn` in the history of another.
    pub fn owner(&self, index: usize, lsn: Lsn) -> usize {
        let mut owner = index;
        while let Some((ancestor, fork)) = self.timelines[owner].ancestor
            && lsn < fork
        {
            let found = self.timelines.iter().position(|timeline| timeline.id == ancestor);
            owner = found.expect("the model knows ancestors");
        }
        owner
    }

    /// Whether gc has left `lsn` to be read. What branches and leases pin, and what lies above the cut-off, it must.
    pub fn is_kept(&self, index: usize, lsn: Lsn) -> bool {
        let owner = &self.timelines[self.owner(index, lsn)];
        let timeline = self.tenant().timeline(owner.id).expect("ancestors live");
        assert!(timeline.cut_off() >= owner.cut_off, "the cut-off went back");
        let kept = timeline.retained().allows(lsn);
        let branches = self.timelines.iter().filter(|timeline| !timeline.deleted);
        let pins = branches.filter_map(|branch| branch.ancestor);
        let must = pins.into_iter().any(|pin| pin == (owner.id, lsn))
            || owner.leases.contains(&lsn)
            || lsn >= timeline.cut_off();
        assert!(kept || !must, "{lsn} is pinned");
        kept
    }

    /// Everything that the engine says about a timeline at an LSN is what the model says, or that gc has been there.
    pub fn check(&self, index: usize, lsn: Lsn) {
        let timeline = self.timeline(index);
        if !self.is_kept(index, lsn) {
            let refused = timeline.get_page(slru(0), lsn);
            let earliest = timeline.earliest_lsn();
            assert!(
                matches!(refused, Err(EngineError::BelowCutOff { earliest: told, .. }) if told == earliest),
                "{refused:?}"
            );
            return;
        }
        let state = self.state(index, lsn);
        check_relations(&timeline, &state, lsn);
        check_pages(&timeline, &state, lsn);
        check_values(&timeline, &state, lsn);
    }

    /// Checks every timeline at LSNs all over what it can read now.
    pub fn check_all(&self, steps: u64) {
        for index in self.live() {
            let timeline = self.timeline(index);
            let last = timeline.last_record_lsn();
            self.check(index, timeline.earliest_lsn());
            let span = last.0 - START.0;
            for step in 0..=steps {
                let lsn = Lsn(START.0 + span * step / steps.max(1));
                if lsn == last || step < steps {
                    self.check(index, lsn);
                }
            }
        }
    }

    /// Drops the engine without a word, as a killed process would, and opens another on `fs`.
    pub fn reopen(&mut self, fs: F) -> Result<()> {
        self.engine = None;
        self.fs = fs;
        self.timelines.iter_mut().for_each(|timeline| timeline.leases.clear());
        self.engine = Some(open_with(&self.fs, self.options.clone())?);
        Ok(())
    }

    /// Moves the cut-off, and compacts what is due.
    pub fn gc(&mut self, index: usize, cut_off: Lsn) -> Result<()> {
        let timeline = self.timeline(index);
        let cut_off = cut_off.min(timeline.disk_consistent_lsn());
        let done = timeline.gc_below(cut_off);
        // Only what was acknowledged survives a crash.
        done?;
        let model = &mut self.timelines[index];
        model.cut_off = model.cut_off.max(cut_off);
        Ok(())
    }

    /// Sends again what a stop has lost, as ingest would.
    pub fn send_again(&self, index: usize) -> Result<()> {
        let timeline = self.timeline(index);
        for batch in &self.timelines[index].batches {
            if batch.last_record_lsn > timeline.last_record_lsn() {
                assert!(
                    batch.values.iter().all(|value| value.1 > timeline.disk_consistent_lsn()),
                    "disk_consistent_lsn is the end of a batch here"
                );
                timeline.write(batch.clone())?;
            }
        }
        Ok(())
    }
}

/// Relation metadata that the batch under construction has changed.
pub type Pending = BTreeMap<RelTag, Option<RelMeta>>;

fn encode_act(
    timeline: &Timeline,
    batch: &mut WriteBatch,
    pending: &mut Pending,
    lsn: Lsn,
    act: &Act,
) -> Result<()> {
    let meta = |pending: &Pending, rel: RelTag| match pending.get(&rel) {
        Some(meta) => Ok(meta.clone()),
        None => timeline.tip_rel_meta(rel),
    };
    let mut put_meta = |pending: &mut Pending, rel: RelTag, meta: Option<RelMeta>| {
        let value = meta.as_ref().map_or(Value::tombstone(), |meta| Value::whole(meta.encode()));
        batch.put(Key::rel_meta(rel), lsn, value);
        pending.insert(rel, meta);
    };
    let importing = lsn == START;
    let mut change = |pending: &mut Pending, rel: RelTag, block: u32| {
        if importing {
            return Ok(());
        }
        let known = meta(pending, rel)?;
        let is_new = known.is_none();
        let mut meta = known.unwrap_or_else(|| RelMeta::created_by_write(lsn));
        if meta.grow(block + 1) || is_new {
            put_meta(pending, rel, Some(meta));
        }
        Ok::<(), EngineError>(())
    };
    let value = match act {
        Act::Create(rel) => {
            put_meta(pending, *rel, Some(RelMeta::created(lsn)));
            return Ok(());
        }
        Act::Drop(rel) => {
            put_meta(pending, *rel, None);
            return Ok(());
        }
        Act::Truncate(rel, blocks) => {
            if let Some(mut known) = meta(pending, *rel)? {
                known.truncate(lsn, *blocks);
                put_meta(pending, *rel, Some(known));
            }
            return Ok(());
        }
        Act::Copy(rel) => {
            if let Some(source) = meta(pending, other(*rel))? {
                let (tablespace, database) = (rel.tablespace, other(*rel).database);
                let copy = CopyOf { tablespace, database, lsn };
                put_meta(pending, *rel, Some(RelMeta::copied(copy, source.blocks)));
            }
            return Ok(());
        }
        Act::Image(rel, block, fill) => {
            change(pending, *rel, *block)?;
            (Key::rel_block(*rel, *block), PageChange::Image(filled(*fill).into()))
        }
        Act::Zero(rel, block) => {
            change(pending, *rel, *block)?;
            (Key::rel_block(*rel, *block), PageChange::Zero)
        }
        Act::Delta(rel, block, index, word) => {
            change(pending, *rel, *block)?;
            (Key::rel_block(*rel, *block), PageChange::MultiOffsets(vec![(*index, *word)]))
        }
        Act::SlruImage(page, fill) => (slru(*page), PageChange::Image(filled(*fill).into())),
        Act::SlruDelta(page, index, word) => {
            (slru(*page), PageChange::MultiOffsets(vec![(*index, *word)]))
        }
        Act::Put(key, value) => {
            batch.put(small(*key), lsn, Value::whole(vec![*value]));
            return Ok(());
        }
        Act::Remove(key) => {
            batch.put(small(*key), lsn, Value::tombstone());
            return Ok(());
        }
    };
    let (key, change) = value;
    batch.put(key, lsn, Value { base: change.is_base(), bytes: change.encode() });
    Ok(())
}

fn slru(page: u32) -> Key {
    Key::slru(SlruKind::MultiOffsets, page)
}

fn small(key: u32) -> Key {
    Key::two_phase(u64::from(key))
}

fn check_relations(timeline: &Timeline, state: &State, lsn: Lsn) {
    for rel in all_rels() {
        let meta = timeline.rel_meta(rel, lsn).expect("metadata can be read");
        let blocks = meta.map(|meta| meta.blocks);
        assert_eq!(blocks, state.rels.get(&rel).map(|(blocks, _)| *blocks), "{rel} at {lsn}");
    }
    let range = Key::rel_meta_of_database(1663, 5);
    let listed = timeline.relations(range, lsn).expect("relations can be listed");
    let listed: Vec<(RelTag, u32)> =
        listed.into_iter().map(|(rel, meta)| (rel, meta.blocks)).collect();
    let wanted = state.rels.iter().filter(|(rel, _)| rel.database == 5);
    let wanted: Vec<(RelTag, u32)> = wanted.map(|(rel, (blocks, _))| (*rel, *blocks)).collect();
    assert_eq!(listed, wanted, "relations at {lsn}");
}

fn check_pages(timeline: &Timeline, state: &State, lsn: Lsn) {
    let blocks = |rel| state.rels.get(&rel).map_or(0, |(blocks, _)| *blocks).max(BLOCKS);
    let mut keys: Vec<Key> = all_rels()
        .flat_map(|rel| (0..=blocks(rel)).rev().map(move |block| Key::rel_block(rel, block)))
        .collect();
    keys.extend((0..=SLRU_PAGES).map(slru));
    let pages = timeline.get_pages(&keys, lsn);
    assert_eq!(pages.len(), keys.len());
    for (key, page) in keys.iter().zip(pages) {
        let wanted =
            match key.rel() {
                Some(rel) => state.rels.get(&rel).filter(|(blocks, _)| key.block() < *blocks).map(
                    |(_, pages)| pages.get(&key.block()).cloned().unwrap_or_else(|| filled(0)),
                ),
                None => state.slru.get(&key.block()).cloned(),
            };
        match (page, wanted) {
            (Ok(page), Some(wanted)) => {
                let differs = page.iter().zip(wanted.iter()).position(|(a, b)| a != b);
                assert_eq!(differs, None, "{key:?} at {lsn} on {}", timeline.id());
            }
            (Err(error), None) => assert_eq!(error.kind(), ErrorKind::NotFound, "{error}"),
            (Ok(_), None) => panic!("{key:?} at {lsn} should not exist"),
            (Err(error), Some(_)) => panic!("{key:?} at {lsn}: {error}"),
        }
    }
}

fn check_values(timeline: &Timeline, state: &State, lsn: Lsn) {
    let range = Key::class_range(KeyClass::TwoPhase);
    let wanted: Vec<(u64, u8)> =
        state.values.iter().map(|(key, value)| (u64::from(*key), *value)).collect();
    let scan = |direction, limit| {
        let found = timeline.scan(range.clone(), lsn, direction, limit).expect("scan");
        found.into_iter().map(|(key, _, bytes)| (key.full_xid().unwrap(), bytes[0])).collect()
    };
    let forward: Vec<(u64, u8)> = scan(Direction::Forward, usize::MAX);
    assert_eq!(forward, wanted, "scan at {lsn}");
    let mut backward: Vec<(u64, u8)> = scan(Direction::Backward, 2);
    backward.reverse();
    assert_eq!(backward, wanted[wanted.len().saturating_sub(2)..], "scan back at {lsn}");
    for key in 0..8 {
        let value = timeline.get_value(small(key), lsn).expect("value");
        assert_eq!(value.map(|(_, bytes)| bytes[0]), state.values.get(&key).copied());
    }
}

/// The kind of an error, for assertions.
pub fn kind_of<T>(result: Result<T, EngineError>) -> Option<ErrorKind> {
    result.err().map(|error| error.kind())
}
