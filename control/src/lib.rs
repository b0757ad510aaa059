//! Projects and branches: the names people use for tenants and timelines, and the REST API over them.
//!
//! Control owns names and intentions (a branch exists, a branch is stopped, a password); it owns no data. Every
//! mutation is ordered so that a crash leaves a whole branch or none: the timeline is made first and the name
//! recorded last; a deletion is recorded first and carried out after. [`reconcile`](branches::Branches::reconcile)
//! finishes what a crash cut short when the service starts. A majority of the safekeepers is enough for everything; what
//! one that was away has still to delete is recorded, and deleted when it is back ([`safekeepers`]).

#![forbid(unsafe_code)]

pub mod at;
pub mod branches;
pub mod error;
pub mod members;
pub mod model;
pub mod peers;
pub mod rest;
pub mod safekeepers;
pub mod store;

use std::{net::SocketAddr, path::PathBuf, sync::Arc};

use anyhow::Context;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use treering_types::NodeId;

/// A safekeeper, and the base URL of its admin API.
#[derive(Debug, Clone)]
pub struct Safekeeper {
    pub node: NodeId,
    pub http: String,
}

/// How to run the service.
#[derive(Debug, Clone)]
pub struct ControlOptions {
    /// Holds `control.redb`.
    pub data_dir: PathBuf,
    pub listen_http: SocketAddr,
    /// Base URLs, `http://host:port`.
    pub pageserver_http: String,
    pub agent_http: String,
    /// All there are.
    pub safekeepers: Vec<Safekeeper>,
    /// Where clients connect, for connection strings: `host:port`.
    pub client_address: String,
    /// Major of the Postgres that computes run: what a first project is made for.
    pub pg_version: u32,
}

/// Runs until `stop` is cancelled. `ready` is called with the address once requests are answered.
///
/// # Errors
/// A metadata store that cannot be opened, an address in use, a pageserver that refuses the default project.
pub async fn run(
    options: ControlOptions,
    stop: CancellationToken,
    ready: impl FnOnce(SocketAddr) + Send,
) -> anyhow::Result<()> {
    let store = store::Store::open(&options.data_dir.join("control.redb"))?;
    let listener = TcpListener::bind(options.listen_http)
        .await
        .with_context(|| format!("listen for the control API on {}", options.listen_http))?;
    let address = listener.local_addr()?;
    let peers = peers::Peers::new(&options)?;
    let branches = Arc::new(branches::Branches::new(store, peers, options.pg_version));
    tokio::select! {
        done = branches.reconcile() => done.context("finish what was under way")?,
        () = stop.cancelled() => return Ok(()),
    }
    let router = rest::router(branches.clone());
    ready(address);
    let serving = axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned());
    let serving = serving.into_future();
    tokio::select! {
        served = serving => Ok(served?),
        never = branches.remove_left_logs() => match never {},
    }
}
