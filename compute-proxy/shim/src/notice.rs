//! How a cancelled wait for the quorum shows in what Postgres sends and logs.
//!
//! In the stream of messages it is a notice whose routine is `SyncRepWaitForLSN` (`replication/syncrep.c`), the one
//! field that is never translated. The stream is not parsed: the same bytes in a user's data only cost a question.

use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// The field `R` of a notice, with its end.
const MARK: &[u8; 19] = b"RSyncRepWaitForLSN\0";
/// For each count of bytes of the mark that were seen: how many of them still are when the next one differs.
const FALL_BACK: [usize; MARK.len()] = fall_back();

/// How the line of a warning goes on behind the process id (`compute::settings::LOG_LINE_PREFIX`): SQLSTATE
/// `warning`, which nothing but a cancelled wait is commonly reported under.
const WARNING: &[u8] = b"] 01000 ";
/// Where in a line that can be.
const PREFIX_BYTES_MAX: usize = 128;

// Runs while this is compiled: what could panic would be an error then.
#[allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]
const fn fall_back() -> [usize; MARK.len()] {
    let mut table = [0; MARK.len()];
    let (mut at, mut length) = (1, 0);
    while at + 1 < MARK.len() {
        if MARK[at] == MARK[length] {
            length += 1;
            at += 1;
            table[at] = length;
        } else if length > 0 {
            length = table[length];
        } else {
            at += 1;
        }
    }
    table
}

/// How many bytes of the mark a stream ends with.
pub struct Trace(AtomicUsize);

impl Trace {
    pub const fn new() -> Trace {
        Trace(AtomicUsize::new(0))
    }

    /// Whether the mark is complete somewhere in these bytes, which go on where the stream is.
    pub fn completes_in(&self, bytes: &[u8]) -> bool {
        let seen = self.0.load(Relaxed);
        let edge = bytes.get(..MARK.len()).unwrap_or(bytes);
        (seen > 0 && follow(seen, edge).1) || contains(bytes)
    }

    /// The bytes are in the stream.
    pub fn pass(&self, bytes: &[u8]) {
        let tail = bytes.len().saturating_sub(MARK.len());
        let seen = if tail == 0 { self.0.load(Relaxed) } else { 0 };
        self.0.store(follow(seen, bytes.get(tail..).unwrap_or(bytes)).0, Relaxed);
    }
}

/// What is seen after these bytes, and whether the mark was complete among them.
fn follow(mut seen: usize, bytes: &[u8]) -> (usize, bool) {
    let mut complete = false;
    for byte in bytes {
        while seen > 0 && MARK.get(seen) != Some(byte) {
            seen = FALL_BACK.get(seen).copied().unwrap_or(0);
        }
        if MARK.get(seen) == Some(byte) {
            seen = seen.saturating_add(1);
        }
        if seen == MARK.len() {
            (seen, complete) = (0, true);
        }
    }
    (seen, complete)
}

fn contains(bytes: &[u8]) -> bool {
    let (hay, needle) = (bytes.as_ptr().cast(), MARK.as_ptr().cast());
    // SAFETY: both with their lengths.
    !unsafe { libc::memmem(hay, bytes.len(), needle, MARK.len()) }.is_null()
}

/// Whether this begins a line of the log that reports a warning.
pub fn is_warning(line: &[u8]) -> bool {
    let head = line.get(..PREFIX_BYTES_MAX).unwrap_or(line);
    head.windows(WARNING.len()).any(|place| place == WARNING)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether a stream in these pieces shows the mark, and in which piece.
    fn found(pieces: &[&[u8]]) -> Option<usize> {
        let trace = Trace::new();
        pieces.iter().position(|piece| {
            let is_there = trace.completes_in(piece);
            trace.pass(piece);
            is_there
        })
    }

    #[test]
    fn the_mark_is_found_however_it_is_cut() {
        let stream = b"C\0RSyncRRSyncRepWaitForLSN\0\0Z";
        for first in 0..stream.len() {
            for second in first..stream.len() {
                let (head, rest) = stream.split_at(first);
                let (middle, tail) = rest.split_at(second - first);
                let piece = found(&[head, middle, tail]).expect("found");
                let end = [head.len(), second, stream.len()][piece];
                let begin = [0, head.len(), second][piece];
                // The piece in which its last byte is.
                assert!((begin..end).contains(&26), "cut at {first} and {second}: piece {piece}");
            }
        }
        let bytes: Vec<&[u8]> = stream.chunks(1).collect();
        assert_eq!(found(&bytes), Some(26));
    }

    #[test]
    fn other_streams_do_not_show_it() {
        let almost: [&[u8]; 4] =
            [b"", b"RSyncRepWaitForLSM\0", b"SyncRepWaitForLSN\0", b"RSyncRepWaitForLSN"];
        for stream in almost {
            assert_eq!(found(&[stream, b"x"]), None);
            assert_eq!(found(&[&[b'x'; 500], stream, &[0; 1][..0]]), None);
        }
        let long = [&[b'R'; 4000][..], b"RSyncRepWaitForLSN\0", &[b'R'; 4000]].concat();
        assert_eq!(found(&[&long]), Some(0));
    }

    #[test]
    fn warnings_are_told_by_their_code() {
        let line = b"2026-11-21 04:38:54.123 UTC [7] 01000 WARNING:  canceling wait";
        assert!(is_warning(line));
        assert!(!is_warning(b"2026-11-21 04:38:54.123 UTC [7] 00000 LOG:  [8] 01000"));
    }
}
