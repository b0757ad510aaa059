//! An agent with the pageserver in its memory, which does what its test says.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use treering_presence::{Agent, Block, DropRule, Map, State};

use crate::pages::{self, PAGE};

/// A file with a map, as the agent has it.
pub struct Lazy {
    pub file: File,
    pub agent: Agent<'static, AtomicU32>,
}

impl Lazy {
    pub fn map(&self) -> Map<'static> {
        self.agent.map()
    }
}

/// What the agent does about a fetch.
#[derive(Clone, Copy, Debug)]
pub enum Reply {
    Serve,
    /// Answers without having fetched.
    LookAgain,
    Fail(i32, &'static str),
    HangUp,
    Silence,
    Garbage,
}

/// A request as it came: kind, number, first, second.
pub type Request = (u32, u64, u32, u32);

/// Pages by file and block.
pub type Pages = HashMap<(usize, u32), Vec<u8>>;

pub struct Memory {
    pub files: Vec<Lazy>,
    /// What to do about the n-th fetch.
    pub rule: fn(u32) -> Reply,
    /// What to do about a hello.
    pub welcome: Reply,
    pub requests: Mutex<Vec<Request>>,
    /// What the pageserver has of pages that were dropped, by file and block; of the others, the original.
    pub taken: Mutex<Pages>,
}

impl Memory {
    pub fn fetches(&self) -> Vec<(u64, u32, u32)> {
        let requests = self.requests.lock().unwrap();
        requests.iter().filter(|r| r.0 == 2).map(|r| (r.1, r.2, r.3)).collect()
    }

    pub fn advices(&self) -> Vec<(u64, u32, u32)> {
        let requests = self.requests.lock().unwrap();
        requests.iter().filter(|r| r.0 == 3).map(|r| (r.1, r.2, r.3)).collect()
    }

    /// Until each block has left the states that only an agent ends.
    pub fn fetch(&self, number: usize, first: u32, count: u32) {
        let lazy = &self.files[number];
        for block in first..first + count {
            while let Some(State::Absent | State::Fetching | State::Dropping) =
                lazy.map().block(block).map(|block| block.state)
            {
                self.fetch_one(number, block);
            }
        }
    }

    fn fetch_one(&self, number: usize, block: u32) {
        let lazy = &self.files[number];
        let Some(plan) = lazy.agent.plan_fetch(block) else { return thread::yield_now() };
        let taken = self.taken.lock().unwrap().get(&(number, block)).cloned();
        assert!(taken.is_some() || !plan.was_written());
        let page = taken.unwrap_or_else(|| pages::original(number as u64, block));
        let Some(claim) = lazy.agent.claim_fetch(plan) else { return };
        lazy.file.write_all_at(&page, u64::from(block) * PAGE as u64).unwrap();
        lazy.agent.publish_fetch(claim).unwrap();
    }

    /// Drops a block if it can, and remembers what Postgres wrote there.
    pub fn drop_block(&self, number: usize, block: u32) -> bool {
        let lazy = &self.files[number];
        lazy.agent.note(block);
        let Some(claim) = lazy.agent.claim_drop(block, DropRule::NotedToo) else { return false };
        let at = u64::from(block) * PAGE as u64;
        let mut page = vec![0; PAGE];
        lazy.file.read_exact_at(&mut page, at).unwrap();
        self.taken.lock().unwrap().insert((number, block), page);
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        // SAFETY: no memory is passed.
        let done = unsafe { libc::fallocate(lazy.file.as_raw_fd(), mode, at as i64, PAGE as i64) };
        assert_eq!(done, 0);
        lazy.agent.finish_drop(claim).unwrap();
        true
    }

    pub fn block(&self, number: usize, block: u32) -> Block {
        self.files[number].map().block(block).unwrap()
    }
}

/// A listening agent. Dropped: gone, with its connections.
pub struct Listening {
    path: PathBuf,
    open: Arc<Mutex<Vec<UnixStream>>>,
    ends: Arc<AtomicBool>,
    accepting: Option<thread::JoinHandle<()>>,
}

impl Listening {
    pub fn start(path: &Path, memory: Arc<Memory>) -> Listening {
        let listener = UnixListener::bind(path).unwrap();
        let (open, ends) = (Arc::<Mutex<Vec<UnixStream>>>::default(), Arc::<AtomicBool>::default());
        let (kept, stop) = (open.clone(), ends.clone());
        let accepting = thread::spawn(move || {
            for stream in listener.incoming().map(Result::unwrap) {
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                kept.lock().unwrap().push(stream.try_clone().unwrap());
                let memory = memory.clone();
                thread::spawn(move || while answer(&memory, &stream).is_some() {});
            }
        });
        Listening { path: path.to_owned(), open, ends, accepting: Some(accepting) }
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::SeqCst);
        let _ = UnixStream::connect(&self.path);
        let _ = std::fs::remove_file(&self.path);
        self.accepting.take().unwrap().join().unwrap();
        for stream in self.open.lock().unwrap().iter() {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
    }
}

fn answer(memory: &Memory, mut stream: &UnixStream) -> Option<()> {
    let mut bytes = [0; 32];
    stream.read_exact(&mut bytes).ok()?;
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    let wide = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
    let (kind, number, first, second) = (word(0), wide(8), word(16), word(20));
    // The core that the asker stays on and 1, for a single block.
    let core = wide(24);
    assert!(core == 0 || (kind == 2 && second == 1 && core <= 1024), "{core}");
    let nth = {
        let mut requests = memory.requests.lock().unwrap();
        requests.push((kind, number, first, second));
        requests.iter().filter(|request| request.0 == 2).count() as u32
    };
    let reply = match kind {
        1 => memory.welcome,
        2 => (memory.rule)(nth),
        _ => return Some(()),
    };
    if let (2, Reply::Serve) = (kind, reply) {
        memory.fetch(number as usize, first, second);
    }
    let (status, code, text) = match reply {
        Reply::Serve | Reply::LookAgain => (0, 0, ""),
        Reply::Fail(code, text) => (1, code, text),
        Reply::Garbage => (0xDEAD, 0, "?"),
        Reply::HangUp => {
            let _ = stream.shutdown(std::net::Shutdown::Both);
            return None;
        }
        Reply::Silence => {
            thread::sleep(Duration::from_secs(3600));
            return None;
        }
    };
    let head = [status, code as u32, text.len() as u32, 0].map(u32::to_le_bytes).concat();
    stream.write_all(&[&head, text.as_bytes()].concat()).ok()
}
