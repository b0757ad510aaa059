//! Relation forks as Postgres names them on disk.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A relation fork (`ForkNumber`, `common/relpath.h`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[repr(u8)]
pub enum Fork {
    Main = 0,
    Fsm = 1,
    VisibilityMap = 2,
    Init = 3,
}

/// A byte that names no fork.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0} is no relation fork")]
pub struct ForkError(pub u8);

impl Fork {
    /// All forks, in number order.
    pub const ALL: [Fork; 4] = [Fork::Main, Fork::Fsm, Fork::VisibilityMap, Fork::Init];

    /// The suffix of the fork's file name: empty for main, else `_fsm`, `_vm`, `_init`.
    pub const fn file_suffix(self) -> &'static str {
        match self {
            Fork::Main => "",
            Fork::Fsm => "_fsm",
            Fork::VisibilityMap => "_vm",
            Fork::Init => "_init",
        }
    }
}

impl TryFrom<u8> for Fork {
    type Error = ForkError;
    fn try_from(number: u8) -> Result<Fork, ForkError> {
        match number {
            0 => Ok(Fork::Main),
            1 => Ok(Fork::Fsm),
            2 => Ok(Fork::VisibilityMap),
            3 => Ok(Fork::Init),
            other => Err(ForkError(other)),
        }
    }
}

/// One fork of one relation file set (`RelFileNode` / `RelFileLocator` plus fork).
///
/// `tablespace` 1663 is `pg_default`, 1664 `pg_global` (with `database` 0). `relation` is the relfilenumber,
/// not the catalog oid.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RelTag {
    pub tablespace: u32,
    pub database: u32,
    pub relation: u32,
    pub fork: Fork,
}

impl RelTag {
    /// The same relation's other fork.
    pub const fn with_fork(self, fork: Fork) -> RelTag {
        RelTag { fork, ..self }
    }
}

impl fmt::Display for RelTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let suffix = self.fork.file_suffix();
        write!(f, "{}/{}/{}{suffix}", self.tablespace, self.database, self.relation)
    }
}

impl fmt::Debug for RelTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
