//! Trying again: a store that answers "slow down" or not in time is asked again after growing pauses, and no longer once we stop.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};

use crate::error::{RemoteError, Result};

/// How often and how long one call is tried.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// Calls at most, at least one.
    pub attempts: u32,
    /// Before the second; doubled before each further one, up to `pause_max`.
    pub pause: Duration,
    pub pause_max: Duration,
}

impl Patience {
    /// About eight seconds.
    pub const DEFAULT: Patience = Patience {
        attempts: 7,
        pause: Duration::from_millis(100),
        pause_max: Duration::from_secs(3),
    };
    /// Once, without pauses: for simulations.
    pub const NONE: Patience =
        Patience { attempts: 1, pause: Duration::ZERO, pause_max: Duration::ZERO };

    /// The pause after `failures` failures in a row.
    pub fn pause_after(&self, failures: u32) -> Duration {
        let factor = 1u32 << failures.saturating_sub(1).min(20);
        self.pause.saturating_mul(factor).min(self.pause_max)
    }
}

/// Ends pauses. Clones are one.
#[derive(Clone, Default)]
pub struct Stop(Arc<(Mutex<bool>, Condvar)>);

impl Stop {
    pub fn stop(&self) {
        *self.0.0.lock() = true;
        self.0.1.notify_all();
    }

    pub fn is_stopped(&self) -> bool {
        *self.0.0.lock()
    }

    /// # Errors
    /// `Stopping`, at once, when that is so.
    pub fn pause(&self, length: Duration) -> Result<()> {
        let until = Instant::now() + length;
        let mut stopped = self.0.0.lock();
        while !*stopped {
            if self.0.1.wait_until(&mut stopped, until).timed_out() {
                break;
            }
        }
        if *stopped { Err(RemoteError::Stopping) } else { Ok(()) }
    }
}

/// Counts what was asked of the store.
#[derive(Debug, Default)]
pub struct Counters {
    pub requests: AtomicU64,
    /// Requests that failed, those that were tried again included.
    pub failures: AtomicU64,
    pub uploaded_bytes: AtomicU64,
    pub downloaded_bytes: AtomicU64,
    pub uploaded_layers: AtomicU64,
    pub downloaded_layers: AtomicU64,
    pub published_indexes: AtomicU64,
    pub deleted_objects: AtomicU64,
}

impl Counters {
    pub(crate) fn add(counter: &AtomicU64, count: u64) {
        counter.fetch_add(count, Ordering::Relaxed);
    }
}

/// A way to ask: patience, counters and the order to stop.
#[derive(Clone)]
pub struct Asking {
    pub patience: Patience,
    pub counters: Arc<Counters>,
    pub stop: Stop,
}

impl Asking {
    pub fn new(patience: Patience) -> Asking {
        Asking { patience, counters: Arc::default(), stop: Stop::default() }
    }

    /// Calls until it succeeds, fails for good, or patience ends.
    ///
    /// # Errors
    /// The last failure; `Stopping`.
    pub fn ask<T>(&self, mut call: impl FnMut() -> Result<T>) -> Result<T> {
        let mut failures = 0;
        loop {
            if self.stop.is_stopped() {
                return Err(RemoteError::Stopping);
            }
            Counters::add(&self.counters.requests, 1);
            let error = match call() {
                Ok(done) => return Ok(done),
                Err(error) => error,
            };
            if !matches!(error, RemoteError::Unavailable { .. }) {
                return Err(error);
            }
            Counters::add(&self.counters.failures, 1);
            failures += 1;
            if failures >= self.patience.attempts {
                return Err(error);
            }
            tracing::debug!(%error, failures, "asked again after a pause");
            self.stop.pause(self.patience.pause_after(failures))?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unavailable() -> RemoteError {
        RemoteError::Unavailable { action: "asking", name: "x".into(), cause: "503".into() }
    }

    #[test]
    fn pauses_double_up_to_a_bound() {
        let pauses: Vec<u128> =
            (1..9).map(|n| Patience::DEFAULT.pause_after(n).as_millis()).collect();
        assert_eq!(pauses, [100, 200, 400, 800, 1600, 3000, 3000, 3000]);
        assert_eq!(Patience::DEFAULT.pause_after(u32::MAX), Duration::from_secs(3));
    }

    #[test]
    fn only_what_may_pass_is_tried_again() {
        let patience = Patience { attempts: 3, ..Patience::NONE };
        let asking = Asking::new(patience);
        let mut calls = 0;
        let late = asking.ask(|| {
            calls += 1;
            if calls < 3 { Err(unavailable()) } else { Ok(calls) }
        });
        assert_eq!(late.unwrap(), 3);
        assert!(asking.ask(|| Err::<(), _>(unavailable())).is_err());
        let mut calls = 0;
        let missing = asking.ask(|| {
            calls += 1;
            Err::<(), _>(RemoteError::missing("x"))
        });
        assert!(missing.is_err() && calls == 1);
        assert_eq!(asking.counters.failures.load(Ordering::Relaxed), 5);
    }

    #[test]
    fn a_stop_ends_pauses() {
        let asking = Asking::new(Patience {
            attempts: 2,
            pause: Duration::from_secs(600),
            pause_max: Duration::from_secs(600),
        });
        let stop = asking.stop.clone();
        let began = Instant::now();
        let stopper = std::thread::spawn(move || stop.stop());
        let ended = asking.ask(|| Err::<(), _>(unavailable()));
        stopper.join().unwrap();
        assert!(matches!(ended, Err(RemoteError::Stopping)));
        assert!(began.elapsed() < Duration::from_secs(60));
    }
}
