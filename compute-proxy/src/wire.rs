//! The client's side of a connection in the Postgres protocol: start-up, queries, and what a copy sends and receives.

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use treering_wire::{
    client::{ClientError, Handshake, Outcome, Reply, ResultSet},
    startup::StartupMessage,
};

/// Why a query has no answer.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

/// A connection that takes queries.
pub struct Wire<S> {
    stream: S,
    /// What came and was not taken.
    pub input: BytesMut,
    /// What is sent by the next [`Wire::flush`].
    pub out: BytesMut,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    /// From the start-up packet to the first ReadyForQuery, without a password. Up to `receive_bytes` are read at once.
    pub async fn begin(
        stream: S,
        startup: &StartupMessage,
        receive_bytes: usize,
    ) -> Result<Wire<S>, Failure> {
        let input = BytesMut::with_capacity(receive_bytes);
        let mut wire = Wire { stream, input, out: BytesMut::new() };
        let mut handshake = Handshake::start(startup, None, &mut wire.out)?;
        loop {
            wire.flush().await?;
            if handshake.receive(&mut wire.input, &mut wire.out)?.is_some() {
                return Ok(wire);
            }
            wire.receive().await?;
        }
    }

    pub async fn flush(&mut self) -> std::io::Result<()> {
        self.stream.write_all(&self.out).await?;
        self.out.clear();
        Ok(())
    }

    /// Reads what is there, at least a byte; the end is an error. Cancel-safe.
    pub async fn receive(&mut self) -> std::io::Result<()> {
        match self.stream.read_buf(&mut self.input).await? {
            0 => Err(std::io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }

    async fn ask(&mut self, text: &str) -> Result<Outcome, Failure> {
        let mut reply = Reply::to_query(text, &mut self.out)?;
        self.flush().await?;
        loop {
            match reply.receive(&mut self.input)? {
                Some(outcome) => return Ok(outcome),
                None => self.receive().await?,
            }
        }
    }

    pub async fn query(&mut self, text: &str) -> Result<Vec<ResultSet>, Failure> {
        match self.ask(text).await? {
            Outcome::Done(results) => Ok(results),
            Outcome::Copy { .. } => Err(unexpected("an answer, not a copy, was expected")),
        }
    }

    /// A query that begins a copy.
    pub async fn start_copy(&mut self, text: &str) -> Result<(), Failure> {
        match self.ask(text).await? {
            Outcome::Copy { .. } => Ok(()),
            Outcome::Done(_) => Err(unexpected(&format!("{text}: no copy began"))),
        }
    }
}

fn unexpected(what: &str) -> Failure {
    std::io::Error::other(what).into()
}
