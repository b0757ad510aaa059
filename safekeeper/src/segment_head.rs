//! The begin of a segment that was never written here.
//!
//! A log begins somewhere in a segment: where its branch parted from the parent, or, once what came before has been
//! removed, where it goes on. Nothing is stored of the bytes in front. Whoever reads them gets zeros, dressed as the
//! tail of one long record that began in an earlier segment and ends where the log begins: stock tools that read a
//! segment from its first page (`XLogFindNextRecord` in `xlogreader.c`) skip it, and find the first real record.

use bytes::{BufMut, BytesMut};
use treering_fs::File;
use treering_pgfmt::{
    version::PgMajor,
    wal::{encode, page_header},
};
use treering_types::{Lsn, WAL_PAGE_SIZE};

use crate::{control_file::Identity, error::StoreError, wal_store::pg_major};

/// The bytes from the begin of `until`'s segment to `until`, a record end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SegmentHead {
    major: PgMajor,
    pg_tli: u32,
    system_id: u64,
    until: Lsn,
}

impl SegmentHead {
    pub fn new(identity: &Identity, until: Lsn) -> Result<SegmentHead, StoreError> {
        let major = pg_major(identity.pg_major)?;
        let (pg_tli, system_id) = (identity.pg_tli, identity.system_id);
        Ok(SegmentHead { major, pg_tli, system_id, until })
    }

    pub fn pg_tli(&self) -> u32 {
        self.pg_tli
    }

    /// Where the log begins.
    pub fn until(&self) -> Lsn {
        self.until
    }

    /// The same in front of another position.
    pub fn before(self, until: Lsn) -> SegmentHead {
        SegmentHead { until, ..self }
    }

    /// True for positions in the segment and in front of the log.
    pub fn covers(&self, lsn: Lsn) -> bool {
        self.until.segment_start() <= lsn && lsn < self.until
    }

    /// Appends `from..to`, both within the head.
    pub fn read(&self, from: Lsn, to: Lsn, out: &mut BytesMut) {
        let start = out.len();
        out.put_bytes(0, (to.0 - from.0) as usize);
        let target = &mut out[start..];
        let mut page = from.page_start();
        while page < to {
            let header = self.header(page);
            let (begin, end) = (page.max(from), (page + header.len() as u64).min(to));
            if begin < end {
                let source = &header[(begin.0 - page.0) as usize..(end.0 - page.0) as usize];
                let at = (begin.0 - from.0) as usize;
                target[at..at + source.len()].copy_from_slice(source);
            }
            page = page + WAL_PAGE_SIZE;
        }
    }

    /// The header of a page within the head: so much is left of the long record.
    fn header(&self, page: Lsn) -> Vec<u8> {
        let bytes = self.until.0 - page.0;
        let short_headers = bytes.div_ceil(WAL_PAGE_SIZE) * page_header::SHORT_SIZE as u64;
        let longer = (page_header::size_at(page) - page_header::SHORT_SIZE) as u64;
        let left = bytes.saturating_sub(short_headers + longer);
        let info = page_header::FIRST_IS_CONTINUATION;
        encode::page_header(self.major, self.pg_tli, page, self.system_id, info, left as u32)
    }

    /// Writes the two headers that stock tools look for before they start in the middle of a segment: of its first
    /// page, which says what kind of segment it is, and of the page on which the log begins. The rest stays a hole.
    pub fn mark(&self, file: &dyn File) -> std::io::Result<()> {
        let mut pages = vec![self.until.segment_start(), self.until.page_start()];
        pages.dedup();
        for page in pages.into_iter().filter(|page| *page < self.until) {
            file.write_all_at(&self.header(page), page.segment_offset())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use treering_pgfmt::wal::reader::find_first_record;
    use treering_types::{TenantId, TimelineId, WAL_SEGMENT_SIZE};

    use super::*;

    const SEG: u64 = WAL_SEGMENT_SIZE;

    fn head(until: u64) -> SegmentHead {
        let identity = Identity {
            tenant: TenantId([0; 16]),
            timeline: TimelineId([0; 16]),
            system_id: 77,
            pg_major: 15,
            pg_tli: 3,
            pg_ancestors: Vec::new(),
        };
        SegmentHead::new(&identity, Lsn(until)).unwrap()
    }

    fn read(head: &SegmentHead, from: u64, to: u64) -> Vec<u8> {
        let mut out = BytesMut::new();
        head.read(Lsn(from), Lsn(to), &mut out);
        out.to_vec()
    }

    /// What versions before wrote into the file, page by page from the last.
    fn as_once_written(until: Lsn) -> Vec<u8> {
        let pages = until.segment_offset().div_ceil(WAL_PAGE_SIZE);
        let page_at = |index| until.segment_start() + index * WAL_PAGE_SIZE;
        let mut bytes = vec![0; until.segment_offset() as usize];
        let mut left = 0;
        for page in (0..pages).rev().map(page_at) {
            let size = page_header::size_at(page) as u64;
            left += until.0.min(page.0 + WAL_PAGE_SIZE) - page.0 - size;
            let info = page_header::FIRST_IS_CONTINUATION;
            let header = encode::page_header(PgMajor::V15, 3, page, 77, info, left as u32);
            let offset = page.segment_offset() as usize;
            bytes[offset..offset + header.len()].copy_from_slice(&header);
        }
        bytes
    }

    #[test]
    fn it_leads_to_the_start_and_is_what_was_once_written() {
        for offset in [40 + 8, 3 * 8192 - 8, 3 * 8192, 3 * 8192 + 24 + 8, SEG - 8] {
            let head = head(SEG + offset);
            let bytes = read(&head, SEG, SEG + offset);
            assert_eq!(bytes, as_once_written(Lsn(SEG + offset)));
            let mut padded = bytes.clone();
            padded.resize((offset as usize).next_multiple_of(8192), 0);
            let found = find_first_record(PgMajor::V15, Lsn(SEG), &padded).unwrap();
            assert_eq!(found, Some(Lsn(SEG + offset)));
        }
        assert!(!head(SEG).covers(Lsn(SEG)) && !head(SEG).covers(Lsn(SEG - 1)));
        assert!(head(SEG + 48).covers(Lsn(SEG)) && !head(SEG + 48).covers(Lsn(SEG + 48)));
    }

    #[test]
    fn any_piece_of_it_is_a_piece_of_the_whole() {
        let head = head(SEG + 3 * 8192 + 512);
        let whole = read(&head, SEG, SEG + 3 * 8192 + 512);
        for from in [0, 1, 39, 40, 41, 8191, 8192, 8195, 8216, 3 * 8192 + 5] {
            for to in [2, 40, 8192, 8200, 16_384, 3 * 8192 + 512] {
                if from <= to {
                    let (start, end) = (SEG + from as u64, SEG + to as u64);
                    assert_eq!(read(&head, start, end), whole[from..to], "{from}..{to}");
                }
            }
        }
    }
}
