//! Truncating a file with a map: claim what is cut, the call, mark it as zeros.

use core::ffi::{c_char, c_int};

use libc::off_t;

use crate::attach::Shared;
use crate::ready::{self, Waiting};
use crate::table::Mapped;
use crate::{attach, calls};

/// `ftruncate`. Growing goes the same way: beyond the end there is nothing but zeros to claim.
pub fn ftruncate(fd: c_int, file: Mapped, size: off_t) -> c_int {
    let Ok(size_bytes) = u64::try_from(size) else { return calls::fail_int(libc::EINVAL) };
    let Some(map) = attach::known_map(file.place) else {
        return calls::fail_int(ready::no_map(fd));
    };
    let held = match map.truncate(size_bytes).advance() {
        Ok(held) => held,
        Err((pending, missing)) => match Waiting::new(map).hold(pending, missing) {
            Ok(held) => held,
            Err(code) => return calls::fail_int(code),
        },
    };
    let done = calls::ftruncate(fd, size);
    if done == 0 {
        held.finish(size_bytes);
        return 0;
    }
    // It may have cut and failed then. Dropping the claim where nothing is known counts as a failed write.
    if let Ok(status) = calls::keeping_errno(|| calls::status(fd)) {
        held.finish(status.size_bytes);
    }
    done
}

/// `truncate`: through a descriptor of its own, so that the file whose blocks are claimed is the one that is cut.
///
/// # Safety
/// As `truncate`.
pub unsafe fn truncate(shared: &Shared, path: *const c_char, size: off_t) -> c_int {
    // SAFETY: the caller's path.
    let found = unsafe { calls::status_at(libc::AT_FDCWD, path, 0) };
    let proposed = found.as_ref().map_or(Ok(None), |status| attach::find(shared, status));
    if let Ok(None) = proposed {
        // SAFETY: the caller's path.
        return unsafe { calls::truncate(path, size) };
    }
    let flags = libc::O_WRONLY | libc::O_CLOEXEC | libc::O_NOCTTY;
    // SAFETY: the caller's path.
    let fd = unsafe { calls::openat(libc::AT_FDCWD, path, flags, 0) };
    if fd < 0 {
        return -1;
    }
    let done = cut_opened(shared, fd, size);
    calls::keeping_errno(|| calls::close(fd));
    done
}

fn cut_opened(shared: &Shared, fd: c_int, size: off_t) -> c_int {
    match calls::status(fd).map(|status| attach::find(shared, &status)) {
        Ok(Ok(Some(place))) => ftruncate(fd, Mapped { place, appends: false }, size),
        Ok(Ok(None)) => calls::ftruncate(fd, size),
        Ok(Err(_)) | Err(_) => calls::fail_int(ready::no_map(fd)),
    }
}
