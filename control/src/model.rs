//! What is recorded, and what the REST API shows.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use treering_types::{Lsn, NodeId, TenantId, TimelineId};

use crate::{error::ApiError, members::Members};

/// The project every command means unless told otherwise.
pub const DEFAULT_PROJECT: &str = "default";
/// The branch a project is born with.
pub const ROOT_BRANCH: &str = "main";

/// A project as recorded.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Project {
    pub id: String,
    pub tenant_id: TenantId,
    pub pg_version: u32,
    pub default_branch: String,
    pub created_at: Timestamp,
    /// The login handed to users.
    pub role: String,
    pub password: String,
}

/// A branch as recorded.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Branch {
    pub name: String,
    pub timeline_id: TimelineId,
    pub parent: Option<String>,
    /// Where it was forked from its parent; the root's is where its history begins.
    pub branch_lsn: Lsn,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
    /// The user stopped it: connecting does not wake it.
    pub stopped: bool,
    /// Kept in the object store alone; it has to be unarchived before it is used.
    #[serde(default)]
    pub archived: bool,
    /// A deletion is under way; only `reconcile` and `delete` may still touch it.
    pub deleting: bool,
}

/// A branch as shown.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct BranchView {
    pub name: String,
    pub project: String,
    pub parent: Option<String>,
    pub state: String,
    #[serde(rename = "default")]
    pub is_default: bool,
    pub tenant_id: TenantId,
    pub timeline_id: TimelineId,
    pub branch_lsn: Lsn,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
    /// Why it is in its state, when there is something to say.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reason: Option<String>,
    /// Process id of the running postmaster.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub pid: Option<i32>,
}

/// Phases of a branch creation and what was resolved.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Created {
    #[serde(flatten)]
    pub branch: BranchView,
    /// The LSN asked for or found, before rounding down to a record end.
    pub requested_lsn: Lsn,
    /// The time asked for, if one was.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub requested_time: Option<Timestamp>,
    pub phases: Vec<Phase>,
    /// Relations of the new branch with records this version cannot redo.
    #[serde(default)]
    pub unreadable_relations: Vec<serde_json::Value>,
}

/// One step of an operation and how long it took.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Phase {
    pub name: String,
    pub ms: f64,
}

/// What the client port needs to know about a branch name.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Resolved {
    pub project: String,
    pub branch: String,
    pub tenant_id: TenantId,
    pub timeline_id: TimelineId,
    pub pg_version: u32,
    pub stopped: bool,
    pub role: String,
    pub password: String,
}

/// How to connect to a branch.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Connection {
    pub uri: String,
    pub host: String,
    pub port: u16,
    pub role: String,
    pub password: String,
    pub database: String,
    pub options: String,
}

/// The log of a deleted timeline, at a safekeeper that was away when it was deleted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftLog {
    pub node_id: NodeId,
    pub tenant_id: TenantId,
    pub timeline_id: TimelineId,
}

impl LeftLog {
    pub fn key(&self) -> String {
        format!("{}/{}/{}", self.node_id, self.tenant_id, self.timeline_id)
    }
}

/// What has become of one log's members.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ChangedLog {
    pub project: String,
    pub branch: String,
    /// Who keeps it now; absent for a branch that has no log yet.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub members: Option<Members>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub error: Option<ApiError>,
}

/// A safekeeper as shown.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SafekeeperView {
    pub node_id: NodeId,
    pub address: String,
    /// `ready`, or `down` with a reason.
    pub state: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reason: Option<String>,
    /// Room on the disk that holds its logs.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub free_bytes: Option<u64>,
    /// What it holds of its timelines' logs.
    pub logs: Vec<MemberView>,
}

/// A safekeeper's copy of one timeline's log, as shown.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MemberView {
    pub tenant_id: TenantId,
    pub timeline_id: TimelineId,
    pub term: u64,
    pub flush_lsn: Lsn,
    pub commit_lsn: Lsn,
    /// The oldest position that it holds.
    pub trim_lsn: Lsn,
    /// Committed log that it lacks, as far as the safekeepers that answer know.
    #[serde(default)]
    pub lag_bytes: u64,
    /// Why it refuses everything, when it does.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub latched: Option<String>,
}

/// Branch names: lower-case letters, digits, hyphens; a letter first; at most 63.
///
/// # Errors
/// Says which rule the name breaks.
pub fn check_branch_name(name: &str) -> Result<(), ApiError> {
    let rule = "use 1 to 63 lower-case letters, digits and hyphens, a letter first";
    let bad = |why: &str| {
        Err(ApiError::invalid("name", format!("branch name \"{name}\" {why}")).hint(rule))
    };
    if name.is_empty() {
        return bad("is empty");
    }
    if name.len() > 63 {
        return bad("is longer than 63 characters");
    }
    if !name.starts_with(|c: char| c.is_ascii_lowercase()) {
        return bad("does not start with a lower-case letter");
    }
    match name.chars().find(|c| !(c.is_ascii_lowercase() || c.is_ascii_digit() || *c == '-')) {
        Some(c) => bad(&format!("contains {c:?}")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for good in ["a", "ci-pr-12-abc", &"x".repeat(63)] {
            assert!(check_branch_name(good).is_ok(), "{good}");
        }
        for bad in ["", "1a", "-a", "A", "a_b", "a b", "ä", "a/b", "a@b", &"x".repeat(64)] {
            assert!(check_branch_name(bad).is_err(), "{bad}");
        }
    }
}
