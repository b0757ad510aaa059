//! A running timeline: a task that feeds the member with whatever has queued up, and everyone else's handle on it.
//!
//! The queue is bounded; a proposer that sends faster than the disk writes waits in its own socket.

mod driver;
mod syncer;

use std::{pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use treering_consensus::{
    AcceptorMessage, AdminRequest, AdminResponse, PgAncestor, ProposerId, ProposerMessage,
};
use treering_types::{Lsn, Term};

use self::driver::Driver;
use crate::{
    control_file::Identity,
    error::StoreError,
    log_reader::LogReader,
    member::{Member, Status},
    pace,
    timelines::Shared,
};

/// Messages that may wait for the disk; an append holds at most a frame's bytes.
const QUEUE: usize = 64;
/// Answers that may wait for a proposer's socket before its connection is given up.
pub(crate) const ANSWERS: usize = 1024;

/// Names one connection of a proposer; later ones are higher.
pub(crate) type ConnectionId = u64;

/// What a connection does until it ends, after its last request. Runs on the timeline's thread.
pub(crate) type Conversation = Pin<Box<dyn Future<Output = ()> + Send>>;

pub(crate) enum Request {
    /// A connection greeted; answers go there from now on.
    Attach {
        proposer: ProposerId,
        connection: ConnectionId,
        answers: mpsc::Sender<AcceptorMessage>,
        conversation: Conversation,
    },
    Detach {
        proposer: ProposerId,
        connection: ConnectionId,
    },
    Message {
        proposer: ProposerId,
        connection: ConnectionId,
        message: ProposerMessage,
    },
    /// How far the pageserver is.
    Pageserver {
        ingested: Lsn,
        /// What it has made of the log before this is durable.
        horizon: Lsn,
    },
    /// WAL before this is in the archive.
    Archived(Lsn),
    Administer {
        request: AdminRequest,
        answer: oneshot::Sender<Result<AdminResponse, StoreError>>,
    },
}

/// A handle; cheap to share.
pub struct Timeline {
    log: LogReader,
    requests: mpsc::Sender<Request>,
    status: watch::Receiver<Status>,
    lag_limit: u64,
    stop: CancellationToken,
    stopped: CancellationToken,
}

impl Timeline {
    /// Starts the task. It ends when `stop` is cancelled, with the commit position persisted.
    pub(crate) fn start(member: Member, shared: Shared, stop: CancellationToken) -> Timeline {
        let Shared { archive, lag_limit, metrics, .. } = shared;
        let (requests, queue) = mpsc::channel(QUEUE);
        let archived = archive.as_ref().map(|_| Lsn::INVALID);
        let (publish, status) =
            watch::channel(Status { archived_lsn: archived, ..member.status() });
        let stopped = CancellationToken::new();
        let log = LogReader {
            identity: Arc::new(member.identity().clone()),
            files: member.files().clone(),
            archive,
            status: status.clone(),
        };
        let timeline = Timeline {
            log,
            requests,
            status,
            lag_limit,
            stop: stop.clone(),
            stopped: stopped.clone(),
        };
        let driver = Driver::new(member, publish, archived, metrics);
        tokio::spawn(async move {
            let _done = stopped.drop_guard();
            driver.run(queue, stop).await;
        });
        timeline
    }

    pub fn identity(&self) -> &Identity {
        &self.log.identity
    }

    pub fn status(&self) -> Status {
        self.status.borrow().clone()
    }

    /// The watermarks. Changes of the commit position are told, others are there when one looks.
    pub(crate) fn watch(&self) -> watch::Receiver<Status> {
        self.status.clone()
    }

    /// Ends the task, waiting for what is being written.
    pub(crate) async fn shut_down(&self) {
        self.stop.cancel();
        self.stopped.cancelled().await;
    }

    /// Cancelled when the timeline stops or is deleted.
    pub(crate) fn stopping(&self) -> &CancellationToken {
        &self.stop
    }

    /// How long a proposer has to wait that has sent so much log, up to `end`: that is received, and may be far from synced.
    pub(crate) fn pause_after(&self, bytes: u64, end: Lsn) -> Duration {
        let status = self.status.borrow();
        match status.ingested_lsn.is_valid() {
            true => {
                let lag = status.flush_lsn.max(end).0.saturating_sub(status.ingested_lsn.0);
                pace::pause_after(bytes, lag, self.lag_limit)
            }
            // Nobody has told how far the pageserver is.
            false => Duration::ZERO,
        }
    }

    pub(crate) async fn send(&self, request: Request) -> Result<(), StoreError> {
        self.requests.send(request).await.map_err(|_| match self.status().latched {
            Some(reason) => StoreError::Latched(reason),
            None => StoreError::Shutdown,
        })
    }

    /// Speaks for who changes the quorum's members. What the answer says is durable.
    ///
    /// # Errors
    /// Those of the disk: a request that is not granted is no error.
    pub async fn administer(&self, request: AdminRequest) -> Result<AdminResponse, StoreError> {
        let (answer, answered) = oneshot::channel();
        self.send(Request::Administer { request, answer }).await?;
        answered.await.map_err(|_| StoreError::Shutdown)?
    }

    /// Lines for a Postgres history file, oldest first.
    pub fn pg_ancestors(&self) -> &[PgAncestor] {
        &self.log.identity.pg_ancestors
    }

    /// The oldest position that can be read, here or in the archive, as far as can be told without asking that.
    pub fn oldest_lsn(&self) -> Lsn {
        self.log.oldest_lsn()
    }

    /// Reads `from..to` of the log, up to `flush_lsn`, from [`Timeline::oldest_lsn`] on.
    ///
    /// With `term`: the bytes are those of that term's log; without, bytes behind `commit_lsn` may be cut later.
    ///
    /// # Errors
    /// [`StoreError::NotYet`], [`StoreError::Trimmed`], [`StoreError::OtherTerm`], those of the archive.
    pub async fn read(&self, from: Lsn, to: Lsn, term: Option<Term>) -> Result<Bytes, StoreError> {
        let bytes = match self.log.read_at_hand(from, to) {
            Some(bytes) => bytes,
            None => {
                let log = self.log.clone();
                run_blocking(move || log.read(from, to)).await??
            }
        };
        if let Some(expected) = term {
            // A later proposer cuts in its own term. Asked of the writer after the read, and not of what it has
            // published: it publishes a term when the cut is done.
            let found = self.administer(AdminRequest::Read).await?.term;
            if found != expected {
                return Err(StoreError::OtherTerm { found: found.0, expected: expected.0 });
            }
        }
        Ok(bytes)
    }

    /// As [`Timeline::read`], for threads that may wait.
    pub(crate) fn read_now(&self, from: Lsn, to: Lsn) -> Result<Bytes, StoreError> {
        self.log.read(from, to)
    }

    /// As [`Timeline::send`], for threads that may wait.
    pub(crate) fn send_now(&self, request: Request) -> Result<(), StoreError> {
        self.requests.blocking_send(request).map_err(|_| StoreError::Shutdown)
    }
}

/// Runs file work off the async threads.
pub(crate) async fn run_blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, StoreError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| StoreError::Latched(error.to_string()))
}
