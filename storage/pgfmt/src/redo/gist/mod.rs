//! Gist redo (`access/gist/gistxlog.c`): every record type that changes pages; 15 to 18 agree on them but for
//! where DELETE keeps its offset numbers and whether deletions are marked.
//!
//! A split leaves its pages to be found by their right links until the parent knows them: they are marked
//! FOLLOW_RIGHT, and whichever record inserts the missing downlinks (PAGE_UPDATE block 1, PAGE_SPLIT block 0)
//! takes the mark off the leftmost of them. That page's image, if the record has one, is from before: redo goes
//! on after restoring it. PAGE_REUSE and ASSIGN_LSN reference no page.
//!
//! Promises as in Btree: record and own page only, page LSN set at the end, nothing allocated.

mod delete;
mod page;
mod split;
#[cfg(test)]
mod tests;
mod update;

use super::{Context, RedoReason, index_tuple};
use crate::{change::RecordPart, page::Page};

/// Record types: the high four bits of the info byte (`access/gistxlog.h`).
mod kind {
    pub const PAGE_UPDATE: u8 = 0x00;
    pub const DELETE: u8 = 0x10;
    pub const PAGE_SPLIT: u8 = 0x30;
    pub const PAGE_DELETE: u8 = 0x60;
}

/// Applies the part of a Gist record that concerns `page`.
pub(super) fn redo(
    ctx: &Context<'_>,
    part: &RecordPart<'_>,
    page: &mut Page<'_>,
) -> Result<(), RedoReason> {
    use kind::*;
    let rules = &ctx.major.layout().records;
    match (part.info & 0xf0, part.block_id) {
        (PAGE_UPDATE, 0) => update::redo(part, page, rules),
        (PAGE_UPDATE, 1) | (PAGE_SPLIT, 0) => split::finish(page, ctx.lsn),
        (DELETE, 0) => delete::tuples(part, page, rules),
        (PAGE_SPLIT, _) => split::page(part, page),
        (PAGE_DELETE, 0) => delete::page(part, page),
        (PAGE_DELETE, 1) => delete::downlink(part, page),
        _ => Err(RedoReason::Unhandled),
    }?;
    page.set_lsn(ctx.lsn);
    Ok(())
}
