//! The replication client: one connection, one timeline.
//!
//! Reads as much as has arrived, applies it at once as one batch, reports `last_record_lsn` as written and applied and
//! `remote_consistent_lsn` as flushed (`disk_consistent_lsn` without an object store), less where a safekeeper is behind: the safekeeper keeps WAL from there on. While a batch is applied the socket's
//! buffer is the only read-ahead; it bounds memory.

use std::{io, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use postgres_protocol::message::frontend;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, MissedTickBehavior, interval, timeout},
};
use treering_types::{ErrorKind, Lsn};
use treering_wire::{
    WireError, backend,
    client::{ClientError, CopyDirection, Handshake, Outcome, Reply, ResultSet},
    frame::{BODY_BYTES_MAX, next_frame},
    replication::{StandbyMessage, WalMessage},
    startup::StartupMessage,
};

use super::apply::{Applier, ApplyError};
use crate::{
    clock, error::ServiceError, live::LiveTimeline, options::Safekeeper, service::Service,
};

/// Read at once while there is more: the size of a batch under load.
const READ_BYTES: usize = 1 << 20;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long nothing may come while another safekeeper knows of more that is committed, before that one is asked.
const LAG_MAX: Duration = Duration::from_secs(1);
/// Between two reports while WAL flows.
const REPORT_INTERVAL: Duration = Duration::from_millis(100);
/// Between two reports while nothing changes: well below `wal_sender_timeout`.
const REPORT_INTERVAL_IDLE: Duration = Duration::from_secs(10);

/// How the safekeeper knows us: this receiver's `flushed` moves its trim horizon.
const APPLICATION_NAME: &str = "treering_pageserver";

/// Why a receiver ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReceiveError {
    #[error("safekeeper {address}: {source}")]
    Connect { address: String, source: io::Error },
    #[error("safekeeper {address} does not answer")]
    ConnectTimedOut { address: String },
    #[error("connection to the safekeeper: {0}")]
    Io(#[from] io::Error),
    #[error("the safekeeper closed the connection")]
    Closed,
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error("the safekeeper's log belongs to system {found}, the tenant to {expected}")]
    OtherSystem { found: String, expected: u64 },
    #[error("the safekeeper did not start streaming")]
    NoCopy,
    #[error("another safekeeper has the log up to {ahead}, this one sends nothing behind {at}")]
    Lagging { at: Lsn, ahead: Lsn },
    #[error(transparent)]
    Apply(#[from] ApplyError),
    #[error(transparent)]
    Service(#[from] ServiceError),
}

impl ReceiveError {
    pub(super) fn kind(&self) -> ErrorKind {
        match self {
            ReceiveError::Connect { .. }
            | ReceiveError::ConnectTimedOut { .. }
            | ReceiveError::Io(_)
            | ReceiveError::Closed
            | ReceiveError::NoCopy
            | ReceiveError::Lagging { .. } => ErrorKind::Unavailable,
            ReceiveError::Client(error) => error.kind(),
            ReceiveError::Wire(error) => error.kind(),
            ReceiveError::OtherSystem { .. } => ErrorKind::Conflict,
            ReceiveError::Apply(error) => error.kind(),
            ReceiveError::Service(error) => error.kind(),
        }
    }
}

/// Streams and applies until there is nothing left to do for a while, or an error.
pub(super) async fn receive(
    service: &Service,
    live: &Arc<LiveTimeline>,
    from: Safekeeper,
) -> Result<(), ReceiveError> {
    let mut receiver = Receiver::start(service, live, from).await?;
    live.ingest_goes_well();
    let ended = receiver.run().await;
    // What is durable is worth telling in any case; the connection may be gone.
    let _ = receiver.report().await;
    ended
}

struct Receiver<'a> {
    service: &'a Service,
    live: &'a Arc<LiveTimeline>,
    from: Safekeeper,
    stream: TcpStream,
    input: BytesMut,
    applier: Applier,
    /// Last report: applied and flushed.
    reported: (Lsn, Lsn),
    reported_at: Instant,
    last_wal_at: Instant,
    /// The safekeeper was asked to hurry, and has sent nothing since.
    has_hurried: bool,
    /// Since when another safekeeper is known to have more, while nothing comes.
    behind_since: Option<Instant>,
}

/// What one read brought.
#[derive(Default)]
struct Arrived {
    wal: Vec<(Lsn, Bytes)>,
    reply_requested: bool,
    /// The safekeeper has ended the stream.
    is_done: bool,
}

impl<'a> Receiver<'a> {
    async fn start(
        service: &'a Service,
        live: &'a Arc<LiveTimeline>,
        from: Safekeeper,
    ) -> Result<Receiver<'a>, ReceiveError> {
        let timeline = Arc::clone(&live.timeline);
        let applier =
            service.blocking(move || Ok::<_, ServiceError>(Applier::open(timeline))).await??;
        let start = applier.fed_to();
        let mut receiver = Receiver {
            stream: connect(&from.pg).await?,
            from,
            service,
            live,
            input: BytesMut::with_capacity(READ_BYTES),
            applier,
            reported: (Lsn::INVALID, Lsn::INVALID),
            reported_at: Instant::now(),
            last_wal_at: Instant::now(),
            has_hurried: false,
            behind_since: None,
        };
        receiver.handshake().await?;
        receiver.check_system().await?;
        let tli = live.timeline.identity().pg_tli;
        let command = format!("START_REPLICATION PHYSICAL {start} TIMELINE {tli}");
        match receiver.query(&command).await? {
            Outcome::Copy { direction: CopyDirection::Both, .. } => Ok(receiver),
            Outcome::Copy { .. } | Outcome::Done(_) => Err(ReceiveError::NoCopy),
        }
    }

    async fn handshake(&mut self) -> Result<(), ReceiveError> {
        let (tenant, timeline) = (self.live.tenant_id(), self.live.id());
        let options = format!("-c treering.tenant_id={tenant} -c treering.timeline_id={timeline}");
        let startup = StartupMessage::new([
            ("user", APPLICATION_NAME),
            ("replication", "true"),
            ("application_name", APPLICATION_NAME),
            ("options", &options),
        ]);
        let mut out = BytesMut::new();
        let mut handshake = Handshake::start(&startup, None, &mut out)?;
        loop {
            self.stream.write_all_buf(&mut out).await?;
            if handshake.receive(&mut self.input, &mut out)?.is_some() {
                return Ok(());
            }
            self.read_more().await?;
        }
    }

    async fn check_system(&mut self) -> Result<(), ReceiveError> {
        let expected = self.live.timeline.identity().system_id;
        let outcome = self.query("IDENTIFY_SYSTEM").await?;
        let Outcome::Done(results) = outcome else { return Err(ReceiveError::NoCopy) };
        let first = results.first();
        let found = first.and_then(|result: &ResultSet| result.text(0, "systemid"));
        match found {
            Some(found) if found.parse() == Ok(expected) => Ok(()),
            found => {
                let found = found.unwrap_or("(none)").to_owned();
                Err(ReceiveError::OtherSystem { found, expected })
            }
        }
    }

    async fn query(&mut self, text: &str) -> Result<Outcome, ReceiveError> {
        let mut out = BytesMut::new();
        let mut reply = Reply::to_query(text, &mut out)?;
        self.stream.write_all_buf(&mut out).await?;
        loop {
            if let Some(outcome) = reply.receive(&mut self.input)? {
                return Ok(outcome);
            }
            self.read_more().await?;
        }
    }

    /// For the short exchanges before streaming.
    async fn read_more(&mut self) -> Result<(), ReceiveError> {
        let read = timeout(CONNECT_TIMEOUT, self.stream.read_buf(&mut self.input)).await;
        let address = || self.from.pg.clone();
        match read.map_err(|_| ReceiveError::ConnectTimedOut { address: address() })?? {
            0 => Err(ReceiveError::Closed),
            _ => Ok(()),
        }
    }

    async fn run(&mut self) -> Result<(), ReceiveError> {
        let mut tick = interval(REPORT_INTERVAL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let arrived = self.take_arrived()?;
            if !arrived.wal.is_empty() {
                self.has_hurried = false;
                self.apply(arrived.wal).await?;
            }
            self.hurry_if_waited_for().await?;
            if arrived.reply_requested {
                self.report().await?;
            }
            if arrived.is_done || self.is_idle() {
                return self.finish().await;
            }
            self.input.reserve(READ_BYTES);
            tokio::select! {
                read = self.stream.read_buf(&mut self.input) => {
                    if read? == 0 {
                        return Err(ReceiveError::Closed);
                    }
                }
                () = self.live.waiters_arrived() => {}
                _ = tick.tick() => {
                    self.check_lag()?;
                    self.report_if_due().await?;
                }
                () = self.live.stop.cancelled() => return self.finish().await,
            }
        }
    }

    /// A safekeeper that hangs, or that the writer does not reach, keeps its connections and sends nothing: known by the
    /// others, which have more.
    fn check_lag(&mut self) -> Result<(), ReceiveError> {
        let (at, ahead) = (self.live.timeline.last_record_lsn(), self.live.commit_lsn());
        if ahead <= at || self.service.options.safekeepers.len() == 1 {
            self.behind_since = None;
            return Ok(());
        }
        let since = *self.behind_since.get_or_insert_with(Instant::now);
        match since.elapsed() > LAG_MAX {
            true => Err(ReceiveError::Lagging { at, ahead }),
            false => Ok(()),
        }
    }

    /// Every complete message of the input.
    fn take_arrived(&mut self) -> Result<Arrived, ReceiveError> {
        let mut arrived = Arrived::default();
        while let Some(frame) = next_frame(&mut self.input, BODY_BYTES_MAX)? {
            match backend::parse(frame)? {
                backend::Message::CopyData(payload) => match WalMessage::parse(payload)? {
                    WalMessage::Data { start, wal_end, sent_at: _, wal } => {
                        self.live.note_commit_lsn(wal_end);
                        arrived.wal.push((start, wal));
                    }
                    WalMessage::Keepalive { wal_end, sent_at: _, reply_requested } => {
                        self.live.note_commit_lsn(wal_end);
                        arrived.reply_requested |= reply_requested;
                    }
                },
                backend::Message::CopyDone => arrived.is_done = true,
                backend::Message::ErrorResponse(report) => {
                    return Err(ClientError::Server(report.into()).into());
                }
                // Notices, and the results that follow the end of a stream.
                _ => {}
            }
        }
        Ok(arrived)
    }

    /// Takes as long as it takes: the thread is this receiver's.
    async fn apply(&mut self, wal: Vec<(Lsn, Bytes)>) -> Result<(), ReceiveError> {
        let bytes: usize = wal.iter().map(|(_, wal)| wal.len()).sum();
        let _slot = self.service.slot().await?;
        wal.into_iter().try_for_each(|(start, wal)| self.applier.feed(start, wal))?;
        let last_record_lsn = self.applier.apply()?;
        self.live.announce(last_record_lsn);
        self.service.metrics.ingested_bytes.inc_by(bytes as u64);
        self.last_wal_at = Instant::now();
        self.behind_since = None;
        Ok(())
    }

    fn position(&self) -> (Lsn, Lsn) {
        (self.live.timeline.last_record_lsn(), self.service.needed_from(self.live))
    }

    async fn report_if_due(&mut self) -> Result<(), ReceiveError> {
        let since = self.reported_at.elapsed();
        let is_news = self.position() != self.reported;
        if is_news || since >= REPORT_INTERVAL_IDLE { self.report().await } else { Ok(()) }
    }

    async fn report(&mut self) -> Result<(), ReceiveError> {
        let (applied, flushed) = self.position();
        self.tell(applied, flushed, false).await?;
        self.reported = (applied, flushed);
        self.reported_at = Instant::now();
        Ok(())
    }

    /// Asks for what there is, or comes next, without the long pause. (That is all that is heard: it is no report.)
    async fn hurry_if_waited_for(&mut self) -> Result<(), ReceiveError> {
        if self.has_hurried || !self.live.is_waited_for() {
            return Ok(());
        }
        self.has_hurried = true;
        let (applied, flushed) = self.position();
        self.tell(applied, flushed, true).await
    }

    async fn tell(
        &mut self,
        applied: Lsn,
        flushed: Lsn,
        reply_requested: bool,
    ) -> Result<(), ReceiveError> {
        let message = StandbyMessage::StatusUpdate {
            written: applied,
            flushed,
            applied,
            sent_at: clock::now(),
            reply_requested,
        };
        let mut payload = BytesMut::new();
        message.encode(&mut payload);
        let mut out = BytesMut::new();
        frontend::CopyData::new(payload)?.write(&mut out);
        self.stream.write_all_buf(&mut out).await?;
        Ok(())
    }

    /// Nothing came for a while, and the safekeeper knows that all of it is durable here.
    fn is_idle(&self) -> bool {
        let (applied, flushed) = self.reported;
        let is_told = applied == flushed && self.position() == self.reported;
        is_told && self.last_wal_at.elapsed() >= self.service.options.idle_disconnect
    }

    async fn finish(&mut self) -> Result<(), ReceiveError> {
        let mut out = BytesMut::new();
        frontend::copy_done(&mut out);
        frontend::terminate(&mut out);
        self.stream.write_all_buf(&mut out).await?;
        Ok(())
    }
}

async fn connect(address: &str) -> Result<TcpStream, ReceiveError> {
    let connecting = timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await;
    let address = address.to_owned();
    let connected =
        connecting.map_err(|_| ReceiveError::ConnectTimedOut { address: address.clone() })?;
    let stream = connected.map_err(|source| ReceiveError::Connect { address, source })?;
    stream.set_nodelay(true)?;
    Ok(stream)
}
