//! The safekeeper: one member of the quorums that make commits durable.
//!
//! ```text
//! proposer_port ─► timeline (queue, group commit) ─► member (acceptor + control_file + wal_store) ─► answers
//!                                      │
//! walsender, http ◄── watermarks ──────┴── segments on disk, up to commit_lsn
//! ```
//!
//! The rules are the `treering_consensus` crate's; [`member`] is where they meet the disk, and the only place that
//! writes. A crash at any moment leaves what [`member`]'s head says. One data directory has one process: it is
//! locked.

#![forbid(unsafe_code)]

pub mod control_file;
pub mod error;
mod http;
pub mod member;
mod metrics;
mod node_id;
mod proposer_port;
pub mod timeline;
pub mod timelines;
pub mod wal_store;
mod walsender;

use std::{fs, future::Future, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use treering_fs::RealFs;
use treering_types::NodeId;

pub use metrics::Metrics;

use crate::timelines::Timelines;

/// After an accept failed (too many open files, mostly).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long connections may take to end of their own at a stop.
const STOP_GRACE: Duration = Duration::from_secs(1);
/// How long all tasks may take at a stop.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// What a safekeeper needs to know.
#[derive(Clone, Debug)]
pub struct SafekeeperOptions {
    /// Created when it is missing.
    pub data_dir: PathBuf,
    /// This member's number in the quorum.
    pub node_id: NodeId,
    /// Where proposers connect. Port 0: the kernel chooses, here and below.
    pub listen_wal: SocketAddr,
    /// Where receivers connect, with Postgres's replication protocol.
    pub listen_pg: SocketAddr,
    pub listen_http: SocketAddr,
}

/// The addresses that are really listened on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Listening {
    pub wal: SocketAddr,
    pub pg: SocketAddr,
    pub http: SocketAddr,
}

/// Runs until `stop` is cancelled. `ready` is called once, when all ports are open and all timelines loaded.
///
/// # Errors
/// The data directory cannot be used or is in use, or a port is taken. Afterwards only the end.
pub async fn run(
    options: SafekeeperOptions,
    stop: CancellationToken,
    ready: impl FnOnce(Listening),
) -> anyhow::Result<()> {
    let _lock = lock(&options.data_dir)?;
    node_id::claim(&RealFs, &options.data_dir, options.node_id)?;
    let metrics = Arc::new(Metrics::default());
    let timelines = Timelines::open(
        Arc::new(RealFs),
        options.data_dir.clone(),
        options.node_id,
        stop.child_token(),
        metrics.clone(),
    )
    .await?;
    let timelines = Arc::new(timelines);
    let wal = listen(options.listen_wal).await?;
    let pg = listen(options.listen_pg).await?;
    let http = listen(options.listen_http).await?;
    ready(Listening { wal: wal.local_addr()?, pg: pg.local_addr()?, http: http.local_addr()? });

    let tasks = TaskTracker::new();
    let (of, by) = (timelines.clone(), tasks.clone());
    tasks.spawn(accept(wal, stop.clone(), by, move |stream, peer| {
        let ended = proposer_port::serve(stream, of.clone());
        async move {
            if let Err(error) = ended.await {
                tracing::warn!(%peer, %error, "proposer's connection ended");
            }
        }
    }));
    let (of, by, counting) = (timelines.clone(), tasks.clone(), metrics.clone());
    tasks.spawn(accept(pg, stop.clone(), by, move |stream, peer| {
        let ended = walsender::serve(stream, of.clone(), counting.clone());
        async move {
            if let Err(error) = ended.await {
                tracing::info!(%peer, %error, "receiver's connection ended");
            }
        }
    }));
    let api = http::router(http::Api { timelines: timelines.clone(), metrics });
    let until = stop.clone().cancelled_owned();
    tasks.spawn(async move {
        if let Err(error) = axum::serve(http, api).with_graceful_shutdown(until).await {
            tracing::error!(%error, "HTTP ended");
        }
    });
    stop.cancelled().await;
    timelines.shut_down().await;
    tasks.close();
    if tokio::time::timeout(STOP_TIMEOUT, tasks.wait()).await.is_err() {
        tracing::warn!(connections = tasks.len(), "connections left open at stop");
    }
    Ok(())
}

/// Holds the data directory for one process; released when the file is closed.
fn lock(data_dir: &PathBuf) -> anyhow::Result<fs::File> {
    fs::create_dir_all(data_dir)
        .with_context(|| format!("cannot create {}", data_dir.display()))?;
    let path = data_dir.join("lock");
    let open = fs::OpenOptions::new().create(true).write(true).truncate(false).open(&path);
    let file = open.with_context(|| format!("cannot open {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => {
            anyhow::bail!("{} is in use by another safekeeper", data_dir.display())
        }
        Err(fs::TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("cannot lock {}", path.display()))
        }
    }
}

async fn listen(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))
}

/// Accepts connections until the stop, and gives each a task.
async fn accept<F: Future<Output = ()> + Send + 'static>(
    listener: TcpListener,
    stop: CancellationToken,
    tasks: TaskTracker,
    mut serve: impl FnMut(TcpStream, SocketAddr) -> F,
) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => return,
        };
        match accepted {
            Ok((stream, peer)) => {
                let (served, stop) = (serve(stream, peer), stop.clone());
                tasks.spawn(async move {
                    tokio::select! {
                        () = served => {}
                        () = given_up(stop) => tracing::debug!(%peer, "connection cut off"),
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Returns when a connection has had its time after a stop.
async fn given_up(stop: CancellationToken) {
    stop.cancelled().await;
    tokio::time::sleep(STOP_GRACE).await;
}
