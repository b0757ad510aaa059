//! The LSN lease of a compute: tells the pageserver where its pages are read, so that gc keeps what those reads need.
//!
//! Taken before the first page is fetched, renewed three times in its length and moved to where the compute then reads, released
//! once no process of the compute is left. Its holder is the start's run directory: an agent that takes over speaks for
//! the same one. The stream stays open between renewals, so that a pageserver that was restarted, and has forgotten, is
//! told again as soon as it answers; gc gives us one length to do so. A lease that is lost nevertheless makes no read wrong: the
//! pageserver refuses what it cannot vouch for.

use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use tokio::{
    net::TcpStream,
    sync::watch,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use treering_types::{ErrorKind, Lsn};
use treering_wire::{
    backend::{self, Message},
    frame::{BODY_BYTES_MAX, next_frame},
    lease::{Answer, Holder, Request},
    startup::StartupMessage,
};

use crate::{
    error::AgentError,
    pageserver::put_copy_data,
    wire::{Failure, Wire},
};

/// How long a start waits for its lease.
const FIRST_LIMIT: Duration = Duration::from_secs(10);
/// The longest for the pageserver to answer, connecting included.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// How long the end of a compute waits until the pageserver has heard of it; else the lease runs out by itself.
const RELEASE_LIMIT: Duration = Duration::from_secs(1);
/// Pauses before the next try, doubled from the shortest to the longest.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// A length beyond this is taken for this.
const LEFT_MAX: Duration = Duration::from_secs(24 * 3600);
const RECEIVE_BYTES: usize = 1024;

/// Whose lease, and where to ask for it.
#[derive(Debug, Clone)]
pub struct LeaseSource {
    /// `host:port`.
    pub address: String,
    /// The query that begins a lease stream.
    pub query: String,
    pub holder: Holder,
}

/// A lease that is kept for as long as this lives.
pub struct Lease {
    stop: CancellationToken,
    /// Cancelled by the task when it ends.
    ended: CancellationToken,
    /// Why it is not held; `None` while it is.
    trouble: watch::Receiver<Option<Trouble>>,
}

#[derive(Debug, Clone, thiserror::Error)]
enum Trouble {
    #[error("the pageserver has not answered yet")]
    Asking,
    #[error("the pageserver cannot be reached: {0}")]
    Unreachable(String),
    #[error("the pageserver refuses: {0}")]
    Refused(String),
}

impl Lease {
    /// Begins to take a lease and keeps it, at the LSN that `at` says whenever it is renewed: one that stays for a compute that
    /// is pinned, one that moves for any other. Needs a runtime.
    pub fn keep(source: LeaseSource, at: impl Fn() -> Lsn + Send + Sync + 'static) -> Lease {
        let (stop, ended) = (CancellationToken::new(), CancellationToken::new());
        let (state, trouble) = watch::channel(Some(Trouble::Asking));
        let keeper = Keeper { source, at, trouble: state, stop: stop.clone() };
        let over = ended.clone().drop_guard();
        tokio::spawn(async move {
            keeper.keep().await;
            keeper.release().await;
            drop(over);
        });
        Lease { stop, ended, trouble }
    }

    /// Waits until it was granted.
    ///
    /// # Errors
    /// What the pageserver refuses with; that it does not answer.
    pub async fn granted(&self) -> Result<(), AgentError> {
        let mut trouble = self.trouble.clone();
        let is_decided = |trouble: &Option<Trouble>| match trouble {
            None | Some(Trouble::Refused(_)) => true,
            Some(Trouble::Asking | Trouble::Unreachable(_)) => false,
        };
        let _ = timeout(FIRST_LIMIT, trouble.wait_for(is_decided)).await;
        match &*trouble.borrow() {
            None => Ok(()),
            Some(trouble) => {
                let text = format!("no LSN lease: {trouble}");
                Err(AgentError::new(ErrorKind::Unavailable, text))
            }
        }
    }

    /// Gives it up: the compute is dead. Returns once the pageserver has heard it or cannot be told.
    pub async fn release(&self) {
        self.stop.cancel();
        self.ended.cancelled().await;
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

struct Keeper<F> {
    source: LeaseSource,
    at: F,
    trouble: watch::Sender<Option<Trouble>>,
    stop: CancellationToken,
}

impl<F: Fn() -> Lsn> Keeper<F> {
    /// Until it is told to stop.
    async fn keep(&self) {
        let mut term = Term::default();
        let holder = &self.source.holder;
        while let Err(trouble) = self.hold(&mut term).await
            && !self.stop.is_cancelled()
        {
            let failed = term.failed(Instant::now());
            match failed.has_run_out {
                true => {
                    tracing::warn!(%holder, "a compute is without its LSN lease: {trouble}")
                }
                false => tracing::debug!(%holder, "an LSN lease is not renewed yet: {trouble}"),
            }
            self.trouble.send_replace(Some(trouble));
            tokio::select! {
                () = sleep(failed.pause) => {}
                () = self.stop.cancelled() => return,
            }
        }
    }

    /// One stream, until it breaks. `Ok`: told to stop.
    async fn hold(&self, term: &mut Term) -> Result<(), Trouble> {
        let mut stream = tokio::select! {
            opened = Stream::open(&self.source) => opened?,
            () = sleep(ANSWER_LIMIT) => return Err(silent()),
            () = self.stop.cancelled() => return Ok(()),
        };
        loop {
            let asked_at = Instant::now();
            let take = Request::Take { holder: self.source.holder.clone(), lsn: (self.at)() };
            // Heard to its end also when we stop: nothing of ours may come behind the release.
            let answer = tokio::select! {
                answer = stream.ask(&take) => answer?,
                () = self.patience() => return Err(silent()),
            };
            let left = match answer {
                Answer::Granted { left, .. } => left,
                Answer::Refused { message } => return Err(Trouble::Refused(message)),
                Answer::Released => return Err(unreachable("an answer to another question")),
            };
            if term.had_run_out() {
                tracing::info!(holder = %self.source.holder, "the LSN lease is held again");
            }
            let renew_after = term.granted(asked_at, left);
            self.trouble.send_replace(None);
            tokio::select! {
                () = sleep(renew_after) => {}
                // Nothing comes unasked but the end.
                ended = stream.wire.receive() => {
                    return Err(ended.map_or_else(unreachable, |()| unreachable("it ends the stream")));
                }
                () = self.stop.cancelled() => return Ok(()),
            }
        }
    }

    /// Returns when an answer has taken too long.
    async fn patience(&self) {
        let when_stopping = async {
            self.stop.cancelled().await;
            sleep(RELEASE_LIMIT).await;
        };
        tokio::select! {
            () = sleep(ANSWER_LIMIT) => {}
            () = when_stopping => {}
        }
    }

    /// On a stream of its own: there may be none.
    async fn release(&self) {
        let release = async {
            let mut stream = Stream::open(&self.source).await?;
            stream.ask(&Request::Release { holder: self.source.holder.clone() }).await
        };
        if !matches!(timeout(RELEASE_LIMIT, release).await, Ok(Ok(Answer::Released))) {
            tracing::debug!(holder = %self.source.holder, "an LSN lease is left to run out");
        }
    }
}

fn unreachable(error: impl ToString) -> Trouble {
    Trouble::Unreachable(error.to_string())
}

fn silent() -> Trouble {
    unreachable("it does not answer")
}

impl From<Failure> for Trouble {
    fn from(failure: Failure) -> Trouble {
        unreachable(failure)
    }
}

/// How a lease stands by our own clock.
#[derive(Debug, Default)]
struct Term {
    /// It is held until then, if it was ever granted.
    until: Option<Instant>,
    /// Since it was granted last.
    failures: u32,
    has_warned: bool,
}

#[derive(Debug, PartialEq, Eq)]
struct Failed {
    /// Before the next try.
    pause: Duration,
    /// True once in each time without a lease.
    has_run_out: bool,
}

impl Term {
    /// How long until it is renewed. Counted from the question: the answer may have taken its time.
    fn granted(&mut self, asked_at: Instant, left: Duration) -> Duration {
        let left = left.min(LEFT_MAX);
        *self = Term { until: Some(asked_at + left), ..Term::default() };
        (left / 3).max(PAUSE_MIN)
    }

    fn failed(&mut self, now: Instant) -> Failed {
        let pause = PAUSE_MIN.saturating_mul(1 << self.failures.min(10)).min(PAUSE_MAX);
        self.failures = self.failures.saturating_add(1);
        let has_run_out = !self.has_warned && self.until.is_none_or(|until| now >= until);
        self.has_warned |= has_run_out;
        Failed { pause, has_run_out }
    }

    fn had_run_out(&self) -> bool {
        self.has_warned
    }
}

/// A lease stream.
struct Stream {
    wire: Wire<TcpStream>,
}

impl Stream {
    async fn open(source: &LeaseSource) -> Result<Stream, Trouble> {
        let stream = TcpStream::connect(&source.address).await.map_err(unreachable)?;
        stream.set_nodelay(true).map_err(unreachable)?;
        let startup = StartupMessage::new([("user", "treering_agent"), ("database", "postgres")]);
        let mut wire = Wire::begin(stream, &startup, RECEIVE_BYTES).await?;
        wire.start_copy(&source.query).await?;
        Ok(Stream { wire })
    }

    async fn ask(&mut self, request: &Request) -> Result<Answer, Trouble> {
        let mut payload = BytesMut::new();
        request.encode(&mut payload);
        put_copy_data(&mut self.wire.out, &payload);
        self.wire.flush().await.map_err(unreachable)?;
        Answer::parse(self.payload().await?).map_err(unreachable)
    }

    async fn payload(&mut self) -> Result<Bytes, Trouble> {
        loop {
            let Some(frame) =
                next_frame(&mut self.wire.input, BODY_BYTES_MAX).map_err(unreachable)?
            else {
                self.wire.receive().await.map_err(unreachable)?;
                continue;
            };
            match backend::parse(frame).map_err(unreachable)? {
                Message::CopyData(payload) => return Ok(payload),
                Message::CopyDone => return Err(unreachable("it ends the stream")),
                Message::ErrorResponse(report) => return Err(unreachable(report)),
                _ => {}
            }
        }
    }
}

#[cfg(test)]
#[path = "lease_tests.rs"]
mod tests;
