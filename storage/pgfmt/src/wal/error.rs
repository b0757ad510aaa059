//! What can be wrong with WAL bytes.

use treering_types::{ErrorKind, Lsn};

use crate::{redo::rmgr_name, version::PgMajor};

/// Why WAL bytes are not the record they should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WalError {
    /// Zeros where a record or a page header would start: nothing was ever written here.
    #[error("end of WAL at {at}")]
    EndOfWal { at: Lsn },
    /// A decoder was started at a position where no record can end or start.
    #[error("{at} is no record boundary")]
    BadStart { at: Lsn },
    /// The page header at `at` contradicts its place.
    #[error("WAL page header at {at}: {fault}")]
    PageHeader { at: Lsn, fault: PageHeaderFault },
    /// The page at `page` does not continue the record that began at `start`.
    #[error(
        "record at {start} is not continued at {page}: {left} bytes are missing, {announced} announced"
    )]
    Continuation { start: Lsn, page: Lsn, left: u32, announced: u32 },
    /// The page at `page` begins inside a record, but reading began there.
    #[error("WAL page {page} begins inside a record")]
    InsideRecord { page: Lsn },
    /// `xl_tot_len` is impossible.
    #[error("record at {at} claims a length of {length}")]
    Length { at: Lsn, length: u32 },
    /// `xl_rmid` names neither a built-in resource manager nor the custom range.
    #[error("record at {at} has resource manager {rmid}")]
    ResourceManager { at: Lsn, rmid: u8 },
    /// `xl_prev` is not the start of the record before. `expected` is absent for the first record read,
    /// whose link only has to point backwards.
    #[error("record at {at} points back to {found}, not to {expected:?}")]
    PrevLink { at: Lsn, expected: Option<Lsn>, found: Lsn },
    /// The record's CRC-32C does not fit its bytes, of which the header is part.
    #[error("record at {at} ({}, {length} bytes) fails its checksum", rmgr_name(*.rmid))]
    Checksum { at: Lsn, rmid: u8, length: u32 },
    /// A page says that its first record replaces a broken one, and it does not.
    #[error("record at {at} does not overwrite the broken record at {broken}")]
    Overwrite { at: Lsn, broken: Lsn },
    /// The record's checksum is right and its inside contradicts itself at byte `offset` of it.
    #[error("record at {at} ({}), byte {offset}: {what}", rmgr_name(*.rmid))]
    Malformed { at: Lsn, rmid: u8, offset: usize, what: &'static str },
}

/// Which part of a WAL page header is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PageHeaderFault {
    #[error("magic {found:#06x} is not PostgreSQL {major}'s")]
    Magic { found: u16, major: PgMajor },
    #[error("info bits {0:#06x}")]
    Info(u16),
    #[error("address {0}: a recycled or misplaced page")]
    Address(Lsn),
    #[error("segment size {0}")]
    SegmentSize(u32),
    #[error("WAL page size {0}")]
    PageSize(u32),
    #[error("system identifier {found} instead of {expected}")]
    SystemId { found: u64, expected: u64 },
}

impl WalError {
    /// What a caller may do: wait for more WAL, correct its own request, or treat the log as damaged.
    pub fn kind(&self) -> ErrorKind {
        match self {
            WalError::EndOfWal { .. } => ErrorKind::NotYet,
            WalError::BadStart { .. } | WalError::InsideRecord { .. } => ErrorKind::Invalid,
            WalError::PageHeader { .. }
            | WalError::Continuation { .. }
            | WalError::Length { .. }
            | WalError::ResourceManager { .. }
            | WalError::PrevLink { .. }
            | WalError::Checksum { .. }
            | WalError::Overwrite { .. }
            | WalError::Malformed { .. } => ErrorKind::Corrupt,
        }
    }
}
