//! What a request can fail with, whichever face it came through.

use std::{io, time::Duration};

use treering_engine::EngineError;
use treering_remote::RemoteError;
use treering_types::{ErrorKind, Lsn, TenantId, TimelineId};
use treering_wire::WireError;

use crate::{cluster_state::LoadError, import::ImportError};

/// A failed request.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error(transparent)]
    Remote(#[from] RemoteError),
    /// Done here, and not yet in the object store.
    #[error(
        "tenant {tenant}: the object store did not take it within {waited:?}{}; ask again",
        .failure.as_ref().map(|failure| format!(": {failure}")).unwrap_or_default()
    )]
    NotPublished { tenant: TenantId, waited: Duration, failure: Option<String> },
    #[error("archiving needs an object store")]
    NoObjectStore,
    #[error(transparent)]
    Import(#[from] ImportError),
    #[error("control state: {0}")]
    Load(#[from] LoadError),
    /// WAL up to there did not come in time.
    #[error(
        "timeline {timeline} has ingested WAL up to {last_record_lsn}, {wanted} did not come within {waited:?}{}",
        .ingest_error.as_ref().map(|error| format!("; ingest: {error}")).unwrap_or_default()
    )]
    WaitTimedOut {
        timeline: TimelineId,
        wanted: Lsn,
        last_record_lsn: Lsn,
        waited: Duration,
        ingest_error: Option<String>,
    },
    #[error(
        "{lsn} is not the end of a WAL record on timeline {timeline}{}",
        .before.map(|end| format!(": the last one before it is {end}")).unwrap_or_default()
    )]
    NoRecordEnd { timeline: TimelineId, lsn: Lsn, before: Option<Lsn> },
    #[error("{lsn} lies before {start_lsn}, where timeline {timeline} begins")]
    BeforeStart { timeline: TimelineId, lsn: Lsn, start_lsn: Lsn },
    /// The request itself is wrong.
    #[error("{message}")]
    Invalid { field: Option<String>, message: String, hint: Option<String> },
    #[error("too many requests of this kind at once")]
    Busy,
    #[error("a timeline has {most} lease holders at most")]
    TooManyLeases { most: usize },
    #[error("the pageserver is stopping")]
    Shutdown,
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl ServiceError {
    /// A request that is wrong in one field.
    pub fn invalid(field: &str, message: impl Into<String>) -> ServiceError {
        ServiceError::Invalid { field: Some(field.to_owned()), message: message.into(), hint: None }
    }

    /// What the caller may do.
    pub fn kind(&self) -> ErrorKind {
        match self {
            ServiceError::Engine(error) => error.kind(),
            ServiceError::Remote(error) => error.kind(),
            ServiceError::NoObjectStore => ErrorKind::Conflict,
            ServiceError::NotPublished { .. } => ErrorKind::Unavailable,
            ServiceError::Import(error) => error.kind(),
            ServiceError::Load(error) => error.kind(),
            ServiceError::WaitTimedOut { .. } => ErrorKind::NotYet,
            ServiceError::BeforeStart { .. } => ErrorKind::Gone,
            ServiceError::NoRecordEnd { .. } | ServiceError::Invalid { .. } => ErrorKind::Invalid,
            ServiceError::Busy | ServiceError::TooManyLeases { .. } => ErrorKind::Busy,
            ServiceError::Shutdown => ErrorKind::Shutdown,
            ServiceError::Wire(error) => error.kind(),
            ServiceError::Io(_) => ErrorKind::Io,
        }
    }
}
