//! Finding blocks without an index: each is a zstd frame and its crc32, one behind the other.

use crate::layer::block::CRC_SIZE;

/// First bytes of a zstd frame.
const FRAME_MAGIC: [u8; 4] = 0xFD2F_B528_u32.to_le_bytes();

/// A block that was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub offset: usize,
    /// crc32 included.
    pub stored_len: usize,
    pub raw_len: u32,
}

/// Whole blocks in `bytes` from `start` on, up to `end`, whatever lies between them.
pub(super) fn blocks(bytes: &[u8], start: usize, end: usize) -> Vec<Place> {
    let mut found = Vec::new();
    let mut at = start;
    let bytes = bytes.get(..end).unwrap_or(bytes);
    while let Some(offset) = next_magic(bytes, at) {
        match block_at(bytes, offset) {
            Some(place) => {
                at = offset + place.stored_len;
                found.push(place);
            }
            None => at = offset + 1,
        }
    }
    found
}

fn next_magic(bytes: &[u8], from: usize) -> Option<usize> {
    let rest = bytes.get(from..)?;
    rest.windows(FRAME_MAGIC.len()).position(|window| window == FRAME_MAGIC).map(|at| from + at)
}

/// A frame whose crc32 is right: what only looks like a frame is not followed by one.
fn block_at(bytes: &[u8], offset: usize) -> Option<Place> {
    let rest = bytes.get(offset..)?;
    let frame_len = zstd::zstd_safe::find_frame_compressed_size(rest).ok()?;
    let frame = rest.get(..frame_len)?;
    let crc = rest.get(frame_len..)?.first_chunk::<CRC_SIZE>()?;
    if crc32fast::hash(frame) != u32::from_le_bytes(*crc) {
        return None;
    }
    let raw_len = zstd::zstd_safe::get_frame_content_size(frame).ok().flatten()?;
    Some(Place { offset, stored_len: frame_len + CRC_SIZE, raw_len: u32::try_from(raw_len).ok()? })
}
