//! Page splits and new roots.
//!
//! The right page comes whole in the record; the left one is rebuilt from its own tuples, in offset order, so
//! that even their places equal the original's.

#![deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::panic)]

use super::{
    RedoReason, index_tuple,
    page::{self, NONE, Special, flag},
    posting,
};
use crate::{
    change::RecordPart,
    fields::Fields,
    page::{Page, max_align},
};

/// On which page the tuple that caused the split went.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum NewTuple {
    Left,
    Right,
}

const NO_RIGHT: RedoReason = RedoReason::Malformed("split without a right page");

/// `xl_btree_split`.
struct Split {
    level: u32,
    /// First offset of the old page that went right.
    first_right: u16,
    /// Where the new tuple belongs in the old page.
    new_offset: u16,
    /// Place in the posting list before it that the new tuple splits; 0: none.
    posting_place: u16,
}

impl Split {
    fn read(part: &RecordPart<'_>) -> Result<Self, RedoReason> {
        let mut main = Fields::main(part);
        Ok(Split {
            level: main.u32()?,
            first_right: main.u16()?,
            new_offset: main.u16()?,
            posting_place: main.u16()?,
        })
    }

    fn leaf_flag(&self) -> u16 {
        if self.level == 0 { flag::LEAF } else { 0 }
    }
}

/// Block 1: the new right page.
pub(super) fn right(part: &RecordPart<'_>, page: &mut Page<'_>) -> Result<(), RedoReason> {
    let split = Split::read(part)?;
    let prev = part.block_number(0).ok_or(RedoReason::Malformed("split without a left page"))?;
    let next = part.block_number(2).unwrap_or(NONE);
    let flags = split.leaf_flag();
    page::init(page, Special { prev, next, level: split.level, flags, cycle_id: 0 })?;
    page::restore_tuples(page, &part.data)
}

/// Block 2: the page right of the new one links back to it.
pub(super) fn right_neighbour(
    part: &RecordPart<'_>,
    page: &mut Page<'_>,
) -> Result<(), RedoReason> {
    let prev = part.block_number(1).ok_or(NO_RIGHT)?;
    Special::edit(page, |special| special.prev = prev)
}

/// Block 0: the old page keeps what did not go right.
pub(super) fn left(
    part: &RecordPart<'_>,
    page: &mut Page<'_>,
    new: NewTuple,
) -> Result<(), RedoReason> {
    let split = Split::read(part)?;
    let mut old_bytes = *page.bytes();
    let mut old = Page::new(&mut old_bytes);
    let special = Special::read(&old)?;
    let mut data = Fields::data(part);
    let new_tuple = if new == NewTuple::Left || split.posting_place != 0 {
        Some(take_aligned(&mut data)?)
    } else {
        None
    };
    let high_key = take_aligned(&mut data)?;
    let evicted = match new_tuple {
        Some(tuple) if split.posting_place != 0 => {
            let list = old.item_mut(split.new_offset.saturating_sub(1))?;
            Some(posting::swap(list, index_tuple::tid_of(tuple)?, split.posting_place)?)
        }
        _ => None,
    };
    let next = part.block_number(1).ok_or(NO_RIGHT)?;
    let flags = flag::INCOMPLETE_SPLIT | split.leaf_flag();
    page::init(page, Special { next, flags, cycle_id: 0, ..special })?;
    page::append(page, high_key)?;
    let inserted = new_tuple.filter(|_| new == NewTuple::Left);
    let end = split.first_right.max(special.first_data_offset());
    for offset in special.first_data_offset()..=end {
        if offset == split.new_offset
            && let Some(tuple) = inserted
        {
            page::append(page, tuple)?;
            if let Some(tid) = evicted {
                let last = page.max_offset();
                index_tuple::set_tid(page.item_mut(last)?, tid)?;
            }
        }
        if offset < end {
            page::append(page, old.item(offset)?)?;
        }
    }
    Ok(())
}

/// The next tuple with its padding to 8 bytes.
fn take_aligned<'a>(data: &mut Fields<'a>) -> Result<&'a [u8], RedoReason> {
    let size = max_align(index_tuple::leading(data.rest())?.len());
    data.take(size)
}

/// NEWROOT block 0: an empty leaf, or two downlinks after a root split.
pub(super) fn new_root(part: &RecordPart<'_>, page: &mut Page<'_>) -> Result<(), RedoReason> {
    let mut main = Fields::main(part);
    main.skip(4)?;
    let level = main.u32()?;
    let leaf = if level == 0 { flag::LEAF } else { 0 };
    page::init(page, Special { level, flags: flag::ROOT | leaf, ..Special::default() })?;
    if level == 0 {
        return Ok(());
    }
    page::restore_tuples(page, &part.data)
}
