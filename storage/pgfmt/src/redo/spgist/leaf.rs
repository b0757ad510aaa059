//! Leaf tuples that come or move: ADD_LEAF and MOVE_LEAFS.
//!
//! The tuples of one node form a chain on one page, linked by offset numbers; the downlink names its first.

#![deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::panic)]

use super::{
    RedoReason,
    index_tuple::{self, Tid},
    needed_block, page,
    record::{AddLeaf, MoveLeafs},
    tuple::{self, Grave, State},
};
use crate::{change::RecordPart, page::Page};

/// ADD_LEAF block 0: the leaf page.
pub(super) fn add(part: &RecordPart<'_>, page: &mut Page<'_>) -> Result<(), RedoReason> {
    let add = AddLeaf::read(&part.main)?;
    if add.is_new_page {
        page::init_leaf(page, add.stores_nulls)?;
    }
    if add.offset == add.head {
        return page::replace(page, add.tuple()?, add.offset);
    }
    page::add_or_replace(page, add.tuple()?, add.offset)?;
    match add.head {
        0 => Ok(()),
        head => tuple::set_next(page.item_mut(head)?, add.offset),
    }
}

/// ADD_LEAF block 1: the downlink to a new chain.
pub(super) fn add_parent(part: &RecordPart<'_>, page: &mut Page<'_>) -> Result<(), RedoReason> {
    let add = AddLeaf::read(&part.main)?;
    add.parent.set(page, index_tuple::tid(needed_block(part, 0)?, add.offset))
}

/// Where the moved chain begins.
fn new_place(part: &RecordPart<'_>, moved: &MoveLeafs<'_>) -> Result<Tid, RedoReason> {
    Ok(index_tuple::tid(needed_block(part, 1)?, moved.new_head()?))
}

/// MOVE_LEAFS block 0: the page the chain leaves.
pub(super) fn move_source(part: &RecordPart<'_>, page: &mut Page<'_>) -> Result<(), RedoReason> {
    let moved = MoveLeafs::read(&part.main)?;
    let grave = Grave { xid: moved.origin.xid, target: new_place(part, &moved)? };
    let first = if moved.origin.is_build { State::Placeholder } else { State::Redirect };
    page::bury_all(page, moved.deleted, grave, (first, State::Placeholder))
}

/// MOVE_LEAFS block 1: the page the chain goes to, with the tuple that did not fit on the other.
pub(super) fn move_destination(
    part: &RecordPart<'_>,
    page: &mut Page<'_>,
) -> Result<(), RedoReason> {
    let moved = MoveLeafs::read(&part.main)?;
    if moved.is_new_page {
        page::init_leaf(page, moved.stores_nulls)?;
    }
    moved.tuples().try_for_each(|placed| {
        let (offset, tuple) = placed?;
        page::add_or_replace(page, tuple, offset)
    })
}

/// MOVE_LEAFS block 2: the downlink to the chain.
pub(super) fn move_parent(part: &RecordPart<'_>, page: &mut Page<'_>) -> Result<(), RedoReason> {
    let moved = MoveLeafs::read(&part.main)?;
    moved.parent.set(page, new_place(part, &moved)?)
}
