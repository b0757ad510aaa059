//! PICKSPLIT: a chain grew too long, so a new inner tuple comes between it and its parent.
//!
//! Its leaf tuples go to the page they were on, the source, and to one more, the destination. Splitting the
//! root involves no source: the page becomes the inner page.

#![deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::panic)]

use super::{
    RedoReason,
    index_tuple::{self, Tid},
    needed_block, page,
    record::{PickSplit, PickSplitBody, Side},
    tuple::{Grave, State},
};
use crate::{change::RecordPart, page::Page};

/// Where the new inner tuple is.
fn inner_place(part: &RecordPart<'_>, split: &PickSplit<'_>) -> Result<Tid, RedoReason> {
    Ok(index_tuple::tid(needed_block(part, 2)?, split.inner_offset))
}

/// Block 0: the leaf page whose chain is split.
pub(super) fn source(part: &RecordPart<'_>, page: &mut Page<'_>) -> Result<(), RedoReason> {
    let split = PickSplit::read(&part.main)?;
    let body = split.body()?;
    if split.is_root_split {
        return Err(RedoReason::Malformed("root split with a source page"));
    }
    if split.source_is_new {
        page::init_leaf(page, split.stores_nulls)?;
    } else {
        let (grave, first) = if split.origin.is_build {
            (Grave::unmarked(), State::Placeholder)
        } else {
            let target = inner_place(part, &split)?;
            (Grave { xid: split.origin.xid, target }, State::Redirect)
        };
        page::bury_all(page, body.deleted, grave, (first, State::Placeholder))?;
    }
    add_leaves(&body, Side::Source, page)
}

/// Block 1: another leaf page.
pub(super) fn destination(part: &RecordPart<'_>, page: &mut Page<'_>) -> Result<(), RedoReason> {
    let split = PickSplit::read(&part.main)?;
    if split.destination_is_new {
        page::init_leaf(page, split.stores_nulls)?;
    }
    add_leaves(&split.body()?, Side::Destination, page)
}

fn add_leaves(body: &PickSplitBody<'_>, side: Side, page: &mut Page<'_>) -> Result<(), RedoReason> {
    body.leaves(side).try_for_each(|placed| {
        let (offset, tuple) = placed?;
        page::add_or_replace(page, tuple, offset)
    })
}

/// Block 2: the page of the new inner tuple.
pub(super) fn inner(part: &RecordPart<'_>, page: &mut Page<'_>) -> Result<(), RedoReason> {
    let split = PickSplit::read(&part.main)?;
    if split.inner_is_new {
        page::init(page, page::nulls_flag(split.stores_nulls))?;
    }
    page::add_or_replace(page, split.body()?.inner, split.inner_offset)?;
    if split.inner_is_parent {
        split.parent.set(page, inner_place(part, &split)?)?;
    }
    Ok(())
}

/// Block 3: the parent, on a page of its own.
pub(super) fn parent(part: &RecordPart<'_>, page: &mut Page<'_>) -> Result<(), RedoReason> {
    let split = PickSplit::read(&part.main)?;
    split.parent.set(page, inner_place(part, &split)?)
}
