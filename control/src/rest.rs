//! The REST API: paths to [`Branches`], nothing more.

use std::{future::Future, sync::Arc};

use axum::{
    Json, Router,
    extract::{FromRequest, Path, Query, Request, State, rejection::JsonRejection},
    http::StatusCode,
    routing::{get, post, put},
};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};
use treering_types::{NodeId, TimelineId};

use crate::{
    branches::{Branches, CreateBranch},
    error::ApiError,
    model::{
        BranchView, ChangedLog, Connection, Created, DEFAULT_PROJECT, Resolved, SafekeeperView,
    },
};

type App = State<Arc<Branches>>;
type Answer<T> = Result<Json<T>, ApiError>;

/// All routes.
pub fn router(branches: Arc<Branches>) -> Router {
    let branch = "/v1/projects/{project}/branches/{branch}";
    Router::new()
        .route("/healthz", get(|| async { "ok" }))
        .route("/readyz", get(|| async { "ok" }))
        .route("/v1/version", get(version))
        .route("/v1/resolve", get(resolve))
        .route("/v1/safekeepers", get(safekeepers))
        .route("/v1/safekeepers/members", put(change_members))
        .route("/v1/projects/{project}/branches", get(list).post(create))
        .route(branch, get(show).delete(delete))
        .route(&format!("{branch}/start"), post(start))
        .route(&format!("{branch}/stop"), post(stop))
        .route(&format!("{branch}/archive"), post(archive))
        .route(&format!("{branch}/unarchive"), post(unarchive))
        .route(&format!("{branch}/connection"), get(connection))
        .fallback(|| async { ApiError::not_found("there is no such path in this API") })
        .with_state(branches)
}

/// A JSON body; what is wrong with it becomes our error object, unknown fields by name.
struct Body<T>(T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = ApiError;
    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        match Json::<T>::from_request(request, state).await {
            Ok(Json(body)) => Ok(Body(body)),
            Err(JsonRejection::JsonDataError(error)) => Err(data_error(&error.body_text())),
            Err(error) => Err(ApiError::new("invalid", error.body_text())),
        }
    }
}

/// serde says ``unknown field `ttl`, expected one of ...``: the name goes into `field`.
fn data_error(text: &str) -> ApiError {
    let error = ApiError::new("invalid", text);
    match text.split('`').nth(1) {
        Some(field) => ApiError { field: Some(field.to_owned()), ..error },
        None => error,
    }
}

/// Runs a change to its end, also when the client that asked for it goes away.
async fn to_the_end<T: Send + 'static>(
    change: impl Future<Output = Result<T, ApiError>> + Send + 'static,
) -> Result<T, ApiError> {
    tokio::spawn(change).await.map_err(ApiError::internal)?
}

async fn version() -> Json<Value> {
    Json(json!({"version": env!("CARGO_PKG_VERSION")}))
}

#[derive(Deserialize)]
struct ResolveQuery {
    #[serde(default)]
    project: Option<String>,
    #[serde(default)]
    branch: String,
    /// Asks by timeline instead of by name.
    #[serde(default)]
    timeline_id: Option<TimelineId>,
}

async fn resolve(State(branches): App, Query(query): Query<ResolveQuery>) -> Answer<Resolved> {
    let project = query.project.as_deref().unwrap_or(DEFAULT_PROJECT);
    match query.timeline_id {
        Some(timeline) => branches.resolve_timeline(project, timeline).map(Json),
        None => branches.resolve(project, &query.branch).map(Json),
    }
}

async fn safekeepers(State(branches): App) -> Json<Vec<SafekeeperView>> {
    Json(branches.safekeepers().await)
}

/// Who is to keep all logs.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    members: Vec<NodeId>,
}

async fn change_members(
    State(branches): App,
    Body(Wanted { members }): Body<Wanted>,
) -> Answer<Vec<ChangedLog>> {
    to_the_end(async move { branches.change_members(&members).await }).await.map(Json)
}

async fn list(State(branches): App, Path(project): Path<String>) -> Answer<Vec<BranchView>> {
    branches.list(&project).await.map(Json)
}

async fn create(
    State(branches): App,
    Path(project): Path<String>,
    Body(request): Body<CreateBranch>,
) -> Result<(StatusCode, Json<Created>), ApiError> {
    let made = to_the_end(async move { branches.create(&project, request).await }).await?;
    Ok((StatusCode::CREATED, Json(made)))
}

async fn show(
    State(branches): App,
    Path((project, name)): Path<(String, String)>,
) -> Answer<BranchView> {
    branches.get(&project, &name).await.map(Json)
}

async fn delete(
    State(branches): App,
    Path((project, name)): Path<(String, String)>,
) -> Answer<Value> {
    to_the_end(async move { branches.delete(&project, &name).await }).await?;
    Ok(Json(json!({})))
}

async fn start(
    State(branches): App,
    Path((project, name)): Path<(String, String)>,
) -> Answer<BranchView> {
    to_the_end(async move { branches.start(&project, &name).await }).await.map(Json)
}

async fn stop(
    State(branches): App,
    Path((project, name)): Path<(String, String)>,
) -> Answer<BranchView> {
    to_the_end(async move { branches.stop(&project, &name).await }).await.map(Json)
}

async fn archive(
    State(branches): App,
    Path((project, name)): Path<(String, String)>,
) -> Answer<BranchView> {
    to_the_end(async move { branches.archive(&project, &name).await }).await.map(Json)
}

async fn unarchive(
    State(branches): App,
    Path((project, name)): Path<(String, String)>,
) -> Answer<BranchView> {
    to_the_end(async move { branches.unarchive(&project, &name).await }).await.map(Json)
}

async fn connection(
    State(branches): App,
    Path((project, name)): Path<(String, String)>,
) -> Answer<Connection> {
    branches.connection(&project, &name).map(Json)
}
