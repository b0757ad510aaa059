//! Between one client and its compute: bytes both ways, and the hold on commits that the quorum does not have yet.
//!
//! Promises: a success that may rest on a cancelled wait reaches the client only when the quorum has it, or the
//! connection is dropped instead; memory per session is two fixed buffers; a slow side slows the other. What [`filter`]
//! decides, this module does. A compute with the page library needs nobody in between: [`hand`].

pub mod filter;
pub mod hand;

use std::{future::pending, io};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpStream, UnixStream},
};
use treering_wire::WireError;

use self::filter::Filter;
use crate::wake::{CommitGate, GateError};

/// Read buffer for what comes from the compute: several of its own 8 KiB send buffers.
const DOWN_BUFFER_SIZE: usize = 64 * 1024;
/// Read buffer for what comes from the client.
const UP_BUFFER_SIZE: usize = 16 * 1024;

/// Why a session ended other than by both sides closing.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    #[error("client connection: {0}")]
    Client(io::Error),
    #[error("compute connection: {0}")]
    Compute(io::Error),
    #[error("compute's messages: {0}")]
    Wire(#[from] WireError),
    #[error(transparent)]
    Gate(#[from] GateError),
}

/// Relays until the compute has closed and its last byte is with the client, or either side fails. The start-up packet
/// has been sent to the compute before.
///
/// A client that stops sending (half-close, or the end after Terminate) is passed on as such; the compute's answers still
/// flow.
///
/// # Errors
/// See [`RelayError`]; the caller drops both connections. On [`RelayError::Gate`] nothing was sent to the client that
/// the quorum might not have.
pub async fn run(
    client: &mut TcpStream,
    compute: &mut UnixStream,
    gate: &dyn CommitGate,
) -> Result<(), RelayError> {
    let (client_read, client_write) = client.split();
    let (compute_read, compute_write) = compute.split();
    tokio::select! {
        ended = down(compute_read, client_write, gate) => ended,
        error = up(client_read, compute_write) => Err(RelayError::Client(error)),
    }
}

/// Client to compute, unread. Returns only when the client's connection fails: after its orderly end, or when the
/// compute takes no more, the other direction decides when the session is over.
async fn up(mut client: impl AsyncRead + Unpin, mut compute: impl AsyncWrite + Unpin) -> io::Error {
    let mut buffer = vec![0; UP_BUFFER_SIZE];
    loop {
        let read = match client.read(&mut buffer).await {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) => return error,
        };
        if compute.write_all(&buffer[..read]).await.is_err() {
            return pending().await;
        }
    }
    let _ = compute.shutdown().await;
    pending().await
}

/// Compute to client, through the filter.
async fn down(
    mut compute: impl AsyncRead + Unpin,
    mut client: impl AsyncWrite + Unpin,
    gate: &dyn CommitGate,
) -> Result<(), RelayError> {
    let mut buffer = vec![0; DOWN_BUFFER_SIZE];
    let (mut start, mut end) = (0, 0);
    let mut filter = Filter::default();
    // A backend logs a cancelled wait before it sends the answer: what was read before the log needs no second look.
    let mut has_looked = false;
    loop {
        let step = filter.scan(&buffer[start..end], |pid| {
            let is_cancelled = !has_looked && gate.drained_cancelled_waits(pid);
            has_looked = !is_cancelled;
            is_cancelled
        })?;
        if step.forward > 0 {
            let passed = &buffer[start..start + step.forward];
            client.write_all(passed).await.map_err(RelayError::Client)?;
            start += step.forward;
        }
        if step.hold {
            covered(gate, filter.backend_pid()).await?;
            filter.release();
            continue;
        }
        buffer.copy_within(start..end, 0);
        (start, end) = (0, end - start);
        match compute.read(&mut buffer[end..]).await.map_err(RelayError::Compute)? {
            0 => return client.shutdown().await.map_err(RelayError::Client),
            read => end += read,
        }
        has_looked = false;
    }
}

/// Waits until the quorum has everything the compute has flushed by now: the commit in question with it, because
/// a backend flushes its commit record before it waits.
pub async fn covered(gate: &dyn CommitGate, backend_pid: Option<i32>) -> Result<(), GateError> {
    let flushed = gate.flush_lsn().await?;
    let committed = gate.commit_lsn();
    tracing::info!(backend_pid, %flushed, %committed, "a wait for the quorum was cancelled; its answer is held");
    if committed < flushed {
        gate.wait_for(flushed).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
