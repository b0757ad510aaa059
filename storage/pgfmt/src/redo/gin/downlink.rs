//! Inner pages of a posting tree: an array of 10-byte downlinks (`PostingItem`), child block then highest item
//! pointer, counted by the special area.

#![deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::panic)]

use super::{
    RedoReason,
    page::{DATA, SPECIAL, Special, block_id_bytes},
};
use crate::{fields::Fields, page::Page};

/// `sizeof(PostingItem)`.
const SIZE: usize = 10;

const BAD_OFFSET: RedoReason = RedoReason::Malformed("no such downlink");

/// Adds a downlink before the one at its offset, whose child becomes `right_child`. `data` is
/// `ginxlogInsertDataInternal`.
pub(super) fn insert(data: &[u8], right_child: u32, page: &mut Page<'_>) -> Result<(), RedoReason> {
    let special = Special::read_data(page, false)?;
    let mut data = Fields::new(data);
    let offset = data.u16()?;
    let new = data.take(SIZE)?;
    let at = position(offset, special.count)?;
    let end = end_of(special.count);
    if end + SIZE > SPECIAL {
        return Err(RedoReason::Malformed("no room for the downlink"));
    }
    page.write(at, &block_id_bytes(right_child))?;
    page.move_within(at, at + SIZE, end - at)?;
    page.write(at, new)?;
    set_count(page, special, special.count + 1)
}

/// Removes a downlink.
pub(super) fn delete(page: &mut Page<'_>, offset: u16) -> Result<(), RedoReason> {
    let special = Special::read_data(page, false)?;
    let at = position(offset, special.count)?;
    let end = end_of(special.count);
    if end > SPECIAL {
        return Err(RedoReason::Malformed("more downlinks than fit"));
    }
    page.move_within(at + SIZE, at, end - (at + SIZE))?;
    set_count(page, special, special.count - 1)
}

fn position(offset: u16, count: u16) -> Result<usize, RedoReason> {
    let index = offset.checked_sub(1).filter(|index| *index < count).ok_or(BAD_OFFSET)?;
    Ok(end_of(index))
}

/// Where an array of `count` downlinks ends.
fn end_of(count: u16) -> usize {
    DATA + usize::from(count) * SIZE
}

fn set_count(page: &mut Page<'_>, special: Special, count: u16) -> Result<(), RedoReason> {
    page.set_lower(end_of(count));
    Special { count, ..special }.write(page)
}
