//! Slows writers down that the pageserver does not keep up with.
//!
//! What is not ingested has to be kept here, and is history that nobody can branch from yet. Once the pageserver is known
//! to be further behind than the limit, log is taken from a proposer at a rate that falls with the distance, from
//! 64 MiB/s at the limit to 1 MiB/s at twice the limit. The next messages wait in the proposer's socket and then in its
//! bounded queues: acknowledgements come later, commits wait, and the agent holds writes to `pg_wal` up when they get too
//! far ahead. Nothing is ever refused for this; where it does not help, the disk limit ends it. Other proposers, those
//! above all that want to be elected, have connections of their own and do not wait.

use std::time::Duration;

const RATE_MAX: f64 = (64 << 20) as f64;
const RATE_MIN: f64 = (1 << 20) as f64;
/// However long a message: its sender has to hear of us.
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// How long to wait after `bytes` of log, when the pageserver is `lag` bytes behind. A limit of 0 is none.
pub fn pause_after(bytes: u64, lag: u64, limit: u64) -> Duration {
    match lag.checked_sub(limit) {
        Some(beyond) if limit > 0 && beyond > 0 => {
            let share = (beyond as f64 / limit as f64).min(1.0);
            let rate = RATE_MAX - (RATE_MAX - RATE_MIN) * share;
            Duration::from_secs_f64(bytes as f64 / rate).min(PAUSE_MAX)
        }
        Some(_) | None => Duration::ZERO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn the_further_behind_the_slower() {
        assert_eq!(pause_after(MIB, 100 * MIB, 100 * MIB), Duration::ZERO);
        assert_eq!(pause_after(MIB, 1000 * MIB, 0), Duration::ZERO, "no limit");
        let pauses =
            [101, 150, 199, 200, 300, 9000].map(|lag| pause_after(MIB, lag * MIB, 100 * MIB));
        assert!(pauses.is_sorted() && pauses[0] < Duration::from_millis(20), "{pauses:?}");
        assert_eq!(pauses[3..], [Duration::from_secs(1); 3]);
        assert_eq!(pause_after(16 * MIB, 300 * MIB, 100 * MIB), PAUSE_MAX);
    }
}
