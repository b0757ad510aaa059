//! The agent as the only synchronous standby of a compute without the page library: WAL in from the walsender, `commit_lsn` back.
//!
//! What is reported as written, flushed and applied is one number, the quorum's `commit_lsn`. A connection that
//! breaks (a terminated walsender) is made again while the compute lives; commits wait meanwhile.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, bail, ensure};
use bytes::{Bytes, BytesMut};
use tokio::net::UnixStream;
use treering_types::Lsn;
use treering_wire::{
    backend::{self, Message},
    client::ClientError,
    frame::{BODY_BYTES_MAX, next_frame},
    replication::{StandbyMessage, WalMessage},
    startup::StartupMessage,
};

use crate::{
    compute::settings::{AGENT_ROLE, AGENT_SLOT, AGENT_STANDBY, SOCKET_PORT},
    endpoint::Compute,
    quiet::QuietStream,
    wire::{Failure, Wire},
};

/// Pause before a broken connection is made again.
const RETRY_PAUSE: Duration = Duration::from_millis(20);
/// A sign of life at least this often (`wal_sender_timeout` is 60 s).
const STATUS_EVERY: Duration = Duration::from_secs(10);
/// What came in several messages up to so many bytes is handed on at once: a walsender makes one for every commit.
const GATHERED_BYTES_MAX: usize = 32 * 1024;
/// WAL read at once.
const RECEIVE_BYTES: usize = 256 * 1024;

/// Streams from `next` on until the compute ends.
pub async fn run(compute: Arc<Compute>, mut next: Lsn) {
    loop {
        let over = tokio::select! {
            over = stream(&compute, &mut next) => over,
            () = compute.wait_ended() => return,
        };
        if compute.session.is_closed() {
            return;
        }
        if let Err(error) = over {
            // While Postgres starts up its socket is not there yet: expected, hence not a warning.
            tracing::debug!("the compute's WAL stream is down: {error:#}");
        }
        tokio::time::sleep(RETRY_PAUSE).await;
    }
}

/// One connection, from start-up until it breaks.
async fn stream(compute: &Compute, next: &mut Lsn) -> anyhow::Result<()> {
    let mut wire = connect(compute).await?;
    let create = format!("CREATE_REPLICATION_SLOT \"{AGENT_SLOT}\" PHYSICAL ( RESERVE_WAL)");
    match wire.query(&create).await {
        Ok(_) => {}
        // duplicate_object: the slot is from a connection before this one.
        Err(Failure::Client(ClientError::Server(report))) if report.sqlstate() == "42710" => {}
        Err(error) => return Err(error.into()),
    }
    wire.start_copy(&format!("START_REPLICATION SLOT \"{AGENT_SLOT}\" PHYSICAL {next}")).await?;
    let mut commit = compute.session.watch_commit();
    let mut status = tokio::time::interval(STATUS_EVERY);
    let mut gathered = BytesMut::new();
    loop {
        while let Some(frame) = next_frame(&mut wire.input, BODY_BYTES_MAX)? {
            match backend::parse(frame)? {
                Message::CopyData(payload) => match WalMessage::parse(payload)? {
                    WalMessage::Data { start, wal, .. } => {
                        let expected = *next + gathered.len() as u64;
                        ensure!(start == expected, "WAL at {start}, expected at {expected}");
                        if gathered.len() + wal.len() > GATHERED_BYTES_MAX {
                            hand_on(compute, next, gathered.split().freeze()).await?;
                        }
                        if wal.len() > GATHERED_BYTES_MAX {
                            hand_on(compute, next, wal).await?;
                        } else {
                            gathered.extend_from_slice(&wal);
                        }
                    }
                    WalMessage::Keepalive { reply_requested: true, .. } => {
                        let lsn = *commit.borrow_and_update();
                        report(&mut wire, lsn).await?;
                    }
                    WalMessage::Keepalive { .. } => {}
                },
                Message::CopyDone => bail!("Postgres ended the WAL stream"),
                Message::ErrorResponse(report) => bail!("Postgres says {report}"),
                _ => {}
            }
        }
        hand_on(compute, next, gathered.split().freeze()).await?;
        tokio::select! {
            biased;
            changed = commit.changed() => {
                changed.context("the proposer is gone")?;
                let lsn = *commit.borrow_and_update();
                report(&mut wire, lsn).await?;
            }
            received = wire.receive() => received?,
            _ = status.tick() => {
                let lsn = *commit.borrow();
                report(&mut wire, lsn).await?;
            }
        }
    }
}

/// Gives the log's next bytes to the proposer.
async fn hand_on(compute: &Compute, next: &mut Lsn, wal: Bytes) -> anyhow::Result<()> {
    if wal.is_empty() {
        return Ok(());
    }
    let length = wal.len() as u64;
    compute.session.append(*next, wal).await?;
    *next = *next + length;
    Ok(())
}

async fn connect(compute: &Compute) -> Result<Wire<QuietStream>, Failure> {
    let path = compute.socket_dir.join(format!(".s.PGSQL.{SOCKET_PORT}"));
    let startup = StartupMessage::new([
        ("user", AGENT_ROLE),
        ("replication", "true"),
        ("application_name", AGENT_STANDBY),
    ]);
    let stream = QuietStream::new(UnixStream::connect(path).await?)?;
    Wire::begin(stream, &startup, RECEIVE_BYTES).await
}

async fn report(wire: &mut Wire<QuietStream>, lsn: Lsn) -> std::io::Result<()> {
    StandbyMessage::status_at(lsn, postgres_now()).encode_copy_data(&mut wire.out);
    wire.flush().await
}

/// Now, in microseconds since 2000-01-01.
fn postgres_now() -> i64 {
    jiff::Timestamp::now().as_microsecond() - treering_wire::PG_EPOCH_UNIX_SECONDS * 1_000_000
}
