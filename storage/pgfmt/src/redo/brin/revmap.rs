//! Pages of the range map: arrays of item pointers, one for each range of heap blocks, that fill everything
//! between header and special area. `pd_lower` does not count them: the whole array lies in the hole.

#![deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::panic)]

use super::{
    RedoReason,
    index_tuple::{self, NO_BLOCK, TID_SIZE},
    page::{Kind, SPECIAL},
    summary::Place,
};
use crate::{
    change::RecordPart,
    fields::Fields,
    page::{HEADER_SIZE, Page},
};

/// Item pointers of one page (`REVMAP_PAGE_MAXITEMS`).
const ENTRIES: u32 = ((SPECIAL - HEADER_SIZE) / TID_SIZE) as u32;

/// INSERT and UPDATE block 1: the range's summary is where block 0 got it.
pub(super) fn point(part: &RecordPart<'_>, page: &mut Page<'_>) -> Result<(), RedoReason> {
    let place = Place::read(part)?;
    let block = part.block_number(0).ok_or(RedoReason::Malformed("summary without a page"))?;
    set(page, place.heap_block, place.range_size, block, place.offset)
}

/// DESUMMARIZE block 0: the range has no summary.
pub(super) fn forget(part: &RecordPart<'_>, page: &mut Page<'_>) -> Result<(), RedoReason> {
    let mut main = Fields::main(part);
    let (range_size, heap_block) = (main.u32()?, main.u32()?);
    set(page, heap_block, range_size, NO_BLOCK, 0)
}

/// `brinSetHeapBlockItemptr`: an offset of 0 makes the item pointer invalid, whatever the block.
fn set(
    page: &mut Page<'_>,
    heap_block: u32,
    range_size: u32,
    block: u32,
    offset: u16,
) -> Result<(), RedoReason> {
    Kind::Revmap.check(page)?;
    let range = heap_block.checked_div(range_size);
    let range = range.ok_or(RedoReason::Malformed("range of no blocks"))?;
    let block = if offset == 0 { NO_BLOCK } else { block };
    let at = HEADER_SIZE + (range % ENTRIES) as usize * TID_SIZE;
    page.write(at, &index_tuple::tid(block, offset))
}
