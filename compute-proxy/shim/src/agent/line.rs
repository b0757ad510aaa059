//! The connection itself: a unix socket that never blocks for long, out of the way of Postgres's descriptors.

use core::ffi::{c_int, c_short};
use core::mem;
use core::sync::atomic::{AtomicU64, Ordering};

use treering_presence::SOCKET_PATH_BYTES;

use super::Broken;
use crate::attach::Shared;
use crate::ready::Patience;
use crate::table::{self, Entry};
use crate::{calls, table::has_room};

/// Where the connection's number should lie: above what Postgres opens, and not so high that the kernel's table of
/// the process grows much (8 bytes a number).
const NUMBER_FLOOR: u64 = 4000;
/// Below this limit's end, if the limit is lower.
const BELOW_LIMIT: u64 = 24;

/// So long a `recv` may wait by itself: one call, where asking `poll` makes three. Well below any limit that is set.
const RECEIVE_MS: u32 = 100;

/// The kept connection: the process that made it << 32 | its number + 1; 0 for none.
static KEPT: AtomicU64 = AtomicU64::new(0);

/// A connection in use. Closed when dropped.
#[derive(Debug)]
pub struct Connection {
    fd: c_int,
}

impl Drop for Connection {
    fn drop(&mut self) {
        table::set(self.fd, Entry::Plain);
        calls::close(self.fd);
    }
}

fn kept_word(fd: c_int) -> u64 {
    u64::from(std::process::id()) << 32 | u64::from((fd as u32).wrapping_add(1))
}

/// The number was given to another file by `dup2`, which closed the connection.
pub fn forget(fd: c_int) {
    let _ = KEPT.compare_exchange(kept_word(fd), 0, Ordering::AcqRel, Ordering::Relaxed);
}

impl Connection {
    /// The kept one. One that was made before a fork is the parent's: only this process's copy of it is closed.
    pub fn take() -> Option<Connection> {
        let word = KEPT.swap(0, Ordering::AcqRel);
        let fd = (word as u32).checked_sub(1)?;
        let connection = Connection { fd: fd as c_int };
        (word >> 32 == u64::from(std::process::id())).then_some(connection)
    }

    /// Keeps it for the next request, if none is kept already.
    pub fn put_back(self) {
        let word = kept_word(self.fd);
        if KEPT.compare_exchange(0, word, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
            mem::forget(self);
        }
    }

    /// Connects, once.
    pub fn open(shared: &Shared, patience: &mut Patience) -> Result<Connection, Broken> {
        let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // SAFETY: no memory is passed.
        let fd = unsafe { libc::socket(libc::AF_UNIX, kind, 0) };
        if fd < 0 {
            return Err(Broken::Unreachable(calls::errno()));
        }
        let connection = Connection { fd: out_of_the_way(fd) };
        table::set(connection.fd, Entry::Ours);
        let (address, length) = address(shared).ok_or(Broken::Unreachable(libc::ENAMETOOLONG))?;
        loop {
            // SAFETY: an address of this length.
            let done = unsafe { libc::connect(connection.fd, (&raw const address).cast(), length) };
            match if done == 0 { 0 } else { calls::errno() } {
                0 | libc::EISCONN => {
                    connection.let_receive_wait();
                    return Ok(connection);
                }
                // Many want to connect at once, and the agent has not taken them all.
                libc::EAGAIN if patience.before_next_try() => {}
                libc::EINTR => {}
                code => return Err(Broken::Unreachable(code)),
            }
        }
    }

    /// Where the kernel sets no limit, `recv` goes on not to wait, and `poll` does.
    fn let_receive_wait(&self) {
        let us = libc::suseconds_t::from(RECEIVE_MS).saturating_mul(1000);
        let limit = libc::timeval { tv_sec: 0, tv_usec: us };
        let (name, length) = (libc::SO_RCVTIMEO, mem::size_of_val(&limit) as libc::socklen_t);
        // SAFETY: a value of this length.
        let set = unsafe {
            libc::setsockopt(self.fd, libc::SOL_SOCKET, name, (&raw const limit).cast(), length)
        };
        if set == 0 {
            // SAFETY: the argument is a number: no flags of those that can be set.
            unsafe { calls::fcntl(self.fd, libc::F_SETFL, 0) };
        }
    }

    /// Sends all of it.
    pub fn send(&self, bytes: &[u8], patience: &mut Patience) -> Result<(), Broken> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let sent = self.send_some(rest);
            match usize::try_from(sent) {
                Ok(sent) => rest = rest.get(sent..).unwrap_or(&[]),
                Err(_) => self.wait_after(calls::errno(), libc::POLLOUT, patience)?,
            }
        }
        Ok(())
    }

    /// Sends all of it if the socket has room, else nothing. `false`: half of it went, or the agent is gone.
    pub fn offer(&self, bytes: &[u8]) -> bool {
        match usize::try_from(self.send_some(bytes)) {
            Ok(sent) => sent == bytes.len(),
            Err(_) => matches!(calls::errno(), libc::EAGAIN | libc::EINTR),
        }
    }

    fn send_some(&self, bytes: &[u8]) -> isize {
        let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
        // SAFETY: the bytes.
        unsafe { calls::send(self.fd, bytes.as_ptr().cast(), bytes.len(), flags) }
    }

    /// Fills `into`.
    pub fn receive(&self, into: &mut [u8], patience: &mut Patience) -> Result<(), Broken> {
        let mut got = 0_usize;
        while let Some(rest) = into.get_mut(got..).filter(|rest| !rest.is_empty()) {
            let may_wait = patience.left_ms() > RECEIVE_MS;
            let flags = if may_wait { 0 } else { libc::MSG_DONTWAIT };
            // SAFETY: the rest of the buffer.
            let some = unsafe { calls::recv(self.fd, rest.as_mut_ptr().cast(), rest.len(), flags) };
            match usize::try_from(some) {
                Ok(0) => return Err(Broken::Lost(0)),
                Ok(some) => got = got.saturating_add(some),
                Err(_) => self.wait_after(calls::errno(), libc::POLLIN, patience)?,
            }
        }
        Ok(())
    }

    /// After a call that had nothing to do: until it has, or the time is over.
    fn wait_after(
        &self,
        code: c_int,
        event: c_short,
        patience: &mut Patience,
    ) -> Result<(), Broken> {
        match code {
            libc::EINTR => return Ok(()),
            libc::EAGAIN => {}
            code => return Err(Broken::Lost(code)),
        }
        let left_ms = patience.left_ms();
        if left_ms == 0 {
            return Err(Broken::Silent);
        }
        // A signal ends it early, and the loops above ask again.
        calls::poll_one(self.fd, event, left_ms);
        Ok(())
    }
}

/// Moves a new descriptor above Postgres's, as far as the limit allows.
pub fn out_of_the_way(fd: c_int) -> c_int {
    let moved = copy_out_of_the_way(fd);
    if !has_room(moved) {
        return fd;
    }
    calls::close(fd);
    moved
}

/// A copy of a descriptor, closed on `exec`, above Postgres's; negative if there can be none.
pub fn copy_out_of_the_way(fd: c_int) -> c_int {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: memory for one answer.
    unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) };
    let floor = NUMBER_FLOOR.min(limit.rlim_cur.saturating_sub(BELOW_LIMIT));
    let floor = usize::try_from(floor).unwrap_or(0);
    // SAFETY: the argument is a number.
    unsafe { calls::fcntl(fd, libc::F_DUPFD_CLOEXEC, floor) }
}

fn address(shared: &Shared) -> Option<(libc::sockaddr_un, libc::socklen_t)> {
    let mut path = [0; SOCKET_PATH_BYTES];
    let length = shared.socket_path(&mut path)?;
    let mut address = libc::sockaddr_un { sun_family: libc::AF_UNIX as u16, sun_path: [0; 108] };
    // The closing zero must fit too.
    if length >= address.sun_path.len() {
        return None;
    }
    for (to, from) in address.sun_path.iter_mut().zip(path) {
        *to = from.cast_signed();
    }
    let bytes = mem::size_of::<libc::sa_family_t>().saturating_add(length).saturating_add(1);
    Some((address, libc::socklen_t::try_from(bytes).ok()?))
}
