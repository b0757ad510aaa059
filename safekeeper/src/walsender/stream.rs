//! START_REPLICATION: the log, from a position on, for as long as the client wants.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::{Instant, sleep_until};
use treering_types::{Lsn, WAL_SEGMENT_SIZE};
use treering_wire::{
    PG_EPOCH_UNIX_SECONDS, PgTime,
    backend::{Report, sqlstate},
    frontend::Message,
    replication::{StandbyMessage, WAL_DATA_BYTES_MAX},
};

use super::{SenderError, Session};
use crate::{error::StoreError, timeline::Request};

/// A keepalive is sent after so much quiet, and one that asks for a reply after so much silence.
const KEEPALIVE: Duration = Duration::from_secs(10);
const SILENCE: Duration = Duration::from_secs(30);
/// A client silent for so long is gone (`wal_sender_timeout`).
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// While commits follow each other closely, what they wrote goes out together, so often at most: waking a receiver for
/// each would cost the machine more than the commits themselves. The first after a pause goes out at once.
const SEND_PAUSE: Duration = Duration::from_millis(4);
/// For the pageserver, while it does not say that somebody waits.
const SEND_PAUSE_PAGESERVER: Duration = Duration::from_millis(16);
/// Read from disk at once. So much does not wait for a pause to be over.
const READ_BYTES_MAX: u64 = 8 * WAL_DATA_BYTES_MAX as u64;

/// What a client's message means for the stream.
enum Reply {
    GoOn,
    /// What there is, or comes next, is wanted soon.
    Hurry,
    /// The client ends the stream.
    Done,
    /// The client is gone.
    Closed,
}

impl Session {
    /// Whether a stream can begin there. A position between `commit_lsn` and `flush_lsn` can: a restart forgets how
    /// much was committed until the next proposer tells.
    pub(super) fn check_start(&self, start: Lsn, pg_tli: Option<u32>) -> Result<(), Report> {
        let identity = self.timeline.identity();
        if let Some(asked) = pg_tli.filter(|asked| *asked != identity.pg_tli) {
            let text = format!("timeline {asked} is not served here, only {}", identity.pg_tli);
            return Err(Report::error(sqlstate::OBJECT_NOT_IN_PREREQUISITE_STATE, text));
        }
        let status = self.timeline.status();
        if start > status.flush_lsn {
            let text = format!(
                "requested starting point {start} is ahead of the WAL flush position of this server {}",
                status.flush_lsn
            );
            return Err(Report::error(sqlstate::OBJECT_NOT_IN_PREREQUISITE_STATE, text));
        }
        if start < self.timeline.oldest_lsn() {
            return Err(removed(start.segment_file_name(identity.pg_tli)));
        }
        Ok(())
    }

    /// Streams until the client ends it, goes away, or the timeline stops.
    pub(super) async fn stream(&mut self, start: Lsn) -> Result<(), SenderError> {
        let stop = self.timeline.stopping().clone();
        let mut status = self.timeline.watch();
        self.connection.out.copy_both_response();
        self.connection.flush().await?;
        let (mut sent, mut heard_at, mut sent_at) = (start, Instant::now(), Instant::now());
        let send_pause = if self.is_pageserver { SEND_PAUSE_PAGESERVER } else { SEND_PAUSE };
        // What there is when a stream begins is wanted soon.
        let mut is_hurried = true;
        loop {
            let commit_lsn = status.borrow_and_update().commit_lsn;
            let is_due = is_hurried || is_much(sent, commit_lsn) || sent_at.elapsed() >= send_pause;
            if sent < commit_lsn && is_due {
                is_hurried = false;
                match self.send_wal(sent, commit_lsn).await? {
                    Some(end) => sent = end,
                    None => return self.connection.ready().await,
                }
                sent_at = Instant::now();
            }
            let is_behind = sent < commit_lsn;
            let pause = match is_behind {
                true if is_much(sent, commit_lsn) => Duration::ZERO,
                true => send_pause,
                false => KEEPALIVE,
            };
            tokio::select! {
                biased;
                () = stop.cancelled() => return self.connection.stopping().await,
                message = self.connection.next() => {
                    heard_at = Instant::now();
                    match self.reply(message?, commit_lsn).await? {
                        Reply::GoOn => {}
                        Reply::Hurry => is_hurried = true,
                        Reply::Done => return self.finish().await,
                        Reply::Closed => return Ok(()),
                    }
                }
                changed = status.changed(), if !is_behind => if changed.is_err() {
                    return self.connection.stopping().await;
                },
                () = sleep_until(sent_at + pause) => {
                    if heard_at.elapsed() > SILENCE_MAX {
                        return Err(SenderError::Timeout);
                    }
                    if !is_behind {
                        self.keepalive(commit_lsn, heard_at.elapsed() > SILENCE).await?;
                        sent_at = Instant::now();
                    }
                }
            }
        }
    }

    /// Sends a part of `sent..commit_lsn`; answers with its end, or reports an error to the client and answers `None`.
    async fn send_wal(&mut self, sent: Lsn, commit_lsn: Lsn) -> Result<Option<Lsn>, SenderError> {
        let end = commit_lsn.min(sent + READ_BYTES_MAX);
        let bytes = match self.timeline.read(sent, end, None).await {
            Ok(bytes) => bytes,
            Err(error) => {
                let name = sent.segment_file_name(self.timeline.identity().pg_tli);
                let report = match error {
                    StoreError::Trimmed { .. } => removed(name),
                    other => Report::error(sqlstate::IO_ERROR, format!("WAL {name}: {other}")),
                };
                tracing::warn!(%report, "stream ended");
                self.connection.out.error(&report);
                return Ok(None);
            }
        };
        let mut at = sent;
        while at < end {
            let to = piece_end(at, end);
            let piece = &bytes[(at.0 - sent.0) as usize..(to.0 - sent.0) as usize];
            self.connection.out.wal_data(at, commit_lsn, now(), piece);
            at = to;
        }
        self.metrics.count_sent(bytes.len());
        self.connection.flush().await?;
        Ok(Some(end))
    }

    async fn reply(
        &mut self,
        message: Option<Message>,
        commit_lsn: Lsn,
    ) -> Result<Reply, SenderError> {
        match message {
            Some(Message::CopyData(payload)) => match StandbyMessage::parse(payload)? {
                // The log is its reply. What it has done it says in reports of their own.
                StandbyMessage::StatusUpdate { reply_requested: true, .. }
                    if self.is_pageserver =>
                {
                    Ok(Reply::Hurry)
                }
                StandbyMessage::StatusUpdate { flushed, applied, reply_requested, .. } => {
                    if self.is_pageserver {
                        // A timeline that stops has no more use for it.
                        let told = Request::Pageserver { ingested: applied, horizon: flushed };
                        let _ = self.timeline.send(told).await;
                    }
                    if reply_requested {
                        self.keepalive(commit_lsn, false).await?;
                    }
                    Ok(Reply::GoOn)
                }
                StandbyMessage::HotStandbyFeedback { .. } => Ok(Reply::GoOn),
            },
            Some(Message::CopyDone) => Ok(Reply::Done),
            None | Some(Message::Terminate | Message::CopyFail(_)) => Ok(Reply::Closed),
            Some(Message::Sync | Message::Flush) => Ok(Reply::GoOn),
            Some(Message::Query(_) | Message::Password(_) | Message::Other(_)) => {
                let text = "unexpected message in a replication stream";
                self.connection.fatal(Report::fatal(sqlstate::PROTOCOL_VIOLATION, text)).await?;
                Ok(Reply::Closed)
            }
        }
    }

    async fn keepalive(&mut self, end: Lsn, reply_requested: bool) -> Result<(), SenderError> {
        self.connection.out.wal_keepalive(end, now(), reply_requested);
        self.connection.flush().await
    }

    /// The client ended the stream: stock senders close it twice over (traced; stock clients wait for both).
    async fn finish(&mut self) -> Result<(), SenderError> {
        let out = &mut self.connection.out;
        out.copy_done();
        out.command_complete("START_STREAMING");
        out.command_complete("START_REPLICATION");
        self.connection.ready().await
    }
}

/// Where a message that begins at `at` ends: at `end`, or before it at a page boundary, never across a segment.
fn piece_end(at: Lsn, end: Lsn) -> Lsn {
    let segment_end = at.segment_start() + WAL_SEGMENT_SIZE;
    let longest = at + WAL_DATA_BYTES_MAX as u64;
    if end.min(segment_end) <= longest { end.min(segment_end) } else { longest.page_start() }
}

fn is_much(sent: Lsn, commit_lsn: Lsn) -> bool {
    commit_lsn.0 >= sent.0 + READ_BYTES_MAX
}

fn removed(segment: String) -> Report {
    let text = format!("requested WAL segment {segment} has already been removed");
    Report::error(sqlstate::UNDEFINED_FILE, text)
}

/// Microseconds since 2000-01-01.
fn now() -> PgTime {
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    unix.as_micros() as i64 - PG_EPOCH_UNIX_SECONDS * 1_000_000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_end_at_pages_and_never_cross_segments() {
        let piece = |at, end| piece_end(Lsn(at), Lsn(end)).0;
        let max = WAL_DATA_BYTES_MAX as u64;
        assert_eq!(piece(100, 8192 + 7), 8192 + 7);
        assert_eq!(piece(100, 10 * max), max);
        assert_eq!(piece(0, 10 * max), max);
        assert_eq!(piece(WAL_SEGMENT_SIZE - 50, 2 * WAL_SEGMENT_SIZE), WAL_SEGMENT_SIZE);
    }
}
