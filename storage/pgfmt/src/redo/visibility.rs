//! The visibility map: two bits for each heap block, 32672 blocks on a page (`access/visibilitymap.h`).
//!
//! Bits are set by Heap2 VISIBLE and cleared by heap records that do not reference the map; clearing never moves
//! the page LSN. A map page that does not exist is an initialised page without bits (WAL.md E3).

#![deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::panic)]

use treering_types::{Lsn, PAGE_SIZE};

use super::RedoReason;
use crate::page::{HEADER_SIZE, Page};

/// Heap blocks on one map page.
pub const HEAP_BLOCKS_PER_PAGE: u32 = (PAGE_SIZE - HEADER_SIZE) as u32 * BLOCKS_PER_BYTE;
const BLOCKS_PER_BYTE: u32 = 4;
/// All-visible and all-frozen.
const VALID_BITS: u8 = 3;

/// Where a heap block's bits are.
struct Place {
    /// Byte position in the page.
    at: usize,
    shift: u32,
}

/// The map block that holds a heap block's bits.
pub const fn map_block(heap_block: u32) -> u32 {
    heap_block / HEAP_BLOCKS_PER_PAGE
}

fn place(heap_block: u32) -> Place {
    let index = heap_block % HEAP_BLOCKS_PER_PAGE;
    let at = HEADER_SIZE + (index / BLOCKS_PER_BYTE) as usize;
    Place { at, shift: 2 * (index % BLOCKS_PER_BYTE) }
}

fn init_missing(page: &mut Page<'_>) {
    if page.is_new() {
        page.init(0);
    }
}

/// VISIBLE: adds bits; the LSN moves only when they were not all there (`visibilitymap_set`).
pub(super) fn set(
    heap_block: u32,
    flags: u8,
    lsn: Lsn,
    page: &mut Page<'_>,
) -> Result<(), RedoReason> {
    init_missing(page);
    let Place { at, shift } = place(heap_block);
    let flags = flags & VALID_BITS;
    let byte = page.u8_at(at)?;
    if flags != (byte >> shift) & VALID_BITS {
        page.put_u8(at, byte | flags << shift)?;
        page.set_lsn(lsn);
    }
    Ok(())
}

/// Clears bits of one heap block (`visibilitymap_clear`).
pub(super) fn clear(heap_block: u32, bits: u8, page: &mut Page<'_>) -> Result<(), RedoReason> {
    init_missing(page);
    let Place { at, shift } = place(heap_block);
    let byte = page.u8_at(at)?;
    page.put_u8(at, byte & !((bits & VALID_BITS) << shift))
}

/// Clears the bits of every block from `heap_blocks` on, on the page that holds that block's bits
/// (`visibilitymap_prepare_truncate`).
pub(super) fn truncate(heap_blocks: u32, page: &mut Page<'_>) -> Result<(), RedoReason> {
    init_missing(page);
    let Place { at, shift } = place(heap_blocks);
    let byte = page.u8_at(at)?;
    page.put_u8(at, byte & ((1u8 << shift) - 1))?;
    page.slice_mut(at + 1, PAGE_SIZE - (at + 1))?.fill(0);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn set_clear_truncate() {
        let mut bytes = [0; PAGE_SIZE];
        let mut page = Page::new(&mut bytes);
        set(5, 1, Lsn(80), &mut page).unwrap();
        assert_eq!((page.lower(), page.upper()), (24, 8192));
        assert_eq!((page.lsn(), page.u8_at(25)), (Lsn(80), Ok(0b0000_0100)));
        set(5, 3, Lsn(88), &mut page).unwrap();
        set(5, 3, Lsn(96), &mut page).unwrap();
        assert_eq!((page.lsn(), page.u8_at(25)), (Lsn(88), Ok(0b0000_1100)));
        clear(5, 2, &mut page).unwrap();
        assert_eq!((page.lsn(), page.u8_at(25)), (Lsn(88), Ok(0b0000_0100)));
        // The last block of the page and the first of the next.
        set(HEAP_BLOCKS_PER_PAGE - 1, 7, Lsn(104), &mut page).unwrap();
        assert_eq!(page.u8_at(PAGE_SIZE - 1), Ok(0b1100_0000));
        assert_eq!(map_block(HEAP_BLOCKS_PER_PAGE), 1);
        truncate(5, &mut page).unwrap();
        assert_eq!((page.u8_at(25), page.u8_at(PAGE_SIZE - 1)), (Ok(0), Ok(0)));
        set(4, 3, Lsn(112), &mut page).unwrap();
        truncate(5, &mut page).unwrap();
        assert_eq!(page.u8_at(25), Ok(3));
    }
}
