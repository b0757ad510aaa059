//! A blocking connection to the pageserver's Postgres-protocol face: start-up, one query, its copy.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream, ToSocketAddrs},
    time::Duration,
};

use anyhow::{Context, bail};
use bytes::{BufMut, Bytes, BytesMut};
use rustix::{net::sockopt::socket_peercred, process::geteuid, thread::sched_getcpu};
use socket2::{Domain, SockAddr, Socket, Type};
use treering_wire::{
    backend::{self, Message},
    client::{Handshake, Outcome, Reply},
    frame::{BODY_BYTES_MAX, HEADER_SIZE, Header as FrameHeader, next_frame},
    neighbour, pagestream,
    startup::StartupMessage,
};

const RECEIVE_BYTES: usize = 256 * 1024;

/// A connection in a copy: payloads go out and come in.
pub struct Copy {
    stream: Socket,
    silence_max: Duration,
    /// On the pageserver's host, over a Unix socket.
    is_near: bool,
    /// The core that was named last.
    told: Option<u32>,
    input: BytesMut,
    /// Where the socket is read into.
    received: Box<[u8]>,
}

/// Connects to `address` (`host:port`) and asks `query`, which must begin a copy. `silence_max` bounds every wait for
/// the other side, now and later.
pub fn open(address: &str, query: &str, silence_max: Duration) -> anyhow::Result<Copy> {
    let mut copy = connect(address, silence_max)
        .with_context(|| format!("connect to the pageserver at {address}"))?;
    let startup = StartupMessage::new([("user", "treering_agent"), ("database", "postgres")]);
    let mut out = BytesMut::new();
    let mut handshake = Handshake::start(&startup, None, &mut out)?;
    loop {
        copy.send(&mut out)?;
        if handshake.receive(&mut copy.input, &mut out)?.is_some() {
            break;
        }
        copy.receive()?;
    }
    let mut reply = Reply::to_query(query, &mut out)?;
    copy.send(&mut out)?;
    loop {
        match reply.receive(&mut copy.input)? {
            Some(Outcome::Copy { .. }) => return Ok(copy),
            Some(Outcome::Done(_)) => bail!("the pageserver answered \"{query}\" without a copy"),
            None => copy.receive()?,
        }
    }
}

fn connect(address: &str, silence_max: Duration) -> io::Result<Copy> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in address.to_socket_addrs()? {
        let near = neighbour(address, silence_max);
        match near.map_or_else(|| remote(address, silence_max), Ok) {
            Ok(stream) => {
                stream.set_read_timeout(Some(silence_max))?;
                stream.set_write_timeout(Some(silence_max))?;
                let is_near = stream.domain()? == Domain::UNIX;
                let received = vec![0; RECEIVE_BYTES].into_boxed_slice();
                return Ok(Copy {
                    stream,
                    silence_max,
                    is_near,
                    told: None,
                    input: BytesMut::new(),
                    received,
                });
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Over the Unix socket that goes with the address. None is no fault: what listens there may be a forwarding, or of another version.
fn neighbour(address: SocketAddr, silence_max: Duration) -> Option<Socket> {
    let name = SockAddr::unix(neighbour::abstract_name(address)?).ok()?;
    let stream = Socket::new(Domain::UNIX, Type::STREAM, None).ok()?;
    // It bounds `connect` too, where the queue is full (unix(7): as of a send).
    stream.set_write_timeout(Some(silence_max)).ok()?;
    stream.connect(&name).ok()?;
    // The name might be anybody's where the pageserver has none, as on all addresses at once.
    let uid = socket_peercred(&stream).ok()?.uid;
    (uid.is_root() || uid == geteuid()).then_some(stream)
}

fn remote(address: SocketAddr, silence_max: Duration) -> io::Result<Socket> {
    let stream = TcpStream::connect_timeout(&address, silence_max)?;
    stream.set_nodelay(true)?;
    Ok(stream.into())
}

/// Frames one payload (`CopyData`, Postgres documentation, "Message Formats").
pub fn put_copy_data(out: &mut BytesMut, payload: &[u8]) {
    out.put_u8(b'd');
    out.put_u32(payload.len() as u32 + 4);
    out.put_slice(payload);
}

impl Copy {
    /// Sends bytes that are framed already, and empties the buffer.
    pub fn send(&mut self, out: &mut BytesMut) -> io::Result<()> {
        self.stream.write_all(out)?;
        out.clear();
        Ok(())
    }

    /// Tells a neighbour where the calling thread runs, which is about to ask for one thing and wait, if that is news to it.
    pub fn put_core(&mut self, out: &mut BytesMut) {
        let core = sched_getcpu() as u32;
        if self.is_near && self.told.replace(core) != Some(core) {
            let mut payload = BytesMut::with_capacity(8);
            pagestream::put_core(&mut payload, core);
            put_copy_data(out, &payload);
        }
    }

    /// Whether a message is at hand: [`Copy::payload`] may wait otherwise.
    pub fn has_message(&self) -> bool {
        match FrameHeader::parse(&self.input) {
            Ok(Some(header)) => self.input.len() - HEADER_SIZE >= header.body_bytes as usize,
            Ok(None) => false,
            // It says so at once.
            Err(_) => true,
        }
    }

    /// The next payload; `None` at the end that the other side declared. A stream that breaks off is an error.
    pub fn payload(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            let frame = next_frame(&mut self.input, BODY_BYTES_MAX).map_err(io::Error::other)?;
            let Some(frame) = frame else {
                self.receive()?;
                continue;
            };
            match backend::parse(frame).map_err(io::Error::other)? {
                Message::CopyData(payload) => return Ok(Some(payload)),
                Message::CopyDone => return Ok(None),
                Message::ErrorResponse(report) => {
                    return Err(io::Error::other(format!("the pageserver says {report}")));
                }
                _ => {}
            }
        }
    }

    /// Reads what is there, at least a byte.
    fn receive(&mut self) -> io::Result<()> {
        let silence = || io::Error::new(io::ErrorKind::TimedOut, "the pageserver does not answer");
        if self.is_near && !treering_threads::wait_to_read(&self.stream, Some(self.silence_max))? {
            return Err(silence());
        }
        let read = self.stream.read(&mut self.received).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => silence(),
            _ => error,
        })?;
        self.input.extend_from_slice(&self.received[..read]);
        match read {
            0 => Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the pageserver closed the connection",
            )),
            _ => Ok(()),
        }
    }
}
