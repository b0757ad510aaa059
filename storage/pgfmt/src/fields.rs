//! Little-endian fields of a record's bytes, read in order and bounds-checked.
//!
//! Redo reads record layouts through this cursor only, so that a short or hostile record ends in
//! [`RedoReason::Short`], which says where, instead of a panic.

#![deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::panic)]

use crate::{
    change::RecordPart,
    redo::{RedoReason, Section},
};

/// A cursor over record bytes.
#[derive(Clone, Copy, Debug)]
pub struct Fields<'a> {
    rest: &'a [u8],
    /// What the bytes are and how many there were at first: for errors.
    section: Section,
    size: usize,
}

impl<'a> Fields<'a> {
    /// Starts at the first byte of some part of a record.
    pub fn new(bytes: &'a [u8]) -> Self {
        Fields { rest: bytes, section: Section::Piece, size: bytes.len() }
    }

    /// Starts at the first byte of the record's main data.
    pub fn main(part: &'a RecordPart<'_>) -> Self {
        Fields { section: Section::Main, ..Fields::new(&part.main) }
    }

    /// Starts at the first byte of the block's data.
    pub fn data(part: &'a RecordPart<'_>) -> Self {
        Fields { section: Section::Data, ..Fields::new(&part.data) }
    }

    /// The next `count` bytes.
    pub fn take(&mut self, count: usize) -> Result<&'a [u8], RedoReason> {
        let (head, rest) = self.rest.split_at_checked(count).ok_or(self.short())?;
        self.rest = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], RedoReason> {
        let (head, rest) = self.rest.split_first_chunk::<N>().ok_or(self.short())?;
        self.rest = rest;
        Ok(*head)
    }

    /// The field that begins here is not all there.
    fn short(&self) -> RedoReason {
        RedoReason::Short { section: self.section, offset: self.size - self.rest.len() }
    }

    /// Passes over `count` bytes.
    pub fn skip(&mut self, count: usize) -> Result<(), RedoReason> {
        self.take(count).map(|_| ())
    }

    pub fn u8(&mut self) -> Result<u8, RedoReason> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub fn u16(&mut self) -> Result<u16, RedoReason> {
        self.array().map(u16::from_le_bytes)
    }

    pub fn u32(&mut self) -> Result<u32, RedoReason> {
        self.array().map(u32::from_le_bytes)
    }

    pub fn u64(&mut self) -> Result<u64, RedoReason> {
        self.array().map(u64::from_le_bytes)
    }

    /// The next `count` 16-bit numbers, such as an array of offset numbers.
    pub fn u16s(&mut self, count: usize) -> Result<U16s<'a>, RedoReason> {
        self.take(count.saturating_mul(2)).map(U16s)
    }

    /// Everything not read yet.
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// True when every byte was read.
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }
}

/// A packed array of little-endian 16-bit numbers inside a record.
#[derive(Clone, Copy, Debug)]
pub struct U16s<'a>(&'a [u8]);

impl<'a> U16s<'a> {
    /// How many numbers there are.
    pub fn len(&self) -> usize {
        self.0.len() / 2
    }

    /// True when there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The numbers in order.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = u16> + ExactSizeIterator + use<'a> {
        self.0.as_chunks::<2>().0.iter().map(|pair| u16::from_le_bytes(*pair))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_in_order_and_ends_in_an_error() {
        let mut fields = Fields::new(&[1, 2, 0, 3, 0, 0, 0, 4, 0, 5, 0]);
        assert_eq!((fields.u8(), fields.u16(), fields.u32()), (Ok(1), Ok(2), Ok(3)));
        let pair = fields.u16s(2).unwrap();
        assert_eq!(pair.iter().collect::<Vec<_>>(), [4, 5]);
        assert!(fields.is_empty());
        let short = RedoReason::Short { section: Section::Piece, offset: 11 };
        assert_eq!(fields.u8(), Err(short));
        assert!(fields.u16s(usize::MAX).is_err());
    }
}
