//! Hash redo (`access/hash/hash_xlog.c`): every record type of 15 to 18.
//!
//! Three kinds of pages: buckets with their chains of overflow pages hold the tuples ([`bucket`]), bitmap pages
//! say which overflow pages are free ([`bitmap`]), and block 0 is the meta page ([`meta`]). Promises as in
//! Btree: record and own page only, page LSN set at the end, nothing allocated.
//!
//! Block 0 of MOVE_PAGE_CONTENTS, SQUEEZE_PAGE and DELETE is the primary page of the bucket, referenced for its
//! lock only: it never comes here. Differences between majors: the layout of VACUUM_ONE_PAGE (16) and a write
//! page that SQUEEZE_PAGE leaves alone (17).

mod bitmap;
mod bucket;
mod meta;
mod page;
#[cfg(test)]
mod tests;

use super::{Context, RedoReason, index_tuple};
use crate::{change::RecordPart, page::Page, version::RecordRules};

/// Record types: the high four bits of the info byte (`access/hash_xlog.h`).
mod kind {
    pub const INIT_META_PAGE: u8 = 0x00;
    pub const INIT_BITMAP_PAGE: u8 = 0x10;
    pub const INSERT: u8 = 0x20;
    pub const ADD_OVFL_PAGE: u8 = 0x30;
    pub const SPLIT_ALLOCATE_PAGE: u8 = 0x40;
    pub const SPLIT_PAGE: u8 = 0x50;
    pub const SPLIT_COMPLETE: u8 = 0x60;
    pub const MOVE_PAGE_CONTENTS: u8 = 0x70;
    pub const SQUEEZE_PAGE: u8 = 0x80;
    pub const DELETE: u8 = 0x90;
    pub const SPLIT_CLEANUP: u8 = 0xA0;
    pub const UPDATE_META_PAGE: u8 = 0xB0;
    pub const VACUUM_ONE_PAGE: u8 = 0xC0;
}

/// Applies the part of a Hash record that concerns `page`.
pub(super) fn redo(
    ctx: &Context<'_>,
    part: &RecordPart<'_>,
    page: &mut Page<'_>,
) -> Result<(), RedoReason> {
    use kind::*;
    let rules = &ctx.major.layout().records;
    if spares_page(rules, part)? {
        return Ok(());
    }
    match (part.info & 0xf0, part.block_id) {
        (INIT_META_PAGE, 0) => meta::init(part, page),
        (INIT_BITMAP_PAGE, 0) | (ADD_OVFL_PAGE, 3) => bitmap::init(part, page),
        (INIT_BITMAP_PAGE, 1) => meta::add_first_bitmap(page),
        (INSERT, 0) => bucket::insert(part, page),
        (INSERT, 1) => meta::add_tuples(page, 1.0),
        (ADD_OVFL_PAGE, 0) => bucket::init_overflow(part, page),
        (ADD_OVFL_PAGE, 1) => bucket::link_overflow(part, page),
        (ADD_OVFL_PAGE, 2) => bitmap::set(part, page),
        (ADD_OVFL_PAGE, 4) => meta::add_overflow(part, page),
        (SPLIT_ALLOCATE_PAGE, 0) => bucket::start_split(part, page),
        (SPLIT_ALLOCATE_PAGE, 1) => bucket::init_split(part, page),
        (SPLIT_ALLOCATE_PAGE, 2) => meta::add_bucket(part, page),
        (SPLIT_PAGE, 0) => Err(RedoReason::Malformed("record without its full-page image")),
        (SPLIT_COMPLETE, 0 | 1) => bucket::finish_split(part, page),
        (MOVE_PAGE_CONTENTS, 1) => bucket::receive(part, page),
        (MOVE_PAGE_CONTENTS, 2) => bucket::delete_tuples(part, page),
        (SQUEEZE_PAGE, 1) => bucket::receive_last(part, page),
        (SQUEEZE_PAGE, 2) => page::init(page, page::Special::default()),
        (SQUEEZE_PAGE, 3) => bucket::link_past_freed(part, page),
        (SQUEEZE_PAGE, 4) => bucket::link_before_freed(part, page),
        (SQUEEZE_PAGE, 5) => bitmap::clear(part, page),
        (SQUEEZE_PAGE, 6) => meta::set_first_free(part, page),
        (DELETE, 1) => bucket::delete(part, page),
        (SPLIT_CLEANUP, 0) => page::clear_flag(page, page::flag::NEEDS_SPLIT_CLEANUP),
        (UPDATE_META_PAGE, 0) => meta::set_tuples(part, page),
        (VACUUM_ONE_PAGE, 0) => bucket::vacuum(rules, part, page),
        (VACUUM_ONE_PAGE, 1) => meta::subtract_vacuumed(rules, part, page),
        _ => Err(RedoReason::Unhandled),
    }?;
    page.set_lsn(ctx.lsn);
    Ok(())
}

/// True when the page keeps its bytes and its LSN: the write page of a SQUEEZE_PAGE that brings it no tuples and
/// no new link. Older majors move its LSN.
fn spares_page(rules: &RecordRules, part: &RecordPart<'_>) -> Result<bool, RedoReason> {
    if !rules.hash_squeeze_spares_unwritten
        || (part.info & 0xf0, part.block_id) != (kind::SQUEEZE_PAGE, 1)
    {
        return Ok(false);
    }
    let squeeze = bucket::Squeeze::read(part)?;
    Ok(squeeze.tuples == 0 && !squeeze.write_page_is_previous)
}
