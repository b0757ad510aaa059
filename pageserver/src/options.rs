//! What a pageserver is started with.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use treering_engine::EngineOptions;
use treering_remote::Location;
use treering_types::NodeId;

/// A safekeeper, and where it is reached.
#[derive(Clone, Debug)]
pub struct Safekeeper {
    pub node: NodeId,
    /// `http://host:port`.
    pub http: String,
    /// `host:port` of its replication port.
    pub pg: String,
}

impl Safekeeper {
    /// One that is alone: number 1.
    pub fn alone(http: impl Into<String>, pg: impl Into<String>) -> Vec<Safekeeper> {
        vec![Safekeeper { node: NodeId(1), http: http.into(), pg: pg.into() }]
    }
}

/// Addresses, places and bounds.
#[derive(Clone, Debug)]
pub struct PageserverOptions {
    /// Holds `tenants/` (the engine) and `templates/`. Created if need be. One pageserver per directory.
    pub data_dir: PathBuf,
    /// Page service and base backups. Port 0: the kernel's choice.
    pub listen_pg: SocketAddr,
    /// Admin API, health, metrics.
    pub listen_http: SocketAddr,
    /// Each of them has all committed WAL sooner or later; it is read from any of them.
    pub safekeepers: Vec<Safekeeper>,
    /// Directories with stock Postgres's programs, before Debian's and `PATH`.
    pub pg_bin_dirs: Vec<PathBuf>,
    pub engine: EngineOptions,
    /// The object store that outlives the data directory; `None`: the local disk holds all there is.
    pub object_store: Option<Location>,
    /// Layer files on the local disk beyond this are evicted once the store has them.
    pub layer_cache_bytes: Option<u64>,
    /// How long a branch or a deletion waits until the object store has it.
    pub publish_wait_max: Duration,
    /// How long a page request or base backup waits for WAL that was not ingested yet.
    pub wait_lsn_max: Duration,
    /// How often each safekeeper is asked for timelines with new WAL.
    pub poll_interval: Duration,
    /// How long a compute may read at an LSN after it last said that it does. Computes renew three times as often.
    pub lsn_lease_length: Duration,
    /// A replication connection without new WAL and with nothing left to flush is closed after this.
    pub idle_disconnect: Duration,
}

impl PageserverOptions {
    /// Loopback, ports of the kernel's choice, defaults for all bounds.
    pub fn new(data_dir: impl Into<PathBuf>, safekeepers: Vec<Safekeeper>) -> PageserverOptions {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        PageserverOptions {
            data_dir: data_dir.into(),
            listen_pg: any,
            listen_http: any,
            safekeepers,
            pg_bin_dirs: Vec::new(),
            engine: EngineOptions::default(),
            object_store: None,
            layer_cache_bytes: None,
            publish_wait_max: Duration::from_secs(30),
            wait_lsn_max: Duration::from_secs(30),
            poll_interval: Duration::from_secs(1),
            lsn_lease_length: Duration::from_secs(600),
            idle_disconnect: Duration::from_secs(30),
        }
    }
}
