//! One branch's compute on this node: down, or up with everything that makes it safe.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::Context;
use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::{MutexGuard, watch};
use tokio_postgres::error::SqlState;
use tokio_util::sync::CancellationToken;
use treering_types::{ErrorKind, Lsn, TenantId, TimelineId};

use crate::{
    compute::{
        log::ComputeLog,
        settings,
        supervise::{End, Postmaster},
    },
    error::AgentError,
    pages::{Pages, keep},
    proposer::Session,
};

/// How long a compute may take for an orderly end.
const STOP_PATIENCE: Duration = Duration::from_secs(4);
/// Free space below which a compute is stopped before Postgres runs into the wall.
const FREE_BYTES_MIN: u64 = 32 * 1024 * 1024;
/// Free space below which a start is not begun, and a report of a full disk believed.
pub const FREE_BYTES_LOW: u64 = 128 * 1024 * 1024;
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
    changing: tokio::sync::Mutex<Life>,
    /// Cancelled to make a start under way give up; replaced when it has.
    starting: Mutex<CancellationToken>,
    current: Mutex<Option<Arc<Compute>>>,
    shown: Mutex<Shown>,
}

/// Whether an endpoint may still be started.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Life {
    Usable,
    /// Its branch was deleted, or the agent is stopping: never again.
    Over,
}

/// Where a compute's files are.
pub struct Places {
    pub socket_dir: PathBuf,
    pub run_dir: PathBuf,
}

/// A running compute.
pub struct Compute {
    pub socket_dir: PathBuf,
    pub session: Arc<Session>,
    pub log: ComputeLog,
    /// When its pages are fetched on first touch.
    pub pages: Option<Arc<Pages>>,
    pub stop: CancellationToken,
    /// Why it cannot go on.
    failure: watch::Sender<Option<String>>,
    /// Its commits wait for us: clients may come in.
    ready: AtomicBool,
    ended: watch::Receiver<bool>,
}

impl Endpoint {
    pub fn new(tenant: TenantId, timeline: TimelineId, computes_dir: &Path) -> Endpoint {
        let shown = Shown {
            tenant_id: tenant,
            timeline_id: timeline,
            state: "stopped",
            reason: None,
            pid: None,
        };
        Endpoint {
            tenant,
            timeline,
            dir: computes_dir.join(timeline.to_string()),
            changing: tokio::sync::Mutex::new(Life::Usable),
            starting: Mutex::default(),
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

    /// The compute, while it takes clients and nobody has begun to stop it.
    pub fn current(&self) -> Option<Arc<Compute>> {
        self.current.lock().as_ref().filter(|compute| compute.is_usable()).cloned()
    }

    /// The right to start: nothing of an older compute is left when it is given.
    ///
    /// # Errors
    /// `Gone` when the endpoint's life is over.
    pub async fn change(&self) -> Result<MutexGuard<'_, Life>, AgentError> {
        let changing = self.changing.lock().await;
        if *changing == Life::Over {
            return Err(AgentError::new(
                ErrorKind::Gone,
                "the branch was deleted, or the agent is stopping",
            ));
        }
        let older = self.current.lock().clone().filter(|compute| !compute.is_usable());
        if let Some(older) = older {
            older.stop.cancel();
            older.wait_ended().await;
        }
        Ok(changing)
    }

    /// Cancelled when whoever starts a compute should give up.
    pub fn start_token(&self) -> CancellationToken {
        self.starting.lock().clone()
    }

    /// Puts a started postmaster under supervision and makes it the current compute.
    pub fn supervise(
        self: &Arc<Self>,
        postmaster: Postmaster,
        session: Arc<Session>,
        log: ComputeLog,
        places: Places,
        pages: Option<Arc<Pages>>,
    ) -> Arc<Compute> {
        let Places { socket_dir, run_dir } = places;
        let (over, ended) = watch::channel(false);
        let compute = Arc::new(Compute {
            socket_dir,
            session,
            log,
            pages,
            stop: CancellationToken::new(),
            failure: watch::Sender::new(None),
            ready: AtomicBool::new(false),
            ended,
        });
        *self.current.lock() = Some(compute.clone());
        let (endpoint, watched) = (self.clone(), compute.clone());
        tokio::spawn(async move {
            endpoint.watch(postmaster, &watched, run_dir).await;
            over.send_replace(true);
        });
        compute
    }

    /// Follows a compute to its end, whatever ends it, and leaves no process and no file of it behind.
    async fn watch(&self, mut postmaster: Postmaster, compute: &Compute, run_dir: PathBuf) {
        let (state, reason) = tokio::select! {
            how = postmaster.wait() => match compute.log.disk_is_full() {
                true => ("failed", Some(disk_full(&run_dir))),
                false => ("failed", Some(format!("Postgres ended by itself: {how}"))),
            },
            error = compute.session.failed() => ("failed", Some(error.to_string())),
            reason = compute.failed() => ("failed", Some(reason)),
            () = disk_filling(compute, &run_dir) => ("failed", Some(disk_full(&run_dir))),
            () = compute.stop.cancelled() => {
                self.show("stopping", None, Some(postmaster.pid()));
                match postmaster.stop(STOP_PATIENCE).await {
                    Ok(End::Clean) => self.keep_hints(compute, &run_dir).await,
                    Ok(End::Forced) => {}
                    Err(error) => tracing::error!(%error, "a compute could not be stopped"),
                }
                ("stopped", None)
            }
        };
        compute.stop.cancel();
        if let Err(error) = postmaster.kill().await {
            tracing::error!(%error, "a compute could not be killed");
        }
        if let Some(pages) = compute.pages.clone() {
            let closed = Arc::clone(&pages);
            let _ = tokio::task::spawn_blocking(move || closed.close()).await;
            pages.release_lease().await;
        }
        compute.session.close();
        if let Some(reason) = &reason {
            tracing::warn!(timeline = %self.timeline, "compute ended: {reason}");
        }
        // The directory was a cache: a new start makes a new one.
        let dirs = [run_dir, compute.socket_dir.clone()];
        let removed = tokio::task::spawn_blocking(move || dirs.map(std::fs::remove_dir_all));
        let _ = removed.await;
        self.show(state, reason, None);
    }

    /// Keeps what only the files hold for the next start. What is lost here is lost as in a crash.
    async fn keep_hints(&self, compute: &Compute, run_dir: &Path) {
        let (branch_dir, data_dir) = (self.dir.clone(), run_dir.join("pgdata"));
        let end = compute.session.commit_lsn();
        let kept = tokio::task::spawn_blocking(move || keep::save(&branch_dir, &data_dir, end));
        if let Ok(Err(error)) = kept.await {
            tracing::warn!(%error, "statistics and free-space maps are not kept");
        }
    }

    /// Stops the compute if it runs, also one that is just starting; returns once nothing of it is left.
    pub async fn stop(&self) -> Result<(), AgentError> {
        self.end(Life::Usable).await.map(drop)
    }

    /// [`stop`](Self::stop), and no start ever after.
    pub async fn retire(&self) -> Result<MutexGuard<'_, Life>, AgentError> {
        self.end(Life::Over).await
    }

    async fn end(&self, then: Life) -> Result<MutexGuard<'_, Life>, AgentError> {
        std::mem::take(&mut *self.starting.lock()).cancel();
        let mut changing = self.changing.lock().await;
        if then == Life::Over {
            *changing = Life::Over;
        }
        let compute = self.current.lock().take();
        if let Some(compute) = compute {
            compute.stop.cancel();
            compute.wait_ended().await;
        }
        if self.shown().state != "stopped" {
            self.show("stopped", None, None);
        }
        Ok(changing)
    }
}

impl Compute {
    fn is_usable(&self) -> bool {
        self.ready.load(Ordering::Acquire) && !*self.ended.borrow() && !self.stop.is_cancelled()
    }

    /// Its socket file.
    pub fn socket(&self) -> PathBuf {
        self.socket_dir.join(format!(".s.PGSQL.{}", settings::SOCKET_PORT))
    }

    /// It cannot go on: the first reason counts.
    pub fn fail(&self, reason: String) {
        self.failure.send_if_modified(|failure| {
            let is_first = failure.is_none();
            failure.get_or_insert(reason);
            is_first
        });
    }

    async fn failed(&self) -> String {
        let mut failure = self.failure.subscribe();
        let failed = failure.wait_for(Option::is_some).await;
        failed.ok().and_then(|reason| reason.clone()).unwrap_or_default()
    }

    /// Clients may come in from now on.
    pub fn set_ready(&self) {
        self.ready.store(true, Ordering::Release);
    }

    /// Waits until no process of it is left.
    pub async fn wait_ended(&self) {
        let mut ended = self.ended.clone();
        let _ = ended.wait_for(|ended| *ended).await;
    }

    /// A connection of the agent's own, as superuser, by peer authentication. A user may have dropped `postgres`.
    pub async fn connect(&self) -> Result<tokio_postgres::Client, AgentError> {
        match self.connect_to("postgres").await {
            Err(error) if error.code() == Some(&SqlState::INVALID_CATALOG_NAME) => {
                self.connect_to("template1").await.map_err(|error| sql_error(&error))
            }
            other => other.map_err(|error| sql_error(&error)),
        }
    }

    async fn connect_to(
        &self,
        database: &str,
    ) -> Result<tokio_postgres::Client, tokio_postgres::Error> {
        let mut config = tokio_postgres::Config::new();
        config.host_path(&self.socket_dir).port(settings::SOCKET_PORT).user(settings::AGENT_ROLE);
        config.dbname(database).application_name("treering_agent_admin");
        config.connect_timeout(Duration::from_secs(5));
        let (client, connection) = config.connect(tokio_postgres::NoTls).await?;
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

/// The sentence for a full disk.
pub fn disk_full(dir: &Path) -> String {
    format!(
        "the disk that holds {} is full; nothing acknowledged is lost. Make room and start the branch again",
        dir.display()
    )
}

/// True when less than `bytes` are free where `dir` is. What cannot be asked is not full.
pub fn has_less_than(dir: &Path, bytes: u64) -> bool {
    let free = rustix::fs::statvfs(dir).map(|stat| stat.f_bavail.saturating_mul(stat.f_frsize));
    free.is_ok_and(|free| free < bytes)
}

/// Returns when the disk below `dir` is about to be full. Postgres's own word for it is checked: any role can raise
/// an error under that SQLSTATE.
async fn disk_filling(compute: &Compute, dir: &Path) {
    loop {
        tokio::time::sleep(DISK_POLL).await;
        let said_so = compute.log.disk_is_full() && has_less_than(dir, FREE_BYTES_LOW);
        if said_so || has_less_than(dir, FREE_BYTES_MIN) {
            return;
        }
    }
}
