//! The Postgres-protocol port: page requests, LSN leases and base backups.
//!
//! A connection starts like any Postgres connection (no TLS yet, no password: the port belongs on a private network) and
//! then takes simple queries: `pagestream_v3 TENANT TIMELINE` turns it into a stream of page requests,
//! `lsn_lease_v1 TENANT TIMELINE` into one of lease requests, `basebackup TENANT TIMELINE LSN [lazy]` answers with a tar archive. `SHOW server_version` and the like are refused.

pub(crate) mod answers;
mod command;
mod lease_stream;
mod pagestream;

use std::{io, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    sync::Semaphore,
    time::timeout,
};
use tokio_util::either::Either;
use treering_types::ErrorKind;
use treering_wire::{
    backend::{Report, Writer, sqlstate},
    frame::{BODY_BYTES_MAX, next_frame},
    frontend::Message,
    startup::{self, CancelKey, StartupPacket},
};

use crate::{basebackup, error::ServiceError, live::LiveTimeline, service::Service};
use command::Command;

/// Connections at once; more wait in the listen queue.
const CONNECTIONS_MAX: usize = 4096;
/// A peer that has not finished start-up by then is not one of ours.
const STARTUP_TIMEOUT: Duration = Duration::from_secs(30);
/// Reading of requests stops while this much is answered but not sent.
const READ_BYTES: usize = 64 << 10;

/// Where connections come from. Each has room for as many.
#[derive(Debug)]
pub enum Listener {
    Tcp(TcpListener),
    /// Only from this host.
    Unix(UnixListener),
}

impl From<TcpListener> for Listener {
    fn from(listener: TcpListener) -> Listener {
        Listener::Tcp(listener)
    }
}

impl From<UnixListener> for Listener {
    fn from(listener: UnixListener) -> Listener {
        Listener::Unix(listener)
    }
}

type Stream = Either<TcpStream, UnixStream>;

impl Listener {
    async fn accept(&self) -> io::Result<Stream> {
        match self {
            Listener::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                Ok(Either::Left(stream))
            }
            Listener::Unix(listener) => Ok(Either::Right(listener.accept().await?.0)),
        }
    }
}

/// Accepts connections until the service stops.
pub async fn run(service: Arc<Service>, listener: impl Into<Listener>) {
    let listener = listener.into();
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(stream) => stream,
                Err(error) => {
                    // Out of file descriptors, mostly: not worth dying for.
                    tracing::warn!(%error, "accept");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
            () = service.cancel.cancelled() => return,
        };
        let service = Arc::clone(&service);
        tokio::spawn(async move {
            let _slot = slot;
            let ended = tokio::select! {
                ended = serve(&service, stream) => ended,
                () = service.cancel.cancelled() => Ok(()),
            };
            if let Err(error) = ended {
                tracing::debug!(%error, "page service connection ended");
            }
        });
    }
}

/// A connection: what came and was not taken, what is to be sent.
struct Connection {
    stream: Stream,
    input: BytesMut,
    out: Writer,
}

impl Connection {
    /// Reads what is there; false at the end.
    async fn read(&mut self) -> io::Result<bool> {
        self.input.reserve(READ_BYTES);
        Ok(self.stream.read_buf(&mut self.input).await? > 0)
    }

    async fn send(&mut self) -> io::Result<()> {
        self.stream.write_all_buf(self.out.buffer_mut()).await
    }

    /// The next message; `None` at the end.
    async fn message(&mut self) -> Result<Option<Message>, ServiceError> {
        loop {
            if let Some(frame) = next_frame(&mut self.input, BODY_BYTES_MAX)? {
                return Ok(Some(Message::parse(frame)?));
            }
            if !self.read().await? {
                return Ok(None);
            }
        }
    }
}

async fn serve(service: &Arc<Service>, stream: Stream) -> Result<(), ServiceError> {
    let mut connection = Connection { stream, input: BytesMut::new(), out: Writer::new() };
    match timeout(STARTUP_TIMEOUT, start(&mut connection)).await {
        Ok(Ok(true)) => {}
        Ok(other) => return other.map(|_| ()),
        Err(_) => return Ok(()),
    }
    while let Some(message) = connection.message().await? {
        match message {
            Message::Query(text) => match query(service, &mut connection, &text).await? {
                AfterQuery::Next => {}
                AfterQuery::Close => return Ok(()),
                AfterQuery::Pages(live) => {
                    return pagestream::serve(service, live, connection).await;
                }
            },
            Message::Terminate => return Ok(()),
            // Left over from a copy that the other side ended.
            Message::CopyData(_) | Message::CopyDone | Message::CopyFail(_) | Message::Flush => {}
            Message::Sync => {
                connection.out.ready_for_query();
                connection.send().await?;
            }
            Message::Password(_) | Message::Other(_) => {
                let text = "only simple queries are understood here";
                connection.out.error(&Report::error(sqlstate::FEATURE_NOT_SUPPORTED, text));
                connection.send().await?;
            }
        }
    }
    Ok(())
}

/// True once the session is ready.
async fn start(connection: &mut Connection) -> Result<bool, ServiceError> {
    loop {
        match startup::parse(&mut connection.input)? {
            Some(StartupPacket::SslRequest | StartupPacket::GssEncRequest) => {
                connection.stream.write_all(b"N").await?;
            }
            Some(StartupPacket::Cancel(_)) => return Ok(false),
            Some(StartupPacket::Startup(_)) => break,
            None => {
                if !connection.read().await? {
                    return Ok(false);
                }
            }
        }
    }
    // Nothing here can be cancelled by key.
    let key = CancelKey { pid: 0, secret: Bytes::from_static(&[0; 4]) };
    connection.out.session_start("15.0 (treering pageserver)", &key);
    connection.send().await?;
    Ok(true)
}

enum AfterQuery {
    Next,
    Close,
    /// The rest of the connection is a page stream.
    Pages(Arc<LiveTimeline>),
}

async fn query(
    service: &Arc<Service>,
    connection: &mut Connection,
    text: &str,
) -> Result<AfterQuery, ServiceError> {
    let done = match text.parse::<Command>() {
        Err(error) => Err(error),
        Ok(Command::Pagestream { tenant, timeline }) => match service.live(tenant, timeline) {
            Err(error) => Err(error),
            Ok(live) => return Ok(AfterQuery::Pages(live)),
        },
        Ok(Command::LsnLease { tenant, timeline }) => match service.live(tenant, timeline) {
            Err(error) => Err(error),
            Ok(live) => {
                lease_stream::serve(&live, connection).await?;
                return Ok(AfterQuery::Close);
            }
        },
        Ok(Command::Basebackup { tenant, timeline, lsn, contents }) => {
            match service.live(tenant, timeline) {
                Err(error) => Err(error),
                Ok(live) => match basebackup::begin(service, live, lsn, contents).await {
                    Err(error) => Err(error),
                    Ok(chunks) => backup(service, connection, chunks).await?,
                },
            }
        }
    };
    match done {
        Ok(()) => {}
        Err(error) => connection.out.error(&report(&error)),
    }
    connection.out.ready_for_query();
    connection.send().await?;
    Ok(AfterQuery::Next)
}

/// The inner error is the backup's own and is reported to the client; the outer one ends the connection.
async fn backup(
    service: &Service,
    connection: &mut Connection,
    mut chunks: basebackup::Chunks,
) -> Result<Result<(), ServiceError>, ServiceError> {
    let timer = std::time::Instant::now();
    connection.out.copy_out_response();
    while let Some(chunk) = chunks.recv().await {
        match chunk {
            Ok(bytes) => connection.out.copy_data(&bytes),
            Err(error) => {
                tracing::warn!(%error, "base backup failed");
                return Ok(Err(error));
            }
        }
        connection.send().await?;
    }
    connection.out.copy_done();
    connection.out.command_complete("COPY");
    service.metrics.backups.inc();
    service.metrics.backup_seconds.observe(timer.elapsed().as_secs_f64());
    Ok(Ok(()))
}

/// An error as a Postgres client sees it.
fn report(error: &ServiceError) -> Report {
    let code = match error.kind() {
        ErrorKind::NotFound => sqlstate::UNDEFINED_OBJECT,
        ErrorKind::Gone => sqlstate::UNDEFINED_FILE,
        ErrorKind::NotYet | ErrorKind::Conflict | ErrorKind::Fenced => {
            sqlstate::OBJECT_NOT_IN_PREREQUISITE_STATE
        }
        ErrorKind::Busy => sqlstate::TOO_MANY_CONNECTIONS,
        ErrorKind::Unavailable => sqlstate::CANNOT_CONNECT_NOW,
        ErrorKind::Shutdown => sqlstate::ADMIN_SHUTDOWN,
        ErrorKind::Corrupt => sqlstate::DATA_CORRUPTED,
        ErrorKind::Io => sqlstate::IO_ERROR,
        ErrorKind::Invalid => sqlstate::INVALID_PARAMETER_VALUE,
    };
    Report::error(code, error.to_string())
}
