//! The task of a timeline: feeds the member with whatever has queued up, batch after batch.
//!
//! While the disk is busy with one batch the next one gathers: that is the group commit. While a proposer is connected
//! the timeline has a thread, which has the connections too. It waits for the disk itself where a batch is small: handing a
//! commit from thread to thread would cost more than the commit. Under a load the disk has more to do, and so have we: then
//! another thread waits, while the next batch is received, checked and written, so that the disk can go on with it at once.
//! Answers go to the newest connection of a proposer; messages that an older connection of it still had under way are dropped.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    runtime::{Builder, Runtime},
    sync::{mpsc, oneshot, watch},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use treering_consensus::{
    AcceptorMessage, AdminRequest, AdminResponse, ProposerId, ProposerMessage,
};
use treering_types::{ErrorKind, Lsn};

use super::{ConnectionId, QUEUE, Request, syncer::Syncer};
use crate::{
    error::StoreError,
    member::{Elsewhere, Member, Outgoing, Status},
    metrics::Metrics,
};

/// After so much quiet the commit position is persisted.
const QUIET: Duration = Duration::from_millis(500);
/// A batch of so many bytes is synced on another thread: more than one of a walsender's messages, so more will come meanwhile.
const ASIDE_BYTES: u64 = 192 * 1024;
/// What is taken for a log to come is given up when none has come for so long; most of it, when it has not filled a segment.
const AHEAD_KEPT: Duration = Duration::from_secs(10);

struct Connection {
    id: ConnectionId,
    answers: mpsc::Sender<AcceptorMessage>,
}

type FromProposer = (ProposerId, ProposerMessage);
type Administration = (AdminRequest, oneshot::Sender<Result<AdminResponse, StoreError>>);

/// The member's owner.
pub(super) struct Driver {
    member: Member,
    syncer: Syncer,
    /// When the sync that is under way began to be needed.
    sync_began: Instant,
    publish: watch::Sender<Status>,
    connections: HashMap<ProposerId, Connection>,
    /// Those on the thread, older connections too.
    conversations: TaskTracker,
    horizon: Lsn,
    ingested: Lsn,
    /// `None` without an archive.
    archived: Option<Lsn>,
    metrics: Arc<Metrics>,
}

/// How a log grows.
struct Movement {
    end: Lsn,
    /// When the end was last seen to move. (Signs of life come all the time.)
    moved: Instant,
    /// When it was last seen to move to another segment.
    filled: Instant,
}

impl Movement {
    fn of(end: Lsn) -> Movement {
        Movement { end, moved: Instant::now(), filled: Instant::now() }
    }
}

/// What came of waiting for requests.
enum Next {
    Requests(Vec<Request>),
    /// A sync has ended on the other thread.
    Synced,
    Quiet,
    Stopped,
}

impl Driver {
    /// `archived`: `None` without an archive.
    pub(super) fn new(
        member: Member,
        publish: watch::Sender<Status>,
        archived: Option<Lsn>,
        metrics: Arc<Metrics>,
    ) -> Driver {
        Driver {
            member,
            syncer: Syncer::default(),
            sync_began: Instant::now(),
            publish,
            connections: HashMap::new(),
            conversations: TaskTracker::new(),
            horizon: Lsn::INVALID,
            ingested: Lsn::INVALID,
            archived,
            metrics,
        }
    }

    /// Without proposers this is an async task and no more; a request moves it to a thread of its own, until all is quiet
    /// again.
    pub(super) async fn run(mut self, mut queue: mpsc::Receiver<Request>, stop: CancellationToken) {
        let publish = self.publish.clone();
        while let Next::Requests(first) = next(&mut queue, &stop, Duration::MAX).await {
            let (back_in, back) = oneshot::channel();
            let stop = stop.clone();
            let started = start_thread(move |runtime| {
                let conversations = self.conversations.clone();
                // A task like those that wake it: for what it waits for itself a runtime asks the kernel once more.
                let busy = runtime.spawn(async move {
                    self.be_busy(&mut queue, &stop, first).await;
                    let _ = back_in.send((self, queue));
                });
                if runtime.block_on(busy).is_err() {
                    // It has panicked, and who waits for what is sent back has heard of it.
                    return;
                }
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
        let mut movement = Movement::of(self.member.flush_lsn());
        self.handle(first);
        loop {
            let next = tokio::select! {
                biased;
                () = self.syncer.ended() => Next::Synced,
                next = next(queue, stop, QUIET) => next,
            };
            match next {
                Next::Requests(requests) => self.handle(requests),
                Next::Synced => self.go_on_after_sync(),
                Next::Quiet if self.conversations.is_empty() => break,
                Next::Quiet => self.persist_quietly(),
                Next::Stopped => break,
            }
            self.look_at(&mut movement);
        }
        let mut answers = Vec::new();
        self.member.sync(&mut answers);
        self.syncer = Syncer::default();
        self.let_out(answers);
        self.persist_quietly();
        // Nobody is left who would write.
        self.trim();
        self.give_back();
        self.publish_status();
    }

    /// Gives up what is kept for a log that does not come.
    fn look_at(&mut self, movement: &mut Movement) {
        let end = self.member.flush_lsn();
        if end != movement.end {
            let is_new_segment = end.segment_number() != movement.end.segment_number();
            (movement.end, movement.moved) = (end, Instant::now());
            if is_new_segment {
                movement.filled = movement.moved;
            }
        }
        if movement.moved.elapsed() > AHEAD_KEPT {
            self.give_back();
        } else if movement.filled.elapsed() > AHEAD_KEPT
            && let Err(error) = self.member.shrink_spares()
        {
            let timeline = self.member.identity().timeline;
            tracing::warn!(%error, %timeline, "spare segment files not removed");
        }
    }

    fn handle(&mut self, requests: Vec<Request>) {
        let began = Instant::now();
        let (messages, administrations) = self.sort(requests);
        self.metrics.count_appended(&messages);
        let mut answers = self.member.take_in(messages);
        if self.member.unsynced_bytes() >= ASIDE_BYTES {
            self.sync_aside(began);
        } else if !self.member.is_syncing() {
            self.sync_here(began, &mut answers);
        }
        self.member.persist_commit_if_far();
        self.trim();
        let administered: Vec<_> = administrations
            .into_iter()
            .map(|(request, answer)| (self.member.administer(request, &mut answers), answer))
            .collect();
        self.publish_status();
        for (done, answer) in administered {
            // Who asked may have gone; what was done stays.
            let _ = answer.send(done);
        }
        self.send(answers);
        self.fill_spare();
    }

    fn sync_here(&mut self, began: Instant, answers: &mut Vec<Outgoing>) {
        if self.member.unsynced_bytes() > 0 {
            // What was committed before may be read meanwhile.
            self.publish_status();
            self.member.sync(answers);
            self.metrics.observe_write(began.elapsed());
        }
    }

    /// Unless one is under way: then what is written waits for its end.
    fn sync_aside(&mut self, began: Instant) {
        if let Some(job) = self.member.begin_sync() {
            self.sync_began = began;
            self.syncer.run(job);
        }
    }

    /// What was written meanwhile is synced at once, however little it is, and on the other thread: the answers need not wait.
    fn go_on_after_sync(&mut self) {
        if !self.member.has_synced() {
            return;
        }
        let mut answers = Vec::new();
        self.member.end_sync(&mut answers);
        self.metrics.observe_write(self.sync_began.elapsed());
        self.sync_aside(Instant::now());
        self.let_out(answers);
    }

    /// After something has become durable: who waits for it first, then what may as well come later.
    fn let_out(&mut self, answers: Vec<Outgoing>) {
        self.publish_status();
        self.send(answers);
        self.member.persist_commit_if_far();
        self.trim();
        self.publish_status();
        self.fill_spare();
    }

    fn send(&mut self, answers: Vec<Outgoing>) {
        self.metrics.count_refusals(&answers);
        answers.into_iter().for_each(|answer| self.answer(answer));
    }

    /// On a thread for it alone: this one is what commits wait for. Where cores are short the file may come too late, and the next segment is then a
    /// sparse one: who writes so much that cores are short waits for no single sync.
    fn fill_spare(&mut self) {
        let Some(filler) = self.member.filler() else { return };
        let timeline = self.member.identity().timeline;
        let fill = move || {
            treering_threads::unhurried();
            if let Err(error) = filler.run() {
                tracing::debug!(%error, %timeline, "no segment file made ahead");
            }
        };
        // Without a thread the next segment is a sparse one.
        let _ = std::thread::Builder::new().name("treering-spare".into()).spawn(fill);
    }

    fn give_back(&mut self) {
        if let Err(error) = self.member.give_back() {
            let timeline = self.member.identity().timeline;
            tracing::warn!(%error, %timeline, "room for more log not given back");
        }
    }

    /// Removes what is durable elsewhere. Status must be published before anything is written after that: readers learn from it
    /// that the file they have opened is not the one they meant.
    fn trim(&mut self) {
        let elsewhere = match self.archived {
            Some(archived) => Elsewhere { lsn: self.horizon.min(archived), has_log: true },
            None => Elsewhere { lsn: self.horizon, has_log: false },
        };
        let is_asleep = self.connections.is_empty() && self.conversations.is_empty();
        if let Err(error) = self.member.trim(elsewhere, is_asleep) {
            // That the disk is full has been said; it may be so for long.
            if error.kind() == ErrorKind::Busy {
                return;
            }
            let timeline = self.member.identity().timeline;
            tracing::warn!(%error, %timeline, "not trimmed");
        }
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
                Request::Pageserver { ingested, horizon } => {
                    self.horizon = self.horizon.max(horizon);
                    self.ingested = self.ingested.max(ingested).max(horizon);
                }
                Request::Archived(lsn) => self.archived = self.archived.max(Some(lsn)),
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
        let status = Status {
            horizon_lsn: self.horizon,
            ingested_lsn: self.ingested,
            archived_lsn: self.archived,
            ..self.member.status()
        };
        // Whoever waits waits for commits, and a wake for each sync as well would be one in two for nothing.
        self.publish.send_if_modified(|published| {
            let is_news = published.commit_lsn != status.commit_lsn;
            *published = status;
            is_news
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
    let run = move || {
        // It does little at a time, and all commits wait for it.
        treering_threads::urgent();
        body(runtime);
    };
    thread.spawn(run).map(drop)
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
