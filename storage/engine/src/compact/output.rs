//! The run that a merge writes: layers of disjoint keys, cut at keys once they are large enough.

use std::sync::Arc;

use treering_types::Key;

use crate::{
    error::Result,
    layer::{
        Entry, LayerDesc,
        block::ENTRY_HEADER,
        file::LayerFile,
        writer::{LayerWriter, WriteFailure},
    },
    timeline::Timeline,
};

/// See the module. What it wrote and nobody published is removed by [`Output::discard`].
pub(crate) struct Output<'t> {
    timeline: &'t Timeline,
    writer: Option<LayerWriter<'t>>,
    done: Vec<LayerDesc>,
    /// Nothing lies below the run.
    is_bottom: bool,
    /// Where layers have to end: in front of these keys, rising, that are still to come.
    cuts: std::vec::IntoIter<Key>,
    /// Each key of the layer under construction begins with a base.
    bases_first: bool,
    last_key: Option<Key>,
    /// Bytes of the key's entries since its last base.
    key_bytes: u64,
    /// Bytes of entries that a newer base of the same key supersedes.
    history_bytes: u64,
    bytes: u64,
}

/// What became of a merge.
pub(crate) struct Written {
    pub layers: Vec<Arc<LayerFile>>,
    /// Bytes of files whose values are superseded within the run.
    pub history_bytes: u64,
}

impl<'t> Output<'t> {
    pub fn new(timeline: &'t Timeline, is_bottom: bool, cuts: Vec<Key>) -> Output<'t> {
        Output {
            timeline,
            writer: None,
            done: Vec::new(),
            is_bottom,
            cuts: cuts.into_iter(),
            bases_first: true,
            last_key: None,
            key_bytes: 0,
            history_bytes: 0,
            bytes: 0,
        }
    }

    pub fn push(&mut self, entry: &Entry) -> Result<(), WriteFailure> {
        let len = (entry.bytes.len() + ENTRY_HEADER) as u64;
        if self.last_key != Some(entry.key) {
            self.begin_key(entry)?;
        } else if entry.base {
            self.history_bytes += self.key_bytes;
            self.key_bytes = 0;
        }
        self.key_bytes += len;
        self.bytes += len;
        match &mut self.writer {
            Some(writer) => writer.push(entry),
            None => {
                let timeline = self.timeline;
                let (fs, options) = (timeline.context.fs.as_ref(), &timeline.context.options);
                let (directory, number) = (&timeline.directory, timeline.next_layer_number());
                let owner = timeline.owner();
                let writer =
                    LayerWriter::create(fs, directory, owner, number, options.block_bytes)?;
                self.writer.insert(writer).push(entry)
            }
        }
    }

    fn begin_key(&mut self, entry: &Entry) -> Result<(), WriteFailure> {
        let layer_bytes_max = self.timeline.context.options.layer_bytes_max;
        let is_cut = self.passes_cut(&entry.key);
        if self.writer.as_ref().is_some_and(|w| is_cut || w.position() >= layer_bytes_max) {
            self.end_layer()?;
        }
        self.last_key = Some(entry.key);
        self.key_bytes = 0;
        self.bases_first &= entry.base;
        Ok(())
    }

    /// True when cuts lie between the key before and this one.
    fn passes_cut(&mut self, key: &Key) -> bool {
        let count = self.cuts.as_slice().partition_point(|cut| cut <= key);
        count.checked_sub(1).is_some_and(|last| self.cuts.nth(last).is_some())
    }

    fn end_layer(&mut self) -> Result<(), WriteFailure> {
        let complete = self.is_bottom && std::mem::replace(&mut self.bases_first, true);
        if let Some(writer) = self.writer.take() {
            self.done.extend(writer.finish(complete)?);
        }
        Ok(())
    }

    /// Ends the last layer: all are durable, none is named by the manifest.
    pub fn finish(&mut self) -> Result<(), WriteFailure> {
        self.end_layer()
    }

    /// Opens what was written.
    ///
    /// # Errors
    /// What is wrong with a file.
    pub fn open(&self) -> Result<Written> {
        let open = |desc: &LayerDesc| {
            let file = self.timeline.open_layer(desc.clone());
            file.broken().map_or(Ok(Arc::new(file)), Err)
        };
        let layers: Result<Vec<_>> = self.done.iter().map(open).collect();
        let file_bytes: u64 = self.done.iter().map(|desc| desc.size).sum();
        let share = u128::from(file_bytes) * u128::from(self.history_bytes);
        let history_bytes =
            u64::try_from(share / u128::from(self.bytes.max(1))).unwrap_or(file_bytes);
        Ok(Written { layers: layers?, history_bytes })
    }

    /// Removes what was written: the merge failed or was stopped, and no manifest names it.
    pub fn discard(&mut self) {
        if let Some(writer) = self.writer.take() {
            writer.abandon();
        }
        let names = self.done.drain(..).map(|desc| desc.file_name());
        self.timeline.remove_layers(names);
    }
}
