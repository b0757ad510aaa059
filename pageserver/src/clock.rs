//! The clock, in Postgres's units, and what is drawn from it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use treering_pgfmt::timestamp;
use treering_wire::PgTime;

fn since_1970() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// µs since 2000-01-01.
pub fn now() -> PgTime {
    let micros = i64::try_from(since_1970().as_micros()).unwrap_or(i64::MAX);
    timestamp::postgres_micros_from_unix_micros(micros)
}

/// Seconds since 1970.
pub fn unix_seconds() -> i64 {
    i64::try_from(since_1970().as_secs()).unwrap_or(i64::MAX)
}

/// A new cluster's identifier, made as stock Postgres makes it (`BootStrapXLOG`): seconds, microseconds, 12 bits
/// that tell apart what was made at the same time.
pub fn fresh_system_id() -> u64 {
    let now = since_1970();
    let distinct = u64::from(rand::random::<u16>() & 0xfff);
    now.as_secs() << 32 | u64::from(now.subsec_micros()) << 12 | distinct
}
