//! A timeline's watermarks, and waiting for them.
//!
//! Invariant: `disk_consistent_lsn <= last_record_lsn`; neither goes back.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Instant,
};

use parking_lot::{Condvar, Mutex};
use treering_types::Lsn;

/// See the module.
pub(crate) struct Progress {
    last_record: AtomicU64,
    disk_consistent: AtomicU64,
    lock: Mutex<()>,
    changed: Condvar,
}

impl Progress {
    /// Both watermarks at `lsn`.
    pub fn at(lsn: Lsn) -> Progress {
        Progress {
            last_record: AtomicU64::new(lsn.0),
            disk_consistent: AtomicU64::new(lsn.0),
            lock: Mutex::new(()),
            changed: Condvar::new(),
        }
    }

    /// Everything up to here can be read. Whoever reads this before taking a snapshot of the layers finds it there.
    pub fn last_record_lsn(&self) -> Lsn {
        Lsn(self.last_record.load(Ordering::Acquire))
    }

    /// Everything up to here survives a crash.
    pub fn disk_consistent_lsn(&self) -> Lsn {
        Lsn(self.disk_consistent.load(Ordering::Acquire))
    }

    /// # Panics
    /// When the watermark would go back.
    pub fn set_last_record_lsn(&self, lsn: Lsn) {
        let before = self.last_record.swap(lsn.0, Ordering::AcqRel);
        assert!(before <= lsn.0, "last_record_lsn went back from {} to {lsn}", Lsn(before));
        self.notify();
    }

    /// # Panics
    /// When the watermark would go back.
    pub fn set_disk_consistent_lsn(&self, lsn: Lsn) {
        let before = self.disk_consistent.swap(lsn.0, Ordering::AcqRel);
        assert!(before <= lsn.0, "disk_consistent_lsn went back from {} to {lsn}", Lsn(before));
        self.notify();
    }

    /// Wakes everyone who waits, to look again.
    pub fn notify(&self) {
        drop(self.lock.lock());
        self.changed.notify_all();
    }

    /// Waits until `done` or `deadline`; true when done. `done` is asked again after each change.
    pub fn wait_until(&self, deadline: Instant, mut done: impl FnMut() -> bool) -> bool {
        let mut guard = self.lock.lock();
        while !done() {
            if self.changed.wait_until(&mut guard, deadline).timed_out() {
                return done();
            }
        }
        true
    }
}
