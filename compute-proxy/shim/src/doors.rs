//! libc's names, and what they lead to: the library's own code for a descriptor with a map and for flushes, else the
//! system call.
//!
//! Variadic functions are written with the arguments that they may have: on the targets of this library these are
//! passed in the same places, and one that was not given is not used.
//!
//! Not here, because they change and return no content of a file: `link`, the `stat` family, and what works on
//! directories.

// Each is as its namesake in libc, safety included.
#![allow(clippy::missing_safety_doc)]

use core::ffi::{c_char, c_int, c_uint, c_void};

use libc::{FILE, iovec, mode_t, off_t};

use crate::table::{self, Entry};
use crate::{
    advice, attach, calls, copy, cut, flush, opening, read as reading, session, stream,
    write as writing,
};

#[cfg_attr(all(feature = "preload", not(test)), unsafe(no_mangle))]
pub unsafe extern "C" fn open(path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
    // SAFETY: the caller's path.
    unsafe { opening::openat(libc::AT_FDCWD, path, flags, mode) }
}

#[cfg_attr(all(feature = "preload", not(test)), unsafe(no_mangle))]
pub unsafe extern "C" fn openat(
    dir: c_int,
    path: *const c_char,
    flags: c_int,
    mode: mode_t,
) -> c_int {
    // SAFETY: the caller's path.
    unsafe { opening::openat(dir, path, flags, mode) }
}

#[cfg_attr(all(feature = "preload", not(test)), unsafe(no_mangle))]
pub unsafe extern "C" fn creat(path: *const c_char, mode: mode_t) -> c_int {
    let flags = libc::O_CREAT | libc::O_WRONLY | libc::O_TRUNC;
    // SAFETY: the caller's path.
    unsafe { opening::openat(libc::AT_FDCWD, path, flags, mode) }
}

#[cfg_attr(all(feature = "preload", not(test)), unsafe(no_mangle))]
pub unsafe extern "C" fn fopen(path: *const c_char, mode: *const c_char) -> *mut FILE {
    // SAFETY: the caller's strings.
    unsafe { stream::fopen(path, mode) }
}

#[cfg_attr(all(feature = "preload", not(test)), unsafe(no_mangle))]
pub unsafe extern "C" fn close(fd: c_int) -> c_int {
    opening::close(fd)
}

#[cfg_attr(all(feature = "preload", not(test)), unsafe(no_mangle))]
pub unsafe extern "C" fn dup(fd: c_int) -> c_int {
    opening::duplicate(fd, || calls::dup(fd))
}

#[cfg_attr(all(feature = "preload", not(test)), unsafe(no_mangle))]
pub unsafe extern "C" fn dup2(fd: c_int, onto: c_int) -> c_int {
    opening::duplicate_onto(fd, onto)
}

#[cfg_attr(all(feature = "preload", not(test)), unsafe(no_mangle))]
pub unsafe extern "C" fn dup3(fd: c_int, onto: c_int, flags: c_int) -> c_int {
    opening::duplicate(fd, || calls::dup3(fd, onto, flags))
}

#[cfg_attr(all(feature = "preload", not(test)), unsafe(no_mangle))]
pub unsafe extern "C" fn fcntl(fd: c_int, command: c_int, argument: usize) -> c_int {
    // SAFETY: the caller's argument.
    unsafe { opening::fcntl(fd, command, argument) }
}

#[cfg_attr(all(feature = "preload", not(test)), unsafe(no_mangle))]
pub unsafe extern "C" fn unlink(path: *const c_char) -> c_int {
    // SAFETY: the caller's path.
    unsafe { opening::removing(path, || calls::unlink(path)) }
}

#[cfg_attr(all(feature = "preload", not(test)), unsafe(no_mangle))]
pub unsafe extern "C" fn rename(from: *const c_char, to: *const c_char) -> c_int {
    // SAFETY: the caller's paths.
    unsafe { opening::removing(to, || calls::rename(from, to)) }
}

#[cfg_attr(all(feature = "preload", not(test)), unsafe(no_mangle))]
pub unsafe extern "C" fn lseek(fd: c_int, offset: off_t, whence: c_int) -> off_t {
    reading::lseek(fd, offset, whence)
}

#[cfg_attr(all(feature = "preload", not(test)), unsafe(no_mangle))]
pub unsafe extern "C" fn read(fd: c_int, into: *mut c_void, length: usize) -> isize {
    // SAFETY: the caller's memory.
    unsafe {
        match table::mapped(fd) {
            None => calls::read(fd, into, length),
            Some(file) => reading::read(fd, file, into, length),
        }
    }
}

#[cfg_attr(all(feature = "preload", not(test)), unsafe(no_mangle))]
pub unsafe extern "C" fn __read_chk(
    fd: c_int,
    into: *mut c_void,
    length: usize,
    room: usize,
) -> isize {
    check_room(length, room);
    // SAFETY: the caller's memory.
    unsafe { read(fd, into, length) }
}

#[cfg_attr(all(feature = "preload", not(test)), unsafe(no_mangle))]
pub unsafe extern "C" fn pread(
    fd: c_int,
    into: *mut c_void,
    length: usize,
    offset: off_t,
) -> isize {
    // SAFETY: the caller's memory.
    unsafe {
        match table::mapped(fd) {
            None => calls::pread(fd, into, length, offset),
            Some(file) => reading::pread(fd, file, into, length, offset),
        }
    }
}

#[cfg_attr(all(feature = "preload", not(test)), unsafe(no_mangle))]
pub unsafe extern "C" fn __pread_chk(
    fd: c_int,
    into: *mut c_void,
    length: usize,
    offset: off_t,
    room: usize,
) -> isize {
    check_room(length, room);
    // SAFETY: the caller's memory.
    unsafe { pread(fd, into, length, offset) }
}

#[cfg_attr(all(feature = "preload", not(test)), unsafe(no_mangle))]
pub unsafe extern "C" fn preadv(
    fd: c_int,
    into: *const iovec,
    count: c_int,
    offset: off_t,
) -> isize {
    // SAFETY: the caller's memory.
    unsafe {
        match table::mapped(fd) {
            None => calls::preadv(fd, into, count, offset),
            Some(file) => reading::preadv(fd, file, into, count, offset),
        }
    }
}

#[cfg_attr(all(feature = "preload", not(test)), unsafe(no_mangle))]
pub unsafe extern "C" fn write(fd: c_int, from: *const c_void, length: usize) -> isize {
    // SAFETY: the caller's memory.
    unsafe {
        match table::get(fd) {
            Entry::Plain | Entry::Ours => calls::write(fd, from, length),
            Entry::Mapped(file) => writing::write(fd, file, from, length),
        }
    }
}

#[cfg_attr(all(feature = "preload", not(test)), unsafe(no_mangle))]
pub unsafe extern "C" fn pwrite(
    fd: c_int,
    from: *const c_void,
    length: usize,
    offset: off_t,
) -> isize {
    // SAFETY: the caller's memory.
    unsafe {
        match table::get(fd) {
            Entry::Plain | Entry::Ours => calls::pwrite(fd, from, length, offset),
            Entry::Mapped(file) => writing::pwrite(fd, file, from, length, offset),
        }
    }
}

#[cfg_attr(all(feature = "preload", not(test)), unsafe(no_mangle))]
pub unsafe extern "C" fn pwritev(
    fd: c_int,
    from: *const iovec,
    count: c_int,
    offset: off_t,
) -> isize {
    // SAFETY: the caller's memory.
    unsafe {
        match table::get(fd) {
            Entry::Plain | Entry::Ours => calls::pwritev(fd, from, count, offset),
            Entry::Mapped(file) => writing::pwritev(fd, file, from, count, offset),
        }
    }
}

#[cfg_attr(all(feature = "preload", not(test)), unsafe(no_mangle))]
pub unsafe extern "C" fn fdatasync(fd: c_int) -> c_int {
    flush::fdatasync(fd)
}

#[cfg_attr(all(feature = "preload", not(test)), unsafe(no_mangle))]
pub unsafe extern "C" fn fsync(fd: c_int) -> c_int {
    flush::not_needed(|| calls::fsync(fd))
}

#[cfg_attr(all(feature = "preload", not(test)), unsafe(no_mangle))]
pub unsafe extern "C" fn syncfs(fd: c_int) -> c_int {
    flush::not_needed(|| calls::syncfs(fd))
}

#[cfg_attr(all(feature = "preload", not(test)), unsafe(no_mangle))]
pub unsafe extern "C" fn sync_file_range(
    fd: c_int,
    offset: off_t,
    length: off_t,
    flags: c_uint,
) -> c_int {
    flush::not_needed(|| calls::sync_file_range(fd, offset, length, flags))
}

#[cfg_attr(all(feature = "preload", not(test)), unsafe(no_mangle))]
pub unsafe extern "C" fn ftruncate(fd: c_int, size: off_t) -> c_int {
    match table::mapped(fd) {
        None => calls::ftruncate(fd, size),
        Some(file) => cut::ftruncate(fd, file, size),
    }
}

#[cfg_attr(all(feature = "preload", not(test)), unsafe(no_mangle))]
pub unsafe extern "C" fn truncate(path: *const c_char, size: off_t) -> c_int {
    // SAFETY: the caller's path.
    unsafe {
        match attach::shared() {
            None => calls::truncate(path, size),
            Some(shared) => cut::truncate(shared, path, size),
        }
    }
}

#[cfg_attr(all(feature = "preload", not(test)), unsafe(no_mangle))]
pub unsafe extern "C" fn posix_fadvise(
    fd: c_int,
    offset: off_t,
    length: off_t,
    advice: c_int,
) -> c_int {
    match table::mapped(fd) {
        Some(file) if advice == libc::POSIX_FADV_WILLNEED => {
            advice::will_need(fd, file, offset, length)
        }
        Some(_) | None => calls::fadvise(fd, offset, length, advice),
    }
}

#[cfg_attr(all(feature = "preload", not(test)), unsafe(no_mangle))]
pub unsafe extern "C" fn posix_fallocate(fd: c_int, offset: off_t, length: off_t) -> c_int {
    match table::mapped(fd) {
        None => advice::fallocate_by_libc(fd, offset, length),
        Some(_) => advice::fallocate(fd, offset, length),
    }
}

#[cfg_attr(all(feature = "preload", not(test)), unsafe(no_mangle))]
pub unsafe extern "C" fn copy_file_range(
    from: c_int,
    from_offset: *mut off_t,
    to: c_int,
    to_offset: *mut off_t,
    length: usize,
    flags: c_uint,
) -> isize {
    // SAFETY: the caller's offsets.
    unsafe { copy::copy_file_range(from, from_offset, to, to_offset, length, flags) }
}

#[cfg_attr(all(feature = "preload", not(test)), unsafe(no_mangle))]
pub unsafe extern "C" fn sendfile(
    to: c_int,
    from: c_int,
    offset: *mut off_t,
    count: usize,
) -> isize {
    // SAFETY: the caller's offset.
    unsafe { copy::sendfile(to, from, offset, count) }
}

#[cfg_attr(all(feature = "preload", not(test)), unsafe(no_mangle))]
pub unsafe extern "C" fn mmap(
    at: *mut c_void,
    length: usize,
    protection: c_int,
    flags: c_int,
    fd: c_int,
    offset: off_t,
) -> *mut c_void {
    // SAFETY: the caller's wish.
    unsafe { copy::mmap(at, length, protection, flags, fd, offset) }
}

#[cfg_attr(all(feature = "preload", not(test)), unsafe(no_mangle))]
pub unsafe extern "C" fn accept(
    fd: c_int,
    address: *mut libc::sockaddr,
    length: *mut libc::socklen_t,
) -> c_int {
    // SAFETY: the caller's memory.
    unsafe { accept4(fd, address, length, 0) }
}

#[cfg_attr(all(feature = "preload", not(test)), unsafe(no_mangle))]
pub unsafe extern "C" fn accept4(
    fd: c_int,
    address: *mut libc::sockaddr,
    length: *mut libc::socklen_t,
    flags: c_int,
) -> c_int {
    // SAFETY: the caller's memory.
    let accepted = unsafe { calls::accept4(fd, address, length, flags) };
    session::accepted(accepted);
    accepted
}

#[cfg_attr(all(feature = "preload", not(test)), unsafe(no_mangle))]
pub unsafe extern "C" fn epoll_ctl(
    set: c_int,
    operation: c_int,
    fd: c_int,
    event: *mut libc::epoll_event,
) -> c_int {
    if operation == libc::EPOLL_CTL_ADD {
        session::before_wait(fd);
    }
    // SAFETY: the caller's event.
    unsafe { calls::epoll_ctl(set, operation, fd, event) }
}

#[cfg_attr(all(feature = "preload", not(test)), unsafe(no_mangle))]
pub unsafe extern "C" fn recv(fd: c_int, into: *mut c_void, length: usize, flags: c_int) -> isize {
    // SAFETY: the caller's memory.
    unsafe { session::receive(fd, into, length, flags) }
}

/// What `_FORTIFY_SOURCE` checks before a call: a program that reads over its buffer's end ends.
fn check_room(length: usize, room: usize) {
    if length > room {
        // SAFETY: ends the process.
        unsafe { libc::abort() }
    }
}

/// Second names, for programs that were built with them.
macro_rules! second_names {
    ($($name:ident is $first:ident($($argument:ident: $kind:ty),+) -> $result:ty;)*) => { $(
        #[cfg_attr(all(feature = "preload", not(test)), unsafe(no_mangle))]
        pub unsafe extern "C" fn $name($($argument: $kind),+) -> $result {
            // SAFETY: the caller's arguments.
            unsafe { $first($($argument),+) }
        }
    )* };
}

second_names! {
    open64 is open(path: *const c_char, flags: c_int, mode: mode_t) -> c_int;
    openat64 is openat(dir: c_int, path: *const c_char, flags: c_int, mode: mode_t) -> c_int;
    creat64 is creat(path: *const c_char, mode: mode_t) -> c_int;
    fopen64 is fopen(path: *const c_char, mode: *const c_char) -> *mut FILE;
    fcntl64 is fcntl(fd: c_int, command: c_int, argument: usize) -> c_int;
    lseek64 is lseek(fd: c_int, offset: off_t, whence: c_int) -> off_t;
    pread64 is pread(fd: c_int, into: *mut c_void, length: usize, offset: off_t) -> isize;
    __pread64_chk is __pread_chk(
        fd: c_int, into: *mut c_void, length: usize, offset: off_t, room: usize
    ) -> isize;
    preadv64 is preadv(fd: c_int, into: *const iovec, count: c_int, offset: off_t) -> isize;
    pwrite64 is pwrite(fd: c_int, from: *const c_void, length: usize, offset: off_t) -> isize;
    pwritev64 is pwritev(fd: c_int, from: *const iovec, count: c_int, offset: off_t) -> isize;
    ftruncate64 is ftruncate(fd: c_int, size: off_t) -> c_int;
    truncate64 is truncate(path: *const c_char, size: off_t) -> c_int;
    posix_fadvise64 is posix_fadvise(
        fd: c_int, offset: off_t, length: off_t, advice: c_int
    ) -> c_int;
    posix_fallocate64 is posix_fallocate(fd: c_int, offset: off_t, length: off_t) -> c_int;
    sendfile64 is sendfile(to: c_int, from: c_int, offset: *mut off_t, count: usize) -> isize;
    mmap64 is mmap(
        at: *mut c_void, length: usize, protection: c_int, flags: c_int, fd: c_int, offset: off_t
    ) -> *mut c_void;
}
