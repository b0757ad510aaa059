//! Raw WAL bytes to records, incrementally.
//!
//! A [`WalDecoder`] is fed contiguous raw WAL (page headers included) in chunks of any size and hands out
//! verified records. It promises:
//!
//! - The records depend on the bytes only, never on how they were cut into chunks.
//! - A record is handed out when everything up to its `end` has been fed, alignment padding and the filler after
//!   an XLOG SWITCH included: `position() <= fed_to()` always.
//! - A record handed out has a right CRC and, from the second on (or from the first when
//!   [`WalDecoder::with_prev`] was used), a right link to its predecessor.
//! - The first error is final: every later call repeats it. To go on, make a new decoder at
//!   [`WalDecoder::position`].
//! - Memory is bounded by the bytes fed and not yet handed out, whatever a header claims.
//!
//! Records within one page share the bytes fed or the decoder's copy of them; records across pages are put together by a
//! copy.
//! Facts: `access/transam/xlogreader.c`, in particular the treatment of continuation records that were never
//! written and replaced (`XLP_FIRST_IS_OVERWRITE_CONTRECORD`).

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::panic))]

use bytes::{Buf, Bytes, BytesMut};
use treering_types::{Lsn, WAL_PAGE_SIZE, WAL_SEGMENT_SIZE};

use super::{
    error::{PageHeaderFault, WalError},
    page_header::{self, PageHeader},
    record::{RECORD_HEADER_SIZE, RECORD_SIZE_MAX, RawRecord, RecordHeader, record_crc},
};
use crate::{
    le::{u32_at, u64_at},
    version::PgMajor,
};

/// Bytes allocated at first for a record across pages, however long it says it is.
const BUFFER_BYTES: usize = 64 * 1024;
/// `RM_MAX_BUILTIN_ID`, the same in 15 to 18; custom resource managers begin at 128.
const RMID_BUILTIN_MAX: u8 = 21;
const RMID_CUSTOM_MIN: u8 = 128;
/// Where the overwritten position sits in an OVERWRITE_CONTRECORD record: behind header and short data header.
const OVERWRITTEN_LSN_OFFSET: usize = RECORD_HEADER_SIZE + 2;
/// Positions above are refused, so that adding lengths cannot overflow.
const START_MAX: Lsn = Lsn(u64::MAX / 2);

/// Cuts raw WAL into records. See the module head for its promises.
#[derive(Debug)]
pub struct WalDecoder {
    major: PgMajor,
    /// Bytes fed and not consumed; the first is at `at`.
    input: Bytes,
    at: Lsn,
    fed_to: Lsn,
    position: Lsn,
    /// Start of the last record handed out, if known.
    prev: Option<Lsn>,
    system_id: Option<u64>,
    page_tli: Option<u32>,
    /// A record that began on a page before and is not complete.
    partial: Option<Partial>,
    /// Start of a broken record that the next record must name.
    broken: Option<Lsn>,
    /// A complete record whose padding or filler is still to come.
    complete: Option<RawRecord>,
    failed: Option<WalError>,
}

/// A record that crosses a page boundary, as far as it was read.
#[derive(Debug)]
struct Partial {
    start: Lsn,
    /// Bytes still missing.
    left: u32,
    bytes: Vec<u8>,
}

/// What one step of the decoder came to.
enum Step {
    Again,
    NeedsInput,
    Found(RawRecord),
}

impl WalDecoder {
    /// A decoder whose first byte fed is the one at `start`: a record's end or a record's first byte. (At a page
    /// start the page header is fed first.)
    pub fn new(major: PgMajor, start: Lsn) -> WalDecoder {
        let in_header = start.page_offset() != 0
            && start.page_offset() < page_header::size_at(start.page_start());
        let bad = start != start.align_up() || in_header || start > START_MAX;
        WalDecoder {
            major,
            input: Bytes::new(),
            at: start,
            fed_to: start,
            position: start,
            prev: None,
            system_id: None,
            page_tli: None,
            partial: None,
            broken: None,
            complete: None,
            failed: bad.then_some(WalError::BadStart { at: start }),
        }
    }

    /// Also checks that the first record points back to `prev`, the start of the record before.
    pub fn with_prev(mut self, prev: Lsn) -> WalDecoder {
        self.prev = Some(prev);
        self
    }

    /// Also checks the system identifier at each segment start.
    pub fn with_system_id(mut self, system_id: u64) -> WalDecoder {
        self.system_id = Some(system_id);
        self
    }

    /// Takes the raw bytes that follow those fed before.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.fed_to = Lsn(self.fed_to.0.saturating_add(bytes.len() as u64));
        if self.failed.is_none() {
            let input = std::mem::take(&mut self.input).try_into_mut();
            // Records that are still somewhere share the buffer: what is left of it moves to a new one.
            let mut input = input.unwrap_or_else(|shared| BytesMut::from(&shared[..]));
            input.extend_from_slice(bytes);
            self.input = input.freeze();
        }
    }

    /// As [`WalDecoder::feed`], without a copy if all that was fed before is consumed.
    pub fn feed_shared(&mut self, bytes: Bytes) {
        if !self.input.is_empty() {
            return self.feed(&bytes);
        }
        self.fed_to = Lsn(self.fed_to.0.saturating_add(bytes.len() as u64));
        if self.failed.is_none() {
            self.input = bytes;
        }
    }

    /// End of the last record handed out; at first the start.
    pub fn position(&self) -> Lsn {
        self.position
    }

    /// End of the bytes fed.
    pub fn fed_to(&self) -> Lsn {
        self.fed_to
    }

    /// Start of the last record handed out (the next record's `xl_prev`), if known.
    pub fn last_record_start(&self) -> Option<Lsn> {
        self.prev
    }

    /// The server timeline named by the last page header read.
    pub fn page_tli(&self) -> Option<u32> {
        self.page_tli
    }

    /// The next record, or `None` until more bytes are fed.
    ///
    /// # Errors
    /// [`WalError`]; final. [`WalError::EndOfWal`] means zeros where a record would start.
    pub fn next_record(&mut self) -> Result<Option<RawRecord>, WalError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        loop {
            match self.step() {
                Ok(Step::Again) => {}
                Ok(Step::NeedsInput) => return Ok(None),
                Ok(Step::Found(record)) => {
                    self.position = record.end;
                    self.prev = Some(record.start);
                    return Ok(Some(record));
                }
                Err(error) => {
                    self.failed = Some(error.clone());
                    self.input = Bytes::new();
                    self.partial = None;
                    return Err(error);
                }
            }
        }
    }

    fn step(&mut self) -> Result<Step, WalError> {
        if let Some(complete) = self.complete.take() {
            return Ok(self.skip_to_end(complete));
        }
        if self.at.page_offset() == 0 {
            return self.read_page_header();
        }
        match self.partial.take() {
            Some(partial) => self.continue_record(partial),
            None => self.begin_record(),
        }
    }

    /// Consumes `count` bytes of input, of which there are as many.
    fn consume(&mut self, count: usize) {
        self.input.advance(count);
        self.at = self.at + count as u64;
    }

    fn skip_to_end(&mut self, complete: RawRecord) -> Step {
        let missing = complete.end.0.saturating_sub(self.at.0);
        let count = self.input.len().min(usize::try_from(missing).unwrap_or(usize::MAX));
        self.consume(count);
        if self.at == complete.end {
            return Step::Found(complete);
        }
        self.complete = Some(complete);
        Step::NeedsInput
    }

    fn read_page_header(&mut self) -> Result<Step, WalError> {
        let page = self.at;
        let size = page_header::size_at(page);
        let Some(bytes) = self.input.get(..size) else { return Ok(Step::NeedsInput) };
        if bytes.iter().all(|byte| *byte == 0) {
            let at = self.partial.as_ref().map_or(page, |partial| partial.start);
            return Err(WalError::EndOfWal { at });
        }
        let header = PageHeader::parse(self.major, page, bytes)
            .and_then(|header| self.check_system_id(header))
            .map_err(|fault| WalError::PageHeader { at: page, fault })?;
        self.check_continuation(page, &header)?;
        self.page_tli = Some(header.tli);
        self.consume(size);
        Ok(Step::Again)
    }

    fn check_system_id(&self, header: PageHeader) -> Result<PageHeader, PageHeaderFault> {
        match (self.system_id, header.system_id) {
            (Some(expected), Some(found)) if expected != found => {
                Err(PageHeaderFault::SystemId { found, expected })
            }
            _ => Ok(header),
        }
    }

    /// Whether the page goes on as the record in hand needs. Drops a record that the page says is broken.
    fn check_continuation(&mut self, page: Lsn, header: &PageHeader) -> Result<(), WalError> {
        let overwrites = header.overwrites_a_record();
        if let Some(partial) = self.partial.take_if(|_| overwrites) {
            self.broken = Some(partial.start);
        }
        match &self.partial {
            None if header.continues_a_record() => Err(WalError::InsideRecord { page }),
            None => Ok(()),
            Some(partial) => {
                let announced = if header.continues_a_record() { header.rem_len } else { 0 };
                if announced == partial.left {
                    return Ok(());
                }
                let (start, left) = (partial.start, partial.left);
                Err(WalError::Continuation { start, page, left, announced })
            }
        }
    }

    /// Bytes between `at` and the end of its page.
    fn page_room(&self) -> usize {
        WAL_PAGE_SIZE as usize - self.at.page_offset()
    }

    fn begin_record(&mut self) -> Result<Step, WalError> {
        let (at, room) = (self.at, self.page_room());
        let visible = room.min(RECORD_HEADER_SIZE);
        let Some(head) = self.input.get(..visible) else { return Ok(Step::NeedsInput) };
        let length = u32_at(head, 0).unwrap_or(0);
        if length == 0 && head.iter().all(|byte| *byte == 0) {
            return Err(WalError::EndOfWal { at });
        }
        if length < RECORD_HEADER_SIZE as u32 || length > RECORD_SIZE_MAX {
            return Err(WalError::Length { at, length });
        }
        let size = length as usize;
        if size > room {
            let bytes = Vec::with_capacity(size.min(BUFFER_BYTES));
            self.partial = Some(Partial { start: at, left: length, bytes });
            return Ok(Step::Again);
        }
        let header = self.check_header(at, head)?;
        if self.input.len() < size {
            return Ok(Step::NeedsInput);
        }
        let bytes = self.input.split_to(size);
        self.at = at + size as u64;
        self.finish_record(at, &header, bytes)
    }

    fn continue_record(&mut self, mut partial: Partial) -> Result<Step, WalError> {
        let count = self.page_room().min(self.input.len()).min(partial.left as usize);
        let had_header = partial.bytes.len() >= RECORD_HEADER_SIZE;
        partial.bytes.extend_from_slice(self.input.get(..count).unwrap_or(&[]));
        partial.left = partial.left.saturating_sub(count as u32);
        self.consume(count);
        if !had_header && partial.bytes.len() >= RECORD_HEADER_SIZE {
            self.check_header(partial.start, &partial.bytes)?;
        }
        if partial.left > 0 {
            self.partial = Some(partial);
            return Ok(if count == 0 { Step::NeedsInput } else { Step::Again });
        }
        let header = self.check_header(partial.start, &partial.bytes)?;
        self.finish_record(partial.start, &header, partial.bytes.into())
    }

    /// Checks what a header can say before the CRC is known. `head` has at least 24 bytes.
    fn check_header(&self, at: Lsn, head: &[u8]) -> Result<RecordHeader, WalError> {
        let header = RecordHeader::parse(head).ok_or(WalError::Length { at, length: 0 })?;
        let rmid = header.rmid;
        if rmid > RMID_BUILTIN_MAX && rmid < RMID_CUSTOM_MIN {
            return Err(WalError::ResourceManager { at, rmid });
        }
        let linked = match self.prev {
            Some(prev) => header.prev == prev,
            None => header.prev < at,
        };
        if !linked {
            return Err(WalError::PrevLink { at, expected: self.prev, found: header.prev });
        }
        Ok(header)
    }

    /// The record's bytes are there and consumed: checks them, then skips to its end.
    fn finish_record(
        &mut self,
        start: Lsn,
        header: &RecordHeader,
        bytes: Bytes,
    ) -> Result<Step, WalError> {
        if record_crc(&bytes) != header.crc {
            let (rmid, length) = (header.rmid, header.total_len);
            return Err(WalError::Checksum { at: start, rmid, length });
        }
        if let Some(broken) = self.broken.take()
            && !overwrites(header, &bytes, broken)
        {
            return Err(WalError::Overwrite { at: start, broken });
        }
        let mut end = self.at.align_up();
        if header.is_switch() && end.segment_offset() != 0 {
            end = end.segment_start() + WAL_SEGMENT_SIZE;
        }
        Ok(self.skip_to_end(RawRecord { start, end, bytes }))
    }
}

/// True for an OVERWRITE_CONTRECORD record (`xl_overwrite_contrecord`) that names `broken`.
fn overwrites(header: &RecordHeader, bytes: &[u8], broken: Lsn) -> bool {
    header.rmid == 0
        && header.info & 0xF0 == 0xD0
        && u64_at(bytes, OVERWRITTEN_LSN_OFFSET) == Some(broken.0)
}

/// Where the first record boundary at or after `start` is, a page start (usually a segment start): the place to
/// start a [`WalDecoder`] at when nothing but the raw bytes is known. `bytes` begins at `start`.
///
/// `Ok(None)`: the record that `start` lies in does not end within `bytes`.
///
/// # Errors
/// [`WalError::BadStart`] if `start` is no page start, [`WalError::EndOfWal`] for zeros,
/// [`WalError::PageHeader`].
pub fn find_first_record(
    major: PgMajor,
    start: Lsn,
    bytes: &[u8],
) -> Result<Option<Lsn>, WalError> {
    if start.page_offset() != 0 || start > START_MAX {
        return Err(WalError::BadStart { at: start });
    }
    let pages = bytes.chunks(WAL_PAGE_SIZE as usize);
    for (index, bytes) in pages.enumerate() {
        let page = start + index as u64 * WAL_PAGE_SIZE;
        let size = page_header::size_at(page);
        let Some(head) = bytes.get(..size) else { return Ok(None) };
        if head.iter().all(|byte| *byte == 0) {
            return Err(WalError::EndOfWal { at: page });
        }
        let header = PageHeader::parse(major, page, head)
            .map_err(|fault| WalError::PageHeader { at: page, fault })?;
        if !header.continues_a_record() || header.overwrites_a_record() {
            return Ok(Some(page));
        }
        let end = Lsn(page.0 + size as u64 + u64::from(header.rem_len)).align_up();
        if end <= page + WAL_PAGE_SIZE {
            return Ok(Some(end));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests;
