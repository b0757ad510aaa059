//! What a timeline is made of at one moment: an immutable snapshot that readers hold while writers publish the next.

use std::sync::Arc;

use treering_types::{Key, Lsn, LsnRange};

use crate::{
    layer::{file::LayerFile, open::OpenLayer},
    manifest::Kept,
};

/// Layer files, newest run first.
#[derive(Clone, Default)]
pub(crate) struct LayerMap {
    pub runs: Vec<Run>,
}

/// Layer files of disjoint key ranges, in key order.
#[derive(Clone)]
pub(crate) struct Run {
    pub layers: Vec<Arc<LayerFile>>,
    pub kept: Kept,
}

impl Run {
    /// Names the run: the number of its first layer.
    pub fn number(&self) -> u64 {
        self.layers.first().map_or(0, |layer| layer.desc.number)
    }

    /// Bytes of its files.
    pub fn bytes(&self) -> u64 {
        self.layers.iter().map(|layer| layer.desc.size).sum()
    }

    /// LSNs of its values.
    pub fn lsns(&self) -> LsnRange {
        let start = self.layers.iter().map(|layer| layer.desc.lsns.start).min();
        let end = self.layers.iter().map(|layer| layer.desc.lsns.end).max();
        LsnRange { start: start.unwrap_or_default(), end: end.unwrap_or_default() }
    }

    /// The one layer whose range may hold `key`.
    fn layer_of(&self, key: &Key) -> Option<&Arc<LayerFile>> {
        self.layers.get(self.layers.partition_point(|layer| layer.desc.key_last < *key))
    }
}

impl LayerMap {
    /// Blocks where the newest value of `key` at or below `upto` and above `floor` may be, newest layer first.
    pub fn candidates(
        &self,
        key: Key,
        floor: Lsn,
        upto: Lsn,
    ) -> impl Iterator<Item = (&Arc<LayerFile>, usize)> {
        self.runs.iter().filter_map(move |run| {
            let layer = run.layer_of(&key)?;
            layer.locate(&key, floor, upto).map(|block| (layer, block))
        })
    }

    pub fn files(&self) -> impl Iterator<Item = &Arc<LayerFile>> {
        self.runs.iter().flat_map(|run| &run.layers)
    }
}

/// Everything a read of one timeline can see, newest first: open layer, frozen layers, files.
#[derive(Clone)]
pub(crate) struct LayerSet {
    pub open: Arc<OpenLayer>,
    /// Newest first.
    pub frozen: Vec<Arc<OpenLayer>>,
    pub files: Arc<LayerMap>,
}

impl LayerSet {
    /// A timeline that holds only these files.
    pub fn of_files(files: LayerMap, open: OpenLayer) -> LayerSet {
        LayerSet { open: Arc::new(open), frozen: Vec::new(), files: Arc::new(files) }
    }

    /// The layers in memory, newest first.
    pub fn in_memory(&self) -> impl Iterator<Item = &Arc<OpenLayer>> {
        std::iter::once(&self.open).chain(&self.frozen)
    }

    /// The open layer frozen, a new one in its place.
    pub fn with_open_frozen(&self) -> LayerSet {
        let mut frozen = vec![Arc::clone(&self.open)];
        frozen.extend(self.frozen.iter().cloned());
        let open = Arc::new(self.open.successor());
        LayerSet { open, frozen, files: Arc::clone(&self.files) }
    }

    /// `flushed`, the oldest frozen layer, gone, and in its place the files it became (none when it was empty).
    ///
    /// # Panics
    /// When `flushed` is not the oldest frozen layer.
    pub fn with_flushed(&self, flushed: &Arc<OpenLayer>, layers: Vec<Arc<LayerFile>>) -> LayerSet {
        let (oldest, rest) = self.frozen.split_last().expect("a frozen layer was flushed");
        assert!(Arc::ptr_eq(oldest, flushed), "frozen layers are flushed oldest first");
        let mut files = LayerMap::clone(&self.files);
        if !layers.is_empty() {
            files.runs.insert(0, Run { layers, kept: Kept::default() });
        }
        let open = Arc::clone(&self.open);
        LayerSet { open, frozen: rest.to_vec(), files: Arc::new(files) }
    }

    /// The adjacent runs named by `merged` gone, and in their place what they became (`None`: nothing was left of them).
    ///
    /// # Panics
    /// When they are not there side by side: only one merge replaces runs at a time.
    pub fn with_merged(&self, merged: &[u64], run: Option<Run>) -> LayerSet {
        let mut files = LayerMap::clone(&self.files);
        let at = files.runs.iter().position(|run| merged.first() == Some(&run.number()));
        let at = at.expect("merged runs are in the map");
        let gone: Vec<u64> =
            files.runs.drain(at..at + merged.len()).map(|run| run.number()).collect();
        assert_eq!(gone, merged, "merged runs are side by side");
        if let Some(run) = run {
            files.runs.insert(at, run);
        }
        let open = Arc::clone(&self.open);
        LayerSet { open, frozen: self.frozen.clone(), files: Arc::new(files) }
    }
}
