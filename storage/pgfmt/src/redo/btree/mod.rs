//! Btree redo (`access/nbtree/nbtxlog.c`): every record type of 15 to 18.
//!
//! One table says which routine a record's block goes to. Promises: no routine reads anything but the record
//! and its own page; every routine ends by setting the page LSN; inserting a tuple allocates nothing.
//! Differences between majors: the main data of DELETE grew at its end in 16 (never read here), and VACUUM
//! clears the cycle id from 18 on.

mod dedup;
mod delete;
mod insert;
mod page;
mod posting;
mod split;
#[cfg(test)]
mod tests;
mod unlink;

use super::{Context, RedoReason, index_tuple};
use crate::{change::RecordPart, page::Page};

/// Record types: the high four bits of the info byte (`access/nbtxlog.h`).
mod kind {
    pub const INSERT_LEAF: u8 = 0x00;
    pub const INSERT_UPPER: u8 = 0x10;
    pub const INSERT_META: u8 = 0x20;
    pub const SPLIT_L: u8 = 0x30;
    pub const SPLIT_R: u8 = 0x40;
    pub const INSERT_POST: u8 = 0x50;
    pub const DEDUP: u8 = 0x60;
    pub const DELETE: u8 = 0x70;
    pub const UNLINK_PAGE: u8 = 0x80;
    pub const UNLINK_PAGE_META: u8 = 0x90;
    pub const NEWROOT: u8 = 0xA0;
    pub const MARK_PAGE_HALFDEAD: u8 = 0xB0;
    pub const VACUUM: u8 = 0xC0;
    pub const META_CLEANUP: u8 = 0xE0;
}

/// Applies the part of a Btree record that concerns `page`.
pub(super) fn redo(
    ctx: &Context<'_>,
    part: &RecordPart<'_>,
    page: &mut Page<'_>,
) -> Result<(), RedoReason> {
    use kind::*;
    match (part.info & 0xf0, part.block_id) {
        (INSERT_LEAF | INSERT_UPPER | INSERT_META, 0) => insert::tuple(part, page),
        (INSERT_POST, 0) => insert::tuple_splitting_posting(part, page),
        (SPLIT_L, 0) => split::left(part, page, split::NewTuple::Left),
        (SPLIT_R, 0) => split::left(part, page, split::NewTuple::Right),
        (SPLIT_L | SPLIT_R, 1) => split::right(part, page),
        (SPLIT_L | SPLIT_R, 2) => split::right_neighbour(part, page),
        (INSERT_UPPER | INSERT_META | NEWROOT, 1) | (SPLIT_L | SPLIT_R, 3) => {
            page::clear_incomplete_split(page)
        }
        (INSERT_META | NEWROOT, 2) | (UNLINK_PAGE_META, 4) | (META_CLEANUP, 0) => {
            page::restore_meta(part, page)
        }
        (DEDUP, 0) => dedup::redo(part, page),
        (DELETE, 0) => delete::delete(part, page),
        (VACUUM, 0) => {
            delete::vacuum(part, page, ctx.major.layout().records.btree_vacuum_clears_cycle)
        }
        (MARK_PAGE_HALFDEAD, 0) => unlink::half_dead_leaf(part, page),
        (MARK_PAGE_HALFDEAD, 1) => unlink::half_dead_parent(part, page),
        (UNLINK_PAGE | UNLINK_PAGE_META, 0) => unlink::target(part, page),
        (UNLINK_PAGE | UNLINK_PAGE_META, 1) => unlink::left_sibling(part, page),
        (UNLINK_PAGE | UNLINK_PAGE_META, 2) => unlink::right_sibling(part, page),
        (UNLINK_PAGE | UNLINK_PAGE_META, 3) => unlink::leaf(part, page),
        (NEWROOT, 0) => split::new_root(part, page),
        _ => Err(RedoReason::Unhandled),
    }?;
    page.set_lsn(ctx.lsn);
    Ok(())
}
