//! What of a merged stream is kept: see the argument in [`super`].
//!
//! Entries come in (key, LSN) order; each rule looks a few entries ahead at most, so memory is bounded whatever the length of a
//! history. Keeping more than is needed is never wrong; where something cannot be known now, it is kept.

use std::collections::VecDeque;

use bytes::Bytes;
use treering_types::{Key, KeyClass, Lsn, PAGE_SIZE};

use super::points::Points;
use crate::{layer::Entry, timeline::is_page};

/// Entries of one key that may wait for a decision; beyond it the older ones are kept.
const PENDING_MAX: usize = 1024;
/// Changes below the cut-off that weigh more than this become an image: it compresses to about as much.
const CHANGES_BYTES_MAX: usize = PAGE_SIZE / 2;
/// Pages of record ends that a lookup reads: `PAGES_PER_LEVEL` of `timeline::index`.
const ENDS_PAGES: usize = 3;

/// What the sieve asks of the timeline.
pub(crate) trait Past {
    /// Values of `key` at or below the LSN given back are not part of what a read at `at` sees; `INVALID` when all may be.
    fn floor(&mut self, key: &Key, at: Lsn) -> Lsn;
    /// The page with all changes up to `lsn` that a read at `at` sees, as a stored value; `None` when it cannot be made now. Newer
    /// runs may hold changes in between: they are not part of it.
    fn image(&mut self, key: &Key, lsn: Lsn, at: Lsn) -> Option<Bytes>;
}

/// How to keep.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    /// Changes of a page up to which no image is due.
    pub chain_max: usize,
    /// Nothing lies below the merged runs: no older run, no ancestor.
    pub is_bottom: bool,
    /// Bytes of values that may wait for a decision.
    pub pending_bytes_max: usize,
}

/// See the module.
pub(crate) struct Sieve<'a, P> {
    points: &'a Points,
    past: P,
    rules: Rules,
    /// The key that `pending` and `chain` are about.
    key: Option<Key>,
    /// Entries that no retained LSN is known to see yet, rising.
    pending: Vec<Entry>,
    pending_bytes: usize,
    /// Chain of the last entry kept of the key.
    chain: Option<usize>,
    /// No image of the key could be made since its last base: its changes cannot be redone.
    has_no_image: bool,
    /// The newest values of the last WAL pages.
    ends: VecDeque<Entry>,
    /// The last entry of the time index.
    stamp: Option<Entry>,
    kept: Vec<Entry>,
}

impl<'a, P: Past> Sieve<'a, P> {
    pub fn new(points: &'a Points, past: P, rules: Rules) -> Sieve<'a, P> {
        Sieve {
            points,
            past,
            rules,
            key: None,
            pending: Vec::new(),
            pending_bytes: 0,
            chain: None,
            has_no_image: false,
            ends: VecDeque::new(),
            stamp: None,
            kept: Vec::new(),
        }
    }

    /// Takes the next entry.
    pub fn push(&mut self, entry: Entry) {
        let is_new = self.key != Some(entry.key);
        if is_new {
            self.end_of_key();
            if self.key.is_some_and(|key| key.class() != entry.key.class()) {
                self.end_of_class();
            }
            self.key = Some(entry.key);
        }
        match entry.key.class() {
            Ok(KeyClass::RecordEnds) => self.record_ends(entry, is_new),
            Ok(KeyClass::TimeIndex) => self.time_index(entry, is_new),
            _ => self.history(entry),
        }
    }

    /// Takes a page of the timeline as the next entry, as it is at `lsn`; false when it cannot be made.
    pub fn push_page(&mut self, key: Key, lsn: Lsn) -> bool {
        let Some(bytes) = self.past.image(&key, lsn, lsn) else { return false };
        self.push(Entry { key, lsn, base: true, chain: 0, bytes });
        true
    }

    /// No more will come.
    pub fn finish(&mut self) {
        self.end_of_key();
        self.end_of_class();
    }

    /// What was decided to be kept since the last call, in order.
    pub fn take_kept(&mut self) -> std::vec::Drain<'_, Entry> {
        self.kept.drain(..)
    }

    fn end_of_class(&mut self) {
        self.kept.extend(self.ends.drain(..));
        self.kept.extend(self.stamp.take());
    }

    /// Lookups take the newest value of a WAL page, whatever its LSN, and the last three pages at or below an LSN.
    fn record_ends(&mut self, entry: Entry, is_new: bool) {
        if !is_new {
            self.ends.pop_back();
        } else if self.ends.len() >= ENDS_PAGES
            && let Some(oldest) = self.ends.pop_front()
        {
            // The page of an LSN is that of the byte before it.
            let after = |key: &Key| key.wal_page().map_or(Lsn::INVALID, |page| page + 1);
            let (from, before) = (after(&oldest.key), after(&entry.key));
            if self.points.first_in(from, before).is_some() {
                self.kept.push(oldest);
            }
        }
        self.ends.push_back(entry);
    }

    /// Stamps and LSNs rise together: the class is one history, and a read sees the newest entry at or below its LSN.
    fn time_index(&mut self, entry: Entry, is_new: bool) {
        if let Some(last) = self.stamp.replace(entry) {
            let before = self.stamp.as_ref().map_or(Lsn::MAX, |entry| entry.lsn);
            let in_order = is_new && last.lsn < before;
            if !in_order || self.points.first_in(last.lsn, before).is_some() {
                self.kept.push(last);
            }
        }
    }

    fn history(&mut self, entry: Entry) {
        if let Some(last) =
            self.pending.last().map(|last| last.lsn).filter(|last| *last < entry.lsn)
        {
            if let Some(point) = self.points.first_in(last, entry.lsn) {
                self.seen_at(point);
            } else if self.is_pending_full() {
                self.keep_pending();
            }
        }
        if entry.base {
            // No retained LSN sees what lies before it, at its own LSN included.
            self.clear_pending();
            self.has_no_image = false;
        }
        self.pending_bytes += entry.bytes.len();
        self.pending.push(entry);
    }

    fn is_pending_full(&self) -> bool {
        self.pending.len() >= PENDING_MAX || self.pending_bytes >= self.rules.pending_bytes_max
    }

    fn clear_pending(&mut self) {
        self.pending.clear();
        self.pending_bytes = 0;
    }

    fn end_of_key(&mut self) {
        if let Some(last) = self.pending.last()
            && let Some(point) = self.points.first_in(last.lsn, Lsn::MAX)
        {
            self.seen_at(point);
        }
        self.chain = None;
        self.has_no_image = false;
    }

    /// A read at `point`, and none between it and the last pending entry, sees what is pending, above its floor.
    fn seen_at(&mut self, point: Lsn) {
        let Some(last) = self.pending.last() else { return };
        let (key, lsn) = (last.key, last.lsn);
        let is_past = point <= self.points.cut_off();
        if is_past {
            // Floors rise with the LSN: what this point does not see, no later one does.
            let floor = self.past.floor(&key, point);
            self.pending.retain(|entry| entry.lsn > floor);
        }
        if is_page(&key) && !self.has_no_image && self.image_is_due(is_past) {
            match self.past.image(&key, lsn, point) {
                Some(bytes) => {
                    self.clear_pending();
                    self.pending.push(Entry { key, lsn, base: true, chain: 0, bytes });
                }
                None => self.has_no_image = true,
            }
        }
        self.keep_pending();
    }

    fn image_is_due(&self, is_past: bool) -> bool {
        let Some(first) = self.pending.first() else { return false };
        let changes = self.pending.iter().filter(|entry| !entry.base);
        let below = match (first.base, self.chain) {
            (true, _) => 0,
            (false, Some(chain)) => chain,
            (false, None) => usize::from(first.chain).saturating_sub(1),
        };
        let bytes: usize = changes.clone().map(|entry| entry.bytes.len()).sum();
        let count = changes.count();
        let is_long = count > 0 && below + count >= self.rules.chain_max;
        is_long || (is_past && bytes > CHANGES_BYTES_MAX)
    }

    fn keep_pending(&mut self) {
        self.pending_bytes = 0;
        for mut entry in self.pending.drain(..) {
            // At the bottom a key that is gone is a key that is not there.
            if self.rules.is_bottom && self.chain.is_none() && entry.base && entry.bytes.is_empty()
            {
                continue;
            }
            let chain = match (entry.base, self.chain) {
                (true, _) => 0,
                (false, Some(chain)) => chain + 1,
                (false, None) => usize::from(entry.chain),
            };
            self.chain = Some(chain);
            entry.chain = u16::try_from(chain).unwrap_or(u16::MAX);
            self.kept.push(entry);
        }
    }
}

#[cfg(test)]
mod tests;
