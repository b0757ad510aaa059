//! The proposer of one compute: the consensus crate's state machine, given sockets and a clock.
//!
//! A [`Session`] is one term won. It lives on a thread of its own, with the connections to the members and whoever
//! feeds it ([`Session::spawn`]): what a commit passes through here wakes no other thread. Everyone else holds the
//! handle. WAL goes in through a bounded channel that is not read while too much waits to be sent to a quorum, which is
//! the back-pressure on the compute; a single member that is slow or hangs holds nobody up.

mod driver;
mod link;
mod news;
mod old_wal;
mod patience;

use std::{path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::{
    runtime::{Builder, Handle},
    sync::{mpsc, watch},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use treering_consensus::{
    Configuration, Election, PgAncestor, Proposer, ProposerConfig, ProposerId, TimelineIdentity,
};
use treering_types::{ErrorKind, Lsn};

use self::{driver::Driver, link::Book, old_wal::OldWal};
use crate::{Safekeeper, error::AgentError};

/// Whose log is written, and what a safekeeper must know to serve it to stock standbys.
#[derive(Debug, Clone)]
pub struct Log {
    pub identity: TimelineIdentity,
    /// For the history file; counts only when the log is created.
    pub pg_ancestors: Vec<PgAncestor>,
}

/// Log kept in memory for members that fell behind; more is read from the compute's own `pg_wal` or from other members.
const WINDOW_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Appends that may wait for the task.
const APPEND_QUEUE: usize = 64;
/// What members and readers of old log have to say, and the task has not heard yet.
const EVENT_QUEUE: usize = 256;
/// How long an election may take before the caller is told that no quorum answers.
const ELECTION_LIMIT: Duration = Duration::from_secs(10);

/// One term won: the right to append to a timeline's log.
pub struct Session {
    /// F: where the term begins.
    pub start_lsn: Lsn,
    pub election: Election,
    appends: mpsc::Sender<(Lsn, Bytes)>,
    commit: watch::Receiver<Lsn>,
    failure: watch::Receiver<Option<AgentError>>,
    close: CancellationToken,
    thread: Handle,
    /// The tasks of the members' connections.
    links: TaskTracker,
    /// Where the compute keeps its WAL, once there is one.
    wal_dir: Arc<Mutex<Option<PathBuf>>>,
}

impl Session {
    /// Wins a term on the quorum and commits F. `configuration`: who decides, as far as known; the members tell of a newer one.
    /// `safekeepers`: where its members, and those of newer ones, are.
    ///
    /// # Errors
    /// `Unavailable` when no majority answers in time, `Fenced` when another proposer was elected meanwhile, and what
    /// a member refused with.
    pub async fn elect(
        log: Log,
        configuration: Configuration,
        safekeepers: &[Safekeeper],
    ) -> Result<Session, AgentError> {
        let members = configuration.all_members();
        let proposer = Proposer::new(ProposerConfig {
            proposer: ProposerId(rand::random()),
            configuration,
            timeline: log.identity.clone(),
            window_bytes_max: WINDOW_BYTES_MAX,
        })
        .with_pg_ancestors(log.pg_ancestors);
        let (events_in, events) = mpsc::channel(EVENT_QUEUE);
        let (appends, appends_out) = mpsc::channel(APPEND_QUEUE);
        let (commit_in, commit) = watch::channel(Lsn::INVALID);
        let (failure_in, failure) = watch::channel(None);
        let (elected_in, mut elected) = watch::channel(None);
        let (close, all_said) = (CancellationToken::new(), CancellationToken::new());
        let guard = close.clone().drop_guard();
        let tracker = TaskTracker::new();
        let thread = start_thread(close.clone(), tracker.clone())?;
        let wal_dir = Arc::new(Mutex::new(None));
        let old_wal = OldWal::new(&log.identity, safekeepers, wal_dir.clone(), events_in.clone());
        let book = Book {
            safekeepers: safekeepers.to_vec(),
            tracker: tracker.clone(),
            thread: thread.clone(),
            events: events_in,
            close: all_said.clone(),
        };
        let links = members.iter().filter_map(|node| book.open(*node)).collect();
        let outlets = (commit_in, failure_in, elected_in);
        let driver = Driver::new(proposer, (book, links), old_wal, outlets);
        let driving = driver.run(events, appends_out, close.clone());
        // However it ends: the links outlive what the driver has to say, and the thread outlives them.
        let all_said = all_said.drop_guard();
        let closed = close.clone();
        thread.spawn(async move {
            let _all_said = all_said;
            driving.await;
            closed.cancelled().await;
        });
        let won = tokio::time::timeout(ELECTION_LIMIT, async {
            let mut failure = failure.clone();
            tokio::select! {
                won = elected.wait_for(Option::is_some) => won.ok().and_then(|won| won.clone()).ok_or_else(gone),
                failed = failure.wait_for(Option::is_some) => {
                    Err(failed.ok().and_then(|f| f.clone()).unwrap_or_else(gone))
                }
            }
        });
        let election: Election = won.await.map_err(|_| no_quorum(safekeepers))??;
        guard.disarm();
        Ok(Session {
            start_lsn: election.start_lsn,
            election,
            appends,
            commit,
            failure,
            close,
            thread,
            links: tracker,
            wal_dir,
        })
    }

    /// Runs a task on the session's thread. It is dropped when the session is closed.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.thread.spawn(task);
    }

    /// Hands on the next bytes of the log. Waits while too much is under way.
    pub async fn append(&self, lsn: Lsn, bytes: Bytes) -> Result<(), AgentError> {
        if self.appends.send((lsn, bytes)).await.is_err() {
            return Err(self.failure.borrow().clone().unwrap_or_else(gone));
        }
        Ok(())
    }

    /// Everything up to here is on a majority.
    pub fn commit_lsn(&self) -> Lsn {
        *self.commit.borrow()
    }

    pub fn watch_commit(&self) -> watch::Receiver<Lsn> {
        self.commit.clone()
    }

    /// Waits until `lsn` is committed.
    pub async fn wait_for(&self, lsn: Lsn) -> Result<(), AgentError> {
        let mut commit = self.commit.clone();
        tokio::select! {
            reached = commit.wait_for(|commit| *commit >= lsn) => reached.map(drop).map_err(|_| gone()),
            error = self.failed() => Err(error),
        }
    }

    /// Returns once this session can never commit again.
    pub async fn failed(&self) -> AgentError {
        let mut failure = self.failure.clone();
        let failed = failure.wait_for(Option::is_some).await;
        failed.ok().and_then(|failed| failed.clone()).unwrap_or_else(gone)
    }

    /// Tells where WAL that has left memory can be read: the compute's `pg_wal`.
    pub fn set_wal_dir(&self, dir: PathBuf) {
        *self.wal_dir.lock() = Some(dir);
    }

    pub fn is_closed(&self) -> bool {
        self.close.is_cancelled() || self.failure.borrow().is_some()
    }

    /// Lets go of the term. What the members were already to be told, the last commit above all, still reaches them.
    pub fn close(&self) {
        self.close.cancel();
    }

    /// As [`Session::close`], and waits until the members that are there have heard the last words: a second at most.
    pub async fn end(&self) {
        self.close();
        self.links.close();
        self.links.wait().await;
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.close.cancel();
    }
}

/// A thread that runs tasks until `close` is cancelled and the `links` have said what they had to; what is left is
/// dropped then.
fn start_thread(close: CancellationToken, links: TaskTracker) -> Result<Handle, AgentError> {
    let failed = |error: std::io::Error| {
        AgentError::new(ErrorKind::Unavailable, format!("no thread for the log: {error}"))
    };
    let runtime = Builder::new_current_thread().enable_all().build().map_err(failed)?;
    let handle = runtime.handle().clone();
    let body = move || {
        // It does little at a time, and all commits wait for it.
        treering_threads::urgent();
        runtime.block_on(async {
            close.cancelled().await;
            links.close();
            links.wait().await;
        });
    };
    std::thread::Builder::new().name("treering-wal".into()).spawn(body).map_err(failed)?;
    Ok(handle)
}

fn gone() -> AgentError {
    AgentError::new(ErrorKind::Shutdown, "the proposer has stopped")
}

fn no_quorum(members: &[Safekeeper]) -> AgentError {
    let addresses: Vec<_> = members.iter().map(|member| &member.wal[..]).collect();
    let text = format!("no quorum of safekeepers answers ({})", addresses.join(", "));
    AgentError::new(ErrorKind::Unavailable, text)
}
