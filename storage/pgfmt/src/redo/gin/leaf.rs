//! Leaves of a posting tree: compressed segments one after another, up to `pd_lower`.

#![deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::panic)]

use treering_types::PAGE_SIZE;

use super::{
    RedoReason,
    codec::{self, Encoder, Segment},
    index_tuple::TID_SIZE,
    page::{self, DATA, SPECIAL, Special, flag},
};
use crate::{change::RecordPart, fields::Fields, page::Page};

/// What happens to a segment (`GIN_SEGMENT_*`).
mod action {
    pub const DELETE: u8 = 1;
    pub const INSERT: u8 = 2;
    pub const REPLACE: u8 = 3;
    pub const ADD_ITEMS: u8 = 4;
}

const NO_SEGMENT: RedoReason = RedoReason::Malformed("no such posting list segment");
const NO_ROOM: RedoReason = RedoReason::Malformed("posting lists do not fit");

/// CREATE_PTREE: the root of a new posting tree, a leaf, comes whole in the record.
pub(super) fn create(part: &RecordPart<'_>, page: &mut Page<'_>) -> Result<(), RedoReason> {
    let mut main = Fields::main(part);
    let size = main.u32()? as usize;
    let lists = main.take(size)?;
    if size > SPECIAL - DATA {
        return Err(NO_ROOM);
    }
    page::init(page, flag::DATA | flag::LEAF | flag::COMPRESSED)?;
    page.write(DATA, lists)?;
    page.set_lower(DATA + size);
    Ok(())
}

/// Carries out the actions of a `ginxlogRecompressDataLeaf` (INSERT, VACUUM_DATA_LEAF_PAGE).
pub(super) fn recompress(data: &[u8], page: &mut Page<'_>) -> Result<(), RedoReason> {
    let special = Special::read_data(page, true)?;
    if special.flags & flag::COMPRESSED == 0 {
        compress(page, special)?;
    }
    let copy = *page.bytes();
    let old = copy.get(DATA..page.lower().min(SPECIAL));
    let old = old.ok_or(RedoReason::Malformed("posting lists end before they begin"))?;
    let mut rewrite = Rewrite { page, old, segment: 0, written: DATA };
    let mut data = Fields::new(data);
    for _ in 0..data.u16()? {
        rewrite.act(&mut data)?;
    }
    rewrite.copy_rest()
}

/// A page being rewritten from a copy of its old segments.
struct Rewrite<'a, 'p, 'c> {
    page: &'a mut Page<'p>,
    /// Old segments not yet passed.
    old: &'c [u8],
    /// Number of the first of them.
    segment: u8,
    /// Where the next segment goes.
    written: usize,
}

impl<'c> Rewrite<'_, '_, 'c> {
    fn act(&mut self, data: &mut Fields<'_>) -> Result<(), RedoReason> {
        let (segment, action) = (data.u8()?, data.u8()?);
        self.copy_up_to(segment)?;
        match action {
            action::DELETE => self.pass().map(|_| ()),
            action::INSERT => self.put(take_segment(data)?),
            action::REPLACE => {
                self.pass()?;
                self.put(take_segment(data)?)
            }
            action::ADD_ITEMS => {
                let count = usize::from(data.u16()?);
                let added = data.take(count * TID_SIZE)?;
                let segment = self.pass()?;
                self.put_merged(&segment, added)
            }
            _ => Err(RedoReason::Malformed("unknown posting list action")),
        }
    }

    fn copy_up_to(&mut self, segment: u8) -> Result<(), RedoReason> {
        if segment < self.segment {
            return Err(RedoReason::Malformed("posting list actions out of order"));
        }
        while self.segment < segment {
            let kept = self.pass()?;
            self.put(kept.bytes)?;
        }
        Ok(())
    }

    /// Steps over the next old segment and returns it.
    fn pass(&mut self) -> Result<Segment<'c>, RedoReason> {
        if self.old.is_empty() {
            return Err(NO_SEGMENT);
        }
        let segment = Segment::leading(self.old)?;
        self.old = self.old.get(segment.bytes.len()..).unwrap_or(&[]);
        self.segment = self.segment.checked_add(1).ok_or(NO_SEGMENT)?;
        Ok(segment)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), RedoReason> {
        let end = self.written + bytes.len();
        if end > SPECIAL {
            return Err(NO_ROOM);
        }
        self.page.write(self.written, bytes)?;
        self.written = end;
        Ok(())
    }

    fn put_merged(&mut self, segment: &Segment<'_>, added: &[u8]) -> Result<(), RedoReason> {
        let room = self.page.slice_mut(self.written, SPECIAL - self.written)?;
        self.written += codec::merge(room, segment, added)?;
        Ok(())
    }

    fn copy_rest(mut self) -> Result<(), RedoReason> {
        self.put(self.old)?;
        self.page.set_lower(self.written);
        Ok(())
    }
}

/// The next segment of a record.
fn take_segment<'a>(data: &mut Fields<'a>) -> Result<&'a [u8], RedoReason> {
    let size = Segment::leading(data.rest())?.bytes.len();
    data.take(size)
}

/// Turns a leaf of before 9.4, an array of plain item pointers, into one compressed segment.
fn compress(page: &mut Page<'_>, special: Special) -> Result<(), RedoReason> {
    let items = copy_items(page, special.count)?;
    let mut size = 0;
    if special.count > 0 {
        let mut encoder = Encoder::new(page.slice_mut(DATA, SPECIAL - DATA)?);
        for pointer in items.as_chunks::<TID_SIZE>().0.iter().take(usize::from(special.count)) {
            encoder.push(codec::item_of(*pointer)?)?;
        }
        size = encoder.finish()?;
    }
    page.set_lower(DATA + size);
    Special { count: 0, flags: special.flags | flag::COMPRESSED, ..special }.write(page)
}

fn copy_items(page: &Page<'_>, count: u16) -> Result<[u8; PAGE_SIZE], RedoReason> {
    let mut items = [0; PAGE_SIZE];
    let stored = page.slice(DATA, usize::from(count) * TID_SIZE)?;
    items.get_mut(..stored.len()).ok_or(NO_ROOM)?.copy_from_slice(stored);
    Ok(items)
}
