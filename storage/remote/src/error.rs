//! What can go wrong between a tenant and its object store.

use std::{io, path::PathBuf, sync::Arc};

use treering_types::{ErrorKind, TenantId};

use crate::generation::Generation;

/// Short name for results of this crate.
pub type Result<T, E = RemoteError> = std::result::Result<T, E>;

/// Every operating error. Cheap to clone: one failure may answer many callers.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RemoteError {
    #[error("object {name} exists already")]
    Exists { name: String },
    #[error("object {name} does not exist")]
    Missing { name: String },
    /// The store refused or did not answer in time. Whether a write happened is not known.
    #[error("object store, {action} {name}: {cause}")]
    Unavailable { action: &'static str, name: String, cause: String },
    /// Bytes that fail their check.
    #[error("object {name} is corrupt: {what}")]
    Corrupt { name: String, what: String },
    #[error("object {name} has format version {found}; this version knows up to {known}")]
    Newer { name: String, found: u32, known: u32 },
    /// Another pageserver has claimed the tenant since.
    #[error("tenant {tenant} was taken over from generation {generation}")]
    Fenced { tenant: TenantId, generation: Generation },
    /// The tenant has been deleted in the store.
    #[error("tenant {tenant} is deleted in the object store")]
    Deleted { tenant: TenantId },
    /// Nobody can say which of the two is newer; nothing was changed.
    #[error(
        "tenant {tenant} is in the object store and on the local disk, and this disk never held it there: \
         remove one of the two"
    )]
    TwoTruths { tenant: TenantId },
    #[error("{action} {}: {source}", path.display())]
    Local { action: &'static str, path: PathBuf, source: Arc<io::Error> },
    #[error("{0}")]
    Url(String),
    #[error("stopping")]
    Stopping,
}

impl RemoteError {
    /// What the caller may do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            RemoteError::Exists { .. } | RemoteError::TwoTruths { .. } => ErrorKind::Conflict,
            RemoteError::Newer { .. } => ErrorKind::Conflict,
            RemoteError::Missing { .. } | RemoteError::Deleted { .. } => ErrorKind::NotFound,
            RemoteError::Unavailable { .. } => ErrorKind::Unavailable,
            RemoteError::Corrupt { .. } => ErrorKind::Corrupt,
            RemoteError::Fenced { .. } => ErrorKind::Fenced,
            RemoteError::Local { .. } => ErrorKind::Io,
            RemoteError::Url(_) => ErrorKind::Invalid,
            RemoteError::Stopping => ErrorKind::Shutdown,
        }
    }

    pub(crate) fn local(action: &'static str, path: impl Into<PathBuf>, error: io::Error) -> Self {
        RemoteError::Local { action, path: path.into(), source: Arc::new(error) }
    }

    pub(crate) fn corrupt(name: &str, what: impl Into<String>) -> Self {
        RemoteError::Corrupt { name: name.to_owned(), what: what.into() }
    }

    pub(crate) fn missing(name: &str) -> Self {
        RemoteError::Missing { name: name.to_owned() }
    }
}
