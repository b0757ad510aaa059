//! The services as subcommands: what `up` starts, and what runs alone on a machine of its own.
//!
//! A service prints one line of JSON with its addresses on stdout once it answers requests.

use std::{net::SocketAddr, path::PathBuf};

use anyhow::ensure;
use clap::{Args, Subcommand};
use rustix::process::Signal;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use treering_types::NodeId;

use crate::{
    cli::loopback,
    history::HistoryArgs,
    leases::LeaseArgs,
    members::{self, Member},
    pages::PageArgs,
    store::StoreArgs,
    wal::WalArgs,
};

/// Set by `up` to its process id in the environment of the services it starts: they leave Ctrl-C and a closed
/// terminal to it, and end when it does.
pub const SUPERVISED: &str = "TREERING_SUPERVISED";

/// One member of the quorums that make commits durable.
#[derive(Debug, Args)]
pub struct SafekeeperArgs {
    #[arg(long)]
    data_dir: PathBuf,
    /// Its number, for good: votes and acknowledgements are given under it. A safekeeper that has lost its disk needs a
    /// new one.
    #[arg(long, alias = "node-id")]
    id: u64,
    /// Where agents send WAL.
    #[arg(long, default_value_t = loopback())]
    listen_wal: SocketAddr,
    /// Where WAL is streamed from (physical replication).
    #[arg(long, default_value_t = loopback())]
    listen_pg: SocketAddr,
    /// The admin API.
    #[arg(long, default_value_t = loopback())]
    listen_http: SocketAddr,
    /// Where log is archived: `file:///directory`, `s3://bucket/prefix`, or `none`.
    #[arg(long, value_name = "URL", default_value = "none", env = "TREERING_OBJECT_STORE")]
    object_store: String,
    #[command(flatten)]
    wal: WalArgs,
}

#[derive(Debug, Subcommand)]
pub enum ServiceCommand {
    /// Make commits durable: keep the write-ahead log.
    Safekeeper(SafekeeperArgs),
    /// Serve any page version by timeline and LSN.
    Pageserver {
        #[arg(long)]
        data_dir: PathBuf,
        #[arg(long, default_value_t = loopback())]
        listen_pg: SocketAddr,
        #[arg(long, default_value_t = loopback())]
        listen_http: SocketAddr,
        /// `ID=http://host:port`, once for each safekeeper; here and below.
        #[arg(long, required = true)]
        safekeeper_http: Vec<Member>,
        /// `ID=host:port` of its `--listen-pg`.
        #[arg(long, required = true)]
        safekeeper_pg: Vec<Member>,
        /// Directory of `initdb` and `postgres`.
        #[arg(long)]
        pg_bin_dir: Option<PathBuf>,
        #[command(flatten)]
        leases: LeaseArgs,
        #[command(flatten)]
        history: HistoryArgs,
        #[command(flatten)]
        store: StoreArgs,
    },
    /// Run computes on this machine and let clients in.
    Agent {
        #[arg(long)]
        data_dir: PathBuf,
        /// The port clients connect to.
        #[arg(long)]
        listen_clients: SocketAddr,
        #[arg(long, default_value_t = loopback())]
        listen_http: SocketAddr,
        #[arg(long)]
        control_http: String,
        #[arg(long)]
        pageserver_http: String,
        #[arg(long)]
        pageserver_pg: String,
        /// All that logs may be kept by.
        #[arg(long, required = true)]
        safekeeper_http: Vec<Member>,
        /// `ID=host:port` of its `--listen-wal`.
        #[arg(long, required = true)]
        safekeeper_wal: Vec<Member>,
        /// Those of them that decide on the logs that are begun here: an odd number, the same for all agents [default: all].
        #[arg(long, value_name = "IDS", value_delimiter = ',')]
        members: Vec<u64>,
        #[arg(long)]
        pg_bin_dir: Option<PathBuf>,
        #[command(flatten)]
        pages: PageArgs,
    },
    /// Keep projects and branches; the REST API.
    Control {
        #[arg(long)]
        data_dir: PathBuf,
        #[arg(long, default_value_t = loopback())]
        listen_http: SocketAddr,
        #[arg(long)]
        pageserver_http: String,
        #[arg(long, required = true)]
        safekeeper_http: Vec<Member>,
        #[arg(long)]
        agent_http: String,
        #[arg(long)]
        client_address: String,
        /// Major of the Postgres that computes run; a project that exists keeps its own.
        #[arg(long, default_value_t = 15)]
        pg_version: u32,
    },
}

/// Runs one service until it is told to stop.
pub fn run(command: ServiceCommand) -> anyhow::Result<()> {
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_env("TREERING_LOG")
                .unwrap_or_else(|_| "info".into()),
        )
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    let supervisor = std::env::var(SUPERVISED).ok();
    if let Some(pid) = &supervisor {
        end_with(pid)?;
    }
    let supervised = supervisor.is_some();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = runtime.block_on(async {
        let stop = CancellationToken::new();
        tokio::spawn(cancel_on_signal(stop.clone(), supervised));
        serve(command, stop).await
    });
    // Blocking work that outlives its service would hold the process up.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    result
}

/// Has the kernel tell us when `up` ends. It may have ended before we asked: then somebody else is our parent.
fn end_with(supervisor: &str) -> anyhow::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::TERM))?;
    let parent = rustix::process::getppid().map(|pid| pid.as_raw_nonzero().to_string());
    ensure!(parent.as_deref() == Some(supervisor), "the `treering up` that started this has ended");
    Ok(())
}

async fn cancel_on_signal(stop: CancellationToken, supervised: bool) -> std::io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => if !supervised { break },
            _ = hangup.recv() => if !supervised { break },
        }
    }
    stop.cancel();
    Ok(())
}

/// Tells whoever started us where we are.
fn announce(addresses: serde_json::Value) {
    let _ = crate::output::print_line(&addresses.to_string());
}

async fn serve(command: ServiceCommand, stop: CancellationToken) -> anyhow::Result<()> {
    match command {
        ServiceCommand::Safekeeper(arguments) => {
            let SafekeeperArgs {
                data_dir,
                id,
                listen_wal,
                listen_pg,
                listen_http,
                object_store,
                wal,
            } = arguments;
            let store = match object_store.as_str() {
                "none" => None,
                url => Some(url.parse()?),
            };
            let options = treering_safekeeper::SafekeeperOptions {
                data_dir,
                node_id: NodeId(id),
                listen_wal,
                listen_pg,
                listen_http,
                disk_limit: wal.disk_limit(),
                lag_limit: wal.lag_limit(),
                archive: store.map(|store| wal.archive(store)),
            };
            treering_safekeeper::run(options, stop, |at| {
                announce(json!({"wal": at.wal, "pg": at.pg, "http": at.http}));
            })
            .await
        }
        ServiceCommand::Pageserver {
            data_dir,
            listen_pg,
            listen_http,
            safekeeper_http,
            safekeeper_pg,
            pg_bin_dir,
            leases,
            history,
            store,
        } => {
            let object_store = store.location(&data_dir)?;
            let safekeeper = |(node, http, pg)| treering_pageserver::Safekeeper { node, http, pg };
            let safekeepers = members::together(safekeeper_http, safekeeper_pg)?;
            let safekeepers = safekeepers.into_iter().map(safekeeper).collect();
            let mut options = treering_pageserver::PageserverOptions {
                listen_pg,
                listen_http,
                pg_bin_dirs: pg_bin_dir.into_iter().collect(),
                lsn_lease_length: leases.lsn_lease_length,
                object_store,
                layer_cache_bytes: store.layer_cache_bytes(),
                ..treering_pageserver::PageserverOptions::new(data_dir, safekeepers)
            };
            options.engine.pitr_window = history.pitr_window;
            treering_pageserver::run(options, stop, |at| {
                announce(json!({"pg": at.pg, "http": at.http}))
            })
            .await
        }
        ServiceCommand::Agent {
            data_dir,
            listen_clients,
            listen_http,
            control_http,
            pageserver_http,
            pageserver_pg,
            safekeeper_http,
            safekeeper_wal,
            members,
            pg_bin_dir,
            pages,
        } => {
            let safekeeper =
                |(node, http, wal)| treering_compute_proxy::Safekeeper { node, wal, http };
            let safekeepers = members::together(safekeeper_http, safekeeper_wal)?;
            let all = || safekeepers.iter().map(|(node, ..)| *node).collect::<Vec<_>>();
            let members = match &members[..] {
                [] => all(),
                named => named.iter().copied().map(NodeId).collect(),
            };
            let options = treering_compute_proxy::AgentOptions {
                data_dir,
                listen_clients,
                listen_http,
                control_http,
                pageserver_http,
                pageserver_pg,
                safekeepers: safekeepers.into_iter().map(safekeeper).collect(),
                members,
                pg_bin_dir,
                pages: pages.options(),
            };
            treering_compute_proxy::run(options, stop, |at| {
                announce(json!({"clients": at.clients, "http": at.http}));
            })
            .await
        }
        ServiceCommand::Control {
            data_dir,
            listen_http,
            pageserver_http,
            safekeeper_http,
            agent_http,
            client_address,
            pg_version,
        } => {
            members::check(&safekeeper_http)?;
            let safekeeper =
                |Member { node, address }| treering_control::Safekeeper { node, http: address };
            let options = treering_control::ControlOptions {
                data_dir,
                listen_http,
                pageserver_http,
                safekeepers: safekeeper_http.into_iter().map(safekeeper).collect(),
                agent_http,
                client_address,
                pg_version,
            };
            treering_control::run(options, stop, |http| announce(json!({"http": http}))).await
        }
    }
}
