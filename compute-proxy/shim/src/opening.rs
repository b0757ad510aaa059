//! Opening, duplicating, closing, unlinking: which file a descriptor is.
//!
//! A file is recognised after it was opened, by inode and birth, so it does not matter what happened to its path
//! meanwhile. A descriptor whose file cannot be told is not handed out.

use core::ffi::{c_char, c_int};

use libc::mode_t;
use treering_presence::MapPlace;

use crate::attach::{self, Shared};
use crate::table::{self, Entry, Mapped};
use crate::{agent, calls, cut, flush, ready, session};

const CREATES_NEW: c_int = libc::O_CREAT | libc::O_EXCL;

/// # Safety
/// As `openat`.
pub unsafe fn openat(dir: c_int, path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
    let wish = Wish { flags };
    let Some(shared) = attach::shared().filter(|_| !wish.is_no_file()) else {
        // SAFETY: the caller's path.
        return unsafe { calls::openat(dir, path, flags, mode) };
    };
    if wish.truncates() && !wish.writes() {
        // SAFETY: the caller's path.
        let status = calls::keeping_errno(|| unsafe { calls::status_at(dir, path, 0) });
        if status.is_ok_and(|status| attach::find(shared, &status) != Ok(None)) {
            return calls::fail_int(libc::EINVAL);
        }
    }
    // SAFETY: the caller's path.
    let fd = unsafe { calls::openat(dir, path, wish.for_kernel(), mode) };
    if fd < 0 {
        return fd;
    }
    match calls::keeping_errno(|| recognise(shared, fd, wish)) {
        Ok(()) => fd,
        Err(code) => {
            close(fd);
            calls::fail_int(code)
        }
    }
}

/// What a caller of `open` wants.
#[derive(Clone, Copy)]
struct Wish {
    flags: c_int,
}

impl Wish {
    /// Whether this cannot be a file with a map: a directory, a mere path, or (`O_TMPFILE`) a file without one.
    const fn is_no_file(self) -> bool {
        self.flags & (libc::O_PATH | libc::O_DIRECTORY) != 0
    }

    const fn creates_new(self) -> bool {
        self.flags & CREATES_NEW == CREATES_NEW
    }

    const fn truncates(self) -> bool {
        self.flags & libc::O_TRUNC != 0 && !self.creates_new()
    }

    const fn writes(self) -> bool {
        self.flags & libc::O_ACCMODE != libc::O_RDONLY
    }

    /// Whether the truncation is made here, after the file was recognised: a path does not say whether its blocks
    /// are to be claimed first.
    const fn truncates_here(self) -> bool {
        self.truncates() && self.writes()
    }

    const fn for_kernel(self) -> c_int {
        if self.truncates_here() { self.flags & !libc::O_TRUNC } else { self.flags }
    }
}

fn recognise(shared: &Shared, fd: c_int, wish: Wish) -> Result<(), c_int> {
    let status = calls::status(fd)?;
    // A file that did not exist has no map, whatever number it was given.
    let place = match wish.creates_new() {
        true => None,
        false => attach::find(shared, &status).map_err(|_| ready::no_map(fd))?,
    };
    let entry = match place {
        Some(place) => Entry::Mapped(take_on(fd, place, wish)?),
        None => Entry::Plain,
    };
    if wish.truncates_here() && status.is_regular && truncate(fd, entry) != 0 {
        return Err(calls::errno());
    }
    if entry != Entry::Plain && !table::has_room(fd) {
        return Err(libc::EMFILE);
    }
    table::set(fd, entry);
    Ok(())
}

fn take_on(fd: c_int, place: MapPlace, wish: Wish) -> Result<Mapped, c_int> {
    if wish.flags & libc::O_DIRECT != 0 {
        return Err(libc::EINVAL);
    }
    let appends = wish.flags & libc::O_APPEND != 0;
    if appends {
        let status = wish.flags & (libc::O_NONBLOCK | libc::O_NOATIME);
        // SAFETY: the argument is a set of flags.
        let done = unsafe { calls::fcntl(fd, libc::F_SETFL, status as usize) };
        if done != 0 {
            return Err(calls::errno());
        }
    }
    Ok(Mapped { place, appends })
}

fn truncate(fd: c_int, entry: Entry) -> c_int {
    match entry {
        Entry::Mapped(file) => cut::ftruncate(fd, file, 0),
        Entry::Plain | Entry::Ours => calls::ftruncate(fd, 0),
    }
}

/// Closes a descriptor. The library's own connection is not Postgres's to close.
pub fn close(fd: c_int) -> c_int {
    match table::get(fd) {
        Entry::Plain => {}
        Entry::Mapped(_) => table::set(fd, Entry::Plain),
        Entry::Ours => return calls::fail_int(libc::EBADF),
    }
    session::closed(fd);
    calls::close(fd)
}

/// Another number for a descriptor, made by `call`.
pub fn duplicate(fd: c_int, call: impl FnOnce() -> c_int) -> c_int {
    let entry = table::get(fd);
    let copy = call();
    if copy < 0 {
        return copy;
    }
    let is_file = matches!(entry, Entry::Mapped(_));
    if is_file && !table::has_room(copy) {
        calls::close(copy);
        return calls::fail_int(libc::EMFILE);
    }
    if table::get(copy) == Entry::Ours {
        agent::forget(copy);
        flush::forget(copy);
    }
    table::set(copy, if is_file { entry } else { Entry::Plain });
    copy
}

/// `dup2`, which closes what the number was; not if both are the same.
pub fn duplicate_onto(fd: c_int, onto: c_int) -> c_int {
    if fd == onto {
        // SAFETY: no argument. An open descriptor has flags; another sets the errno that `dup2` would.
        let flags = unsafe { calls::fcntl(fd, libc::F_GETFD, 0) };
        return if flags < 0 { -1 } else { fd };
    }
    duplicate(fd, || calls::dup3(fd, onto, 0))
}

/// `fcntl`: the commands that duplicate, and the flags that a file with a map cannot have.
///
/// # Safety
/// As `fcntl`.
pub unsafe fn fcntl(fd: c_int, command: c_int, argument: usize) -> c_int {
    // SAFETY: the caller's argument.
    let call = || unsafe { calls::fcntl(fd, command, argument) };
    match command {
        libc::F_DUPFD | libc::F_DUPFD_CLOEXEC => duplicate(fd, call),
        libc::F_SETFL if table::mapped(fd).is_some() => {
            let refused = (libc::O_DIRECT | libc::O_APPEND) as usize;
            if argument & refused != 0 { calls::fail_int(libc::EINVAL) } else { call() }
        }
        _ => call(),
    }
}

/// `unlink`, or `rename` onto a file: after it the agent need not fetch ahead for the file that was there.
///
/// # Safety
/// `path` is one.
pub unsafe fn removing(path: *const c_char, call: impl FnOnce() -> c_int) -> c_int {
    // SAFETY: the caller's path.
    let place = attach::shared().and_then(|shared| unsafe { last_link(shared, path) });
    let done = call();
    if done == 0
        && let Some(map) = place.and_then(attach::known_map)
    {
        map.mark_unlinked();
    }
    done
}

/// # Safety
/// As `lstat`.
unsafe fn last_link(shared: &Shared, path: *const c_char) -> Option<MapPlace> {
    let here = (libc::AT_FDCWD, libc::AT_SYMLINK_NOFOLLOW);
    calls::keeping_errno(|| {
        // SAFETY: the caller's path.
        let status = unsafe { calls::status_at(here.0, path, here.1) }.ok()?;
        if status.links > 1 { None } else { attach::find(shared, &status).ok()? }
    })
}
