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
use treering_types::NodeId;

use super::*;
use crate::{ControlOptions, Safekeeper};

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
    with_safekeepers(dir, pageserver, agent, &[pageserver])
}

fn with_safekeepers(
    dir: &tempfile::TempDir,
    pageserver: SocketAddr,
    agent: SocketAddr,
    safekeepers: &[SocketAddr],
) -> Branches {
    let safekeepers = (1..).map(NodeId).zip(safekeepers);
    let safekeeper = |(node, at)| Safekeeper { node, http: format!("http://{at}") };
    let options = ControlOptions {
        data_dir: dir.path().to_owned(),
        listen_http: pageserver,
        pageserver_http: format!("http://{pageserver}"),
        safekeepers: safekeepers.map(safekeeper).collect(),
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

fn safekeeper(_: &Method, path: &str, _: u32) -> Response {
    let log = json!({
        "tenant_id": "00000000000000000000000000000001",
        "timeline_id": "00000000000000000000000000000002",
        "term": 3, "flush_lsn": "0/1000020", "commit_lsn": "0/1000020", "trim_lsn": "0/1000000",
    });
    match path {
        "/v1/status" => Json(json!({"node_id": 1, "disk": {"free_bytes": 77}})).into_response(),
        "/v1/timelines" => Json(json!([log])).into_response(),
        _ => StatusCode::NO_CONTENT.into_response(),
    }
}

/// One that lags, and calls itself 3.
fn lagging(method: &Method, path: &str, count: u32) -> Response {
    let log = json!({
        "tenant_id": "00000000000000000000000000000001",
        "timeline_id": "00000000000000000000000000000002",
        "term": 2, "flush_lsn": "0/1000018", "commit_lsn": "0/1000010", "trim_lsn": "0/1000000",
    });
    match path {
        "/v1/status" => Json(json!({"node_id": 3, "disk": {"free_bytes": 5}})).into_response(),
        "/v1/timelines" => Json(json!([log])).into_response(),
        _ => safekeeper(method, path, count),
    }
}

/// One safekeeper that is down keeps no branch from being deleted; it deletes its log when it is back.
#[tokio::test]
async fn a_majority_deletes_and_the_third_does_so_later() {
    let dir = tempfile::tempdir().unwrap();
    let (pageserver, third) = (peer(well).await, nobody().await);
    let two = [peer(safekeeper).await, peer(safekeeper).await];
    let branches = with_safekeepers(&dir, pageserver, nobody().await, &[two[0], third, two[1]]);
    branches.reconcile().await.unwrap();
    let project = branches.project(DEFAULT_PROJECT).unwrap();
    branches.record(&project, "dev", None, TimelineId([7; 16]), Lsn(0x1000000)).unwrap();
    branches.delete(DEFAULT_PROJECT, "dev").await.unwrap();
    let left = LeftLog {
        node_id: NodeId(2),
        tenant_id: project.tenant_id,
        timeline_id: TimelineId([7; 16]),
    };
    assert_eq!(branches.store.left_logs().unwrap(), std::slice::from_ref(&left));
    branches.remove_left_logs_once().await.unwrap();
    assert_eq!(branches.store.left_logs().unwrap(), [left], "it is still away");
    drop(branches);
    let back = with_safekeepers(&dir, pageserver, nobody().await, &[two[0], two[0], two[1]]);
    back.remove_left_logs_once().await.unwrap();
    assert_eq!(back.store.left_logs().unwrap(), []);
}

#[tokio::test]
async fn a_minority_deletes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (pageserver, one) = (peer(well).await, peer(safekeeper).await);
    let others = [nobody().await, nobody().await];
    let branches = with_safekeepers(&dir, pageserver, nobody().await, &[one, others[0], others[1]]);
    branches.reconcile().await.unwrap();
    let project = branches.project(DEFAULT_PROJECT).unwrap();
    branches.record(&project, "dev", None, TimelineId([7; 16]), Lsn(0x1000000)).unwrap();
    let error = branches.delete(DEFAULT_PROJECT, "dev").await.unwrap_err();
    assert_eq!(error.code, "unreachable");
    assert_eq!(branches.store.left_logs().unwrap(), []);
    assert!(branches.store.branch(DEFAULT_PROJECT, "dev").unwrap().unwrap().deleting);
}

#[tokio::test]
async fn each_safekeeper_is_shown_as_it_stands() {
    let dir = tempfile::tempdir().unwrap();
    let (pageserver, down) = (peer(well).await, nobody().await);
    let (first, third) = (peer(safekeeper).await, peer(lagging).await);
    let branches = with_safekeepers(&dir, pageserver, nobody().await, &[first, down, third]);
    let views = branches.safekeepers().await;
    let states: Vec<_> = views.iter().map(|view| (view.node_id.0, &view.state[..])).collect();
    assert_eq!(states, [(1, "ready"), (2, "down"), (3, "ready")]);
    assert!(views[1].reason.is_some() && views[1].logs.is_empty());
    assert_eq!((views[0].free_bytes, views[2].free_bytes), (Some(77), Some(5)));
    let lags: Vec<_> = [0, 2].map(|n: usize| views[n].logs[0].lag_bytes).into();
    assert_eq!(lags, [0, 8]);
}
