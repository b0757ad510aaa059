//! State files of prepared transactions in `pg_twophase` (`access/transam/twophase.c`).
//!
//! A file is the main data of the PREPARE record followed by its CRC-32C: the server writes the same bytes at a
//! checkpoint.

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::panic))]

use crate::{crc::crc32c, version::PgMajor};

/// The directory below the data directory.
pub const DIRECTORY: &str = "pg_twophase";

/// The name of a prepared transaction's file: the xid as 8 hexadecimal digits, from 17 on preceded by the epoch.
pub fn file_name(major: PgMajor, full_xid: u64) -> String {
    if major.layout().two_phase_name_has_epoch {
        format!("{full_xid:016X}")
    } else {
        format!("{:08X}", full_xid as u32)
    }
}

/// The transaction id that a file name stands for; before 17 the epoch is 0.
pub fn parse_file_name(major: PgMajor, name: &str) -> Option<u64> {
    let digits = if major.layout().two_phase_name_has_epoch { 16 } else { 8 };
    let is_hex = name.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'A'..=b'F'));
    if name.len() != digits || !is_hex {
        return None;
    }
    u64::from_str_radix(name, 16).ok()
}

/// The file's bytes: the PREPARE record's main data and its CRC-32C.
pub fn file_bytes(main_data: &[u8]) -> Vec<u8> {
    let crc = crc32c(main_data);
    let mut out = Vec::with_capacity(main_data.len() + 4);
    out.extend_from_slice(main_data);
    out.extend_from_slice(&crc.to_le_bytes());
    out
}

/// The PREPARE record's main data of a file, if its CRC is right.
pub fn main_data_of(file: &[u8]) -> Option<&[u8]> {
    let (main_data, crc) = file.split_last_chunk::<4>()?;
    (crc32c(main_data) == u32::from_le_bytes(*crc)).then_some(main_data)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_bytes_round_trip() {
        let full_xid = 3 << 32 | 0x2dc;
        assert_eq!(file_name(PgMajor::V15, full_xid), "000002DC");
        assert_eq!(file_name(PgMajor::V17, full_xid), "00000003000002DC");
        assert_eq!(parse_file_name(PgMajor::V17, "00000003000002DC"), Some(full_xid));
        assert_eq!(parse_file_name(PgMajor::V15, "000002DC"), Some(0x2dc));
        assert_eq!(parse_file_name(PgMajor::V15, "000002dc"), None);
        let mut file = file_bytes(b"state");
        assert_eq!(main_data_of(&file), Some(&b"state"[..]));
        file[0] ^= 1;
        assert_eq!((main_data_of(&file), main_data_of(b"abc")), (None, None));
    }
}
