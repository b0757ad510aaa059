//! A client's socket: frames in, messages out.

use bytes::BytesMut;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use treering_wire::{
    backend::{Report, Writer, sqlstate},
    frame,
    frontend::Message,
    startup::{self, StartupMessage, StartupPacket},
};

use super::SenderError;

/// The longest message of a client: a command or a status report.
const BODY_BYTES_MAX: usize = 64 * 1024;
const READ_BYTES: usize = 8 * 1024;

pub(super) struct Connection {
    stream: TcpStream,
    input: BytesMut,
    /// What the next flush sends.
    pub(super) out: Writer,
}

impl Connection {
    pub(super) fn new(stream: TcpStream) -> Connection {
        Connection { stream, input: BytesMut::new(), out: Writer::new() }
    }

    /// Reads the start-up packet, refusing encryption first where it is asked for. `None`: nothing more to do.
    pub(super) async fn startup(&mut self) -> Result<Option<StartupMessage>, SenderError> {
        loop {
            match startup::parse(&mut self.input)? {
                Some(StartupPacket::Startup(message)) => return Ok(Some(message)),
                Some(StartupPacket::Cancel(_)) => return Ok(None),
                Some(StartupPacket::SslRequest | StartupPacket::GssEncRequest) => {
                    self.stream.write_all(b"N").await?;
                }
                None if self.read().await? == 0 => return Ok(None),
                None => {}
            }
        }
    }

    async fn read(&mut self) -> Result<usize, SenderError> {
        self.input.reserve(READ_BYTES);
        Ok(self.stream.read_buf(&mut self.input).await?)
    }

    /// The next message; `None` at the end of the stream. Bytes read are kept when the future is dropped.
    pub(super) async fn next(&mut self) -> Result<Option<Message>, SenderError> {
        loop {
            if let Some(frame) = frame::next_frame(&mut self.input, BODY_BYTES_MAX)? {
                return Ok(Some(Message::parse(frame)?));
            }
            if self.read().await? == 0 {
                return Ok(None);
            }
        }
    }

    /// Sends what was written so far.
    pub(super) async fn flush(&mut self) -> Result<(), SenderError> {
        let mut bytes = self.out.take();
        self.stream.write_all_buf(&mut bytes).await?;
        Ok(())
    }

    /// Ends a command.
    pub(super) async fn ready(&mut self) -> Result<(), SenderError> {
        self.out.ready_for_query();
        self.flush().await
    }

    /// Ends a command that failed.
    pub(super) async fn error(&mut self, report: Report) -> Result<(), SenderError> {
        self.out.error(&report);
        self.ready().await
    }

    /// The last message.
    pub(super) async fn fatal(&mut self, report: Report) -> Result<(), SenderError> {
        self.out.error(&report);
        self.flush().await?;
        self.stream.shutdown().await?;
        Ok(())
    }

    pub(super) async fn stopping(&mut self) -> Result<(), SenderError> {
        let text = "terminating connection: the timeline stops";
        self.fatal(Report::fatal(sqlstate::ADMIN_SHUTDOWN, text)).await
    }
}
