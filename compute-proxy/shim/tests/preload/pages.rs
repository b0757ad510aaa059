//! Pages that tell where they come from, and no word of which is zero, as a hole's are.

pub const PAGE: usize = 8192;

/// The page of a seed.
pub fn filled(seed: u64) -> Vec<u8> {
    (0..PAGE as u64 / 8).flat_map(|word| mixed(seed ^ word << 40).to_le_bytes()).collect()
}

/// What the pageserver has for a block.
pub fn original(file: u64, block: u32) -> Vec<u8> {
    filled(file << 32 | u64::from(block))
}

/// Some blocks of it.
pub fn originals(file: u64, blocks: std::ops::Range<u32>) -> Vec<u8> {
    blocks.flat_map(|block| original(file, block)).collect()
}

fn mixed(word: u64) -> u64 {
    let word = (word ^ word >> 31).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (word ^ word >> 29).wrapping_mul(0xBF58_476D_1CE4_E5B9) | 1
}

/// Compares without printing 8 KiB.
#[track_caller]
pub fn assert_same(found: &[u8], expected: &[u8]) {
    assert_eq!(found.len(), expected.len(), "lengths");
    if let Some(at) = found.iter().zip(expected).position(|(a, b)| a != b) {
        let zeros = if found[at] == 0 { ", a zero" } else { "" };
        panic!("byte {at} of {} differs{zeros}", found.len());
    }
}
