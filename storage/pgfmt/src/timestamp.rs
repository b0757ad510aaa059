//! Postgres's two time scales as numbers: `TimestampTz`, µs since 2000-01-01 00:00 UTC, in WAL records and
//! replication messages; `pg_time_t`, seconds since 1970, in `CheckPoint` and `pg_control`. No clock here.

/// Seconds from 1970-01-01 to 2000-01-01 (`POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE` days).
pub const POSTGRES_EPOCH_UNIX_SECONDS: i64 = 946_684_800;
const MICROS_PER_SECOND: i64 = 1_000_000;

/// µs since 2000-01-01 to whole seconds since 1970, rounded down.
pub const fn unix_seconds(postgres_micros: i64) -> i64 {
    postgres_micros.div_euclid(MICROS_PER_SECOND) + POSTGRES_EPOCH_UNIX_SECONDS
}

/// Seconds since 1970 to µs since 2000-01-01, at the ends of the range clamped.
pub const fn postgres_micros(unix_seconds: i64) -> i64 {
    unix_seconds.saturating_sub(POSTGRES_EPOCH_UNIX_SECONDS).saturating_mul(MICROS_PER_SECOND)
}

/// µs since 1970 to µs since 2000-01-01, at the ends of the range clamped.
pub const fn postgres_micros_from_unix_micros(unix_micros: i64) -> i64 {
    unix_micros.saturating_sub(POSTGRES_EPOCH_UNIX_SECONDS * MICROS_PER_SECOND)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn epochs_meet() {
        assert_eq!(unix_seconds(0), POSTGRES_EPOCH_UNIX_SECONDS);
        assert_eq!(unix_seconds(-1), POSTGRES_EPOCH_UNIX_SECONDS - 1);
        assert_eq!(postgres_micros(POSTGRES_EPOCH_UNIX_SECONDS + 2), 2_000_000);
        assert_eq!(postgres_micros_from_unix_micros(946_684_800_000_005), 5);
        assert_eq!(postgres_micros(i64::MIN), i64::MIN);
        assert_eq!(unix_seconds(i64::MAX), 9_223_372_036_854 + POSTGRES_EPOCH_UNIX_SECONDS);
    }
}
