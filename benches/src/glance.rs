//! A look at records that are not read yet, to fetch what they will need: nothing is checked, everything may be wrong.

use treering_types::{Fork, RelTag};

/// `access/xlogrecord.h`.
const HEADER: usize = 24;
const LAST_BLOCK_ID: u8 = 32;
const FORK: u8 = 0x0F;
const HAS_IMAGE: u8 = 0x10;
const SAME_RELATION: u8 = 0x80;
const IMAGE_HAS_HOLE: u8 = 0x01;
const IMAGE_APPLY: u8 = 0x02;
/// Bytes of an image's header, if it is not compressed.
const IMAGE_HEADER: usize = 5;

/// A block that a record names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Glimpse {
    pub rel: RelTag,
    pub block: u32,
    /// With an image of the whole page: what the page holds before does not matter.
    pub image: bool,
}

/// The blocks that records name, one record after the other from the first byte on. Ends at what cannot be a record; the
/// last one may be cut off.
pub fn blocks_of(log: &[u8]) -> impl Iterator<Item = Glimpse> {
    let mut rest = log;
    let records = std::iter::from_fn(move || {
        let length = word(rest, 0)? as usize;
        let record = rest.get(HEADER..length.min(rest.len()))?;
        rest = rest.get(length.next_multiple_of(8)..).unwrap_or_default();
        Some(record)
    });
    records.flat_map(blocks)
}

/// The blocks of a record, whose block headers come first.
fn blocks(heads: &[u8]) -> impl Iterator<Item = Glimpse> {
    let (mut rest, mut rel) = (heads, None);
    std::iter::from_fn(move || {
        let (id, flags) = (*rest.first()?, *rest.get(1)?);
        if id > LAST_BLOCK_ID {
            return None;
        }
        let fork = Fork::try_from(flags & FORK).ok()?;
        let mut at = 4;
        let image = flags & HAS_IMAGE != 0;
        if image {
            // Behind the header of a compressed image nothing is looked for: its length depends on more.
            let packing = *rest.get(at + 4)? & !(IMAGE_HAS_HOLE | IMAGE_APPLY);
            at += if packing == 0 { IMAGE_HEADER } else { return None };
        }
        if flags & SAME_RELATION == 0 {
            let tag = RelTag {
                tablespace: word(rest, at)?,
                database: word(rest, at + 4)?,
                relation: word(rest, at + 8)?,
                fork,
            };
            (rel, at) = (Some(tag), at + 12);
        }
        let block = word(rest, at)?;
        rest = rest.get(at + 4..)?;
        Some(Glimpse { rel: rel?.with_fork(fork), block, image })
    })
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|word| u32::from_le_bytes(*word))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A record of `heads` alone, padded as in the log.
    fn record(heads: &[&[u8]]) -> Vec<u8> {
        let mut bytes = vec![0; HEADER];
        heads.iter().for_each(|head| bytes.extend_from_slice(head));
        let length = bytes.len() as u32;
        bytes[..4].copy_from_slice(&length.to_le_bytes());
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes
    }

    #[test]
    fn blocks_of_records_up_to_the_first_that_is_none() {
        let words = |words: &[u32]| words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let (first, same): (Vec<u8>, Vec<u8>) = (words(&[1663, 5, 16384, 7]), words(&[9]));
        let two = record(&[&[0, 0, 3, 0], &first, &[1, SAME_RELATION | 2, 0, 0], &same, &[255, 0]]);
        let image = record(&[&[0, HAS_IMAGE, 0, 0], &[1, 2, 3, 4, 3], &first, &[255, 0], &[0; 30]]);
        let packed = record(&[&[0, HAS_IMAGE, 0, 0], &[1, 2, 3, 4, 7], &first]);
        let one = record(&[&[0, 0, 0, 0], &first]);
        let rel = RelTag { tablespace: 1663, database: 5, relation: 16384, fork: Fork::Main };
        let visibility = rel.with_fork(Fork::VisibilityMap);
        let log = [two, image, packed, one, vec![0; 100]].concat();
        let glimpse = |rel, block, image| Glimpse { rel, block, image };
        let expected = [
            glimpse(rel, 7, false),
            glimpse(visibility, 9, false),
            glimpse(rel, 7, true),
            glimpse(rel, 7, false),
        ];
        assert_eq!(blocks_of(&log).collect::<Vec<_>>(), expected);
        for end in 0..log.len() {
            assert!(expected.starts_with(&blocks_of(&log[..end]).collect::<Vec<_>>()));
        }
    }
}
