//! Writing a file with a map: claim the blocks, the call, give them back as written.
//!
//! A claim lies only around the system call and the waits for further blocks; no code of Postgres runs in it but
//! signal handlers, which do not write files.

use core::ffi::{c_int, c_void};

use libc::{iovec, off_t};

use crate::ready::{self, Waiting};
use crate::table::Mapped;
use crate::{attach, calls, read};

/// # Safety
/// As `pwrite`.
#[inline]
pub unsafe fn pwrite(
    fd: c_int,
    file: Mapped,
    from: *const c_void,
    length: usize,
    offset: off_t,
) -> isize {
    let Some(offset) = place_of(fd, file, offset) else { return -1 };
    // SAFETY: the caller's memory.
    claimed(fd, file, offset, length as u64, || unsafe { calls::pwrite(fd, from, length, offset) })
}

/// # Safety
/// As `pwritev`.
pub unsafe fn pwritev(
    fd: c_int,
    file: Mapped,
    from: *const iovec,
    count: c_int,
    offset: off_t,
) -> isize {
    // SAFETY: the caller's pieces.
    let Some(length) = (unsafe { read::total_length(from, count) }) else {
        return calls::fail(libc::EINVAL);
    };
    let Some(offset) = place_of(fd, file, offset) else { return -1 };
    // SAFETY: the caller's memory.
    claimed(fd, file, offset, length, || unsafe { calls::pwritev(fd, from, count, offset) })
}

/// By position, as [`read::read`]: it moves by what is reported, which may be less than the kernel wrote.
///
/// # Safety
/// As `write`.
pub unsafe fn write(fd: c_int, file: Mapped, from: *const c_void, length: usize) -> isize {
    let Some(position) = place_of(fd, file, calls::lseek(fd, 0, libc::SEEK_CUR)) else {
        return -1;
    };
    let call = || {
        // SAFETY: the caller's memory.
        unsafe { calls::pwrite(fd, from, length, position) }
    };
    let wrote = claimed(fd, file, position, length as u64, call);
    if wrote > 0 {
        calls::lseek(fd, position.saturating_add(wrote as off_t), libc::SEEK_SET);
    }
    wrote
}

/// Where a write goes: the end of the file for a descriptor that appends, else where it was told. `None` with errno.
fn place_of(fd: c_int, file: Mapped, offset: off_t) -> Option<off_t> {
    if offset < 0 || !file.appends {
        return Some(offset);
    }
    let end = calls::status(fd).ok().and_then(|status| off_t::try_from(status.size_bytes).ok());
    if end.is_none() {
        calls::set_errno(libc::EIO);
    }
    end
}

/// Makes `call`, which writes these bytes.
#[inline]
fn claimed(
    fd: c_int,
    file: Mapped,
    offset: off_t,
    length: u64,
    call: impl FnOnce() -> isize,
) -> isize {
    let Ok(start) = u64::try_from(offset) else { return calls::fail(libc::EINVAL) };
    let Some(map) = attach::known_map(file.place) else { return calls::fail(ready::no_map(fd)) };
    let held = match map.write(start, length).advance() {
        Ok(held) => held,
        Err((pending, missing)) => match Waiting::new(map).hold(pending, missing) {
            Ok(held) => held,
            Err(code) => return calls::fail(code),
        },
    };
    let wrote = call();
    let counted = held.finish(u64::try_from(wrote).unwrap_or(0));
    match (wrote, counted) {
        (..=0, _) => wrote,
        // The kernel stopped inside a block whose other bytes are not here: nothing of it counts.
        (_, 0) => calls::fail(libc::ENOSPC),
        (_, counted) => isize::try_from(counted).unwrap_or(wrote),
    }
}
