//! What an archived log is made of, and what is to be done about it. Pure.
//!
//! A log lies in the object store in *pieces*: whole segments, and the begin of the segment that it ends in. Committed
//! log never changes, so a piece's name says all of what is in it, and it does not matter who put it there, when, or how
//! often. Everything else follows from the names alone.

use std::{collections::BTreeSet, fmt};

use treering_types::{Lsn, WAL_SEGMENT_SIZE};

use crate::wal_store::segment_start;

/// A piece of a log. It begins where its segment does, or where the log does if that is later.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Piece {
    /// A segment to its end.
    Whole { segment: u64 },
    /// A segment up to `end`, a record end inside of it.
    Begin { segment: u64, end: Lsn },
}

impl Piece {
    pub fn segment(&self) -> u64 {
        match self {
            Piece::Whole { segment } | Piece::Begin { segment, .. } => *segment,
        }
    }

    /// Where it ends in the log.
    pub fn end(&self) -> Lsn {
        match self {
            Piece::Whole { segment } => segment_start(segment + 1),
            Piece::Begin { end, .. } => *end,
        }
    }

    /// An object's name within its log's folder; `None` for what is no piece.
    pub fn parse(name: &str) -> Option<Piece> {
        let number = |text: &str| u64::from_str_radix(text, 16).ok();
        let last = u64::MAX / WAL_SEGMENT_SIZE;
        let piece = match name.rsplit_once('.')? {
            (segment, "wal") => Piece::Whole { segment: number(segment)? },
            (numbers, "part") => {
                let (segment, end) = numbers.split_once('-')?;
                let piece = Piece::Begin { segment: number(segment)?, end: Lsn(number(end)?) };
                let is_inside = piece.end().segment_number() == piece.segment();
                (is_inside && piece.end().segment_offset() > 0).then_some(piece)?
            }
            _ => return None,
        };
        (piece.segment() < last && piece.to_string() == name).then_some(piece)
    }
}

impl fmt::Display for Piece {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Piece::Whole { segment } => write!(f, "{segment:016x}.wal"),
            Piece::Begin { segment, end } => write!(f, "{segment:016x}-{:016x}.part", end.0),
        }
    }
}

/// The pieces of one log.
pub type Pieces = BTreeSet<Piece>;

/// How far the log is archived without a gap, from `from` on: what lies before `from` is nobody's question.
pub fn archived(pieces: &Pieces, from: Lsn) -> Lsn {
    let mut at = from;
    loop {
        let segment = at.segment_number();
        if pieces.contains(&Piece::Whole { segment }) {
            at = segment_start(segment + 1);
            continue;
        }
        return longest_begin(pieces, segment).map_or(at, |piece| piece.end().max(at));
    }
}

/// The piece to read `segment` from, up to `to`.
pub fn holder(pieces: &Pieces, segment: u64, to: Lsn) -> Option<Piece> {
    let whole = Piece::Whole { segment };
    let piece = if pieces.contains(&whole) { Some(whole) } else { longest_begin(pieces, segment) };
    piece.filter(|piece| piece.end() >= to)
}

fn longest_begin(pieces: &Pieces, segment: u64) -> Option<Piece> {
    let begins = Piece::Begin { segment, end: Lsn(0) }..=Piece::Begin { segment, end: Lsn::MAX };
    pieces.range(begins).next_back().copied()
}

/// The next piece to put behind what is archived. Only what is committed; the begin of a segment only if asked for.
pub fn next(archived: Lsn, commit_lsn: Lsn, with_begin: bool) -> Option<Piece> {
    let segment = archived.segment_number();
    let whole = Piece::Whole { segment };
    if commit_lsn >= whole.end() {
        return Some(whole);
    }
    (with_begin && commit_lsn > archived).then_some(Piece::Begin { segment, end: commit_lsn })
}

/// Pieces that another one makes superfluous, and those that end at or before `keep_from`.
pub fn superfluous(pieces: &Pieces, keep_from: Lsn) -> Vec<Piece> {
    let is_superfluous = |piece: &&Piece| {
        let segment = piece.segment();
        let is_covered = match piece {
            Piece::Whole { .. } => false,
            Piece::Begin { .. } => {
                pieces.contains(&Piece::Whole { segment })
                    || longest_begin(pieces, segment) != Some(**piece)
            }
        };
        is_covered || segment_start(segment + 1) <= keep_from
    };
    pieces.iter().filter(is_superfluous).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEG: u64 = WAL_SEGMENT_SIZE;

    fn whole(segment: u64) -> Piece {
        Piece::Whole { segment }
    }

    fn begin(end: u64) -> Piece {
        Piece::Begin { segment: end / SEG, end: Lsn(end) }
    }

    fn pieces(list: &[Piece]) -> Pieces {
        list.iter().copied().collect()
    }

    #[test]
    fn names_read_back_and_have_one_spelling() {
        for piece in [whole(0), whole(0x123), begin(5 * SEG + 8), begin(6 * SEG - 8)] {
            assert_eq!(Piece::parse(&piece.to_string()), Some(piece));
        }
        assert_eq!(whole(0x1f).to_string(), "000000000000001f.wal");
        assert_eq!(begin(SEG + 0x28).to_string(), "0000000000000001-0000000001000028.part");
        for other in [
            "1f.wal",
            "000000000000001F.wal",
            "000000000000001f.layer",
            "000000000000001f",
            "ffffffffffffffff.wal",
            "0000000000000001-0000000002000028.part",
            "0000000000000001-0000000001000000.part",
            "0000000000000001.part",
        ] {
            assert_eq!(Piece::parse(other), None, "{other}");
        }
    }

    #[test]
    fn the_archive_ends_at_the_first_gap() {
        let start = Lsn(3 * SEG + 100);
        assert_eq!(archived(&pieces(&[]), start), start);
        assert_eq!(archived(&pieces(&[whole(4), begin(5 * SEG + 8)]), start), start);
        let some = pieces(&[whole(3), whole(4), begin(5 * SEG + 8), begin(5 * SEG + 80)]);
        assert_eq!(archived(&some, start), Lsn(5 * SEG + 80));
        assert_eq!(archived(&some, Lsn(5 * SEG + 88)), Lsn(5 * SEG + 88));
        assert_eq!(archived(&some, Lsn(9 * SEG)), Lsn(9 * SEG));
        let gap = pieces(&[whole(3), begin(4 * SEG + 8), whole(5)]);
        assert_eq!(archived(&gap, start), Lsn(4 * SEG + 8));
    }

    #[test]
    fn whole_segments_first_and_nothing_that_is_not_committed() {
        let at = Lsn(3 * SEG + 100);
        assert_eq!(next(at, Lsn(4 * SEG - 8), false), None);
        assert_eq!(next(at, Lsn(4 * SEG - 8), true), Some(begin(4 * SEG - 8)));
        assert_eq!(next(at, Lsn(4 * SEG), false), Some(whole(3)));
        assert_eq!(next(at, Lsn(9 * SEG), true), Some(whole(3)));
        assert_eq!(next(at, at, true), None);
        assert_eq!(next(Lsn(4 * SEG), Lsn(4 * SEG), true), None);
        assert_eq!(next(Lsn(4 * SEG), Lsn(4 * SEG + 8), true), Some(begin(4 * SEG + 8)));
        assert_eq!(next(Lsn(4 * SEG), Lsn(3 * SEG), true), None);
    }

    #[test]
    fn what_is_read_is_never_superfluous() {
        let all = pieces(&[
            whole(3),
            begin(3 * SEG + 8),
            whole(4),
            begin(5 * SEG + 8),
            begin(5 * SEG + 80),
        ]);
        let gone = superfluous(&all, Lsn(4 * SEG));
        assert_eq!(gone, [whole(3), begin(3 * SEG + 8), begin(5 * SEG + 8)]);
        assert_eq!(superfluous(&all, Lsn(4 * SEG - 1)), [begin(3 * SEG + 8), begin(5 * SEG + 8)]);
        assert_eq!(holder(&all, 3, Lsn(3 * SEG + 50)), Some(whole(3)));
        assert_eq!(holder(&all, 5, Lsn(5 * SEG + 80)), Some(begin(5 * SEG + 80)));
        assert_eq!(holder(&all, 5, Lsn(5 * SEG + 88)), None);
        assert_eq!(holder(&all, 6, Lsn(6 * SEG + 8)), None);
    }
}
