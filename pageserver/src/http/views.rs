//! What the API answers with.

use jiff::Timestamp;
use serde::Serialize;
use treering_engine::{TenantInfo, Timeline, Unreadable};
use treering_types::{Lsn, TenantId, TimelineId};
use treering_wire::{PG_EPOCH_UNIX_SECONDS, PgTime};

use crate::{leases::Lease, live::LiveTimeline};

/// A tenant.
#[derive(Debug, Serialize)]
pub(super) struct TenantView {
    tenant_id: TenantId,
    pg_version: u32,
    /// Text: it does not fit a JavaScript number.
    system_id: String,
    root_timeline_id: Option<TimelineId>,
    timelines: usize,
}

impl From<TenantInfo> for TenantView {
    fn from(info: TenantInfo) -> TenantView {
        TenantView {
            tenant_id: info.id,
            pg_version: info.pg_major.number(),
            system_id: info.system_id.to_string(),
            root_timeline_id: info.root,
            timelines: info.timelines,
        }
    }
}

/// A timeline with every watermark.
#[derive(Debug, Serialize)]
pub(super) struct TimelineView {
    tenant_id: TenantId,
    timeline_id: TimelineId,
    ancestor_timeline_id: Option<TimelineId>,
    ancestor_lsn: Option<Lsn>,
    pg_tli: u32,
    /// Earlier Postgres timelines, oldest first, each with the LSN where history leaves it.
    pg_ancestors: Vec<(u32, Lsn)>,
    pg_version: u32,
    system_id: String,
    created_at: Option<Timestamp>,
    /// Where its own log begins.
    start_lsn: Lsn,
    /// The safekeeper's, as last heard; absent before that.
    commit_lsn: Option<Lsn>,
    last_record_lsn: Lsn,
    disk_consistent_lsn: Lsn,
    /// In the object store; absent without one.
    #[serde(skip_serializing_if = "Option::is_none")]
    remote_consistent_lsn: Option<Lsn>,
    /// Committed and not ingested.
    ingest_lag_bytes: u64,
    ingesting: bool,
    ingest_error: Option<String>,
    /// The lowest LSN from which on everything can be read, ancestors included.
    earliest_lsn: Lsn,
    /// Below it its own history is given up, but for branches and leases.
    cut_off_lsn: Lsn,
    layers: usize,
    layer_bytes: u64,
    /// Of these, bytes on the local disk.
    local_layer_bytes: u64,
    /// Runs of layers: how many a read may have to look at.
    runs: usize,
    /// What the next merge would read, and about how much nobody can ask for any more.
    compaction_due_bytes: u64,
    garbage_bytes: u64,
    open_bytes: usize,
    frozen_layers: usize,
    frozen_bytes: usize,
    children: usize,
    archived: bool,
    /// Why nothing more is written until the pageserver is started again.
    latched: Option<String>,
    /// Relations with pages that this version cannot redo; only in details.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) unhandled_relations: Option<usize>,
    /// Who reads where; only in details.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) leases: Option<Vec<LeaseView>>,
}

impl From<&LiveTimeline> for TimelineView {
    fn from(live: &LiveTimeline) -> TimelineView {
        let info = live.timeline.info();
        let commit_lsn = live.commit_lsn();
        TimelineView {
            tenant_id: info.tenant,
            timeline_id: info.timeline,
            ancestor_timeline_id: info.ancestor.map(|(ancestor, _)| ancestor),
            ancestor_lsn: info.ancestor.map(|(_, lsn)| lsn),
            pg_tli: info.pg_tli,
            pg_ancestors: live.timeline.ancestry(),
            pg_version: info.pg_major.number(),
            system_id: info.system_id.to_string(),
            created_at: timestamp(info.created_at),
            start_lsn: info.start_lsn,
            commit_lsn: commit_lsn.is_valid().then_some(commit_lsn),
            last_record_lsn: info.last_record_lsn,
            disk_consistent_lsn: info.disk_consistent_lsn,
            remote_consistent_lsn: info.remote_consistent_lsn,
            ingest_lag_bytes: commit_lsn.bytes_since(info.last_record_lsn).unwrap_or(0),
            ingesting: live.is_ingesting(),
            ingest_error: live.ingest_status().error,
            earliest_lsn: info.earliest_lsn,
            cut_off_lsn: info.cut_off,
            layers: info.layers,
            layer_bytes: info.layer_bytes,
            local_layer_bytes: info.local_layer_bytes,
            runs: info.runs,
            compaction_due_bytes: info.compaction_due_bytes,
            garbage_bytes: info.garbage_bytes,
            open_bytes: info.open_bytes,
            frozen_layers: info.frozen_layers,
            frozen_bytes: info.frozen_bytes,
            children: info.children,
            archived: live.timeline.is_archived(),
            latched: info.latched,
            unhandled_relations: None,
            leases: None,
        }
    }
}

/// An LSN lease.
#[derive(Debug, Serialize)]
pub(super) struct LeaseView {
    /// A compute, by the name that its agent gives it.
    holder: String,
    lsn: Lsn,
    /// Until it runs out; whole seconds, rounded down.
    seconds_left: u64,
}

impl From<Lease> for LeaseView {
    fn from(lease: Lease) -> LeaseView {
        LeaseView {
            holder: lease.holder.to_string(),
            lsn: lease.lsn,
            seconds_left: lease.left.as_secs(),
        }
    }
}

/// A relation with pages that this version cannot redo.
#[derive(Debug, Serialize)]
pub(super) struct UnhandledView {
    /// `tablespace/database/relfilenumber`, with the fork's suffix.
    relation: String,
    tablespace: u32,
    database: u32,
    relfilenumber: u32,
    /// Resource manager and info of the latest such record, and where it ends.
    resource_manager: &'static str,
    rmid: u8,
    info: u8,
    last_lsn: Lsn,
    records: u32,
}

impl From<Unreadable> for UnhandledView {
    fn from(found: Unreadable) -> UnhandledView {
        UnhandledView {
            relation: found.rel.to_string(),
            tablespace: found.rel.tablespace,
            database: found.rel.database,
            relfilenumber: found.rel.relation,
            resource_manager: treering_pgfmt::redo::rmgr_name(found.what.rmid),
            rmid: found.what.rmid,
            info: found.what.info,
            last_lsn: found.lsn,
            records: found.what.count,
        }
    }
}

/// Relations of `timeline` that are not whole at `lsn`.
pub(super) fn unhandled(
    timeline: &Timeline,
    lsn: Lsn,
) -> treering_engine::Result<Vec<UnhandledView>> {
    Ok(timeline.unreadable(lsn)?.into_iter().map(UnhandledView::from).collect())
}

/// A new branch.
#[derive(Debug, Serialize)]
pub(super) struct CreatedView {
    #[serde(flatten)]
    pub(super) timeline: TimelineView,
    /// What was asked, before it was rounded down to a record end; absent for an empty timeline.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) requested_lsn: Option<Lsn>,
    pub(super) unhandled: Vec<UnhandledView>,
}

/// µs since 2000-01-01 as a point in time; `None` outside the years that can be written.
pub(super) fn timestamp(time: PgTime) -> Option<Timestamp> {
    let micros = time.checked_add(PG_EPOCH_UNIX_SECONDS * 1_000_000)?;
    Timestamp::from_microsecond(micros).ok()
}

/// The reverse, rounded down.
pub(super) fn pg_time(timestamp: Timestamp) -> PgTime {
    timestamp.as_microsecond() - PG_EPOCH_UNIX_SECONDS * 1_000_000
}
