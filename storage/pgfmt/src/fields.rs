//! Little-endian fields of a record's bytes, read in order and bounds-checked.
//!
//! Redo reads record layouts through this cursor only, so that a short or hostile record ends in
//! [`RedoReason::Malformed`] instead of a panic.

#![deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::panic)]

use crate::redo::RedoReason;

const SHORT: RedoReason = RedoReason::Malformed("record shorter than its layout");

/// A cursor over record bytes.
#[derive(Clone, Copy, Debug)]
pub struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    /// Starts at the first byte.
    pub fn new(bytes: &'a [u8]) -> Self {
        Fields { rest: bytes }
    }

    /// The next `count` bytes.
    pub fn take(&mut self, count: usize) -> Result<&'a [u8], RedoReason> {
        let (head, rest) = self.rest.split_at_checked(count).ok_or(SHORT)?;
        self.rest = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], RedoReason> {
        let (head, rest) = self.rest.split_first_chunk::<N>().ok_or(SHORT)?;
        self.rest = rest;
        Ok(*head)
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
        self.take(count.checked_mul(2).ok_or(SHORT)?).map(U16s)
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
        assert_eq!(fields.u8(), Err(SHORT));
        assert!(fields.u16s(usize::MAX).is_err());
    }
}
