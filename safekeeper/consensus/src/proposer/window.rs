//! The last bytes of the log, bounded.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};
use treering_types::Lsn;

/// Short pieces are sent together up to so many bytes: copying them is cheaper than a message for each.
const JOINED_BYTES_MAX: usize = 32 * 1024;

/// A contiguous stretch `start..end` of the log, at most `bytes_max` long (plus one piece).
#[derive(Clone, Debug)]
pub(super) struct Window {
    pieces: VecDeque<Bytes>,
    start: Lsn,
    end: Lsn,
    bytes_max: usize,
}

impl Window {
    pub(super) fn at(lsn: Lsn, bytes_max: usize) -> Window {
        Window { pieces: VecDeque::new(), start: lsn, end: lsn, bytes_max }
    }

    pub(super) fn start(&self) -> Lsn {
        self.start
    }

    pub(super) fn end(&self) -> Lsn {
        self.end
    }

    pub(super) fn push(&mut self, bytes: Bytes) {
        if bytes.is_empty() {
            return;
        }
        self.end = self.end + bytes.len() as u64;
        self.pieces.push_back(bytes);
        while self.pieces.len() > 1 && (self.end.0 - self.start.0) as usize > self.bytes_max {
            self.drop_first();
        }
    }

    /// Forgets whole pieces that end at or before `lsn`.
    pub(super) fn drop_before(&mut self, lsn: Lsn) {
        while self.pieces.front().is_some_and(|piece| self.start + piece.len() as u64 <= lsn) {
            self.drop_first();
        }
    }

    fn drop_first(&mut self) {
        if let Some(piece) = self.pieces.pop_front() {
            self.start = self.start + piece.len() as u64;
        }
    }

    /// Bytes from `lsn` on, at most `bytes_max` of them; `None` when `lsn` lies outside. What came in several short
    /// pieces is put together.
    pub(super) fn piece(&self, lsn: Lsn, bytes_max: usize) -> Option<Bytes> {
        let mut skip = usize::try_from(lsn.bytes_since(self.start)?).ok()?;
        let mut pieces = self.pieces.iter();
        let first = loop {
            let piece = pieces.next()?;
            if skip < piece.len() {
                break piece.slice(skip..piece.len().min(skip + bytes_max));
            }
            skip -= piece.len();
        };
        let joined_max = bytes_max.min(JOINED_BYTES_MAX);
        let fitting = |room: &mut usize, piece: &Bytes| {
            *room = room.checked_sub(piece.len())?;
            Some(piece.clone())
        };
        let room = joined_max.saturating_sub(first.len());
        let mut more = pieces.scan(room, fitting).peekable();
        if more.peek().is_none() {
            return Some(first);
        }
        let mut joined = BytesMut::with_capacity(joined_max);
        joined.extend_from_slice(&first);
        more.for_each(|piece| joined.extend_from_slice(&piece));
        Some(joined.freeze())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_last_bytes() {
        let mut window = Window::at(Lsn(100), 10);
        for piece in [&b"abcdef"[..], b"ghij", b"klm"] {
            window.push(Bytes::from_static(piece));
        }
        assert_eq!((window.start(), window.end()), (Lsn(106), Lsn(113)));
        assert_eq!(window.piece(Lsn(105), 9), None);
        assert_eq!(window.piece(Lsn(107), 2), Some(Bytes::from_static(b"hi")));
        assert_eq!(window.piece(Lsn(107), 6), Some(Bytes::from_static(b"hijklm")));
        assert_eq!(window.piece(Lsn(107), 5), Some(Bytes::from_static(b"hij")));
        assert_eq!(window.piece(Lsn(110), 9), Some(Bytes::from_static(b"klm")));
        assert_eq!(window.piece(Lsn(113), 9), None);
        window.drop_before(Lsn(112));
        assert_eq!(window.start(), Lsn(110));
    }
}
