//! Redo, one file per resource manager: the part of a record that concerns a page, applied to that page.

pub mod brin;
pub mod btree;
pub mod generic;
pub mod gin;
pub mod gist;
pub mod hash;
pub mod heap;
pub mod heap2;
mod index_tuple;
pub mod sequence;
pub mod slru;
pub mod spgist;
pub mod visibility;
pub mod xlog;

use std::{borrow::Cow, fmt};

use treering_types::{Key, Lsn, PAGE_SIZE};

use crate::{
    change::{PageChange, RecordPart},
    page::Page,
    version::PgMajor,
    wal::{effects::apply_kept, record::Record},
};

/// Why a change could not be applied. The page it was for must not be served.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("redo of {rmgr} (rmid {rmid}) info {info:#04x} at {lsn} on {key:?}: {reason}")]
pub struct RedoError {
    pub lsn: Lsn,
    pub key: Key,
    pub rmid: u8,
    pub rmgr: &'static str,
    pub info: u8,
    pub reason: RedoReason,
}

/// The fact behind a [`RedoError`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RedoReason {
    /// This version has no redo for the record.
    #[error("not handled by this version; the record is kept")]
    Unhandled,
    /// The record needs an older version of the page and there is none.
    #[error("the page has no older version")]
    NoBase,
    /// Record or page bytes contradict themselves.
    #[error("{0}")]
    Malformed(&'static str),
    /// The record is shorter than its layout: what should begin at `offset` is not all there.
    #[error("{section} ends within the field at byte {offset}")]
    Short { section: Section, offset: usize },
    /// The record or a line pointer leads out of the page.
    #[error("{length} bytes at byte {offset} are not all inside the page")]
    OutsidePage { offset: usize, length: usize },
    /// The record names a line pointer that the page does not have.
    #[error("there is no line pointer {number}")]
    NoPointer { number: u16 },
}

/// The bytes of a record that an offset counts in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Section {
    /// Main data, as far as the page needs it.
    Main,
    /// Data of the page's block.
    Data,
    /// A piece of either, such as one of several structs.
    Piece,
}

impl fmt::Display for Section {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Section::Main => "main data",
            Section::Data => "block data",
            Section::Piece => "a piece of the record",
        })
    }
}

/// What redo of one page knows besides the change itself.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    pub major: PgMajor,
    /// End of the record: the page's new LSN.
    pub lsn: Lsn,
    pub key: &'a Key,
}

/// Applies one change to `page`, which holds the version before (all zeros when there is none).
///
/// `lsn` is the record's end and becomes the page's LSN where Postgres would set it. A change that needs no
/// older version finds a zeroed page, whatever the caller passes.
///
/// # Errors
/// [`RedoError`]; the page's contents are then unspecified.
pub fn apply(
    major: PgMajor,
    key: &Key,
    lsn: Lsn,
    change: &PageChange<'_>,
    page: &mut [u8; PAGE_SIZE],
) -> Result<(), RedoError> {
    let ctx = Context { major, lsn, key };
    apply_change(&ctx, change, page).map_err(|reason| {
        let (rmid, info) = change.resource_manager();
        RedoError { lsn, key: *key, rmid, rmgr: rmgr_name(rmid), info, reason }
    })
}

fn apply_change(
    ctx: &Context<'_>,
    change: &PageChange<'_>,
    page: &mut [u8; PAGE_SIZE],
) -> Result<(), RedoReason> {
    match change {
        PageChange::Image(image) => image.copy_to(page),
        PageChange::Zero => page.fill(0),
        PageChange::Record(part) => return apply_record(ctx, part, page),
        PageChange::ImageThenRecord(both) => {
            let (image, part) = &**both;
            image.copy_to(page);
            return redo_record(ctx, part, page);
        }
        PageChange::VisibilityClear { heap_block, bits } => {
            return visibility::clear(*heap_block, *bits, &mut Page(page));
        }
        PageChange::VisibilityTruncate { heap_blocks } => {
            return visibility::truncate(*heap_blocks, &mut Page(page));
        }
        PageChange::XactStatus { status, xids } => slru::xact_status(*status, xids, page),
        PageChange::CommitTime { time, origin, xids } => {
            slru::commit_time(*time, *origin, xids, page);
        }
        PageChange::MultiOffsets(entries) => slru::multi_offsets(entries, page),
        PageChange::MultiMembers(members) => slru::multi_members(members, page),
        PageChange::ZeroMultiOffsets => slru::zero_multi_offsets(ctx.key.block(), page),
        PageChange::Unhandled { rmid, record, .. } if is_native(*rmid) => {
            let rel = ctx.key.rel().ok_or(RedoReason::Unhandled)?;
            let place = (rel, ctx.key.block());
            let applied = apply_kept(ctx.major, record, ctx.lsn, place, |change| {
                apply_change(ctx, change, page)
            });
            return applied.unwrap_or(Err(RedoReason::Unhandled));
        }
        PageChange::Unhandled { .. } => return Err(RedoReason::Unhandled),
    }
    Ok(())
}

fn apply_record(
    ctx: &Context<'_>,
    part: &RecordPart<'_>,
    page: &mut [u8; PAGE_SIZE],
) -> Result<(), RedoReason> {
    if part.will_init {
        page.fill(0);
    } else if is_new(page) && !builds_missing_page(part) {
        return Err(RedoReason::NoBase);
    }
    redo_record(ctx, part, page)
}

fn redo_record(
    ctx: &Context<'_>,
    part: &RecordPart<'_>,
    page: &mut [u8; PAGE_SIZE],
) -> Result<(), RedoReason> {
    let page = &mut Page(page);
    match part.rmid {
        rmgr::XLOG => xlog::redo(ctx, part, page),
        rmgr::HEAP2 => heap2::redo(ctx, part, page),
        rmgr::HEAP => heap::redo(ctx, part, page),
        rmgr::BTREE => btree::redo(ctx, part, page),
        rmgr::HASH => hash::redo(ctx, part, page),
        rmgr::GIN => gin::redo(ctx, part, page),
        rmgr::GIST => gist::redo(ctx, part, page),
        rmgr::SEQUENCE => sequence::redo(ctx, part, page),
        rmgr::SPGIST => spgist::redo(ctx, part, page),
        rmgr::BRIN => brin::redo(ctx, part, page),
        rmgr::GENERIC => generic::redo(ctx, part, page),
        _ => Err(RedoReason::Unhandled),
    }
}

/// True for the resource managers whose page changes are redone here: all built-in ones. A record of theirs that an
/// earlier version could only keep is redone too.
pub fn is_native(rmid: u8) -> bool {
    usize::from(rmid) < BUILT_IN.len()
}

/// The main data that redo of one block of `record` needs.
pub fn main_for<'a>(record: &'a Record<'_>, block_id: u8) -> Cow<'a, [u8]> {
    match record.rmid {
        rmgr::SPGIST => spgist::main_for(record, block_id),
        _ => Cow::Borrowed(record.main),
    }
}

/// `PageIsNew`: `pd_upper` is zero.
fn is_new(page: &[u8; PAGE_SIZE]) -> bool {
    page[14] == 0 && page[15] == 0
}

/// Records that start from a missing page although they are not WILL_INIT: a visibility map comes into being
/// by being set (WAL.md E3).
fn builds_missing_page(part: &RecordPart<'_>) -> bool {
    part.rmid == rmgr::HEAP2 && part.info & 0x70 == 0x40 && part.block_id == 0
}

/// Built-in resource managers (`access/rmgrlist.h`), the same numbers in 14 to 18.
pub mod rmgr {
    pub const XLOG: u8 = 0;
    pub const XACT: u8 = 1;
    pub const SMGR: u8 = 2;
    pub const CLOG: u8 = 3;
    pub const DATABASE: u8 = 4;
    pub const TABLESPACE: u8 = 5;
    pub const MULTIXACT: u8 = 6;
    pub const RELMAP: u8 = 7;
    pub const STANDBY: u8 = 8;
    pub const HEAP2: u8 = 9;
    pub const HEAP: u8 = 10;
    pub const BTREE: u8 = 11;
    pub const HASH: u8 = 12;
    pub const GIN: u8 = 13;
    pub const GIST: u8 = 14;
    pub const SEQUENCE: u8 = 15;
    pub const SPGIST: u8 = 16;
    pub const BRIN: u8 = 17;
    pub const COMMIT_TS: u8 = 18;
    pub const ORIGIN: u8 = 19;
    pub const GENERIC: u8 = 20;
    pub const LOGICAL_MESSAGE: u8 = 21;
    /// Extensions' own resource managers start here.
    pub const CUSTOM_MIN: u8 = 128;
}

/// Names of the built-in resource managers as `pg_waldump` prints them, by id.
const BUILT_IN: [&str; 22] = [
    "XLOG",
    "Transaction",
    "Storage",
    "CLOG",
    "Database",
    "Tablespace",
    "MultiXact",
    "RelMap",
    "Standby",
    "Heap2",
    "Heap",
    "Btree",
    "Hash",
    "Gin",
    "Gist",
    "Sequence",
    "SPGist",
    "BRIN",
    "CommitTs",
    "ReplicationOrigin",
    "Generic",
    "LogicalMessage",
];

/// The name `pg_waldump` prints for a resource manager.
pub fn rmgr_name(rmid: u8) -> &'static str {
    match BUILT_IN.get(usize::from(rmid)) {
        Some(name) => name,
        None if rmid >= rmgr::CUSTOM_MIN => "custom",
        None => "unknown",
    }
}
