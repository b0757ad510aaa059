//! The proposer of one compute: the consensus crate's state machine, given sockets and a clock.
//!
//! A [`Session`] is one term won. It lives on a thread of its own, with the connections to the members and whoever
//! feeds it ([`Session::spawn`]): what a commit passes through here wakes no other thread. Everyone else holds the
//! handle. WAL goes in through a bounded channel that is not read while too much waits to be sent, which is the
//! back-pressure on the compute.

use std::{path::PathBuf, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    runtime::{Builder, Handle},
    sync::{mpsc, watch},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use treering_consensus::{
    AcceptorMessage, Action, Configuration, Election, PgAncestor, Proposer, ProposerConfig,
    ProposerId, ProposerMessage, TimelineIdentity, WalSource, codec::Message,
};
use treering_types::{ErrorKind, Lsn, NodeId};

use crate::{compute::beneath::Beneath, error::AgentError};

/// Whose log is written, and what a safekeeper must know to serve it to stock standbys.
#[derive(Debug, Clone)]
pub struct Log {
    pub identity: TimelineIdentity,
    /// For the history file; counts only when the log is created.
    pub pg_ancestors: Vec<PgAncestor>,
}

/// Log kept in memory for members that fell behind; more is read from the compute's own `pg_wal`.
const WINDOW_BYTES_MAX: usize = 64 * 1024 * 1024;
/// WAL is taken from the compute only while less than this waits in the socket queues.
const QUEUED_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Appends that may wait for the task.
const APPEND_QUEUE: usize = 64;
/// Messages that leave together: they were made together.
const FRAMES_AT_ONCE: usize = 16;
const HEARTBEAT: Duration = Duration::from_secs(1);
const RECONNECT_PAUSE: Duration = Duration::from_millis(50);
/// How long a member may take to hear the last words of a session that is closed.
const FAREWELL_LIMIT: Duration = Duration::from_secs(1);
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
    /// Wins a term on the quorum and commits F. `members`: `host:port` of node 1, 2, ..., or `id=host:port`.
    ///
    /// # Errors
    /// `Unavailable` when no majority answers in time, `Fenced` when another proposer was elected meanwhile, and what
    /// a member refused with.
    pub async fn elect(log: Log, members: &[String]) -> Result<Session, AgentError> {
        let members: Vec<(NodeId, String)> =
            (1..).zip(members).map(|(nth, text)| member_of(nth, text)).collect();
        let nodes = members.iter().map(|(node, _)| *node).collect();
        let configuration = Configuration::unnumbered(nodes)
            .map_err(|error| AgentError::new(ErrorKind::Invalid, error.to_string()))?;
        let proposer = Proposer::new(ProposerConfig {
            proposer: ProposerId(rand::random()),
            configuration,
            timeline: log.identity,
            window_bytes_max: WINDOW_BYTES_MAX,
        })
        .with_pg_ancestors(log.pg_ancestors);
        let (events_in, events) = mpsc::channel(256);
        let (appends, appends_out) = mpsc::channel(APPEND_QUEUE);
        let (commit_in, commit) = watch::channel(Lsn::INVALID);
        let (failure_in, failure) = watch::channel(None);
        let (elected_in, mut elected) = watch::channel(None);
        let close = CancellationToken::new();
        let guard = close.clone().drop_guard();
        let tracker = TaskTracker::new();
        let thread = start_thread(close.clone(), tracker.clone())?;
        let wal_dir = Arc::new(Mutex::new(None));
        let addresses = members.iter().map(|(_, address)| &address[..]);
        let addresses = addresses.collect::<Vec<_>>().join(", ");
        let links = members
            .into_iter()
            .map(|(node, address)| {
                let place = (&tracker, &thread);
                Link::open(place, node, address, events_in.clone(), close.clone())
            })
            .collect();
        let driver = Driver {
            proposer,
            links,
            commit: commit_in,
            failure: failure_in,
            elected: elected_in,
            wal_dir: wal_dir.clone(),
            last_refusal: None,
        };
        thread.spawn(driver.run(events, appends_out, close.clone()));
        let won = tokio::time::timeout(ELECTION_LIMIT, async {
            let mut failure = failure.clone();
            tokio::select! {
                won = elected.wait_for(Option::is_some) => won.ok().and_then(|won| won.clone()).ok_or_else(gone),
                failed = failure.wait_for(Option::is_some) => {
                    Err(failed.ok().and_then(|f| f.clone()).unwrap_or_else(gone))
                }
            }
        });
        let election: Election = won.await.map_err(|_| {
            let text = format!("no quorum of safekeepers answers ({addresses})");
            AgentError::new(ErrorKind::Unavailable, text)
        })??;
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
        runtime.block_on(async {
            close.cancelled().await;
            links.close();
            links.wait().await;
        });
    };
    std::thread::Builder::new().name("treering-wal".into()).spawn(body).map_err(failed)?;
    Ok(handle)
}

/// A member by its id and address, or the `nth` by its address alone.
fn member_of(nth: u64, text: &str) -> (NodeId, String) {
    match text.split_once('=').and_then(|(id, address)| Some((id.parse().ok()?, address))) {
        Some((id, address)) => (NodeId(id), address.to_owned()),
        None => (NodeId(nth), text.to_owned()),
    }
}

fn gone() -> AgentError {
    AgentError::new(ErrorKind::Shutdown, "the proposer has stopped")
}

/// What the connections tell the driver.
enum Event {
    Connected(NodeId),
    Disconnected(NodeId),
    Message(NodeId, AcceptorMessage),
}

/// The state machine's owner.
struct Driver {
    proposer: Proposer,
    links: Vec<Link>,
    commit: watch::Sender<Lsn>,
    failure: watch::Sender<Option<AgentError>>,
    elected: watch::Sender<Option<Election>>,
    wal_dir: Arc<Mutex<Option<PathBuf>>>,
    last_refusal: Option<String>,
}

impl Driver {
    async fn run(
        mut self,
        mut events: mpsc::Receiver<Event>,
        mut appends: mpsc::Receiver<(Lsn, Bytes)>,
        close: CancellationToken,
    ) {
        let mut heartbeat = tokio::time::interval(HEARTBEAT);
        loop {
            let room = self.links.iter().all(|link| link.queued.load() < QUEUED_BYTES_MAX);
            let actions = tokio::select! {
                () = close.cancelled() => return,
                Some(event) = events.recv() => self.on_event(event),
                Some((lsn, bytes)) = appends.recv(), if room => match self.proposer.append(lsn, bytes) {
                    Ok(actions) => actions,
                    Err(error) => return self.fail(AgentError::new(error.kind(), error.to_string())),
                },
                _ = heartbeat.tick() => self.proposer.heartbeat(),
            };
            self.carry_out(actions);
            if let Some(term) = self.proposer.fenced_by() {
                let text = format!("a newer compute has taken this branch over (term {term})");
                return self.fail(AgentError::new(ErrorKind::Fenced, text));
            }
            self.publish();
        }
    }

    fn fail(&mut self, error: AgentError) {
        self.failure.send_replace(Some(error));
    }

    fn on_event(&mut self, event: Event) -> Vec<Action> {
        match event {
            Event::Connected(node) => self.proposer.on_connected(node),
            Event::Disconnected(node) => {
                self.proposer.on_disconnected(node);
                Vec::new()
            }
            Event::Message(node, message) => self.proposer.on_message(node, message),
        }
    }

    fn publish(&mut self) {
        let commit_lsn = self.proposer.commit_lsn();
        self.commit.send_if_modified(|commit| {
            let moved = commit_lsn > *commit;
            *commit = commit_lsn.max(*commit);
            moved
        });
        if self.elected.borrow().is_none() && self.proposer.term_is_committed() {
            self.elected.send_replace(self.proposer.elected().cloned());
        }
    }

    fn carry_out(&mut self, actions: Vec<Action>) {
        let mut actions: std::collections::VecDeque<_> = actions.into();
        while let Some(action) = actions.pop_front() {
            match action {
                Action::Send { to, message } => self.send(to, &message),
                Action::ReadWal { to_member, from, to, source } => {
                    match self.read_wal(from, to, source) {
                        Some(bytes) => actions.extend(self.proposer.on_wal(to_member, from, bytes)),
                        None => self.proposer.on_wal_failed(to_member),
                    }
                }
                Action::Reconfigured(configuration) => self.reconfigure(&configuration),
                Action::Disconnect { member, reason, text } => {
                    if self.last_refusal.as_deref() != Some(&text) {
                        tracing::warn!(%member, ?reason, "safekeeper refuses: {text}");
                        self.last_refusal = Some(text.clone());
                    }
                    if let Some(link) = self.links.iter().find(|link| link.node == member) {
                        link.disconnect();
                    }
                    if matches!(reason.kind(), ErrorKind::Conflict | ErrorKind::Gone) {
                        self.fail(AgentError::new(reason.kind(), text));
                    }
                }
            }
        }
    }

    /// Lets go of members that have left. Where new ones are reached only the agent's own settings can tell: without
    /// them the quorum may be out of reach, and commits wait.
    fn reconfigure(&mut self, configuration: &Configuration) {
        let generation = configuration.generation();
        tracing::info!(%generation, "the quorum's members have changed");
        for link in self.links.extract_if(.., |link| !configuration.contains(link.node)) {
            link.close();
        }
        for member in configuration.all_members() {
            if !self.links.iter().any(|link| link.node == member) {
                tracing::warn!(%member, "no address is known of a new safekeeper");
            }
        }
    }

    fn send(&self, to: NodeId, message: &ProposerMessage) {
        if let Some(link) = self.links.iter().find(|link| link.node == to) {
            link.send(message);
        }
    }

    /// At most a mebibyte at a time: the disk is local, a thread would cost more than the read.
    fn read_wal(&self, from: Lsn, to: Lsn, source: WalSource) -> Option<Bytes> {
        match source {
            WalSource::Compute => read_segment(self.wal_dir.lock().as_deref()?, from, to).ok(),
            // One member, and it is the donor: it never needs its own log.
            WalSource::Member { .. } => None,
        }
    }
}

/// Reads `from..to`, up to the end of `from`'s segment, from a `pg_wal` directory.
fn read_segment(dir: &std::path::Path, from: Lsn, to: Lsn) -> std::io::Result<Bytes> {
    use std::os::unix::fs::FileExt;
    let suffix = &from.segment_file_name(0)[8..];
    let dir = Beneath::open(dir)?;
    let mut named = rustix::fs::Dir::read_from(&dir.dir(std::path::Path::new("."))?)?
        .filter_map(|entry| entry.ok()?.file_name().to_str().ok().map(str::to_owned));
    let name = named
        .find(|name| name.len() == 24 && name.ends_with(suffix))
        .ok_or(std::io::ErrorKind::NotFound)?;
    let end = to.min(from.segment_start() + treering_types::WAL_SEGMENT_SIZE);
    let mut bytes = vec![0; end.bytes_since(from).unwrap_or(0) as usize];
    dir.file(name.as_ref())?.read_exact_at(&mut bytes, from.segment_offset())?;
    Ok(bytes.into())
}

/// Bytes that wait in a socket queue.
#[derive(Clone, Default)]
struct Queued(Arc<std::sync::atomic::AtomicUsize>);

impl Queued {
    fn load(&self) -> usize {
        self.0.load(std::sync::atomic::Ordering::Relaxed)
    }

    fn add(&self, bytes: usize) {
        self.0.fetch_add(bytes, std::sync::atomic::Ordering::Relaxed);
    }

    fn sub(&self, bytes: usize) {
        self.0.fetch_sub(bytes, std::sync::atomic::Ordering::Relaxed);
    }

    fn clear(&self) {
        self.0.store(0, std::sync::atomic::Ordering::Relaxed);
    }
}

/// The way to one member: a task that connects, again and again, until the session is closed. What is queued by then is still sent: a member that
/// missed the last commit would keep it from the pageserver until somebody is elected again.
struct Link {
    node: NodeId,
    queued: Queued,
    outgoing: Arc<Mutex<Option<mpsc::UnboundedSender<Bytes>>>>,
    closed: CancellationToken,
}

impl Link {
    fn open(
        (links, thread): (&TaskTracker, &Handle),
        node: NodeId,
        address: String,
        events: mpsc::Sender<Event>,
        close: CancellationToken,
    ) -> Link {
        let closed = CancellationToken::new();
        let (queued, outgoing) = (Queued::default(), Arc::default());
        let link = Link { node, queued, outgoing, closed: closed.clone() };
        let (queued, outgoing) = (link.queued.clone(), link.outgoing.clone());
        let task = async move {
            let last_words = link_closed(&close, outgoing.clone());
            let again = async {
                loop {
                    if let Ok(stream) = TcpStream::connect(&address).await {
                        let (sender, receiver) = mpsc::unbounded_channel();
                        {
                            // What was queued for a connection before is gone with it.
                            let mut outgoing = outgoing.lock();
                            queued.clear();
                            *outgoing = Some(sender);
                        }
                        let _ = events.send(Event::Connected(node)).await;
                        if let Err(error) = converse(node, stream, receiver, &queued, &events).await
                        {
                            tracing::debug!(%node, "connection to a safekeeper ended: {error}");
                        }
                        *outgoing.lock() = None;
                        let _ = events.send(Event::Disconnected(node)).await;
                    }
                    if close.is_cancelled() {
                        break;
                    }
                    tokio::time::sleep(RECONNECT_PAUSE).await;
                }
            };
            tokio::select! { () = again => {}, () = last_words => {}, () = closed.cancelled() => {} }
        };
        links.spawn_on(task, thread);
        link
    }

    fn send(&self, message: &ProposerMessage) {
        let mut frame = BytesMut::new();
        message.encode(&mut frame);
        let outgoing = self.outgoing.lock();
        let Some(sender) = outgoing.as_ref() else { return };
        let bytes = frame.len();
        if sender.send(frame.freeze()).is_ok() {
            self.queued.add(bytes);
        }
    }

    /// Ends the connection for good.
    fn close(&self) {
        self.closed.cancel();
        self.disconnect();
    }

    /// Ends the connection; a new one is tried after a pause.
    fn disconnect(&self) {
        *self.outgoing.lock() = None;
    }
}

/// Once the session is closed: takes no more, and returns when there was time to send what had been taken.
async fn link_closed(
    close: &CancellationToken,
    outgoing: Arc<Mutex<Option<mpsc::UnboundedSender<Bytes>>>>,
) {
    close.cancelled().await;
    let connection = outgoing.lock().take();
    if connection.is_some() {
        drop(connection);
        tokio::time::sleep(FAREWELL_LIMIT).await;
    }
}

/// One connection until either side ends it.
async fn converse(
    node: NodeId,
    stream: TcpStream,
    mut outgoing: mpsc::UnboundedReceiver<Bytes>,
    queued: &Queued,
    events: &mpsc::Sender<Event>,
) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let (mut reader, mut writer) = stream.into_split();
    let write = async {
        let mut frames = Vec::new();
        while outgoing.recv_many(&mut frames, FRAMES_AT_ONCE).await > 0 {
            let bytes = frames.iter().map(Bytes::len).sum();
            let written = match &frames[..] {
                [frame] => writer.write_all(frame).await,
                several => writer.write_all(&several.concat()).await,
            };
            queued.sub(bytes);
            frames.clear();
            written?;
        }
        // All is said. The connection is left to the member, which closes it when it has taken everything: closed with
        // answers unread, it would throw away what is still on its way.
        writer.shutdown().await?;
        tokio::time::sleep(FAREWELL_LIMIT).await;
        Ok::<(), std::io::Error>(())
    };
    let read = async {
        let mut input = BytesMut::with_capacity(64 * 1024);
        loop {
            while let Some(message) =
                AcceptorMessage::decode(&mut input).map_err(std::io::Error::other)?
            {
                // Without a driver nobody wants it, and what is queued still goes out.
                let _ = events.send(Event::Message(node, message)).await;
            }
            if reader.read_buf(&mut input).await? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
        }
    };
    tokio::select! { over = write => over, over = read => over }
}
