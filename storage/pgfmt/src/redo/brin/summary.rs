//! Regular pages: one tuple for each summarized range of heap blocks. The revmap points at tuples by offset
//! number, so a tuple that goes leaves its line pointer behind unless it is the last.

#![deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::panic)]

use super::{
    RedoReason, kind,
    page::{self, Kind},
};
use crate::{change::RecordPart, fields::Fields, item::Placement, page::Page};

/// What INSERT and UPDATE say about the new tuple (`xl_brin_insert`).
pub(super) struct Place {
    /// First heap block of the range.
    pub heap_block: u32,
    /// Heap blocks of a range.
    pub range_size: u32,
    /// Offset number of the tuple on its page.
    pub offset: u16,
}

impl Place {
    /// Reads it from the record's main data, where UPDATE has the old tuple's offset number before it.
    pub fn read(part: &RecordPart<'_>) -> Result<Self, RedoReason> {
        let mut main = Fields::main(part);
        if part.info & kind::MASK == kind::UPDATE {
            main.skip(4)?;
        }
        let (heap_block, range_size) = (main.u32()?, main.u32()?);
        Ok(Place { heap_block, range_size, offset: main.u16()? })
    }
}

/// INSERT and UPDATE block 0: the block data is the tuple (`brin_xlog_insert_update`).
pub(super) fn add(part: &RecordPart<'_>, page: &mut Page<'_>) -> Result<(), RedoReason> {
    let place = Place::read(part)?;
    if part.info & kind::INIT_PAGE != 0 {
        page::init(page, Kind::Regular)?;
    }
    Kind::Regular.check(page)?;
    page.add_item(&part.data, place.offset, Placement::Reuse).map(|_| ())
}

/// SAMEPAGE_UPDATE block 0: the block data replaces a tuple.
pub(super) fn overwrite(part: &RecordPart<'_>, page: &mut Page<'_>) -> Result<(), RedoReason> {
    Kind::Regular.check(page)?;
    page.index_tuple_overwrite(Fields::main(part).u16()?, &part.data)
}

/// UPDATE block 2: the tuple moved to block 0.
pub(super) fn remove_moved(part: &RecordPart<'_>, page: &mut Page<'_>) -> Result<(), RedoReason> {
    remove(page, Fields::main(part).u16()?)
}

/// DESUMMARIZE block 1: the range is no longer summarized.
pub(super) fn remove_forgotten(
    part: &RecordPart<'_>,
    page: &mut Page<'_>,
) -> Result<(), RedoReason> {
    let mut main = Fields::main(part);
    main.skip(8)?;
    remove(page, main.u16()?)
}

fn remove(page: &mut Page<'_>, offset: u16) -> Result<(), RedoReason> {
    Kind::Regular.check(page)?;
    page.index_tuple_delete_no_compact(offset)
}
