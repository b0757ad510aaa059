//! What can go wrong with a timeline's files.

use std::{io, path::Path};

use treering_consensus::RefusalReason;
use treering_pgfmt::wal::error::WalError;
use treering_remote::RemoteError;
use treering_types::{ErrorKind, Lsn};

/// An operation on a timeline failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No room. Nothing was promised; it can be tried again.
    #[error("disk full: {what} {path}")]
    DiskFull { what: &'static str, path: String },
    /// The log has all the room that it may take. Nothing was done; it can be tried again.
    #[error("disk limit reached: the log takes {used} of {limit} bytes")]
    LimitReached { used: u64, limit: u64 },
    /// The operating system refused; after one of these on the write path the timeline is latched.
    #[error("cannot {what} {path}: {source}")]
    Io { what: &'static str, path: String, source: io::Error },
    /// An earlier failure latched the timeline; it must be opened again.
    #[error("latched by an earlier failure: {0}")]
    Latched(String),
    #[error("control file {path}: {what}")]
    ControlFile { path: String, what: &'static str },
    #[error("control file {path} has format version {found}, this version knows up to {known}")]
    NewerFormat { path: String, found: u32, known: u32 },
    /// The segment that ends with committed WAL is not on disk.
    #[error("WAL before {commit_lsn} was committed, and its segment is missing")]
    LogTooShort { commit_lsn: Lsn },
    /// Bytes that were offered are no WAL.
    #[error("offered bytes are no WAL: {0}")]
    NotWal(WalError),
    /// The bytes were dropped: the log begins at `trim_lsn`.
    #[error("WAL at {lsn} has been removed; the oldest is at {trim_lsn}")]
    Trimmed { lsn: Lsn, trim_lsn: Lsn },
    #[error("WAL at {lsn} is not there; the log ends at {end}")]
    NotYet { lsn: Lsn, end: Lsn },
    /// The log was taken over by another proposer while it was read.
    #[error("term is {found}, not {expected}")]
    OtherTerm { found: u64, expected: u64 },
    #[error("unknown Postgres major version {0}")]
    PgMajor(u32),
    #[error("timeline exists with {what} {existing}, greeting says {offered}")]
    Conflict { what: &'static str, existing: String, offered: String },
    #[error("timeline was deleted")]
    Deleted,
    #[error("timeline is not known")]
    NotFound,
    #[error("stopping")]
    Shutdown,
    /// The log in the object store could not be read or written.
    #[error("archive: {0}")]
    Archive(#[from] RemoteError),
}

impl StoreError {
    /// Names what was tried; "no space" becomes [`StoreError::DiskFull`].
    pub(crate) fn io(what: &'static str, path: &Path) -> impl Fn(io::Error) -> StoreError {
        move |source| {
            let path = path.display().to_string();
            match source.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                    StoreError::DiskFull { what, path }
                }
                _ => StoreError::Io { what, path, source },
            }
        }
    }

    /// As [`StoreError::io`] for a sync: after a failed one nothing is known, whatever the reason.
    pub(crate) fn sync(path: &Path) -> impl Fn(io::Error) -> StoreError {
        move |source| StoreError::Io { what: "sync", path: path.display().to_string(), source }
    }

    pub fn kind(&self) -> ErrorKind {
        match self {
            StoreError::DiskFull { .. } | StoreError::LimitReached { .. } => ErrorKind::Busy,
            StoreError::Io { .. } | StoreError::Latched(_) => ErrorKind::Io,
            StoreError::ControlFile { .. }
            | StoreError::NewerFormat { .. }
            | StoreError::LogTooShort { .. } => ErrorKind::Corrupt,
            StoreError::NotWal(_) | StoreError::PgMajor(_) => ErrorKind::Invalid,
            StoreError::Trimmed { .. } | StoreError::Deleted => ErrorKind::Gone,
            StoreError::NotYet { .. } => ErrorKind::NotYet,
            StoreError::OtherTerm { .. } => ErrorKind::Fenced,
            StoreError::Conflict { .. } => ErrorKind::Conflict,
            StoreError::NotFound => ErrorKind::NotFound,
            StoreError::Shutdown => ErrorKind::Shutdown,
            StoreError::Archive(error) => error.kind(),
        }
    }

    /// What a proposer is told.
    pub fn refusal_reason(&self) -> RefusalReason {
        match self.kind() {
            ErrorKind::Busy => RefusalReason::DiskFull,
            ErrorKind::Io | ErrorKind::Unavailable => RefusalReason::Io,
            ErrorKind::Conflict => RefusalReason::Conflict,
            ErrorKind::Gone => RefusalReason::Gone,
            ErrorKind::Shutdown => RefusalReason::Shutdown,
            ErrorKind::Corrupt => RefusalReason::Corrupt,
            ErrorKind::Invalid | ErrorKind::NotFound | ErrorKind::NotYet | ErrorKind::Fenced => {
                RefusalReason::Invalid
            }
        }
    }
}
