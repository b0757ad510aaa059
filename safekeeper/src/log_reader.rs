//! Reads a log wherever it is: in front of its start it is made up, from `trim_lsn` on it lies here, and in between in the
//! archive.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use tokio::sync::watch;
use treering_types::Lsn;

use crate::{
    archive::Archive, control_file::Identity, error::StoreError, member::Status,
    wal_store::WalFiles,
};

/// So far behind the log's end its bytes are still in the kernel's memory.
const AT_HAND_BYTES: u64 = 256 * 1024;

/// One timeline's log, to be read from any thread that may wait for the disk and the object store.
#[derive(Clone)]
pub(crate) struct LogReader {
    pub(crate) identity: Arc<Identity>,
    pub(crate) files: WalFiles,
    pub(crate) archive: Option<Arc<Archive>>,
    pub(crate) status: watch::Receiver<Status>,
}

impl LogReader {
    /// The oldest position that can be read, as far as can be told without asking the archive.
    pub(crate) fn oldest_lsn(&self) -> Lsn {
        let status = self.status.borrow();
        match self.archive.is_some() || status.trim_lsn == status.start_lsn {
            true => status.start_lsn.segment_start(),
            false => status.trim_lsn,
        }
    }

    /// As [`LogReader::read`], of what was written last and lies here: read before another thread could be woken for it, so any
    /// thread may. `None` where that is not so, for whatever reason.
    pub(crate) fn read_at_hand(&self, from: Lsn, to: Lsn) -> Option<Bytes> {
        let (trim, flush) = {
            let status = self.status.borrow();
            (status.trim_lsn, status.flush_lsn)
        };
        let is_at_hand = trim <= from && to <= flush && flush <= from + AT_HAND_BYTES;
        let read = is_at_hand.then(|| self.files.read(from, to).ok()).flatten();
        // As in `read`: a file that was trimmed may have been made anew.
        read.filter(|_| self.status.borrow().trim_lsn == trim)
    }

    /// Reads `from..to`, up to `flush_lsn`, and from [`LogReader::oldest_lsn`] on.
    pub(crate) fn read(&self, from: Lsn, to: Lsn) -> Result<Bytes, StoreError> {
        let oldest = self.oldest_lsn();
        if from < oldest {
            return Err(StoreError::Trimmed { lsn: from, trim_lsn: oldest });
        }
        loop {
            let before = self.status.borrow().clone();
            if to > before.flush_lsn {
                return Err(StoreError::NotYet { lsn: to, end: before.flush_lsn });
            }
            let read = self.read_split(from, to, &before);
            // Once trimmed, a file may have been made anew, with a hole where it was read. Each turn is one trimming.
            if self.status.borrow().trim_lsn == before.trim_lsn {
                return read;
            }
        }
    }

    fn read_split(&self, from: Lsn, to: Lsn, status: &Status) -> Result<Bytes, StoreError> {
        let (start, trim) = (status.start_lsn, status.trim_lsn);
        let Some(archive) = self.archive.as_ref().filter(|_| from.max(start) < trim.min(to)) else {
            return self.read_here(from, to);
        };
        let mut out = BytesMut::with_capacity((to.0 - from.0) as usize);
        if from < start {
            out.extend_from_slice(&self.files.read(from, start)?);
        }
        out.extend_from_slice(&archive.read(&self.identity, from.max(start), trim.min(to))?);
        if trim < to {
            out.extend_from_slice(&self.read_here(trim, to)?);
        }
        Ok(out.freeze())
    }

    /// A disk that had no room for the word that it was trimmed may lack what it says to hold.
    fn read_here(&self, from: Lsn, to: Lsn) -> Result<Bytes, StoreError> {
        match (self.files.read(from, to), &self.archive) {
            (Err(StoreError::Trimmed { .. }), Some(archive)) => {
                archive.read(&self.identity, from, to).map(BytesMut::freeze)
            }
            (read, _) => read,
        }
    }
}
