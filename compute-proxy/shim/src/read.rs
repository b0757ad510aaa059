//! Reading a file with a map: all blocks there, the call, still there.

use core::ffi::{c_int, c_void};

use libc::{iovec, off_t};
use treering_presence::BLOCK_SIZE;

use crate::ready::{self, Waiting};
use crate::table::{self, Mapped};
use crate::{attach, calls};

/// Most that one `read` or `pread` returns: so many blocks must be there at one time, and an agent with little room
/// drops some while others come.
const LENGTH_MAX: usize = 128 * BLOCK_SIZE as usize;

/// # Safety
/// As `pread`.
#[inline]
pub unsafe fn pread(
    fd: c_int,
    file: Mapped,
    into: *mut c_void,
    length: usize,
    offset: off_t,
) -> isize {
    let length = length.min(LENGTH_MAX);
    // SAFETY: the caller's memory.
    checked(fd, file, offset, length as u64, || unsafe { calls::pread(fd, into, length, offset) })
}

/// By position: asked for, used explicitly, and moved. So what is checked is what is read, whoever shares it.
///
/// # Safety
/// As `read`.
pub unsafe fn read(fd: c_int, file: Mapped, into: *mut c_void, length: usize) -> isize {
    let position = calls::lseek(fd, 0, libc::SEEK_CUR);
    if position < 0 {
        return -1;
    }
    // SAFETY: the caller's memory.
    let got = unsafe { pread(fd, file, into, length, position) };
    if got > 0 {
        calls::lseek(fd, position.saturating_add(got as off_t), libc::SEEK_SET);
    }
    got
}

/// # Safety
/// As `preadv`.
pub unsafe fn preadv(
    fd: c_int,
    file: Mapped,
    into: *const iovec,
    count: c_int,
    offset: off_t,
) -> isize {
    // SAFETY: the caller's pieces.
    let Some(length) = (unsafe { total_length(into, count) }) else {
        return calls::fail(libc::EINVAL);
    };
    // SAFETY: the caller's memory.
    checked(fd, file, offset, length, || unsafe { calls::preadv(fd, into, count, offset) })
}

/// `lseek`: where a file with a map has holes is not what the kernel thinks.
pub fn lseek(fd: c_int, offset: off_t, whence: c_int) -> off_t {
    match whence {
        libc::SEEK_DATA | libc::SEEK_HOLE if table::mapped(fd).is_some() => {
            calls::set_errno(libc::EINVAL);
            -1
        }
        _ => calls::lseek(fd, offset, whence),
    }
}

/// Bytes of all pieces; `None` where the kernel would refuse them.
///
/// # Safety
/// As `preadv`: `count` pieces, if that is a count at all.
pub unsafe fn total_length(pieces: *const iovec, count: c_int) -> Option<u64> {
    let count = usize::try_from(count).ok().filter(|count| *count <= libc::UIO_MAXIOV as usize)?;
    if count == 0 {
        return Some(0);
    }
    // SAFETY: the caller's pieces.
    let pieces = unsafe { core::slice::from_raw_parts(pieces, count) };
    let total =
        pieces.iter().try_fold(0_u64, |sum, piece| sum.checked_add(piece.iov_len as u64))?;
    i64::try_from(total).is_ok().then_some(total)
}

/// Makes `call`, which reads these bytes and may be made several times.
#[inline]
pub fn checked(
    fd: c_int,
    file: Mapped,
    offset: off_t,
    length: u64,
    call: impl Fn() -> isize,
) -> isize {
    let Ok(start) = u64::try_from(offset) else { return calls::fail(libc::EINVAL) };
    let Some(map) = attach::known_map(file.place) else { return calls::fail(ready::no_map(fd)) };
    if let Ok(ticket) = map.begin_read(start, length) {
        let got = call();
        if map.validate(&ticket) {
            return got;
        }
    }
    checked_slowly(Waiting::new(map), start, length, call)
}

#[cold]
fn checked_slowly(
    mut waiting: Waiting<'_>,
    start: u64,
    length: u64,
    call: impl Fn() -> isize,
) -> isize {
    let end = start.saturating_add(length).div_ceil(BLOCK_SIZE);
    let end = u32::try_from(end).unwrap_or(u32::MAX);
    loop {
        let waited = match waiting.map().begin_read(start, length) {
            Err(missing) => waiting.before_read(missing, end),
            Ok(ticket) => {
                let got = call();
                if waiting.map().validate(&ticket) {
                    return got;
                }
                waiting.before_reread()
            }
        };
        if let Err(code) = waited {
            return calls::fail(code);
        }
    }
}
