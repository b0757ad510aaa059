//! Compressed posting lists (`access/gin/ginpostinglist.c`): segments of ascending item pointers.
//!
//! ```text
//!  0                     6              8           8 + size
//!  +---------------------+--------------+-----------+-----+
//!  | first item pointer  | size of rest | deltas ...| 0   |   rounded up to 2
//!  +---------------------+--------------+-----------+-----+
//! ```
//!
//! An item pointer counts as the number `block << 11 | offset`; each delta to the one before is stored in
//! groups of 7 bits, low ones first, the high bit set on all bytes but the last; at most 7 bytes.

#![deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::panic)]

use super::{
    RedoReason,
    index_tuple::{TID_SIZE, Tid, tid, tid_block, tid_posid},
};

/// Bits of an offset number (`MaxHeapTuplesPerPageBits`).
const OFFSET_BITS: u32 = 11;
/// Bytes before the deltas.
const HEADER_SIZE: usize = TID_SIZE + 2;
/// Bytes of the longest delta (`MaxBytesPerInteger`).
const DELTA_SIZE_MAX: usize = 7;

const SHORT: RedoReason = RedoReason::Malformed("posting list segment is cut off");
const NO_ROOM: RedoReason = RedoReason::Malformed("posting list does not fit");
const UNORDERED: RedoReason = RedoReason::Malformed("posting list not ascending");

/// An item pointer as a number whose order is theirs.
pub(super) fn item_of(pointer: Tid) -> Result<u64, RedoReason> {
    let offset = tid_posid(pointer);
    if u32::from(offset) >= 1 << OFFSET_BITS {
        return Err(RedoReason::Malformed("item pointer with an impossible offset"));
    }
    Ok(u64::from(tid_block(pointer)) << OFFSET_BITS | u64::from(offset))
}

fn pointer_of(item: u64) -> Tid {
    tid((item >> OFFSET_BITS) as u32, (item & ((1 << OFFSET_BITS) - 1)) as u16)
}

/// One segment as stored.
#[derive(Clone, Copy, Debug)]
pub(super) struct Segment<'a> {
    /// All its bytes, padding included.
    pub bytes: &'a [u8],
    first: u64,
    deltas: &'a [u8],
}

impl<'a> Segment<'a> {
    /// The segment at the start of `bytes`.
    pub fn leading(bytes: &'a [u8]) -> Result<Self, RedoReason> {
        let (header, rest) = bytes.split_first_chunk::<HEADER_SIZE>().ok_or(SHORT)?;
        let [b0, b1, b2, b3, o0, o1, low, high] = *header;
        let size = usize::from(u16::from_le_bytes([low, high]));
        let total = HEADER_SIZE + size.next_multiple_of(2);
        Ok(Segment {
            bytes: bytes.get(..total).ok_or(SHORT)?,
            first: item_of([b0, b1, b2, b3, o0, o1])?,
            deltas: rest.get(..size).ok_or(SHORT)?,
        })
    }

    /// Its items in order.
    pub fn items(&self) -> Items<'a> {
        Items { next: Some(self.first), deltas: self.deltas }
    }
}

/// Items of a segment; the first error ends it.
pub(super) struct Items<'a> {
    next: Option<u64>,
    deltas: &'a [u8],
}

impl Iterator for Items<'_> {
    type Item = Result<u64, RedoReason>;

    fn next(&mut self) -> Option<Self::Item> {
        let item = self.next.take()?;
        if !self.deltas.is_empty() {
            match take_varbyte(&mut self.deltas) {
                Ok(delta) => self.next = Some(item.wrapping_add(delta)),
                Err(error) => return Some(Err(error)),
            }
        }
        Some(Ok(item))
    }
}

fn take_varbyte(bytes: &mut &[u8]) -> Result<u64, RedoReason> {
    let mut value = 0;
    for index in 0..DELTA_SIZE_MAX as u32 {
        let (byte, rest) = bytes.split_first().ok_or(SHORT)?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(RedoReason::Malformed("posting list delta too long"))
}

/// Writes one segment.
pub(super) struct Encoder<'a> {
    out: &'a mut [u8],
    size: usize,
    last: Option<u64>,
}

impl<'a> Encoder<'a> {
    /// Starts a segment at the start of `out`; what does not fit there is an error.
    pub fn new(out: &'a mut [u8]) -> Self {
        Encoder { out, size: HEADER_SIZE, last: None }
    }

    /// Adds an item not smaller than the one before; the same one again is left out.
    pub fn push(&mut self, item: u64) -> Result<(), RedoReason> {
        match self.last {
            None => *self.out.first_chunk_mut().ok_or(NO_ROOM)? = pointer_of(item),
            Some(last) if last == item => return Ok(()),
            Some(last) => self.put_varbyte(item.checked_sub(last).ok_or(UNORDERED)?)?,
        }
        self.last = Some(item);
        Ok(())
    }

    fn put_varbyte(&mut self, mut value: u64) -> Result<(), RedoReason> {
        while value > 0x7f {
            self.put(0x80 | (value & 0x7f) as u8)?;
            value >>= 7;
        }
        self.put(value as u8)
    }

    fn put(&mut self, byte: u8) -> Result<(), RedoReason> {
        *self.out.get_mut(self.size).ok_or(NO_ROOM)? = byte;
        self.size += 1;
        Ok(())
    }

    /// Pads the segment and returns its size, padding included; at least one item must have been added.
    pub fn finish(mut self) -> Result<usize, RedoReason> {
        let deltas = u16::try_from(self.size - HEADER_SIZE).map_err(|_| NO_ROOM)?;
        if self.last.is_none() {
            return Err(RedoReason::Malformed("posting list segment without items"));
        }
        if deltas % 2 == 1 {
            self.put(0)?;
        }
        let header = self.out.first_chunk_mut::<HEADER_SIZE>().ok_or(NO_ROOM)?;
        let [.., low, high] = header;
        [*low, *high] = deltas.to_le_bytes();
        Ok(self.size)
    }
}

/// Writes `segment` with `added` (packed item pointers, ascending) merged in and returns the new size; equal
/// items are kept once (`ginMergeItemPointers`, `ginCompressPostingList`).
pub(super) fn merge(
    out: &mut [u8],
    segment: &Segment<'_>,
    added: &[u8],
) -> Result<usize, RedoReason> {
    let mut encoder = Encoder::new(out);
    let mut old = segment.items();
    let mut pending = old.next().transpose()?;
    for pointer in added.as_chunks::<TID_SIZE>().0 {
        let item = item_of(*pointer)?;
        while let Some(smaller) = pending.filter(|old| *old <= item) {
            encoder.push(smaller)?;
            pending = old.next().transpose()?;
        }
        encoder.push(item)?;
    }
    while let Some(item) = pending {
        encoder.push(item)?;
        pending = old.next().transpose()?;
    }
    encoder.finish()
}
