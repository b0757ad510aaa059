//! A timeline with what the service knows beyond the engine: who waits for WAL, and how ingest is doing.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};
use tokio_util::sync::CancellationToken;
use treering_engine::{EngineError, Timeline};
use treering_types::{Lsn, TenantId, TimelineId};

use crate::{
    cluster_state::{self, LoadError},
    error::ServiceError,
    ingest::sources::Sources,
    leases::Leases,
    waiters::Waiters,
};

/// How ingest of one timeline is doing.
#[derive(Clone, Debug, Default)]
pub struct IngestStatus {
    /// Why the last attempt ended; `None` while it goes well.
    pub error: Option<String>,
    /// Attempts that failed in a row.
    pub failures: u32,
    /// Not before this.
    pub retry_at: Option<Instant>,
}

/// See the module. Lives as long as the timeline does.
pub struct LiveTimeline {
    pub timeline: Arc<Timeline>,
    ancestor: Option<(Arc<LiveTimeline>, Lsn)>,
    last_record: watch::Sender<Lsn>,
    waiters: Waiters,
    pub leases: Leases,
    /// Whom its WAL is read from.
    pub(crate) sources: Sources,
    /// Cancelled when the timeline is deleted or the service stops.
    pub stop: CancellationToken,
    /// A receiver runs.
    ingesting: AtomicBool,
    ingest: Mutex<IngestStatus>,
    /// The highest commit LSN that a safekeeper has told of.
    commit_lsn: AtomicU64,
    checksums: OnceLock<bool>,
}

impl LiveTimeline {
    pub(crate) fn new(
        timeline: Arc<Timeline>,
        ancestor: Option<(Arc<LiveTimeline>, Lsn)>,
        lease_length: Duration,
        stop: CancellationToken,
    ) -> LiveTimeline {
        LiveTimeline {
            last_record: watch::Sender::new(timeline.last_record_lsn()),
            waiters: Waiters::default(),
            timeline,
            ancestor,
            leases: Leases::new(lease_length),
            sources: Sources::default(),
            stop,
            ingesting: AtomicBool::new(false),
            ingest: Mutex::default(),
            commit_lsn: AtomicU64::new(0),
            checksums: OnceLock::new(),
        }
    }

    pub fn tenant_id(&self) -> TenantId {
        self.timeline.identity().tenant
    }

    pub fn id(&self) -> TimelineId {
        self.timeline.id()
    }

    /// Tells everyone who waits how far ingest has come.
    pub(crate) fn announce(&self, last_record_lsn: Lsn) {
        self.last_record.send_replace(last_record_lsn);
    }

    /// Waits until `lsn` can be read: it is ingested here, and what is inherited is ingested there (after a restart
    /// an ancestor may have to catch up first).
    ///
    /// # Errors
    /// [`ServiceError::WaitTimedOut`] after `patience`, [`ServiceError::Shutdown`], or `NotFound` once deleted.
    pub async fn wait_for(&self, lsn: Lsn, patience: Duration) -> Result<(), ServiceError> {
        let deadline = Instant::now() + patience;
        let (mut at, mut wanted) = (self, lsn);
        loop {
            at.wait_here(wanted, deadline, patience).await?;
            match &at.ancestor {
                None => return Ok(()),
                Some((ancestor, fork)) => (at, wanted) = (ancestor, wanted.min(*fork)),
            }
        }
    }

    async fn wait_here(
        &self,
        wanted: Lsn,
        deadline: Instant,
        waited: Duration,
    ) -> Result<(), ServiceError> {
        if self.timeline.last_record_lsn() >= wanted {
            return Ok(());
        }
        let _waiting = self.waiters.enter(wanted);
        let mut last_record = self.last_record.subscribe();
        let reached = timeout_at(deadline, last_record.wait_for(|lsn| *lsn >= wanted));
        tokio::select! {
            reached = reached => match reached {
                Ok(Ok(_)) => Ok(()),
                Ok(Err(_)) => Err(ServiceError::Shutdown),
                Err(_) => Err(ServiceError::WaitTimedOut {
                    timeline: self.id(),
                    wanted,
                    last_record_lsn: self.timeline.last_record_lsn(),
                    waited,
                    ingest_error: self.ingest.lock().error.clone(),
                }),
            },
            () = self.stop.cancelled() => Err(EngineError::NoTimeline(self.id()).into()),
        }
    }

    /// Returns when somebody has begun to wait. For the receiver.
    pub(crate) async fn waiters_arrived(&self) {
        self.waiters.arrived().await;
    }

    /// Somebody waits for more than is ingested.
    pub(crate) fn is_waited_for(&self) -> bool {
        self.waiters.want_more_than(self.timeline.last_record_lsn())
    }

    /// True for the one caller that may ingest now; it calls [`LiveTimeline::end_ingest`] when it is done.
    pub(crate) fn begin_ingest(&self) -> bool {
        let may = self.ingest.lock().retry_at.is_none_or(|at| Instant::now() >= at);
        may && !self.stop.is_cancelled() && !self.ingesting.swap(true, Ordering::AcqRel)
    }

    /// A receiver is connected and applies.
    pub(crate) fn ingest_goes_well(&self) {
        *self.ingest.lock() = IngestStatus::default();
    }

    /// Returns how long the next attempt is put off, if there was an error.
    pub(crate) fn end_ingest(&self, error: Option<String>) -> Option<Duration> {
        const BACKOFF_MIN: Duration = Duration::from_millis(200);
        const BACKOFF_MAX: Duration = Duration::from_secs(15);
        let mut status = self.ingest.lock();
        let put_off = error.as_ref().map(|_| {
            let doubled = BACKOFF_MIN.saturating_mul(1 << status.failures.min(10));
            doubled.min(BACKOFF_MAX)
        });
        status.failures = if error.is_some() { status.failures.saturating_add(1) } else { 0 };
        status.error = error;
        status.retry_at = put_off.map(|put_off| Instant::now() + put_off);
        drop(status);
        self.ingesting.store(false, Ordering::Release);
        put_off
    }

    pub fn is_ingesting(&self) -> bool {
        self.ingesting.load(Ordering::Acquire)
    }

    pub fn ingest_status(&self) -> IngestStatus {
        self.ingest.lock().clone()
    }

    pub(crate) fn note_commit_lsn(&self, lsn: Lsn) {
        self.commit_lsn.fetch_max(lsn.0, Ordering::AcqRel);
    }

    /// The highest commit LSN that a safekeeper has told of; zero before that.
    pub fn commit_lsn(&self) -> Lsn {
        Lsn(self.commit_lsn.load(Ordering::Acquire))
    }

    /// Pages carry checksums: fixed when the cluster was made.
    ///
    /// # Errors
    /// Those of reading the imported control file.
    pub fn has_checksums(&self) -> Result<bool, LoadError> {
        if let Some(known) = self.checksums.get() {
            return Ok(*known);
        }
        // It never changes, but gc gives up what lies at the start of a timeline.
        let lsn = self.timeline.last_record_lsn();
        let control = cluster_state::imported_control(&self.timeline, lsn)?;
        Ok(*self.checksums.get_or_init(|| control.data_checksum_version() != 0))
    }
}
