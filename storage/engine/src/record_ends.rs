//! Which WAL positions are record ends: the value at a `RecordEnds` key, one per WAL page that holds any.
//!
//! A page owns the ends `e` with `page_start < e <= page_start + 8192`: an end exactly at a page boundary belongs to the
//! page before it. Later values of a page replace earlier ones and list at least the same ends.

use treering_types::{Key, Lsn, WAL_PAGE_SIZE};

use crate::binary::{Malformed, Put, Reader};

/// Record ends of one WAL page.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecordEnds {
    /// The last record end at or before the page's start; zero when unknown.
    pub before: Lsn,
    /// Ends in the page, rising.
    pub ends: Vec<Lsn>,
}

/// The record that ends at or before a position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Boundary {
    /// The greatest record end at or before the position asked for.
    pub end: Lsn,
    /// Where the record that ends there starts: `xl_prev` of the record that will follow.
    pub start: Lsn,
}

impl RecordEnds {
    /// The key that holds a record end.
    pub fn key_of(end: Lsn) -> Key {
        Key::record_ends(Lsn(end.0.saturating_sub(1)))
    }

    /// The stored form; ends are kept relative to the page that the first of them lies in.
    pub fn encode(&self) -> Vec<u8> {
        let page = self.page_start();
        let mut out = Vec::with_capacity(20 + 2 * self.ends.len());
        out.put_u64(self.before.0);
        out.put_u64(page.0);
        for end in &self.ends {
            let offset = end.bytes_since(page).and_then(|offset| u16::try_from(offset).ok());
            out.put_u16(offset.expect("record ends of one WAL page"));
        }
        out
    }

    fn page_start(&self) -> Lsn {
        self.ends.first().map_or(Lsn::INVALID, |end| Lsn(end.0.saturating_sub(1)).page_start())
    }

    /// # Errors
    /// What is wrong with the bytes.
    pub fn decode(bytes: &[u8]) -> Result<RecordEnds, &'static str> {
        decode(bytes).map_err(|Malformed(what)| what)
    }
}

fn decode(bytes: &[u8]) -> Result<RecordEnds, Malformed> {
    let mut reader = Reader::new(bytes);
    let before = Lsn(reader.u64()?);
    let page = Lsn(reader.u64()?);
    let count = bytes.len().saturating_sub(16) / 2;
    let mut ends = Vec::with_capacity(count);
    for _ in 0..count {
        let offset = u64::from(reader.u16()?);
        if offset == 0 || offset > WAL_PAGE_SIZE {
            return Err(Malformed("a record end lies outside its page"));
        }
        ends.push(Lsn(page.0.checked_add(offset).ok_or(Malformed("a record end overflows"))?));
    }
    reader.finish()?;
    if !ends.is_sorted_by(|a, b| a < b) {
        return Err(Malformed("record ends are out of order"));
    }
    Ok(RecordEnds { before, ends })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip() {
        let page = Lsn(0x20_0000);
        let value = RecordEnds { before: Lsn(0x1F_FFF0), ends: vec![page + 64, page + 8192] };
        assert_eq!(RecordEnds::decode(&value.encode()), Ok(value.clone()));
        assert_eq!(RecordEnds::key_of(page + 8192), RecordEnds::key_of(page + 64));
        assert_ne!(RecordEnds::key_of(page), RecordEnds::key_of(page + 64));
        assert!(RecordEnds::decode(&value.encode()[..17]).is_err());
        let none = RecordEnds { before: Lsn(8), ends: vec![] };
        assert_eq!(RecordEnds::decode(&none.encode()), Ok(none));
    }
}
