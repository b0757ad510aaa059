//! The pageserver: WAL in, pages out.
//!
//! It ingests each timeline's WAL from a safekeeper into the engine ([`ingest`]), answers page requests and base
//! backups over the Postgres protocol ([`page_service`], [`basebackup`]), makes new clusters ([`import`]), and
//! is administered over HTTP ([`http`]). It does not know computes, branches by name, or users.
//!
//! Everything it holds on local disk can be made again from the safekeeper's WAL above `remote_consistent_lsn` and the object store
//! ([`remote`]) below it: a crash at any moment loses nothing, and neither does the loss of that disk.

#![forbid(unsafe_code)]

pub mod basebackup;
mod clock;
pub mod cluster_state;
pub mod directory;
pub mod error;
pub mod http;
pub mod import;
pub mod ingest;
pub mod leases;
pub mod live;
mod metrics;
mod options;
pub mod page_service;
pub mod remote;
pub mod service;
mod waiters;

use std::{io, net::SocketAddr, os::fd::OwnedFd, sync::Arc, time::Duration};

use anyhow::Context;
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::{
    net::{TcpListener, UnixListener},
    task::JoinSet,
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use treering_wire::neighbour;

pub use error::ServiceError;
pub use options::{PageserverOptions, Safekeeper};
use service::Service;

/// Where a pageserver listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listening {
    pub pg: SocketAddr,
    pub http: SocketAddr,
}

/// Neighbours that wait to be accepted.
const LISTEN_QUEUE: i32 = 1024;
/// After this a stop no longer waits for requests under way.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a stop may spend on making what was ingested durable: it would only be ingested again.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(4);

/// Opens the engine, listens, calls `ready`, and serves until `cancel`.
///
/// # Errors
/// A data directory that cannot be opened, addresses in use.
pub async fn run(
    options: PageserverOptions,
    cancel: CancellationToken,
    ready: impl FnOnce(Listening),
) -> anyhow::Result<()> {
    let pg = listen(options.listen_pg, "page service").await?;
    let http = listen(options.listen_http, "admin API").await?;
    let listening = Listening { pg: pg.local_addr()?, http: http.local_addr()? };
    let neighbours = listen_to_neighbours(listening.pg)?;
    let place = options.data_dir.display().to_string();
    let opened = cancel.clone();
    let service = tokio::task::spawn_blocking(move || Service::open(options, opened)).await?;
    let service = service.with_context(|| format!("pageserver data directory {place}"))?;
    let mut faces = JoinSet::new();
    if let Some(neighbours) = neighbours {
        faces.spawn(page_service::run(Arc::clone(&service), neighbours));
    }
    faces.spawn(page_service::run(Arc::clone(&service), pg));
    faces.spawn(ingest::poll::run(Arc::clone(&service)));
    faces.spawn(Arc::clone(&service).expire_leases());
    faces.spawn(Arc::clone(&service).bound_layer_cache());
    let serving = http::run(Arc::clone(&service), http);
    faces.spawn(async move {
        if let Err(error) = serving.await {
            tracing::error!(%error, "admin API ended");
        }
    });
    tracing::info!(pg = %listening.pg, http = %listening.http, "pageserver is ready");
    ready(listening);
    cancel.cancelled().await;
    stop(&service, faces).await;
    Ok(())
}

async fn listen(address: SocketAddr, what: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("{what}: listen on {address}"))
}

/// Under the name that goes with the address, if one does.
fn listen_to_neighbours(address: SocketAddr) -> anyhow::Result<Option<UnixListener>> {
    let Some(name) = neighbour::abstract_name(address) else { return Ok(None) };
    let listen = || {
        let listener = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        listener.bind(&SockAddr::unix(name)?)?;
        listener.listen(LISTEN_QUEUE)?;
        listener.set_nonblocking(true)?;
        UnixListener::from_std(OwnedFd::from(listener).into())
    };
    let listening: io::Result<UnixListener> = listen();
    let what = || format!("page service: listen on the Unix socket that goes with {address}");
    listening.map(Some).with_context(what)
}

/// Lets requests end, then flushes; both within bounds.
async fn stop(service: &Arc<Service>, mut faces: JoinSet<()>) {
    let drained = timeout(DRAIN_TIMEOUT, async { while faces.join_next().await.is_some() {} });
    if drained.await.is_err() {
        tracing::debug!("requests under way are cut off");
        faces.abort_all();
    }
    let engine = Arc::clone(&service.engine);
    let remote = service.remote.clone();
    let flushing = tokio::task::spawn_blocking(move || engine.flush_all());
    match timeout(FLUSH_TIMEOUT, flushing).await {
        Ok(Ok(Ok(()))) => {}
        Ok(Ok(Err(error))) => tracing::warn!(%error, "flush at stop"),
        Ok(Err(error)) => tracing::warn!(%error, "flush at stop"),
        Err(_) => tracing::info!("flush at stop takes too long; the rest is ingested again"),
    }
    // What is not uploaded now is uploaded after the next start; its WAL is kept until then.
    if let Some(remote) = remote {
        remote.stop();
    }
}
