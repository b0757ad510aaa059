//! The WAL port: proposers speak the protocol of `treering_consensus::codec` here.
//!
//! A connection begins with a greeting that names its timeline; from then on it lives on that timeline's thread: its
//! messages go to the timeline's queue, and the answers come back on their own. A refusal is the last thing sent.

use std::{io, sync::Arc, time::Duration};

use bytes::BytesMut;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{mpsc, oneshot},
    time::timeout,
};
use treering_consensus::{
    AcceptorMessage, ProposerId, ProposerMessage, Refusal,
    codec::{CodecError, Message},
};

use crate::{
    error::StoreError,
    timeline::{ANSWERS, ConnectionId, Request, Timeline},
    timelines::Timelines,
};

/// How long a connection may stay without a greeting.
const GREETING_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a peer that was refused may take to close its side.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);
const READ_BYTES: usize = 256 * 1024;

/// Why a proposer's connection ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PortError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Codec(#[from] CodecError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("no greeting in time")]
    Silent,
    #[error("first message is no greeting")]
    NoGreeting,
}

/// Serves one connection to its end.
pub(crate) async fn serve(stream: TcpStream, timelines: Arc<Timelines>) -> Result<(), PortError> {
    stream.set_nodelay(true)?;
    let mut reader = Reader { read: stream, input: BytesMut::new() };
    let first = timeout(GREETING_TIMEOUT, reader.next()).await.map_err(|_| PortError::Silent)??;
    let greeting = match first {
        None => return Ok(()),
        Some(ProposerMessage::Greeting(greeting)) => greeting,
        Some(_) => return Err(PortError::NoGreeting),
    };
    let timeline = match timelines.greet(&greeting).await {
        Ok(timeline) => timeline,
        Err(error) => {
            send_refusal(&mut reader.read, &error).await?;
            reader.drain().await;
            return Err(error.into());
        }
    };
    let (proposer, connection) = (greeting.proposer, timelines.next_connection());
    let (answers, queue) = mpsc::channel(ANSWERS);
    let (ended_in, ended) = oneshot::channel();
    let conversation = {
        let Reader { read: stream, input } = reader;
        let (timeline, stream) = (timeline.clone(), stream.into_std()?);
        let message = ProposerMessage::Greeting(greeting);
        let conversation = async move {
            let talk = Talk { timeline, proposer, connection };
            let _ = ended_in.send(talk.run(stream, input, message, queue).await);
        };
        Box::pin(conversation)
    };
    timeline.send(Request::Attach { proposer, connection, answers, conversation }).await?;
    // Gone without a word: the timeline has stopped.
    ended.await.unwrap_or(Ok(()))
}

/// A greeted connection, on its timeline's thread.
struct Talk {
    timeline: Arc<Timeline>,
    proposer: ProposerId,
    connection: ConnectionId,
}

impl Talk {
    async fn run(
        self,
        stream: std::net::TcpStream,
        input: BytesMut,
        greeting: ProposerMessage,
        answers: mpsc::Receiver<AcceptorMessage>,
    ) -> Result<(), PortError> {
        let (read, write) = TcpStream::from_std(stream)?.into_split();
        let mut reader = Reader { read, input };
        let Talk { timeline, proposer, connection } = self;
        let request = |message| Request::Message { proposer, connection, message };
        timeline.send(request(greeting)).await?;
        let ended = tokio::select! {
            ended = write_answers(write, answers) => ended,
            ended = read_messages(&mut reader, &timeline, request) => ended,
            () = timeline.stopping().cancelled() => Ok(()),
        };
        reader.drain().await;
        // The timeline may be gone by now; then there is nothing to detach from.
        let _ = timeline.send(Request::Detach { proposer, connection }).await;
        ended
    }
}

async fn read_messages(
    reader: &mut Reader<OwnedReadHalf>,
    timeline: &Timeline,
    request: impl Fn(ProposerMessage) -> Request,
) -> Result<(), PortError> {
    while let Some(message) = reader.next().await? {
        let append = match &message {
            ProposerMessage::Append(append) => Some((append.lsn, append.bytes.len() as u64)),
            _ => None,
        };
        timeline.send(request(message)).await?;
        if let Some((lsn, bytes)) = append.filter(|(_, bytes)| *bytes > 0) {
            let pause = timeline.pause_after(bytes, lsn + bytes);
            if !pause.is_zero() {
                tokio::time::sleep(pause).await;
            }
        }
    }
    Ok(())
}

/// Sends answers as they come, those that wait together in one write.
async fn write_answers(
    mut write: OwnedWriteHalf,
    mut queue: mpsc::Receiver<AcceptorMessage>,
) -> Result<(), PortError> {
    let mut out = BytesMut::new();
    let mut answers = Vec::new();
    while queue.recv_many(&mut answers, ANSWERS).await > 0 {
        let is_last = answers.iter().any(|answer| matches!(answer, AcceptorMessage::Refusal(_)));
        answers.drain(..).for_each(|answer| answer.encode(&mut out));
        write.write_all_buf(&mut out).await?;
        if is_last {
            write.shutdown().await?;
            break;
        }
    }
    Ok(())
}

async fn send_refusal(write: &mut TcpStream, error: &StoreError) -> io::Result<()> {
    let refusal = Refusal { reason: error.refusal_reason(), text: error.to_string() };
    let mut out = BytesMut::new();
    AcceptorMessage::Refusal(refusal).encode(&mut out);
    write.write_all_buf(&mut out).await?;
    write.shutdown().await
}

struct Reader<R> {
    read: R,
    input: BytesMut,
}

/// A socket's reading side.
trait Incoming: AsyncRead + Unpin {
    async fn readable(&self) -> io::Result<()>;
}

impl Incoming for TcpStream {
    async fn readable(&self) -> io::Result<()> {
        TcpStream::readable(self).await
    }
}

impl Incoming for OwnedReadHalf {
    async fn readable(&self) -> io::Result<()> {
        OwnedReadHalf::readable(self).await
    }
}

impl<R: Incoming> Reader<R> {
    /// The next message; `None` at the end of the stream. Bytes read are kept when the future is dropped.
    async fn next(&mut self) -> Result<Option<ProposerMessage>, PortError> {
        loop {
            if let Some(message) = ProposerMessage::decode(&mut self.input)? {
                return Ok(Some(message));
            }
            // Room is made when there is something to read: by then the messages before may have let go of theirs.
            self.read.readable().await?;
            self.input.reserve(READ_BYTES);
            if self.read.read_buf(&mut self.input).await? == 0 {
                return Ok(None);
            }
        }
    }

    /// Reads and forgets until the peer closes: closing with unread bytes would throw a refusal on its way away.
    async fn drain(&mut self) {
        let _ = timeout(DRAIN_TIMEOUT, async {
            loop {
                self.input.clear();
                match self.read.read_buf(&mut self.input).await {
                    Ok(0) | Err(_) => break,
                    Ok(_) => {}
                }
            }
        })
        .await;
    }
}
