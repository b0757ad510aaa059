//! The pending list: pages of tuples that wait to be moved into the tree, and the meta page that counts them.

#![deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::panic)]

use super::{
    RedoReason,
    index_tuple::{self, NO_BLOCK},
    page::{self, Special, flag},
};
use crate::{change::RecordPart, fields::Fields, item::Placement, page::Page};

/// UPDATE_META_PAGE block 0. `ginxlogUpdateMeta` begins with the relation, padded to 16.
pub(super) fn update_meta(part: &RecordPart<'_>, page: &mut Page<'_>) -> Result<(), RedoReason> {
    let mut main = Fields::main(part);
    main.skip(16)?;
    page::restore_meta(&mut main, page)
}

/// UPDATE_META_PAGE block 1: one more heap tuple's entries on the tail, or a link to the new tail.
pub(super) fn update_tail(part: &RecordPart<'_>, page: &mut Page<'_>) -> Result<(), RedoReason> {
    let mut main = Fields::main(part);
    main.skip(16 + 56)?;
    let (previous_tail, new_right, count) = (main.u32()?, main.u32()?, main.u32()? as i32);
    if count > 0 {
        append(page, &part.data, count)?;
        return Special::edit(page, |special| special.count = special.count.wrapping_add(1));
    }
    if previous_tail == NO_BLOCK {
        return Err(RedoReason::Malformed("tail page without a change"));
    }
    Special::edit(page, |special| special.right = new_right)
}

/// INSERT_LISTPAGE: a new page of the list.
pub(super) fn insert_page(part: &RecordPart<'_>, page: &mut Page<'_>) -> Result<(), RedoReason> {
    let mut main = Fields::main(part);
    let (right, count) = (main.u32()?, main.u32()? as i32);
    page::init(page, flag::LIST)?;
    Special::edit(page, |special| {
        special.right = right;
        // The last page of a sublist holds all that is left of one heap tuple.
        if right == NO_BLOCK {
            special.flags |= flag::LIST_FULL_ROW;
            special.count = 1;
        }
    })?;
    append(page, &part.data, count)
}

/// Adds `count` tuples that lie one after another.
fn append(page: &mut Page<'_>, tuples: &[u8], count: i32) -> Result<(), RedoReason> {
    let mut tuples = Fields::new(tuples);
    for _ in 0..count {
        let tuple = index_tuple::leading(tuples.rest())?;
        tuples.skip(tuple.len())?;
        let next = page.max_offset() + 1;
        page.add_item(tuple, next, Placement::Insert)?;
    }
    Ok(())
}
