//! The safekeeper: one member of the quorums that make commits durable.
//!
//! ```text
//! proposer_port ─► timeline (queue, group commit) ─► member (acceptor + control_file + wal_store) ─► answers
//!                                      │
//! walsender, http ◄── watermarks ──────┴── segments on disk, up to commit_lsn ──► archive
//! ```
//!
//! The rules are the `treering_consensus` crate's; [`member`] is where they meet the disk, and the only place that
//! writes. A crash at any moment leaves what [`member`]'s head says. One data directory has one process: it is
//! locked.

#![forbid(unsafe_code)]

pub mod archive;
pub mod control_file;
pub mod error;
mod http;
mod log_reader;
pub mod member;
mod metrics;
mod node_id;
pub mod pace;
mod proposer_port;
pub mod room;
pub mod segment_head;
mod spares;
pub mod timeline;
pub mod timelines;
mod unsynced;
pub mod wal_store;
mod walsender;

use std::{fs, future::Future, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use treering_fs::RealFs;
use treering_remote::retry::{Asking, Patience};
use treering_types::NodeId;

pub use metrics::Metrics;

use crate::{
    archive::{Archive, ArchiveOptions, keeper::Keeper},
    room::Room,
    timelines::{Shared, Timelines},
};

/// After an accept failed (too many open files, mostly).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Between two tries to open what the disk had no room for.
const OPEN_AGAIN_PAUSE: Duration = Duration::from_secs(5);
/// Of one request to the object store: whoever reads waits for it, and what is put is put again.
const ARCHIVE_PATIENCE: Patience =
    Patience { attempts: 4, pause: Duration::from_millis(100), pause_max: Duration::from_secs(1) };
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
    /// Most bytes of log that are kept in `data_dir`; `None`: four fifths of what its file system has.
    pub disk_limit: Option<u64>,
    /// How far the pageserver may be behind before log is taken more slowly; 0 for no limit.
    pub lag_limit: u64,
    /// Where the log goes for good; `None`: this disk and those of the other members are all there is.
    pub archive: Option<ArchiveOptions>,
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
    let archive = options.archive.as_ref().map(open_archive).transpose()?.map(Arc::new);
    let limit = match options.disk_limit {
        Some(limit) => limit,
        None => Room::default_limit(&RealFs, &options.data_dir)?,
    };
    let timelines = Timelines::open(
        Arc::new(RealFs),
        options.data_dir.clone(),
        options.node_id,
        Shared {
            room: Room::of(limit),
            archive: archive.clone(),
            lag_limit: options.lag_limit,
            metrics: metrics.clone(),
        },
        stop.child_token(),
    )
    .await?;
    let timelines = Arc::new(timelines);
    let wal = listen(options.listen_wal).await?;
    let pg = listen(options.listen_pg).await?;
    let http = listen(options.listen_http).await?;
    ready(Listening { wal: wal.local_addr()?, pg: pg.local_addr()?, http: http.local_addr()? });

    let keeper = match (&archive, options.archive) {
        (Some(archive), Some(options)) => {
            let keeper = Keeper::new(archive.clone(), timelines.clone(), options);
            let thread = std::thread::Builder::new().name("treering-archive".into());
            Some(thread.spawn(move || keeper.run()).context("cannot start the archive's thread")?)
        }
        _ => None,
    };
    let tasks = TaskTracker::new();
    let (of, until) = (timelines.clone(), stop.clone());
    tasks.spawn(async move {
        while until.run_until_cancelled(tokio::time::sleep(OPEN_AGAIN_PAUSE)).await.is_some() {
            of.open_what_was_full().await;
        }
    });
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
    if let Some(archive) = &archive {
        archive.stop();
    }
    timelines.shut_down().await;
    tasks.close();
    if tokio::time::timeout(STOP_TIMEOUT, tasks.wait()).await.is_err() {
        tracing::warn!(connections = tasks.len(), "connections left open at stop");
    }
    if let Some(keeper) = keeper {
        let ended = tokio::task::spawn_blocking(move || keeper.join());
        if !matches!(tokio::time::timeout(STOP_TIMEOUT, ended).await, Ok(Ok(Ok(())))) {
            tracing::warn!("the object store has kept the archive waiting at stop");
        }
    }
    Ok(())
}

/// Nothing is asked of it yet, so a store that is away keeps nobody from starting.
fn open_archive(options: &ArchiveOptions) -> anyhow::Result<Archive> {
    let store = options.store.join(Arc::new(RealFs), rand::random())?;
    tracing::info!(store = store.describe(), "log is archived");
    Ok(Archive::new(store, Asking::new(ARCHIVE_PATIENCE)))
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
