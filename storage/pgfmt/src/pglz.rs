//! Decompression of Postgres's own LZ format (`common/pg_lzcompress.c`), as used in full-page images.
//!
//! A control byte announces eight items, lowest bit first: 0 is a literal byte, 1 a match of 2 or 3 bytes:
//! length - 3 in the low nibble of the first byte (15: a third byte adds 0 to 255), distance in its high nibble
//! and the second byte.

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::panic))]

/// Bytes that do not decompress to exactly the size asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a pglz stream of this size")]
pub struct PglzError;

/// Length that says that a third byte follows.
const LONG_MATCH: usize = 18;

/// Fills `target` from `source`, both to their last byte.
///
/// # Errors
/// [`PglzError`]; `target` is then unspecified.
pub fn decompress(source: &[u8], target: &mut [u8]) -> Result<(), PglzError> {
    fill(source, target).ok_or(PglzError)
}

fn fill(mut source: &[u8], target: &mut [u8]) -> Option<()> {
    let mut filled = 0_usize;
    while filled < target.len() {
        let mut control = take(&mut source)?;
        for _ in 0..8 {
            if filled == target.len() || source.is_empty() {
                break;
            }
            if control & 1 == 0 {
                *target.get_mut(filled)? = take(&mut source)?;
                filled += 1;
            } else {
                let (distance, length) = read_match(&mut source)?;
                filled = copy_match(target, filled, distance, length)?;
            }
            control >>= 1;
        }
    }
    source.is_empty().then_some(())
}

fn take(source: &mut &[u8]) -> Option<u8> {
    let (first, rest) = source.split_first()?;
    *source = rest;
    Some(*first)
}

fn read_match(source: &mut &[u8]) -> Option<(usize, usize)> {
    let first = usize::from(take(source)?);
    let second = usize::from(take(source)?);
    let mut length = (first & 0x0f) + 3;
    if length == LONG_MATCH {
        length += usize::from(take(source)?);
    }
    Some(((first & 0xf0) << 4 | second, length))
}

/// Repeats what stands `distance` before `filled`; source and target may overlap. A match that reaches beyond the
/// target is cut.
fn copy_match(target: &mut [u8], filled: usize, distance: usize, length: usize) -> Option<usize> {
    let from = filled.checked_sub(distance).filter(|_| distance > 0)?;
    let end = target.len().min(filled + length);
    let mut at = filled;
    while at < end {
        // What is there of the repeated string doubles with every round.
        let count = (at - from).min(end - at);
        target.copy_within(from..from + count, at);
        at += count;
    }
    Some(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_and_overlapping_matches() {
        // Five literals "11234", then a match of length 16 at distance 4.
        let source = [0b0010_0000, b'1', b'1', b'2', b'3', b'4', 13, 4];
        let mut target = [0; 21];
        decompress(&source, &mut target).unwrap();
        assert_eq!(&target, b"112341234123412341234");
    }

    #[test]
    fn long_matches_take_a_third_byte() {
        let mut target = [0; 1 + 18 + 200];
        decompress(&[0b10, b'x', 15, 1, 200], &mut target).unwrap();
        assert_eq!(target, [b'x'; 219]);
        let mut short = [0; 100];
        decompress(&[0b10, b'x', 15, 1, 200], &mut short).unwrap();
    }

    #[test]
    fn wrong_streams_are_errors() {
        let mut target = [0; 8];
        for source in [
            &[][..],
            &[0],
            &[1, 0, 1],
            &[0b10, b'x', 0, 0],
            &[0b10, b'x', 0, 2],
            &[0b10, b'x', 0],
            &[0b10, b'x', 15, 1],
            &[0b10, b'x', 4, 1, 9],
            &[0b10, b'x', 0, 1],
        ] {
            assert_eq!(decompress(source, &mut target), Err(PglzError), "{source:?}");
        }
    }
}
