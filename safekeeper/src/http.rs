//! The admin API, for operators, control and the node agent.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::{Path, Query, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post, put},
};
use serde::{Deserialize, Serialize};
use treering_consensus::{AdminRequest, AdminResponse, Configuration, Generation};
use treering_types::{ErrorKind, Lsn, NodeId, TenantId, Term, TimelineId};

use crate::{
    error::StoreError,
    metrics::Metrics,
    timeline::{Request, Timeline},
    timelines::Timelines,
};

/// Most bytes of WAL in one answer: one segment.
const WAL_BYTES_MAX: u64 = treering_types::WAL_SEGMENT_SIZE;

#[derive(Clone)]
pub(crate) struct Api {
    pub(crate) timelines: Arc<Timelines>,
    pub(crate) metrics: Arc<Metrics>,
}

pub(crate) fn router(api: Api) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/timelines", get(list))
        .route("/v1/tenant/{tenant}/timeline/{timeline}", get(detail).delete(delete))
        .route("/v1/tenant/{tenant}/timeline/{timeline}/wal", get(wal))
        .route("/v1/tenant/{tenant}/timeline/{timeline}/horizon", put(horizon))
        .route(
            "/v1/tenant/{tenant}/timeline/{timeline}/configuration",
            get(read_configuration).put(accept_configuration),
        )
        .route(
            "/v1/tenant/{tenant}/timeline/{timeline}/configuration/promise",
            post(promise_generation),
        )
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(|| async { "ok\n" }))
        .route("/metrics", get(metrics))
        .fallback(|| async { Problem::not_found("no such path") })
        .with_state(api)
}

/// A timeline as the API shows it.
#[derive(Serialize)]
struct TimelineInfo {
    tenant_id: TenantId,
    timeline_id: TimelineId,
    term: Term,
    last_log_term: Term,
    start_lsn: Lsn,
    flush_lsn: Lsn,
    commit_lsn: Lsn,
    /// The oldest position held here.
    trim_lsn: Lsn,
    /// Before this it is in the archive; absent without one.
    #[serde(skip_serializing_if = "Option::is_none")]
    archived_lsn: Option<Lsn>,
    /// Before this the pageserver has made what it makes of it durable; 0/0 until that is known here.
    remote_consistent_lsn: Lsn,
    /// How far the pageserver has read, likewise.
    ingested_lsn: Lsn,
    pg_tli: u32,
    /// As text: it does not fit a JSON number.
    system_id: String,
    pg_version: u32,
    configuration: Members,
    /// Why it refuses everything, when it does.
    latched: Option<String>,
    /// Why the last append was refused for lack of room; absent once one is taken.
    #[serde(skip_serializing_if = "Option::is_none")]
    refusing: Option<String>,
}

impl TimelineInfo {
    fn of(timeline: &Timeline) -> TimelineInfo {
        let (identity, status) = (timeline.identity(), timeline.status());
        TimelineInfo {
            tenant_id: identity.tenant,
            timeline_id: identity.timeline,
            term: status.term,
            last_log_term: status.last_log_term,
            start_lsn: status.start_lsn,
            flush_lsn: status.flush_lsn,
            commit_lsn: status.commit_lsn,
            trim_lsn: status.trim_lsn,
            archived_lsn: status.archived_lsn,
            remote_consistent_lsn: status.horizon_lsn,
            ingested_lsn: status.ingested_lsn,
            pg_tli: identity.pg_tli,
            system_id: identity.system_id.to_string(),
            pg_version: identity.pg_major,
            configuration: Members::of(&status.configuration),
            latched: status.latched,
            refusing: status.refusing,
        }
    }
}

/// The safekeeper as a whole.
#[derive(Serialize)]
struct StatusInfo {
    node_id: NodeId,
    timelines: usize,
    /// Those that could not be opened.
    broken_timelines: usize,
    disk: DiskInfo,
    /// Where the log is archived; absent if nowhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    archive: Option<String>,
}

#[derive(Serialize)]
struct DiskInfo {
    /// What the log takes, and may take.
    used_bytes: u64,
    limit_bytes: u64,
    /// What the file system has left; absent when it cannot be asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    free_bytes: Option<u64>,
}

async fn status(State(api): State<Api>) -> Json<StatusInfo> {
    let (timelines, room) = (&api.timelines, api.timelines.room());
    Json(StatusInfo {
        node_id: timelines.node(),
        timelines: timelines.list().len(),
        broken_timelines: timelines.broken(),
        disk: DiskInfo {
            used_bytes: room.used(),
            limit_bytes: room.limit(),
            free_bytes: timelines.free_bytes().ok(),
        },
        archive: timelines.archive().map(|archive| archive.describe()),
    })
}

async fn list(State(api): State<Api>) -> Json<Vec<TimelineInfo>> {
    Json(api.timelines.list().iter().map(|timeline| TimelineInfo::of(timeline)).collect())
}

type Ids = Path<(String, String)>;

async fn detail(State(api): State<Api>, ids: Ids) -> Result<Json<TimelineInfo>, Problem> {
    let (tenant, timeline) = parse_ids(&ids)?;
    Ok(Json(TimelineInfo::of(&*api.timelines.get(tenant, timeline)?)))
}

async fn delete(State(api): State<Api>, ids: Ids) -> Result<StatusCode, Problem> {
    let (tenant, timeline) = parse_ids(&ids)?;
    api.timelines.delete(tenant, timeline).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WalQuery {
    from: Lsn,
    to: Lsn,
    /// Refuse unless the log is still this term's after the bytes were read.
    term: Option<u64>,
    /// Refuse unless it is all known to be committed here.
    #[serde(default)]
    committed: bool,
}

/// Raw bytes `from..to`, page headers included, up to `flush_lsn`; at most 16 MiB.
async fn wal(
    State(api): State<Api>,
    ids: Ids,
    query: Result<Query<WalQuery>, axum::extract::rejection::QueryRejection>,
) -> Result<Response, Problem> {
    let (tenant, timeline) = parse_ids(&ids)?;
    let Query(WalQuery { from, to, term, committed }) =
        query.map_err(|error| Problem::invalid(None, error.body_text()))?;
    match to.bytes_since(from) {
        None => return Err(Problem::invalid(Some("to"), format!("{to} is before {from}"))),
        Some(bytes) if bytes > WAL_BYTES_MAX => {
            let text = format!("{bytes} bytes asked for, at most {WAL_BYTES_MAX} are given");
            return Err(Problem::invalid(Some("to"), text));
        }
        Some(_) => {}
    }
    let timeline = api.timelines.get(tenant, timeline)?;
    let commit_lsn = timeline.status().commit_lsn;
    if committed && to > commit_lsn {
        return Err(StoreError::NotYet { lsn: to, end: commit_lsn }.into());
    }
    let bytes = timeline.read(from, to, term.map(Term)).await?;
    Ok(([(header::CONTENT_TYPE, "application/octet-stream")], bytes).into_response())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HorizonBody {
    lsn: Lsn,
}

/// The pageserver's word that it needs no WAL before `lsn` any more: it streams from one member, and tells all.
async fn horizon(
    State(api): State<Api>,
    ids: Ids,
    body: Body<HorizonBody>,
) -> Result<StatusCode, Problem> {
    let (tenant, timeline) = parse_ids(&ids)?;
    let Json(HorizonBody { lsn }) =
        body.map_err(|error| Problem::invalid(None, error.body_text()))?;
    api.timelines
        .get(tenant, timeline)?
        .send(Request::Pageserver { ingested: lsn, horizon: lsn })
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Who decides, as JSON; `docs/formats/quorum.md`.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Members {
    /// Odd, or even with new members; 0 for none that was agreed on.
    generation: u64,
    members: Vec<NodeId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    new_members: Option<Vec<NodeId>>,
}

impl Members {
    fn of(configuration: &Configuration) -> Members {
        Members {
            generation: configuration.generation().0,
            members: configuration.members().to_vec(),
            new_members: configuration.new_members().map(<[NodeId]>::to_vec),
        }
    }
}

/// Where a member stands, to who changes the quorum's members.
#[derive(Serialize)]
struct MemberState {
    /// Whether what was asked for has been done, durably.
    granted: bool,
    promised: u64,
    configuration: Members,
    term: Term,
    last_log_term: Term,
    flush_lsn: Lsn,
    commit_lsn: Lsn,
}

/// 200 when granted; 409 with the same body when something newer is promised or followed.
async fn administer(api: &Api, ids: &Ids, request: AdminRequest) -> Result<Response, Problem> {
    let (tenant, timeline) = parse_ids(ids)?;
    let answer = api.timelines.get(tenant, timeline)?.administer(request).await?;
    let AdminResponse { granted, promised, configuration, .. } = answer;
    let state = MemberState {
        granted,
        promised: promised.0,
        configuration: Members::of(&configuration),
        term: answer.term,
        last_log_term: answer.last_log_term,
        flush_lsn: answer.flush_lsn,
        commit_lsn: answer.commit_lsn,
    };
    let status = if granted { StatusCode::OK } else { StatusCode::CONFLICT };
    Ok((status, Json(state)).into_response())
}

async fn read_configuration(State(api): State<Api>, ids: Ids) -> Result<Response, Problem> {
    administer(&api, &ids, AdminRequest::Read).await
}

type Body<T> = Result<Json<T>, axum::extract::rejection::JsonRejection>;

async fn accept_configuration(
    State(api): State<Api>,
    ids: Ids,
    body: Body<Members>,
) -> Result<Response, Problem> {
    let Json(body) = body.map_err(|error| Problem::invalid(None, error.body_text()))?;
    let Members { generation, members, new_members } = body;
    let configuration = Configuration::new(Generation(generation), members, new_members)
        .map_err(|error| Problem::invalid(None, error.to_string()))?;
    administer(&api, &ids, AdminRequest::Accept(configuration)).await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PromiseBody {
    generation: u64,
}

async fn promise_generation(
    State(api): State<Api>,
    ids: Ids,
    body: Body<PromiseBody>,
) -> Result<Response, Problem> {
    let Json(body) = body.map_err(|error| Problem::invalid(None, error.body_text()))?;
    administer(&api, &ids, AdminRequest::Promise(Generation(body.generation))).await
}

async fn metrics(State(api): State<Api>) -> Response {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], api.metrics.render(&api.timelines)).into_response()
}

fn parse_ids(Path((tenant, timeline)): &Ids) -> Result<(TenantId, TimelineId), Problem> {
    let bad =
        |field, error: treering_types::IdError| Problem::invalid(Some(field), error.to_string());
    let tenant = tenant.parse().map_err(|error| bad("tenant_id", error))?;
    Ok((tenant, timeline.parse().map_err(|error| bad("timeline_id", error))?))
}

/// An error as the API shows it.
#[derive(Serialize)]
struct Problem {
    #[serde(skip)]
    status: StatusCode,
    code: &'static str,
    message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    field: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<String>,
}

impl Problem {
    fn new(status: StatusCode, code: &'static str, message: String) -> Problem {
        Problem { status, code, message, field: None, hint: None }
    }

    fn invalid(field: Option<&'static str>, message: String) -> Problem {
        Problem { field, ..Problem::new(StatusCode::BAD_REQUEST, "invalid", message) }
    }

    fn not_found(message: &str) -> Problem {
        Problem::new(StatusCode::NOT_FOUND, "not_found", message.to_owned())
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Problem {
        let (status, code) = match error.kind() {
            ErrorKind::NotFound => (StatusCode::NOT_FOUND, "not_found"),
            ErrorKind::Gone => (StatusCode::GONE, "gone"),
            ErrorKind::NotYet => (StatusCode::CONFLICT, "not_yet"),
            ErrorKind::Conflict => (StatusCode::CONFLICT, "conflict"),
            ErrorKind::Fenced => (StatusCode::CONFLICT, "fenced"),
            ErrorKind::Busy => (StatusCode::SERVICE_UNAVAILABLE, "busy"),
            ErrorKind::Unavailable => (StatusCode::SERVICE_UNAVAILABLE, "unavailable"),
            ErrorKind::Shutdown => (StatusCode::SERVICE_UNAVAILABLE, "shutdown"),
            ErrorKind::Corrupt => (StatusCode::INTERNAL_SERVER_ERROR, "corrupt"),
            ErrorKind::Io => (StatusCode::INTERNAL_SERVER_ERROR, "io"),
            ErrorKind::Invalid => (StatusCode::BAD_REQUEST, "invalid"),
        };
        Problem::new(status, code, error.to_string())
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        (self.status, Json(self)).into_response()
    }
}
