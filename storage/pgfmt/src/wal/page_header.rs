//! The header at the start of every WAL page (`access/xlog_internal.h`).
//!
//! ```text
//!  0      2      4      8              16        20       24             32          36         40
//!  +------+------+------+--------------+---------+--------+--------------+-----------+----------+
//!  |magic | info | tli  | page address | rem_len | 0      | system id    | seg. size | page size|
//!  +------+------+------+--------------+---------+--------+--------------+-----------+----------+
//!  |<------------------ every page --------------------->|<-- first page of a segment --------->|
//! ```

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::panic))]

use treering_types::{Lsn, WAL_PAGE_SIZE, WAL_SEGMENT_SIZE};

use super::error::PageHeaderFault;
use crate::{
    le::{u16_at, u32_at, u64_at},
    version::PgMajor,
};

/// Bytes of the header on all pages but a segment's first (`SizeOfXLogShortPHD`).
pub const SHORT_SIZE: usize = 24;
/// Bytes of the header on a segment's first page (`SizeOfXLogLongPHD`).
pub const LONG_SIZE: usize = 40;

/// The page begins inside a record, of which `rem_len` bytes are left (`XLP_FIRST_IS_CONTRECORD`).
pub const FIRST_IS_CONTINUATION: u16 = 0x0001;
/// The header is a long one (`XLP_LONG_HEADER`).
pub const LONG_HEADER: u16 = 0x0002;
/// Full-page images that begin on this page may be removed (`XLP_BKP_REMOVABLE`).
pub const IMAGES_REMOVABLE: u16 = 0x0004;
/// The first record replaces a broken one that would have continued here
/// (`XLP_FIRST_IS_OVERWRITE_CONTRECORD`).
pub const FIRST_IS_OVERWRITE: u16 = 0x0008;
const ALL_FLAGS: u16 = 0x000F;

/// A WAL page header whose magic, address and sizes are right.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PageHeader {
    pub info: u16,
    /// The server timeline (`xlp_tli`) that wrote the page.
    pub tli: u32,
    /// Bytes left of the record that the page begins inside of, 0 if it does not.
    pub rem_len: u32,
    /// The system identifier; only on a segment's first page.
    pub system_id: Option<u64>,
}

/// Bytes of the page header at `page`, which is a page start.
pub const fn size_at(page: Lsn) -> usize {
    if page.segment_offset() == 0 { LONG_SIZE } else { SHORT_SIZE }
}

impl PageHeader {
    /// True when the page begins inside a record.
    pub fn continues_a_record(&self) -> bool {
        self.info & FIRST_IS_CONTINUATION != 0
    }

    /// True when the first record of the page replaces a broken one.
    pub fn overwrites_a_record(&self) -> bool {
        self.info & FIRST_IS_OVERWRITE != 0
    }

    /// Reads and checks the header of the page at `page`. `bytes` begins with it.
    ///
    /// # Errors
    /// The first fact that is wrong. `bytes` shorter than [`size_at`] fail as a wrong magic would.
    pub fn parse(major: PgMajor, page: Lsn, bytes: &[u8]) -> Result<PageHeader, PageHeaderFault> {
        let magic = u16_at(bytes, 0).unwrap_or(0);
        if magic != major.layout().wal_magic || bytes.len() < size_at(page) {
            return Err(PageHeaderFault::Magic { found: magic, major });
        }
        let info = u16_at(bytes, 2).unwrap_or(0);
        let at_segment_start = page.segment_offset() == 0;
        if info & !ALL_FLAGS != 0 || (info & LONG_HEADER != 0) != at_segment_start {
            return Err(PageHeaderFault::Info(info));
        }
        let address = Lsn(u64_at(bytes, 8).unwrap_or(0));
        if address != page {
            return Err(PageHeaderFault::Address(address));
        }
        let system_id = if at_segment_start { Some(parse_long(bytes)?) } else { None };
        Ok(PageHeader {
            info,
            tli: u32_at(bytes, 4).unwrap_or(0),
            rem_len: u32_at(bytes, 16).unwrap_or(0),
            system_id,
        })
    }

    /// The bytes of this header for the page at `page`: 24, or 40 at a segment start, where the long-header
    /// flag is set as well and `system_id` counts (absent: 0).
    pub fn encode(&self, major: PgMajor, page: Lsn) -> Vec<u8> {
        let at_segment_start = page.segment_offset() == 0;
        let long = if at_segment_start { LONG_HEADER } else { 0 };
        let mut out = Vec::with_capacity(LONG_SIZE);
        out.extend_from_slice(&major.layout().wal_magic.to_le_bytes());
        out.extend_from_slice(&(self.info & !LONG_HEADER | long).to_le_bytes());
        out.extend_from_slice(&self.tli.to_le_bytes());
        out.extend_from_slice(&page.0.to_le_bytes());
        out.extend_from_slice(&self.rem_len.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        if at_segment_start {
            out.extend_from_slice(&self.system_id.unwrap_or(0).to_le_bytes());
            out.extend_from_slice(&(WAL_SEGMENT_SIZE as u32).to_le_bytes());
            out.extend_from_slice(&(WAL_PAGE_SIZE as u32).to_le_bytes());
        }
        out
    }
}

/// The long part: checks the sizes, answers with the system identifier.
fn parse_long(bytes: &[u8]) -> Result<u64, PageHeaderFault> {
    let segment_size = u32_at(bytes, 32).unwrap_or(0);
    if u64::from(segment_size) != WAL_SEGMENT_SIZE {
        return Err(PageHeaderFault::SegmentSize(segment_size));
    }
    let page_size = u32_at(bytes, 36).unwrap_or(0);
    if u64::from(page_size) != WAL_PAGE_SIZE {
        return Err(PageHeaderFault::PageSize(page_size));
    }
    Ok(u64_at(bytes, 24).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_round_trip_and_know_their_place() {
        for (page, size) in [(Lsn(0x200_0000), LONG_SIZE), (Lsn(0x200_2000), SHORT_SIZE)] {
            let header = PageHeader {
                info: FIRST_IS_CONTINUATION | if size == LONG_SIZE { LONG_HEADER } else { 0 },
                tli: 3,
                rem_len: 77,
                system_id: (size == LONG_SIZE).then_some(9),
            };
            let bytes = header.encode(PgMajor::V16, page);
            assert_eq!((bytes.len(), size_at(page)), (size, size));
            assert_eq!(PageHeader::parse(PgMajor::V16, page, &bytes), Ok(header));
            assert!(PageHeader::parse(PgMajor::V15, page, &bytes).is_err());
            let elsewhere = Lsn(page.0 + (1 << 32));
            let fault = PageHeaderFault::Address(page);
            assert_eq!(PageHeader::parse(PgMajor::V16, elsewhere, &bytes), Err(fault));
            assert!(PageHeader::parse(PgMajor::V16, page, &bytes[..size - 1]).is_err());
        }
    }
}
