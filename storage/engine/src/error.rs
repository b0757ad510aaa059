//! What can go wrong in the engine, as facts, and what a caller may do about it.

use std::{io, path::PathBuf, sync::Arc};

use treering_pgfmt::redo::{RedoError, RedoReason};
use treering_types::{ErrorKind, Key, Lsn, RelTag, TenantId, TimelineId};

/// Short name for results of the engine.
pub type Result<T, E = EngineError> = std::result::Result<T, E>;

/// Every operating error of the engine. Cheap to clone: one failure may answer many callers.
#[derive(Debug, Clone, thiserror::Error)]
pub enum EngineError {
    #[error("tenant {0} does not exist")]
    NoTenant(TenantId),
    #[error("tenant {0} exists already with other properties")]
    TenantExists(TenantId),
    #[error("timeline {0} does not exist")]
    NoTimeline(TimelineId),
    #[error("timeline {0} exists already with other properties")]
    TimelineExists(TimelineId),
    /// A tenant has one root: Postgres's timeline 1.
    #[error("tenant {tenant} has a root timeline already: {root}")]
    RootExists { tenant: TenantId, root: TimelineId },
    /// The timeline is still being imported, or is not any more.
    #[error("timeline {timeline} is {}being imported", if *importing { "still " } else { "not " })]
    Importing { timeline: TimelineId, importing: bool },
    #[error("timeline {timeline} has branches: {children:?}")]
    HasChildren { timeline: TimelineId, children: Vec<TimelineId> },
    /// Ask again once the timeline has ingested `wanted`.
    #[error("timeline {timeline} has no data up to {wanted} yet: it stands at {last_record_lsn}")]
    NotYet { timeline: TimelineId, wanted: Lsn, last_record_lsn: Lsn },
    /// Before the first position that the root of this history knows.
    #[error("{wanted} lies before the history of timeline {timeline}, which begins at {start_lsn}")]
    BeforeHistory { timeline: TimelineId, wanted: Lsn, start_lsn: Lsn },
    /// Gc has been there. `earliest_time`: stamp of the last commit or abort at `earliest`, µs since 2000-01-01.
    #[error("{wanted} on timeline {timeline} is no longer kept: history begins at {earliest}")]
    BelowCutOff { timeline: TimelineId, wanted: Lsn, earliest: Lsn, earliest_time: Option<i64> },
    #[error("relation {rel} does not exist at {lsn}")]
    NoRelation { rel: RelTag, lsn: Lsn },
    #[error("block {block} of relation {rel} is past its end at {lsn}: it has {blocks} blocks")]
    NoBlock { rel: RelTag, block: u32, blocks: u32, lsn: Lsn },
    #[error("{key:?} does not exist at {lsn}")]
    NoPage { key: Key, lsn: Lsn },
    #[error("{0:?} is no page key")]
    NotAPage(Key),
    /// A layer that is not on the local disk, and cannot be had now.
    #[error("{} cannot be fetched: {cause}", path.display())]
    NotFetched { path: PathBuf, cause: String },
    /// It has to be unarchived first.
    #[error("timeline {0} is archived")]
    Archived(TimelineId),
    /// Bytes that fail their check: which file, where, and what is wrong.
    #[error("{} is corrupt at offset {offset}: {what}", path.display())]
    Corrupt { path: PathBuf, offset: u64, what: String },
    /// A stored value that cannot be decoded.
    #[error("the value of {key:?} at {lsn} on timeline {timeline} is corrupt: {what}")]
    CorruptValue { timeline: TimelineId, key: Key, lsn: Lsn, what: String },
    #[error(transparent)]
    Redo(#[from] RedoError),
    /// Written by a later version of Treering.
    #[error("{} has format version {found}; this version knows up to {known}", path.display())]
    NewerFormat { path: PathBuf, found: u32, known: u32 },
    /// A batch that breaks the writer's rules.
    #[error("timeline {timeline}: {what} (at {lsn})")]
    BadBatch { timeline: TimelineId, lsn: Lsn, what: &'static str },
    /// An earlier sync or publish failed: what is on disk is not known until the engine is opened again.
    #[error("{what} is read-only until the engine is opened again: {cause}")]
    Latched { what: String, cause: String },
    #[error("the engine is stopping")]
    Shutdown,
    #[error("{} {}: {source}", action, path.display())]
    Io { action: &'static str, path: PathBuf, source: Arc<io::Error> },
}

impl EngineError {
    /// What the caller may do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            EngineError::NoTenant(_)
            | EngineError::NoTimeline(_)
            | EngineError::NoRelation { .. }
            | EngineError::NoBlock { .. }
            | EngineError::NoPage { .. } => ErrorKind::NotFound,
            EngineError::TenantExists(_)
            | EngineError::TimelineExists(_)
            | EngineError::RootExists { .. }
            | EngineError::Importing { .. }
            | EngineError::Archived(_)
            | EngineError::HasChildren { .. }
            | EngineError::NewerFormat { .. } => ErrorKind::Conflict,
            EngineError::NotYet { .. } => ErrorKind::NotYet,
            EngineError::BeforeHistory { .. } | EngineError::BelowCutOff { .. } => ErrorKind::Gone,
            EngineError::NotAPage(_) | EngineError::BadBatch { .. } => ErrorKind::Invalid,
            EngineError::Redo(error) => redo_kind(&error.reason),
            EngineError::Corrupt { .. } | EngineError::CorruptValue { .. } => ErrorKind::Corrupt,
            EngineError::NotFetched { .. } => ErrorKind::Unavailable,
            EngineError::Latched { .. } | EngineError::Io { .. } => ErrorKind::Io,
            EngineError::Shutdown => ErrorKind::Shutdown,
        }
    }

    /// Wraps an operating-system error with what was done to which file.
    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Self {
        EngineError::Io { action, path: path.into(), source: Arc::new(source) }
    }

    pub(crate) fn corrupt(path: impl Into<PathBuf>, offset: u64, what: impl Into<String>) -> Self {
        EngineError::Corrupt { path: path.into(), offset, what: what.into() }
    }
}

/// A page that this version cannot redo is there, but not for us: another version may serve it.
fn redo_kind(reason: &RedoReason) -> ErrorKind {
    match reason {
        RedoReason::Unhandled => ErrorKind::Unavailable,
        RedoReason::NoBase
        | RedoReason::Malformed(_)
        | RedoReason::Short { .. }
        | RedoReason::OutsidePage { .. }
        | RedoReason::NoPointer { .. } => ErrorKind::Corrupt,
    }
}
