//! The node agent: runs stock Postgres computes on this machine and lets clients in.
//!
//! For every branch that runs here the agent is three things at once: the supervisor of an unmodified `postgres`
//! ([`compute`]), the proposer of its WAL ([`proposer`]), which it takes from `pg_wal` (`flush`) or, as its only synchronous standby, from a
//! walsender (`standby`), and the door every client comes in by ([`route`], [`relay`]). Invariants:
//!
//! - A compute starts only from an LSN that an election of ours has committed, in a directory of its own, after every
//!   process of the one before is proven dead.
//! - Clients are let in once the compute's commits wait for us.
//! - What the agent reports to the compute as durable is what the quorum has committed, never more.

mod adopt;
mod agent;
mod basebackup;
pub mod cancel;
pub mod compute;
mod endpoint;
mod error;
mod flush;
mod gate;
mod http;
pub mod pages;
mod pageserver;
mod peers;
mod proposer;
mod quiet;
pub mod relay;
pub mod route;
mod standby;
pub mod wake;
mod wire;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use anyhow::Context;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use treering_types::{NodeId, TimelineId};

/// How to run the agent.
#[derive(Debug, Clone)]
pub struct AgentOptions {
    /// Compute directories live below it. Its path must be searchable by other users when the agent is root.
    pub data_dir: PathBuf,
    /// The port clients connect to.
    pub listen_clients: SocketAddr,
    pub listen_http: SocketAddr,
    /// Base URLs, `http://host:port`.
    pub control_http: String,
    pub pageserver_http: String,
    /// `host:port`.
    pub pageserver_pg: String,
    /// All that logs may be kept by, and where they are.
    pub safekeepers: Vec<Safekeeper>,
    /// Those of them that decide on the logs that are begun here: an odd number, the same for all agents.
    pub members: Vec<NodeId>,
    /// Directory of the `postgres` program; searched for when absent.
    pub pg_bin_dir: Option<PathBuf>,
    pub pages: pages::PageOptions,
}

/// A safekeeper, and where it is reached.
#[derive(Debug, Clone)]
pub struct Safekeeper {
    pub node: NodeId,
    /// `host:port` for proposers.
    pub wal: String,
    /// Base URL.
    pub http: String,
}

/// Where the agent listens.
#[derive(Debug, Clone, Copy)]
pub struct Addresses {
    pub clients: SocketAddr,
    pub http: SocketAddr,
}

/// Runs until `stop` is cancelled, then stops every compute in order. `ready` is called once clients are accepted.
///
/// # Errors
/// An address in use, no Postgres, a data directory that cannot be used.
pub async fn run(
    options: AgentOptions,
    stop: CancellationToken,
    ready: impl FnOnce(Addresses) + Send,
) -> anyhow::Result<()> {
    let listen = |at: SocketAddr| async move {
        TcpListener::bind(at).await.with_context(|| format!("listen on {at}"))
    };
    let clients = listen(options.listen_clients).await?;
    let admin = listen(options.listen_http).await?;
    let addresses = Addresses { clients: clients.local_addr()?, http: admin.local_addr()? };
    let agent = agent::Agent::new(options)?;
    tokio::select! {
        taken = agent.take_over() => taken?,
        () = stop.cancelled() => {
            agent.stop_all().await;
            return Ok(());
        }
    }
    ready(addresses);
    let serving = stop.child_token();
    let http = axum::serve(admin, http::router(agent.clone()));
    let http = tokio::spawn(async move { http.await });
    let routes = tokio::spawn(route::serve(clients, gate::wake(&agent), serving));
    stop.cancelled().await;
    agent.stop_all().await;
    routes.abort();
    http.abort();
    Ok(())
}

/// The log of a branch's compute below the agent's data directory.
pub fn log_path(agent_dir: &Path, timeline: TimelineId) -> PathBuf {
    agent_dir.join("computes").join(timeline.to_string()).join("postgres.log")
}

/// The `postgres` program: in `dir` if named, else where Debian puts version 15, else on the PATH.
///
/// # Errors
/// Names what to install when there is none.
pub fn find_postgres(dir: Option<&Path>) -> anyhow::Result<PathBuf> {
    if let Some(dir) = dir {
        let program = dir.join("postgres");
        anyhow::ensure!(program.is_file(), "there is no {}", program.display());
        return Ok(program);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::iter::once(PathBuf::from("/usr/lib/postgresql/15/bin"))
        .chain(std::env::split_paths(&path))
        .map(|dir| dir.join("postgres"))
        .find(|program| program.is_file())
        .context("there is no Postgres on this machine; install it (Debian: apt-get install postgresql-15)")
}
