//! Existence and size of relation forks, as ingest changes them.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::Arc,
};

use treering_engine::{EngineError, RelMeta, Timeline, Unhandled, Value};
use treering_types::{Key, Lsn, RelTag};

/// Forks kept at hand between batches.
const FORKS_MAX: usize = 100_000;

/// The newest metadata, pending changes included. Within a batch nothing is forgotten.
pub(super) struct Relations {
    timeline: Arc<Timeline>,
    forks: HashMap<RelTag, Option<RelMeta>>,
    /// Changed by the current record, each once.
    changed: Vec<RelTag>,
    unhandled: HashMap<RelTag, Unhandled>,
    unhandled_changed: Vec<RelTag>,
}

impl Relations {
    pub(super) fn new(timeline: Arc<Timeline>) -> Relations {
        Relations {
            timeline,
            forks: HashMap::new(),
            changed: Vec::new(),
            unhandled: HashMap::new(),
            unhandled_changed: Vec::new(),
        }
    }

    /// The fork's metadata, `None` when it does not exist.
    pub(super) fn get(&mut self, rel: RelTag) -> Result<&mut Option<RelMeta>, EngineError> {
        match self.forks.entry(rel) {
            Entry::Occupied(known) => Ok(known.into_mut()),
            Entry::Vacant(place) => Ok(place.insert(self.timeline.tip_rel_meta(rel)?)),
        }
    }

    /// For whole databases: each fork once.
    pub(super) fn set(&mut self, rel: RelTag, meta: Option<RelMeta>) {
        self.forks.insert(rel, meta);
        self.changed.push(rel);
    }

    /// A fork that exists is left alone.
    pub(super) fn create(&mut self, rel: RelTag, lsn: Lsn) -> Result<(), EngineError> {
        let meta = self.get(rel)?;
        if meta.is_none() {
            *meta = Some(RelMeta::created(lsn));
            self.note_changed(rel);
        }
        Ok(())
    }

    /// Makes the fork hold at least `blocks`; one that does not exist comes into being by this write.
    pub(super) fn grow(&mut self, rel: RelTag, lsn: Lsn, blocks: u32) -> Result<(), EngineError> {
        let meta = self.get(rel)?;
        let is_new = meta.is_none();
        let meta = meta.get_or_insert_with(|| RelMeta::created_by_write(lsn));
        if meta.grow(blocks) || is_new {
            self.note_changed(rel);
        }
        Ok(())
    }

    /// A fork that does not exist, or is not longer, stays as it is.
    pub(super) fn truncate(
        &mut self,
        rel: RelTag,
        lsn: Lsn,
        blocks: u32,
    ) -> Result<(), EngineError> {
        if let Some(meta) = self.get(rel)?
            && meta.blocks > blocks
        {
            meta.truncate(lsn, blocks);
            self.note_changed(rel);
        }
        Ok(())
    }

    pub(super) fn drop_fork(&mut self, rel: RelTag) -> Result<(), EngineError> {
        let meta = self.get(rel)?;
        if meta.take().is_some() {
            self.note_changed(rel);
        }
        Ok(())
    }

    /// Counts a record that this version cannot redo, once per record.
    pub(super) fn note_unhandled(
        &mut self,
        rel: RelTag,
        rmid: u8,
        info: u8,
    ) -> Result<(), EngineError> {
        if self.unhandled_changed.contains(&rel) {
            return Ok(());
        }
        let count = match self.unhandled.get(&rel) {
            Some(known) => known.count,
            None => self.stored_unhandled(rel)?,
        };
        let count = count.saturating_add(1);
        self.unhandled.insert(rel, Unhandled { rmid, info, count });
        self.unhandled_changed.push(rel);
        Ok(())
    }

    fn stored_unhandled(&self, rel: RelTag) -> Result<u32, EngineError> {
        let info = self.timeline.info();
        let (key, at) = (Key::unhandled(rel), info.last_record_lsn);
        let Some((lsn, bytes)) = self.timeline.get_value(key, at)? else { return Ok(0) };
        let stored = Unhandled::decode(&bytes).map_err(|what| EngineError::CorruptValue {
            timeline: info.timeline,
            key,
            lsn,
            what: what.to_owned(),
        })?;
        Ok(stored.count)
    }

    fn note_changed(&mut self, rel: RelTag) {
        if !self.changed.contains(&rel) {
            self.changed.push(rel);
        }
    }

    /// The values that the current record's changes come to.
    pub(super) fn take_changed(&mut self) -> Vec<(Key, Value)> {
        let mut values = Vec::with_capacity(self.changed.len() + self.unhandled_changed.len());
        for rel in self.changed.drain(..) {
            let meta = self.forks.get(&rel).and_then(Option::as_ref);
            let value = meta.map_or(Value::tombstone(), |meta| Value::whole(meta.encode()));
            values.push((Key::rel_meta(rel), value));
        }
        for rel in self.unhandled_changed.drain(..) {
            if let Some(unhandled) = self.unhandled.get(&rel) {
                values.push((Key::unhandled(rel), Value::whole(unhandled.encode())));
            }
        }
        values
    }

    /// After a batch was written, when the engine knows everything: bounds memory.
    pub(super) fn shrink(&mut self) {
        if self.forks.len() > FORKS_MAX {
            self.forks.clear();
        }
        if self.unhandled.len() > FORKS_MAX {
            self.unhandled.clear();
        }
    }
}
