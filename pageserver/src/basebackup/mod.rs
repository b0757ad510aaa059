//! Everything that a compute needs to start stock Postgres at an LSN without recovery, as one tar stream.
//!
//! [`plan`] decides what the archive holds (pure reads of metadata), [`pages`] reads relation and SLRU pages ahead of the
//! writer, [`archive`] writes the tar, [`start`] makes `pg_control` and the description of the start. The archive is
//! produced on a blocking thread and sent as it grows: memory is bounded by the chunks in flight.
//!
//! A *lazy* backup leaves out what a compute fetches when it first touches it: relation files, and SLRU segments that
//! are neither the first nor the last of their range. The description lists them instead, with their sizes.
//!
//! Not in it: WAL (the receiver builds the segment with the synthetic checkpoint that `pg_control` points at), and
//! configuration beyond an empty `postgresql.conf`. Pages that this version cannot redo are replaced by pages that
//! Postgres refuses to read, and are listed in the description; any other damage ends the backup.

mod archive;
mod pages;
mod plan;
mod start;

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc;
use treering_types::Lsn;

pub use start::{LazyFiles, LazyRelation, LazySegment, START_FILE, Start, UnreadableRelation};

use crate::{error::ServiceError, live::LiveTimeline, service::Service};

/// Chunks between the writer of the archive and the connection.
const CHUNKS_AHEAD: usize = 8;

/// Chunks of a tar archive, or the error that ended it.
pub type Chunks = mpsc::Receiver<Result<Bytes, ServiceError>>;

/// How much of the pages a backup holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contents {
    /// All of them.
    Whole,
    /// Those that a compute needs before it can fetch the others.
    Lazy,
}

/// Begins a backup at `lsn`, a record end: waits until it is ingested, then streams. The first errors are given here, later
/// ones as the last chunk.
///
/// # Errors
/// NotYet when `lsn` is not ingested in time, Invalid when it is no record end, Gone before the timeline's start.
pub async fn begin(
    service: &Arc<Service>,
    live: Arc<LiveTimeline>,
    lsn: Lsn,
    contents: Contents,
) -> Result<Chunks, ServiceError> {
    let start_lsn = live.timeline.start_lsn();
    if lsn < start_lsn {
        return Err(ServiceError::BeforeStart { timeline: live.id(), lsn, start_lsn });
    }
    service.wait_for(&live, lsn, service.options.wait_lsn_max).await?;
    let planned = Arc::clone(&live);
    let plan = service.blocking(move || plan::plan(&planned, lsn, contents)).await?;
    let (sender, receiver) = mpsc::channel(CHUNKS_AHEAD);
    let service = Arc::clone(service);
    tokio::spawn(async move {
        // Waits here, not before the first byte: the plan is cheap to hold.
        let Ok(_turn) = service.backups.acquire().await else { return };
        let sink = sender.clone();
        let written =
            tokio::task::spawn_blocking(move || archive::write(&live.timeline, plan, &sink));
        let failed = match written.await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error,
            Err(_) => ServiceError::Shutdown,
        };
        // Nobody listens any more when the connection is gone.
        let _ = sender.send(Err(failed)).await;
    });
    Ok(receiver)
}
