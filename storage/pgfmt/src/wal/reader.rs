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
//! A record handed out borrows the bytes fed, or, when they came in several chunks, the decoder's one buffer in which it
//! was put together: reading allocates nothing for a record. A long record that crosses pages stays in its pieces.
//! Facts: `access/transam/xlogreader.c`, in particular the treatment of continuation records that were never
//! written and replaced (`XLP_FIRST_IS_OVERWRITE_CONTRECORD`).

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::panic))]

use std::ops::Range;

use bytes::{Buf, Bytes, BytesMut};
use treering_types::{Lsn, WAL_PAGE_SIZE, WAL_SEGMENT_SIZE};

use super::{
    error::{PageHeaderFault, WalError},
    page_header::{self, PageHeader},
    pieces::{RecordBytes, slices},
    record::{RECORD_HEADER_SIZE, RECORD_SIZE_MAX, RawRecord, RecordHeader, pieces_crc},
};
use crate::{
    le::{u32_at, u64_at},
    version::PgMajor,
};

/// Bytes kept for records across pages, however long the last one was or says it is.
const BUFFER_BYTES: usize = 64 * 1024;
/// A record from here on is left in pieces where it crosses pages: most of it is an image, which need not be joined.
const PIECES_MIN: u32 = 1024;
/// Pieces for which room is kept, however many the last record came in.
const PIECES_KEPT: usize = 1024;
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
    /// Bytes fed, of which the first `used` are consumed; the one after them is at `at`.
    input: Bytes,
    used: usize,
    at: Lsn,
    fed_to: Lsn,
    position: Lsn,
    /// Start of the last record handed out, if known.
    prev: Option<Lsn>,
    system_id: Option<u64>,
    page_tli: Option<u32>,
    /// A record that began on a page before and is not complete.
    partial: Option<Partial>,
    /// The bytes of a record that crosses pages or was complete before its filler came, unless they are in `pieces`.
    joined: Vec<u8>,
    /// Where the bytes of a record that crosses pages are in `input`, not empty, the first with the whole header.
    pieces: Vec<Range<usize>>,
    /// Start of a broken record that the next record must name.
    broken: Option<Lsn>,
    /// A complete record whose padding or filler is still to come.
    complete: Option<Complete>,
    failed: Option<WalError>,
}

/// A record that crosses a page boundary; what was read of it is in `joined` or in `pieces`.
#[derive(Debug)]
struct Partial {
    start: Lsn,
    /// Bytes still missing.
    left: u32,
}

/// A verified record.
#[derive(Debug)]
struct Complete {
    start: Lsn,
    end: Lsn,
    place: Place,
}

/// Where a record's bytes are.
#[derive(Debug)]
enum Place {
    Input(Range<usize>),
    Pieces,
    Joined,
}

/// What one step of the decoder came to.
enum Step {
    Again,
    NeedsInput,
    Found(Complete),
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
            used: 0,
            at: start,
            fed_to: start,
            position: start,
            prev: None,
            system_id: None,
            page_tli: None,
            partial: None,
            joined: Vec::new(),
            pieces: Vec::new(),
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
            let mut input = std::mem::take(&mut self.input);
            input.advance(std::mem::take(&mut self.used));
            // What was fed shared may be in use elsewhere: what is left of it moves to a buffer of our own.
            let input = input.try_into_mut();
            let mut input = input.unwrap_or_else(|shared| BytesMut::from(&shared[..]));
            input.extend_from_slice(bytes);
            self.input = input.freeze();
        }
    }

    /// As [`WalDecoder::feed`], without a copy if all that was fed before is consumed.
    pub fn feed_shared(&mut self, bytes: Bytes) {
        if !self.rest().is_empty() {
            return self.feed(&bytes);
        }
        self.fed_to = Lsn(self.fed_to.0.saturating_add(bytes.len() as u64));
        if self.failed.is_none() {
            (self.input, self.used) = (bytes, 0);
        }
    }

    /// Forgets the bytes fed, but for a copy of what is left of them on the last page: who shared them may use their memory again.
    pub fn let_go(&mut self) {
        if self.rest().len() <= WAL_PAGE_SIZE as usize && self.pieces.is_empty() {
            (self.input, self.used) = (Bytes::copy_from_slice(self.rest()), 0);
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
    pub fn next_record(&mut self) -> Result<Option<RawRecord<'_>>, WalError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let found = loop {
            match self.step() {
                Ok(Step::Again) => {}
                Ok(Step::NeedsInput) => {
                    self.join_pieces();
                    return Ok(None);
                }
                Ok(Step::Found(record)) => break record,
                Err(error) => {
                    self.failed = Some(error.clone());
                    (self.input, self.used) = (Bytes::new(), 0);
                    self.partial = None;
                    return Err(error);
                }
            }
        };
        let Complete { start, end, place } = found;
        self.position = end;
        self.prev = Some(start);
        let bytes = match place {
            Place::Pieces => RecordBytes::cut(&self.input, &self.pieces),
            Place::Input(_) | Place::Joined => self.front_at(&place).into(),
        };
        Ok(Some(RawRecord { start, end, bytes }))
    }

    /// The bytes of a record up to its first cut.
    fn front_at(&self, place: &Place) -> &[u8] {
        match place {
            Place::Input(range) => self.input.get(range.clone()).unwrap_or_default(),
            Place::Pieces => slices(&self.input, &self.pieces).next().unwrap_or_default(),
            Place::Joined => &self.joined,
        }
    }

    /// Where what was read of a record that crosses pages is.
    fn place_of_partial(&self) -> Place {
        if self.pieces.is_empty() { Place::Joined } else { Place::Pieces }
    }

    /// More input will come in the place of this: what is in pieces is put together.
    fn join_pieces(&mut self) {
        slices(&self.input, &self.pieces).for_each(|piece| self.joined.extend_from_slice(piece));
        self.pieces.clear();
    }

    /// Bytes fed that no record handed out took: the next record, unless a page begins here. Nothing in them is checked
    /// yet.
    pub fn upcoming(&self) -> &[u8] {
        self.rest()
    }

    /// Bytes fed and not consumed.
    fn rest(&self) -> &[u8] {
        self.input.get(self.used..).unwrap_or_default()
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
        self.used = self.used.saturating_add(count);
        self.at = self.at + count as u64;
    }

    fn skip_to_end(&mut self, mut complete: Complete) -> Step {
        let missing = complete.end.0.saturating_sub(self.at.0);
        let count = self.rest().len().min(usize::try_from(missing).unwrap_or(usize::MAX));
        self.consume(count);
        if self.at == complete.end {
            return Step::Found(complete);
        }
        if let Place::Input(range) = complete.place {
            self.joined.clear();
            self.pieces.clear();
            self.pieces.push(range);
        }
        complete.place = Place::Joined;
        self.join_pieces();
        self.complete = Some(complete);
        Step::NeedsInput
    }

    fn read_page_header(&mut self) -> Result<Step, WalError> {
        let page = self.at;
        let size = page_header::size_at(page);
        let Some(bytes) = self.rest().get(..size) else { return Ok(Step::NeedsInput) };
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
        // Those of a record that was handed out, or that its page called broken.
        self.pieces.clear();
        let (at, room) = (self.at, self.page_room());
        let visible = room.min(RECORD_HEADER_SIZE);
        let Some(head) = self.rest().get(..visible) else { return Ok(Step::NeedsInput) };
        let length = u32_at(head, 0).unwrap_or(0);
        if length == 0 && head.iter().all(|byte| *byte == 0) {
            return Err(WalError::EndOfWal { at });
        }
        if length < RECORD_HEADER_SIZE as u32 || length > RECORD_SIZE_MAX {
            return Err(WalError::Length { at, length });
        }
        let size = length as usize;
        if size > room {
            self.joined.clear();
            self.joined.shrink_to(BUFFER_BYTES);
            self.pieces.shrink_to(PIECES_KEPT);
            self.partial = Some(Partial { start: at, left: length });
            return Ok(Step::Again);
        }
        let header = self.check_header(at, head)?;
        if self.rest().len() < size {
            return Ok(Step::NeedsInput);
        }
        let begin = self.used;
        self.consume(size);
        self.finish_record(at, &header, Place::Input(begin..self.used))
    }

    fn continue_record(&mut self, mut partial: Partial) -> Result<Step, WalError> {
        let count = self.page_room().min(self.rest().len()).min(partial.left as usize);
        let had_header = self.partial_front().len() >= RECORD_HEADER_SIZE;
        let piece = self.used..self.used.saturating_add(count);
        let may_begin = count >= RECORD_HEADER_SIZE
            && partial.left >= PIECES_MIN
            && self.joined.is_empty()
            && self.broken.is_none();
        if may_begin || !self.pieces.is_empty() {
            self.pieces.extend((count > 0).then_some(piece));
        } else {
            self.joined.extend_from_slice(self.input.get(piece).unwrap_or_default());
        }
        partial.left = partial.left.saturating_sub(count as u32);
        self.consume(count);
        let front = self.partial_front();
        if !had_header && front.len() >= RECORD_HEADER_SIZE {
            self.check_header(partial.start, front)?;
        }
        if partial.left > 0 {
            self.partial = Some(partial);
            return Ok(if count == 0 { Step::NeedsInput } else { Step::Again });
        }
        let header = self.check_header(partial.start, front)?;
        self.finish_record(partial.start, &header, self.place_of_partial())
    }

    /// What was read of a record that crosses pages, up to its first cut.
    fn partial_front(&self) -> &[u8] {
        self.front_at(&self.place_of_partial())
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
        place: Place,
    ) -> Result<Step, WalError> {
        let bytes = self.front_at(&place);
        let more = match place {
            Place::Pieces => self.pieces.get(1..).unwrap_or_default(),
            Place::Input(_) | Place::Joined => &[],
        };
        if pieces_crc(bytes, slices(&self.input, more)) != header.crc {
            let (rmid, length) = (header.rmid, header.total_len);
            return Err(WalError::Checksum { at: start, rmid, length });
        }
        if let Some(broken) = self.broken
            && !overwrites(header, bytes, broken)
        {
            return Err(WalError::Overwrite { at: start, broken });
        }
        self.broken = None;
        let mut end = self.at.align_up();
        if header.is_switch() && end.segment_offset() != 0 {
            end = end.segment_start() + WAL_SEGMENT_SIZE;
        }
        Ok(self.skip_to_end(Complete { start, end, place }))
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
