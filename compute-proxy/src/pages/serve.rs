//! The agent's end of the socket (`docs/formats/pages-door.md`): a thread for each process that misses pages, and two
//! that fetch ahead of them.
//!
//! Threads, not tasks: what a process of Postgres waits for is one read after the other, and each hand-over between
//! threads would cost as much as the pageserver's answer.

use std::{
    collections::VecDeque,
    io::{self, Read, Write},
    ops::Range,
    os::unix::net::{UnixListener, UnixStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};
use treering_threads::Place;

use super::{
    fetch::{BATCH_BLOCKS, BlockId, FetchError, Fetcher},
    readahead::{ReadAhead, Wanted},
};

/// The version of the page that this speaks.
const DOOR_VERSION: u32 = treering_presence::DIRECTORY_VERSION;
const REQUEST_BYTES: usize = 32;
const TEXT_BYTES_MAX: usize = 480;
/// Threads that fetch ahead.
const AHEAD_THREADS: usize = 2;
/// Blocks that may wait to be fetched ahead; more are forgotten.
const AHEAD_BLOCKS_MAX: usize = 4096;
/// Blocks that one request may name: more than a read of Postgres spans.
const REQUEST_BLOCKS_MAX: u32 = 131_072;
/// Processes of one compute that may be connected.
const CONNECTIONS_MAX: usize = 2048;
/// How long a connection may say nothing at first.
const HELLO_LIMIT: Duration = Duration::from_secs(5);
const STACK_BYTES: usize = 256 * 1024;

/// Everybody behind the door.
pub struct Door {
    fetcher: Arc<Fetcher>,
    start: u64,
    wait_limit: Duration,
    ahead: Ahead,
    is_closed: AtomicBool,
    /// Processes that are served.
    connections: AtomicUsize,
    /// To wake the thread that accepts.
    socket: std::path::PathBuf,
}

/// Blocks to fetch when nobody waits for them.
#[derive(Default)]
struct Ahead {
    blocks: Mutex<VecDeque<BlockId>>,
    some: Condvar,
}

impl Door {
    /// Listens, and answers until [`Door::close`].
    pub fn open(
        fetcher: Arc<Fetcher>,
        start: u64,
        wait_limit: Duration,
        listener: UnixListener,
        socket: &std::path::Path,
    ) -> io::Result<Arc<Door>> {
        let door = Arc::new(Door {
            fetcher,
            start,
            wait_limit,
            ahead: Ahead::default(),
            is_closed: AtomicBool::new(false),
            connections: AtomicUsize::new(0),
            socket: socket.to_owned(),
        });
        for _ in 0..AHEAD_THREADS {
            let door = Arc::clone(&door);
            spawn("pages-ahead", move || door.fetch_ahead())?;
        }
        let accepting = Arc::clone(&door);
        spawn("pages-door", move || accepting.accept(&listener))?;
        Ok(door)
    }

    /// Nobody is answered any more.
    pub fn close(&self) {
        self.is_closed.store(true, Ordering::Release);
        self.fetcher.stop();
        self.ahead.some.notify_all();
        let _ = UnixStream::connect(&self.socket);
    }

    /// Whether this postmaster has the library under it, by its own word.
    pub fn has_reported(&self, pid: i32) -> bool {
        i64::from(self.fetcher.shared.directory().reported()) == i64::from(pid)
    }

    fn is_closed(&self) -> bool {
        self.is_closed.load(Ordering::Acquire)
    }

    fn accept(self: &Arc<Self>, listener: &UnixListener) {
        for stream in listener.incoming() {
            if self.is_closed() {
                return;
            }
            let Ok(stream) = stream else {
                // Out of descriptors, mostly.
                thread::sleep(Duration::from_millis(20));
                continue;
            };
            if self.connections.load(Ordering::Relaxed) >= CONNECTIONS_MAX {
                continue;
            }
            let served_by = Served::new(self);
            let served = spawn("pages-process", move || {
                let door = &served_by.0;
                // A process that ends, or breaks its word, ends its connection.
                if let Err(error) = door.serve(stream)
                    && error.kind() != io::ErrorKind::UnexpectedEof
                {
                    tracing::debug!(%error, "a process's connection for pages");
                }
            });
            if let Err(error) = served {
                tracing::warn!(%error, "no thread for a process that misses pages");
            }
        }
    }

    fn serve(&self, mut stream: UnixStream) -> io::Result<()> {
        let mut scans = ReadAhead::default();
        let mut place = Place::of_this_thread();
        let mut said_hello = false;
        stream.set_read_timeout(Some(HELLO_LIMIT))?;
        loop {
            let mut bytes = [0; REQUEST_BYTES];
            stream.read_exact(&mut bytes)?;
            if self.is_closed() {
                return Ok(());
            }
            let request = Request::parse(&bytes);
            match (request.kind, said_hello) {
                (1, _) => {
                    let answer = self.hello(&request);
                    said_hello = answer.is_ok();
                    stream.set_read_timeout(None)?;
                    reply(&mut stream, answer)?;
                }
                (2, true) => {
                    let answer = self.fetch(&mut scans, &mut place, &request);
                    reply(&mut stream, answer)?;
                }
                (3, true) => self.advise(&request),
                _ => return Err(io::Error::other("a request that is none")),
            }
        }
    }

    fn hello(&self, request: &Request) -> Result<(), (i32, String)> {
        let versions = (request.first_block, request.block_count);
        if versions != (DOOR_VERSION, treering_presence::VERSION) {
            let text = format!("the page library speaks version {versions:?}, the agent another");
            return Err((libc::EPROTO, text));
        }
        if request.file_number != self.start {
            return Err((libc::EPROTO, "the page library is of another start".to_owned()));
        }
        self.fetcher.shared.directory().set_reported(request.pid);
        Ok(())
    }

    fn fetch(
        &self,
        scans: &mut ReadAhead,
        place: &mut Place,
        request: &Request,
    ) -> Result<(), (i32, String)> {
        let (file, missed) = self.blocks(request).ok_or_else(|| {
            (libc::EIO, format!("there is no file {} to fetch from", request.file_number))
        })?;
        let Some(laid_out) = self.fetcher.files.get(file as usize) else { return Ok(()) };
        let Wanted { now, ahead } = scans.missed(file, missed.clone(), laid_out.blocks);
        match request.core {
            Some(core) if now.len() == 1 && ahead.is_empty() => place.beside(core),
            _ => place.anywhere(),
        }
        let deadline = Instant::now() + self.wait_limit;
        if !ahead.is_empty() {
            self.ahead.add(ahead.map(|block| BlockId { file, block }));
        }
        // What only comes after the missed blocks is waited for, and may fail: who reads it will hear why.
        if now != missed && self.ensure(file, now, deadline).is_ok() {
            return Ok(());
        }
        self.ensure(file, missed, deadline).map_err(|error| {
            tracing::warn!("a page that Postgres needs cannot be had: {error}");
            (error.errno(), error.to_string())
        })
    }

    fn ensure(&self, file: u32, blocks: Range<u32>, deadline: Instant) -> Result<(), FetchError> {
        let blocks: Vec<BlockId> = blocks.map(|block| BlockId { file, block }).collect();
        blocks.chunks(BATCH_BLOCKS).try_for_each(|batch| self.fetcher.ensure(batch, deadline))
    }

    fn advise(&self, request: &Request) {
        if let Some((file, blocks)) = self.blocks(request) {
            self.ahead.add(blocks.map(|block| BlockId { file, block }));
        }
    }

    /// The file and those of its blocks that a request names.
    fn blocks(&self, request: &Request) -> Option<(u32, Range<u32>)> {
        let file = u32::try_from(request.file_number).ok()?;
        let laid_out = self.fetcher.files.get(file as usize)?;
        let count = request.block_count.min(REQUEST_BLOCKS_MAX);
        let end = request.first_block.saturating_add(count).min(laid_out.blocks);
        Some((file, request.first_block.min(end)..end))
    }

    fn fetch_ahead(&self) {
        loop {
            let batch = {
                let mut blocks = self.ahead.blocks.lock();
                while blocks.is_empty() && !self.is_closed() {
                    self.ahead.some.wait(&mut blocks);
                }
                let count = blocks.len().min(BATCH_BLOCKS);
                blocks.drain(..count).collect::<Vec<_>>()
            };
            if self.is_closed() {
                return;
            }
            self.fetcher.fetch_ahead(&batch, Instant::now() + self.wait_limit);
        }
    }
}

impl Ahead {
    fn add(&self, wanted: impl Iterator<Item = BlockId>) {
        let mut blocks = self.blocks.lock();
        for block in wanted {
            if blocks.len() >= AHEAD_BLOCKS_MAX {
                break;
            }
            blocks.push_back(block);
        }
        drop(blocks);
        self.some.notify_one();
    }
}

/// A connection that counts, for as long as it lasts.
struct Served(Arc<Door>);

impl Served {
    fn new(door: &Arc<Door>) -> Served {
        door.connections.fetch_add(1, Ordering::Relaxed);
        Served(Arc::clone(door))
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new().name(name.to_owned()).stack_size(STACK_BYTES).spawn(run).map(drop)
}

struct Request {
    kind: u32,
    pid: u32,
    file_number: u64,
    first_block: u32,
    block_count: u32,
    /// Where the asker stays until it is answered.
    core: Option<u32>,
}

impl Request {
    fn parse(bytes: &[u8; REQUEST_BYTES]) -> Request {
        let (words, _) = bytes.as_chunks::<4>();
        let word = |index: usize| words.get(index).map_or(0, |word| u32::from_le_bytes(*word));
        Request {
            kind: word(0),
            pid: word(1),
            file_number: u64::from(word(2)) | u64::from(word(3)) << 32,
            first_block: word(4),
            block_count: word(5),
            core: word(6).checked_sub(1),
        }
    }
}

fn reply(stream: &mut UnixStream, answer: Result<(), (i32, String)>) -> io::Result<()> {
    let (status, errno, text) = match &answer {
        Ok(()) => (0_u32, 0, ""),
        Err((errno, text)) => (1, *errno, text.as_str()),
    };
    let end = (0..=text.len().min(TEXT_BYTES_MAX)).rev().find(|end| text.is_char_boundary(*end));
    let text = &text.as_bytes()[..end.unwrap_or(0)];
    let mut bytes = Vec::with_capacity(16 + text.len());
    for word in [status, errno as u32, text.len() as u32, 0] {
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    bytes.extend_from_slice(text);
    stream.write_all(&bytes)
}
