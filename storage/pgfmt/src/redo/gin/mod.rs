//! Gin redo (`access/gin/ginxlog.c`): every record type; 15 to 18 agree on them.
//!
//! Three kinds of pages: entry pages are ordinary index pages ([`entry`]), posting tree pages are either arrays
//! of downlinks ([`downlink`]) or compressed lists of item pointers ([`leaf`], [`codec`]), and pending list
//! pages hold tuples waiting for the tree ([`list`]). Promises as in Btree: record and own page only, page LSN
//! set at the end, nothing allocated.

mod codec;
mod downlink;
mod entry;
mod leaf;
mod list;
mod page;
#[cfg(test)]
mod tests;

use super::{Context, RedoReason, index_tuple};
use crate::{change::RecordPart, fields::Fields, page::Page};

/// Record types: the high four bits of the info byte (`access/ginxlog.h`).
mod kind {
    pub const CREATE_PTREE: u8 = 0x10;
    pub const INSERT: u8 = 0x20;
    pub const SPLIT: u8 = 0x30;
    pub const VACUUM_PAGE: u8 = 0x40;
    pub const DELETE_PAGE: u8 = 0x50;
    pub const UPDATE_META_PAGE: u8 = 0x60;
    pub const INSERT_LISTPAGE: u8 = 0x70;
    pub const DELETE_LISTPAGE: u8 = 0x80;
    pub const VACUUM_DATA_LEAF_PAGE: u8 = 0x90;
}

/// Applies the part of a Gin record that concerns `page`.
pub(super) fn redo(
    ctx: &Context<'_>,
    part: &RecordPart<'_>,
    page: &mut Page<'_>,
) -> Result<(), RedoReason> {
    use kind::*;
    match (part.info & 0xf0, part.block_id) {
        (CREATE_PTREE, 0) => leaf::create(part, page),
        (INSERT, 0) => insert(part, page),
        (INSERT, 1) | (SPLIT, 3) => page::clear_incomplete_split(page),
        (SPLIT, 0..=2) | (VACUUM_PAGE, 0) => {
            Err(RedoReason::Malformed("record without its full-page image"))
        }
        (VACUUM_DATA_LEAF_PAGE, 0) => leaf::recompress(&part.data, page),
        (DELETE_PAGE, 0) => delete_page(part, page),
        (DELETE_PAGE, 1) => downlink::delete(page, Fields::main(part).u16()?),
        (DELETE_PAGE, 2) => skip_deleted_page(part, page),
        (UPDATE_META_PAGE, 0) => list::update_meta(part, page),
        (UPDATE_META_PAGE, 1) => list::update_tail(part, page),
        (INSERT_LISTPAGE, 0) => list::insert_page(part, page),
        (DELETE_LISTPAGE, 0) => page::restore_meta(&mut Fields::main(part), page),
        (DELETE_LISTPAGE, _) => page::init(page, page::flag::DELETED),
        _ => Err(RedoReason::Unhandled),
    }?;
    page.set_lsn(ctx.lsn);
    Ok(())
}

/// INSERT block 0: which tree and which kind of page is in the record's flags.
fn insert(part: &RecordPart<'_>, page: &mut Page<'_>) -> Result<(), RedoReason> {
    const IS_DATA: u16 = 1;
    const IS_LEAF: u16 = 2;
    let mut main = Fields::main(part);
    let flags = main.u16()?;
    if flags & IS_LEAF != 0 {
        return match flags & IS_DATA {
            0 => entry::insert(&part.data, None, page),
            _ => leaf::recompress(&part.data, page),
        };
    }
    // The children whose split this downlink finishes: left, then right.
    main.skip(4)?;
    let right_child = page::block_id(main.take(4)?)?;
    match flags & IS_DATA {
        0 => entry::insert(&part.data, Some(right_child), page),
        _ => downlink::insert(&part.data, right_child, page),
    }
}

/// DELETE_PAGE block 0: the page keeps its content and says since when it is gone.
fn delete_page(part: &RecordPart<'_>, page: &mut Page<'_>) -> Result<(), RedoReason> {
    let mut main = Fields::main(part);
    main.skip(8)?;
    let delete_xid = main.u32()?;
    page::Special::edit(page, |special| special.flags |= page::flag::DELETED)?;
    page.set_prune_xid(delete_xid);
    Ok(())
}

/// DELETE_PAGE block 2: the left sibling links past the page.
fn skip_deleted_page(part: &RecordPart<'_>, page: &mut Page<'_>) -> Result<(), RedoReason> {
    let mut main = Fields::main(part);
    main.skip(4)?;
    let right = main.u32()?;
    page::Special::edit(page, |special| special.right = right)
}
