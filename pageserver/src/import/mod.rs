//! New projects: a stock cluster, made once per Postgres major ([`Templates`]), imported as a tenant's root timeline
//! ([`import_cluster`]).
//!
//! What is imported: every relation fork (page checksums verified), relation maps, SLRUs, prepared transactions,
//! `pg_control` and the state it describes, all as of X, the end of the shutdown checkpoint record. What is not:
//! free space maps (never in step with the log, and a missing one is legal), statistics, `pg_internal.init`,
//! configuration files; the rest of a data directory is made anew by the base backup.

mod binaries;
mod cluster;
mod template;
mod wal_end;

use std::{io, path::PathBuf};

use treering_engine::EngineError;
use treering_pgfmt::{
    control::ControlError, relmap::RelMapError, version::PgMajor, wal::error::WalError,
};
use treering_types::{ErrorKind, Lsn};

pub use cluster::import_cluster;
pub use template::{AGENT_ROLE, Templates};

/// Why a cluster could not be made or imported.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    #[error(
        "PostgreSQL {major} is not installed: no initdb and postgres of that version in {looked_in:?}"
    )]
    NoPostgres { major: PgMajor, looked_in: Vec<PathBuf> },
    #[error(
        "running as root, and none of the accounts {tried:?} exists: Postgres refuses to run as root"
    )]
    NoAccount { tried: &'static [&'static str] },
    #[error("{step} failed: {output}")]
    Step { step: &'static str, output: String },
    #[error("{}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{}: {what}", path.display())]
    BadFile { path: PathBuf, what: String },
    #[error(transparent)]
    Control(#[from] ControlError),
    #[error(transparent)]
    RelMap(#[from] RelMapError),
    #[error("the cluster was not shut down cleanly")]
    NotShutDown,
    #[error("the cluster ran with wal_level minimal, which does not log every change")]
    MinimalWal,
    #[error("the cluster is PostgreSQL {found}, the project is {expected}")]
    OtherMajor { found: PgMajor, expected: PgMajor },
    #[error("shutdown checkpoint at {at}: {source}")]
    Wal { at: Lsn, source: WalError },
    #[error("the record at {at} is not the checkpoint that pg_control names")]
    NotTheCheckpoint { at: Lsn },
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl ImportError {
    /// What the caller may do.
    pub fn kind(&self) -> ErrorKind {
        match self {
            ImportError::NoPostgres { .. } | ImportError::NoAccount { .. } => {
                ErrorKind::Unavailable
            }
            ImportError::Step { .. } | ImportError::Read { .. } | ImportError::Io(_) => {
                ErrorKind::Io
            }
            ImportError::NotShutDown | ImportError::MinimalWal | ImportError::OtherMajor { .. } => {
                ErrorKind::Invalid
            }
            ImportError::BadFile { .. } | ImportError::NotTheCheckpoint { .. } => {
                ErrorKind::Corrupt
            }
            ImportError::Control(error) => error.kind(),
            ImportError::RelMap(error) => error.kind(),
            ImportError::Wal { source, .. } => source.kind(),
            ImportError::Engine(error) => error.kind(),
        }
    }
}
