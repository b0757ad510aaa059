//! `/v1/tenant/{tenant}/timeline`

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{Json, extract::State, http::StatusCode};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use treering_engine::TimeAnswer;
use treering_types::{Lsn, TimelineId};

use super::{
    Shared,
    body::{Asked, Body, TenantPath, TimelinePath},
    problem::Problem,
    views::{self, CreatedView, LeaseView, TimelineView, UnhandledView},
};
use crate::{clock, error::ServiceError, live::LiveTimeline, service::boundary_at};

/// How long a new branch waits for its LSN to be ingested.
const WAIT_MS_DEFAULT: u64 = 10_000;
const WAIT_MS_MAX: u64 = 300_000;

/// Without an ancestor: a new cluster, imported as the tenant's root.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NewTimeline {
    /// Drawn at random when absent.
    new_timeline_id: Option<TimelineId>,
    ancestor_timeline_id: Option<TimelineId>,
    /// Rounded down to a record end; what is ingested now when absent.
    ancestor_start_lsn: Option<Lsn>,
    wait_ms: Option<u64>,
}

pub(super) async fn create(
    State(service): Shared,
    TenantPath(tenant): TenantPath,
    Body(new): Body<NewTimeline>,
) -> Result<(StatusCode, Json<CreatedView>), Problem> {
    let timer = Instant::now();
    let id = new.new_timeline_id.unwrap_or_else(|| TimelineId(rand::random()));
    let patience = patience(new.wait_ms)?;
    let Some(ancestor) = new.ancestor_timeline_id else {
        if new.ancestor_start_lsn.is_some() {
            let message = "an LSN needs an ancestor_timeline_id";
            return Err(Problem::invalid(Some("ancestor_start_lsn"), message));
        }
        let live = service.create_root(tenant, id).await?;
        let timeline = TimelineView::from(&*live);
        let view = CreatedView { timeline, requested_lsn: None, unhandled: Vec::new() };
        return Ok((StatusCode::CREATED, Json(view)));
    };
    let at = new.ancestor_start_lsn;
    let made = service.branch(tenant, id, ancestor, at, patience).await?;
    let live = Arc::clone(&made.live);
    let unhandled = service
        .blocking(move || views::unhandled(&live.timeline, live.timeline.start_lsn()))
        .await?;
    service.metrics.branches_created.inc();
    service.metrics.branch_create_seconds.observe(timer.elapsed().as_secs_f64());
    let timeline = TimelineView::from(&*made.live);
    let view = CreatedView { timeline, requested_lsn: Some(made.asked), unhandled };
    Ok((StatusCode::CREATED, Json(view)))
}

fn patience(wait_ms: Option<u64>) -> Result<Duration, Problem> {
    match wait_ms.unwrap_or(WAIT_MS_DEFAULT) {
        wait_ms @ 0..=WAIT_MS_MAX => Ok(Duration::from_millis(wait_ms)),
        _ => Err(Problem::invalid(Some("wait_ms"), format!("at most {WAIT_MS_MAX}"))),
    }
}

pub(super) async fn list(
    State(service): Shared,
    TenantPath(tenant): TenantPath,
) -> Result<Json<Vec<TimelineView>>, Problem> {
    let mut found = Vec::new();
    for timeline in service.engine.tenant(tenant)?.timelines() {
        // One that is deleted meanwhile is left out.
        if let Ok(live) = service.live(tenant, timeline.id()) {
            found.push(TimelineView::from(&*live));
        }
    }
    Ok(Json(found))
}

pub(super) async fn detail(
    State(service): Shared,
    TimelinePath(tenant, timeline): TimelinePath,
) -> Result<Json<TimelineView>, Problem> {
    let live = service.live(tenant, timeline)?;
    let mut view = TimelineView::from(&*live);
    let leases = live.leases.list(Instant::now());
    view.leases = Some(leases.into_iter().map(LeaseView::from).collect());
    let count = service.blocking(move || {
        live.timeline.unreadable(live.timeline.last_record_lsn()).map(|found| found.len())
    });
    // Not known while an ancestor catches up after a restart.
    view.unhandled_relations = count.await.ok();
    Ok(Json(view))
}

pub(super) async fn delete(
    State(service): Shared,
    TimelinePath(tenant, timeline): TimelinePath,
) -> Result<StatusCode, Problem> {
    service.delete_timeline(tenant, timeline).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AskTimestamp {
    timestamp: Timestamp,
    /// Answer only once this much was ingested: what is not ingested yet may be stamped before `timestamp`.
    #[serde(default)]
    wait_lsn: Lsn,
}

/// Where a time lies.
#[derive(Debug, Serialize)]
pub(super) struct LsnByTimestamp {
    lsn: Lsn,
    /// `present`: the last record end before the first commit or abort stamped later. `future`: nothing ingested is
    /// stamped later, and the LSN is what is ingested. (A time before history is an error.)
    kind: &'static str,
    timestamp: Timestamp,
}

pub(super) async fn lsn_by_timestamp(
    State(service): Shared,
    TimelinePath(tenant, timeline): TimelinePath,
    Asked(asked): Asked<AskTimestamp>,
) -> Result<Json<LsnByTimestamp>, Problem> {
    let live = service.live(tenant, timeline)?;
    let time = views::pg_time(asked.timestamp);
    let timestamp = asked.timestamp;
    service.wait_for(&live, asked.wait_lsn, Duration::from_millis(WAIT_MS_DEFAULT)).await?;
    let found = service.blocking(move || find_lsn(&live, time)).await?;
    let (lsn, kind) = found;
    Ok(Json(LsnByTimestamp { lsn, kind, timestamp }))
}

fn find_lsn(live: &LiveTimeline, time: i64) -> Result<(Lsn, &'static str), ServiceError> {
    // Before the first stamp there is nothing to find, and a time before the cluster existed is outside its history.
    let mut root = &live.timeline;
    while let Some((ancestor, _)) = root.ancestor() {
        root = ancestor;
    }
    let before_history = |start_lsn| {
        ServiceError::Engine(treering_engine::EngineError::BeforeHistory {
            timeline: live.id(),
            wanted: Lsn::INVALID,
            start_lsn,
        })
    };
    if time < root.identity().created_at {
        return Err(before_history(root.start_lsn()));
    }
    match live.timeline.lsn_before_time(time)? {
        TimeAnswer::At(lsn) => Ok((lsn, "present")),
        TimeAnswer::NothingLater(lsn) => Ok((lsn, "future")),
        TimeAnswer::BeforeHistory(start_lsn) => Err(before_history(start_lsn)),
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AskLsn {
    lsn: Lsn,
}

/// When an LSN was written.
#[derive(Debug, Serialize)]
pub(super) struct TimestampByLsn {
    lsn: Lsn,
    /// The latest commit or abort at or before it; absent before the first.
    timestamp: Option<Timestamp>,
}

pub(super) async fn timestamp_by_lsn(
    State(service): Shared,
    TimelinePath(tenant, timeline): TimelinePath,
    Asked(AskLsn { lsn }): Asked<AskLsn>,
) -> Result<Json<TimestampByLsn>, Problem> {
    let live = service.live(tenant, timeline)?;
    let stamp = service.blocking(move || live.timeline.time_at(lsn)).await?;
    Ok(Json(TimestampByLsn { lsn, timestamp: stamp.and_then(views::timestamp) }))
}

/// The record that ends at or before an LSN.
#[derive(Debug, Serialize)]
pub(super) struct RecordBoundary {
    lsn: Lsn,
    end: Lsn,
    start: Lsn,
}

pub(super) async fn record_boundary(
    State(service): Shared,
    TimelinePath(tenant, timeline): TimelinePath,
    Asked(AskLsn { lsn }): Asked<AskLsn>,
) -> Result<Json<RecordBoundary>, Problem> {
    let live = service.live(tenant, timeline)?;
    let found = service.blocking(move || boundary_at(&live, lsn)).await?;
    Ok(Json(RecordBoundary { lsn, end: found.end, start: found.start }))
}

/// Makes everything that is ingested durable.
pub(super) async fn flush(
    State(service): Shared,
    TimelinePath(tenant, timeline): TimelinePath,
) -> Result<Json<TimelineView>, Problem> {
    let live = service.live(tenant, timeline)?;
    let flushed = Arc::clone(&live);
    service.blocking(move || flushed.timeline.flush()).await?;
    Ok(Json(TimelineView::from(&*live)))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AskCompact {
    /// Everything into one run, whatever it costs.
    #[serde(default)]
    force: bool,
}

/// Merges the layer files that are worth merging. Answers when that is done.
pub(super) async fn compact(
    State(service): Shared,
    TimelinePath(tenant, timeline): TimelinePath,
    Body(AskCompact { force }): Body<AskCompact>,
) -> Result<Json<TimelineView>, Problem> {
    let live = service.live(tenant, timeline)?;
    let compacted = Arc::clone(&live);
    service.blocking(move || compacted.timeline.compact(force)).await?;
    Ok(Json(TimelineView::from(&*live)))
}

/// Moves the cut-off to the beginning of the window, and merges what that makes worth merging.
pub(super) async fn gc(
    State(service): Shared,
    TimelinePath(tenant, timeline): TimelinePath,
) -> Result<Json<TimelineView>, Problem> {
    let live = service.live(tenant, timeline)?;
    let collected = Arc::clone(&live);
    service.blocking(move || collected.timeline.gc(clock::now())).await?;
    Ok(Json(TimelineView::from(&*live)))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AskMaybeLsn {
    lsn: Option<Lsn>,
}

/// Relations with pages that this version cannot redo, at an LSN (default: what is ingested).
pub(super) async fn unhandled(
    State(service): Shared,
    TimelinePath(tenant, timeline): TimelinePath,
    Asked(AskMaybeLsn { lsn }): Asked<AskMaybeLsn>,
) -> Result<Json<Vec<UnhandledView>>, Problem> {
    let live = service.live(tenant, timeline)?;
    let lsn = lsn.unwrap_or_else(|| live.timeline.last_record_lsn());
    Ok(Json(service.blocking(move || views::unhandled(&live.timeline, lsn)).await?))
}

/// What a scrub found.
#[derive(Debug, Serialize)]
pub(super) struct Verified {
    findings: Vec<String>,
}

/// Reads every block of every layer and names what is wrong.
pub(super) async fn verify(
    State(service): Shared,
    TimelinePath(tenant, timeline): TimelinePath,
) -> Result<Json<Verified>, Problem> {
    let live = service.live(tenant, timeline)?;
    let report = service.blocking(move || Ok::<_, ServiceError>(live.timeline.verify())).await?;
    let findings = report.findings.iter().map(|finding| finding.error.to_string()).collect();
    Ok(Json(Verified { findings }))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AskArchive {
    /// Once this much is ingested.
    #[serde(default)]
    wait_lsn: Lsn,
}

/// Everything into the object store, and nothing on the local disk. Answers when it is so.
pub(super) async fn archive(
    State(service): Shared,
    TimelinePath(tenant, timeline): TimelinePath,
    Asked(AskArchive { wait_lsn }): Asked<AskArchive>,
) -> Result<Json<TimelineView>, Problem> {
    let live = service.live(tenant, timeline)?;
    if !live.timeline.is_archived() {
        service.wait_for(&live, wait_lsn, Duration::from_millis(WAIT_MS_DEFAULT)).await?;
    }
    service.archive_timeline(tenant, timeline).await?;
    Ok(Json(TimelineView::from(&*service.live(tenant, timeline)?)))
}

/// The reverse; layers come when they are read.
pub(super) async fn unarchive(
    State(service): Shared,
    TimelinePath(tenant, timeline): TimelinePath,
) -> Result<Json<TimelineView>, Problem> {
    service.unarchive_timeline(tenant, timeline).await?;
    Ok(Json(TimelineView::from(&*service.live(tenant, timeline)?)))
}
