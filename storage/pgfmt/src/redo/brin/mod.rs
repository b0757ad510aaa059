//! BRIN redo (`access/brin/brin_xlog.c`): every record type; 15 to 18 agree on them.
//!
//! Three kinds of pages: block 0 is the meta page ([`page`]), then comes the revmap, arrays of item pointers that
//! say where the summary of each range of heap blocks is ([`revmap`]), then regular pages with the summaries
//! ([`summary`]). The revmap grows into the regular pages, which are emptied first.
//!
//! Promises as in Btree: record and own page only, page LSN set at the end, nothing allocated.

mod page;
mod revmap;
mod summary;
#[cfg(test)]
mod tests;

use super::{Context, RedoReason, index_tuple};
use crate::{change::RecordPart, page::Page};

/// Record types: three bits of the info byte (`access/brin_xlog.h`).
mod kind {
    pub const CREATE_INDEX: u8 = 0x00;
    pub const INSERT: u8 = 0x10;
    pub const UPDATE: u8 = 0x20;
    pub const SAMEPAGE_UPDATE: u8 = 0x30;
    pub const REVMAP_EXTEND: u8 = 0x40;
    pub const DESUMMARIZE: u8 = 0x50;
    /// The bits of a record type (`XLOG_BRIN_OPMASK`).
    pub const MASK: u8 = 0x70;
    /// Further bit: block 0 begins with this record (`XLOG_BRIN_INIT_PAGE`).
    pub const INIT_PAGE: u8 = 0x80;
}

/// Applies the part of a BRIN record that concerns `page`.
pub(super) fn redo(
    ctx: &Context<'_>,
    part: &RecordPart<'_>,
    page: &mut Page<'_>,
) -> Result<(), RedoReason> {
    use kind::*;
    match (part.info & MASK, part.block_id) {
        (CREATE_INDEX, 0) => page::create_meta(part, page),
        (INSERT | UPDATE, 0) => summary::add(part, page),
        (INSERT | UPDATE, 1) => revmap::point(part, page),
        (UPDATE, 2) => summary::remove_moved(part, page),
        (SAMEPAGE_UPDATE, 0) => summary::overwrite(part, page),
        (REVMAP_EXTEND, 0) => page::extend_meta(part, page),
        (REVMAP_EXTEND, 1) => page::init(page, page::Kind::Revmap),
        (DESUMMARIZE, 0) => revmap::forget(part, page),
        (DESUMMARIZE, 1) => summary::remove_forgotten(part, page),
        _ => Err(RedoReason::Unhandled),
    }?;
    page.set_lsn(ctx.lsn);
    Ok(())
}
