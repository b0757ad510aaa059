//! A look at records that are not read yet, to fetch what they will need: nothing is checked, everything may be wrong.

use treering_types::{Fork, RelTag};

/// `access/xlogrecord.h`.
const HEADER: usize = 24;
const LAST_BLOCK_ID: u8 = 32;
const FORK: u8 = 0x0F;
const HAS_IMAGE: u8 = 0x10;
const SAME_RELATION: u8 = 0x80;

/// The blocks without images that records name, one record after the other from the first byte on. Ends at what cannot
/// be a record; the last one may be cut off.
pub fn changed_blocks(log: &[u8]) -> impl Iterator<Item = (RelTag, u32)> {
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
fn blocks(heads: &[u8]) -> impl Iterator<Item = (RelTag, u32)> {
    let (mut rest, mut rel) = (heads, None);
    std::iter::from_fn(move || {
        let (id, flags) = (*rest.first()?, *rest.get(1)?);
        // Behind an image's header nothing is looked for: its length depends on the version.
        if id > LAST_BLOCK_ID || flags & HAS_IMAGE != 0 {
            return None;
        }
        let fork = Fork::try_from(flags & FORK).ok()?;
        let mut at = 4;
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
        Some((rel?.with_fork(fork), block))
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
        let image = record(&[&[0, HAS_IMAGE, 0, 0], &[9; 30]]);
        let one = record(&[&[0, 0, 0, 0], &first]);
        let rel = RelTag { tablespace: 1663, database: 5, relation: 16384, fork: Fork::Main };
        let visibility = rel.with_fork(Fork::VisibilityMap);
        let log = [two, image, one, vec![0; 100]].concat();
        let expected = [(rel, 7), (visibility, 9), (rel, 7)];
        assert_eq!(changed_blocks(&log).collect::<Vec<_>>(), expected);
        for end in 0..log.len() {
            assert!(expected.starts_with(&changed_blocks(&log[..end]).collect::<Vec<_>>()));
        }
    }
}
