//! WAL into the engine: records become effects, effects become values, a chunk becomes one batch.
//!
//! An [`Applier`] belongs to one timeline and is its only writer. Invariants:
//! - `last_record_lsn` of the timeline is always a record end, and everything up to it is visible at once;
//! - all state here is a function of the timeline at `last_record_lsn`: an applier that failed is dropped, and a new
//!   one made from the engine goes on exactly there;
//! - the record ends of a WAL page are written when the log leaves the page and with every batch, so that
//!   `record_boundary` is exact up to `last_record_lsn`.

use std::{collections::HashMap, sync::Arc};

use bytes::{Bytes, BytesMut};
use treering_engine::{
    CopyOf, Direction, EngineError, RelMeta, TimeEntry, Timeline, Value, WriteBatch,
};
use treering_pgfmt::{
    change::PageChange,
    version::PgMajor,
    wal::{
        effects::{self, DatabaseDir, Effect, EffectError, Effects},
        error::WalError,
        reader::WalDecoder,
        record::{RawRecord, Record},
    },
};
use treering_types::{ErrorKind, Fork, Key, KeyClass, Lsn, RelTag};

use super::{page_ends::PageEnds, relations::Relations};
use crate::{
    cluster_state::{self, ClusterState, LoadError},
    directory::{Directory, tablespace_key},
};

/// A batch is written early when its values hold this much: images in WAL may be compressed many times over.
const BATCH_BYTES_MAX: usize = 16 << 20;

/// What is left of one at the end is not used; whole ones stay until the last value in them goes.
const ARENA_BYTES: usize = 256 << 10;

/// Why WAL could not be applied. Nothing of the record concerned is visible.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    #[error(transparent)]
    Wal(#[from] WalError),
    #[error(transparent)]
    Effect(#[from] EffectError),
    #[error(transparent)]
    State(#[from] LoadError),
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error(
        "the record that ends at {lsn} names block {block} of {rel}, past the largest block number"
    )]
    BlockNumber { lsn: Lsn, rel: RelTag, block: u32 },
    #[error("WAL from {got} was fed where {expected} follows")]
    Gap { expected: Lsn, got: Lsn },
}

impl ApplyError {
    /// What the caller may do.
    pub fn kind(&self) -> ErrorKind {
        match self {
            ApplyError::Wal(error) => error.kind(),
            ApplyError::Effect(error) => error.kind(),
            ApplyError::State(error) => error.kind(),
            ApplyError::Engine(error) => error.kind(),
            ApplyError::BlockNumber { .. } => ErrorKind::Corrupt,
            ApplyError::Gap { .. } => ErrorKind::Invalid,
        }
    }
}

/// See the module.
pub struct Applier {
    decoder: WalDecoder,
    intake: Intake,
}

/// What takes the records that the decoder lends.
struct Intake {
    timeline: Arc<Timeline>,
    major: PgMajor,
    state: ClusterState,
    relations: Relations,
    ends: PageEnds,
    /// The latest commit or abort stamp so far.
    stamp_max: Option<i64>,
    /// Progress of the replication origins.
    origins: HashMap<u16, u64>,
    batch: WriteBatch,
    batch_bytes: usize,
    arena: Arena,
}

/// Memory for the values of page changes: they come by the hundred thousand a second, are small, and die together with the
/// open layer that they go to. One allocation serves thousands of them.
#[derive(Default)]
struct Arena {
    chunk: BytesMut,
    scratch: Vec<u8>,
}

impl Arena {
    fn value_of(&mut self, change: &PageChange<'_>) -> Value {
        if let PageChange::Image(_) = change {
            // Few, and long: an allocation costs less than another copy.
            return Value { base: true, bytes: change.encode() };
        }
        self.scratch.clear();
        change.encode_into(&mut self.scratch);
        if self.chunk.capacity() < self.scratch.len() {
            self.chunk = BytesMut::with_capacity(ARENA_BYTES.max(self.scratch.len()));
        }
        self.chunk.extend_from_slice(&self.scratch);
        Value { base: change.is_base(), bytes: self.chunk.split().freeze() }
    }
}

impl Applier {
    /// Goes on at the timeline's `last_record_lsn`.
    ///
    /// # Errors
    /// Those of reading the state there; `NotYet` while an ancestor has not ingested up to the fork again.
    pub fn open(timeline: Arc<Timeline>) -> Result<Applier, ApplyError> {
        let info = timeline.info();
        let at = info.last_record_lsn;
        let state = cluster_state::load(&timeline, at)?;
        let range = Key::class_range(KeyClass::TimeIndex);
        let latest = timeline.scan(range, at, Direction::Backward, 1)?;
        let mut decoder = WalDecoder::new(info.pg_major, at).with_system_id(info.system_id);
        // The log that is fed must be the continuation of what was ingested, not another that fits the position.
        if let Some(last) = timeline.record_boundary(at)?.filter(|last| last.end == at) {
            decoder = decoder.with_prev(last.start);
        }
        let intake = Intake {
            major: info.pg_major,
            state,
            relations: Relations::new(Arc::clone(&timeline)),
            ends: PageEnds::open(&timeline, at)?,
            stamp_max: latest.first().and_then(|(key, _, _)| key.stamp()),
            origins: origins(&timeline, at)?,
            batch: WriteBatch::new(at),
            batch_bytes: 0,
            arena: Arena::default(),
            timeline,
        };
        Ok(Applier { decoder, intake })
    }

    /// Where the next byte of WAL is expected.
    pub fn fed_to(&self) -> Lsn {
        self.decoder.fed_to()
    }

    /// Takes raw WAL that starts at `start`, and the records that are complete with it; of its bytes it holds nothing afterwards but
    /// the begin of the next record.
    ///
    /// Blocking: waits while the engine's flush is behind.
    ///
    /// # Errors
    /// [`ApplyError::Gap`] unless `start` is [`Applier::fed_to`]. After others the applier is of no further use.
    pub fn feed(&mut self, start: Lsn, wal: Bytes) -> Result<(), ApplyError> {
        if start != self.fed_to() {
            return Err(ApplyError::Gap { expected: self.fed_to(), got: start });
        }
        self.decoder.feed_shared(wal);
        while let Some(raw) = self.decoder.next_record()? {
            self.intake.record(&raw)?;
            if self.intake.batch_bytes > BATCH_BYTES_MAX {
                self.intake.write()?;
            }
        }
        self.decoder.let_go();
        Ok(())
    }

    /// Applies what was fed: every complete record is visible on return.
    ///
    /// Returns `last_record_lsn`. Blocking: waits while the engine's flush is behind.
    ///
    /// # Errors
    /// [`ApplyError`]; the applier is of no further use.
    pub fn apply(&mut self) -> Result<Lsn, ApplyError> {
        self.intake.write()?;
        Ok(self.intake.batch.last_record_lsn)
    }
}

impl Intake {
    fn record(&mut self, raw: &RawRecord<'_>) -> Result<(), ApplyError> {
        let mut record = Record::of(raw);
        record.take_apart(self.major)?;
        let mut effects = Effects::new();
        effects::effects_into(&mut effects, &mut self.state, &record, self.major)?;
        let looks_at_database = |effect: &Effect<'_>| {
            matches!(effect, Effect::DatabaseCopy { .. } | Effect::DatabaseDrop(_))
        };
        if effects.iter().any(looks_at_database) {
            // They list relations by reading the engine: everything before must be visible there.
            self.write()?;
        }
        let prev_end = self.batch.last_record_lsn;
        if let Some((key, value)) = self.ends.advance(raw.end) {
            self.put(key, prev_end, value);
        }
        for effect in effects {
            self.effect(effect, prev_end, raw.end)?;
        }
        for (key, value) in self.relations.take_changed() {
            self.put(key, raw.end, value);
        }
        self.batch.last_record_lsn = raw.end;
        Ok(())
    }

    fn effect(&mut self, effect: Effect<'_>, prev_end: Lsn, lsn: Lsn) -> Result<(), ApplyError> {
        match effect {
            Effect::Page { rel, block, change } => self.page(rel, block, &change, lsn)?,
            Effect::PageIfExists { rel, block, change } => {
                if self.relations.get(rel)?.as_ref().is_some_and(|meta| block < meta.blocks) {
                    self.page(rel, block, &change, lsn)?;
                }
            }
            Effect::Slru { kind, page, change } => {
                let value = self.arena.value_of(&change);
                self.put(Key::slru(kind, page), lsn, value);
            }
            Effect::RelCreate(rel) => self.relations.create(rel, lsn)?,
            Effect::RelTruncate { rel, blocks } => self.relations.truncate(rel, lsn, blocks)?,
            Effect::RelDrop(rel) => {
                for fork in Fork::ALL {
                    self.relations.drop_fork(rel.with_fork(fork))?;
                }
            }
            Effect::DatabaseCopy { from, to } => self.copy_database(from, to, prev_end, lsn)?,
            Effect::DatabaseCreate(dir) => {
                self.put_directory(dir, &Directory::Bare { path: String::new() }, lsn);
            }
            Effect::DatabaseDrop(dir) => self.drop_database(dir, prev_end, lsn)?,
            Effect::TablespaceCreate { tablespace, path } => {
                let value = Value::whole(Directory::Bare { path }.encode());
                self.put(tablespace_key(tablespace), lsn, value);
            }
            Effect::TablespaceDrop { tablespace } => {
                self.put(tablespace_key(tablespace), lsn, Value::tombstone());
            }
            Effect::RelMap { dir, file } => {
                self.put_directory(dir, &Directory::Mapped(file), lsn);
            }
            Effect::TwoPhasePrepared { full_xid, file } => {
                self.put(Key::two_phase(full_xid), lsn, Value::whole(file));
            }
            Effect::TwoPhaseEnded { full_xid } => {
                self.put(Key::two_phase(full_xid), lsn, Value::tombstone());
            }
            Effect::Ended { stamp, committed: _ } => self.ended(stamp, prev_end, lsn),
            Effect::Control { field, value } => {
                self.put(Key::control(field), lsn, Value::whole(value));
            }
            Effect::Origin { id, change } => {
                let progress = change.after(self.origins.remove(&id));
                self.origins.extend(progress.map(|remote| (id, remote)));
                let value = progress.map_or(Value::tombstone(), |remote| {
                    Value::whole(remote.to_le_bytes().to_vec())
                });
                self.put(Key::origin(id), lsn, value);
            }
            Effect::Unhandled { rel, rmid, info, record: _ } => match rel {
                Some(rel) => self.relations.note_unhandled(rel, rmid, info)?,
                None => tracing::warn!(%lsn, rmid, info, "record of an unknown resource manager"),
            },
        }
        Ok(())
    }

    fn page(
        &mut self,
        rel: RelTag,
        block: u32,
        change: &PageChange<'_>,
        lsn: Lsn,
    ) -> Result<(), ApplyError> {
        let blocks = block.checked_add(1).ok_or(ApplyError::BlockNumber { lsn, rel, block })?;
        self.relations.grow(rel, lsn, blocks)?;
        if let PageChange::Unhandled { rmid, info, .. } = change {
            self.relations.note_unhandled(rel, *rmid, *info)?;
        }
        let value = self.arena.value_of(change);
        self.put(Key::rel_block(rel, block), lsn, value);
        Ok(())
    }

    /// A new maximum of stamps: whoever asks for a time before it gets the prefix that ends before this record.
    fn ended(&mut self, stamp: i64, prev_end: Lsn, lsn: Lsn) {
        if self.stamp_max.is_none_or(|max| stamp > max) {
            self.stamp_max = Some(stamp);
            let (key, value) = TimeEntry::put(stamp, prev_end);
            self.put(key, lsn, value);
        }
    }

    fn put_directory(&mut self, dir: DatabaseDir, directory: &Directory, lsn: Lsn) {
        let key = Key::rel_map(dir.tablespace, dir.database);
        self.put(key, lsn, Value::whole(directory.encode()));
    }

    /// The copy shows the source's pages as of this record: nothing is read but the list of relations.
    fn copy_database(
        &mut self,
        from: DatabaseDir,
        to: DatabaseDir,
        prev_end: Lsn,
        lsn: Lsn,
    ) -> Result<(), ApplyError> {
        let map =
            self.timeline.get_value(Key::rel_map(from.tablespace, from.database), prev_end)?;
        let map = map.map_or(Directory::Bare { path: String::new() }, |(_, bytes)| {
            Directory::decode(&bytes)
        });
        self.put_directory(to, &map, lsn);
        let copy = CopyOf { tablespace: from.tablespace, database: from.database, lsn };
        let range = Key::rel_meta_of_database(from.tablespace, from.database);
        for (rel, meta) in self.timeline.relations(range, prev_end)? {
            let target = RelTag { tablespace: to.tablespace, database: to.database, ..rel };
            self.relations.set(target, Some(RelMeta::copied(copy, meta.blocks)));
        }
        Ok(())
    }

    fn drop_database(
        &mut self,
        dir: DatabaseDir,
        prev_end: Lsn,
        lsn: Lsn,
    ) -> Result<(), ApplyError> {
        let range = Key::rel_meta_of_database(dir.tablespace, dir.database);
        for (rel, _) in self.timeline.relations(range, prev_end)? {
            self.relations.set(rel, None);
        }
        self.put(Key::rel_map(dir.tablespace, dir.database), lsn, Value::tombstone());
        Ok(())
    }

    fn put(&mut self, key: Key, lsn: Lsn, value: Value) {
        self.batch_bytes += value.bytes.len();
        self.batch.put(key, lsn, value);
    }

    /// Makes everything up to the last complete record visible.
    fn write(&mut self) -> Result<(), ApplyError> {
        let at = self.batch.last_record_lsn;
        if let Some((key, value)) = self.ends.take_current() {
            self.put(key, at, value);
        }
        if self.batch.values.is_empty() {
            return Ok(());
        }
        let batch = std::mem::replace(&mut self.batch, WriteBatch::new(at));
        self.batch_bytes = 0;
        self.timeline.write(batch)?;
        self.relations.shrink();
        Ok(())
    }
}

/// Origins and their progress, as `Effect::Origin` has stored them.
fn origins(timeline: &Timeline, at: Lsn) -> Result<HashMap<u16, u64>, EngineError> {
    let range = Key::class_range(KeyClass::Origin);
    let found = timeline.scan(range, at, Direction::Forward, usize::MAX)?;
    let origin = |(key, _, remote): (Key, Lsn, Bytes)| {
        let id = u16::from_be_bytes([key.0[3], key.0[4]]);
        Some((id, u64::from_le_bytes(remote.as_ref().try_into().ok()?)))
    };
    Ok(found.into_iter().filter_map(origin).collect())
}

#[cfg(test)]
#[path = "apply_tests.rs"]
mod tests;
