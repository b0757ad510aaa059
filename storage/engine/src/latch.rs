//! A latch that closes once: after a failed sync nobody may write until the engine is opened again.

use std::sync::OnceLock;

use crate::error::{EngineError, Result};

/// Open until the first failure; then it gives that failure's words to everybody.
#[derive(Default)]
pub(crate) struct Latch(OnceLock<String>);

impl Latch {
    /// # Errors
    /// Latched, once closed.
    pub fn check(&self, what: impl FnOnce() -> String) -> Result<()> {
        match self.0.get() {
            None => Ok(()),
            Some(cause) => Err(EngineError::Latched { what: what(), cause: cause.clone() }),
        }
    }

    /// Closes it for good and gives the cause back.
    pub fn close(&self, cause: EngineError) -> EngineError {
        if self.0.set(cause.to_string()).is_ok() {
            tracing::error!(%cause, "latched: no more writes until the engine is opened again");
        }
        cause
    }
}
