//! A heap or index page: header fields, line pointers and bounds-checked bytes.
//!
//! ```text
//!  0       8         10     12     14     16       18        20         24
//!  +-------+---------+------+------+------+--------+---------+----------+--------------
//!  | pd_lsn|checksum | flags| lower| upper| special| size|ver|prune_xid | line pointers
//!  +-------+---------+------+------+------+--------+---------+----------+--------------
//! ```
//!
//! `pd_lsn` is two 32-bit halves, high half first; everything else is little endian (`storage/bufpage.h`,
//! `storage/itemid.h`). Nothing here trusts a page: every position is checked, and what contradicts itself
//! ends in [`RedoReason::Malformed`].

#![deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::panic)]

use std::ops::Range;

use treering_types::{Lsn, PAGE_SIZE};

use crate::redo::RedoReason;

/// Bytes of the page header before the line pointers (`SizeOfPageHeaderData`).
pub const HEADER_SIZE: usize = 24;
/// Bytes of one line pointer (`ItemIdData`).
pub const LINE_POINTER_SIZE: usize = 4;
/// Most tuples a heap page can hold (`MaxHeapTuplesPerPage`).
pub const HEAP_TUPLES_MAX: usize = 291;
/// Most tuples an index page can hold (`MaxIndexTuplesPerPage`).
pub const INDEX_TUPLES_MAX: usize = 408;
/// Page size and layout version 4, as stored in `pd_pagesize_version`.
const SIZE_AND_VERSION: u16 = PAGE_SIZE as u16 | 4;

/// `pd_flags` bits.
pub mod flag {
    /// There may be unused line pointers (a hint).
    pub const HAS_FREE_LINES: u16 = 1;
    /// Not enough room for a new tuple (a hint).
    pub const PAGE_FULL: u16 = 2;
    /// Every tuple is visible to everyone.
    pub const ALL_VISIBLE: u16 = 4;
}

/// Byte offsets of header fields.
mod at {
    pub const CHECKSUM: usize = 8;
    pub const FLAGS: usize = 10;
    pub const LOWER: usize = 12;
    pub const UPPER: usize = 14;
    pub const SPECIAL: usize = 16;
    pub const SIZE_AND_VERSION: usize = 18;
    pub const PRUNE_XID: usize = 20;
}

/// Rounds up to 8 (`MAXALIGN`).
pub const fn max_align(size: usize) -> usize {
    size.saturating_add(7) & !7
}

/// `pd_lsn` of a page.
pub fn lsn_of(page: &[u8; PAGE_SIZE]) -> Lsn {
    let halves = page.first_chunk::<8>().map_or(0, |bytes| u64::from_le_bytes(*bytes));
    Lsn(halves.rotate_left(32))
}

/// What a line pointer points at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum PointerState {
    /// Free for reuse.
    Unused = 0,
    /// A tuple.
    Normal = 1,
    /// A HOT redirect: the offset field is another line pointer's number.
    Redirect = 2,
    /// Dead; may have storage in indexes.
    Dead = 3,
}

/// A line pointer (`ItemIdData`): 15 bits of offset, 2 of state, 15 of length.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LinePointer(pub u32);

impl LinePointer {
    /// A free line pointer.
    pub const UNUSED: LinePointer = LinePointer(0);

    /// From its bytes in a page.
    pub const fn from_bytes(bytes: [u8; LINE_POINTER_SIZE]) -> Self {
        LinePointer(u32::from_le_bytes(bytes))
    }

    /// A line pointer of the given parts (15, 2 and 15 bits are kept).
    pub const fn new(offset: usize, state: PointerState, length: usize) -> Self {
        LinePointer(
            (offset as u32 & 0x7fff) | (state as u32) << 15 | (length as u32 & 0x7fff) << 17,
        )
    }

    /// First byte of the tuple in the page; for a redirect the target's offset number.
    pub const fn offset(self) -> usize {
        (self.0 & 0x7fff) as usize
    }

    /// Bytes of the tuple.
    pub const fn length(self) -> usize {
        (self.0 >> 17) as usize
    }

    /// The state bits.
    pub const fn state(self) -> PointerState {
        match (self.0 >> 15) & 3 {
            0 => PointerState::Unused,
            1 => PointerState::Normal,
            2 => PointerState::Redirect,
            _ => PointerState::Dead,
        }
    }

    /// Same state, other place.
    pub const fn with_offset(self, offset: usize) -> Self {
        LinePointer(self.0 & !0x7fff | (offset as u32 & 0x7fff))
    }

    /// Same place, other state.
    pub const fn with_state(self, state: PointerState) -> Self {
        LinePointer(self.0 & !(3 << 15) | (state as u32) << 15)
    }

    /// True when it is not free (`ItemIdIsUsed`).
    pub const fn is_used(self) -> bool {
        !matches!(self.state(), PointerState::Unused)
    }

    /// True when bytes belong to it (`ItemIdHasStorage`).
    pub const fn has_storage(self) -> bool {
        self.length() != 0
    }

    /// True for a plain tuple (`ItemIdIsNormal`).
    pub const fn is_normal(self) -> bool {
        matches!(self.state(), PointerState::Normal)
    }

    /// The tuple's bytes in the page, not checked against the page.
    pub const fn range(self) -> Range<usize> {
        self.offset()..self.offset() + self.length()
    }
}

/// A page that is being changed.
pub struct Page<'a>(pub &'a mut [u8; PAGE_SIZE]);

impl<'a> Page<'a> {
    /// Wraps the bytes; nothing is checked.
    pub fn new(bytes: &'a mut [u8; PAGE_SIZE]) -> Self {
        Page(bytes)
    }

    /// All bytes.
    pub fn bytes(&self) -> &[u8; PAGE_SIZE] {
        self.0
    }

    /// All bytes, writable.
    pub fn bytes_mut(&mut self) -> &mut [u8; PAGE_SIZE] {
        self.0
    }

    /// Empties the page (`PageInit`): zeros, header set, `special_size` rounded up to 8 reserved at the end.
    pub fn init(&mut self, special_size: usize) {
        self.0.fill(0);
        let special = PAGE_SIZE.saturating_sub(max_align(special_size)).max(HEADER_SIZE);
        self.set_lower(HEADER_SIZE);
        self.set_upper(special);
        self.put_header(at::SPECIAL, special as u16);
        self.put_header(at::SIZE_AND_VERSION, SIZE_AND_VERSION);
    }

    /// True when the page was never initialised (`PageIsNew`).
    pub fn is_new(&self) -> bool {
        self.upper() == 0
    }

    /// `pd_lsn`.
    pub fn lsn(&self) -> Lsn {
        lsn_of(self.0)
    }

    /// Sets `pd_lsn`.
    pub fn set_lsn(&mut self, lsn: Lsn) {
        if let Some(field) = self.0.first_chunk_mut::<8>() {
            *field = (lsn.0.rotate_left(32)).to_le_bytes();
        }
    }

    fn header(&self, at: usize) -> u16 {
        self.u16_at(at).unwrap_or(0)
    }

    fn put_header(&mut self, at: usize, value: u16) {
        let written = self.put_u16(at, value);
        debug_assert!(written.is_ok(), "header field outside the page");
    }

    /// `pd_checksum`.
    pub fn checksum(&self) -> u16 {
        self.header(at::CHECKSUM)
    }

    /// Sets `pd_checksum`.
    pub fn set_checksum(&mut self, checksum: u16) {
        self.put_header(at::CHECKSUM, checksum);
    }

    /// `pd_flags`, see [`flag`].
    pub fn flags(&self) -> u16 {
        self.header(at::FLAGS)
    }

    /// Sets bits of `pd_flags`.
    pub fn set_flags(&mut self, bits: u16) {
        self.put_header(at::FLAGS, self.flags() | bits);
    }

    /// Clears bits of `pd_flags`.
    pub fn clear_flags(&mut self, bits: u16) {
        self.put_header(at::FLAGS, self.flags() & !bits);
    }

    /// `pd_lower`: end of the line pointers.
    pub fn lower(&self) -> usize {
        usize::from(self.header(at::LOWER))
    }

    /// Sets `pd_lower`.
    pub fn set_lower(&mut self, lower: usize) {
        self.put_header(at::LOWER, lower as u16);
    }

    /// `pd_upper`: start of the tuples.
    pub fn upper(&self) -> usize {
        usize::from(self.header(at::UPPER))
    }

    /// Sets `pd_upper`.
    pub fn set_upper(&mut self, upper: usize) {
        self.put_header(at::UPPER, upper as u16);
    }

    /// `pd_special`: start of the access method's own area.
    pub fn special(&self) -> usize {
        usize::from(self.header(at::SPECIAL))
    }

    /// `pd_prune_xid`.
    pub fn prune_xid(&self) -> u32 {
        self.u32_at(at::PRUNE_XID).unwrap_or(0)
    }

    /// Sets `pd_prune_xid`.
    pub fn set_prune_xid(&mut self, xid: u32) {
        let written = self.put_u32(at::PRUNE_XID, xid);
        debug_assert!(written.is_ok(), "header field outside the page");
    }

    /// Notes a possibly prunable tuple (`PageSetPrunable`): the older of the two xids stays.
    pub fn set_prunable(&mut self, xid: u32) {
        let current = self.prune_xid();
        if current == 0 || xid_precedes(xid, current) {
            self.set_prune_xid(xid);
        }
    }

    /// Checks `header <= lower <= upper <= special <= 8192` and that special is aligned.
    pub fn check_bounds(&self) -> Result<(), RedoReason> {
        let (lower, upper, special) = (self.lower(), self.upper(), self.special());
        let ordered = HEADER_SIZE <= lower && lower <= upper && upper <= special;
        if ordered && special <= PAGE_SIZE && special.is_multiple_of(8) {
            Ok(())
        } else {
            Err(RedoReason::Malformed("page pointers out of order"))
        }
    }

    /// Number of line pointers, which is the highest offset number (`PageGetMaxOffsetNumber`).
    pub fn max_offset(&self) -> u16 {
        (self.lower().min(PAGE_SIZE).saturating_sub(HEADER_SIZE) / LINE_POINTER_SIZE) as u16
    }

    /// The bytes of all line pointers, in order.
    pub fn line_pointers(&self) -> &[[u8; LINE_POINTER_SIZE]] {
        let end = pointer_at(self.max_offset().saturating_add(1));
        self.0.get(HEADER_SIZE..end).unwrap_or_default().as_chunks().0
    }

    /// As [`Page::line_pointers`], writable.
    pub fn line_pointers_mut(&mut self) -> &mut [[u8; LINE_POINTER_SIZE]] {
        let end = pointer_at(self.max_offset().saturating_add(1));
        self.0.get_mut(HEADER_SIZE..end).unwrap_or_default().as_chunks_mut().0
    }

    /// The line pointer of an offset number, which counts from 1.
    pub fn line_pointer(&self, offset: u16) -> Result<LinePointer, RedoReason> {
        if offset == 0 || offset > self.max_offset() {
            return Err(RedoReason::NoPointer { number: offset });
        }
        self.u32_at(pointer_at(offset)).map(LinePointer)
    }

    /// Overwrites an existing line pointer.
    pub fn set_line_pointer(
        &mut self,
        offset: u16,
        pointer: LinePointer,
    ) -> Result<(), RedoReason> {
        if offset == 0 || offset > self.max_offset() {
            return Err(RedoReason::NoPointer { number: offset });
        }
        self.put_u32(pointer_at(offset), pointer.0)
    }

    /// The line pointer of a tuple that must be in use and have its bytes inside the page.
    pub fn normal_pointer(&self, offset: u16) -> Result<LinePointer, RedoReason> {
        let pointer = self.line_pointer(offset)?;
        if !pointer.is_normal() {
            return Err(RedoReason::Malformed("line pointer is not a tuple"));
        }
        Ok(pointer)
    }

    /// The bytes a line pointer covers, whatever its state.
    pub fn item(&self, offset: u16) -> Result<&[u8], RedoReason> {
        let pointer = self.line_pointer(offset)?;
        self.slice(pointer.offset(), pointer.length())
    }

    /// The bytes a line pointer covers, writable.
    pub fn item_mut(&mut self, offset: u16) -> Result<&mut [u8], RedoReason> {
        let pointer = self.line_pointer(offset)?;
        self.slice_mut(pointer.offset(), pointer.length())
    }

    /// `length` bytes at a position.
    pub fn slice(&self, at: usize, length: usize) -> Result<&[u8], RedoReason> {
        let outside = RedoReason::OutsidePage { offset: at, length };
        self.0.get(at..at.saturating_add(length)).ok_or(outside)
    }

    /// `length` bytes at a position, writable.
    pub fn slice_mut(&mut self, at: usize, length: usize) -> Result<&mut [u8], RedoReason> {
        let outside = RedoReason::OutsidePage { offset: at, length };
        self.0.get_mut(at..at.saturating_add(length)).ok_or(outside)
    }

    /// Copies `bytes` to a position.
    pub fn write(&mut self, at: usize, bytes: &[u8]) -> Result<(), RedoReason> {
        self.slice_mut(at, bytes.len())?.copy_from_slice(bytes);
        Ok(())
    }

    /// Moves `length` bytes within the page; the ranges may overlap.
    pub fn move_within(&mut self, from: usize, to: usize, length: usize) -> Result<(), RedoReason> {
        self.slice(from, length)?;
        self.slice(to, length)?;
        self.0.copy_within(from..from + length, to);
        Ok(())
    }

    fn array_at<const N: usize>(&self, at: usize) -> Result<[u8; N], RedoReason> {
        let outside = RedoReason::OutsidePage { offset: at, length: N };
        self.0.get(at..).and_then(|tail| tail.first_chunk::<N>()).copied().ok_or(outside)
    }

    pub fn u8_at(&self, at: usize) -> Result<u8, RedoReason> {
        self.0.get(at).copied().ok_or(RedoReason::OutsidePage { offset: at, length: 1 })
    }

    pub fn u16_at(&self, at: usize) -> Result<u16, RedoReason> {
        self.array_at(at).map(u16::from_le_bytes)
    }

    pub fn u32_at(&self, at: usize) -> Result<u32, RedoReason> {
        self.array_at(at).map(u32::from_le_bytes)
    }

    pub fn u64_at(&self, at: usize) -> Result<u64, RedoReason> {
        self.array_at(at).map(u64::from_le_bytes)
    }

    pub fn put_u8(&mut self, at: usize, value: u8) -> Result<(), RedoReason> {
        self.write(at, &[value])
    }

    pub fn put_u16(&mut self, at: usize, value: u16) -> Result<(), RedoReason> {
        self.write(at, &value.to_le_bytes())
    }

    pub fn put_u32(&mut self, at: usize, value: u32) -> Result<(), RedoReason> {
        self.write(at, &value.to_le_bytes())
    }

    pub fn put_u64(&mut self, at: usize, value: u64) -> Result<(), RedoReason> {
        self.write(at, &value.to_le_bytes())
    }
}

/// Byte position of the line pointer of `offset`, which is at least 1.
pub(crate) fn pointer_at(offset: u16) -> usize {
    HEADER_SIZE + usize::from(offset).saturating_sub(1) * LINE_POINTER_SIZE
}

/// `a` is older than `b`: modulo 2^32 for normal xids, plain order when either is a reserved one
/// (`TransactionIdPrecedes`).
pub fn xid_precedes(a: u32, b: u32) -> bool {
    if a < 3 || b < 3 { a < b } else { (a.wrapping_sub(b) as i32) < 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_round_trip() {
        let mut bytes = [0xff; PAGE_SIZE];
        let mut page = Page::new(&mut bytes);
        page.init(13);
        assert_eq!((page.lower(), page.upper(), page.special()), (24, 8176, 8176));
        assert!(page.check_bounds().is_ok() && !page.is_new());
        page.set_lsn(Lsn(0x1_0000_0002));
        assert_eq!(page.lsn(), Lsn(0x1_0000_0002));
        assert_eq!(&page.bytes()[..8], [1, 0, 0, 0, 2, 0, 0, 0]);
        page.set_prunable(700);
        page.set_prunable(800);
        assert_eq!(page.prune_xid(), 700);
        page.set_flags(flag::ALL_VISIBLE | flag::PAGE_FULL);
        page.clear_flags(flag::PAGE_FULL);
        assert_eq!(page.flags(), flag::ALL_VISIBLE);
    }

    #[test]
    fn line_pointer_bits() {
        let pointer = LinePointer::new(8000, PointerState::Dead, 120);
        assert_eq!((pointer.offset(), pointer.length()), (8000, 120));
        assert_eq!(pointer.state(), PointerState::Dead);
        assert_eq!(pointer.with_offset(16).with_state(PointerState::Normal).range(), 16..136);
    }

    #[test]
    fn nothing_outside_the_page() {
        let mut bytes = [0xff; PAGE_SIZE];
        let mut page = Page::new(&mut bytes);
        assert!(page.check_bounds().is_err());
        assert!(page.line_pointer(0).is_err());
        assert!(page.item(page.max_offset()).is_err());
        assert!(page.line_pointer(page.max_offset() + 1).is_err());
        assert!(page.u32_at(PAGE_SIZE - 3).is_err());
        assert!(page.write(usize::MAX, &[0]).is_err());
        assert!(page.move_within(0, 8000, 193).is_err());
    }
}
