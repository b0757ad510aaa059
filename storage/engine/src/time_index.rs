//! The commit-time index: where the log stood when the clock of commits first passed a time.
//!
//! One key per *new maximum* of commit and abort stamps, written at the LSN of the record that set it. Along the log both
//! stamps and LSNs rise, so the first entry with a stamp above `t` belongs to the first commit or abort stamped
//! later than `t`, and the prefix before that record is what Postgres's `recovery_target_time` stops at. A clock that
//! jumps back writes no entries until it has caught up.

use treering_types::{Key, KeyClass, KeyRange, Lsn};

use crate::{
    binary::{Malformed, Put, Reader},
    value::Value,
};

/// The value at a `TimeIndex` key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeEntry {
    /// End of the record before the one that carries the stamp.
    pub prev_end: Lsn,
}

impl TimeEntry {
    /// The key and value for a record with `stamp` (µs since 2000-01-01) that follows the record ending at `prev_end`.
    pub fn put(stamp: i64, prev_end: Lsn) -> (Key, Value) {
        (Key::time_index(stamp), Value::whole(TimeEntry { prev_end }.encode()))
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(8);
        out.put_u64(self.prev_end.0);
        out
    }

    /// # Errors
    /// What is wrong with the bytes.
    pub fn decode(bytes: &[u8]) -> Result<TimeEntry, &'static str> {
        let parse = || {
            let mut reader = Reader::new(bytes);
            let prev_end = Lsn(reader.u64()?);
            reader.finish()?;
            Ok(TimeEntry { prev_end })
        };
        parse().map_err(|Malformed(what)| what)
    }
}

/// Where "just before the first commit stamped later than t" is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeAnswer {
    /// Branch here: the end of the last record that belongs to the prefix.
    At(Lsn),
    /// Nothing up to this LSN is stamped later: the whole history seen so far belongs to the prefix.
    NothingLater(Lsn),
    /// The prefix ends before the history that is kept begins (at this LSN).
    BeforeHistory(Lsn),
}

/// Keys of entries with a stamp later than `time`.
pub(crate) fn keys_after(time: i64) -> KeyRange {
    Key::time_index(time).next()..all_keys().end
}

/// Keys of all entries.
pub(crate) fn all_keys() -> KeyRange {
    Key::class_range(KeyClass::TimeIndex)
}
