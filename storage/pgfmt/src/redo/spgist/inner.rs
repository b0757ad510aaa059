//! Inner tuples that grow or split: ADD_NODE and SPLIT_TUPLE. Pages of null values have none.

#![deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::panic)]

use super::{
    RedoReason,
    index_tuple::{self, Tid},
    needed_block, page,
    record::{AddNode, SplitTuple},
    tuple::{Grave, State},
};
use crate::{change::RecordPart, page::Page};

/// Where the enlarged tuple is when it moved to another page.
fn new_place(part: &RecordPart<'_>, add: &AddNode<'_>) -> Result<Tid, RedoReason> {
    Ok(index_tuple::tid(needed_block(part, 1)?, add.new))
}

/// ADD_NODE block 0: the tuple grows in its place, or leaves it.
pub(super) fn add_node(part: &RecordPart<'_>, page: &mut Page<'_>) -> Result<(), RedoReason> {
    let add = AddNode::read(&part.main)?;
    if part.block_number(1).is_none() {
        return page::replace(page, add.tuple()?, add.old);
    }
    let target = new_place(part, &add)?;
    let state = if add.origin.is_build { State::Placeholder } else { State::Redirect };
    page::bury(page, add.old, Grave { xid: add.origin.xid, target }, state)?;
    set_parent_on(part, &add, page)
}

/// ADD_NODE block 1: the page that has room for the enlarged tuple.
pub(super) fn add_node_elsewhere(
    part: &RecordPart<'_>,
    page: &mut Page<'_>,
) -> Result<(), RedoReason> {
    let add = AddNode::read(&part.main)?;
    if add.is_new_page {
        page::init(page, 0)?;
    }
    page::add_or_replace(page, add.tuple()?, add.new)?;
    set_parent_on(part, &add, page)
}

/// ADD_NODE block 2: the parent, on neither of the other pages.
pub(super) fn add_node_parent(
    part: &RecordPart<'_>,
    page: &mut Page<'_>,
) -> Result<(), RedoReason> {
    let add = AddNode::read(&part.main)?;
    if add.parent_block != part.block_id {
        return Err(RedoReason::Malformed("block without a part in the change"));
    }
    set_parent_on(part, &add, page)
}

/// Updates the downlink if the parent is on this page.
fn set_parent_on(
    part: &RecordPart<'_>,
    add: &AddNode<'_>,
    page: &mut Page<'_>,
) -> Result<(), RedoReason> {
    if add.parent_block != part.block_id {
        return Ok(());
    }
    add.parent.set(page, new_place(part, add)?)
}

/// SPLIT_TUPLE block 0: the prefix takes the place of the tuple; the postfix may join it.
pub(super) fn split_prefix(part: &RecordPart<'_>, page: &mut Page<'_>) -> Result<(), RedoReason> {
    let split = SplitTuple::read(&part.main)?;
    page::replace(page, split.prefix()?, split.prefix_offset)?;
    if split.same_page {
        page::add_or_replace(page, split.postfix()?, split.postfix_offset)?;
    }
    Ok(())
}

/// SPLIT_TUPLE block 1: the postfix on a page of its own.
pub(super) fn split_postfix(part: &RecordPart<'_>, page: &mut Page<'_>) -> Result<(), RedoReason> {
    let split = SplitTuple::read(&part.main)?;
    if split.same_page {
        return Err(RedoReason::Malformed("block without a part in the change"));
    }
    if split.is_new_page {
        page::init(page, 0)?;
    }
    page::add_or_replace(page, split.postfix()?, split.postfix_offset)
}
