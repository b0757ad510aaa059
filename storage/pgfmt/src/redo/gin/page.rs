//! What makes a page a gin page: its special area and the meta page (`access/ginblock.h`).
//!
//! ```text
//!  8184    8188          8190   8192
//!  +-------+-------------+------+
//!  | right | items/tuples| flags|
//!  +-------+-------------+------+
//! ```

#![deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::panic)]

use treering_types::PAGE_SIZE;

use super::{RedoReason, index_tuple};
use crate::{
    fields::Fields,
    page::{HEADER_SIZE, Page},
};

/// Bytes of the special area (`sizeof(GinPageOpaqueData)`).
const SPECIAL_SIZE: usize = 8;
/// Where the special area begins, and the room for anything else ends.
pub(super) const SPECIAL: usize = PAGE_SIZE - SPECIAL_SIZE;
/// Where posting tree pages keep their data: behind the header and the right bound, rounded up to 8.
pub(super) const DATA: usize = HEADER_SIZE + 8;

/// `flags` bits.
pub(super) mod flag {
    pub const DATA: u16 = 1 << 0;
    pub const LEAF: u16 = 1 << 1;
    pub const DELETED: u16 = 1 << 2;
    pub const META: u16 = 1 << 3;
    pub const LIST: u16 = 1 << 4;
    pub const LIST_FULL_ROW: u16 = 1 << 5;
    pub const INCOMPLETE_SPLIT: u16 = 1 << 6;
    pub const COMPRESSED: u16 = 1 << 7;
}

/// The special area of a gin page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Special {
    /// Right sibling, or no block.
    pub right: u32,
    /// Downlinks on an inner posting tree page; heap tuples on a pending list page (`maxoff`).
    pub count: u16,
    /// See [`flag`].
    pub flags: u16,
}

impl Special {
    /// Reads the special area.
    ///
    /// # Errors
    /// `Malformed` when the page is no gin page.
    pub fn read(page: &Page<'_>) -> Result<Self, RedoReason> {
        if page.special() != SPECIAL {
            return Err(RedoReason::Malformed("not a gin page"));
        }
        Ok(Special {
            right: page.u32_at(SPECIAL)?,
            count: page.u16_at(SPECIAL + 4)?,
            flags: page.u16_at(SPECIAL + 6)?,
        })
    }

    /// As [`Special::read`] for a page of the posting tree, with or without the leaf flag.
    pub fn read_data(page: &Page<'_>, leaf: bool) -> Result<Self, RedoReason> {
        let special = Special::read(page)?;
        let expected = if leaf { flag::DATA | flag::LEAF } else { flag::DATA };
        if special.flags & (flag::DATA | flag::LEAF) != expected {
            return Err(RedoReason::Malformed("not that kind of posting tree page"));
        }
        Ok(special)
    }

    /// Writes the special area.
    pub fn write(self, page: &mut Page<'_>) -> Result<(), RedoReason> {
        page.put_u32(SPECIAL, self.right)?;
        page.put_u16(SPECIAL + 4, self.count)?;
        page.put_u16(SPECIAL + 6, self.flags)
    }

    /// Changes the special area.
    pub fn edit(page: &mut Page<'_>, change: impl FnOnce(&mut Self)) -> Result<(), RedoReason> {
        let mut special = Special::read(page)?;
        change(&mut special);
        special.write(page)
    }
}

/// Empties the page and gives it these flags (`GinInitPage`).
pub(super) fn init(page: &mut Page<'_>, flags: u16) -> Result<(), RedoReason> {
    page.init(SPECIAL_SIZE);
    Special { right: index_tuple::NO_BLOCK, count: 0, flags }.write(page)
}

/// The downlink that a split of this page was missing has been inserted.
pub(super) fn clear_incomplete_split(page: &mut Page<'_>) -> Result<(), RedoReason> {
    Special::edit(page, |special| special.flags &= !flag::INCOMPLETE_SPLIT)
}

/// Rebuilds the meta page from the `GinMetaPageData` that `fields` is at.
pub(super) fn restore_meta(fields: &mut Fields<'_>, page: &mut Page<'_>) -> Result<(), RedoReason> {
    /// `sizeof(GinMetaPageData)`.
    const META_SIZE: usize = 56;
    let meta = fields.take(META_SIZE)?;
    init(page, flag::META)?;
    page.write(HEADER_SIZE, meta)?;
    page.set_lower(HEADER_SIZE + META_SIZE);
    Ok(())
}

/// A block number as two halves, the high one first (`BlockIdData`).
pub(super) fn block_id(bytes: &[u8]) -> Result<u32, RedoReason> {
    let mut halves = Fields::new(bytes);
    Ok(u32::from(halves.u16()?) << 16 | u32::from(halves.u16()?))
}

/// The opposite of [`block_id`].
pub(super) fn block_id_bytes(block: u32) -> [u8; 4] {
    let [h0, h1, l0, l1, ..] = index_tuple::tid(block, 0);
    [h0, h1, l0, l1]
}
