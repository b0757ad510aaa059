//! The bloom filter over a layer's keys: "certainly not here" without touching a block.
//!
//! Ten bits a key and seven probes: about one false positive in a hundred. The hash is part of the file format.

use bytes::Bytes;
use treering_types::Key;

const BITS_PER_KEY: u64 = 10;
const PROBES: u64 = 7;

/// A filter as it lies in the file: a whole number of 8-byte words, bit `b` in byte `b / 8`, value `1 << b % 8`.
#[derive(Clone, Debug)]
pub(crate) struct Bloom {
    bits: Bytes,
}

impl Bloom {
    /// Builds the filter of these keys' [`hash`]es.
    pub fn build(hashes: &[u64]) -> Bloom {
        let words = (hashes.len() as u64 * BITS_PER_KEY).div_ceil(64).max(1);
        let mut bits = vec![0u8; words as usize * 8];
        for hash in hashes {
            for bit in probes(*hash, words * 64) {
                bits[(bit / 8) as usize] |= 1 << (bit % 8);
            }
        }
        Bloom { bits: bits.into() }
    }

    /// Takes the bytes of a file; `None` when they cannot be a filter.
    pub fn from_bytes(bits: Bytes) -> Option<Bloom> {
        (!bits.is_empty() && bits.len().is_multiple_of(8)).then_some(Bloom { bits })
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.bits
    }

    /// False: no key of that hash was put in.
    pub fn may_contain(&self, hash: u64) -> bool {
        probes(hash, self.bits.len() as u64 * 8).all(|bit| {
            self.bits.get((bit / 8) as usize).is_some_and(|byte| byte >> (bit % 8) & 1 == 1)
        })
    }
}

fn probes(hash: u64, bits: u64) -> impl Iterator<Item = u64> {
    let step = mix(hash) | 1;
    (0..PROBES).map(move |probe| hash.wrapping_add(probe.wrapping_mul(step)) % bits)
}

/// The key's hash: its bytes as two little-endian words and a half-word, folded through [`mix`].
pub(crate) fn hash(key: &Key) -> u64 {
    let word = |at: usize, len: usize| {
        key.0.iter().skip(at).take(len).rev().fold(0u64, |word, byte| word << 8 | u64::from(*byte))
    };
    mix(word(0, 8) ^ mix(word(8, 8) ^ mix(word(16, 2))))
}

/// The finaliser of SplitMix64, on its input plus the golden ratio.
fn mix(value: u64) -> u64 {
    let x = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let x = (x ^ x >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let x = (x ^ x >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ x >> 31
}

#[cfg(test)]
mod tests {
    use treering_types::{Fork, RelTag};

    use super::*;

    fn key(block: u32) -> Key {
        let rel = RelTag { tablespace: 1663, database: 5, relation: 16384, fork: Fork::Main };
        Key::rel_block(rel, block)
    }

    #[test]
    fn keeps_what_was_put_in_and_little_else() {
        let hashes: Vec<u64> = (0..10_000).map(|block| hash(&key(block))).collect();
        let bloom = Bloom::build(&hashes);
        assert!(hashes.iter().all(|hash| bloom.may_contain(*hash)));
        let wrong = (10_000..20_000).filter(|block| bloom.may_contain(hash(&key(*block)))).count();
        assert!(wrong < 200, "{wrong} false positives in 10000");
    }

    #[test]
    fn the_hash_never_changes() {
        assert_eq!(hash(&key(7)), 2_020_715_702_406_461_976);
        assert_eq!(Bloom::build(&[]).as_bytes(), [0; 8]);
    }
}
