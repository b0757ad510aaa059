//! What two versions of a page may differ in without either being wrong: hints, holes, padding.
//!
//! The masks are those of `wal_consistency_checking` (`rm_mask` of each resource manager): apply the same mask
//! to both pages and compare all bytes. Masked bytes become zero. A page whose header makes no sense is masked as
//! far as it goes and then simply compares unequal.

#![deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::panic)]

use treering_types::{Lsn, PAGE_SIZE};

use crate::{
    page::{HEADER_SIZE, Page, PointerState, flag, max_align},
    redo::{
        RedoReason,
        heap::tuple::{Header, Tid, infomask},
        rmgr,
    },
};

/// Offset number of a tuple whose insertion is speculative (`SpecTokenOffsetNumber`).
const SPECULATIVE_OFFSET: u16 = 0xfffe;

/// Offsets within a special area and the bits there that are masked or decide about masking.
mod special {
    pub const BTREE_FLAGS: usize = 12;
    pub const BTREE_CYCLE_ID: usize = 14;
    pub const BTREE_LEAF: u16 = 1;
    /// `BTP_SPLIT_END | BTP_HAS_GARBAGE`
    pub const BTREE_HINTS: u16 = 1 << 5 | 1 << 6;
    pub const HASH_FLAGS: usize = 12;
    pub const HASH_PAGE_TYPE: u16 = 0xf;
    /// `LH_OVERFLOW_PAGE` and `LH_BUCKET_PAGE`
    pub const HASH_OVERFLOW: u16 = 1;
    pub const HASH_BUCKET: u16 = 2;
    pub const HASH_DEAD_TUPLES: u16 = 1 << 7;
    pub const GIN_FLAGS: usize = 6;
    pub const GIN_DELETED: u16 = 1 << 2;
    pub const GIST_FLAGS: usize = 12;
    pub const GIST_LEAF: u16 = 1;
    /// `F_FOLLOW_RIGHT | F_HAS_GARBAGE`, and `F_TUPLES_DELETED`: some minors set it and others do not, nothing reads it.
    pub const GIST_HINTS: u16 = 1 << 2 | 1 << 3 | 1 << 4;
    pub const BRIN_FLAGS: usize = 4;
    pub const BRIN_TYPE: usize = 6;
    pub const BRIN_META: u16 = 0xF091;
    pub const BRIN_REGULAR: u16 = 0xF093;
    pub const BRIN_EVACUATE: u16 = 1;
}

/// True when pages of this resource manager have a mask, that is, when consistency images exist for it.
pub fn has_mask(rmid: u8) -> bool {
    use rmgr::*;
    matches!(rmid, HEAP | HEAP2 | BTREE | HASH | GIN | GIST | SEQUENCE | SPGIST | BRIN | GENERIC)
}

/// Masks a page as resource manager `rmid` does; `block` is the page's own block number.
///
/// Of a resource manager without a mask only LSN and checksum are masked.
pub fn mask_page(rmid: u8, bytes: &mut [u8; PAGE_SIZE], block: u32) {
    let page = &mut Page(bytes);
    page.set_lsn(Lsn::INVALID);
    page.set_checksum(0);
    if !matches!(rmid, rmgr::SEQUENCE | rmgr::GENERIC) && has_mask(rmid) {
        page.set_prune_xid(0);
        page.clear_flags(flag::PAGE_FULL | flag::HAS_FREE_LINES | flag::ALL_VISIBLE);
    }
    // A mask that fails met a page that makes no sense; it is compared as far as it got.
    let _ = match rmid {
        rmgr::HEAP | rmgr::HEAP2 => mask_heap(page, block),
        rmgr::BTREE => mask_btree(page),
        rmgr::HASH => mask_hash(page),
        rmgr::GIN => mask_gin(page),
        rmgr::GIST => mask_gist(page),
        rmgr::SPGIST => mask_spgist(page),
        rmgr::BRIN => mask_brin(page),
        rmgr::SEQUENCE | rmgr::GENERIC => mask_hole(page),
        _ => Ok(()),
    };
}

fn mask_hole(page: &mut Page<'_>) -> Result<(), RedoReason> {
    let (lower, upper, special) = (page.lower(), page.upper(), page.special());
    if lower < HEADER_SIZE || lower > upper || upper > special || special > PAGE_SIZE {
        return Err(RedoReason::Malformed("page pointers out of order"));
    }
    page.slice_mut(lower, upper - lower)?.fill(0);
    Ok(())
}

fn mask_pointer_states(page: &mut Page<'_>) -> Result<(), RedoReason> {
    for offset in 1..=page.max_offset() {
        let pointer = page.line_pointer(offset)?;
        page.set_line_pointer(offset, pointer.with_state(PointerState::Unused))?;
    }
    Ok(())
}

/// Everything but the header, and of the header lower and upper.
fn mask_content(page: &mut Page<'_>) -> Result<(), RedoReason> {
    page.slice_mut(HEADER_SIZE, PAGE_SIZE - HEADER_SIZE)?.fill(0);
    page.set_lower(0);
    page.set_upper(0);
    Ok(())
}

fn clear_special(page: &mut Page<'_>, at: usize, bits: u16) -> Result<(), RedoReason> {
    let at = page.special() + at;
    page.put_u16(at, page.u16_at(at)? & !bits)
}

fn mask_heap(page: &mut Page<'_>, block: u32) -> Result<(), RedoReason> {
    mask_hole(page)?;
    for offset in 1..=page.max_offset() {
        let pointer = page.line_pointer(offset)?;
        if pointer.is_normal() {
            mask_tuple(&mut Header::of(page, offset)?, Tid { block, offset });
        }
        if pointer.has_storage() {
            let padding = max_align(pointer.length()) - pointer.length();
            page.slice_mut(pointer.offset() + pointer.length(), padding)?.fill(0);
        }
    }
    Ok(())
}

fn mask_tuple(header: &mut Header<'_>, own: Tid) {
    let masked = if header.is_xmin_frozen() {
        infomask::XMAX_INVALID | infomask::XMAX_COMMITTED
    } else {
        infomask::XACT_MASK
    };
    header.set_infomask(header.infomask() & !masked);
    header.set_cid_or_xvac(0);
    if header.ctid_offset() == SPECULATIVE_OFFSET {
        header.set_ctid(own);
    }
}

fn mask_btree(page: &mut Page<'_>) -> Result<(), RedoReason> {
    mask_hole(page)?;
    if page.u16_at(page.special() + special::BTREE_FLAGS)? & special::BTREE_LEAF != 0 {
        mask_pointer_states(page)?;
    }
    clear_special(page, special::BTREE_FLAGS, special::BTREE_HINTS)?;
    clear_special(page, special::BTREE_CYCLE_ID, u16::MAX)
}

fn mask_hash(page: &mut Page<'_>) -> Result<(), RedoReason> {
    mask_hole(page)?;
    match page.u16_at(page.special() + special::HASH_FLAGS)? & special::HASH_PAGE_TYPE {
        0 => mask_content(page)?,
        special::HASH_BUCKET | special::HASH_OVERFLOW => mask_pointer_states(page)?,
        _ => {}
    }
    clear_special(page, special::HASH_FLAGS, special::HASH_DEAD_TUPLES)
}

fn mask_gin(page: &mut Page<'_>) -> Result<(), RedoReason> {
    if page.u16_at(page.special() + special::GIN_FLAGS)? & special::GIN_DELETED != 0 {
        mask_content(page)
    } else if page.lower() > HEADER_SIZE {
        mask_hole(page)
    } else {
        Ok(())
    }
}

fn mask_gist(page: &mut Page<'_>) -> Result<(), RedoReason> {
    mask_hole(page)?;
    page.put_u64(page.special(), 0)?; // the node sequence number, which is an LSN
    if page.u16_at(page.special() + special::GIST_FLAGS)? & special::GIST_LEAF != 0 {
        mask_pointer_states(page)?;
    }
    clear_special(page, special::GIST_FLAGS, special::GIST_HINTS)
}

fn mask_spgist(page: &mut Page<'_>) -> Result<(), RedoReason> {
    if page.lower() >= HEADER_SIZE { mask_hole(page) } else { Ok(()) }
}

fn mask_brin(page: &mut Page<'_>) -> Result<(), RedoReason> {
    let kind = page.u16_at(page.special() + special::BRIN_TYPE)?;
    let meta_with_hole = kind == special::BRIN_META && page.lower() > HEADER_SIZE;
    if kind == special::BRIN_REGULAR || meta_with_hole {
        mask_hole(page)?;
    }
    clear_special(page, special::BRIN_FLAGS, special::BRIN_EVACUATE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::item::Placement;

    fn heap_page(hints: u16) -> [u8; PAGE_SIZE] {
        let mut bytes = [0; PAGE_SIZE];
        let mut page = Page(&mut bytes);
        page.init(0);
        let mut tuple = [0u8; 27];
        tuple[20..22].copy_from_slice(&hints.to_le_bytes());
        page.add_item(&tuple, 1, Placement::Heap).unwrap();
        bytes
    }

    #[test]
    fn heap_hints_holes_and_padding_vanish_and_data_stays() {
        let mut one = heap_page(0x0900);
        let mut other = heap_page(0x0002);
        other[5000] = 7; // the hole
        other[8191] = 7; // padding after the 27 bytes
        other[6] = 9; // LSN
        other[8192 - 32 + 8] = 3; // command id
        for page in [&mut one, &mut other] {
            mask_page(rmgr::HEAP, page, 0);
        }
        assert!(one != other, "the null bitmap flag is no hint");
        let mut third = heap_page(0x0002);
        mask_page(rmgr::HEAP, &mut third, 0);
        assert!(other == third);
    }

    #[test]
    fn any_bytes_can_be_masked() {
        for rmid in 0..=255 {
            for byte in [0, 0x18, 0x5f, 0xff] {
                mask_page(rmid, &mut [byte; PAGE_SIZE], 3);
            }
        }
    }
}
