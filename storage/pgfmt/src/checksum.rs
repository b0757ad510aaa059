//! Page checksums as Postgres computes them (`storage/checksum_impl.h`): 32 interleaved FNV-1a sums, folded, mixed
//! with the block number and reduced to 16 bits that are never zero.
//!
//! Block numbers count within the relation fork, over its segment files. A page that was never initialised
//! (`pd_upper` 0) carries no checksum.

use treering_types::{ErrorKind, PAGE_SIZE};

const SUMS: usize = 32;
const FNV_PRIME: u32 = 16_777_619;
/// `pd_checksum` in a page header.
const CHECKSUM_OFFSET: usize = 8;
/// `pd_upper` in a page header.
const UPPER_OFFSET: usize = 14;

/// `checksumBaseOffsets`.
const BASE_OFFSETS: [u32; SUMS] = [
    0x5B1F36E9, 0xB8525960, 0x02AB50AA, 0x1DE66D2A, 0x79FF467A, 0x9BB9F8A3, 0x217E7CD2, 0x83E13D2C,
    0xF8D4474F, 0xE39EB970, 0x42C6AE16, 0x993216FA, 0x7B093B5D, 0x98DAFF3C, 0xF718902A, 0x0B1C9CDB,
    0xE58F764B, 0x187636BC, 0x5D7B3BB1, 0xE73DE7DE, 0x92BEC979, 0xCCA6C0B2, 0x304A0979, 0x85AA43D4,
    0x783125BB, 0x6CA8EAA2, 0xE407EAC6, 0x4B5CFC3E, 0x9FBF8C76, 0x15CA20BE, 0xF2CA9FD3, 0x959BD756,
];

/// What a page's checksum says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("block {block} carries checksum {found:#06x}, its bytes give {expected:#06x}")]
pub struct ChecksumMismatch {
    pub block: u32,
    pub found: u16,
    pub expected: u16,
}

impl ChecksumMismatch {
    /// Always damage.
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::Corrupt
    }
}

fn round(sum: u32, value: u32) -> u32 {
    let mixed = sum ^ value;
    mixed.wrapping_mul(FNV_PRIME) ^ (mixed >> 17)
}

/// The checksum of `page` as block `block` of its relation fork. The page's own checksum field does not count.
pub fn page_checksum(page: &[u8; PAGE_SIZE], block: u32) -> u16 {
    let mut sums = BASE_OFFSETS;
    let (rows, _) = page.as_chunks::<{ 4 * SUMS }>();
    for (index, row) in rows.iter().enumerate() {
        let (words, _) = row.as_chunks::<4>();
        let mut values = [0_u32; SUMS];
        for (value, word) in values.iter_mut().zip(words) {
            *value = u32::from_le_bytes(*word);
        }
        if index == 0 {
            // The checksum is the low half of the third word.
            values[CHECKSUM_OFFSET / 4] &= 0xffff_0000;
        }
        for (sum, value) in sums.iter_mut().zip(values) {
            *sum = round(*sum, value);
        }
    }
    let folded = sums.into_iter().fold(0, |all, sum| all ^ round(round(sum, 0), 0));
    ((folded ^ block) % 65535 + 1) as u16
}

fn is_new(page: &[u8; PAGE_SIZE]) -> bool {
    page[UPPER_OFFSET..UPPER_OFFSET + 2] == [0; 2]
}

/// Writes the checksum that block `block` must carry. A page that was never initialised stays as it is.
pub fn set_checksum(page: &mut [u8; PAGE_SIZE], block: u32) {
    if !is_new(page) {
        let sum = page_checksum(page, block).to_le_bytes();
        page[CHECKSUM_OFFSET..CHECKSUM_OFFSET + 2].copy_from_slice(&sum);
    }
}

/// Checks block `block` of a relation fork whose cluster has checksums enabled.
///
/// # Errors
/// [`ChecksumMismatch`]. A page that was never initialised must be all zeros (`PageIsVerifiedExtended`).
pub fn verify(page: &[u8; PAGE_SIZE], block: u32) -> Result<(), ChecksumMismatch> {
    let found = u16::from_le_bytes([page[CHECKSUM_OFFSET], page[CHECKSUM_OFFSET + 1]]);
    if is_new(page) && page.iter().all(|byte| *byte == 0) {
        return Ok(());
    }
    let expected = page_checksum(page, block);
    if found == expected { Ok(()) } else { Err(ChecksumMismatch { block, found, expected }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn set_verifies_and_depends_on_everything() {
        let mut page = [3; PAGE_SIZE];
        set_checksum(&mut page, 7);
        assert_eq!(verify(&page, 7), Ok(()));
        assert!(verify(&page, 8).is_err());
        page[8191] ^= 1;
        assert!(verify(&page, 7).is_err());
    }

    #[test]
    fn new_pages_carry_none() {
        let mut page = [0; PAGE_SIZE];
        set_checksum(&mut page, 7);
        assert_eq!((page, verify(&page, 7)), ([0; PAGE_SIZE], Ok(())));
    }
}
