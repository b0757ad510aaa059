//! A cursor over bytes: Postgres's C structs field after field, little-endian and bounds-checked.
//!
//! Every reader answers `None` past the end of the bytes: nothing here can panic on hostile input. Slices borrow
//! the bytes they come from.

#![deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::panic)]

use crate::le;

/// Reads fields one after another.
pub(crate) struct Cursor<'a> {
    bytes: &'a [u8],
    /// Never past the end.
    at: usize,
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Cursor<'a> {
        Cursor { bytes, at: 0 }
    }

    /// How far reading came. A reader that finds too little stays where it is.
    pub(crate) fn position(&self) -> usize {
        self.at
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let value = le::array_at(self.bytes, self.at)?;
        self.at += N;
        Some(value)
    }

    pub(crate) fn u8(&mut self) -> Option<u8> {
        self.array::<1>().map(u8::from_le_bytes)
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    pub(crate) fn i64(&mut self) -> Option<i64> {
        self.array().map(i64::from_le_bytes)
    }

    /// A C `int` that counts things: negative is malformed.
    pub(crate) fn count(&mut self) -> Option<usize> {
        usize::try_from(self.array().map(i32::from_le_bytes)?).ok()
    }

    /// `count` 32-bit words. Memory is bounded by the bytes that are there, not by the count.
    pub(crate) fn u32s(&mut self, count: usize) -> Option<Vec<u32>> {
        let bytes = self.slice(count.checked_mul(4)?)?;
        Some(bytes.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word)).collect())
    }

    pub(crate) fn skip(&mut self, size: usize) -> Option<()> {
        self.at = self.at.checked_add(size).filter(|end| *end <= self.bytes.len())?;
        Some(())
    }

    /// The next `size` bytes.
    pub(crate) fn slice(&mut self, size: usize) -> Option<&'a [u8]> {
        let begin = self.at;
        self.skip(size)?;
        self.bytes.get(begin..self.at)
    }

    /// Bytes up to a NUL, which is consumed too.
    pub(crate) fn c_string(&mut self) -> Option<&'a [u8]> {
        let length = self.bytes.get(self.at..)?.iter().position(|byte| *byte == 0)?;
        let text = self.slice(length)?;
        self.skip(1)?;
        Some(text)
    }

    /// Everything not read yet.
    pub(crate) fn rest(&mut self) -> &'a [u8] {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        self.at = self.bytes.len();
        rest
    }

    pub(crate) fn is_at_end(&self) -> bool {
        self.at == self.bytes.len()
    }
}
