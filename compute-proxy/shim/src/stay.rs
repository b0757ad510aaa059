//! A process that stays on its core while it waits for one page, so that who answers can do so there.
//!
//! Between cores that sleep each hand-over is an interrupt to the other, in a virtual machine tens of microseconds. On
//! one core it is a switch of threads (`treering_threads::Place`). A scan does not stay: what it waits for is worked on
//! meanwhile, on every core there is.

use core::mem;
use core::sync::atomic::{AtomicU64, Ordering};

use crate::calls;

/// A miss within so many blocks behind the last one continues it.
const SCAN_BLOCKS: u32 = 256;

/// Held to a core, until it is dropped.
pub struct Stay {
    core: u32,
    /// Where it may run otherwise.
    anywhere: libc::cpu_set_t,
}

impl Stay {
    /// If a fetch of these blocks is one that others do not work on meanwhile, and the kernel lets us.
    pub fn during(file: u64, first: u32, count: u32) -> Option<Stay> {
        /// The last miss: its file's number << 32 | its first block; files have numbers below 2³².
        static LAST: AtomicU64 = AtomicU64::new(u64::MAX);
        let last = LAST.swap(file << 32 | u64::from(first), Ordering::Relaxed);
        let behind = first.wrapping_sub(last as u32);
        let is_scan = last >> 32 == file && (1..=SCAN_BLOCKS).contains(&behind);
        if count != 1 || is_scan {
            return None;
        }
        // SAFETY: a set of bits, none of them set.
        let mut anywhere = unsafe { mem::zeroed() };
        let core = calls::core()?;
        calls::cores(&mut anywhere)?;
        // SAFETY: as above.
        let mut here = unsafe { mem::zeroed() };
        if usize::try_from(core).ok()? >= mem::size_of::<libc::cpu_set_t>().saturating_mul(8) {
            return None;
        }
        // SAFETY: a bit of the set.
        unsafe { libc::CPU_SET(core as usize, &mut here) };
        calls::set_cores(&here)?;
        Some(Stay { core, anywhere })
    }

    pub const fn core(&self) -> u32 {
        self.core
    }
}

impl Drop for Stay {
    fn drop(&mut self) {
        // Refused only if none of these cores is left; then the kernel has chosen others already.
        let _ = calls::set_cores(&self.anywhere);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cores() -> libc::cpu_set_t {
        // SAFETY: as above.
        let mut set = unsafe { mem::zeroed() };
        calls::cores(&mut set).unwrap();
        set
    }

    #[test]
    fn a_single_miss_stays_and_a_scan_does_not() {
        let before = cores();
        let stay = Stay::during(7, 100, 1).unwrap();
        let held = cores();
        // SAFETY: sets, and a bit of one.
        unsafe {
            assert_eq!(libc::CPU_COUNT(&held), 1);
            assert!(libc::CPU_ISSET(stay.core() as usize, &held));
        }
        drop(stay);
        // SAFETY: as above.
        assert!(unsafe { libc::CPU_EQUAL(&before, &cores()) });
        assert!(Stay::during(7, 101, 1).is_none(), "the next block");
        assert!(Stay::during(7, 133, 1).is_none(), "the next run");
        assert!(Stay::during(7, 5000, 2).is_none(), "two blocks");
        assert!(Stay::during(8, 5001, 1).is_some(), "another file");
        assert!(Stay::during(8, 4000, 1).is_some(), "backwards");
    }
}
