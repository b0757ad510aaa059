//! Writing WAL: page headers, records, and the synthetic checkpoint that starts a stock server at a fork.
//!
//! A server that starts from a shutdown checkpoint needs no recovery, so the only WAL we ever write is one such
//! record at the fork (`record_start_after(F)`), laid out over as many pages as it needs. Everything here is pure:
//! callers place the bytes at `F` in segment files whose earlier bytes are the true WAL before `F`, or
//! [`blank_segment_head`] where that is not at hand.

use treering_types::{Lsn, WAL_PAGE_SIZE};

use super::{
    page_header::{self, FIRST_IS_CONTINUATION, PageHeader},
    record::{ID_MAIN_SHORT, RECORD_HEADER_SIZE, record_crc},
};
use crate::version::PgMajor;

/// Bytes of a `CheckPoint` (`catalog/pg_control.h`), the same in 15 to 18.
pub const CHECKPOINT_SIZE: usize = 88;

/// Which server writes a page: what every page header says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Origin {
    pub major: PgMajor,
    /// The server timeline.
    pub tli: u32,
    pub system_id: u64,
}

/// Raw WAL from one record boundary to the next.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LaidOut {
    /// First byte of the record.
    pub record_start: Lsn,
    /// The record's end, a multiple of 8.
    pub end: Lsn,
    /// Raw bytes from the position asked for to `end`, page headers and padding included.
    pub bytes: Vec<u8>,
}

/// What a synthetic checkpoint says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SyntheticCheckpoint {
    /// The fork: a record's end.
    pub at: Lsn,
    /// Start of the last record before `at`. Must be exact for whoever reads across the fork.
    pub prev: Lsn,
    pub tli: u32,
    pub system_id: u64,
    /// An encoded `CheckPoint`; its redo position is replaced by the record's start.
    pub checkpoint: [u8; CHECKPOINT_SIZE],
}

/// A synthetic checkpoint as raw WAL.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SyntheticWal {
    /// First byte of the record: `checkPoint` in `pg_control`.
    pub record_start: Lsn,
    pub end: Lsn,
    /// Raw WAL from the fork to `end`, page headers included.
    pub bytes: Vec<u8>,
    /// The record's payload, redo position set: `checkPointCopy` in `pg_control`.
    pub checkpoint: [u8; CHECKPOINT_SIZE],
}

/// The header of the page at `page_addr` (24 bytes, 40 at a segment start, where the long-header flag is added).
pub fn page_header(
    major: PgMajor,
    tli: u32,
    page_addr: Lsn,
    system_id: u64,
    info: u16,
    rem_len: u32,
) -> Vec<u8> {
    let header = PageHeader { info, tli, rem_len, system_id: Some(system_id) };
    header.encode(major, page_addr)
}

/// Where the record after the record end `at` starts: behind the page header if `at` is a page start.
pub fn record_start_after(at: Lsn) -> Lsn {
    let at = at.align_up();
    if at.page_offset() == 0 { at + page_header::size_at(at) as u64 } else { at }
}

/// A whole record without page headers: header, `body` (block and data headers, then data), CRC.
pub fn record(xid: u32, prev: Lsn, info: u8, rmid: u8, body: &[u8]) -> Vec<u8> {
    let length = RECORD_HEADER_SIZE + body.len();
    let mut out = Vec::with_capacity(length);
    out.extend_from_slice(&(length as u32).to_le_bytes());
    out.extend_from_slice(&xid.to_le_bytes());
    out.extend_from_slice(&prev.0.to_le_bytes());
    out.extend_from_slice(&[info, rmid, 0, 0]);
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(body);
    let crc = record_crc(&out).to_le_bytes();
    out[RECORD_HEADER_SIZE - 4..RECORD_HEADER_SIZE].copy_from_slice(&crc);
    out
}

/// Lays a record out from the record boundary `at` on, with the page headers it meets. Headers of pages that begin
/// within the record say so.
pub fn lay_out(origin: &Origin, at: Lsn, record: &[u8]) -> LaidOut {
    let at = at.align_up();
    let mut bytes = Vec::with_capacity(record.len() + 2 * page_header::LONG_SIZE);
    let header = |page: Lsn, info: u16, rem_len: usize| {
        page_header(origin.major, origin.tli, page, origin.system_id, info, rem_len as u32)
    };
    if at.page_offset() == 0 {
        bytes.extend_from_slice(&header(at, 0, 0));
    }
    let mut left = record;
    loop {
        let here = at + bytes.len() as u64;
        let room = WAL_PAGE_SIZE as usize - here.page_offset();
        let (now, later) = left.split_at(room.min(left.len()));
        bytes.extend_from_slice(now);
        left = later;
        if left.is_empty() {
            break;
        }
        let page = at + bytes.len() as u64;
        bytes.extend_from_slice(&header(page, FIRST_IS_CONTINUATION, left.len()));
    }
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    LaidOut { record_start: record_start_after(at), end: at + bytes.len() as u64, bytes }
}

/// The shutdown checkpoint that lets a stock server start at a fork without recovery.
///
/// The CheckPoint's redo position is set to the record's own start, without which the server panics; use the
/// returned `checkpoint` for `pg_control`.
pub fn synthetic_checkpoint(major: PgMajor, what: &SyntheticCheckpoint) -> SyntheticWal {
    let mut checkpoint = what.checkpoint;
    checkpoint[..8].copy_from_slice(&record_start_after(what.at).0.to_le_bytes());
    let mut body = vec![ID_MAIN_SHORT, CHECKPOINT_SIZE as u8];
    body.extend_from_slice(&checkpoint);
    // xid 0, XLOG_CHECKPOINT_SHUTDOWN of resource manager XLOG.
    let record = record(0, what.prev, 0, 0, &body);
    let origin = Origin { major, tli: what.tli, system_id: what.system_id };
    let LaidOut { record_start, end, bytes } = lay_out(&origin, what.at, &record);
    SyntheticWal { record_start, end, bytes, checkpoint }
}

/// The bytes of `until`'s segment before `until`, as if nothing had been written there: zeros but for the header
/// of the segment's first page and of the page that holds `until`. Enough for a server to start, not for a reader
/// that begins at the segment's start. Empty when `until` is a segment start.
pub fn blank_segment_head(origin: &Origin, until: Lsn) -> Vec<u8> {
    let mut bytes = vec![0; until.segment_offset() as usize];
    let pages = [until.segment_start(), until.page_start()];
    for page in pages.into_iter().filter(|page| *page < until) {
        let header = page_header(origin.major, origin.tli, page, origin.system_id, 0, 0);
        let offset = page.segment_offset() as usize;
        bytes[offset..offset + header.len()].copy_from_slice(&header);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wal::{reader::WalDecoder, record::Record};

    fn at(at: u64) -> SyntheticCheckpoint {
        let checkpoint = [7; CHECKPOINT_SIZE];
        SyntheticCheckpoint { at: Lsn(at), prev: Lsn(at - 64), tli: 2, system_id: 5, checkpoint }
    }

    #[test]
    fn checkpoints_are_readable_wherever_they_stand() {
        for position in [0x18A_3790, 0x18A_4000, 0x200_0000, 0x18A_3FC0, 0x1FF_FFC0, 0x1FF_FFF8] {
            for major in PgMajor::ALL {
                let what = at(position);
                let wal = synthetic_checkpoint(major, &what);
                assert_eq!(wal.end, what.at + wal.bytes.len() as u64);
                let mut decoder = WalDecoder::new(major, what.at).with_prev(what.prev);
                decoder.feed(&wal.bytes);
                let raw = decoder.next_record().unwrap().unwrap();
                assert_eq!((raw.start, raw.end), (wal.record_start, wal.end));
                let record = Record::decode(major, &raw).unwrap();
                assert_eq!(record.main, wal.checkpoint);
                assert_eq!(record.main[..8], wal.record_start.0.to_le_bytes());
                assert_eq!(raw.bytes.len(), 114);
            }
        }
    }

    #[test]
    fn starts_skip_headers() {
        assert_eq!(record_start_after(Lsn(0x18A_4000)), Lsn(0x18A_4018));
        assert_eq!(record_start_after(Lsn(0x200_0000)), Lsn(0x200_0028));
        assert_eq!(record_start_after(Lsn(0x18A_3790)), Lsn(0x18A_3790));
    }
}
