//! How written bytes become durable and are acknowledged: by a sync here and now, or by one on another thread, beside which
//! the log goes on.
//!
//! There is one sync at a time. What it covers is fixed when it begins: bytes that are written while it is under way may come
//! to the disk with it or not, and are acknowledged after the next one.

use treering_consensus::Input;
use treering_types::Lsn;

use super::{COMMIT_PERSIST_BYTES, Health, Member, Outgoing};
use crate::{
    error::StoreError,
    unsynced::{SyncJob, UnderWay},
};

/// A sync under way.
pub(super) struct Begun {
    under_way: UnderWay,
    /// The end of the last whole record that it covers.
    record_end: Lsn,
}

impl Begun {
    pub(super) fn wait(self) -> Result<(), StoreError> {
        self.under_way.wait()
    }
}

impl Member {
    /// Bytes written that no sync covers which has begun.
    pub(crate) fn unsynced_bytes(&self) -> u64 {
        self.unsynced_bytes
    }

    /// Nothing is unsynced, and nothing being synced.
    pub(super) fn is_synced(&self) -> bool {
        self.unsynced_bytes == 0 && self.begun.is_none()
    }

    /// Syncs what is written, here and now, and acknowledges it.
    pub(crate) fn sync(&mut self, out: &mut Vec<Outgoing>) {
        let synced = self.flush(out);
        self.settle(synced, out);
    }

    /// Begins a sync of what is written, to be run on another thread; what is written from here on is for the next one.
    /// `None` while one is under way, and where there is nothing to sync.
    pub(crate) fn begin_sync(&mut self) -> Option<SyncJob> {
        if self.begun.is_some() || self.unsynced_bytes == 0 {
            return None;
        }
        self.unsynced_bytes = 0;
        let (job, under_way) = self.store.take_unsynced().under_way();
        self.begun = Some(Begun { under_way, record_end: self.decoder.position() });
        Some(job)
    }

    pub(crate) fn is_syncing(&self) -> bool {
        self.begun.is_some()
    }

    /// There is something for [`Member::end_sync`] to do, and it need not wait.
    pub(crate) fn has_synced(&self) -> bool {
        self.begun.as_ref().is_some_and(|begun| begun.under_way.is_over())
    }

    /// Waits for the sync that is under way, and acknowledges what it covers.
    pub(crate) fn end_sync(&mut self, out: &mut Vec<Outgoing>) {
        let ended = self.finish(out);
        self.settle(ended, out);
    }

    /// Also what is under way: nothing is unsynced on return.
    pub(super) fn flush(&mut self, out: &mut Vec<Outgoing>) -> Result<(), StoreError> {
        self.finish(out)?;
        if self.unsynced_bytes == 0 {
            return Ok(());
        }
        self.store.sync()?;
        self.unsynced_bytes = 0;
        let record_end = self.decoder.position();
        self.step(Input::Flushed { record_end }, out).map(drop)
    }

    fn finish(&mut self, out: &mut Vec<Outgoing>) -> Result<(), StoreError> {
        let Some(Begun { under_way, record_end }) = self.begun.take() else { return Ok(()) };
        under_way.wait()?;
        self.step(Input::Flushed { record_end }, out).map(drop)
    }

    /// A sync that failed is the end of the leader's connection, and of all work here.
    fn settle(&mut self, synced: Result<(), StoreError>, out: &mut Vec<Outgoing>) {
        let Err(error) = synced else { return };
        match self.acceptor.leader() {
            Some(leader) => self.fail(leader, &error, out),
            None => self.recover(&error),
        }
    }

    /// Also beside a sync: what is committed is not in it.
    pub(crate) fn persist_commit_if_far(&mut self) {
        let moved = self.acceptor.commit_lsn().bytes_since(self.persisted.commit_lsn);
        if self.health != Health::Sound || moved.unwrap_or(0) < COMMIT_PERSIST_BYTES {
            return;
        }
        if let Err(error) = self.persist_commit() {
            tracing::warn!(%error, timeline = %self.identity.timeline, "commit position not persisted");
        }
    }
}
