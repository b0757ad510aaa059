//! Where records end in raw WAL, found in constant memory.
//!
//! A [`RecordEnds`] is fed contiguous raw WAL (page headers included) in pieces of any size. It keeps no record, only what its checksum
//! has come to, so it can be copied at any place and each copy go on by itself. What records say is none of its business: whole is one whose length,
//! link to its predecessor and CRC are right (`access/transam/xlogreader.c`), whatever its resource manager and however long.

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::panic))]

use treering_types::{Lsn, WAL_PAGE_SIZE, WAL_SEGMENT_SIZE};

use super::{
    page_header,
    record::{RECORD_HEADER_SIZE, RecordHeader},
};
use crate::crc;

/// What lies at a position is no whole record, or none any more.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("no whole record at {at}")]
pub struct NoRecord {
    pub at: Lsn,
}

/// See the module's head.
#[derive(Clone, Copy, Debug)]
pub struct RecordEnds {
    /// What is fed next.
    at: Lsn,
    position: Lsn,
    /// Start of the last whole record, if known.
    last: Option<Lsn>,
    state: State,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Between,
    Header {
        start: Lsn,
        bytes: [u8; RECORD_HEADER_SIZE],
        count: usize,
    },
    Body {
        start: Lsn,
        header: [u8; RECORD_HEADER_SIZE],
        left: u64,
        crc: u32,
    },
    /// Behind an XLOG SWITCH, to the end of the segment.
    Filler,
}

impl RecordEnds {
    /// From a record's end on.
    pub fn from(end: Lsn) -> RecordEnds {
        RecordEnds { at: end, position: end, last: None, state: State::Between }
    }

    /// The end of the last whole record: a multiple of 8, behind an XLOG SWITCH the next segment's start.
    pub fn position(&self) -> Lsn {
        self.position
    }

    /// Everything fed.
    pub fn fed_to(&self) -> Lsn {
        self.at
    }

    /// The rest of the segment is filler: nothing in it has to be fed.
    pub fn skip_filler(&mut self) -> bool {
        let is_filler = matches!(self.state, State::Filler);
        if is_filler {
            (self.at, self.state) = (self.position, State::Between);
        }
        is_filler
    }

    /// # Errors
    /// Where a record should begin or goes on is none. What is fed after that is of no use.
    pub fn feed(&mut self, mut bytes: &[u8]) -> Result<(), NoRecord> {
        while !bytes.is_empty() {
            let took = self.take(bytes)?.min(bytes.len());
            self.at = self.at + took as u64;
            bytes = bytes.get(took..).unwrap_or(&[]);
        }
        Ok(())
    }

    /// Takes the first of these bytes, and says how many.
    fn take(&mut self, bytes: &[u8]) -> Result<usize, NoRecord> {
        if matches!(self.state, State::Filler) {
            if self.at < self.position {
                return Ok(self.position.0.saturating_sub(self.at.0) as usize);
            }
            self.state = State::Between;
        }
        let offset = self.at.page_offset();
        let header = page_header::size_at(self.at.page_start());
        if offset < header {
            return Ok(header - offset);
        }
        if matches!(self.state, State::Between) && !self.at.0.is_multiple_of(8) {
            return Ok(8 - (self.at.0 % 8) as usize);
        }
        let on_page = WAL_PAGE_SIZE as usize - offset;
        let here = bytes.get(..on_page).unwrap_or(bytes);
        match self.state {
            State::Between => {
                let (start, bytes) = (self.at, [0; RECORD_HEADER_SIZE]);
                self.state = State::Header { start, bytes, count: 0 };
                Ok(0)
            }
            State::Header { start, bytes: mut header, count } => {
                let missing = header.get_mut(count..).unwrap_or_default();
                let took = missing.len().min(here.len());
                missing.iter_mut().zip(here).for_each(|(to, from)| *to = *from);
                let count = count + took;
                self.state = State::Header { start, bytes: header, count };
                if count == RECORD_HEADER_SIZE {
                    self.begin(start, header, self.at + took as u64)?;
                }
                Ok(took)
            }
            State::Body { start, header, left, crc } => {
                let took = here.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                let crc = crc::append(crc, here.get(..took).unwrap_or(here));
                let left = left - took as u64;
                self.state = State::Body { start, header, left, crc };
                if left == 0 {
                    self.end(start, header, crc, self.at + took as u64)?;
                }
                Ok(took)
            }
            State::Filler => Ok(0),
        }
    }

    fn begin(
        &mut self,
        start: Lsn,
        bytes: [u8; RECORD_HEADER_SIZE],
        header_end: Lsn,
    ) -> Result<(), NoRecord> {
        let no_record = NoRecord { at: start };
        let header = RecordHeader::parse(&bytes).ok_or(no_record)?;
        let left = u64::from(header.total_len).checked_sub(RECORD_HEADER_SIZE as u64);
        let left = left.ok_or(no_record)?;
        if self.last.is_some_and(|last| last != header.prev) {
            return Err(no_record);
        }
        self.state = State::Body { start, header: bytes, left, crc: 0 };
        match left {
            0 => self.end(start, bytes, 0, header_end),
            _ => Ok(()),
        }
    }

    fn end(
        &mut self,
        start: Lsn,
        bytes: [u8; RECORD_HEADER_SIZE],
        crc: u32,
        end: Lsn,
    ) -> Result<(), NoRecord> {
        let no_record = NoRecord { at: start };
        let header = RecordHeader::parse(&bytes).ok_or(no_record)?;
        let head = bytes.get(..RECORD_HEADER_SIZE - 4).unwrap_or(&[]);
        if crc::append(crc, head) != header.crc {
            return Err(no_record);
        }
        self.last = Some(start);
        (self.position, self.state) = match header.is_switch() {
            // One that ends with the segment has no filler.
            true => (Lsn(end.0.next_multiple_of(WAL_SEGMENT_SIZE)), State::Filler),
            false => (end.align_up(), State::Between),
        };
        Ok(())
    }
}

#[cfg(test)]
mod tests;
