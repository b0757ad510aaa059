//! Where a log on disk ends.

use treering_consensus::Promises;
use treering_pgfmt::wal::reader::WalDecoder;
use treering_types::Lsn;

use crate::{
    control_file::Identity,
    error::StoreError,
    wal_store::{WalFiles, pg_major, segment_start},
};

/// Bytes read at once while the log is followed.
const SCAN_BYTES: u64 = 1024 * 1024;

pub(super) fn decoder_at(identity: &Identity, lsn: Lsn) -> Result<WalDecoder, StoreError> {
    let major = pg_major(identity.pg_major)?;
    Ok(WalDecoder::new(major, lsn).with_system_id(identity.system_id))
}

pub(super) fn check_committed_log_is_there(
    files: &WalFiles,
    promises: &Promises,
    trim_lsn: Lsn,
) -> Result<(), StoreError> {
    let commit_lsn = promises.commit_lsn;
    if commit_lsn == promises.start_lsn || commit_lsn == trim_lsn {
        return Ok(());
    }
    let last = Lsn(commit_lsn.0 - 1).segment_number();
    if files.segments()?.contains(&last) {
        return Ok(());
    }
    Err(StoreError::LogTooShort { commit_lsn })
}

/// The end of the last whole record that follows `from`, a record end.
pub(super) fn end_of_log(
    files: &WalFiles,
    identity: &Identity,
    from: Lsn,
) -> Result<Lsn, StoreError> {
    let mut decoder = decoder_at(identity, from)?;
    let segments = files.segments()?;
    let mut at = from;
    while segments.contains(&at.segment_number()) {
        let to = Lsn(at.0 + SCAN_BYTES).min(segment_start(at.segment_number() + 1));
        decoder.feed(&files.read(at, to)?);
        at = to;
        loop {
            match decoder.next_record() {
                Ok(Some(_)) => {}
                Ok(None) => break,
                // Zeros, a torn record, or what an older log left: the log ends before it.
                Err(_) => return Ok(decoder.position()),
            }
        }
    }
    Ok(decoder.position())
}

pub(super) fn is_zero_behind(files: &WalFiles, end: Lsn) -> Result<bool, StoreError> {
    let segments = files.segments()?;
    if segments.iter().any(|segment| segment_start(*segment) >= end) {
        return Ok(false);
    }
    if !segments.contains(&end.segment_number()) {
        return Ok(true);
    }
    let zeros = vec![0; SCAN_BYTES as usize];
    let mut at = end;
    let segment_end = segment_start(end.segment_number() + 1);
    while at < segment_end {
        let to = Lsn(at.0 + SCAN_BYTES).min(segment_end);
        // As one comparison: byte by byte this would be most of the time that an open takes.
        if files.read(at, to)? != zeros[..(to.0 - at.0) as usize] {
            return Ok(false);
        }
        at = to;
    }
    Ok(true)
}
