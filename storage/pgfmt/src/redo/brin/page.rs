//! What makes a page a BRIN page: its special area, which says what kind of page it is, and the meta page
//! (`access/brin_page.h`).
//!
//! ```text
//!  24      28        32                36                 40              8184     8188    8190   8192
//!  +-------+---------+-----------------+------------------+--- ... -------+--------+-------+------+
//!  | magic | version | blocks a range  | last revmap page |               | unused | flags | kind |
//!  +-------+---------+-----------------+------------------+--- ... -------+--------+-------+------+
//! ```

#![deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::panic)]

use treering_types::PAGE_SIZE;

use super::RedoReason;
use crate::{
    change::RecordPart,
    fields::Fields,
    page::{HEADER_SIZE, Page},
};

/// Bytes of the special area (`BrinSpecialSpace`).
const SPECIAL_SIZE: usize = 8;
/// Where the special area begins.
pub(super) const SPECIAL: usize = PAGE_SIZE - SPECIAL_SIZE;
/// Where the page's kind is (`BrinPageType`).
const KIND: usize = PAGE_SIZE - 2;
/// `BRIN_META_MAGIC`.
const META_MAGIC: u32 = 0xa810_9cfa;
/// `sizeof(BrinMetaPageData)`.
const META_SIZE: usize = 16;

/// What a page is for (`BRIN_PAGETYPE_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub(super) enum Kind {
    Meta = 0xf091,
    Revmap = 0xf092,
    Regular = 0xf093,
}

impl Kind {
    /// Checks that `page` is of this kind.
    pub fn check(self, page: &Page<'_>) -> Result<(), RedoReason> {
        if page.special() != SPECIAL || page.u16_at(KIND)? != self as u16 {
            return Err(RedoReason::Malformed("not that kind of BRIN page"));
        }
        Ok(())
    }
}

/// Empties the page and makes it one of this kind (`brin_page_init`).
pub(super) fn init(page: &mut Page<'_>, kind: Kind) -> Result<(), RedoReason> {
    page.init(SPECIAL_SIZE);
    page.put_u16(KIND, kind as u16)
}

/// CREATE_INDEX block 0: the meta page of an index without a revmap (`brin_metapage_init`).
pub(super) fn create_meta(part: &RecordPart<'_>, page: &mut Page<'_>) -> Result<(), RedoReason> {
    let mut main = Fields::main(part);
    let (range_size, version) = (main.u32()?, main.u16()?);
    init(page, Kind::Meta)?;
    let fields = [META_MAGIC, u32::from(version), range_size];
    for (index, field) in fields.into_iter().enumerate() {
        page.put_u32(HEADER_SIZE + index * 4, field)?;
    }
    set_last_revmap_page(page, 0)
}

/// REVMAP_EXTEND block 0: the meta page counts the new revmap page.
pub(super) fn extend_meta(part: &RecordPart<'_>, page: &mut Page<'_>) -> Result<(), RedoReason> {
    Kind::Meta.check(page)?;
    set_last_revmap_page(page, Fields::main(part).u32()?)
}

/// Also ends the hole of the page after the fields, where indexes from before 11 have it before them.
fn set_last_revmap_page(page: &mut Page<'_>, block: u32) -> Result<(), RedoReason> {
    page.put_u32(HEADER_SIZE + 12, block)?;
    page.set_lower(HEADER_SIZE + META_SIZE);
    Ok(())
}
