//! CRC-32C as Postgres keeps it with WAL records, control files, relation maps and two-phase files (`port/pg_crc32c.h`).
//!
//! Most records are short, so what counts is what a call costs: the processor's own instruction beats wider ones that have
//! to be set up.

/// The CRC-32C (Castagnoli) of `bytes`.
pub fn crc32c(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes)
}

/// The CRC-32C of pieces, one after the other.
pub(crate) fn crc32c_of<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> u32 {
    pieces.fold(0, crc32c::crc32c_append)
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
}
