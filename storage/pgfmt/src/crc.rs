//! CRC-32C as Postgres keeps it with WAL records, control files, relation maps and two-phase files (`port/pg_crc32c.h`).
//!
//! Two ways to the same number: most records are short, and what counts then is what a call costs; page images are long, and
//! there the wide multiplication of newer processors takes less than half the time.

use crc_fast::{CrcAlgorithm::Crc32Iscsi, Digest};

/// From here on the wide way has won back what it costs to set up (measured: 40 ns against 58 ns for 1000 bytes).
const LONG: usize = 512;

/// The CRC-32C (Castagnoli) of `bytes`.
pub fn crc32c(bytes: &[u8]) -> u32 {
    append(0, bytes)
}

/// The CRC-32C of pieces, one after the other.
pub(crate) fn crc32c_of<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> u32 {
    pieces.fold(0, append)
}

/// The CRC-32C of what had `crc`, with `bytes` after it.
pub(crate) fn append(crc: u32, bytes: &[u8]) -> u32 {
    if bytes.len() < LONG {
        return crc32c::crc32c_append(crc, bytes);
    }
    let mut digest = Digest::new_with_init_state(Crc32Iscsi, u64::from(!crc));
    digest.update(bytes);
    digest.finalize() as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 3720, B.4.
    #[test]
    fn known_answers() {
        let rising: Vec<u8> = (0..32).collect();
        for (bytes, crc) in
            [(&[0; 32][..], 0x8a91_36aa), (&[0xff; 32], 0x62a8_ab43), (&rising, 0x46dd_794e)]
        {
            assert_eq!(crc32c(bytes), crc);
            assert_eq!(crc32c_of(bytes.chunks(7)), crc);
        }
    }

    #[test]
    fn both_ways_go_on_from_each_other() {
        let bytes: Vec<u8> = (0..4 * LONG as u32).map(|n| ((n * n) >> 3) as u8).collect();
        let whole = crc32c::crc32c(&bytes);
        for cut in 0..=bytes.len() {
            let (front, back) = bytes.split_at(cut);
            assert_eq!(crc32c_of([front, back].into_iter()), whole, "cut at {cut}");
        }
    }
}
