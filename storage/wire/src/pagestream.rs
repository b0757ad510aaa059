//! The page service: requests and responses that travel as CopyData after `pagestream_v3 TENANT TIMELINE`.
//!
//! The layout of the published pagestream protocol, version 3: a type byte, a header of request id, request LSN and
//! not-modified-since LSN, then the type's fields, all big endian. A response repeats its request, so that a pipelining client
//! checks what it got. Batching is pipelining: requests follow each other without waiting, answers come in order.

use bytes::{BufMut, Bytes, BytesMut};
use treering_types::{Fork, Lsn, PAGE_SIZE, RelTag};

use crate::{WireError, cursor::Cursor};

const REQUEST: &str = "page request";
const RESPONSE: &str = "page response";

/// In front of every request and, repeated, every response.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// Chosen by the client; comes back.
    pub request_id: u64,
    /// The page as of this position; [`Lsn::MAX`]: the newest.
    pub lsn: Lsn,
    /// The client's word that the page did not change after this and up to `lsn`: the server need only have ingested this much.
    pub not_modified_since: Lsn,
}

/// What is asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Question {
    /// Does the fork exist?
    Exists(RelTag),
    /// How many blocks has it?
    Blocks(RelTag),
    /// One page.
    Page { rel: RelTag, block: u32 },
    /// Bytes in all main forks of a database.
    DatabaseSize { database: u32 },
    /// A whole SLRU segment. `kind`: 0 `pg_xact`, 1 multixact members, 2 multixact offsets, 3 (ours) `pg_commit_ts`.
    SlruSegment { kind: u8, segment: u32 },
}

/// One request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Request {
    pub header: Header,
    pub question: Question,
}

/// One response.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Response {
    pub header: Header,
    pub answer: Answer,
}

/// What is answered, with the question repeated.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answer {
    Exists {
        rel: RelTag,
        exists: bool,
    },
    Blocks {
        rel: RelTag,
        blocks: u32,
    },
    /// `page` is [`PAGE_SIZE`] bytes.
    Page {
        rel: RelTag,
        block: u32,
        page: Bytes,
    },
    /// A sentence; the request failed, the stream goes on.
    Error {
        message: String,
    },
    DatabaseSize {
        database: u32,
        bytes: i64,
    },
    /// `pages` is a whole number of [`PAGE_SIZE`] pages, at most 32.
    SlruSegment {
        kind: u8,
        segment: u32,
        pages: Bytes,
    },
}

const SLRU_SEGMENT_PAGES: usize = 32;

/// The type byte of [`put_core`], ours: far from the published ones.
const CORE: u8 = 200;

/// Appends a payload that is no request and has no answer: the core that who asks runs on, as the next requests are sent. Only for
/// a server on the same host; whoever asks from elsewhere says nothing.
pub fn put_core(out: &mut BytesMut, core: u32) {
    out.put_u8(CORE);
    out.put_u32(core);
}

/// The core that a payload names, if it is one of [`put_core`].
pub fn core(payload: &[u8]) -> Option<u32> {
    let (tag, core) = payload.split_first()?;
    (*tag == CORE).then(|| core.try_into().ok().map(u32::from_be_bytes))?
}

impl Request {
    /// Reads the payload of a CopyData.
    ///
    /// # Errors
    /// Another type, an unknown fork, or the wrong size.
    pub fn parse(payload: Bytes) -> Result<Request, WireError> {
        let mut cursor = Cursor::new(payload, REQUEST);
        let tag = cursor.u8()?;
        let header = Header::parse(&mut cursor)?;
        let question = match tag {
            0 => Question::Exists(rel(&mut cursor)?),
            1 => Question::Blocks(rel(&mut cursor)?),
            2 => Question::Page { rel: rel(&mut cursor)?, block: cursor.u32()? },
            3 => Question::DatabaseSize { database: cursor.u32()? },
            4 => Question::SlruSegment { kind: cursor.u8()?, segment: cursor.u32()? },
            tag => return Err(WireError::UnknownTag { what: REQUEST, tag }),
        };
        cursor.end().map(|()| Request { header, question })
    }

    /// Appends the payload.
    pub fn encode(&self, out: &mut BytesMut) {
        let header = self.header;
        match self.question {
            Question::Exists(rel) => {
                header.put(out, 0);
                put_rel(out, rel);
            }
            Question::Blocks(rel) => {
                header.put(out, 1);
                put_rel(out, rel);
            }
            Question::Page { rel, block } => {
                header.put(out, 2);
                put_rel(out, rel);
                out.put_u32(block);
            }
            Question::DatabaseSize { database } => {
                header.put(out, 3);
                out.put_u32(database);
            }
            Question::SlruSegment { kind, segment } => {
                header.put(out, 4);
                out.put_u8(kind);
                out.put_u32(segment);
            }
        }
    }
}

impl Response {
    /// Reads the payload of a CopyData; page bytes share its memory.
    ///
    /// # Errors
    /// Another type, an unknown fork, or the wrong size.
    pub fn parse(payload: Bytes) -> Result<Response, WireError> {
        let mut cursor = Cursor::new(payload, RESPONSE);
        let tag = cursor.u8()?;
        let header = Header::parse(&mut cursor)?;
        let answer = match tag {
            100 => Answer::Exists { rel: rel(&mut cursor)?, exists: cursor.u8()? != 0 },
            101 => Answer::Blocks { rel: rel(&mut cursor)?, blocks: cursor.u32()? },
            102 => Answer::Page {
                rel: rel(&mut cursor)?,
                block: cursor.u32()?,
                page: cursor.take(PAGE_SIZE)?,
            },
            103 => {
                let text = cursor.cstr()?;
                Answer::Error { message: String::from_utf8_lossy(&text).into_owned() }
            }
            104 => Answer::DatabaseSize { database: cursor.u32()?, bytes: cursor.i64()? },
            105 => slru_segment(&mut cursor)?,
            tag => return Err(WireError::UnknownTag { what: RESPONSE, tag }),
        };
        cursor.end().map(|()| Response { header, answer })
    }

    /// Appends the payload.
    pub fn encode(&self, out: &mut BytesMut) {
        let header = self.header;
        match &self.answer {
            Answer::Exists { rel, exists } => {
                header.put(out, 100);
                put_rel(out, *rel);
                out.put_u8((*exists).into());
            }
            Answer::Blocks { rel, blocks } => {
                header.put(out, 101);
                put_rel(out, *rel);
                out.put_u32(*blocks);
            }
            Answer::Page { rel, block, page } => put_page(out, header, *rel, *block, page),
            Answer::Error { message } => {
                header.put(out, 103);
                out.put_slice(message.replace('\0', "\u{fffd}").as_bytes());
                out.put_u8(0);
            }
            Answer::DatabaseSize { database, bytes } => {
                header.put(out, 104);
                out.put_u32(*database);
                out.put_i64(*bytes);
            }
            Answer::SlruSegment { kind, segment, pages } => {
                header.put(out, 105);
                out.put_u8(*kind);
                out.put_u32(*segment);
                out.put_u32((pages.len() / PAGE_SIZE) as u32);
                out.put_slice(pages);
            }
        }
    }
}

/// Appends a page response from borrowed bytes: the server's hot path.
pub fn put_page(out: &mut BytesMut, header: Header, rel: RelTag, block: u32, page: &[u8]) {
    header.put(out, 102);
    put_rel(out, rel);
    out.put_u32(block);
    out.put_slice(page);
}

impl Header {
    fn parse(cursor: &mut Cursor) -> Result<Header, WireError> {
        Ok(Header {
            request_id: cursor.u64()?,
            lsn: Lsn(cursor.u64()?),
            not_modified_since: Lsn(cursor.u64()?),
        })
    }

    fn put(self, out: &mut BytesMut, tag: u8) {
        out.put_u8(tag);
        out.put_u64(self.request_id);
        out.put_u64(self.lsn.0);
        out.put_u64(self.not_modified_since.0);
    }
}

fn rel(cursor: &mut Cursor) -> Result<RelTag, WireError> {
    let (tablespace, database, relation) = (cursor.u32()?, cursor.u32()?, cursor.u32()?);
    let number = cursor.u8()?;
    let fork = Fork::try_from(number)
        .map_err(|_| WireError::BadValue { what: "relation fork", value: number.into() })?;
    Ok(RelTag { tablespace, database, relation, fork })
}

fn put_rel(out: &mut BytesMut, rel: RelTag) {
    out.put_u32(rel.tablespace);
    out.put_u32(rel.database);
    out.put_u32(rel.relation);
    out.put_u8(rel.fork as u8);
}

fn slru_segment(cursor: &mut Cursor) -> Result<Answer, WireError> {
    let (kind, segment, count) = (cursor.u8()?, cursor.u32()?, cursor.u32()?);
    if count as usize > SLRU_SEGMENT_PAGES {
        return Err(WireError::BadValue { what: "SLRU segment", value: count.into() });
    }
    let pages = cursor.take((count as usize).saturating_mul(PAGE_SIZE))?;
    Ok(Answer::SlruSegment { kind, segment, pages })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const REL: RelTag =
        RelTag { tablespace: 1663, database: 5, relation: 16384, fork: Fork::VisibilityMap };
    const HEADER: Header =
        Header { request_id: 9, lsn: Lsn::MAX, not_modified_since: Lsn(0x16B3748) };

    #[test]
    fn requests_round_trip() {
        for question in [
            Question::Exists(REL),
            Question::Blocks(REL),
            Question::Page { rel: REL, block: 77 },
            Question::DatabaseSize { database: 5 },
            Question::SlruSegment { kind: 2, segment: 3 },
        ] {
            let request = Request { header: HEADER, question };
            let mut out = BytesMut::new();
            request.encode(&mut out);
            let bytes = out.freeze();
            for cut in 0..bytes.len() {
                assert!(Request::parse(bytes.slice(..cut)).is_err());
            }
            assert_eq!(Request::parse(bytes), Ok(request));
        }
    }

    #[test]
    fn a_core_is_no_request() {
        let mut out = BytesMut::new();
        put_core(&mut out, 0x0102_0304);
        assert_eq!(core(&out), Some(0x0102_0304));
        for cut in 0..out.len() {
            assert_eq!(core(&out[..cut]), None);
        }
        assert!(Request::parse(out.clone().freeze()).is_err());
        out.put_u8(0);
        assert_eq!(core(&out), None, "more than that");
        let request = Request { header: HEADER, question: Question::DatabaseSize { database: 5 } };
        let mut out = BytesMut::new();
        request.encode(&mut out);
        assert_eq!(core(&out), None);
    }

    #[test]
    fn responses_round_trip() {
        for answer in [
            Answer::Exists { rel: REL, exists: true },
            Answer::Blocks { rel: REL, blocks: 4 },
            Answer::Page { rel: REL, block: 77, page: vec![7; PAGE_SIZE].into() },
            Answer::Error { message: "no such page".into() },
            Answer::DatabaseSize { database: 5, bytes: 1 << 40 },
            Answer::SlruSegment { kind: 0, segment: 1, pages: vec![1; 2 * PAGE_SIZE].into() },
        ] {
            let response = Response { header: HEADER, answer };
            let mut out = BytesMut::new();
            response.encode(&mut out);
            assert_eq!(Response::parse(out.freeze()), Ok(response));
        }
    }

    #[test]
    fn a_request_byte_for_byte() {
        let mut out = BytesMut::new();
        Request { header: HEADER, question: Question::Page { rel: REL, block: 77 } }
            .encode(&mut out);
        assert_eq!(
            &out[..],
            b"\x02\0\0\0\0\0\0\0\x09\xff\xff\xff\xff\xff\xff\xff\xff\0\0\0\0\x01\x6b\x37\x48\
              \0\0\x06\x7f\0\0\0\x05\0\0\x40\0\x02\0\0\0\x4d"
        );
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic(
            tag in prop::sample::select(vec![0u8, 1, 2, 3, 4, 5, 100, 101, 102, 103, 104, 105]),
            mut bytes in prop::collection::vec(any::<u8>(), 0..80),
        ) {
            bytes.insert(0, tag);
            let bytes = Bytes::from(bytes);
            let _ = Request::parse(bytes.clone());
            let _ = Response::parse(bytes);
        }
    }
}
