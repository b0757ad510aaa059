//! The end of a cleanly shut down cluster's log: where its history as a timeline of ours begins.

use std::{fs, path::Path};

use treering_pgfmt::{
    control::ControlFile,
    wal::{
        reader::WalDecoder,
        record::{RawRecord, Record},
    },
};
use treering_types::{Lsn, WAL_SEGMENT_SIZE};

use super::ImportError;

/// The last record of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct WalEnd {
    /// End of the shutdown checkpoint record: X.
    pub(super) end: Lsn,
    /// End of the record before it.
    pub(super) before: Lsn,
}

/// Reads the shutdown checkpoint that `control` names and the record before it.
///
/// # Errors
/// Segment files that cannot be read, or whose records are not those.
pub(super) fn find(data: &Path, control: &ControlFile) -> Result<WalEnd, ImportError> {
    let start = control.checkpoint_start();
    let raw = record_at(data, control, start)?;
    let bad = |source| ImportError::Wal { at: start, source };
    let record = Record::decode(control.major(), &raw).map_err(bad)?;
    let is_named = record.rmid == 0 && record.main[..] == control.checkpoint().encode();
    if !is_named {
        return Err(ImportError::NotTheCheckpoint { at: start });
    }
    let before = record_at(data, control, record.prev)?;
    Ok(WalEnd { end: raw.end, before: before.end })
}

fn record_at(
    data: &Path,
    control: &ControlFile,
    start: Lsn,
) -> Result<RawRecord<'static>, ImportError> {
    let bad = |source| ImportError::Wal { at: start, source };
    let tli = control.checkpoint().this_tli;
    let mut decoder = WalDecoder::new(control.major(), start);
    let mut at = start;
    loop {
        let path = data.join("pg_wal").join(at.segment_file_name(tli));
        let segment =
            fs::read(&path).map_err(|source| ImportError::Read { path: path.clone(), source })?;
        let from = at.segment_offset() as usize;
        decoder.feed(segment.get(from..).unwrap_or_default());
        if let Some(record) = decoder.next_record().map_err(bad)? {
            return Ok(record.into_owned());
        }
        at = at.segment_start() + WAL_SEGMENT_SIZE;
    }
}
