//! How the compute starts: `pg_control` and `treering.start`.

use serde::{Deserialize, Serialize};
use treering_engine::{Boundary, Timeline};
use treering_pgfmt::{
    control::{ControlFile, ControlParameters},
    wal::{encode::record_start_after, state::Parameters},
};
use treering_types::{Fork, Lsn, RelTag, TenantId, TimelineId};

use crate::cluster_state::ClusterState;

/// The last file of the archive.
pub const START_FILE: &str = "treering.start";

/// What whoever unpacks the archive must know to start Postgres on it. JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    pub tenant_id: TenantId,
    pub timeline_id: TimelineId,
    /// The pages are as of here: a record end. WAL continues here.
    pub lsn: Lsn,
    /// Start of the record that ends there: `xl_prev` of the synthetic checkpoint.
    pub prev_record_lsn: Lsn,
    /// Start of the synthetic checkpoint record: what `pg_control` points at.
    pub checkpoint_lsn: Lsn,
    pub pg_tli: u32,
    pub system_id: u64,
    /// Postgres's major.
    pub pg_version: u32,
    /// Lines of the history file: earlier timelines, oldest first, each with the LSN where history leaves it.
    pub history: Vec<(u32, Lsn)>,
    /// Transactions prepared and not resolved: at least so many must be allowed.
    pub max_prepared_transactions_needed: u32,
    /// Settings that a follower must not go below.
    pub max_connections: u32,
    pub max_worker_processes: u32,
    pub max_wal_senders: u32,
    pub max_locks_per_transaction: u32,
    pub data_checksums: bool,
    /// Relations with pages that this version cannot redo; Postgres refuses to read those pages.
    pub unreadable: Vec<UnreadableRelation>,
    /// Only in a lazy backup.
    pub lazy: Option<LazyFiles>,
}

/// Files that are not in the archive: to be fetched page by page.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LazyFiles {
    pub relations: Vec<LazyRelation>,
    pub slru_segments: Vec<LazySegment>,
}

/// A relation fork. As JSON an array, for there may be a hundred thousand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "LazyRelationRow", into = "LazyRelationRow")]
pub struct LazyRelation {
    /// Names the files.
    pub name: RelTag,
    /// The fork whose pages they get: the init fork for the main fork of an unlogged relation.
    pub pages_of: Fork,
    pub blocks: u32,
}

/// Tablespace, database, relation, fork, the fork whose pages it gets, blocks.
type LazyRelationRow = (u32, u32, u32, Fork, Fork, u32);

impl From<LazyRelationRow> for LazyRelation {
    fn from((tablespace, database, relation, fork, pages_of, blocks): LazyRelationRow) -> Self {
        LazyRelation { name: RelTag { tablespace, database, relation, fork }, pages_of, blocks }
    }
}

impl From<LazyRelation> for LazyRelationRow {
    fn from(file: LazyRelation) -> Self {
        let RelTag { tablespace, database, relation, fork } = file.name;
        (tablespace, database, relation, fork, file.pages_of, file.blocks)
    }
}

/// A whole SLRU segment file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LazySegment {
    /// Below the data directory.
    pub path: String,
    /// As page requests name it.
    pub kind: u8,
    pub segment: u32,
    pub pages: u32,
}

/// A relation that is not whole in the archive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnreadableRelation {
    pub relation: RelTag,
    /// Below the data directory, without segment number.
    pub path: String,
    /// How many pages.
    pub blocks: u32,
    /// The first page's error.
    pub error: String,
}

/// The description and the control file of a start at `at` (Unix time `time`).
pub(super) fn describe(
    timeline: &Timeline,
    at: Boundary,
    state: &ClusterState,
    mut control: ControlFile,
    time: i64,
) -> (Start, Vec<u8>) {
    let identity = timeline.identity();
    let history = timeline.ancestry();
    let parameters = &state.parameters;
    let checkpoint_lsn = record_start_after(at.end);
    // The first start of a branch is where its log leaves the parent's.
    let is_fork = at.end == identity.start_lsn;
    let parent_tli = history.last().map(|(tli, _)| *tli).filter(|_| is_fork);
    let prev_tli = parent_tli.unwrap_or(identity.pg_tli);
    let checkpoint = state.checkpoint_for_start(identity.pg_tli, prev_tli, checkpoint_lsn, time);
    control.set_parameters(&in_control(parameters));
    control.shut_down_at(checkpoint_lsn, &checkpoint.encode(), time);
    let start = Start {
        tenant_id: identity.tenant,
        timeline_id: identity.timeline,
        lsn: at.end,
        prev_record_lsn: at.start,
        checkpoint_lsn,
        pg_tli: identity.pg_tli,
        system_id: identity.system_id,
        pg_version: identity.pg_major.number(),
        history,
        max_prepared_transactions_needed: 0,
        max_connections: parameters.max_connections,
        max_worker_processes: parameters.max_worker_processes,
        max_wal_senders: parameters.max_wal_senders,
        max_locks_per_transaction: parameters.max_locks_per_xact,
        data_checksums: parameters.data_checksums,
        unreadable: Vec::new(),
        lazy: None,
    };
    (start, control.encode().to_vec())
}

fn in_control(parameters: &Parameters) -> ControlParameters {
    ControlParameters {
        wal_level: parameters.wal_level,
        wal_log_hints: parameters.wal_log_hints,
        max_connections: parameters.max_connections,
        max_worker_processes: parameters.max_worker_processes,
        max_wal_senders: parameters.max_wal_senders,
        max_prepared_xacts: parameters.max_prepared_xacts,
        max_locks_per_xact: parameters.max_locks_per_xact,
        track_commit_timestamp: parameters.track_commit_timestamp,
    }
}
