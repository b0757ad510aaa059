//! Calls that change no content: what will be needed, and room on disk.

use core::ffi::{c_int, c_void};
use core::ptr;
use core::sync::atomic::{AtomicPtr, Ordering};

use libc::off_t;
use treering_presence::{BLOCK_SIZE, Map, State};

use crate::table::Mapped;
use crate::{agent, attach, calls};

/// `posix_fadvise` that a range will be needed: what is not here is the agent's to read ahead, the rest the
/// kernel's. The kernel is not told where all is absent: it would read a hole.
pub fn will_need(fd: c_int, file: Mapped, offset: off_t, length: off_t) -> c_int {
    let range = (u64::try_from(offset), u64::try_from(length));
    let (Ok(start), Ok(length), Some(map)) = (range.0, range.1, attach::known_map(file.place))
    else {
        return calls::fadvise(fd, offset, length, libc::POSIX_FADV_WILLNEED);
    };
    // A length of 0 means all the rest.
    let end = if length == 0 { u64::MAX } else { start.saturating_add(length) };
    let clip = |block: u64| u32::try_from(block).unwrap_or(u32::MAX).min(map.block_count());
    let (first, end) = (clip(start / BLOCK_SIZE), clip(end.div_ceil(BLOCK_SIZE)));
    let Some(absent) = (first..end).find(|block| is_absent(&map, *block)) else {
        return calls::fadvise(fd, offset, length as off_t, libc::POSIX_FADV_WILLNEED);
    };
    let count = end.saturating_sub(absent);
    calls::keeping_errno(|| agent::advise(map.file_number(), absent, count));
    match absent == first {
        true => 0,
        false => calls::fadvise(fd, offset, length as off_t, libc::POSIX_FADV_WILLNEED),
    }
}

fn is_absent(map: &Map<'_>, block: u32) -> bool {
    map.block(block).is_some_and(|block| block.state == State::Absent)
}

/// `posix_fallocate` on a file with a map. libc would write into blocks where the file system cannot do it; Postgres
/// does that itself, after this error.
pub fn fallocate(fd: c_int, offset: off_t, length: off_t) -> c_int {
    let before = calls::errno();
    if calls::fallocate(fd, offset, length) == 0 {
        return 0;
    }
    let code = calls::errno();
    calls::set_errno(before);
    code
}

/// Any other file is libc's: the next function of the name after this library's.
pub fn fallocate_by_libc(fd: c_int, offset: off_t, length: off_t) -> c_int {
    static FOUND: AtomicPtr<c_void> = AtomicPtr::new(ptr::null_mut());
    let mut address = FOUND.load(Ordering::Relaxed);
    if address.is_null() {
        // SAFETY: a name that ends.
        address = unsafe { libc::dlsym(libc::RTLD_NEXT, c"posix_fallocate".as_ptr()) };
        FOUND.store(address, Ordering::Relaxed);
    }
    if address.is_null() {
        return fallocate(fd, offset, length);
    }
    type Fallocate = unsafe extern "C" fn(c_int, off_t, off_t) -> c_int;
    // SAFETY: the address of libc's function, which has this type.
    let by_libc = unsafe { core::mem::transmute::<*mut c_void, Fallocate>(address) };
    // SAFETY: no memory is passed.
    unsafe { by_libc(fd, offset, length) }
}
