//! A timeline as its local disk has it, for a source that keeps it elsewhere; and what of it the source has.

use std::{
    any::Any,
    sync::{Arc, atomic::Ordering},
};

use treering_types::Lsn;

use super::Timeline;
use crate::{
    error::Result,
    layer::{LayerDesc, file::LayerFile},
    layer_map::LayerMap,
    manifest::{TimelineManifest, store},
    residence::{LayerState, TimelineContent, TimelineState},
};

/// A manifest that is durable, and exactly the files that it names.
pub(super) struct Saved {
    pub manifest: TimelineManifest,
    pub files: Arc<LayerMap>,
}

impl Timeline {
    /// Opens a layer of this timeline.
    pub(crate) fn open_layer(&self, desc: LayerDesc) -> LayerFile {
        self.context.open_layer(&self.directory, self.owner(), self.identity.pg_tli, desc)
    }

    /// The manifest is durable and the layer map says the same. Called with the manifest's lock held.
    pub(crate) fn note_saved(&self, manifest: &TimelineManifest) {
        let files = Arc::clone(&self.layers().files);
        self.saved.store(Arc::new(Saved { manifest: manifest.clone(), files }));
        self.context.changed(self.identity.tenant);
    }

    /// Waits for nobody. `None` while there is no manifest.
    pub(crate) fn state(&self, with_content: impl Fn(u64) -> bool) -> Option<TimelineState> {
        let saved = self.saved.load_full();
        let Saved { manifest, files } = &*saved;
        if manifest.sequence == 0 {
            return None;
        }
        let content = with_content(manifest.sequence).then(|| TimelineContent {
            manifest: store::encode_file(manifest),
            layers: files.files().map(layer_state).collect(),
        });
        Some(TimelineState {
            timeline: manifest.timeline,
            pg_tli: manifest.pg_tli,
            is_root: self.ancestor().is_none(),
            sequence: manifest.sequence,
            disk_consistent_lsn: manifest.disk_consistent_lsn,
            content,
        })
    }

    /// Everything up to here outlives the local disk; `None` without a source of layers.
    pub fn remote_consistent_lsn(&self) -> Option<Lsn> {
        let lsn = Lsn(self.remote_consistent.load(Ordering::Acquire));
        self.context.residence.as_ref().map(|_| lsn)
    }

    /// Everything up to here need not be written again: it is where it is kept for good.
    pub fn durable_lsn(&self) -> Lsn {
        self.remote_consistent_lsn().unwrap_or_else(|| self.disk_consistent_lsn())
    }

    /// The source has the timeline as it was at this count of writes: layers may be evicted.
    pub fn note_stored(&self, sequence: u64) {
        let saved = self.saved.load_full();
        if saved.manifest.sequence == sequence {
            saved.files.files().for_each(|file| file.note_stored());
        }
    }

    /// The source has everything up to `lsn`. Never goes back.
    pub fn note_remote_consistent(&self, lsn: Lsn) {
        self.remote_consistent.fetch_max(lsn.0, Ordering::AcqRel);
        self.progress.notify();
    }

    /// Removes the files of layers that the source holds. Returns their bytes.
    ///
    /// # Errors
    /// `Io`.
    pub fn evict_all(&self) -> Result<u64> {
        self.layers().files.files().map(|file| file.evict()).sum()
    }
}

fn layer_state(file: &Arc<LayerFile>) -> LayerState {
    let user: Arc<dyn Any + Send + Sync> = Arc::clone(file) as _;
    LayerState {
        number: file.desc.number,
        size: file.desc.size,
        digest: file.desc.digest,
        path: file.path.clone(),
        in_use: Arc::downgrade(&user),
    }
}
