//! How much a compute's files may hold: those who fetch and the one who drops keep step over it.
//!
//! The estimate counts what was fetched since the maps were last counted; what Postgres writes into absent blocks is
//! seen at the next count. The limit bounds disk space, not correctness: fetchers wait for room only for a while.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Duration,
};

use parking_lot::{Condvar, Mutex};
use tokio::sync::Notify;

/// The longest that one fetch waits for room: everything there may be written, and not yet free to go.
const WAIT_MAX: Duration = Duration::from_millis(50);

pub struct Room {
    /// In blocks; none at `u64::MAX`.
    limit: u64,
    present: AtomicU64,
    /// The last round found nothing to drop: waiting would not help.
    is_stuck: AtomicBool,
    wanted: Notify,
    waiting: Mutex<()>,
    made: Condvar,
}

impl Room {
    /// For so many bytes; without a limit when absent.
    pub fn new(limit_bytes: Option<u64>, block_bytes: u64) -> Room {
        Room {
            limit: limit_bytes.map_or(u64::MAX, |bytes| (bytes / block_bytes).max(1)),
            present: AtomicU64::new(0),
            is_stuck: AtomicBool::new(false),
            wanted: Notify::new(),
            waiting: Mutex::new(()),
            made: Condvar::new(),
        }
    }

    /// Blocks that the files may hold.
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// A block was fetched.
    pub fn taken(&self) {
        let present = self.present.fetch_add(1, Ordering::Relaxed) + 1;
        if present > self.limit {
            self.wanted.notify_one();
        }
    }

    /// The maps were counted.
    pub fn counted(&self, present: u64) {
        self.present.store(present, Ordering::Relaxed);
    }

    /// A round is over, and something was dropped in it or not.
    pub fn round_ended(&self, dropped: bool) {
        self.is_stuck.store(!dropped, Ordering::Relaxed);
    }

    /// Blocks were dropped.
    pub fn freed(&self, blocks: u64) {
        let less = |present: u64| Some(present.saturating_sub(blocks));
        let _ = self.present.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        self.made.notify_all();
    }

    /// Whether the limit is passed by so much that nothing should be fetched that nobody waits for.
    pub fn is_tight(&self) -> bool {
        self.present.load(Ordering::Relaxed) > self.limit.saturating_add(self.limit / 4)
    }

    /// Waits a little while it is tight.
    pub fn wait(&self) {
        if self.is_tight() && !self.is_stuck.load(Ordering::Relaxed) {
            let mut waiting = self.waiting.lock();
            self.made.wait_for(&mut waiting, WAIT_MAX);
        }
    }

    /// Returns when there is more than the limit.
    pub async fn exceeded(&self) {
        self.wanted.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tight_is_a_quarter_above_the_limit() {
        let room = Room::new(Some(8 * 8192), 8192);
        (0..10).for_each(|_| room.taken());
        assert!(!room.is_tight());
        room.taken();
        assert!(room.is_tight());
        room.freed(1);
        assert!(!room.is_tight());
        let endless = Room::new(None, 8192);
        (0..100).for_each(|_| endless.taken());
        assert!(!endless.is_tight());
    }
}
