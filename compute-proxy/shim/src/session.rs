//! A client's own connection, in the hands of the backend that serves it.
//!
//! The agent lets a client in, finds its compute, and connects there. Over that connection it sends the client's
//! socket itself (`docs/formats/pages-door.md`); the backend takes it in the place of the connection, under the same
//! number, before Postgres first waits for it. From then on nobody stands between client and backend.
//!
//! A backend has one thread and one client; a process that was handed none pays a comparison for each call.

use core::ffi::{c_int, c_void};
use core::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering::Relaxed};

use crate::agent;
use crate::calls;
use crate::complain::complain;
use crate::ready::Patience;
use crate::table::{self, Entry};

/// How a handed connection begins. A start-up packet begins with a zero: none is 16 MiB long.
const MAGIC: [u8; 4] = *b"TRHO";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 16;
/// Longest start-up packet and what came behind it, bytes.
const FIRST_BYTES_MAX: u32 = 1 << 20;
/// What the backend says when it has the client: [`ACKNOWLEDGED`], then its process id.
const ACKNOWLEDGED: [u8; 4] = [6, b'T', b'R', b'H'];
/// How long the agent may take to say what it wants, once it has connected.
const HEADER_LIMIT_MS: u32 = 10_000;

/// What this process last accepted: its id << 32 | the number + 1; 0 for none.
static ACCEPTED: AtomicU64 = AtomicU64::new(0);
/// The client's connection; -1 for none.
static CLIENT: AtomicI32 = AtomicI32::new(-1);
/// The agent's connection, out of the way: it closes with this process, and so tells the agent.
static AGENT: AtomicI32 = AtomicI32::new(-1);
/// Bytes that the agent has read of the client, and sends first.
static FIRST_LEFT: AtomicU32 = AtomicU32::new(0);

fn accepted_word(fd: c_int) -> u64 {
    u64::from(std::process::id()) << 32 | u64::from((fd as u32).wrapping_add(1))
}

/// Remembers a connection until it is closed here, as a postmaster does once it has a child for it.
pub fn accepted(fd: c_int) {
    if fd >= 0 && crate::attach::shared().is_some() {
        ACCEPTED.store(accepted_word(fd), Relaxed);
    }
}

/// Whatever the number was, it is closed.
#[inline]
pub fn closed(fd: c_int) {
    let word = ACCEPTED.load(Relaxed);
    if word as u32 == (fd as u32).wrapping_add(1) {
        ACCEPTED.store(0, Relaxed);
    }
    if CLIENT.load(Relaxed) == fd {
        CLIENT.store(-1, Relaxed);
    }
}

/// Before a process first waits for a connection: if it is its parent's last one, and the agent hands a client over by
/// it, the number is the client's afterwards.
pub fn before_wait(fd: c_int) {
    let word = ACCEPTED.load(Relaxed);
    if word as u32 != (fd as u32).wrapping_add(1) || word >> 32 == u64::from(std::process::id()) {
        return;
    }
    ACCEPTED.store(0, Relaxed);
    calls::keeping_errno(|| {
        if let Err(fault) = take_over(fd) {
            complain(format_args!("a client that was handed over is lost: {fault}"));
            calls::shutdown(fd);
        }
    });
}

/// Why a client cannot be taken over.
enum Fault {
    Silent,
    Lost(c_int),
    Garbled,
}

impl core::fmt::Display for Fault {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Fault::Silent => write!(f, "the agent says nothing"),
            Fault::Lost(code) => write!(f, "errno {code}"),
            Fault::Garbled => write!(f, "what the agent says is no such thing"),
        }
    }
}

fn take_over(fd: c_int) -> Result<(), Fault> {
    let mut patience = Patience::new(HEADER_LIMIT_MS);
    let mut first = [0_u8; 1];
    loop {
        let got = calls::peek(fd, &mut first);
        match got {
            // Left at once, or an ordinary client: Postgres finds out.
            0 => return Ok(()),
            1.. if first != [MAGIC[0]] => return Ok(()),
            1.. => break,
            _ => wait_for(fd, libc::POLLIN, &mut patience)?,
        }
    }
    let mut header = [0; HEADER_BYTES];
    let client = calls::receive_descriptor(fd, &mut header).map_err(Fault::Lost)?;
    let client = client.ok_or(Fault::Garbled)?;
    let taken = install(fd, client, &header);
    calls::close(client);
    taken
}

fn install(fd: c_int, client: c_int, header: &[u8; HEADER_BYTES]) -> Result<(), Fault> {
    let (words, _) = header.as_chunks::<4>();
    let [magic, version, first_bytes, _] = words else { return Err(Fault::Garbled) };
    let first_bytes = u32::from_le_bytes(*first_bytes);
    let is_ours = *magic == MAGIC && u32::from_le_bytes(*version) == VERSION;
    if !is_ours || first_bytes > FIRST_BYTES_MAX {
        return Err(Fault::Garbled);
    }
    let agent = agent::copy_out_of_the_way(fd);
    if agent < 0 {
        return Err(Fault::Lost(calls::errno()));
    }
    // SAFETY: no argument.
    let flags = unsafe { calls::fcntl(fd, libc::F_GETFD, 0) };
    let keeps = if flags & libc::FD_CLOEXEC != 0 { libc::O_CLOEXEC } else { 0 };
    if calls::dup3(client, fd, keeps) < 0 {
        let code = calls::errno();
        calls::close(agent);
        return Err(Fault::Lost(code));
    }
    table::set(agent, Entry::Ours);
    AGENT.store(agent, Relaxed);
    FIRST_LEFT.store(first_bytes, Relaxed);
    CLIENT.store(fd, Relaxed);
    let mut word = [0; 8];
    let (mark, pid) = word.split_at_mut(4);
    mark.copy_from_slice(&ACKNOWLEDGED);
    pid.copy_from_slice(&std::process::id().to_le_bytes());
    // An agent that died meanwhile need not know: the client is here.
    calls::send_all_now(agent, &word);
    Ok(())
}

fn wait_for(fd: c_int, event: libc::c_short, patience: &mut Patience) -> Result<(), Fault> {
    match calls::errno() {
        libc::EINTR => return Ok(()),
        libc::EAGAIN => {}
        code => return Err(Fault::Lost(code)),
    }
    let left_ms = patience.left_ms();
    if left_ms == 0 {
        return Err(Fault::Silent);
    }
    calls::poll_one(fd, event, left_ms);
    Ok(())
}

/// `recv`: first what the agent had read of the client.
///
/// # Safety
/// As `recv`.
#[inline]
pub unsafe fn receive(fd: c_int, into: *mut c_void, length: usize, flags: c_int) -> isize {
    if CLIENT.load(Relaxed) == fd && FIRST_LEFT.load(Relaxed) > 0 {
        // SAFETY: the caller's memory.
        return unsafe { receive_first(into, length, flags) };
    }
    // SAFETY: the caller's memory.
    unsafe { calls::recv(fd, into, length, flags) }
}

/// The agent sends these at once and in one piece with the client, so they are hardly ever waited for.
#[cold]
unsafe fn receive_first(into: *mut c_void, length: usize, flags: c_int) -> isize {
    let left = FIRST_LEFT.load(Relaxed);
    let length = length.min(usize::try_from(left).unwrap_or(0));
    let agent = AGENT.load(Relaxed);
    let mut patience = Patience::new(HEADER_LIMIT_MS);
    loop {
        // SAFETY: the caller's memory, or less of it.
        let got = unsafe { calls::recv(agent, into, length, flags) };
        if got >= 0 {
            if flags & libc::MSG_PEEK == 0 {
                FIRST_LEFT.store(left.saturating_sub(got as u32), Relaxed);
            }
            return got;
        }
        if wait_for(agent, libc::POLLIN, &mut patience).is_err() {
            return calls::fail(libc::ECONNRESET);
        }
    }
}
