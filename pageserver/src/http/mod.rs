//! The admin API: tenants and timelines for operators and the control service. JSON in and out; LSNs as text, times in
//! RFC 3339. See `docs/operations` for the list; errors are described in [`problem`].

mod body;
mod problem;
mod tenant;
mod timeline;
mod views;

use std::{future::Future, sync::Arc, time::Instant};

use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde_json::json;
use tokio::net::TcpListener;

use crate::service::Service;
use problem::Problem;

type Shared = State<Arc<Service>>;

/// Serves until the service stops.
pub async fn run(service: Arc<Service>, listener: TcpListener) -> std::io::Result<()> {
    let cancel = service.cancel.clone();
    let stop = async move { cancel.cancelled().await };
    serve(listener, router(service), stop).await
}

async fn serve(
    listener: TcpListener,
    router: Router,
    stop: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    axum::serve(listener, router).with_graceful_shutdown(stop).await
}

/// Every route.
pub fn router(service: Arc<Service>) -> Router {
    Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/version", get(version))
        .route("/metrics", get(metrics))
        .route("/v1/tenant", get(tenant::list).post(tenant::create))
        .route("/v1/tenant/{tenant}", get(tenant::detail).delete(tenant::delete))
        .route("/v1/tenant/{tenant}/size", get(tenant::size))
        .route("/v1/tenant/{tenant}/timeline", get(timeline::list).post(timeline::create))
        .route(
            "/v1/tenant/{tenant}/timeline/{timeline}",
            get(timeline::detail).delete(timeline::delete),
        )
        .route(
            "/v1/tenant/{tenant}/timeline/{timeline}/lsn_by_timestamp",
            get(timeline::lsn_by_timestamp),
        )
        .route(
            "/v1/tenant/{tenant}/timeline/{timeline}/timestamp_by_lsn",
            get(timeline::timestamp_by_lsn),
        )
        .route(
            "/v1/tenant/{tenant}/timeline/{timeline}/record_boundary",
            get(timeline::record_boundary),
        )
        .route("/v1/tenant/{tenant}/timeline/{timeline}/flush", post(timeline::flush))
        .route("/v1/tenant/{tenant}/timeline/{timeline}/compact", post(timeline::compact))
        .route("/v1/tenant/{tenant}/timeline/{timeline}/gc", post(timeline::gc))
        .route("/v1/tenant/{tenant}/timeline/{timeline}/unhandled", get(timeline::unhandled))
        .route("/v1/tenant/{tenant}/timeline/{timeline}/archive", post(timeline::archive))
        .route("/v1/tenant/{tenant}/timeline/{timeline}/unarchive", post(timeline::unarchive))
        .route("/v1/tenant/{tenant}/timeline/{timeline}/verify", post(timeline::verify))
        .fallback(async || Problem::not_found("no such path"))
        .method_not_allowed_fallback(async || Problem::method_not_allowed())
        .with_state(service)
}

async fn healthz() -> &'static str {
    "ok\n"
}

/// Ready: the engine is open, which it is once we listen.
async fn readyz(State(service): Shared) -> Response {
    match service.cancel.is_cancelled() {
        true => (StatusCode::SERVICE_UNAVAILABLE, "stopping\n").into_response(),
        false => "ready\n".into_response(),
    }
}

async fn version() -> Json<serde_json::Value> {
    Json(json!({ "version": env!("CARGO_PKG_VERSION"), "service": "pageserver" }))
}

async fn metrics(State(service): Shared) -> Response {
    let (mut lag, mut leases, now) = (0, 0, Instant::now());
    for timeline in service.engine.timelines() {
        // One that is deleted meanwhile is left out.
        let Ok(live) = service.live(timeline.identity().tenant, timeline.id()) else { continue };
        lag = lag.max(live.commit_lsn().bytes_since(timeline.last_record_lsn()).unwrap_or(0));
        leases += live.leases.count(now);
    }
    let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    let text = service.metrics.text(&service.engine, service.remote.as_deref(), lag, leases);
    ([(header::CONTENT_TYPE, content_type)], text).into_response()
}
