//! `pg_filenode.map`: where the catalogs that cannot be looked up in `pg_class` live (`utils/cache/relmapper.c`).
//!
//! ```text
//!  0        4          8                          8 + 8n
//!  +--------+----------+--------------------------+-------+----------------+
//!  | magic  | count    | n x (catalog oid, file)  | CRC   | padding (15)   |   n = 62 (15) or 64 (16+)
//!  +--------+----------+--------------------------+-------+----------------+
//! ```
//!
//! The CRC-32C covers everything before it. RELMAP UPDATE records carry the same struct.

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::panic))]

use treering_types::ErrorKind;

use crate::{
    crc::crc32c,
    le::u32_at,
    version::{Layout, PgMajor},
};

/// The file's name in `global` and in each database directory.
pub const FILE_NAME: &str = "pg_filenode.map";
const MAGIC: u32 = 0x0059_2717;
const ENTRIES_OFFSET: usize = 8;
const ENTRY_SIZE: usize = 8;

/// Bytes that are no relation map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RelMapError {
    #[error("relation map of {found} bytes instead of {expected}")]
    Size { found: usize, expected: usize },
    #[error("relation map with magic {0:#x}")]
    Magic(u32),
    #[error("relation map with {0} entries")]
    Count(u32),
    #[error("relation map fails its checksum")]
    Checksum,
}

impl RelMapError {
    /// Always damage.
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::Corrupt
    }
}

/// A relation map, entries in file order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RelMap {
    /// Catalog oid and relfilenumber.
    pub entries: Vec<(u32, u32)>,
}

const fn crc_offset(layout: &Layout) -> usize {
    ENTRIES_OFFSET + ENTRY_SIZE * layout.rel_map_entries_max
}

impl RelMap {
    /// Reads a map file.
    ///
    /// # Errors
    /// [`RelMapError`]; a wrong checksum is found before a wrong content.
    pub fn parse(major: PgMajor, bytes: &[u8]) -> Result<RelMap, RelMapError> {
        let crc_offset = crc_offset(major.layout());
        let covered = bytes.get(..crc_offset).unwrap_or(&[]);
        let map = RelMap::parse_unchecked(major, bytes)?;
        let crc = crc32c(covered);
        if u32_at(bytes, crc_offset) == Some(crc) { Ok(map) } else { Err(RelMapError::Checksum) }
    }

    /// Reads the map in a RELMAP UPDATE record, whose own CRC protects it.
    ///
    /// # Errors
    /// [`RelMapError`] except `Checksum`.
    pub fn parse_unchecked(major: PgMajor, bytes: &[u8]) -> Result<RelMap, RelMapError> {
        let layout = major.layout();
        let expected = layout.rel_map_size;
        if bytes.len() != expected {
            return Err(RelMapError::Size { found: bytes.len(), expected });
        }
        let magic = u32_at(bytes, 0).unwrap_or(0);
        if magic != MAGIC {
            return Err(RelMapError::Magic(magic));
        }
        let count = u32_at(bytes, 4).unwrap_or(0);
        if count as usize > layout.rel_map_entries_max {
            return Err(RelMapError::Count(count));
        }
        let entry = |index: usize| {
            let at = ENTRIES_OFFSET + ENTRY_SIZE * index;
            Some((u32_at(bytes, at)?, u32_at(bytes, at + 4)?))
        };
        Ok(RelMap { entries: (0..count as usize).filter_map(entry).collect() })
    }

    /// The file's bytes, with CRC.
    ///
    /// # Errors
    /// [`RelMapError::Count`] when there are more entries than this major's file holds.
    pub fn encode(&self, major: PgMajor) -> Result<Vec<u8>, RelMapError> {
        let layout = major.layout();
        let count = self.entries.len() as u32;
        if self.entries.len() > layout.rel_map_entries_max {
            return Err(RelMapError::Count(count));
        }
        let mut out = Vec::with_capacity(layout.rel_map_size);
        out.extend_from_slice(&MAGIC.to_le_bytes());
        out.extend_from_slice(&count.to_le_bytes());
        for (oid, relation) in &self.entries {
            out.extend_from_slice(&oid.to_le_bytes());
            out.extend_from_slice(&relation.to_le_bytes());
        }
        out.resize(crc_offset(layout), 0);
        let crc = crc32c(&out);
        out.extend_from_slice(&crc.to_le_bytes());
        out.resize(layout.rel_map_size, 0);
        Ok(out)
    }

    /// The relfilenumber of a mapped catalog.
    pub fn relation_of(&self, catalog_oid: u32) -> Option<u32> {
        self.entries.iter().find(|(oid, _)| *oid == catalog_oid).map(|(_, relation)| *relation)
    }
}

/// `bytes`, the struct of a RELMAP UPDATE record, as file bytes: everything kept (unused entries too), CRC
/// recomputed as redo does.
///
/// # Errors
/// [`RelMapError`] except `Checksum`.
pub fn file_from_record(major: PgMajor, bytes: &[u8]) -> Result<Vec<u8>, RelMapError> {
    RelMap::parse_unchecked(major, bytes)?;
    let at = crc_offset(major.layout());
    let mut out = bytes.get(..at).unwrap_or(&[]).to_vec();
    let crc = crc32c(&out);
    out.extend_from_slice(&crc.to_le_bytes());
    out.resize(major.layout().rel_map_size, 0);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_round_trip() {
        for (major, size) in [(PgMajor::V15, 512), (PgMajor::V16, 524), (PgMajor::V18, 524)] {
            let map = RelMap { entries: vec![(1262, 1262), (1259, 16400)] };
            let bytes = map.encode(major).unwrap();
            assert_eq!(bytes.len(), size);
            assert_eq!(RelMap::parse(major, &bytes), Ok(map.clone()));
            assert_eq!(file_from_record(major, &bytes), Ok(bytes.clone()));
            assert_eq!(map.relation_of(1259), Some(16400));
            for bit in 0..crc_offset(major.layout()) * 8 {
                let mut bad = bytes.clone();
                bad[bit / 8] ^= 1 << (bit % 8);
                assert!(RelMap::parse(major, &bad).is_err(), "bit {bit}");
            }
            assert!(RelMap::parse(major, &bytes[..size - 1]).is_err());
        }
        let full = RelMap { entries: vec![(1, 1); 63] };
        assert_eq!(full.encode(PgMajor::V15), Err(RelMapError::Count(63)));
        assert!(full.encode(PgMajor::V16).is_ok());
    }
}
