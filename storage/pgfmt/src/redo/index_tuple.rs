//! Index tuples (`access/itup.h`): an item pointer, a size with flags, then the key.
//!
//! ```text
//!  0           2           4       6        8
//!  +-----------+-----------+-------+--------+-----
//!  | block high| block low | posid | t_info | key     t_info: 13 bits of size, 0x2000 for the access method
//!  +-----------+-----------+-------+--------+-----
//! ```
//!
//! Access methods reuse the item pointer for links, counts and positions; what it means is theirs to know.

#![deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::panic)]

use super::RedoReason;

/// Bytes before the key (`sizeof(IndexTupleData)`).
pub(super) const HEADER_SIZE: usize = 8;
/// Bytes of an item pointer (`ItemPointerData`), at the start of a tuple.
pub(super) const TID_SIZE: usize = 6;
/// The size bits of `t_info` (`INDEX_SIZE_MASK`).
pub(super) const SIZE_MASK: u16 = 0x1fff;
/// No block (`InvalidBlockNumber`).
pub(super) const NO_BLOCK: u32 = u32::MAX;

const SHORT: RedoReason = RedoReason::Malformed("index tuple shorter than its header");
const BAD_SIZE: RedoReason = RedoReason::Malformed("index tuple larger than its place");

/// An item pointer as its bytes.
pub(super) type Tid = [u8; TID_SIZE];

/// The item pointer of `block` and `posid`.
pub(super) fn tid(block: u32, posid: u16) -> Tid {
    let ([h0, h1], [l0, l1]) = (((block >> 16) as u16).to_le_bytes(), (block as u16).to_le_bytes());
    let [p0, p1] = posid.to_le_bytes();
    [h0, h1, l0, l1, p0, p1]
}

/// The block number of an item pointer.
pub(super) fn tid_block(tid: Tid) -> u32 {
    let [h0, h1, l0, l1, ..] = tid;
    u32::from(u16::from_le_bytes([h0, h1])) << 16 | u32::from(u16::from_le_bytes([l0, l1]))
}

/// The offset number of an item pointer.
pub(super) fn tid_posid(tid: Tid) -> u16 {
    let [.., p0, p1] = tid;
    u16::from_le_bytes([p0, p1])
}

/// The item pointer at the start of a tuple.
pub(super) fn tid_of(tuple: &[u8]) -> Result<Tid, RedoReason> {
    tuple.first_chunk().copied().ok_or(SHORT)
}

/// Replaces the item pointer at the start of a tuple.
pub(super) fn set_tid(tuple: &mut [u8], tid: Tid) -> Result<(), RedoReason> {
    *tuple.first_chunk_mut().ok_or(SHORT)? = tid;
    Ok(())
}

/// Replaces only the block number of the item pointer.
pub(super) fn set_block(tuple: &mut [u8], block: u32) -> Result<(), RedoReason> {
    let posid = tid_posid(tid_of(tuple)?);
    set_tid(tuple, tid(block, posid))
}

/// `t_info`: size and flags.
pub(super) fn info(tuple: &[u8]) -> Result<u16, RedoReason> {
    let header = tuple.first_chunk::<HEADER_SIZE>().ok_or(SHORT)?;
    let [.., low, high] = *header;
    Ok(u16::from_le_bytes([low, high]))
}

/// Sets `t_info`.
pub(super) fn set_info(tuple: &mut [u8], info: u16) -> Result<(), RedoReason> {
    let header = tuple.first_chunk_mut::<HEADER_SIZE>().ok_or(SHORT)?;
    let [.., low, high] = header;
    [*low, *high] = info.to_le_bytes();
    Ok(())
}

/// The tuple at the start of `bytes`, cut to the size it states (`IndexTupleSize`), header included.
pub(super) fn leading(bytes: &[u8]) -> Result<&[u8], RedoReason> {
    let size = usize::from(info(bytes)? & SIZE_MASK);
    if size < HEADER_SIZE {
        return Err(SHORT);
    }
    bytes.get(..size).ok_or(BAD_SIZE)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn item_pointers_keep_the_high_half_first() {
        let pointer = tid(0x0001_0203, 7);
        assert_eq!(pointer, [1, 0, 3, 2, 7, 0]);
        assert_eq!((tid_block(pointer), tid_posid(pointer)), (0x0001_0203, 7));
    }

    #[test]
    fn a_tuple_is_cut_to_its_size() {
        let mut bytes = [0; 24];
        assert!(leading(&bytes).is_err());
        set_info(&mut bytes, 16 | 0x2000).unwrap();
        assert_eq!(leading(&bytes).unwrap().len(), 16);
        set_info(&mut bytes, 32).unwrap();
        assert!(leading(&bytes).is_err());
        set_block(&mut bytes, 9).unwrap();
        assert_eq!(tid_of(&bytes), Ok(tid(9, 0)));
    }
}
