//! Postgres majors and the constants that differ between them.
//!
//! One [`Layout`] per major holds every number that the rest of the crate would otherwise branch on: magics,
//! struct sizes, widths, and the formats of records as [`RecordRules`].
//! Facts: `access/xlog_internal.h`, `access/xlogrecord.h`, `catalog/pg_control.h`, `catalog/catversion.h`,
//! `utils/cache/relmapper.c`, `access/transam/twophase.c` of each major.

use std::fmt;

use treering_types::ErrorKind;

/// A Postgres major version whose bytes we know.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum PgMajor {
    V15,
    V16,
    V17,
    V18,
}

/// A number that is no major version we know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("PostgreSQL {0} is not supported: 15 to 18 are")]
pub struct UnknownMajor(pub u32);

impl UnknownMajor {
    /// The request names a server we do not serve.
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::Invalid
    }
}

/// What differs between majors as plain numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Layout {
    /// The major, as people write it.
    pub number: u32,
    /// `XLOG_PAGE_MAGIC`: first two bytes of every WAL page.
    pub wal_magic: u16,
    /// `PG_CONTROL_VERSION`.
    pub control_version: u32,
    /// `CATALOG_VERSION_NO`, also part of tablespace directory names.
    pub catalog_version: u32,
    /// Where `pg_control`'s CRC sits; it covers everything before it.
    pub control_crc_offset: usize,
    /// Where `pg_control`'s `mock_authentication_nonce` (32 bytes) sits.
    pub control_nonce_offset: usize,
    /// `CheckPoint` has `wal_level` at offset 20 (padding before).
    pub checkpoint_has_wal_level: bool,
    /// Bytes of a `pg_filenode.map`.
    pub rel_map_size: usize,
    /// `MAX_MAPPINGS`.
    pub rel_map_entries_max: usize,
    /// Names in `pg_twophase` carry the epoch: 16 hexadecimal digits instead of 8.
    pub two_phase_name_has_epoch: bool,
    /// Width of SLRU page numbers in CLOG, CommitTs and MultiXact records: 4 or 8 bytes.
    pub slru_page_number_size: usize,
    /// Bytes of one `xl_xact_stats_item` in commit, abort and prepare records.
    pub stats_item_size: usize,
    /// Flag bits of `bimg_info` in a block image header.
    pub image_flags: ImageFlags,
    /// How page-changing records are written down and redone.
    pub records: RecordRules,
}

/// What differs in the records that redo reads, and in what redo does with them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RecordRules {
    /// How pruning, vacuuming and freezing of a heap page are written.
    pub prune: PruneFormat,
    /// Records with a conflict horizon also say whether the relation is a catalog (`isCatalogRel`), which moves the
    /// offset arrays of Gist DELETE and Hash VACUUM_ONE_PAGE (`access/gistxlog.h`, `access/hash_xlog.h`).
    pub has_catalog_flag: bool,
    /// Btree VACUUM forgets the vacuum cycle of the page (`btree_xlog_vacuum`).
    pub btree_vacuum_clears_cycle: bool,
    /// Redo of Gist PAGE_UPDATE and DELETE marks a leaf that lost tuples (`F_TUPLES_DELETED`), which nothing reads.
    /// A matter of minors, not of the WAL: 15.20 no longer does what 15.18, 16.14, 17.10 and 18.4 do.
    pub gist_marks_deletions: bool,
    /// Hash SQUEEZE_PAGE leaves a write page alone that got no tuples and is not the page before the freed one
    /// (`hash_xlog_squeeze_page`).
    pub hash_squeeze_spares_unwritten: bool,
}

/// Formats of the heap's pruning records (`access/heapam_xlog.h`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PruneFormat {
    /// PRUNE, VACUUM and FREEZE_PAGE apart; freezing has one 12-byte plan with its offset per tuple.
    PlanPerTuple,
    /// PRUNE, VACUUM and FREEZE_PAGE apart; freezing has shared plans, then the offsets of each.
    SharedPlans,
    /// One format for all three.
    Unified,
}

/// `BKPIMAGE_*` (`access/xlogrecord.h`). 14 numbers them otherwise, which is why they are data.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ImageFlags {
    pub has_hole: u8,
    pub apply: u8,
    pub pglz: u8,
    pub lz4: u8,
    pub zstd: u8,
}

const IMAGE_FLAGS: ImageFlags =
    ImageFlags { has_hole: 0x01, apply: 0x02, pglz: 0x04, lz4: 0x08, zstd: 0x10 };

const V15: Layout = Layout {
    number: 15,
    wal_magic: 0xD110,
    control_version: 1300,
    catalog_version: 202209061,
    control_crc_offset: 288,
    control_nonce_offset: 256,
    checkpoint_has_wal_level: false,
    rel_map_size: 512,
    rel_map_entries_max: 62,
    two_phase_name_has_epoch: false,
    slru_page_number_size: 4,
    stats_item_size: 12,
    image_flags: IMAGE_FLAGS,
    records: RecordRules {
        prune: PruneFormat::PlanPerTuple,
        has_catalog_flag: false,
        btree_vacuum_clears_cycle: false,
        gist_marks_deletions: false,
        hash_squeeze_spares_unwritten: false,
    },
};

const V16: Layout = Layout {
    number: 16,
    wal_magic: 0xD113,
    catalog_version: 202307071,
    rel_map_size: 524,
    rel_map_entries_max: 64,
    records: RecordRules {
        prune: PruneFormat::SharedPlans,
        has_catalog_flag: true,
        gist_marks_deletions: true,
        ..V15.records
    },
    ..V15
};

const V17: Layout = Layout {
    number: 17,
    wal_magic: 0xD116,
    control_version: 1700,
    catalog_version: 202406281,
    checkpoint_has_wal_level: true,
    two_phase_name_has_epoch: true,
    slru_page_number_size: 8,
    records: RecordRules {
        prune: PruneFormat::Unified,
        hash_squeeze_spares_unwritten: true,
        ..V16.records
    },
    ..V16
};

const V18: Layout = Layout {
    number: 18,
    wal_magic: 0xD118,
    control_version: 1800,
    catalog_version: 202506291,
    control_crc_offset: 292,
    control_nonce_offset: 257,
    stats_item_size: 16,
    records: RecordRules { btree_vacuum_clears_cycle: true, ..V17.records },
    ..V17
};

impl PgMajor {
    /// All majors, oldest first.
    pub const ALL: [PgMajor; 4] = [PgMajor::V15, PgMajor::V16, PgMajor::V17, PgMajor::V18];

    /// The major as people write it: 15 to 18.
    pub const fn number(self) -> u32 {
        self.layout().number
    }

    /// The major with this number.
    ///
    /// # Errors
    /// [`UnknownMajor`].
    pub fn from_number(number: u32) -> Result<PgMajor, UnknownMajor> {
        let found = PgMajor::ALL.into_iter().find(|major| major.number() == number);
        found.ok_or(UnknownMajor(number))
    }

    /// The major whose WAL pages begin with `magic`.
    pub fn from_wal_magic(magic: u16) -> Option<PgMajor> {
        PgMajor::ALL.into_iter().find(|major| major.layout().wal_magic == magic)
    }

    /// The constants of this major.
    pub const fn layout(self) -> &'static Layout {
        match self {
            PgMajor::V15 => &V15,
            PgMajor::V16 => &V16,
            PgMajor::V17 => &V17,
            PgMajor::V18 => &V18,
        }
    }
}

impl fmt::Display for PgMajor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.number(), f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_round_trip() {
        for major in PgMajor::ALL {
            assert_eq!(PgMajor::from_number(major.number()), Ok(major));
            assert_eq!(PgMajor::from_wal_magic(major.layout().wal_magic), Some(major));
        }
        assert_eq!(PgMajor::from_number(14), Err(UnknownMajor(14)));
    }
}
