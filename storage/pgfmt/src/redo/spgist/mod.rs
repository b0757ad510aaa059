//! SP-GiST redo (`access/spgist/spgxlog.c`): every record type; 15 to 18 differ in VACUUM_REDIRECT only.
//!
//! Pages of both kinds, [`leaf`] and [`inner`], hold tuples at offset numbers that other pages point to. So
//! nothing moves to another number: what goes leaves a redirect, a dead tuple or a placeholder of 16 bytes
//! ([`tuple`]), and a new tuple may take a placeholder's number ([`page`]). Records keep the tuples of all
//! their pages in the main data ([`record`]); [`cut`] is what drops those of the other pages.
//!
//! Promises as in Btree: record and own page only, page LSN set at the end, nothing allocated.

mod cut;
mod inner;
mod leaf;
mod page;
mod pick_split;
mod record;
#[cfg(test)]
mod tests;
mod tuple;
mod vacuum;

pub(super) use cut::main_for;

use super::{Context, RedoReason, index_tuple};
use crate::{change::RecordPart, page::Page};

/// Record types: the high four bits of the info byte (`access/spgxlog.h`).
mod kind {
    pub const ADD_LEAF: u8 = 0x10;
    pub const MOVE_LEAFS: u8 = 0x20;
    pub const ADD_NODE: u8 = 0x30;
    pub const SPLIT_TUPLE: u8 = 0x40;
    pub const PICKSPLIT: u8 = 0x50;
    pub const VACUUM_LEAF: u8 = 0x60;
    pub const VACUUM_ROOT: u8 = 0x70;
    pub const VACUUM_REDIRECT: u8 = 0x80;
}

/// Applies the part of a SP-GiST record that concerns `page`.
pub(super) fn redo(
    ctx: &Context<'_>,
    part: &RecordPart<'_>,
    page: &mut Page<'_>,
) -> Result<(), RedoReason> {
    use kind::*;
    match (part.info & 0xf0, part.block_id) {
        (ADD_LEAF, 0) => leaf::add(part, page),
        (ADD_LEAF, 1) => leaf::add_parent(part, page),
        (MOVE_LEAFS, 0) => leaf::move_source(part, page),
        (MOVE_LEAFS, 1) => leaf::move_destination(part, page),
        (MOVE_LEAFS, 2) => leaf::move_parent(part, page),
        (ADD_NODE, 0) => inner::add_node(part, page),
        (ADD_NODE, 1) => inner::add_node_elsewhere(part, page),
        (ADD_NODE, 2) => inner::add_node_parent(part, page),
        (SPLIT_TUPLE, 0) => inner::split_prefix(part, page),
        (SPLIT_TUPLE, 1) => inner::split_postfix(part, page),
        (PICKSPLIT, 0) => pick_split::source(part, page),
        (PICKSPLIT, 1) => pick_split::destination(part, page),
        (PICKSPLIT, 2) => pick_split::inner(part, page),
        (PICKSPLIT, 3) => pick_split::parent(part, page),
        (VACUUM_LEAF, 0) => vacuum::leaf(part, page),
        (VACUUM_ROOT, 0) => vacuum::root(part, page),
        (VACUUM_REDIRECT, 0) => {
            vacuum::redirects(part, page, ctx.major.layout().records.has_catalog_flag)
        }
        _ => Err(RedoReason::Unhandled),
    }?;
    page.set_lsn(ctx.lsn);
    Ok(())
}

/// The number of a block that the record cannot be without.
fn needed_block(part: &RecordPart<'_>, id: u8) -> Result<u32, RedoReason> {
    part.block_number(id).ok_or(RedoReason::Malformed("record without the block it links to"))
}
