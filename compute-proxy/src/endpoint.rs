//! One branch's compute on this node: down, or up with everything that makes it safe.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use treering_types::{ErrorKind, Lsn, TenantId, TimelineId};

use crate::{
    compute::{log::ComputeLog, settings, supervise::Postmaster},
    error::AgentError,
    proposer::Session,
};

/// How long a compute may take for an orderly end.
const STOP_PATIENCE: Duration = Duration::from_secs(4);
/// Free space below which a compute is stopped before Postgres runs into the wall.
const FREE_BYTES_MIN: u64 = 32 * 1024 * 1024;
const DISK_POLL: Duration = Duration::from_secs(1);

/// What the admin API shows of a compute.
#[derive(Debug, Clone, Serialize)]
pub struct Shown {
    pub tenant_id: TenantId,
    pub timeline_id: TimelineId,
    /// `stopped`, `starting`, `running`, `stopping`, `failed`.
    pub state: &'static str,
    pub reason: Option<String>,
    pub pid: Option<i32>,
}

/// A branch as this node knows it.
pub struct Endpoint {
    pub tenant: TenantId,
    pub timeline: TimelineId,
    /// Everything of this branch on this node.
    pub dir: PathBuf,
    /// Held while a compute is started, stopped or removed: one at a time.
    pub changing: tokio::sync::Mutex<()>,
    current: Mutex<Option<Arc<Compute>>>,
    shown: Mutex<Shown>,
}

/// A running compute.
pub struct Compute {
    pub socket_dir: PathBuf,
    pub session: Arc<Session>,
    pub log: ComputeLog,
    pub stop: CancellationToken,
    ended: watch::Receiver<bool>,
}

impl Endpoint {
    pub fn new(tenant: TenantId, timeline: TimelineId, computes_dir: &Path) -> Endpoint {
        let shown = Shown { tenant_id: tenant, timeline_id: timeline, state: "stopped", reason: None, pid: None };
        Endpoint {
            tenant,
            timeline,
            dir: computes_dir.join(timeline.to_string()),
            changing: tokio::sync::Mutex::new(()),
            current: Mutex::new(None),
            shown: Mutex::new(shown),
        }
    }

    pub fn shown(&self) -> Shown {
        self.shown.lock().clone()
    }

    pub fn show(&self, state: &'static str, reason: Option<String>, pid: Option<i32>) {
        let mut shown = self.shown.lock();
        (shown.state, shown.reason, shown.pid) = (state, reason, pid);
    }

    /// The compute, while it is up and nobody has begun to stop it.
    pub fn current(&self) -> Option<Arc<Compute>> {
        let current = self.current.lock();
        current.as_ref().filter(|c| !*c.ended.borrow() && !c.stop.is_cancelled()).cloned()
    }

    /// Puts a started postmaster under supervision and makes it the current compute.
    pub fn supervise(
        self: &Arc<Self>,
        postmaster: Postmaster,
        session: Arc<Session>,
        log: ComputeLog,
        socket_dir: PathBuf,
        data_dir: PathBuf,
    ) -> Arc<Compute> {
        let (over, ended) = watch::channel(false);
        let compute = Arc::new(Compute { socket_dir, session, log, stop: CancellationToken::new(), ended });
        *self.current.lock() = Some(compute.clone());
        let (endpoint, watched) = (self.clone(), compute.clone());
        tokio::spawn(async move {
            endpoint.watch(postmaster, &watched, &data_dir).await;
            over.send_replace(true);
        });
        compute
    }

    /// Follows a compute to its end, whatever ends it, and leaves no process behind.
    async fn watch(&self, mut postmaster: Postmaster, compute: &Compute, data_dir: &Path) {
        let (state, reason) = tokio::select! {
            how = postmaster.wait() => match compute.log.disk_is_full() {
                true => ("failed", Some(disk_full(data_dir))),
                false => ("failed", Some(format!("Postgres ended by itself: {how}"))),
            },
            error = compute.session.failed() => ("failed", Some(error.to_string())),
            () = full_disk(compute, data_dir) => ("failed", Some(disk_full(data_dir))),
            () = compute.stop.cancelled() => {
                self.show("stopping", None, Some(postmaster.pid()));
                if let Err(error) = postmaster.stop(STOP_PATIENCE).await {
                    tracing::error!(%error, "a compute could not be stopped");
                }
                ("stopped", None)
            }
        };
        compute.stop.cancel();
        if let Err(error) = postmaster.kill().await {
            tracing::error!(%error, "a compute could not be killed");
        }
        compute.session.close();
        if let Some(reason) = &reason {
            tracing::warn!(timeline = %self.timeline, "compute ended: {reason}");
        }
        // The directory was a cache: a new start makes a new one.
        let data_dir = data_dir.to_owned();
        let _ = tokio::task::spawn_blocking(move || std::fs::remove_dir_all(data_dir)).await;
        self.show(state, reason, None);
    }

    /// Stops the compute if it runs; returns once nothing of it is left.
    pub async fn stop(&self) -> Result<(), AgentError> {
        let _changing = self.changing.lock().await;
        let compute = self.current.lock().take();
        if let Some(compute) = compute {
            compute.stop.cancel();
            compute.wait_ended().await;
        }
        if self.shown().state != "stopped" {
            self.show("stopped", None, None);
        }
        Ok(())
    }
}

impl Compute {
    /// Waits until no process of it is left.
    pub async fn wait_ended(&self) {
        let mut ended = self.ended.clone();
        let _ = ended.wait_for(|ended| *ended).await;
    }

    /// A connection of the agent's own, as superuser, by peer authentication.
    pub async fn connect(&self) -> Result<tokio_postgres::Client, AgentError> {
        let mut config = tokio_postgres::Config::new();
        config.host_path(&self.socket_dir).port(settings::SOCKET_PORT).user(settings::AGENT_ROLE);
        config.dbname("postgres").application_name("treering_agent_admin");
        config.connect_timeout(Duration::from_secs(5));
        let connected = config.connect(tokio_postgres::NoTls).await;
        let (client, connection) = connected.map_err(|error| sql_error(&error))?;
        tokio::spawn(connection);
        Ok(client)
    }

    /// `pg_current_wal_flush_lsn()`: covers every commit that any backend has reported or is about to.
    pub async fn flush_lsn(&self) -> Result<Lsn, AgentError> {
        let client = self.connect().await?;
        let row = client.query_one("SELECT pg_current_wal_flush_lsn()::text", &[]).await;
        let text: String = row.map_err(|error| sql_error(&error))?.get(0);
        Ok(text.parse().context("pg_current_wal_flush_lsn")?)
    }
}

/// What Postgres said, not what the driver calls it.
pub fn sql_error(error: &tokio_postgres::Error) -> AgentError {
    let text = error.as_db_error().map_or_else(|| error.to_string(), |db| db.message().to_owned());
    AgentError::new(ErrorKind::Unavailable, text)
}

fn disk_full(dir: &Path) -> String {
    format!(
        "the disk that holds {} is full; nothing acknowledged is lost. Make room and start the branch again",
        dir.display()
    )
}

/// Returns when the disk below `dir` is about to be full, or Postgres says that it is.
async fn full_disk(compute: &Compute, dir: &Path) {
    loop {
        tokio::time::sleep(DISK_POLL).await;
        let free = rustix::fs::statvfs(dir).map(|stat| stat.f_bavail.saturating_mul(stat.f_frsize));
        if compute.log.disk_is_full() || free.is_ok_and(|free| free < FREE_BYTES_MIN) {
            return;
        }
    }
}
