//! What makes a page a hash page: its special area (`access/hash.h`).
//!
//! ```text
//!  8176   8180   8184     8188    8190      8192
//!  +------+------+--------+-------+---------+
//!  | prev | next | bucket | flags | page id |
//!  +------+------+--------+-------+---------+
//! ```

#![deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::panic)]

use treering_types::PAGE_SIZE;

use super::{RedoReason, index_tuple::NO_BLOCK};
use crate::page::Page;

/// Bytes of the special area (`sizeof(HashPageOpaqueData)`).
const SPECIAL_SIZE: usize = 16;
/// Where the special area begins.
pub(super) const SPECIAL: usize = PAGE_SIZE - SPECIAL_SIZE;
/// Marks every hash page (`HASHO_PAGE_ID`).
const PAGE_ID: u16 = 0xFF80;
/// No bucket (`InvalidBucket`).
const NO_BUCKET: u32 = u32::MAX;

/// `hasho_flag` bits; a free page has none.
pub(super) mod flag {
    pub const OVERFLOW: u16 = 1 << 0;
    pub const BITMAP: u16 = 1 << 2;
    pub const META: u16 = 1 << 3;
    pub const NEEDS_SPLIT_CLEANUP: u16 = 1 << 6;
    pub const HAS_DEAD_TUPLES: u16 = 1 << 7;
}

/// The special area of a hash page; the default is that of a free page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Special {
    /// The page before in the chain; on a bucket's primary page the highest bucket at its last split.
    pub prev: u32,
    /// The page after in the chain.
    pub next: u32,
    /// The bucket whose tuples the page holds.
    pub bucket: u32,
    /// See [`flag`].
    pub flags: u16,
}

impl Default for Special {
    fn default() -> Self {
        Special { prev: NO_BLOCK, next: NO_BLOCK, bucket: NO_BUCKET, flags: 0 }
    }
}

impl Special {
    /// Reads the special area.
    ///
    /// # Errors
    /// `Malformed` when the page is no hash page.
    pub fn read(page: &Page<'_>) -> Result<Self, RedoReason> {
        if page.special() != SPECIAL || page.u16_at(SPECIAL + 14)? != PAGE_ID {
            return Err(RedoReason::Malformed("not a hash page"));
        }
        Ok(Special {
            prev: page.u32_at(SPECIAL)?,
            next: page.u32_at(SPECIAL + 4)?,
            bucket: page.u32_at(SPECIAL + 8)?,
            flags: page.u16_at(SPECIAL + 12)?,
        })
    }

    /// Writes the special area.
    pub fn write(self, page: &mut Page<'_>) -> Result<(), RedoReason> {
        page.put_u32(SPECIAL, self.prev)?;
        page.put_u32(SPECIAL + 4, self.next)?;
        page.put_u32(SPECIAL + 8, self.bucket)?;
        page.put_u16(SPECIAL + 12, self.flags)?;
        page.put_u16(SPECIAL + 14, PAGE_ID)
    }

    /// Changes the special area.
    pub fn edit(page: &mut Page<'_>, change: impl FnOnce(&mut Self)) -> Result<(), RedoReason> {
        let mut special = Special::read(page)?;
        change(&mut special);
        special.write(page)
    }
}

/// Empties the page and gives it this special area (`_hash_pageinit`, `_hash_initbuf`).
pub(super) fn init(page: &mut Page<'_>, special: Special) -> Result<(), RedoReason> {
    page.init(SPECIAL_SIZE);
    special.write(page)
}

/// Clears one of [`flag`].
pub(super) fn clear_flag(page: &mut Page<'_>, bit: u16) -> Result<(), RedoReason> {
    Special::edit(page, |special| special.flags &= !bit)
}
