//! Why a compute cannot be had, as its callers must tell them apart.

use treering_types::ErrorKind;

/// An error of the agent, with what a caller may do about it.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct AgentError {
    pub kind: ErrorKind,
    pub message: String,
}

impl AgentError {
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> AgentError {
        AgentError { kind, message: message.into() }
    }
}

impl From<anyhow::Error> for AgentError {
    fn from(error: anyhow::Error) -> AgentError {
        match error.downcast::<AgentError>() {
            Ok(named) => named,
            Err(error) => AgentError::new(ErrorKind::Unavailable, format!("{error:#}")),
        }
    }
}
