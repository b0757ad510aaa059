//! Copying inside the kernel, out of or into a file with a map.

use core::ffi::{c_int, c_uint, c_void};
use core::ptr;

use libc::off_t;

use crate::table::{self, Mapped};
use crate::{calls, read, write};

/// Most that one call copies out of a file with a map. Callers go on after a short count.
const LENGTH_MAX: usize = 1 << 20;
/// The same into one, through memory.
const PIECE: usize = 8192;

/// One end of a copy.
struct End {
    fd: c_int,
    file: Option<Mapped>,
    /// The caller's offset; null: the descriptor's own position.
    offset: *mut off_t,
}

impl End {
    /// # Safety
    /// The pointer is null or the caller's offset.
    unsafe fn position(&self) -> off_t {
        if self.offset.is_null() {
            return calls::lseek(self.fd, 0, libc::SEEK_CUR);
        }
        // SAFETY: the caller's.
        let position = unsafe { *self.offset };
        if position < 0 {
            calls::set_errno(libc::EINVAL);
        }
        position
    }

    /// # Safety
    /// As above.
    unsafe fn move_to(&self, position: off_t) {
        match self.offset.is_null() {
            true => {
                calls::lseek(self.fd, position, libc::SEEK_SET);
            }
            // SAFETY: the caller's.
            false => unsafe { *self.offset = position },
        }
    }
}

/// # Safety
/// As `copy_file_range`.
pub unsafe fn copy_file_range(
    from: c_int,
    from_offset: *mut off_t,
    to: c_int,
    to_offset: *mut off_t,
    length: usize,
    flags: c_uint,
) -> isize {
    let source = End { fd: from, file: table::mapped(from), offset: from_offset };
    let target = End { fd: to, file: table::mapped(to), offset: to_offset };
    if source.file.is_none() && target.file.is_none() {
        // SAFETY: the caller's offsets.
        return unsafe { calls::copy_file_range(from, from_offset, to, to_offset, length, flags) };
    }
    if flags != 0 {
        return calls::fail(libc::EINVAL);
    }
    // SAFETY: the caller's offsets.
    let (start, goal) = unsafe { (source.position(), target.position()) };
    if start < 0 || goal < 0 {
        return -1;
    }
    let copied = match target.file {
        Some(file) => through_memory(&source, start, &target, file, goal, length),
        None => in_kernel(&source, start, &target, goal, length),
    };
    if copied > 0 {
        let moved = copied as off_t;
        // SAFETY: the caller's offsets.
        unsafe {
            source.move_to(start.saturating_add(moved));
            target.move_to(goal.saturating_add(moved));
        }
    }
    copied
}

/// A piece that was copied while a block of it was dropped is copied again over itself: the target is nobody's yet.
fn in_kernel(source: &End, start: off_t, target: &End, goal: off_t, length: usize) -> isize {
    let length = length.min(LENGTH_MAX);
    let call = || {
        let (mut from, mut to) = (start, goal);
        // SAFETY: offsets of our own.
        unsafe { calls::copy_file_range(source.fd, &mut from, target.fd, &mut to, length, 0) }
    };
    match source.file {
        Some(file) => read::checked(source.fd, file, start, length as u64, call),
        None => call(),
    }
}

/// Read first, then claim and write: nothing is waited for under the claim that another copy might hold.
fn through_memory(
    source: &End,
    start: off_t,
    target: &End,
    file: Mapped,
    goal: off_t,
    length: usize,
) -> isize {
    let mut piece = [0_u8; PIECE];
    let length = length.min(PIECE);
    let memory: *mut c_void = piece.as_mut_ptr().cast();
    // SAFETY: `length` bytes of the piece.
    let got = unsafe {
        match source.file {
            Some(from) => read::pread(source.fd, from, memory, length, start),
            None => calls::pread(source.fd, memory, length, start),
        }
    };
    let Ok(got) = usize::try_from(got) else { return -1 };
    // SAFETY: the bytes that were read.
    unsafe { write::pwrite(target.fd, file, memory, got, goal) }
}

/// `sendfile` out of a file with a map is refused; its callers read and write instead.
///
/// # Safety
/// As `sendfile`.
pub unsafe fn sendfile(to: c_int, from: c_int, offset: *mut off_t, count: usize) -> isize {
    if table::mapped(from).or(table::mapped(to)).is_some() {
        return calls::fail(libc::EINVAL);
    }
    // SAFETY: the caller's offset.
    unsafe { calls::sendfile(to, from, offset, count) }
}

/// Mapping a file with a map is refused: its holes could not be told from zeros.
///
/// # Safety
/// As `mmap`.
pub unsafe fn mmap(
    at: *mut c_void,
    length: usize,
    protection: c_int,
    flags: c_int,
    fd: c_int,
    offset: off_t,
) -> *mut c_void {
    if flags & libc::MAP_ANONYMOUS == 0 && table::mapped(fd).is_some() {
        calls::set_errno(libc::ENODEV);
        return ptr::without_provenance_mut(usize::MAX);
    }
    // SAFETY: the caller's wish.
    unsafe { calls::mmap(at, length, protection, flags, fd, offset) }
}
