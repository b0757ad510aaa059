//! What makes a page a btree page: its special area and the meta page (`access/nbtree.h`).
//!
//! ```text
//!  8176   8180   8184    8188   8190    8192
//!  +------+------+-------+------+-------+
//!  | prev | next | level | flags| cycle |
//!  +------+------+-------+------+-------+
//! ```

#![deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::panic)]

use treering_types::PAGE_SIZE;

use super::{RedoReason, index_tuple};
use crate::{
    change::RecordPart,
    fields::Fields,
    item::Placement,
    page::{HEADER_SIZE, LinePointer, Page, PointerState, max_align},
};

/// Bytes of the special area (`sizeof(BTPageOpaqueData)`).
const SPECIAL_SIZE: usize = 16;
const SPECIAL: usize = PAGE_SIZE - SPECIAL_SIZE;
/// No sibling (`P_NONE`).
pub(super) const NONE: u32 = 0;
/// Offset number of the high key, which every page but the rightmost has.
pub(super) const HIGH_KEY: u16 = 1;

/// `btpo_flags` bits.
pub(super) mod flag {
    pub const LEAF: u16 = 1 << 0;
    pub const ROOT: u16 = 1 << 1;
    pub const DELETED: u16 = 1 << 2;
    pub const META: u16 = 1 << 3;
    pub const HALF_DEAD: u16 = 1 << 4;
    pub const HAS_GARBAGE: u16 = 1 << 6;
    pub const INCOMPLETE_SPLIT: u16 = 1 << 7;
    pub const HAS_FULL_XID: u16 = 1 << 8;
}

/// The special area of a btree page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(super) struct Special {
    /// Left sibling, or [`NONE`].
    pub prev: u32,
    /// Right sibling, or [`NONE`].
    pub next: u32,
    /// Distance from the leaves.
    pub level: u32,
    /// See [`flag`].
    pub flags: u16,
    /// Vacuum cycle of the last split.
    pub cycle_id: u16,
}

impl Special {
    /// Reads the special area.
    ///
    /// # Errors
    /// `Malformed` when the page is no btree page.
    pub fn read(page: &Page<'_>) -> Result<Self, RedoReason> {
        if page.special() != SPECIAL {
            return Err(RedoReason::Malformed("not a btree page"));
        }
        Ok(Special {
            prev: page.u32_at(SPECIAL)?,
            next: page.u32_at(SPECIAL + 4)?,
            level: page.u32_at(SPECIAL + 8)?,
            flags: page.u16_at(SPECIAL + 12)?,
            cycle_id: page.u16_at(SPECIAL + 14)?,
        })
    }

    /// Writes the special area.
    pub fn write(self, page: &mut Page<'_>) -> Result<(), RedoReason> {
        page.put_u32(SPECIAL, self.prev)?;
        page.put_u32(SPECIAL + 4, self.next)?;
        page.put_u32(SPECIAL + 8, self.level)?;
        page.put_u16(SPECIAL + 12, self.flags)?;
        page.put_u16(SPECIAL + 14, self.cycle_id)
    }

    /// Changes the special area.
    pub fn edit(page: &mut Page<'_>, change: impl FnOnce(&mut Self)) -> Result<(), RedoReason> {
        let mut special = Special::read(page)?;
        change(&mut special);
        special.write(page)
    }

    /// True when no page follows: there is no high key then.
    pub fn is_rightmost(self) -> bool {
        self.next == NONE
    }

    /// Offset number of the first tuple that is no high key (`P_FIRSTDATAKEY`).
    pub fn first_data_offset(self) -> u16 {
        if self.is_rightmost() { HIGH_KEY } else { HIGH_KEY + 1 }
    }
}

/// Empties the page and gives it this special area.
pub(super) fn init(page: &mut Page<'_>, special: Special) -> Result<(), RedoReason> {
    page.init(SPECIAL_SIZE);
    special.write(page)
}

/// The downlink that a split of this page was missing has been inserted.
pub(super) fn clear_incomplete_split(page: &mut Page<'_>) -> Result<(), RedoReason> {
    Special::edit(page, |special| special.flags &= !flag::INCOMPLETE_SPLIT)
}

/// Adds a tuple after the last one.
pub(super) fn append(page: &mut Page<'_>, tuple: &[u8]) -> Result<(), RedoReason> {
    let next = page.max_offset() + 1;
    page.add_item(tuple, next, Placement::Insert).map(|_| ())
}

/// Fills an empty page with the tuple area of another: tuples in descending offset order, each rounded up to
/// 8 bytes (`_bt_restore_page`).
pub(super) fn restore_tuples(page: &mut Page<'_>, tuples: &[u8]) -> Result<(), RedoReason> {
    let mut count = 0;
    for_each_tuple(tuples, |_, _| {
        count += 1;
        Ok(())
    })?;
    let lower = HEADER_SIZE + count * 4;
    let upper = page.upper().checked_sub(tuples.len());
    let upper = upper.filter(|upper| *upper >= lower);
    let upper = upper.ok_or(RedoReason::Malformed("no room for the tuples"))?;
    page.set_lower(lower);
    page.set_upper(upper);
    page.write(upper, tuples)?;
    let mut offset = page.max_offset();
    for_each_tuple(tuples, |at, size| {
        let pointer = LinePointer::new(upper + at, PointerState::Normal, size);
        page.set_line_pointer(offset, pointer)?;
        offset -= 1;
        Ok(())
    })
}

/// Calls `visit` with the position and the rounded size of each tuple.
fn for_each_tuple(
    tuples: &[u8],
    mut visit: impl FnMut(usize, usize) -> Result<(), RedoReason>,
) -> Result<(), RedoReason> {
    let mut at = 0;
    while let Some(rest) = tuples.get(at..)
        && !rest.is_empty()
    {
        let size = max_align(index_tuple::leading(rest)?.len());
        visit(at, size)?;
        at += size;
    }
    if at == tuples.len() { Ok(()) } else { Err(RedoReason::Malformed("last tuple is cut off")) }
}

/// Rebuilds the meta page from `xl_btree_metadata` (`_bt_restore_meta`).
pub(super) fn restore_meta(part: &RecordPart<'_>, page: &mut Page<'_>) -> Result<(), RedoReason> {
    const MAGIC: u32 = 0x05_3162;
    /// `sizeof(BTMetaPageData)`.
    const META_SIZE: usize = 48;
    let mut meta = Fields::data(part);
    // Version, root, level, fast root, fast level, deleted pages at the last cleanup: same order on the page.
    let numbers = meta.take(24)?;
    let all_equal_image = meta.u8()?;
    init(page, Special { flags: flag::META, ..Special::default() })?;
    page.put_u32(HEADER_SIZE, MAGIC)?;
    page.write(HEADER_SIZE + 4, numbers)?;
    page.put_u64(HEADER_SIZE + 32, (-1.0f64).to_bits())?;
    page.put_u8(HEADER_SIZE + 40, all_equal_image)?;
    page.set_lower(HEADER_SIZE + META_SIZE);
    Ok(())
}
