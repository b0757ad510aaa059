//! Where a log on disk ends.

use treering_consensus::Promises;
use treering_pgfmt::wal::{
    page_header::{self, PageHeader},
    reader::WalDecoder,
    record::{RECORD_HEADER_SIZE, RawRecord, RecordHeader},
};
use treering_types::{Lsn, WAL_PAGE_SIZE};

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
///
/// What fills a segment behind an XLOG SWITCH is looked at too: no record vouches for it, and in a file that held another
/// segment before it may not all have come to the disk, although what stands there passes for filler.
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
            let end = decoder.position();
            match decoder.next_record() {
                Ok(Some(record)) if !is_whole(files, identity, &record)? => return Ok(end),
                Ok(Some(_)) => {}
                Ok(None) => break,
                // Zeros, a torn record, or what an older log left: the log ends before it.
                Err(_) => return Ok(decoder.position()),
            }
        }
    }
    Ok(decoder.position())
}

/// Whether all of the record is there, what fills the segment behind an XLOG SWITCH included: zeros, and perhaps page headers.
fn is_whole(
    files: &WalFiles,
    identity: &Identity,
    record: &RawRecord<'_>,
) -> Result<bool, StoreError> {
    let is_switch = |header: RecordHeader| header.is_switch();
    if record.end.segment_offset() != 0
        || !RecordHeader::parse(record.bytes.whole()).is_some_and(is_switch)
    {
        return Ok(true);
    }
    let major = pg_major(identity.pg_major)?;
    let mut page = record.start.page_start();
    // The record is all header; where its page ends before it does, it goes on behind the next one's header.
    let mut filler = record.start + RECORD_HEADER_SIZE as u64;
    let next_page = page + WAL_PAGE_SIZE;
    if filler > next_page {
        filler = filler + page_header::size_at(next_page) as u64;
    }
    while page < record.end {
        let end = page + WAL_PAGE_SIZE;
        let from = filler.max(page).min(end);
        let bytes = files.read(from, end)?;
        let has_header = from == page && PageHeader::parse(major, page, &bytes).is_ok();
        let header_len = if has_header { page_header::size_at(page) } else { 0 };
        if bytes.iter().skip(header_len).any(|byte| *byte != 0) {
            return Ok(false);
        }
        page = end;
    }
    Ok(true)
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
