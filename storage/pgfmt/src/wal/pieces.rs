//! A record's bytes, which a page header of the WAL may cut anywhere.
//!
//! What crosses a page and must be contiguous is put together when it is asked for. A full-page image need not be: it
//! is copied to its page from the [`Pieces`] that it is in.

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::panic))]

use std::{borrow::Cow, fmt, ops::Range, sync::OnceLock};

/// All bytes of a record, page headers left out.
///
/// Equal if the bytes are, however they are kept.
#[derive(Clone)]
pub struct RecordBytes<'a>(Kept<'a>);

#[derive(Clone)]
enum Kept<'a> {
    Whole(Cow<'a, [u8]>),
    /// `len` bytes: those of `input` in `ranges`, which ascend, are not empty and inside `input`.
    Cut {
        input: &'a [u8],
        ranges: &'a [Range<usize>],
        len: usize,
        joined: OnceLock<Box<[u8]>>,
    },
}

impl<'a> RecordBytes<'a> {
    /// The bytes of `input` in `ranges`. A range that is not inside counts as empty.
    pub(super) fn cut(input: &'a [u8], ranges: &'a [Range<usize>]) -> RecordBytes<'a> {
        let len = slices(input, ranges).map(<[u8]>::len).sum();
        RecordBytes(Kept::Cut { input, ranges, len, joined: OnceLock::new() })
    }

    pub fn len(&self) -> usize {
        match &self.0 {
            Kept::Whole(bytes) => bytes.len(),
            Kept::Cut { len, .. } => *len,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All bytes, put together the first time they are asked for if they are in pieces.
    pub fn whole(&self) -> &[u8] {
        match &self.0 {
            Kept::Whole(bytes) => bytes,
            Kept::Cut { input, ranges, joined, .. } => {
                joined.get_or_init(|| slices(input, ranges).collect::<Vec<_>>().concat().into())
            }
        }
    }

    /// A copy.
    pub fn to_vec(&self) -> Vec<u8> {
        self.whole().to_vec()
    }

    /// The same with bytes of its own.
    pub fn into_owned(self) -> RecordBytes<'static> {
        match self.0 {
            Kept::Whole(bytes) => bytes.into_owned().into(),
            Kept::Cut { .. } => self.to_vec().into(),
        }
    }

    /// The bytes up to the first cut.
    pub(super) fn front(&self) -> &[u8] {
        self.slices().next().unwrap_or_default()
    }

    /// `len` bytes from byte `at` on, if there are as many.
    pub(super) fn part(&self, at: usize, len: usize) -> Option<&[u8]> {
        let mut before = 0_usize;
        for slice in self.slices() {
            let found = at.checked_sub(before).and_then(|at| slice.get(at..)?.get(..len));
            if found.is_some() {
                return found;
            }
            before = before.saturating_add(slice.len());
        }
        // Not all in one piece, or not all there.
        at.checked_add(len).filter(|end| *end <= self.len())?;
        self.whole().get(at..)?.get(..len)
    }

    /// As [`RecordBytes::part`], in the pieces in which the bytes are, unless they are too many.
    pub(super) fn pieces(&self, at: usize, len: usize) -> Option<Pieces<'_>> {
        at.checked_add(len).filter(|end| *end <= self.len())?;
        let (mut skip, mut left, mut found) = (at, len, Pieces::default());
        let mut places = found.0.iter_mut();
        for slice in self.slices() {
            let Some(rest) = slice.get(skip..) else {
                skip = skip.saturating_sub(slice.len());
                continue;
            };
            skip = 0;
            let piece = rest.get(..left).unwrap_or(rest);
            left = left.saturating_sub(piece.len());
            if !piece.is_empty() {
                let Some(place) = places.next() else {
                    return self.part(at, len).map(Pieces::from);
                };
                *place = piece;
            }
            if left == 0 {
                break;
            }
        }
        Some(found)
    }

    /// Where `part`, which is not empty, begins, if it is one of ours.
    pub(super) fn offset_of(&self, part: &[u8]) -> Option<usize> {
        let joined = match &self.0 {
            Kept::Cut { joined, .. } => joined.get(),
            Kept::Whole(_) => None,
        };
        let within = |all: &[u8]| {
            let offset = (part.as_ptr() as usize).checked_sub(all.as_ptr() as usize)?;
            (offset < all.len() && !part.is_empty()).then_some(offset)
        };
        let mut before = 0_usize;
        let mut in_slices = self.slices().filter_map(|slice| {
            let found = within(slice).map(|offset| before.saturating_add(offset));
            before = before.saturating_add(slice.len());
            found
        });
        in_slices.next().or_else(|| joined.and_then(|joined| within(joined)))
    }

    fn slices(&self) -> impl Iterator<Item = &[u8]> {
        let (whole, (input, ranges)) = match &self.0 {
            Kept::Whole(bytes) => (Some(&bytes[..]), (&[][..], &[][..])),
            Kept::Cut { input, ranges, .. } => (None, (*input, *ranges)),
        };
        whole.into_iter().chain(slices(input, ranges))
    }
}

/// The bytes of `input` in each range.
pub(super) fn slices<'a>(
    input: &'a [u8],
    ranges: &'a [Range<usize>],
) -> impl Iterator<Item = &'a [u8]> {
    ranges.iter().map(|range| input.get(range.clone()).unwrap_or_default())
}

impl<'a> From<&'a [u8]> for RecordBytes<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        RecordBytes(Kept::Whole(Cow::Borrowed(bytes)))
    }
}

impl From<Vec<u8>> for RecordBytes<'_> {
    fn from(bytes: Vec<u8>) -> Self {
        RecordBytes(Kept::Whole(Cow::Owned(bytes)))
    }
}

impl PartialEq for RecordBytes<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.whole() == other.whole()
    }
}

impl Eq for RecordBytes<'_> {}

impl fmt::Debug for RecordBytes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.whole().fmt(f)
    }
}

/// Bytes in as many pieces as an image may come in: it is no longer than a page of the WAL with its header, so it is on
/// three at most.
#[derive(Clone, Copy, Default)]
pub struct Pieces<'a>([&'a [u8]; 3]);

impl<'a> Pieces<'a> {
    pub fn len(&self) -> usize {
        self.0.iter().map(|piece| piece.len()).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The first piece.
    pub(super) fn front(&self) -> &'a [u8] {
        let [front, ..] = self.0;
        front
    }

    /// The bytes before `at` and those from there on.
    pub(super) fn split_at(self, at: usize) -> (Pieces<'a>, Pieces<'a>) {
        let mut left = at;
        let halves = self.0.map(|piece| {
            let halves = piece.split_at(left.min(piece.len()));
            left -= halves.0.len();
            halves
        });
        (Pieces(halves.map(|halves| halves.0)), Pieces(halves.map(|halves| halves.1)))
    }

    /// Copies the bytes to the front of `out`, as far as it has room.
    pub(super) fn copy_to(&self, mut out: &mut [u8]) {
        for piece in self.0 {
            let room = piece.len().min(out.len());
            let (place, rest) = std::mem::take(&mut out).split_at_mut(room);
            place.copy_from_slice(piece.split_at(room).0);
            out = rest;
        }
    }

    /// All bytes, put together if they are in several pieces.
    pub fn join(&self) -> Cow<'a, [u8]> {
        match self.0 {
            [front, [], []] => Cow::Borrowed(front),
            pieces => Cow::Owned(pieces.concat()),
        }
    }
}

impl<'a> From<&'a [u8]> for Pieces<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        Pieces([bytes, &[], &[]])
    }
}

/// The same bytes, however they are cut.
impl PartialEq for Pieces<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.join() == other.join()
    }
}

impl Eq for Pieces<'_> {}

impl fmt::Debug for Pieces<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.join().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_the_bytes_that_they_were_cut_from() {
        let input: Vec<u8> = (0..40).collect();
        for ranges in
            [vec![0..1, 1..40], vec![1..9, 12..13, 20..40], vec![0..5, 6..7, 8..9, 11..30, 31..32]]
        {
            let expected: Vec<u8> =
                ranges.iter().flat_map(|range| range.clone()).map(|at| at as u8).collect();
            for at in 0..=expected.len() {
                for len in 0..=expected.len() - at {
                    let (bytes, what) =
                        (RecordBytes::cut(&input, &ranges), &expected[at..at + len]);
                    assert_eq!(bytes.len(), expected.len());
                    let pieces = bytes.pieces(at, len).unwrap();
                    assert_eq!(pieces.join(), what);
                    assert_eq!(bytes.part(at, len).unwrap(), what);
                    if len > 0 {
                        assert_eq!(bytes.offset_of(pieces.front()), Some(at));
                        assert_eq!(bytes.offset_of(bytes.part(at, len).unwrap()), Some(at));
                    }
                    for mid in 0..=len {
                        let (before, after) = pieces.split_at(mid);
                        let mut out = vec![0; len];
                        before.copy_to(&mut out[..mid]);
                        after.copy_to(&mut out[mid..]);
                        assert_eq!(out, what);
                    }
                }
                let bytes = RecordBytes::cut(&input, &ranges);
                assert!(bytes.part(at, expected.len() - at + 1).is_none());
                assert!(bytes.pieces(at, usize::MAX).is_none());
            }
            assert_eq!(RecordBytes::cut(&input, &ranges).into_owned(), expected.into());
        }
    }
}
