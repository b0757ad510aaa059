//! DELETE and VACUUM: whole tuples go, and item pointers go from posting lists.

#![deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::panic)]

use super::{
    RedoReason,
    index_tuple::TID_SIZE,
    page::{Special, flag},
    posting::{self, LeafTuple, TUPLE_SIZE_MAX},
};
use crate::{
    change::RecordPart,
    fields::{Fields, U16s},
    page::Page,
};

/// DELETE: tuples known dead go while a page is full.
pub(super) fn delete(part: &RecordPart<'_>, page: &mut Page<'_>) -> Result<(), RedoReason> {
    let mut main = Fields::main(part);
    main.skip(4)?;
    remove(&mut main, &part.data, page)?;
    Special::edit(page, |special| special.flags &= !flag::HAS_GARBAGE)
}

/// VACUUM: the same without a snapshot horizon; newer majors also forget the vacuum cycle.
pub(super) fn vacuum(
    part: &RecordPart<'_>,
    page: &mut Page<'_>,
    clears_cycle: bool,
) -> Result<(), RedoReason> {
    remove(&mut Fields::main(part), &part.data, page)?;
    Special::edit(page, |special| {
        special.flags &= !flag::HAS_GARBAGE;
        if clears_cycle {
            special.cycle_id = 0;
        }
    })
}

/// `counts` is at the number of deleted and of updated tuples; `data` holds their offset numbers, then for each
/// updated tuple the places that leave its posting list.
fn remove(counts: &mut Fields<'_>, data: &[u8], page: &mut Page<'_>) -> Result<(), RedoReason> {
    let (deleted, updated) = (usize::from(counts.u16()?), usize::from(counts.u16()?));
    let mut data = Fields::new(data);
    let deleted = data.u16s(deleted)?;
    for offset in data.u16s(updated)?.iter() {
        let places = data.u16().and_then(|count| data.u16s(usize::from(count)))?;
        thin_posting(page, offset, places)?;
    }
    page.index_multi_delete(deleted.iter())
}

/// Takes the item pointers at `places` (ascending) out of a posting list (`_bt_update_posting`).
fn thin_posting(page: &mut Page<'_>, offset: u16, places: U16s<'_>) -> Result<(), RedoReason> {
    let mut kept = [0; TUPLE_SIZE_MAX];
    let mut formed = [0; TUPLE_SIZE_MAX];
    let old = LeafTuple::read(page.item(offset)?)?;
    let kept = keep_others(old.tids, places, &mut kept)?;
    let tuple = formed.get_mut(..posting::formed_size(old.key, kept));
    let tuple = tuple.ok_or(RedoReason::Malformed("posting list too large"))?;
    posting::form(tuple, old.key, kept)?;
    page.index_tuple_overwrite(offset, tuple)
}

/// Copies the item pointers whose places are not named and returns the copy.
fn keep_others<'a>(
    tids: &[u8],
    places: U16s<'_>,
    out: &'a mut [u8; TUPLE_SIZE_MAX],
) -> Result<&'a [u8], RedoReason> {
    const BAD: RedoReason = RedoReason::Malformed("no such place in the posting list");
    let mut places = places.iter().peekable();
    let mut size = 0;
    for (place, tid) in tids.as_chunks::<TID_SIZE>().0.iter().enumerate() {
        if places.next_if(|gone| usize::from(*gone) == place).is_some() {
            continue;
        }
        *out.get_mut(size..).and_then(|rest| rest.first_chunk_mut()).ok_or(BAD)? = *tid;
        size += TID_SIZE;
    }
    if places.next().is_some() || size == 0 {
        return Err(BAD);
    }
    out.get(..size).ok_or(BAD)
}
