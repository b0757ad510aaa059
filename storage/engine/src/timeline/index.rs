//! Finding LSNs: by commit time, and record boundaries.

use treering_pgfmt::wal::encode::record_start_after;
use treering_types::{Key, KeyClass, KeyRange, Lsn};

use super::Timeline;
use crate::{
    error::{EngineError, Result},
    read::{View, scan},
    record_ends::{Boundary, RecordEnds},
    time_index::{self, TimeAnswer, TimeEntry},
    value::Direction,
};

/// Pages' worth of record ends that one lookup reads from one timeline. Two hold the two ends that are needed; values that a
/// branch wrote for the page of its fork may hold only its own, hence one more.
const PAGES_PER_LEVEL: usize = 3;

impl Timeline {
    /// Where the prefix ends that has no commit or abort stamped later than `time` (µs since 2000-01-01): Postgres's
    /// `recovery_target_time` rule, over the whole history up to `last_record_lsn`.
    ///
    /// # Errors
    /// As reads.
    pub fn lsn_before_time(&self, time: i64) -> Result<TimeAnswer> {
        let upto = self.last_record_lsn();
        let range = time_index::keys_after(time);
        let first = self.scan(range, upto, Direction::Forward, 1)?.into_iter().next();
        let root = self.root_start();
        let Some((key, lsn, bytes)) = first else {
            return Ok(TimeAnswer::NothingLater(upto));
        };
        let entry = TimeEntry::decode(&bytes);
        let entry = entry.map_err(|what| self.corrupt_value(key, lsn, what))?;
        // Below a cut-off entries are missing: an answer there may be wrong, and could not be read.
        match self.check_kept(entry.prev_end) {
            Ok(()) if entry.prev_end >= root => Ok(TimeAnswer::At(entry.prev_end)),
            Ok(()) | Err(EngineError::BelowCutOff { .. }) => {
                Ok(TimeAnswer::BeforeHistory(self.earliest_lsn()))
            }
            Err(error) => Err(error),
        }
    }

    /// The latest stamp (µs since 2000-01-01) among commits and aborts at or before `lsn`; `None` before the first.
    ///
    /// # Errors
    /// As reads.
    pub fn time_at(&self, lsn: Lsn) -> Result<Option<i64>> {
        let last = self.scan(time_index::all_keys(), lsn, Direction::Backward, 1)?;
        Ok(last.first().and_then(|(key, _, _)| key.stamp()))
    }

    /// The record that ends at or before `lsn`; `None` when history holds none or its start is not known.
    ///
    /// # Errors
    /// As reads.
    pub fn record_boundary(&self, lsn: Lsn) -> Result<Option<Boundary>> {
        let view = self.view(lsn)?;
        let ends = last_ends(&view, lsn, |key, lsn, what| self.corrupt_value(key, lsn, what))?;
        Ok(match ends.as_slice() {
            [.., before, end] => Some(Boundary { end: *end, start: record_start_after(*before) }),
            _ => None,
        })
    }

    fn root_start(&self) -> Lsn {
        let mut at = self;
        while let Some((ancestor, _)) = at.ancestor() {
            at = ancestor;
        }
        at.start_lsn()
    }
}

/// The record ends known at or before `lsn`, rising; at least the last two when there are two.
///
/// The value of a WAL page may have been written with a later LSN than the ends that it lists, so each timeline is asked for
/// its newest, and ends above what the view may see are left out.
fn last_ends<E>(
    view: &View<'_>,
    lsn: Lsn,
    corrupt: impl Fn(Key, Lsn, &str) -> E,
) -> Result<Vec<Lsn>>
where
    crate::error::EngineError: From<E>,
{
    let mut ends = Vec::new();
    for level in view.levels() {
        let upto = lsn.min(level.clip);
        for (key, found) in scan::last_own_values(view, level, keys_upto(upto), PAGES_PER_LEVEL)? {
            let value = RecordEnds::decode(&found.bytes);
            let value = value.map_err(|what| corrupt(key, found.lsn, what))?;
            ends.extend(value.ends.into_iter().filter(|end| *end <= upto));
            ends.extend(Some(value.before).filter(|end| end.is_valid() && *end <= upto));
        }
        // Older timelines end below this one's own records.
        if ends.iter().filter(|end| **end > level.start_lsn).count() >= 2 {
            break;
        }
    }
    ends.sort_unstable();
    ends.dedup();
    Ok(ends)
}

/// Keys of the WAL pages that can hold record ends at or before `lsn`.
fn keys_upto(lsn: Lsn) -> KeyRange {
    Key::class_range(KeyClass::RecordEnds).start..RecordEnds::key_of(lsn).next()
}
