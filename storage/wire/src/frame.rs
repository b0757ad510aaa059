//! Typed messages: one tag byte, a 32-bit length that counts itself but not the tag, a body
//! (Postgres documentation, "Message Formats"). The same in both directions after start-up.
//!
//! Two readers: [`next_frame`] hands out whole messages for those who look inside; [`Scanner`] only follows the
//! boundaries through slices of any size, for those who pass bytes on.

use bytes::{Buf, Bytes, BytesMut};

use crate::WireError;

/// Bytes of tag and length.
pub const HEADER_SIZE: usize = 5;

/// The most a body may hold where the peer is one of us or a stock client of ours: `PQ_LARGE_MESSAGE_LIMIT` is 1 GiB,
/// nothing we read comes near; WAL messages of stock senders carry at most 128 KiB.
pub const BODY_BYTES_MAX: usize = 16 * 1024 * 1024;

/// One message. `body` shares the read buffer's memory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Frame {
    pub tag: u8,
    pub body: Bytes,
}

/// The start of a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    pub tag: u8,
    /// Bytes after the header.
    pub body_bytes: u32,
}

impl Header {
    /// Reads the first [`HEADER_SIZE`] bytes; `None` when there are fewer.
    ///
    /// # Errors
    /// [`WireError::BadLength`] for a length below 4.
    #[inline]
    pub fn parse(input: &[u8]) -> Result<Option<Header>, WireError> {
        let [tag, a, b, c, d, ..] = *input else { return Ok(None) };
        let length = u32::from_be_bytes([a, b, c, d]);
        match length.checked_sub(4) {
            Some(body_bytes) if length <= i32::MAX as u32 => Ok(Some(Header { tag, body_bytes })),
            Some(_) | None => Err(WireError::BadLength { tag, length }),
        }
    }
}

/// Cuts the next whole message off `buffer`; `None` (buffer untouched) when it is not complete yet.
///
/// # Errors
/// A length that cannot be, or a body above `body_bytes_max`: known from the header alone, so a caller that reads
/// while this returns `None` holds at most `body_bytes_max + HEADER_SIZE` bytes plus one read.
pub fn next_frame(
    buffer: &mut BytesMut,
    body_bytes_max: usize,
) -> Result<Option<Frame>, WireError> {
    let Some(header) = Header::parse(buffer)? else { return Ok(None) };
    let bytes = header.body_bytes as usize;
    if bytes > body_bytes_max {
        return Err(WireError::TooLong { tag: header.tag, bytes, bytes_max: body_bytes_max });
    }
    let whole = bytes.saturating_add(HEADER_SIZE);
    if buffer.len() < whole {
        buffer.reserve(whole.saturating_sub(buffer.len()));
        return Ok(None);
    }
    let mut message = buffer.split_to(whole);
    message.advance(HEADER_SIZE);
    Ok(Some(Frame { tag: header.tag, body: message.freeze() }))
}

/// What stands at the front of the input of [`Scanner::next`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Span {
    /// A message starts: its header is the next [`HEADER_SIZE`] bytes.
    Header(Header),
    /// This many bytes (at least one) belong to the current body; `last` when they end it.
    Body { bytes: usize, last: bool },
    /// Less than a header (possibly nothing): keep it, read more.
    Partial,
}

/// Follows message boundaries through a byte stream cut anywhere. Holds no bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Scanner {
    body_left: u32,
}

impl Scanner {
    /// True between messages.
    pub fn at_boundary(&self) -> bool {
        self.body_left == 0
    }

    /// Says what the front of `input` is, and counts it as consumed: the caller moves on by [`HEADER_SIZE`] after
    /// a header, by `bytes` after a body span, not at all after `Partial`.
    ///
    /// # Errors
    /// [`WireError::BadLength`]: from here on no boundary is known.
    #[inline]
    pub fn next(&mut self, input: &[u8]) -> Result<Span, WireError> {
        if self.body_left == 0 {
            let Some(header) = Header::parse(input)? else { return Ok(Span::Partial) };
            self.body_left = header.body_bytes;
            return Ok(Span::Header(header));
        }
        let bytes = input.len().min(self.body_left as usize);
        if bytes == 0 {
            return Ok(Span::Partial);
        }
        self.body_left = self.body_left.saturating_sub(bytes as u32);
        Ok(Span::Body { bytes, last: self.body_left == 0 })
    }
}

#[cfg(test)]
mod tests {
    use bytes::BufMut;
    use proptest::prelude::*;

    use super::*;

    fn message(tag: u8, body: &[u8]) -> Vec<u8> {
        let mut out = vec![tag];
        out.put_u32(body.len() as u32 + 4);
        out.put_slice(body);
        out
    }

    #[test]
    fn a_frame_waits_for_its_last_byte() {
        let whole = message(b'Q', b"SELECT 1\0");
        for cut in 0..whole.len() {
            let mut buffer = BytesMut::from(&whole[..cut]);
            assert_eq!(next_frame(&mut buffer, 100), Ok(None));
            assert_eq!(buffer, &whole[..cut]);
        }
        let mut buffer = BytesMut::from(&whole[..]);
        let frame = next_frame(&mut buffer, 100).unwrap().unwrap();
        assert_eq!((frame.tag, &frame.body[..]), (b'Q', &b"SELECT 1\0"[..]));
        assert!(buffer.is_empty());
    }

    #[test]
    fn limits_are_known_from_the_header() {
        let mut buffer = BytesMut::from(&b"Q\x7f\xff\xff\xff"[..]);
        assert!(matches!(next_frame(&mut buffer, 100), Err(WireError::TooLong { .. })));
        for bad in [b"Q\0\0\0\x03", b"Q\x80\0\0\0"] {
            let mut buffer = BytesMut::from(&bad[..]);
            assert!(matches!(next_frame(&mut buffer, 100), Err(WireError::BadLength { .. })));
        }
    }

    proptest! {
        /// However the stream is cut, the scanner sees the same headers at the same offsets.
        #[test]
        fn scanner_finds_every_boundary(
            bodies in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..20), 1..10),
            piece in 1usize..12,
        ) {
            let stream: Vec<u8> = bodies.iter().flat_map(|body| message(b'D', body)).collect();
            let (mut scanner, mut at, mut seen, mut available) = (Scanner::default(), 0, 0, 0);
            while at < stream.len() {
                match scanner.next(&stream[at..available]).unwrap() {
                    Span::Header(header) => {
                        prop_assert_eq!(header.body_bytes as usize, bodies[seen].len());
                        seen += 1;
                        at += HEADER_SIZE;
                    }
                    Span::Body { bytes, .. } => at += bytes,
                    Span::Partial => available = (available + piece).min(stream.len()),
                }
            }
            prop_assert_eq!(seen, bodies.len());
            prop_assert!(scanner.at_boundary());
        }

        #[test]
        fn hostile_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut buffer = BytesMut::from(&bytes[..]);
            while let Ok(Some(_)) = next_frame(&mut buffer, 64) {}
        }
    }
}
