//! `fopen`: libc's streams read by calls of libc's own, which no door sees. So a stream of a file with a map is one
//! whose reads, writes and seeks come back here; any other is libc's, on a descriptor that was opened here.

use core::ffi::{CStr, c_char, c_int, c_void};
use core::ptr;

use libc::{FILE, off64_t};

use crate::table::{self, Entry};
use crate::{calls, doors, opening};

/// As in `stdio.h`.
#[repr(C)]
struct CookieFunctions {
    read: unsafe extern "C" fn(*mut c_void, *mut c_char, usize) -> isize,
    write: unsafe extern "C" fn(*mut c_void, *const c_char, usize) -> isize,
    seek: unsafe extern "C" fn(*mut c_void, *mut off64_t, c_int) -> c_int,
    close: unsafe extern "C" fn(*mut c_void) -> c_int,
}

unsafe extern "C" {
    fn fopencookie(
        cookie: *mut c_void,
        mode: *const c_char,
        functions: CookieFunctions,
    ) -> *mut FILE;
}

/// # Safety
/// As `fopen`.
pub unsafe fn fopen(path: *const c_char, mode: *const c_char) -> *mut FILE {
    // SAFETY: the caller's string.
    let Some(flags) = flags_of(unsafe { CStr::from_ptr(mode) }.to_bytes()) else {
        calls::set_errno(libc::EINVAL);
        return ptr::null_mut();
    };
    // SAFETY: the caller's path.
    let fd = unsafe { doors::open(path, flags, 0o666) };
    if fd < 0 {
        return ptr::null_mut();
    }
    // SAFETY: a descriptor of our own, and the caller's mode.
    let stream = unsafe { stream_of(fd, mode) };
    if stream.is_null() {
        calls::keeping_errno(|| opening::close(fd));
    }
    stream
}

unsafe fn stream_of(fd: c_int, mode: *const c_char) -> *mut FILE {
    if let Entry::Mapped(_) = table::get(fd) {
        let functions = CookieFunctions { read, write, seek, close };
        // SAFETY: the functions take the number for the cookie that it is.
        return unsafe { fopencookie(cookie_of(fd), mode, functions) };
    }
    // libc closes it past the doors, so nothing may be known of it but that it is plain.
    table::set(fd, Entry::Plain);
    // SAFETY: an open descriptor; its flags fit the mode.
    unsafe { libc::fdopen(fd, mode) }
}

/// Flags of `open` for a mode of `fopen`.
fn flags_of(mode: &[u8]) -> Option<c_int> {
    let (kind, rest) = mode.split_first()?;
    // After a comma comes the name of a character set.
    let has = |letter| rest.iter().take_while(|byte| **byte != b',').any(|byte| *byte == letter);
    let (alone, with) = match kind {
        b'r' => (libc::O_RDONLY, 0),
        b'w' => (libc::O_WRONLY, libc::O_CREAT | libc::O_TRUNC),
        b'a' => (libc::O_WRONLY, libc::O_CREAT | libc::O_APPEND),
        _ => return None,
    };
    let access = if has(b'+') { libc::O_RDWR } else { alone };
    let closes = if has(b'e') { libc::O_CLOEXEC } else { 0 };
    let creates_new = if has(b'x') { libc::O_EXCL } else { 0 };
    Some(access | with | closes | creates_new)
}

fn cookie_of(fd: c_int) -> *mut c_void {
    ptr::without_provenance_mut(fd as usize)
}

fn fd_of(cookie: *mut c_void) -> c_int {
    cookie.addr() as c_int
}

unsafe extern "C" fn read(cookie: *mut c_void, into: *mut c_char, length: usize) -> isize {
    // SAFETY: libc's buffer.
    unsafe { doors::read(fd_of(cookie), into.cast(), length) }
}

unsafe extern "C" fn write(cookie: *mut c_void, from: *const c_char, length: usize) -> isize {
    // SAFETY: libc's buffer. An error is 0 here, not -1.
    unsafe { doors::write(fd_of(cookie), from.cast(), length) }.max(0)
}

unsafe extern "C" fn seek(cookie: *mut c_void, offset: *mut off64_t, whence: c_int) -> c_int {
    // SAFETY: libc's offset.
    let place = crate::read::lseek(fd_of(cookie), unsafe { *offset }, whence);
    if place < 0 {
        return -1;
    }
    // SAFETY: the same.
    unsafe { *offset = place };
    0
}

unsafe extern "C" fn close(cookie: *mut c_void) -> c_int {
    opening::close(fd_of(cookie))
}
