//! The agent's admin API, as control uses it.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::{Path, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde::Deserialize;
use serde_json::{Value, json};
use treering_consensus::{Configuration, Generation};
use treering_types::{ErrorKind, NodeId, TenantId, TimelineId};

use crate::{agent::Agent, endpoint::Shown, error::AgentError};

type App = State<Arc<Agent>>;
type Timeline = Path<(TenantId, TimelineId)>;
type Answer<T> = Result<Json<T>, AgentError>;

pub fn router(agent: Arc<Agent>) -> Router {
    let timeline = "/v1/tenant/{tenant}/timeline/{timeline}";
    Router::new()
        .route("/healthz", get(|| async { "ok" }))
        .route("/readyz", get(|| async { "ok" }))
        .route("/v1/computes", get(list))
        .route(&format!("{timeline}/barrier"), post(barrier))
        .route(&format!("{timeline}/elect"), post(elect))
        .route(&format!("{timeline}/compute"), get(show).delete(remove))
        .route(&format!("{timeline}/compute/start"), post(start))
        .route(&format!("{timeline}/compute/stop"), post(stop))
        .with_state(agent)
}

async fn list(State(agent): App) -> Json<Vec<Shown>> {
    Json(agent.list())
}

/// Runs to its end even when the one who asked has gone: a start or stop cut in half helps nobody.
async fn whole<T: Send + 'static>(
    work: impl Future<Output = Result<T, AgentError>> + Send + 'static,
) -> Result<T, AgentError> {
    tokio::spawn(work).await.map_err(anyhow::Error::from)?
}

async fn barrier(State(agent): App, Path((tenant, timeline)): Timeline) -> Answer<Value> {
    let commit_lsn = whole(async move { agent.barrier(tenant, timeline).await }).await?;
    Ok(Json(json!({"commit_lsn": commit_lsn})))
}

/// Who is to decide, as the safekeepers' API has it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Members {
    generation: u64,
    members: Vec<NodeId>,
    #[serde(default)]
    new_members: Option<Vec<NodeId>>,
}

async fn elect(
    State(agent): App,
    Path((tenant, timeline)): Timeline,
    Json(members): Json<Members>,
) -> Answer<Value> {
    let Members { generation, members, new_members } = members;
    let configuration = Configuration::new(Generation(generation), members, new_members)
        .map_err(|error| AgentError::new(ErrorKind::Invalid, error.to_string()))?;
    whole(async move { agent.elect_under(tenant, timeline, configuration).await }).await?;
    Ok(Json(json!({})))
}

async fn show(State(agent): App, Path((tenant, timeline)): Timeline) -> Json<Shown> {
    Json(agent.endpoint(tenant, timeline).shown())
}

async fn start(State(agent): App, Path((tenant, timeline)): Timeline) -> Answer<Shown> {
    let endpoint = agent.endpoint(tenant, timeline);
    let started = endpoint.clone();
    whole(async move { agent.start(&started, None).await }).await?;
    Ok(Json(endpoint.shown()))
}

async fn stop(State(agent): App, Path((tenant, timeline)): Timeline) -> Answer<Shown> {
    let endpoint = agent.endpoint(tenant, timeline);
    let stopped = endpoint.clone();
    whole(async move { stopped.stop().await }).await?;
    Ok(Json(endpoint.shown()))
}

async fn remove(State(agent): App, Path((tenant, timeline)): Timeline) -> Answer<Value> {
    whole(async move { agent.remove(tenant, timeline).await }).await?;
    Ok(Json(json!({})))
}

impl IntoResponse for AgentError {
    fn into_response(self) -> Response {
        let (status, code) = match self.kind {
            ErrorKind::NotFound => (StatusCode::NOT_FOUND, "not_found"),
            ErrorKind::Conflict | ErrorKind::Fenced => (StatusCode::CONFLICT, "conflict"),
            ErrorKind::Invalid => (StatusCode::BAD_REQUEST, "invalid"),
            ErrorKind::Gone => (StatusCode::GONE, "gone"),
            _ => (StatusCode::SERVICE_UNAVAILABLE, "unavailable"),
        };
        (status, Json(json!({"code": code, "message": self.message}))).into_response()
    }
}
