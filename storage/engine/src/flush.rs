//! The flush: frozen layers become layer files, oldest first, and `disk_consistent_lsn` moves.
//!
//! Order, each step durable before the next: layer files → timeline manifest → (first time) the tenant's note that there is
//! one → watermark. A crash between steps leaves files that no manifest names; they are removed when the engine is opened.
//!
//! Full-page writes are off, so nothing else bounds a page's chain: the flush writes an image where one has grown to
//! `chain_max`, counting what older layers and ancestors hold of it.

use std::sync::{Arc, atomic::Ordering};

use bytes::Bytes;
use treering_fs::create_dir_durably;
use treering_pgfmt::{change::PageChange, wal::image::Image};
use treering_types::{Key, Lsn, PageImage};

use crate::{
    error::{EngineError, Result},
    layer::{
        Entry, LayerDesc,
        file::LayerFile,
        open::{OpenLayer, Stored},
        writer::{LayerWriter, WriteFailure},
    },
    manifest::{Kept, RunDesc, TimelineManifest, invariants, store},
    read::{fetch, reconstruct::apply},
    stretch::Stretches,
    timeline::{Phase, Timeline, is_page},
};

/// Changes of a page in one flush that are worth a look at its older ones: this share of the bound on chains.
const WORTH_A_LOOK: usize = 8;

impl Timeline {
    /// Makes everything written so far durable: on return `disk_consistent_lsn` is at least what `last_record_lsn` was.
    ///
    /// # Errors
    /// `Io` when the disk refuses (it may be tried again), `Latched` after a failed sync.
    pub fn flush(&self) -> Result<()> {
        self.freeze();
        self.flush_frozen()
    }

    /// Freezes the open layer if it is old enough, and flushes what is frozen. The background thread's turn.
    ///
    /// # Errors
    /// As [`Timeline::flush`].
    pub fn maybe_flush(&self) -> Result<()> {
        let open = Arc::clone(&self.layers().open);
        let behind = self.disk_consistent_lsn() < self.last_record_lsn();
        if behind && open.age() >= self.context.options.open_layer_age_max {
            self.freeze();
        }
        if self.layers().frozen.is_empty() { Ok(()) } else { self.flush_frozen() }
    }

    /// Flushes all frozen layers.
    pub(crate) fn flush_frozen(&self) -> Result<()> {
        let mut manifest = self.manifest.lock();
        loop {
            let layers = self.layers();
            let Some(oldest) = layers.frozen.last() else { return Ok(()) };
            let flushed = self.flush_one(&mut manifest, oldest);
            *self.flush_problem.lock() = flushed.as_ref().err().cloned();
            self.progress.notify();
            flushed?;
        }
    }

    fn flush_one(&self, manifest: &mut TimelineManifest, frozen: &Arc<OpenLayer>) -> Result<()> {
        self.check_latch()?;
        let phase = self.check_not_deleted()?;
        let end_lsn = frozen.frozen_at();
        let files = match frozen.is_empty() {
            true => Vec::new(),
            false => self.write_layers(frozen)?,
        };
        let bytes = files.iter().map(|file| file.desc.size).sum();
        if !files.is_empty() || end_lsn > manifest.disk_consistent_lsn {
            let saved = self.change_manifest(manifest, |next| {
                next.disk_consistent_lsn = end_lsn;
                let layers: Vec<_> = files.iter().map(|file| file.desc.clone()).collect();
                if !layers.is_empty() {
                    next.runs.insert(0, RunDesc { layers, kept: Kept::default() });
                }
            });
            self.remove_unless_published(&saved, files.iter().map(|file| file.desc.file_name()));
            saved?;
            if phase == Phase::Live {
                self.tenant()?.note_flushed(self)?;
            }
        }
        self.change_layers(|layers| layers.with_flushed(frozen, files.clone()));
        self.note_saved(manifest);
        self.progress.set_disk_consistent_lsn(end_lsn);
        self.traffic.count_flush(bytes);
        self.context.traffic.count_flush(bytes);
        self.context.haste.note_runs(self.layers().files.runs.len());
        self.context.compaction_bell.ring();
        Ok(())
    }

    /// Replaces the timeline's manifest. Every write of it carries the numbers, the cut-off and the leases as they are now.
    pub(crate) fn change_manifest(
        &self,
        manifest: &mut TimelineManifest,
        change: impl FnOnce(&mut TimelineManifest),
    ) -> Result<()> {
        let mut next = manifest.clone();
        next.sequence += 1;
        next.next_layer = self.layer_numbers.load(Ordering::Relaxed);
        (next.cut_off, next.leases) = self.retention_to_keep();
        change(&mut next);
        if let Err(sentence) = invariants::timeline_step(manifest, &next) {
            panic!("manifest of timeline {} would break: {sentence}", self.id());
        }
        self.ensure_directory()?;
        store::save(self.context.fs.as_ref(), &self.directory, &next)
            .map_err(|failure| failure.latch(&self.latch))?;
        *manifest = next;
        Ok(())
    }

    /// Removes new files that the manifest does not name for certain.
    pub(crate) fn remove_unless_published(
        &self,
        saved: &Result<()>,
        names: impl Iterator<Item = String>,
    ) {
        if saved.is_err() && self.check_latch().is_ok() {
            self.remove_layers(names);
        }
    }

    /// Removes files that no manifest names (any more). One that stays is removed when the engine is opened again.
    pub(crate) fn remove_layers(&self, names: impl Iterator<Item = String>) {
        for name in names {
            let path = self.directory.join(name);
            if let Err(error) = self.context.fs.remove_file(&path) {
                let error = EngineError::io("removing", path, error);
                tracing::warn!(%error, "a layer file that nothing names is left until the next start");
            }
        }
    }

    /// The same for layers that may be elsewhere, or not come back.
    pub(crate) fn retire_layers<'l>(&self, layers: impl Iterator<Item = &'l Arc<LayerFile>>) {
        for layer in layers {
            if let Err(error) = layer.retire(self.context.fs.as_ref()) {
                tracing::warn!(%error, "a layer file that nothing names is left until the next start");
            }
        }
    }

    fn ensure_directory(&self) -> Result<()> {
        let fs = self.context.fs.as_ref();
        create_dir_durably(fs, &self.directory).map_err(|error| {
            let error = EngineError::io("creating", self.directory.clone(), error);
            // Once it is there nobody would sync its name again.
            let made = fs.exists(&self.directory).unwrap_or(true);
            if made { self.latch.close(error) } else { error }
        })
    }

    /// Writes a frozen layer as files of disjoint keys, in key order, and opens them. None when no value of it needs keeping.
    fn write_layers(&self, frozen: &OpenLayer) -> Result<Vec<Arc<LayerFile>>> {
        self.ensure_directory()?;
        let mut done = Vec::new();
        if let Err(failure) = self.write_values(frozen, &mut done) {
            let error = self.refuse(failure);
            if self.check_latch().is_ok() {
                self.remove_layers(done.iter().map(LayerDesc::file_name));
            }
            return Err(error);
        }
        let open = |desc| {
            let file = self.open_layer(desc);
            file.broken().map_or(Ok(Arc::new(file)), |error| Err(self.latch.close(error)))
        };
        done.into_iter().map(open).collect()
    }

    /// Every file that was finished is in `done`, after a failure too.
    fn write_values(
        &self,
        frozen: &OpenLayer,
        done: &mut Vec<LayerDesc>,
    ) -> Result<(), WriteFailure> {
        let (fs, options) = (self.context.fs.as_ref(), &self.context.options);
        let mut stretches = Stretches::new(options.stretch_bytes_min);
        frozen.visit_sizes(|key, bytes| stretches.push(key, bytes));
        let mut starts = stretches.finish().into_iter().peekable();
        let mut writer: Option<LayerWriter<'_>> = None;
        let mut last = None;
        while let Some((key, values)) = frozen.next_history(last) {
            let begins = starts.next_if(|start| *start <= key).is_some();
            if let Some(full) = writer.take_if(|_| begins) {
                done.extend(full.finish(false)?);
            }
            let writer = match &mut writer {
                Some(writer) => writer,
                None => {
                    let (owner, number) = (self.owner(), self.next_layer_number());
                    let block_bytes = options.block_bytes;
                    let made = LayerWriter::create(fs, &self.directory, owner, number, block_bytes);
                    writer.insert(made?)
                }
            };
            for entry in self.entries(key, values) {
                writer.push(&entry)?;
            }
            last = Some(key);
        }
        if let Some(writer) = writer {
            done.extend(writer.finish(false)?);
        }
        Ok(())
    }

    /// The entries that one key's values become.
    fn entries(&self, key: Key, values: Vec<Stored>) -> Vec<Entry> {
        let images = is_page(&key) && self.phase() == Phase::Live;
        let chain_max = self.context.options.chain_max.max(1);
        let before = if images { self.chain_before(key, &values, chain_max) } else { 0 };
        let due = if images { images_due(before, &values, chain_max) } else { Vec::new() };
        let mut made = self.images(key, &values, &due).into_iter().peekable();
        let mut entries: Vec<Entry> = Vec::with_capacity(values.len());
        let mut chain = before;
        for (index, value) in values.into_iter().enumerate() {
            let image = made.next_if(|(at, _)| *at == index).and_then(|(_, image)| image);
            let Stored { lsn, base, bytes } = match image {
                Some(bytes) => Stored { lsn: value.lsn, base: true, bytes },
                None => value,
            };
            if base {
                // It holds all that came before it at the same LSN.
                while entries.last().is_some_and(|entry| entry.lsn == lsn) {
                    entries.pop();
                }
            }
            chain = if base { 0 } else { chain + 1 };
            let stored_chain = u16::try_from(chain).unwrap_or(u16::MAX);
            entries.push(Entry { key, lsn, base, chain: stored_chain, bytes });
        }
        if images && let Some(last) = entries.last() {
            self.context.caches.put_chain(self.serial(), key, last.chain);
        }
        entries
    }

    /// The length of the chain that older layers hold of `key`: as remembered from its last flush, or looked up. To look up is to
    /// unpack a block, which a few changes are not worth: half the bound is assumed for them.
    fn chain_before(&self, key: Key, values: &[Stored], chain_max: usize) -> usize {
        let Some(first) = values.first().filter(|value| !value.base) else { return 0 };
        if let Some(known) = self.context.caches.chain(self.serial(), key) {
            return known.into();
        }
        if values.len() < chain_max / WORTH_A_LOOK {
            return chain_max / 2;
        }
        let below = Lsn(first.lsn.0.saturating_sub(1));
        let length = self
            .view_unchecked(below)
            .and_then(|view| fetch::chain_length(&view, key, below, chain_max));
        // An ancestor that cannot be asked now: assume the worst, so that an image comes soon.
        length.unwrap_or(chain_max)
    }

    /// The page after each of the values with these indexes, as a value; `None` when it cannot be made: reads will say why.
    fn images(&self, key: Key, values: &[Stored], due: &[usize]) -> Vec<(usize, Option<Bytes>)> {
        let mut last = None;
        let image = |index: &usize| match self.page_after(key, values, *index, last.take()) {
            Ok(made) => {
                let bytes = PageChange::Image(Image::whole(&made.page)).encode();
                last = Some(made);
                (*index, Some(bytes))
            }
            Err(error) => {
                tracing::debug!(%error, ?key, "no image in the flush");
                (*index, None)
            }
        };
        due.iter().map(image).collect()
    }

    /// The page after the value of this index. From `last`, if nothing has been cut off in between: each change is redone once, however
    /// many images a page gets.
    fn page_after(
        &self,
        key: Key,
        values: &[Stored],
        index: usize,
        last: Option<Made>,
    ) -> Result<Made> {
        let lsn = values.get(index).map_or(Lsn::INVALID, |value| value.lsn);
        let view = self.view_unchecked(lsn)?;
        let floor = view.floor_of_page(&key, lsn)?;
        let Some(mut made) = last.filter(|last| last.floor == floor) else {
            return Ok(Made { index, floor, page: view.page(&key, lsn)? });
        };
        for value in values.get(made.index + 1..=index).unwrap_or_default() {
            let place = (key, value.lsn);
            apply(view.pg_major, self.id(), place, &value.bytes, &mut made.page)?;
        }
        made.index = index;
        Ok(made)
    }
}

/// A page on its way through its changes.
struct Made {
    /// Of the last value in it.
    index: usize,
    /// Of its relation's cuts, there.
    floor: Lsn,
    page: PageImage,
}

/// Indexes of values that an image should replace, so that no chain passes `chain_max` (by more than the changes of one LSN).
fn images_due(before: usize, values: &[Stored], chain_max: usize) -> Vec<usize> {
    let mut due = Vec::new();
    let mut chain = before;
    for (index, value) in values.iter().enumerate() {
        chain = if value.base { 0 } else { chain + 1 };
        let is_last_at_lsn = values.get(index + 1).is_none_or(|next| next.lsn != value.lsn);
        if chain >= chain_max && is_last_at_lsn {
            due.push(index);
            chain = 0;
        }
    }
    due
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(spec: &[(u64, bool)]) -> Vec<Stored> {
        let stored = |(lsn, base): &(u64, bool)| Stored {
            lsn: Lsn(*lsn),
            base: *base,
            bytes: Bytes::from_static(b"x"),
        };
        spec.iter().map(stored).collect()
    }

    #[test]
    fn images_bound_chains() {
        let changes: Vec<(u64, bool)> = (1..=10).map(|lsn| (lsn, false)).collect();
        assert_eq!(images_due(0, &values(&changes), 4), [3, 7]);
        assert_eq!(images_due(2, &values(&changes), 4), [1, 5, 9]);
        assert_eq!(images_due(0, &values(&[(1, true), (2, false), (3, true)]), 2), []);
    }

    #[test]
    fn an_image_stands_behind_all_changes_of_its_lsn() {
        let spec = values(&[(1, false), (2, false), (2, false), (3, false)]);
        assert_eq!(images_due(0, &spec, 2), [2]);
    }
}
