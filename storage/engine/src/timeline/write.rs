//! Writing: one batch at a time into the open layer, visible when `last_record_lsn` moves.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use treering_pgfmt::change::PageChange;
use treering_types::{ErrorKind, Key, KeyClass, Lsn, RelTag};

use super::{Phase, Timeline};
use crate::{
    error::{EngineError, Result},
    layer::open::OpenLayer,
    relation::RelMeta,
    value::{VALUE_BYTES_MAX, WriteBatch},
};

/// Relation forks whose newest metadata is kept at hand for the writer.
const TIP_METAS_MAX: usize = 100_000;
/// A waiting writer looks at least this often whether it should give up.
const ROOM_POLL: Duration = Duration::from_millis(500);
/// Under memory pressure a writer freezes its open layer only from this size on: tiny layer files help nobody.
const PRESSURE_LAYER_BYTES: usize = 1 << 20;

/// The newest metadata of relation forks, as of `last_record_lsn`. Changed only together with that watermark, under its lock.
#[derive(Default)]
pub(super) struct TipMetas(HashMap<RelTag, Option<RelMeta>>);

impl TipMetas {
    fn put(&mut self, rel: RelTag, meta: Option<RelMeta>) {
        if self.0.len() >= TIP_METAS_MAX {
            self.0.clear();
        }
        self.0.insert(rel, meta);
    }
}

impl Timeline {
    /// Takes a batch; readers see it whole once `last_record_lsn` has moved to the batch's.
    ///
    /// Waits for the flush while too many frozen layers are behind, and merges while too many runs are. Nothing here is durable: what lies above
    /// `disk_consistent_lsn` is to be written again after a crash.
    ///
    /// # Errors
    /// `BadBatch` for LSNs out of order, `Latched` or `Io` when flushing has failed, `NoTimeline` when deleted. After an
    /// error nothing of the batch is visible, and it may be written again.
    pub fn write(&self, batch: WriteBatch) -> Result<()> {
        // Not under the writer's lock: the flush that makes room may want to freeze.
        self.wait_for_room()?;
        let _writer = self.writer.lock();
        let phase = self.check_not_deleted()?;
        self.check_latch()?;
        self.check_batch(&batch, phase)?;
        let metas = self.metas_of(&batch)?;
        let open = Arc::clone(&self.layers().open);
        let long = open.insert(batch.values, self.context.options.open_chain_max.max(1));
        self.publish(metas, batch.last_record_lsn);
        if phase == Phase::Live {
            self.shorten_chains(&open, long);
        }
        if self.wants_freeze(&open) {
            self.freeze_locked(&open);
            self.flush_behind();
        }
        Ok(())
    }

    pub(crate) fn check_latch(&self) -> Result<()> {
        self.latch.check(|| format!("timeline {}", self.id()))
    }

    fn check_batch(&self, batch: &WriteBatch, phase: Phase) -> Result<()> {
        let bad = |lsn, what| Err(EngineError::BadBatch { timeline: self.id(), lsn, what });
        let last = self.last_record_lsn();
        if batch.last_record_lsn < last {
            return bad(batch.last_record_lsn, "the batch ends before last_record_lsn");
        }
        // An import writes everything at its start LSN; a live timeline never adds to an LSN that can be read.
        let least = if phase == Phase::Importing { last } else { last + 1 };
        let mut previous = least;
        for (key, lsn, value) in &batch.values {
            if *lsn < previous {
                return bad(*lsn, "values go back, or below last_record_lsn");
            }
            if *lsn > batch.last_record_lsn {
                return bad(*lsn, "a value lies above the batch's last_record_lsn");
            }
            if value.bytes.len() > VALUE_BYTES_MAX {
                return bad(*lsn, "a value is too long");
            }
            if key.class().is_err() {
                return bad(*lsn, "a key has an unknown class");
            }
            previous = *lsn;
        }
        Ok(())
    }

    fn metas_of(&self, batch: &WriteBatch) -> Result<Vec<(RelTag, Option<RelMeta>)>> {
        let mut metas = Vec::new();
        for (key, lsn, value) in &batch.values {
            let Some(rel) = key.rel().filter(|_| key.class() == Ok(KeyClass::RelMeta)) else {
                continue;
            };
            let meta = match value.is_tombstone() {
                true => None,
                false => Some(RelMeta::decode(&value.bytes).map_err(|what| {
                    EngineError::BadBatch { timeline: self.id(), lsn: *lsn, what }
                })?),
            };
            metas.push((rel, meta));
        }
        Ok(metas)
    }

    fn publish(&self, metas: Vec<(RelTag, Option<RelMeta>)>, last_record_lsn: Lsn) {
        let mut tip = self.tip_metas.lock();
        for (rel, meta) in metas {
            tip.put(rel, meta);
        }
        self.progress.set_last_record_lsn(last_record_lsn);
    }

    /// A relation fork's metadata at `last_record_lsn`, from memory when asked for before: what the writer needs for
    /// every record. `None` when it does not exist.
    ///
    /// # Errors
    /// As reads.
    pub fn tip_rel_meta(&self, rel: RelTag) -> Result<Option<RelMeta>> {
        // Held throughout, so that no write can slip between the read and the note taken of it.
        let mut tip = self.tip_metas.lock();
        if let Some(known) = tip.0.get(&rel) {
            return Ok(known.clone());
        }
        self.check_not_deleted()?;
        let lsn = self.last_record_lsn();
        let meta = self.view_unchecked(lsn)?.rel_meta(rel, lsn)?;
        tip.put(rel, meta.clone());
        Ok(meta)
    }

    /// Puts images into the open layer where pages change often, so that no read has to redo more than the bound.
    fn shorten_chains(&self, open: &OpenLayer, long: Vec<(Key, Lsn)>) {
        for (key, lsn) in long.into_iter().filter(|(key, _)| is_page(key)) {
            let page = self.view_unchecked(lsn).and_then(|view| view.page(&key, lsn));
            match page {
                Ok(page) => open.insert_image(key, lsn, PageChange::Image(page.into()).encode()),
                // Reads of the page will say the same, aloud.
                Err(error) => tracing::debug!(%error, ?key, "no image for a long chain"),
            }
        }
    }

    fn wants_freeze(&self, open: &OpenLayer) -> bool {
        let bytes = open.bytes();
        bytes >= self.context.options.open_layer_bytes_max
            || (bytes >= PRESSURE_LAYER_BYTES && self.context.is_over_budget())
    }

    fn wait_for_room(&self) -> Result<()> {
        loop {
            let (flush_is_behind, compaction_is_behind) =
                (self.flush_is_behind(), self.compaction_is_behind());
            if !flush_is_behind && !compaction_is_behind {
                return Ok(());
            }
            self.check_latch()?;
            self.check_not_deleted()?;
            if let Some(problem) = self.flush_problem.lock().clone() {
                return Err(problem);
            }
            if !self.context.options.background {
                self.flush_frozen()?;
            }
            // Here and now, if nobody is at it: the thread may be busy with a large merge of another timeline. A merge that is under way
            // makes room when it ends; the next one is the thread's.
            if compaction_is_behind
                && self.compact_unless_busy()?.is_some_and(|merged| merged.merges > 0)
            {
                continue;
            }
            let deadline = Instant::now() + ROOM_POLL;
            let has_room = || !self.flush_is_behind() && !self.compaction_is_behind();
            self.progress.wait_until(deadline, has_room);
        }
    }

    fn flush_is_behind(&self) -> bool {
        self.layers().frozen.len() >= self.context.options.frozen_layers_max.max(1)
    }

    /// What an import left is no fault of the writer's. A damaged layer keeps compaction from going on, but not the log from
    /// coming in: reads that need the layer say so.
    fn compaction_is_behind(&self) -> bool {
        let files = &self.layers().files;
        // Cheap first: this is asked for every batch.
        let runs_max = self.context.options.runs_hard_max.max(2);
        if files.runs.len() < runs_max || self.phase() != Phase::Live {
            return false;
        }
        let written = files.runs.iter().filter(|run| run.lsns().end > self.start_lsn() + 1);
        let is_damaged = |error: &EngineError| error.kind() == ErrorKind::Corrupt;
        written.count() >= runs_max && !self.merge_problem.lock().as_ref().is_some_and(is_damaged)
    }

    /// Has frozen layers flushed: by the background thread, or here when there is none. A failure is kept for the next
    /// write: this one has been taken.
    fn flush_behind(&self) {
        if self.context.options.background {
            self.context.flush_bell.ring();
        } else if let Err(error) = self.flush_frozen() {
            tracing::debug!(%error, "flush behind a write failed");
        }
    }

    /// Freezes the open layer when there is anything to flush: the next layer file begins above `last_record_lsn`.
    pub(crate) fn freeze(&self) {
        let _writer = self.writer.lock();
        let layers = self.layers();
        let last = self.last_record_lsn();
        let newest_frozen = layers.frozen.first().map(|layer| layer.frozen_at());
        let covered = newest_frozen.unwrap_or_else(|| self.disk_consistent_lsn());
        if !layers.open.is_empty() || covered < last {
            self.freeze_locked(&layers.open);
        }
    }

    fn freeze_locked(&self, open: &OpenLayer) {
        open.freeze(self.last_record_lsn());
        self.change_layers(|layers| layers.with_open_frozen());
    }

    /// Ends an import: everything written so far becomes durable, and the timeline visible, with `last_record_lsn`.
    ///
    /// # Errors
    /// `Importing` when it is live already; `BadBatch` when values were written above `last_record_lsn`; `Io`.
    pub fn finish_import(&self, last_record_lsn: Lsn) -> Result<()> {
        if self.check_not_deleted()? == Phase::Live {
            return Err(EngineError::Importing { timeline: self.id(), importing: false });
        }
        self.write(WriteBatch::new(last_record_lsn))?;
        self.flush()?;
        self.tenant()?.publish_root(self)
    }

    /// Waits until everything up to `lsn` can be read; false when `deadline` passes first.
    ///
    /// # Errors
    /// `NoTimeline` when it is deleted meanwhile.
    pub fn wait_for_lsn(&self, lsn: Lsn, deadline: Instant) -> Result<bool> {
        let done = || {
            self.last_record_lsn() >= lsn
                || matches!(self.phase(), Phase::Deleted | Phase::Archived)
        };
        let reached = self.progress.wait_until(deadline, done);
        self.check_not_deleted()?;
        Ok(reached)
    }
}

/// True for keys whose values are page changes.
pub(crate) fn is_page(key: &Key) -> bool {
    matches!(key.class(), Ok(KeyClass::RelBlock | KeyClass::Slru))
}
