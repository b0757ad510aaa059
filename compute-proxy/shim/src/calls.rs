//! The system calls themselves, by number: libc's names for them are this library's own doors.
//!
//! Each is as its namesake in libc, errno included, and leaves errno alone when it succeeds.

use core::ffi::{c_char, c_int, c_long, c_short, c_uint, c_void};
use core::mem::MaybeUninit;
use core::sync::atomic::AtomicU32;

use libc::{iovec, mode_t, off_t, syscall};

/// The calling thread's errno.
pub fn errno() -> c_int {
    // SAFETY: libc's pointer to the calling thread's own errno.
    unsafe { *libc::__errno_location() }
}

/// Sets it.
pub fn set_errno(code: c_int) {
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = code }
}

/// What a failed call returns.
pub fn fail(code: c_int) -> isize {
    set_errno(code);
    -1
}

/// The same for calls that return an `int`.
pub fn fail_int(code: c_int) -> c_int {
    set_errno(code);
    -1
}

/// Runs something that is not to be seen in errno.
pub fn keeping_errno<T>(what: impl FnOnce() -> T) -> T {
    let before = errno();
    let result = what();
    set_errno(before);
    result
}

/// The core that the calling thread runs on.
pub fn core() -> Option<u32> {
    // SAFETY: no argument.
    u32::try_from(keeping_errno(|| unsafe { libc::sched_getcpu() })).ok()
}

/// The cores that the calling thread may run on, into `set`.
pub fn cores(set: &mut libc::cpu_set_t) -> Option<()> {
    let size = size_of::<libc::cpu_set_t>();
    // SAFETY: a set of this size.
    let done = keeping_errno(|| unsafe { libc::sched_getaffinity(0, size, set) });
    (done == 0).then_some(())
}

/// Lets the calling thread run on these cores only.
pub fn set_cores(set: &libc::cpu_set_t) -> Option<()> {
    let size = size_of::<libc::cpu_set_t>();
    // SAFETY: a set of this size.
    let done = keeping_errno(|| unsafe { libc::sched_setaffinity(0, size, set) });
    (done == 0).then_some(())
}

/// What `statx` says about a file, as far as it matters here.
#[derive(Clone, Copy, Debug)]
pub struct Status {
    pub is_regular: bool,
    pub size_bytes: u64,
    pub links: u32,
    pub device: u64,
    pub inode: u64,
    pub birth_ns: u64,
}

/// `statx` of a descriptor.
pub fn status(fd: c_int) -> Result<Status, c_int> {
    // SAFETY: an empty path in static memory.
    unsafe { status_at(fd, c"".as_ptr(), libc::AT_EMPTY_PATH) }
}

/// `statx` of a path.
///
/// # Safety
/// As `statx`: a path that ends.
pub unsafe fn status_at(dir: c_int, path: *const c_char, flags: c_int) -> Result<Status, c_int> {
    const WANTED: c_uint = libc::STATX_TYPE
        | libc::STATX_SIZE
        | libc::STATX_NLINK
        | libc::STATX_INO
        | libc::STATX_BTIME;
    let mut found = MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: the caller's path, and memory for one answer.
    let done = unsafe { syscall(libc::SYS_statx, dir, path, flags, WANTED, found.as_mut_ptr()) };
    if done != 0 {
        return Err(errno());
    }
    // SAFETY: all zeros are a valid answer, and the kernel wrote one over them.
    let found = unsafe { found.assume_init() };
    let seconds = u64::try_from(found.stx_btime.tv_sec).unwrap_or(0);
    let born = found.stx_mask & libc::STATX_BTIME != 0;
    let birth_ns =
        seconds.saturating_mul(1_000_000_000).saturating_add(u64::from(found.stx_btime.tv_nsec));
    Ok(Status {
        is_regular: c_uint::from(found.stx_mode) & libc::S_IFMT == libc::S_IFREG,
        size_bytes: found.stx_size,
        links: found.stx_nlink,
        device: libc::makedev(found.stx_dev_major, found.stx_dev_minor),
        inode: found.stx_ino,
        birth_ns: if born { birth_ns } else { 0 },
    })
}

/// Nanoseconds on a clock that only goes forward.
pub fn now_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: memory for one answer.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(u64::try_from(now.tv_nsec).unwrap_or(0))
}

/// Ends the process at once.
pub fn exit(code: c_int) -> ! {
    // SAFETY: ends the process.
    unsafe { libc::_exit(code) }
}

/// Sleeps, or less if a signal comes.
pub fn sleep_us(micros: u32) {
    let nanos = c_long::from(micros.min(999_999)).saturating_mul(1000);
    let time = libc::timespec { tv_sec: 0, tv_nsec: nanos };
    // SAFETY: memory with a time; the rest is not asked for.
    unsafe { libc::nanosleep(&time, core::ptr::null_mut()) };
}

/// The position of a descriptor, set or asked.
pub fn lseek(fd: c_int, offset: off_t, whence: c_int) -> off_t {
    // SAFETY: no memory is passed.
    unsafe { syscall(libc::SYS_lseek, fd, offset, whence) }
}

pub fn close(fd: c_int) -> c_int {
    // SAFETY: no memory is passed.
    unsafe { syscall(libc::SYS_close, fd) as c_int }
}

pub fn dup(fd: c_int) -> c_int {
    // SAFETY: no memory is passed.
    unsafe { syscall(libc::SYS_dup, fd) as c_int }
}

pub fn dup3(fd: c_int, onto: c_int, flags: c_int) -> c_int {
    // SAFETY: no memory is passed.
    unsafe { syscall(libc::SYS_dup3, fd, onto, flags) as c_int }
}

/// # Safety
/// As `fcntl`: what `argument` is depends on the command.
pub unsafe fn fcntl(fd: c_int, command: c_int, argument: usize) -> c_int {
    // SAFETY: the caller's.
    unsafe { syscall(libc::SYS_fcntl, fd, command, argument) as c_int }
}

pub fn ftruncate(fd: c_int, size: off_t) -> c_int {
    // SAFETY: no memory is passed.
    unsafe { syscall(libc::SYS_ftruncate, fd, size) as c_int }
}

pub fn fallocate(fd: c_int, offset: off_t, length: off_t) -> c_int {
    // SAFETY: no memory is passed.
    unsafe { syscall(libc::SYS_fallocate, fd, 0, offset, length) as c_int }
}

/// Unlike the others, `posix_fadvise` returns its error and leaves errno alone.
pub fn fadvise(fd: c_int, offset: off_t, length: off_t, advice: c_int) -> c_int {
    let before = errno();
    // SAFETY: no memory is passed.
    let done = unsafe { syscall(libc::SYS_fadvise64, fd, offset, length, advice) };
    if done == 0 {
        return 0;
    }
    let code = errno();
    set_errno(before);
    code
}

/// # Safety
/// As `openat`.
pub unsafe fn openat(dir: c_int, path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
    // SAFETY: the caller's path.
    unsafe { syscall(libc::SYS_openat, dir, path, flags, mode) as c_int }
}

/// # Safety
/// As `truncate`.
pub unsafe fn truncate(path: *const c_char, size: off_t) -> c_int {
    // SAFETY: the caller's path.
    unsafe { syscall(libc::SYS_truncate, path, size) as c_int }
}

/// # Safety
/// As `unlink`.
pub unsafe fn unlink(path: *const c_char) -> c_int {
    // SAFETY: the caller's path.
    unsafe { syscall(libc::SYS_unlinkat, libc::AT_FDCWD, path, 0) as c_int }
}

/// # Safety
/// As `rename`.
pub unsafe fn rename(from: *const c_char, to: *const c_char) -> c_int {
    let here = libc::AT_FDCWD;
    // SAFETY: the caller's paths.
    unsafe { syscall(libc::SYS_renameat2, here, from, here, to, 0) as c_int }
}

/// # Safety
/// As `read`.
pub unsafe fn read(fd: c_int, into: *mut c_void, length: usize) -> isize {
    // SAFETY: the caller's memory.
    unsafe { syscall(libc::SYS_read, fd, into, length) as isize }
}

/// # Safety
/// As `pread`.
pub unsafe fn pread(fd: c_int, into: *mut c_void, length: usize, offset: off_t) -> isize {
    // SAFETY: the caller's memory.
    unsafe { syscall(libc::SYS_pread64, fd, into, length, offset) as isize }
}

/// # Safety
/// As `preadv`.
pub unsafe fn preadv(fd: c_int, into: *const iovec, count: c_int, offset: off_t) -> isize {
    // SAFETY: the caller's memory. The last argument is the upper half of an offset on 32 bits.
    unsafe { syscall(libc::SYS_preadv, fd, into, count, offset, 0) as isize }
}

/// # Safety
/// As `write`.
pub unsafe fn write(fd: c_int, from: *const c_void, length: usize) -> isize {
    // SAFETY: the caller's memory.
    unsafe { syscall(libc::SYS_write, fd, from, length) as isize }
}

/// # Safety
/// As `pwrite`.
pub unsafe fn pwrite(fd: c_int, from: *const c_void, length: usize, offset: off_t) -> isize {
    // SAFETY: the caller's memory.
    unsafe { syscall(libc::SYS_pwrite64, fd, from, length, offset) as isize }
}

/// # Safety
/// As `pwritev`.
pub unsafe fn pwritev(fd: c_int, from: *const iovec, count: c_int, offset: off_t) -> isize {
    // SAFETY: the caller's memory. The last argument is the upper half of an offset on 32 bits.
    unsafe { syscall(libc::SYS_pwritev, fd, from, count, offset, 0) as isize }
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
    let number = libc::SYS_copy_file_range;
    // SAFETY: the caller's offsets.
    unsafe { syscall(number, from, from_offset, to, to_offset, length, flags) as isize }
}

/// # Safety
/// As `sendfile`.
pub unsafe fn sendfile(to: c_int, from: c_int, offset: *mut off_t, count: usize) -> isize {
    // SAFETY: the caller's offset.
    unsafe { syscall(libc::SYS_sendfile, to, from, offset, count) as isize }
}

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
    // SAFETY: the caller's wish.
    let place = unsafe { syscall(libc::SYS_mmap, at, length, protection, flags, fd, offset) };
    place as *mut c_void
}

/// # Safety
/// As `recv`.
pub unsafe fn recv(fd: c_int, into: *mut c_void, length: usize, flags: c_int) -> isize {
    let (no_address, no_length) =
        (core::ptr::null_mut::<c_void>(), core::ptr::null_mut::<c_void>());
    // SAFETY: the caller's memory.
    let got =
        unsafe { syscall(libc::SYS_recvfrom, fd, into, length, flags, no_address, no_length) };
    got as isize
}

/// # Safety
/// As `send`.
pub unsafe fn send(fd: c_int, from: *const c_void, length: usize, flags: c_int) -> isize {
    let no_address = core::ptr::null::<c_void>();
    // SAFETY: the caller's memory.
    unsafe { syscall(libc::SYS_sendto, fd, from, length, flags, no_address, 0) as isize }
}

/// # Safety
/// As `accept4`.
pub unsafe fn accept4(
    fd: c_int,
    address: *mut libc::sockaddr,
    length: *mut libc::socklen_t,
    flags: c_int,
) -> c_int {
    // SAFETY: the caller's memory.
    unsafe { syscall(libc::SYS_accept4, fd, address, length, flags) as c_int }
}

/// # Safety
/// As `epoll_ctl`.
pub unsafe fn epoll_ctl(
    set: c_int,
    operation: c_int,
    fd: c_int,
    event: *mut libc::epoll_event,
) -> c_int {
    // SAFETY: the caller's event.
    unsafe { syscall(libc::SYS_epoll_ctl, set, operation, fd, event) as c_int }
}

/// Ends both directions of a connection.
pub fn shutdown(fd: c_int) {
    // SAFETY: no memory is passed.
    unsafe { syscall(libc::SYS_shutdown, fd, libc::SHUT_RDWR) };
}

/// Waits for an event of one descriptor, at most so long; a signal ends it early.
pub fn poll_one(fd: c_int, event: c_short, limit_ms: u32) {
    let mut wanted = libc::pollfd { fd, events: event, revents: 0 };
    // SAFETY: one entry.
    unsafe { libc::poll(&mut wanted, 1, c_int::try_from(limit_ms).unwrap_or(c_int::MAX)) };
}

/// Looks at the first byte that a connection has, without waiting.
pub fn peek(fd: c_int, into: &mut [u8; 1]) -> isize {
    // SAFETY: one byte.
    unsafe { recv(fd, into.as_mut_ptr().cast(), 1, libc::MSG_PEEK | libc::MSG_DONTWAIT) }
}

/// Sends a few bytes to a connection that has room for them.
pub fn send_all_now(fd: c_int, bytes: &[u8]) {
    let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
    // SAFETY: the bytes.
    unsafe { send(fd, bytes.as_ptr().cast(), bytes.len(), flags) };
}

/// Fills `into` with bytes that are there and takes the descriptor that came with them; `None` without one, or with
/// fewer bytes.
pub fn receive_descriptor(fd: c_int, into: &mut [u8]) -> Result<Option<c_int>, c_int> {
    /// Room for one descriptor, aligned as its header.
    #[repr(C, align(8))]
    struct Control([u8; 64]);
    let mut control = Control([0; 64]);
    let mut part = iovec { iov_base: into.as_mut_ptr().cast(), iov_len: into.len() };
    // SAFETY: all zeros are a valid message without parts.
    let mut message: libc::msghdr = unsafe { core::mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = (&raw mut control).cast();
    // SAFETY: computes a size.
    message.msg_controllen = unsafe { libc::CMSG_SPACE(4) } as _;
    let flags = libc::MSG_CMSG_CLOEXEC | libc::MSG_DONTWAIT;
    // SAFETY: the message and all that it points to.
    let got = unsafe { syscall(libc::SYS_recvmsg, fd, &raw mut message, flags) };
    if got < 0 {
        return Err(errno());
    }
    // SAFETY: the kernel filled the message in.
    let header = unsafe { libc::CMSG_FIRSTHDR(&raw const message).as_ref() };
    let is_descriptor = |header: &&libc::cmsghdr| {
        header.cmsg_level == libc::SOL_SOCKET && header.cmsg_type == libc::SCM_RIGHTS
    };
    let Some(header) = header.filter(is_descriptor) else { return Ok(None) };
    // SAFETY: such a header is followed by a descriptor.
    let sent = unsafe { libc::CMSG_DATA(header).cast::<c_int>().read_unaligned() };
    if usize::try_from(got) != Ok(into.len()) {
        close(sent);
        return Ok(None);
    }
    Ok(Some(sent))
}

/// Sleeps until the word is another than it was seen, a signal comes, or so long.
pub fn wait_on(word: &AtomicU32, seen: u32, limit_ms: u32) {
    let nanos = c_long::from(limit_ms % 1000).saturating_mul(1_000_000);
    let limit = libc::timespec { tv_sec: i64::from(limit_ms / 1000), tv_nsec: nanos };
    // SAFETY: a word that stays mapped, and memory with a time.
    unsafe { syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAIT, seen, &raw const limit) };
}

pub fn fdatasync(fd: c_int) -> c_int {
    // SAFETY: no memory is passed, here and below.
    unsafe { syscall(libc::SYS_fdatasync, fd) as c_int }
}

pub fn fsync(fd: c_int) -> c_int {
    unsafe { syscall(libc::SYS_fsync, fd) as c_int }
}

pub fn syncfs(fd: c_int) -> c_int {
    unsafe { syscall(libc::SYS_syncfs, fd) as c_int }
}

pub fn sync_file_range(fd: c_int, offset: off_t, length: off_t, flags: c_uint) -> c_int {
    unsafe { syscall(libc::SYS_sync_file_range, fd, offset, length, flags) as c_int }
}
