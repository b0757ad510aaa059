//! Fetching a base backup from the pageserver. Blocking: a start waits for it on a thread of its own.

use std::{
    io::{self, Read, Write},
    net::TcpStream,
    time::Duration,
};

use anyhow::{Context, bail};
use bytes::{Buf, Bytes, BytesMut};
use treering_types::{Lsn, TenantId, TimelineId};
use treering_wire::{
    backend::{self, Message},
    client::{Handshake, Outcome, Reply},
    frame::{BODY_BYTES_MAX, next_frame},
    startup::StartupMessage,
};

/// How long the pageserver may be silent: it waits for ingest before it begins.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// What to fetch.
pub struct Source {
    /// `host:port` of the pageserver's Postgres-protocol face.
    pub pageserver: String,
    pub tenant: TenantId,
    pub timeline: TimelineId,
    pub lsn: Lsn,
}

/// Opens the backup: a tar stream.
pub fn open(source: &Source) -> anyhow::Result<impl Read> {
    let name = &source.pageserver;
    let stream =
        TcpStream::connect(name).with_context(|| format!("connect to the pageserver at {name}"))?;
    stream.set_read_timeout(Some(SILENCE_MAX))?;
    stream.set_nodelay(true)?;
    let mut wire = Wire { stream, input: BytesMut::with_capacity(256 * 1024) };
    let startup = StartupMessage::new([("user", "treering_agent"), ("database", "postgres")]);
    let mut out = BytesMut::new();
    let mut handshake = Handshake::start(&startup, None, &mut out)?;
    loop {
        wire.send(&mut out)?;
        if handshake.receive(&mut wire.input, &mut out)?.is_some() {
            break;
        }
        wire.receive()?;
    }
    let query = format!("basebackup {} {} {}", source.tenant, source.timeline, source.lsn);
    let mut reply = Reply::to_query(&query, &mut out)?;
    wire.send(&mut out)?;
    loop {
        match reply.receive(&mut wire.input)? {
            Some(Outcome::Copy { .. }) => {
                return Ok(Backup { wire, piece: Bytes::new(), done: false });
            }
            Some(Outcome::Done(_)) => bail!("the pageserver answered \"{query}\" without a backup"),
            None => wire.receive()?,
        }
    }
}

struct Wire {
    stream: TcpStream,
    input: BytesMut,
}

impl Wire {
    fn send(&mut self, out: &mut BytesMut) -> io::Result<()> {
        self.stream.write_all(out)?;
        out.clear();
        Ok(())
    }

    /// Reads what is there, at least a byte.
    fn receive(&mut self) -> io::Result<()> {
        let mut buffer = [0; 64 * 1024];
        let read = self.stream.read(&mut buffer)?;
        if read == 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the pageserver closed the connection",
            ));
        }
        self.input.extend_from_slice(&buffer[..read]);
        Ok(())
    }
}

/// The payloads of the copy, as one stream. It ends only at CopyDone: a stream that breaks off is an error.
struct Backup {
    wire: Wire,
    piece: Bytes,
    done: bool,
}

impl Read for Backup {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() && !self.done {
            self.next_piece()?;
        }
        let now = buffer.len().min(self.piece.len());
        self.piece.copy_to_slice(&mut buffer[..now]);
        Ok(now)
    }
}

impl Backup {
    fn next_piece(&mut self) -> io::Result<()> {
        let Some(frame) =
            next_frame(&mut self.wire.input, BODY_BYTES_MAX).map_err(io::Error::other)?
        else {
            return self.wire.receive();
        };
        match backend::parse(frame).map_err(io::Error::other)? {
            Message::CopyData(piece) => self.piece = piece,
            Message::CopyDone => self.done = true,
            Message::ErrorResponse(report) => {
                return Err(io::Error::other(format!("the pageserver says {report}")));
            }
            _ => {}
        }
        Ok(())
    }
}
