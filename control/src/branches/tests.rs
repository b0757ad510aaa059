//! Changes that a peer's failure cut short, against peers that answer as told.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use axum::{
    Json, Router,
    http::{Method, StatusCode, Uri},
    response::{IntoResponse, Response},
};
use serde_json::json;
use tokio::net::TcpListener;

use super::*;
use crate::ControlOptions;

type Answer = fn(&Method, &str, u32) -> Response;

/// A peer whose answers depend on the request and on how many came before it.
async fn peer(answer: Answer) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let count = Arc::new(AtomicU32::new(0));
    let handle = move |method: Method, uri: Uri| {
        let answer = answer(&method, uri.path(), count.fetch_add(1, Ordering::Relaxed));
        async move { answer }
    };
    tokio::spawn(async { axum::serve(listener, Router::new().fallback(handle)).await });
    address
}

/// A port where nobody listens.
async fn nobody() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

async fn branches(dir: &tempfile::TempDir, pageserver: Answer, agent: SocketAddr) -> Branches {
    let pageserver = peer(pageserver).await;
    let options = ControlOptions {
        data_dir: dir.path().to_owned(),
        listen_http: pageserver,
        pageserver_http: format!("http://{pageserver}"),
        safekeeper_http: format!("http://{pageserver}"),
        agent_http: format!("http://{agent}"),
        client_address: "127.0.0.1:1".to_owned(),
        pg_version: 15,
    };
    let store = Store::open(&dir.path().join("control.redb")).unwrap();
    Branches::new(store, Peers::new(&options).unwrap(), options.pg_version)
}

/// A pageserver where everything works, and where nothing is known of moments before history.
fn well(method: &Method, path: &str, _: u32) -> Response {
    let timeline = json!({
        "timeline_id": "00000000000000000000000000000001",
        "start_lsn": "0/1000000",
        "last_record_lsn": "0/1000000",
    });
    match path.ends_with("/timeline") {
        _ if path.ends_with("/lsn_by_timestamp") => problem(StatusCode::GONE, "gone"),
        true if method == Method::GET => Json(json!([])).into_response(),
        _ => Json(timeline).into_response(),
    }
}

fn problem(status: StatusCode, code: &str) -> Response {
    (status, Json(json!({"code": code, "message": "as told"}))).into_response()
}

fn barrier(_: &Method, path: &str, _: u32) -> Response {
    match path.ends_with("/barrier") {
        true => Json(json!({"commit_lsn": "0/1000000"})).into_response(),
        false => problem(StatusCode::CONFLICT, "conflict"),
    }
}

fn dev(at: Option<&str>) -> CreateBranch {
    let at = at.map(str::to_owned);
    CreateBranch { name: "dev".to_owned(), source_branch: None, at, if_not_exists: false }
}

/// Control used to give up, and to be started again and again, when the pageserver came up after it.
#[tokio::test]
async fn reconciliation_waits_for_the_pageserver() {
    let dir = tempfile::tempdir().unwrap();
    let late: Answer = |method, path, count| match count {
        0 | 1 => problem(StatusCode::SERVICE_UNAVAILABLE, "unavailable"),
        _ => well(method, path, count),
    };
    let branches = branches(&dir, late, nobody().await).await;
    branches.reconcile().await.unwrap();
    assert_eq!(branches.list(DEFAULT_PROJECT).await.unwrap().len(), 1);
}

/// A deletion that a peer refused left a name that could neither be used nor deleted.
#[tokio::test]
async fn a_deletion_cut_short_is_carried_on() {
    let dir = tempfile::tempdir().unwrap();
    let failing: Answer = |method, path, count| match (method, count) {
        (&Method::DELETE, ..6) => problem(StatusCode::INTERNAL_SERVER_ERROR, "io"),
        _ => well(method, path, count),
    };
    let branches = branches(&dir, failing, nobody().await).await;
    branches.reconcile().await.unwrap();
    let project = branches.project(DEFAULT_PROJECT).unwrap();
    branches.record(&project, "dev", None, TimelineId([7; 16]), Lsn(0x1000000)).unwrap();
    while let Err(error) = branches.delete(DEFAULT_PROJECT, "dev").await {
        assert_eq!(error.code, "io");
        assert_eq!(branches.get(DEFAULT_PROJECT, "dev").await.unwrap_err().code, "not_found");
    }
    assert_eq!(branches.delete(DEFAULT_PROJECT, "dev").await.unwrap_err().code, "not_found");
}

/// An agent that is up and refuses may still run the compute: the branch stays.
#[tokio::test]
async fn an_agent_that_refuses_keeps_the_branch() {
    let dir = tempfile::tempdir().unwrap();
    let branches = branches(&dir, well, peer(barrier).await).await;
    branches.reconcile().await.unwrap();
    branches.create(DEFAULT_PROJECT, dev(None)).await.unwrap();
    assert_eq!(branches.delete(DEFAULT_PROJECT, "dev").await.unwrap_err().code, "conflict");
    assert_eq!(branches.list(DEFAULT_PROJECT).await.unwrap().len(), 2);
}

#[tokio::test]
async fn a_moment_before_history_is_told_where_it_begins() {
    let dir = tempfile::tempdir().unwrap();
    let branches = branches(&dir, well, peer(barrier).await).await;
    branches.reconcile().await.unwrap();
    let created = branches.create(DEFAULT_PROJECT, dev(Some("1999-01-01T00:00:00Z"))).await;
    let error = created.unwrap_err();
    assert_eq!((error.code.as_str(), error.field.as_deref()), ("invalid", Some("at")));
    assert!(error.message.contains("begins at 0/1000000"), "{error}");
}

/// Creations go on side by side, but a name is given once.
#[tokio::test]
async fn two_who_want_one_name_get_one_branch() {
    let dir = tempfile::tempdir().unwrap();
    let branches = branches(&dir, well, peer(barrier).await).await;
    branches.reconcile().await.unwrap();
    let (one, other) = tokio::join!(
        branches.create(DEFAULT_PROJECT, dev(None)),
        branches.create(DEFAULT_PROJECT, dev(None))
    );
    assert!(one.is_ok() || other.is_ok());
    let refused = one.err().or(other.err()).unwrap();
    assert_eq!(refused.code, "conflict");
    let again = || CreateBranch { if_not_exists: true, name: "test".to_owned(), ..dev(None) };
    let (one, other) = tokio::join!(
        branches.create(DEFAULT_PROJECT, again()),
        branches.create(DEFAULT_PROJECT, again())
    );
    assert_eq!(one.unwrap().branch.timeline_id, other.unwrap().branch.timeline_id);
    assert_eq!(branches.list(DEFAULT_PROJECT).await.unwrap().len(), 3);
}
