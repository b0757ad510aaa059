//! At which LSN a page may be read for a compute that writes.
//!
//! A block that the compute has not written is the same at every LSN of its own log from F on, so the newest that its
//! quorum committed will do. A block that it wrote and that was dropped is the same from its L_w on. Never beyond the
//! commit position that our own proposer saw: behind it may be another compute's log.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use treering_types::Lsn;

use crate::proposer::Session;

pub struct Horizon {
    session: Arc<Session>,
    /// At least F and the L_w of every block that Postgres wrote and that was dropped since; ingested.
    written: AtomicU64,
}

impl Horizon {
    /// For a start at F by this agent.
    pub fn of_start(session: Arc<Session>, start: Lsn) -> Horizon {
        Horizon { session, written: AtomicU64::new(start.0) }
    }

    /// For a start at F by an agent before us; `session` is the term won since, and begins above every L_w that the
    /// other relied on.
    pub fn of_takeover(session: Arc<Session>, start: Lsn) -> Horizon {
        let written = AtomicU64::new(session.start_lsn.max(start).0);
        Horizon { session, written }
    }

    /// The newest LSN that may be read, and where the lease moves to: what is asked for from now on is asked for at this
    /// LSN or a later one.
    pub fn newest(&self) -> Lsn {
        self.session.commit_lsn().max(self.not_modified_since())
    }

    /// From which LSN on every absent block is as it is now. Asked for all of them, also those that Postgres never wrote:
    /// a block that was written, dropped, fetched and dropped again looks like one of those, and a pageserver that was
    /// started anew may stand behind its L_w for a moment.
    pub fn not_modified_since(&self) -> Lsn {
        Lsn(self.written.load(Ordering::Acquire))
    }

    /// Before a block is dropped that Postgres wrote: it must come back at no less than its L_w.
    pub fn needs(&self, lsn: Lsn) {
        self.written.fetch_max(lsn.0, Ordering::AcqRel);
    }
}
