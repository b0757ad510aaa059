//! Copied databases (CREATE DATABASE ... STRATEGY FILE_COPY) get pages of their own.
//!
//! A copied relation shows its source as of the copying record's LSN c, so c stays readable in the source's files while the copy
//! lives: it pins them. Once the cut-off has passed c, the merge that comes by the copy's first metadata (at c, so this is the run
//! that holds c) ends that: it writes an image of each of its pages *at c*, and marks the metadata as *copied out*. Images and mark are
//! published together. Values of a copy at c itself can be nothing else, as the copying record writes no page: so whoever reads the copy
//! takes them before it asks the source, whether the metadata it found has the mark or was written by ingest before it knew; blocks that
//! the copy grew later are known by their numbers.
//! The mark is handed on to newer metadata of the same copy when runs merge.
//!
//! If a page of the source cannot be read, the merge is done again without, and copies pin their sources until the engine is opened again.

use std::collections::{BTreeMap, BTreeSet};

use treering_types::{Key, KeyClass, KeyRange, Lsn, RelTag};

use crate::{
    error::Result, layer::Entry, layer_map::LayerMap, relation::RelMeta, timeline::Timeline,
};

/// What relation metadata in files says about copies.
#[derive(Debug, Default)]
pub(crate) struct KnownCopies {
    /// A copy by its key and LSN, and whether it was copied out.
    copies: BTreeMap<(Key, Lsn), bool>,
    /// Where the first metadata of a copy lies, if it is not marked: number of the run, LSN.
    begin: Vec<(usize, Key, Lsn)>,
}

impl KnownCopies {
    /// Looks at all relation metadata in these files.
    ///
    /// # Errors
    /// As reads: what cannot be read may name a copy.
    pub fn of(timeline: &Timeline, files: &LayerMap) -> Result<KnownCopies> {
        let range = Key::class_range(KeyClass::RelMeta);
        let mut known = KnownCopies::default();
        for (number, run) in files.runs.iter().enumerate() {
            for file in run.layers.iter().filter(|file| file.desc.key_first < range.end) {
                if let Some(error) = file.broken() {
                    return Err(error);
                }
                for block in 0..file.block_count() {
                    let block = file.read_block(block)?;
                    let metas = block.heads().iter().filter(|head| is_meta(&range, &head.key));
                    for head in metas.clone() {
                        let (key, lsn, bytes) = (head.key, head.lsn, block.value(head));
                        if !bytes.is_empty() {
                            let meta = RelMeta::decode(&bytes);
                            let meta =
                                meta.map_err(|what| timeline.corrupt_value(key, lsn, what))?;
                            known.note(number, key, lsn, &meta);
                        }
                    }
                    if metas.count() < block.heads().len() {
                        break;
                    }
                }
            }
        }
        Ok(known)
    }

    fn note(&mut self, run: usize, key: Key, lsn: Lsn, meta: &RelMeta) {
        let Some(copy) = meta.copy_of else { return };
        *self.copies.entry((key, copy.lsn)).or_default() |= meta.copied_out;
        if begins(lsn, meta) && !meta.copied_out {
            self.begin.push((run, key, lsn));
        }
    }

    /// LSNs at which copies still show their sources, rising.
    pub fn pinned(&self) -> Vec<Lsn> {
        let pinned = self.copies.iter().filter(|(_, copied_out)| !**copied_out);
        let lsns: BTreeSet<Lsn> = pinned.map(|((_, lsn), _)| *lsn).collect();
        lsns.into_iter().collect()
    }

    /// True if a merge may copy something out: pages that it finds out about far ahead of them in key order.
    pub fn any_due(&self, below: Lsn) -> bool {
        self.begin.iter().any(|(.., lsn)| *lsn < below)
    }

    /// A run whose merge would copy something out.
    pub fn run_due(&self, cut_off: Lsn) -> Option<usize> {
        let is_pinned = |key, lsn| self.copies.get(&(key, lsn)) == Some(&false);
        let due = self.begin.iter().find(|(_, key, lsn)| *lsn < cut_off && is_pinned(*key, *lsn));
        due.map(|(run, ..)| *run)
    }
}

/// True of the first metadata of a copy, if it can be copied out at all: reads must know which blocks they may not ask the source for.
fn begins(lsn: Lsn, meta: &RelMeta) -> bool {
    meta.copied_blocks.is_some() && meta.copy_of.is_some_and(|copy| copy.lsn == lsn)
}

fn is_meta(range: &KeyRange, key: &Key) -> bool {
    range.contains(key)
}

/// The copies that a merge copies out, as its stream passes by.
pub(crate) struct CopyOut {
    /// Copies below it are copied out; none when it is invalid.
    below: Lsn,
    /// The last key of metadata, and which of its copies are marked.
    marked: (Option<Key>, BTreeSet<Lsn>),
    /// Relations whose pages are to be written, by the key of their first page: LSN and blocks of each copy.
    due: BTreeMap<Key, Vec<(Lsn, u32)>>,
    /// The relation whose pages are being written.
    pages: Option<Pages>,
}

impl CopyOut {
    /// Copies out what was copied below `below`.
    pub fn new(below: Lsn) -> CopyOut {
        CopyOut { below, marked: (None, BTreeSet::new()), due: BTreeMap::new(), pages: None }
    }

    /// Looks at the next entry of the stream; marks metadata of what is copied out.
    pub fn look(&mut self, entry: &mut Entry) {
        if entry.key.class() != Ok(KeyClass::RelMeta) || entry.bytes.is_empty() {
            return;
        }
        // Damaged metadata stays as it is: reads name it.
        let Ok(mut meta) = RelMeta::decode(&entry.bytes) else { return };
        let (Some(copy), Some(rel)) = (meta.copy_of, entry.key.rel()) else { return };
        if self.marked.0 != Some(entry.key) {
            self.marked = (Some(entry.key), BTreeSet::new());
        }
        let begins_here = begins(entry.lsn, &meta) && copy.lsn < self.below && !meta.copied_out;
        if begins_here && meta.blocks > 0 {
            let relation = self.due.entry(Key::rel_block(rel, 0)).or_default();
            relation.push((copy.lsn, meta.blocks));
        }
        if begins_here || meta.copied_out {
            self.marked.1.insert(copy.lsn);
        }
        if !meta.copied_out && self.marked.1.contains(&copy.lsn) {
            meta.copied_out = true;
            entry.bytes = meta.encode().into();
        }
    }

    /// The next page to be written before the stream goes on at `next` (at its end: `None`).
    pub fn next_before(&mut self, next: Option<(Key, Lsn)>) -> Option<(Key, Lsn)> {
        loop {
            if let Some(pages) = &mut self.pages {
                if let Some(page) = pages.first() {
                    let is_later = next.is_some_and(|next| next <= page);
                    return (!is_later).then(|| {
                        pages.copy += 1;
                        page
                    });
                }
                self.pages = None;
            }
            let (first, _) = self.due.first_key_value()?;
            if next.is_some_and(|(key, _)| key < *first) {
                return None;
            }
            let (first, copies) = self.due.pop_first()?;
            self.pages = first.rel().map(|rel| Pages { rel, copies, block: 0, copy: 0 });
        }
    }
}

/// The pages of one relation, in the order of a stream.
struct Pages {
    rel: RelTag,
    /// LSN and blocks, rising.
    copies: Vec<(Lsn, u32)>,
    block: u32,
    copy: usize,
}

impl Pages {
    /// The page that is next.
    fn first(&mut self) -> Option<(Key, Lsn)> {
        let blocks = self.copies.iter().map(|(_, blocks)| *blocks).max().unwrap_or(0);
        while self.block < blocks {
            match self.copies.get(self.copy) {
                Some((lsn, blocks)) if self.block < *blocks => {
                    return Some((Key::rel_block(self.rel, self.block), *lsn));
                }
                Some(_) => self.copy += 1,
                None => (self.block, self.copy) = (self.block + 1, 0),
            }
        }
        None
    }
}
