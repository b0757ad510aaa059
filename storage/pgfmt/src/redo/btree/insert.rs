//! One tuple more on a page.

#![deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::panic)]

use super::{RedoReason, index_tuple, posting};
use crate::{change::RecordPart, fields::Fields, item::Placement, page::Page};

/// INSERT_LEAF, INSERT_UPPER, INSERT_META: the block data is the tuple.
pub(super) fn tuple(part: &RecordPart<'_>, page: &mut Page<'_>) -> Result<(), RedoReason> {
    let offset = offset_of(part)?;
    page.add_item(&part.data, offset, Placement::Insert).map(|_| ())
}

/// INSERT_POST: the new tuple's item pointer falls inside the posting list before it. It goes into that list,
/// and the list's last one comes out into the new tuple (`_bt_swap_posting`).
pub(super) fn tuple_splitting_posting(
    part: &RecordPart<'_>,
    page: &mut Page<'_>,
) -> Result<(), RedoReason> {
    let offset = offset_of(part)?;
    let mut data = Fields::data(part);
    let place = data.u16()?;
    let tuple = data.rest();
    if index_tuple::leading(tuple)?.len() != tuple.len() {
        return Err(RedoReason::Malformed("inserted tuple has another size"));
    }
    let before = page.item_mut(offset.saturating_sub(1))?;
    let evicted = posting::swap(before, index_tuple::tid_of(tuple)?, place)?;
    let (_, at) = page.reserve_item(tuple.len(), offset, Placement::Insert)?;
    page.write(at, tuple)?;
    page.write(at, &evicted)
}

/// The new tuple's offset number, at least 1.
fn offset_of(part: &RecordPart<'_>) -> Result<u16, RedoReason> {
    match Fields::main(part).u16()? {
        0 => Err(RedoReason::Malformed("tuple offset is zero")),
        offset => Ok(offset),
    }
}
