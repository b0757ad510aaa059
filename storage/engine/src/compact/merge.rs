//! The merge: entries of adjacent runs, or those in a range of keys, as one stream in (key, LSN) order, one block of each run in memory.
//!
//! Values of one key at one LSN may lie in several runs (an import writes that way): those of older runs come first, so
//! the stream keeps the order in which they were written.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, binary_heap::PeekMut},
    sync::Arc,
};

use treering_types::{Key, KeyRange, Lsn};

use crate::{
    error::Result,
    layer::{Entry, block::Block, file::LayerFile},
    layer_map::Run,
};

/// Reads a run's entries of a range of keys, first to last, past the block cache.
struct RunReader {
    range: KeyRange,
    layers: std::vec::IntoIter<Arc<LayerFile>>,
    layer: Option<Arc<LayerFile>>,
    next_block: usize,
    block: Option<Block>,
    at: usize,
    bytes_read: u64,
}

impl RunReader {
    fn new(run: &Run, range: KeyRange) -> RunReader {
        let may_hold = |layer: &&Arc<LayerFile>| {
            layer.desc.key_last >= range.start && layer.desc.key_first < range.end
        };
        let layers: Vec<_> = run.layers.iter().filter(may_hold).cloned().collect();
        RunReader {
            range,
            layers: layers.into_iter(),
            layer: None,
            next_block: 0,
            block: None,
            at: 0,
            bytes_read: 0,
        }
    }

    fn next(&mut self) -> Result<Option<Entry>> {
        loop {
            if let Some(block) = &self.block
                && let Some(head) = block.heads().get(self.at)
            {
                if head.key >= self.range.end {
                    return Ok(None);
                }
                self.at += 1;
                let (key, lsn, base, chain) = (head.key, head.lsn, head.base, head.chain);
                return Ok(Some(Entry { key, lsn, base, chain, bytes: block.value(head) }));
            }
            if !self.next_block()? {
                return Ok(None);
            }
        }
    }

    fn next_block(&mut self) -> Result<bool> {
        loop {
            if let Some(layer) = &self.layer {
                // A layer that cannot be opened must not pass for an empty one.
                if let Some(error) = layer.broken() {
                    return Err(error);
                }
                if self.next_block < layer.block_count() {
                    let block = layer.read_block(self.next_block)?;
                    self.bytes_read += layer.stored_len(self.next_block);
                    self.next_block += 1;
                    self.at = block.start_of(&self.range.start);
                    self.block = Some(block);
                    return Ok(true);
                }
            }
            self.layer = self.layers.next();
            let Some(layer) = &self.layer else {
                self.block = None;
                return Ok(false);
            };
            self.next_block = layer.block_from(&self.range.start)?;
        }
    }
}

/// Where the next entry of a reader goes: key, LSN, then older runs first.
type Place = Reverse<(Key, Lsn, Reverse<usize>)>;

/// See the module.
pub(crate) struct Merge {
    /// Newest first.
    readers: Vec<RunReader>,
    /// The next entry of each reader.
    heads: Vec<Option<Entry>>,
    order: BinaryHeap<Place>,
}

impl Merge {
    /// Of adjacent runs, newest first: all entries.
    pub fn new(runs: &[Run]) -> Result<Merge> {
        Merge::of_range(runs, &(Key::MIN..Key::MAX))
    }

    /// The entries with keys in `range`.
    pub fn of_range(runs: &[Run], range: &KeyRange) -> Result<Merge> {
        let readers: Vec<RunReader> =
            runs.iter().map(|run| RunReader::new(run, range.clone())).collect();
        let heads = readers.iter().map(|_| None).collect();
        let mut merge = Merge { readers, heads, order: BinaryHeap::new() };
        (0..runs.len()).try_for_each(|number| merge.advance(number))?;
        Ok(merge)
    }

    fn advance(&mut self, number: usize) -> Result<()> {
        let Some(reader) = self.readers.get_mut(number) else { return Ok(()) };
        let next = reader.next()?;
        if let Some(entry) = &next {
            self.order.push(Reverse((entry.key, entry.lsn, Reverse(number))));
        }
        if let Some(head) = self.heads.get_mut(number) {
            *head = next;
        }
        Ok(())
    }

    pub fn next(&mut self) -> Result<Option<Entry>> {
        let Some(mut first) = self.order.peek_mut() else { return Ok(None) };
        let Reverse((_, _, Reverse(number))) = *first;
        let (Some(reader), Some(head)) = (self.readers.get_mut(number), self.heads.get_mut(number))
        else {
            return Ok(None);
        };
        let entry = std::mem::replace(head, reader.next()?);
        // The reader's next entry in the place of this one: most often it goes first again.
        match head {
            Some(next) => *first = Reverse((next.key, next.lsn, Reverse(number))),
            None => drop(PeekMut::pop(first)),
        }
        Ok(entry)
    }

    /// Bytes of files read so far.
    pub fn bytes_read(&self) -> u64 {
        self.readers.iter().map(|reader| reader.bytes_read).sum()
    }
}
