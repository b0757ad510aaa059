//! What Postgres wants durable. Of its files only the log has to be, and the log is durable when the quorum has it.
//!
//! `fdatasync` is what Postgres calls on the segment of the log that it has written to (`issue_xlog_fsync`,
//! `access/transam/xlog.c`), and on nothing else, with the settings that the agent forces. It asks the agent, wakes it
//! through a pipe, and sleeps until the agent has given the log to the quorum (`docs/formats/pages-door.md`). It waits
//! for ever, if need be, as it would for a disk: Postgres holds a lock meanwhile and cannot be told of a failure without
//! ending. Everything else on this disk can be had again, so no call that writes it out does anything.

use core::ffi::c_int;
use core::sync::atomic::{AtomicI32, Ordering::Acquire, Ordering::Relaxed};

use treering_presence::SOCKET_PATH_BYTES;

use crate::attach::{self, Shared};
use crate::table::{self, Entry};
use crate::{agent, calls};

/// What the pipe's path has behind the socket's.
const PIPE_SUFFIX: &[u8] = b".flush";
/// The agent is woken again after this: it may have died with the word.
const WAKE_EVERY_MS: u32 = 1000;

/// This process's end of the pipe, which its children share; -1 before it is open.
static PIPE: AtomicI32 = AtomicI32::new(-1);

/// Returns when the quorum has all of the log that is written.
pub fn fdatasync(fd: c_int) -> c_int {
    match attach::shared() {
        None => calls::fdatasync(fd),
        Some(shared) => {
            calls::keeping_errno(|| wait(shared, shared.ask_for_flush()));
            0
        }
    }
}

/// A call that makes other files durable: without an agent, the call itself.
pub fn not_needed(call: impl FnOnce() -> c_int) -> c_int {
    if attach::shared().is_some() { 0 } else { call() }
}

/// The number was given to another file by `dup2`, which closed the pipe.
pub fn forget(fd: c_int) {
    let _ = PIPE.compare_exchange(fd, -1, Relaxed, Relaxed);
}

fn wait(shared: &Shared, request: u32) {
    let Some(word) = shared.flush_word() else { return };
    let mut wake_at = 0;
    loop {
        // Before the look: a change that comes behind it ends the sleep.
        let seen = word.load(Acquire);
        if shared.is_flushed(request) {
            return;
        }
        let now = calls::now_ns();
        if now >= wake_at {
            if is_orphan(shared) {
                // Nobody will take this log any more. Others of this postmaster may wait for a lock that is held here; whoever reaps them comes
                // with the next agent, if this one is dead as well.
                calls::exit(2);
            }
            wake(shared);
            wake_at = now.saturating_add(u64::from(WAKE_EVERY_MS).saturating_mul(1_000_000));
        }
        calls::wait_on(word, seen, WAKE_EVERY_MS);
    }
}

/// A child of a postmaster that is dead.
fn is_orphan(shared: &Shared) -> bool {
    // SAFETY: asks for a number.
    let parent = unsafe { libc::getppid() } as u32;
    let postmaster = shared.reported();
    postmaster != 0 && postmaster != std::process::id() && postmaster != parent
}

/// Writes to the agent's pipe. One that is full wakes as well; where there is none, an agent that comes looks by itself.
fn wake(shared: &Shared) {
    let mut pipe = PIPE.load(Relaxed);
    if pipe < 0 {
        pipe = open_pipe(shared);
        if pipe < 0 {
            return;
        }
        pipe = agent::out_of_the_way(pipe);
        table::set(pipe, Entry::Ours);
        PIPE.store(pipe, Relaxed);
    }
    // SAFETY: one byte.
    unsafe { calls::write(pipe, [0_u8].as_ptr().cast(), 1) };
}

fn open_pipe(shared: &Shared) -> c_int {
    let mut socket = [0; SOCKET_PATH_BYTES];
    let Some(length) = shared.socket_path(&mut socket) else { return -1 };
    let mut path = [0_u8; SOCKET_PATH_BYTES + PIPE_SUFFIX.len()];
    let name = socket.iter().take(length).chain(PIPE_SUFFIX);
    path.iter_mut().zip(name).for_each(|(to, from)| *to = *from);
    // For reading too: a pipe that an agent has left takes what is written without a signal.
    let flags = libc::O_RDWR | libc::O_NONBLOCK | libc::O_CLOEXEC;
    // SAFETY: a path that ends with a zero, for the socket's does within its bytes.
    unsafe { calls::openat(libc::AT_FDCWD, path.as_ptr().cast(), flags, 0) }
}
