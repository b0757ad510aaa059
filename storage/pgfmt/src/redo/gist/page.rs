//! What makes a page a Gist page: its special area (`access/gist.h`).
//!
//! ```text
//!  8176     8184    8188    8190      8192
//!  +--------+-------+-------+---------+
//!  | NSN    | right | flags | page id |
//!  +--------+-------+-------+---------+
//! ```
//!
//! The NSN (node sequence number) is the LSN of the record that last completed a split of the page, stored as
//! `pd_lsn` is: two 32-bit halves, high half first.

#![deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::panic)]

use treering_types::{Lsn, PAGE_SIZE};

use super::{
    RedoReason,
    index_tuple::{self, NO_BLOCK},
};
use crate::{item::Placement, page::Page};

/// Bytes of the special area (`sizeof(GISTPageOpaqueData)`).
const SPECIAL_SIZE: usize = 16;
const SPECIAL: usize = PAGE_SIZE - SPECIAL_SIZE;
/// Last two bytes of every Gist page (`GIST_PAGE_ID`).
const PAGE_ID: u16 = 0xff81;
/// Block number of the root (`GIST_ROOT_BLKNO`), which never moves.
pub(super) const ROOT: u32 = 0;

/// Page flags (`F_*`).
pub(super) mod flag {
    pub const LEAF: u16 = 1 << 0;
    pub const DELETED: u16 = 1 << 1;
    pub const TUPLES_DELETED: u16 = 1 << 2;
    pub const FOLLOW_RIGHT: u16 = 1 << 3;
    pub const HAS_GARBAGE: u16 = 1 << 4;
}

/// The special area of a Gist page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Special {
    /// Node sequence number.
    pub nsn: Lsn,
    /// Right sibling, or no block.
    pub right: u32,
    /// See [`flag`].
    pub flags: u16,
}

impl Special {
    /// Reads the special area.
    ///
    /// # Errors
    /// `Malformed` when the page is no Gist page.
    pub fn read(page: &Page<'_>) -> Result<Self, RedoReason> {
        if page.special() != SPECIAL {
            return Err(RedoReason::Malformed("not a gist page"));
        }
        Ok(Special {
            nsn: Lsn(page.u64_at(SPECIAL)?.rotate_left(32)),
            right: page.u32_at(SPECIAL + 8)?,
            flags: page.u16_at(SPECIAL + 12)?,
        })
    }

    /// Writes the special area; the page id stays.
    pub fn write(self, page: &mut Page<'_>) -> Result<(), RedoReason> {
        page.put_u64(SPECIAL, self.nsn.0.rotate_left(32))?;
        page.put_u32(SPECIAL + 8, self.right)?;
        page.put_u16(SPECIAL + 12, self.flags)
    }

    /// Changes the special area.
    pub fn edit(page: &mut Page<'_>, change: impl FnOnce(&mut Self)) -> Result<(), RedoReason> {
        let mut special = Special::read(page)?;
        change(&mut special);
        special.write(page)
    }
}

/// Empties the page and gives it these flags (`gistinitpage`).
pub(super) fn init(page: &mut Page<'_>, flags: u16) -> Result<(), RedoReason> {
    page.init(SPECIAL_SIZE);
    page.put_u16(SPECIAL + 14, PAGE_ID)?;
    Special { nsn: Lsn(0), right: NO_BLOCK, flags }.write(page)
}

/// Adds the tuple at the start of `tuples` after the last one of the page and returns the bytes after it.
pub(super) fn append_leading<'a>(
    page: &mut Page<'_>,
    tuples: &'a [u8],
) -> Result<&'a [u8], RedoReason> {
    let tuple = index_tuple::leading(tuples)?;
    let next = page.max_offset() + 1;
    page.add_item(tuple, next, Placement::Insert)?;
    Ok(tuples.get(tuple.len()..).unwrap_or(&[]))
}
