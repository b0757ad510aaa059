//! What the client side asks of the rest of the agent: a compute that runs, and word of what the quorum has.
//!
//! These traits are the whole of what [`crate::route`] and [`crate::relay`] know about computes.

use std::{fmt, future::Future, path::PathBuf, pin::Pin, str::FromStr, sync::Arc};

use treering_types::{ErrorKind, Lsn};
use treering_wire::backend::{Report, sqlstate};

/// A future behind a pointer: what lets these traits be used as `dyn`.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The branch a connection gets that names none.
pub const DEFAULT_BRANCH: &str = "main";

/// A branch's name as users write it: 1 to 63 lower-case letters, digits and hyphens, starting with a letter.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct BranchName(String);

/// Text that cannot name a branch.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "\"{0}\" is not a branch name: 1 to 63 lower-case letters, digits and hyphens, starting with a letter"
)]
pub struct BranchNameError(pub String);

impl FromStr for BranchName {
    type Err = BranchNameError;
    fn from_str(text: &str) -> Result<BranchName, BranchNameError> {
        let starts = text.starts_with(|c: char| c.is_ascii_lowercase());
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        match starts && text.len() <= 63 && text.bytes().all(allowed) {
            true => Ok(BranchName(text.to_owned())),
            false => Err(BranchNameError(text.to_owned())),
        }
    }
}

impl BranchName {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for BranchName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where a running compute is reached.
#[derive(Clone)]
pub struct Target {
    /// The socket file itself, as `/run/x/.s.PGSQL.5432`.
    pub socket: PathBuf,
    /// Its backends take their clients' own sockets ([`crate::relay::hand`]).
    pub takes_clients: bool,
    pub gate: Arc<dyn CommitGate>,
}

/// Brings computes up.
pub trait Wake: Send + Sync + 'static {
    /// Returns once the branch's compute takes connections; starts it if it does not run. Callers at the same time
    /// share one start. The relay runs this to its end even when its client has gone.
    ///
    /// # Errors
    /// Told to the client, see [`WakeError`].
    fn ensure_running<'a>(
        &'a self,
        branch: &'a BranchName,
    ) -> BoxFuture<'a, Result<Target, WakeError>>;

    /// The socket file of the compute whose backend this process is, for a cancel request.
    fn socket_of_backend(&self, pid: i32) -> Option<PathBuf>;

    /// The branch of a connection that names none. The answer must be a valid name.
    fn default_branch(&self) -> &str {
        DEFAULT_BRANCH
    }
}

/// Why a client cannot be let in.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum WakeError {
    #[error("branch \"{branch}\" does not exist")]
    UnknownBranch { branch: BranchName },
    /// Starting takes too long, stopped by its user, stopping: trying again may help.
    #[error("branch \"{branch}\" is not available: {reason}")]
    NotNow { branch: BranchName, reason: String },
    /// Something it needs is lost: storage that does not answer, a compute that fell over.
    #[error("connection to branch \"{branch}\" is lost: {reason}")]
    Lost { branch: BranchName, reason: String },
}

impl WakeError {
    /// What a caller may do.
    pub fn kind(&self) -> ErrorKind {
        match self {
            WakeError::UnknownBranch { .. } => ErrorKind::NotFound,
            WakeError::NotNow { .. } => ErrorKind::Busy,
            WakeError::Lost { .. } => ErrorKind::Unavailable,
        }
    }

    /// What the client is told.
    pub fn report(&self) -> Report {
        let sqlstate = match self {
            WakeError::UnknownBranch { .. } => sqlstate::INVALID_CATALOG_NAME,
            WakeError::NotNow { .. } => sqlstate::CANNOT_CONNECT_NOW,
            WakeError::Lost { .. } => sqlstate::CONNECTION_FAILURE,
        };
        Report::fatal(sqlstate, self.to_string())
    }
}

/// One compute's commits, as its proposer sees them.
pub trait CommitGate: Send + Sync + 'static {
    /// What the quorum has. Never goes back. Cheap: no lock that is held across I/O.
    fn commit_lsn(&self) -> Lsn;

    /// The compute's `pg_current_wal_flush_lsn()`, asked after the call: it covers every commit record that a backend
    /// had written before.
    ///
    /// # Errors
    /// The compute does not answer; the relay then drops its client.
    fn flush_lsn(&self) -> BoxFuture<'_, Result<Lsn, GateError>>;

    /// Returns once `commit_lsn() >= lsn`.
    ///
    /// # Errors
    /// It never will be: the proposer is deposed or closed.
    fn wait_for(&self, lsn: Lsn) -> BoxFuture<'_, Result<(), GateError>>;

    /// True when the compute's log shows a warning (SQLSTATE 01000) of this backend since the last call. A client can
    /// hide the warning from its own connection (`client_min_messages`), not from the log. The answer must take in
    /// everything the backend logged before it sent what the relay has just read.
    ///
    /// Asked before every CommandComplete and ReadyForQuery goes out, so it must be cheap.
    fn drained_cancelled_waits(&self, backend_pid: i32) -> bool;
}

/// The gate cannot vouch for commits any more.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("commits of this compute can no longer be confirmed: {0}")]
pub struct GateError(pub String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn branch_names() {
        for good in ["main", "a", "pr-1234", &"x".repeat(63)] {
            assert!(good.parse::<BranchName>().is_ok(), "{good}");
        }
        for bad in ["", "1a", "-a", "Main", "a_b", "a.b", "é", "a b", &"x".repeat(64)] {
            assert!(bad.parse::<BranchName>().is_err(), "{bad}");
        }
    }
}
