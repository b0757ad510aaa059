//! DEDUP: tuples with equal keys merged into posting lists (`btree_xlog_dedup`).
//!
//! The record names intervals only: where one begins and how many tuples it merges. The page is rebuilt in
//! offset order from its own tuples.

#![deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::panic)]

use super::{
    RedoReason,
    page::{self, HIGH_KEY, Special, flag},
    posting::{self, LeafTuple, MERGED_SIZE_MAX},
};
use crate::{
    change::RecordPart,
    fields::{Fields, U16s},
    item::Placement,
    page::{Page, max_align},
};

/// Merges the intervals of the record.
pub(super) fn redo(part: &RecordPart<'_>, page: &mut Page<'_>) -> Result<(), RedoReason> {
    let count = Fields::main(part).u16()?;
    let intervals = Fields::data(part).u16s(usize::from(count) * 2)?;
    let mut old_bytes = *page.bytes();
    let old = Page::new(&mut old_bytes);
    let special = Special::read(&old)?;
    page::init(page, Special { flags: special.flags & !flag::HAS_GARBAGE, ..special })?;
    if !special.is_rightmost() {
        page::append(page, old.item(HIGH_KEY)?)?;
    }
    let mut intervals = pairs(intervals).peekable();
    let mut merge = Merge::new();
    let mut offset = special.first_data_offset();
    while offset <= old.max_offset() {
        let interval = intervals.next_if(|(base, _)| *base == offset);
        let tuples = interval.map_or(1, |(_, tuples)| tuples.max(1));
        merge.start(old.item(offset)?)?;
        for joining in 1..tuples {
            merge.add(old.item(offset.saturating_add(joining))?)?;
        }
        merge.finish(page)?;
        offset = offset.saturating_add(tuples);
    }
    if intervals.next().is_some() {
        return Err(RedoReason::Malformed("deduplication interval outside the page"));
    }
    Ok(())
}

/// Base offset and number of tuples of each interval.
fn pairs(numbers: U16s<'_>) -> impl Iterator<Item = (u16, u16)> {
    numbers.iter().step_by(2).zip(numbers.iter().skip(1).step_by(2))
}

/// A posting list being collected.
struct Merge<'a> {
    /// Header and key of the first tuple.
    key: &'a [u8],
    /// The first tuple as it was, kept when nothing joins it.
    base: &'a [u8],
    tuples: usize,
    tids: [u8; MERGED_SIZE_MAX],
    tids_size: usize,
}

impl<'a> Merge<'a> {
    fn new() -> Self {
        Merge { key: &[], base: &[], tuples: 0, tids: [0; MERGED_SIZE_MAX], tids_size: 0 }
    }

    fn start(&mut self, tuple: &'a [u8]) -> Result<(), RedoReason> {
        let leaf = LeafTuple::read(tuple)?;
        self.key = leaf.key;
        self.base = super::index_tuple::leading(tuple)?;
        self.tuples = 0;
        self.tids_size = 0;
        self.push(leaf.tids)
    }

    fn add(&mut self, tuple: &[u8]) -> Result<(), RedoReason> {
        let tids = LeafTuple::read(tuple)?.tids;
        self.push(tids)?;
        if max_align(self.key.len() + self.tids_size) > MERGED_SIZE_MAX {
            return Err(RedoReason::Malformed("merged posting list too large"));
        }
        Ok(())
    }

    fn push(&mut self, tids: &[u8]) -> Result<(), RedoReason> {
        let end = self.tids_size + tids.len();
        let place = self.tids.get_mut(self.tids_size..end);
        let place = place.ok_or(RedoReason::Malformed("merged posting list too large"))?;
        place.copy_from_slice(tids);
        self.tids_size = end;
        self.tuples += 1;
        Ok(())
    }

    fn finish(&self, page: &mut Page<'_>) -> Result<(), RedoReason> {
        if self.tuples == 1 {
            return page::append(page, self.base);
        }
        let tids = self.tids.get(..self.tids_size).unwrap_or(&[]);
        let size = posting::formed_size(self.key, tids);
        let next = page.max_offset() + 1;
        let (_, at) = page.reserve_item(size, next, Placement::Insert)?;
        posting::form(page.slice_mut(at, size)?, self.key, tids)
    }
}
