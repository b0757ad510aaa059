//! How much of the disk the log may take, all timelines together.
//!
//! What a timeline takes is counted by positions, from the oldest one that it holds to the end of its bytes, and by the files
//! that it has ready for more: no file has to be looked at, and the count is right at every moment. Files for a log to come are
//! made and kept only where room is ample, and are the first to go. Appends that would pass the limit are refused before
//! anything is done, and so are those that find the file system nearly full: votes, cuts and control files still need
//! room when the log has none. Once segments have been removed, the next append is taken.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use treering_fs::FileSystem;

use crate::error::StoreError;

/// Appends are refused when the file system has less room than this.
pub const DISK_RESERVE_BYTES: u64 = 64 * 1024 * 1024;
/// Files for a log to come are made and kept while the file system has more room than this.
pub(crate) const DISK_AMPLE_BYTES: u64 = 8 * DISK_RESERVE_BYTES;
/// And while this part of the limit is free.
const AMPLE_PART: u64 = 8;
/// The share of the file system that the log may take when nobody says otherwise: at this mark people are warned.
const DEFAULT_LIMIT_PERCENT: u64 = 80;

/// The limit, and what is taken of it.
#[derive(Debug)]
pub struct Room {
    limit: u64,
    used: AtomicU64,
}

impl Room {
    pub fn of(limit: u64) -> Arc<Room> {
        Arc::new(Room { limit, used: AtomicU64::new(0) })
    }

    /// The limit that counts when none is given: most of the file system that `path` lies on.
    pub fn default_limit(fs: &dyn FileSystem, path: &Path) -> Result<u64, StoreError> {
        let total = fs.total_bytes(path).map_err(StoreError::io("ask for the size of", path))?;
        Ok(total / 100 * DEFAULT_LIMIT_PERCENT)
    }

    pub fn limit(&self) -> u64 {
        self.limit
    }

    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Whether so much more fits, with something left for others.
    pub fn is_ample(&self, bytes: u64) -> bool {
        self.used().saturating_add(bytes) <= self.limit - self.limit / AMPLE_PART
    }

    /// A part of it, nothing so far.
    pub fn share(self: &Arc<Room>) -> Share {
        Share { room: self.clone(), bytes: 0 }
    }
}

/// What one timeline has of the room; given back when dropped.
#[derive(Debug)]
pub struct Share {
    room: Arc<Room>,
    bytes: u64,
}

impl Share {
    pub fn room(&self) -> &Arc<Room> {
        &self.room
    }

    /// Takes so much more, if the limit allows it.
    pub fn grow(&mut self, bytes: u64) -> Result<(), StoreError> {
        let limit = self.room.limit;
        let fits = |used: u64| used.checked_add(bytes).filter(|sum| *sum <= limit);
        match self.room.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits) {
            Ok(_) => {
                self.bytes += bytes;
                Ok(())
            }
            Err(used) => Err(StoreError::LimitReached { used, limit }),
        }
    }

    /// What it really takes now. What is there counts, whatever the limit.
    pub fn set(&mut self, bytes: u64) {
        if bytes == self.bytes {
            return;
        }
        match bytes.checked_sub(self.bytes) {
            Some(more) => self.room.used.fetch_add(more, Ordering::Relaxed),
            None => self.room.used.fetch_sub(self.bytes - bytes, Ordering::Relaxed),
        };
        self.bytes = bytes;
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.set(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_never_pass_the_limit_and_are_given_back() {
        let room = Room::of(100);
        let (mut a, mut b) = (room.share(), room.share());
        a.grow(60).unwrap();
        assert!(matches!(b.grow(41), Err(StoreError::LimitReached { used: 60, limit: 100 })));
        b.grow(40).unwrap();
        assert!(a.grow(1).is_err());
        a.set(10);
        b.grow(50).unwrap();
        assert_eq!(room.used(), 100);
        // What a start finds on the disk is there.
        a.set(500);
        assert_eq!(room.used(), 590);
        drop(a);
        assert_eq!(room.used(), 90);
        assert!(b.grow(u64::MAX).is_err());
    }
}
