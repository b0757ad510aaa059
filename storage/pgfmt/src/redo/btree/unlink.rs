//! Page deletion in its two steps: a leaf is made half dead, then pages are unlinked from their siblings.

#![deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::panic)]

use super::{
    RedoReason,
    index_tuple::{self, HEADER_SIZE as TUPLE_HEADER_SIZE},
    page::{self, Special, flag},
    posting::ALTERNATIVE_TID,
};
use crate::{
    change::RecordPart,
    fields::Fields,
    page::{HEADER_SIZE, Page},
};

/// `xl_btree_mark_page_halfdead`.
struct HalfDead {
    /// The downlink in the parent that goes.
    parent_offset: u16,
    left: u32,
    right: u32,
    /// Topmost page of the subtree that goes, or no block: the leaf itself.
    top_parent: u32,
}

impl HalfDead {
    fn read(part: &RecordPart<'_>) -> Result<Self, RedoReason> {
        let mut main = Fields::main(part);
        let parent_offset = main.u16()?;
        // Padding, and the leaf's own number.
        main.skip(2 + 4)?;
        Ok(HalfDead {
            parent_offset,
            left: main.u32()?,
            right: main.u32()?,
            top_parent: main.u32()?,
        })
    }
}

/// MARK_PAGE_HALFDEAD block 0: the leaf is empty but for a high key that points to the top parent.
pub(super) fn half_dead_leaf(part: &RecordPart<'_>, page: &mut Page<'_>) -> Result<(), RedoReason> {
    let record = HalfDead::read(part)?;
    init_half_dead(page, record.left, record.right, record.top_parent)
}

fn init_half_dead(
    page: &mut Page<'_>,
    prev: u32,
    next: u32,
    top_parent: u32,
) -> Result<(), RedoReason> {
    let flags = flag::HALF_DEAD | flag::LEAF;
    page::init(page, Special { prev, next, flags, ..Special::default() })?;
    let mut high_key = [0; TUPLE_HEADER_SIZE];
    index_tuple::set_tid(&mut high_key, index_tuple::tid(top_parent, 0))?;
    index_tuple::set_info(&mut high_key, TUPLE_HEADER_SIZE as u16 | ALTERNATIVE_TID)?;
    page::append(page, &high_key)
}

/// MARK_PAGE_HALFDEAD block 1: the parent's downlink takes over its right neighbour's child, which goes.
pub(super) fn half_dead_parent(
    part: &RecordPart<'_>,
    page: &mut Page<'_>,
) -> Result<(), RedoReason> {
    let offset = HalfDead::read(part)?.parent_offset;
    let next = offset.saturating_add(1);
    let child = index_tuple::tid_block(index_tuple::tid_of(page.item(next)?)?);
    index_tuple::set_block(page.item_mut(offset)?, child)?;
    page.index_tuple_delete(next)
}

/// `xl_btree_unlink_page`.
struct Unlink {
    left: u32,
    right: u32,
    level: u32,
    /// Full transaction id after which the page may be reused.
    safe_xid: u64,
    leaf_left: u32,
    leaf_right: u32,
    leaf_top_parent: u32,
}

impl Unlink {
    fn read(part: &RecordPart<'_>) -> Result<Self, RedoReason> {
        let mut main = Fields::main(part);
        let (left, right, level) = (main.u32()?, main.u32()?, main.u32()?);
        main.skip(4)?;
        Ok(Unlink {
            left,
            right,
            level,
            safe_xid: main.u64()?,
            leaf_left: main.u32()?,
            leaf_right: main.u32()?,
            leaf_top_parent: main.u32()?,
        })
    }
}

/// UNLINK_PAGE block 0: a stub that says when it may be reused (`BTPageSetDeleted`).
pub(super) fn target(part: &RecordPart<'_>, page: &mut Page<'_>) -> Result<(), RedoReason> {
    let record = Unlink::read(part)?;
    let leaf = if record.level == 0 { flag::LEAF } else { 0 };
    let special = Special {
        prev: record.left,
        next: record.right,
        level: record.level,
        flags: flag::DELETED | flag::HAS_FULL_XID | leaf,
        cycle_id: 0,
    };
    page::init(page, special)?;
    page.put_u64(HEADER_SIZE, record.safe_xid)?;
    page.set_lower(HEADER_SIZE + 8);
    Ok(())
}

/// UNLINK_PAGE block 1: the left sibling's link skips the page.
pub(super) fn left_sibling(part: &RecordPart<'_>, page: &mut Page<'_>) -> Result<(), RedoReason> {
    let right = Unlink::read(part)?.right;
    Special::edit(page, |special| special.next = right)
}

/// UNLINK_PAGE block 2: the right sibling's link skips the page.
pub(super) fn right_sibling(part: &RecordPart<'_>, page: &mut Page<'_>) -> Result<(), RedoReason> {
    let left = Unlink::read(part)?.left;
    Special::edit(page, |special| special.prev = left)
}

/// UNLINK_PAGE block 3: the half-dead leaf below points to the next page of its subtree to go.
pub(super) fn leaf(part: &RecordPart<'_>, page: &mut Page<'_>) -> Result<(), RedoReason> {
    let record = Unlink::read(part)?;
    init_half_dead(page, record.leaf_left, record.leaf_right, record.leaf_top_parent)
}
