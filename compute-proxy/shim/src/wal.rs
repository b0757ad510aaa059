//! WAL that runs too far ahead of the quorum waits before it is written.

use core::ffi::{CStr, c_int, c_void};

use libc::{iovec, off_t};

use crate::table::Segment;
use crate::{attach, calls, read};

/// Digits of a segment's name: timeline, upper half of the LSN, segment in it; eight each.
const NAME_DIGITS: usize = 24;
const NAME_HEAD: &[u8] = b"pg_wal/";
const SIZE_DEFAULT: u64 = 16 << 20;
/// Between two looks at the quorum.
const LOOK_EVERY_US: u32 = 2000;

/// The segment that a path names. Where it starts depends on the size of segments, which is that of the file: Postgres
/// gives a segment its name when it is filled.
pub fn segment(path: &CStr, file_bytes: u64) -> Option<Segment> {
    let path = path.to_bytes();
    let (head, name) = path.split_at_checked(path.len().checked_sub(NAME_DIGITS)?)?;
    if !head.ends_with(NAME_HEAD) {
        return None;
    }
    let (_, digits) = name.split_at_checked(8)?;
    let (upper, number) = digits.split_at_checked(8)?;
    name.iter()
        .all(|digit| digit.is_ascii_digit() || (b'A'..=b'F').contains(digit))
        .then_some(())?;
    let valid = file_bytes.is_power_of_two() && (1 << 20..=1 << 30).contains(&file_bytes);
    let size_mib = if valid { file_bytes } else { SIZE_DEFAULT } >> 20;
    let start_mib = (hex(upper)? << 12).checked_add(hex(number)?.checked_mul(size_mib)?)?;
    Some(Segment { start_mib })
}

fn hex(digits: &[u8]) -> Option<u64> {
    u64::from_str_radix(core::str::from_utf8(digits).ok()?, 16).ok()
}

impl Segment {
    /// The LSN at an offset.
    fn lsn(self, offset: u64) -> u64 {
        self.start_mib.saturating_mul(1 << 20).saturating_add(offset)
    }
}

/// # Safety
/// As `pwrite`.
pub unsafe fn pwrite(
    fd: c_int,
    segment: Segment,
    from: *const c_void,
    length: usize,
    offset: off_t,
) -> isize {
    wait(segment, offset, length as u64);
    // SAFETY: the caller's memory.
    unsafe { calls::pwrite(fd, from, length, offset) }
}

/// # Safety
/// As `write`.
pub unsafe fn write(fd: c_int, segment: Segment, from: *const c_void, length: usize) -> isize {
    let position = calls::keeping_errno(|| calls::lseek(fd, 0, libc::SEEK_CUR));
    wait(segment, position, length as u64);
    // SAFETY: the caller's memory.
    unsafe { calls::write(fd, from, length) }
}

/// # Safety
/// As `pwritev`.
pub unsafe fn pwritev(
    fd: c_int,
    segment: Segment,
    from: *const iovec,
    count: c_int,
    offset: off_t,
) -> isize {
    // SAFETY: the caller's pieces.
    if let Some(length) = unsafe { read::total_length(from, count) } {
        wait(segment, offset, length);
    }
    // SAFETY: the caller's memory.
    unsafe { calls::pwritev(fd, from, count, offset) }
}

/// Until WAL may end there. For ever, if need be: the agent lifts the limit before it stops a compute.
#[inline]
fn wait(segment: Segment, offset: off_t, length: u64) {
    let Some(shared) = attach::shared() else { return };
    let end = segment.lsn(u64::try_from(offset).unwrap_or(0).saturating_add(length));
    if !shared.may_write_wal(end) {
        calls::keeping_errno(|| {
            while !shared.may_write_wal(end) {
                calls::sleep_us(LOOK_EVERY_US);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_is_known_by_its_path() {
        let mib = |path, bytes| segment(path, bytes).map(|segment| segment.start_mib);
        let sized = c"pg_wal/0000000100000002000000AB";
        assert_eq!(mib(sized, 16 << 20), Some((2 << 12) + 0xAB * 16));
        assert_eq!(mib(sized, 1 << 20), Some((2 << 12) + 0xAB));
        assert_eq!(mib(sized, 0), mib(sized, 16 << 20));
        assert_eq!(mib(c"/data/pg_wal/000000010000000000000001", 64 << 20), Some(64));
        assert_eq!(mib(c"pg_wal/FFFFFFFFFFFFFFFFFFFFFFFF", 1 << 30).map(|mib| mib >> 56), Some(0));
        for other in [
            c"pg_wal/0000000100000002000000Ab",
            c"pg_wal/0000000100000002000000AB.partial",
            c"pg_wal/xlogtemp.12345",
            c"pg_wal/00000001",
            c"pg_xact/0000000100000002000000AB",
            c"0000000100000002000000AB",
            c"",
        ] {
            assert_eq!(mib(other, 16 << 20), None, "{other:?}");
        }
    }
}
