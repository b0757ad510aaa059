//! The way to one member: a task that connects, again and again, until the driver has no more to say. What is queued by then is
//! still sent: a member that missed the last commit would keep it from the pageserver until somebody is elected again.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::{Buf, Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, tcp::OwnedWriteHalf},
    runtime::Handle,
    sync::mpsc,
    time::{Instant, sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use treering_consensus::{AcceptorMessage, Commit, ProposerMessage, codec::Message};
use treering_types::NodeId;

use super::{driver::Event, news::News};
use crate::Safekeeper;

/// Messages that leave together: they were made together.
const FRAMES_AT_ONCE: usize = 16;
/// Several messages of so many bytes together are copied into one write.
const COPIED_BYTES_MAX: usize = 32 * 1024;
const CONNECT_LIMIT: Duration = Duration::from_secs(3);
/// After a connection that ended, and after the first try that failed.
const RECONNECT_PAUSE: Duration = Duration::from_millis(50);
/// Between tries while the member is away.
const RECONNECT_PAUSE_MAX: Duration = Duration::from_millis(800);
/// How long a member may take to hear the last words of a session that is closed.
const FAREWELL_LIMIT: Duration = Duration::from_secs(1);

/// In two pieces, the second of which may be long.
type Frame = (Bytes, Bytes);

/// What is sent over the connection that stands, and the word that cuts it off.
struct Outgoing {
    frames: mpsc::UnboundedSender<Frame>,
    cut: CancellationToken,
}

/// Bytes that wait in the socket's queue.
#[derive(Clone, Default)]
struct Queued(Arc<AtomicUsize>);

impl Queued {
    fn add(&self, bytes: usize) {
        self.0.fetch_add(bytes, Ordering::Relaxed);
    }

    fn sub(&self, bytes: usize) {
        self.0.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// See the module's head. What waits in it is bounded by who sends: the proposer gives a member so much at most that
/// it has not answered for.
pub(super) struct Link {
    pub(super) node: NodeId,
    /// Since when the member owes an answer, if it does.
    asked_at: Option<Instant>,
    news: News,
    queued: Queued,
    outgoing: Arc<Mutex<Option<Outgoing>>>,
    closed: CancellationToken,
}

/// Where safekeepers are, and what the links of one session share.
pub(super) struct Book {
    pub(super) safekeepers: Vec<Safekeeper>,
    pub(super) tracker: TaskTracker,
    pub(super) thread: Handle,
    pub(super) events: mpsc::Sender<Event>,
    /// There is nothing more to be said.
    pub(super) close: CancellationToken,
}

impl Book {
    /// A way to a safekeeper; `None` when nobody has said where it is.
    pub(super) fn open(&self, node: NodeId) -> Option<Link> {
        let found = self.safekeepers.iter().find(|known| known.node == node)?;
        Some(Link::open(self, node, found.wal.clone()))
    }
}

impl Link {
    fn open(book: &Book, node: NodeId, address: String) -> Link {
        let closed = CancellationToken::new();
        let link = Link {
            node,
            asked_at: None,
            news: News::default(),
            queued: Queued::default(),
            outgoing: Arc::default(),
            closed: closed.clone(),
        };
        let way = Way {
            node,
            address,
            queued: link.queued.clone(),
            outgoing: link.outgoing.clone(),
            events: book.events.clone(),
        };
        let (outgoing, close) = (link.outgoing.clone(), book.close.clone());
        let task = async move {
            let last_words = link_closed(&close, outgoing);
            tokio::select! { () = way.keep(&close) => {}, () = last_words => {}, () = closed.cancelled() => {} }
        };
        book.tracker.spawn_on(task, &book.thread);
        link
    }

    pub(super) fn queued_bytes(&self) -> usize {
        self.queued.0.load(Ordering::Relaxed)
    }

    /// Sends what is answered.
    pub(super) fn ask(&mut self, message: &ProposerMessage) {
        let now = Instant::now();
        self.asked_at.get_or_insert(now);
        match message {
            ProposerMessage::Append(_) => self.news.on_append(now),
            // The conversation begins anew, and comes to what is committed by itself.
            _ => self.news.forget(),
        }
        self.send(message);
    }

    /// Sends what is committed, now or soon ([`Link::news_due`]).
    pub(super) fn tell(&mut self, commit: &Commit) {
        if let Some(commit) = self.news.on_commit(commit.clone(), Instant::now()) {
            self.send(&commit.into());
        }
    }

    /// When [`Link::tell_news`] is to be called.
    pub(super) fn news_due(&self) -> Option<Instant> {
        self.news.due()
    }

    pub(super) fn tell_news(&mut self) {
        if let Some(commit) = self.news.take() {
            self.send(&commit.into());
        }
    }

    pub(super) fn is_silent_for(&self, limit: Duration) -> bool {
        self.asked_at.is_some_and(|at| at.elapsed() > limit)
    }

    /// Nothing is owed by a member that has spoken.
    pub(super) fn note_answer(&mut self) {
        self.asked_at = None;
    }

    /// Nothing is owed on a connection that is gone or new, nor to be told.
    pub(super) fn note_connection(&mut self) {
        self.asked_at = None;
        self.news.forget();
    }

    fn send(&self, message: &ProposerMessage) {
        let outgoing = self.outgoing.lock();
        let Some(outgoing) = outgoing.as_ref() else { return };
        let frame = message.encode_in_two();
        let bytes = bytes_of(&frame);
        if outgoing.frames.send(frame).is_ok() {
            self.queued.add(bytes);
        }
    }

    /// Ends the connection for good.
    pub(super) fn close(&self) {
        self.closed.cancel();
        self.disconnect();
    }

    /// Cuts the connection off with all that waits in it; a new one is tried after a pause.
    pub(super) fn disconnect(&self) {
        if let Some(outgoing) = self.outgoing.lock().take() {
            outgoing.cut.cancel();
        }
    }
}

/// Once all is said: takes no more, and returns when there was time to send what had been taken.
async fn link_closed(close: &CancellationToken, outgoing: Arc<Mutex<Option<Outgoing>>>) {
    close.cancelled().await;
    let connection = outgoing.lock().take();
    if connection.is_some() {
        drop(connection);
        sleep(FAREWELL_LIMIT).await;
    }
}

/// What the task of a link holds.
struct Way {
    node: NodeId,
    address: String,
    queued: Queued,
    outgoing: Arc<Mutex<Option<Outgoing>>>,
    events: mpsc::Sender<Event>,
}

impl Way {
    /// One connection after the other, until all is said.
    async fn keep(&self, close: &CancellationToken) {
        let mut pause = RECONNECT_PAUSE;
        loop {
            match timeout(CONNECT_LIMIT, TcpStream::connect(&self.address)).await {
                Ok(Ok(stream)) => {
                    pause = RECONNECT_PAUSE;
                    self.connected(stream).await;
                }
                Ok(Err(_)) | Err(_) => pause = (pause * 2).min(RECONNECT_PAUSE_MAX),
            }
            if close.is_cancelled() {
                return;
            }
            sleep(pause).await;
        }
    }

    async fn connected(&self, stream: TcpStream) {
        let node = self.node;
        let (frames, receiver) = mpsc::unbounded_channel();
        let cut = CancellationToken::new();
        *self.outgoing.lock() = Some(Outgoing { frames, cut: cut.clone() });
        let _ = self.events.send(Event::Connected(node)).await;
        let ended = tokio::select! {
            ended = converse(node, stream, receiver, &self.queued, &self.events) => ended,
            () = cut.cancelled() => Err(std::io::Error::other("cut off")),
        };
        if let Err(error) = ended {
            tracing::debug!(%node, "connection to a safekeeper ended: {error}");
        }
        *self.outgoing.lock() = None;
        // What was queued for the connection is gone with it.
        self.queued.0.store(0, Ordering::Relaxed);
        let _ = self.events.send(Event::Disconnected(node)).await;
    }
}

fn bytes_of((head, rest): &Frame) -> usize {
    head.len() + rest.len()
}

/// Small ones in one write, long ones from where they lie.
async fn write_frames(
    writer: &mut OwnedWriteHalf,
    frames: &mut Vec<Frame>,
    bytes: usize,
) -> std::io::Result<()> {
    if frames.len() > 1 && bytes <= COPIED_BYTES_MAX {
        let mut all = Vec::with_capacity(bytes);
        for (head, rest) in frames.drain(..) {
            all.extend_from_slice(&head);
            all.extend_from_slice(&rest);
        }
        return writer.write_all(&all).await;
    }
    for (head, rest) in frames.drain(..) {
        writer.write_all_buf(&mut head.chain(rest)).await?;
    }
    Ok(())
}

/// One connection until either side ends it.
async fn converse(
    node: NodeId,
    stream: TcpStream,
    mut outgoing: mpsc::UnboundedReceiver<Frame>,
    queued: &Queued,
    events: &mpsc::Sender<Event>,
) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let (mut reader, mut writer) = stream.into_split();
    let write = async {
        let mut frames = Vec::new();
        while outgoing.recv_many(&mut frames, FRAMES_AT_ONCE).await > 0 {
            let bytes = frames.iter().map(bytes_of).sum();
            let written = write_frames(&mut writer, &mut frames, bytes).await;
            queued.sub(bytes);
            written?;
        }
        // All is said. The connection is left to the member, which closes it when it has taken everything: closed with
        // answers unread, it would throw away what is still on its way.
        writer.shutdown().await?;
        sleep(FAREWELL_LIMIT).await;
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
