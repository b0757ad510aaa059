//! A running timeline: a task that feeds the member with whatever has queued up, and everyone else's handle on it.
//!
//! The queue is bounded; a proposer that sends faster than the disk writes waits in its own socket. While the disk
//! is busy with one batch the next one gathers: that is the group commit. While a proposer is connected the timeline has
//! a thread, which has the connections too and waits for the disk itself: handing a batch from thread to thread would
//! cost more than the batch. Answers go to the newest connection of a proposer; messages that an older connection of it
//! still had under way are dropped.

use std::{collections::HashMap, pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::{
    runtime::{Builder, Runtime},
    sync::{mpsc, oneshot, watch},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use treering_consensus::{
    AcceptorMessage, AdminRequest, AdminResponse, PgAncestor, ProposerId, ProposerMessage,
};
use treering_types::{Lsn, Term};

use crate::{
    control_file::Identity,
    error::StoreError,
    member::{Member, Outgoing, Status},
    metrics::Metrics,
    wal_store::WalFiles,
};

/// Messages that may wait for the disk; an append holds at most a frame's bytes.
const QUEUE: usize = 64;
/// Answers that may wait for a proposer's socket before its connection is given up.
pub(crate) const ANSWERS: usize = 1024;
/// After so much quiet the commit position is persisted.
const QUIET: Duration = Duration::from_millis(500);

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
    /// WAL before this is in the pageserver's layers.
    Horizon(Lsn),
    Administer {
        request: AdminRequest,
        answer: oneshot::Sender<Result<AdminResponse, StoreError>>,
    },
}

/// A handle; cheap to share.
pub struct Timeline {
    identity: Identity,
    files: WalFiles,
    requests: mpsc::Sender<Request>,
    status: watch::Receiver<Status>,
    stop: CancellationToken,
    stopped: CancellationToken,
}

impl Timeline {
    /// Starts the task. It ends when `stop` is cancelled, with the commit position persisted.
    pub(crate) fn start(
        member: Member,
        stop: CancellationToken,
        metrics: Arc<Metrics>,
    ) -> Timeline {
        let (requests, queue) = mpsc::channel(QUEUE);
        let (publish, status) = watch::channel(member.status());
        let stopped = CancellationToken::new();
        let timeline = Timeline {
            identity: member.identity().clone(),
            files: member.files().clone(),
            requests,
            status,
            stop: stop.clone(),
            stopped: stopped.clone(),
        };
        let driver = Driver {
            member,
            publish,
            connections: HashMap::new(),
            conversations: TaskTracker::new(),
            horizon: Lsn::INVALID,
            metrics,
        };
        tokio::spawn(async move {
            let _done = stopped.drop_guard();
            driver.run(queue, stop).await;
        });
        timeline
    }

    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    pub fn status(&self) -> Status {
        self.status.borrow().clone()
    }

    /// Changes of the watermarks.
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
        &self.identity.pg_ancestors
    }

    /// Reads `from..to` of the log, up to `flush_lsn`, from the segment that the timeline starts in on.
    ///
    /// With `term`: the bytes are those of that term's log; without, bytes behind `commit_lsn` may be cut later.
    ///
    /// # Errors
    /// [`StoreError::NotYet`], [`StoreError::Trimmed`], [`StoreError::OtherTerm`].
    pub async fn read(&self, from: Lsn, to: Lsn, term: Option<Term>) -> Result<Bytes, StoreError> {
        let before = self.status();
        let oldest = before.trim_lsn.segment_start();
        if from < oldest {
            return Err(StoreError::Trimmed { lsn: from, trim_lsn: oldest });
        }
        if to > before.flush_lsn {
            return Err(StoreError::NotYet { lsn: to, end: before.flush_lsn });
        }
        let files = self.files.clone();
        let bytes = run_blocking(move || files.read(from, to)).await??;
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
}

/// Runs file work off the async threads.
pub(crate) async fn run_blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, StoreError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| StoreError::Latched(error.to_string()))
}

struct Connection {
    id: ConnectionId,
    answers: mpsc::Sender<AcceptorMessage>,
}

type FromProposer = (ProposerId, ProposerMessage);
type Administration = (AdminRequest, oneshot::Sender<Result<AdminResponse, StoreError>>);

struct Driver {
    member: Member,
    publish: watch::Sender<Status>,
    connections: HashMap<ProposerId, Connection>,
    /// Those on the thread, older connections too.
    conversations: TaskTracker,
    horizon: Lsn,
    metrics: Arc<Metrics>,
}

/// What came of waiting for requests.
enum Next {
    Requests(Vec<Request>),
    Quiet,
    Stopped,
}

impl Driver {
    /// Without proposers this is an async task and no more; a request moves it to a thread of its own, until all is quiet
    /// again.
    async fn run(mut self, mut queue: mpsc::Receiver<Request>, stop: CancellationToken) {
        let publish = self.publish.clone();
        while let Next::Requests(first) = next(&mut queue, &stop, Duration::MAX).await {
            let (back_in, back) = oneshot::channel();
            let stop = stop.clone();
            let started = start_thread(move |runtime| {
                let conversations = self.conversations.clone();
                runtime.block_on(self.be_busy(&mut queue, &stop, first));
                let _ = back_in.send((self, queue));
                // After a stop they still have their last answers to send.
                conversations.close();
                runtime.block_on(conversations.wait());
            });
            let ended = match started {
                Ok(()) => back.await.map_err(|_| "the writer ended unexpectedly".to_owned()),
                Err(error) => Err(format!("no thread for the writer: {error}")),
            };
            match ended {
                Ok(back) => (self, queue) = back,
                Err(why) => {
                    publish.send_modify(|status| {
                        status.latched.get_or_insert(why);
                    });
                    return;
                }
            }
            self.conversations = TaskTracker::new();
        }
    }

    /// On the thread: batch after batch, until none comes for a while and nobody is there who could send one.
    async fn be_busy(
        &mut self,
        queue: &mut mpsc::Receiver<Request>,
        stop: &CancellationToken,
        first: Vec<Request>,
    ) {
        self.handle(first);
        loop {
            match next(queue, stop, QUIET).await {
                Next::Requests(requests) => self.handle(requests),
                Next::Quiet if self.conversations.is_empty() => break,
                Next::Quiet => self.persist_quietly(),
                Next::Stopped => break,
            }
        }
        self.persist_quietly();
    }

    fn handle(&mut self, requests: Vec<Request>) {
        let (messages, administrations) = self.sort(requests);
        let (member, horizon) = (&mut self.member, self.horizon);
        let answers = self.metrics.observe_batch(messages, |messages| member.process(messages));
        if let Err(error) = member.trim(horizon) {
            tracing::warn!(%error, timeline = %member.identity().timeline, "not trimmed");
        }
        let administered: Vec<_> = administrations
            .into_iter()
            .map(|(request, answer)| (member.administer(request), answer))
            .collect();
        self.publish_status();
        for (done, answer) in administered {
            // Who asked may have gone; what was done stays.
            let _ = answer.send(done);
        }
        answers.into_iter().for_each(|answer| self.answer(answer));
    }

    /// Notes what concerns this task; the rest is for the member.
    fn sort(&mut self, requests: Vec<Request>) -> (Vec<FromProposer>, Vec<Administration>) {
        let (mut messages, mut administrations) = (Vec::new(), Vec::new());
        for request in requests {
            match request {
                Request::Attach { proposer, connection: id, answers, conversation } => {
                    self.connections.insert(proposer, Connection { id, answers });
                    self.conversations.spawn(conversation);
                }
                Request::Detach { proposer, connection } => {
                    if self.is_newest(proposer, connection) {
                        self.connections.remove(&proposer);
                    }
                }
                Request::Message { proposer, connection, message } => {
                    if self.is_newest(proposer, connection) {
                        messages.push((proposer, message));
                    }
                }
                Request::Horizon(lsn) => self.horizon = self.horizon.max(lsn),
                Request::Administer { request, answer } => administrations.push((request, answer)),
            }
        }
        (messages, administrations)
    }

    fn is_newest(&self, proposer: ProposerId, connection: ConnectionId) -> bool {
        self.connections.get(&proposer).is_some_and(|known| known.id == connection)
    }

    fn answer(&mut self, Outgoing { to, message }: Outgoing) {
        let is_last = matches!(message, AcceptorMessage::Refusal(_));
        let Some(connection) = self.connections.get(&to) else { return };
        if connection.answers.try_send(message).is_err() || is_last {
            self.connections.remove(&to);
        }
    }

    fn publish_status(&mut self) {
        let status = self.member.status();
        self.publish.send_if_modified(|published| {
            let is_new = *published != status;
            *published = status;
            is_new
        });
    }

    fn persist_quietly(&mut self) {
        if let Err(error) = self.member.persist_commit() {
            let timeline = self.member.identity().timeline;
            tracing::warn!(%error, %timeline, "commit position not persisted");
        }
        self.publish_status();
    }
}

/// Runs `body` on a new thread, with a runtime for that thread alone.
fn start_thread(body: impl FnOnce(Runtime) + Send + 'static) -> std::io::Result<()> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let thread = std::thread::Builder::new().name("treering-wal".into());
    thread.spawn(move || body(runtime)).map(drop)
}

/// Waits for requests, for `patience` at most, and takes all that there are.
async fn next(
    queue: &mut mpsc::Receiver<Request>,
    stop: &CancellationToken,
    patience: Duration,
) -> Next {
    let mut requests = Vec::new();
    tokio::select! {
        () = stop.cancelled() => Next::Stopped,
        received = timeout(patience, queue.recv_many(&mut requests, QUEUE)) => match received {
            Ok(0) => Next::Stopped,
            Ok(_) => Next::Requests(requests),
            Err(_) => Next::Quiet,
        },
    }
}
