//! The control state of a timeline at one LSN, read from the engine.

use bytes::Bytes;
use treering_engine::{EngineError, Timeline};
use treering_pgfmt::{
    control::ControlFile,
    wal::state::{STATE_FIELDS, StateError},
};
use treering_types::{ControlField, ErrorKind, Key, Lsn};

pub use treering_pgfmt::wal::state::ClusterState;

/// Why the control state cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error(transparent)]
    State(#[from] StateError),
    #[error("no control file was imported")]
    NoControl,
    #[error(transparent)]
    Control(#[from] treering_pgfmt::control::ControlError),
}

impl LoadError {
    pub fn kind(&self) -> ErrorKind {
        match self {
            LoadError::Engine(error) => error.kind(),
            LoadError::State(error) => error.kind(),
            LoadError::NoControl => ErrorKind::Corrupt,
            LoadError::Control(error) => error.kind(),
        }
    }
}

/// Every counter and setting as of `lsn`.
///
/// # Errors
/// Those of reads; a field that cannot be decoded.
pub fn load(timeline: &Timeline, lsn: Lsn) -> Result<ClusterState, LoadError> {
    let mut state = ClusterState::default();
    for field in STATE_FIELDS {
        if let Some(bytes) = value(timeline, field, lsn)? {
            state.load(field, &bytes)?;
        }
    }
    Ok(state)
}

/// The control file as it was imported.
///
/// # Errors
/// Those of reads; a file that is missing or does not pass its checks.
pub fn imported_control(timeline: &Timeline, lsn: Lsn) -> Result<ControlFile, LoadError> {
    let bytes = value(timeline, ControlField::Imported, lsn)?.ok_or(LoadError::NoControl)?;
    Ok(ControlFile::parse(&bytes)?)
}

fn value(timeline: &Timeline, field: ControlField, lsn: Lsn) -> Result<Option<Bytes>, EngineError> {
    Ok(timeline.get_value(Key::control(field), lsn)?.map(|(_, bytes)| bytes))
}
