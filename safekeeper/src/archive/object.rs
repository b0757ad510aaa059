//! The bytes of a piece of a log in the object store; `docs/formats/wal-archive.md`.

use bytes::Bytes;
use treering_remote::{
    RemoteError,
    binary::{Reader, Writer},
};
use treering_types::{Lsn, WAL_SEGMENT_SIZE};

use super::piece::Piece;
use crate::{control_file::Identity, wal_store::segment_start};

const MAGIC: [u8; 8] = *b"TRWALPC\n";
const VERSION: u32 = 1;
/// Mostly zeros in a segment that ends early, and records that repeat each other: the fastest level halves them.
const ZSTD_LEVEL: i32 = 1;

/// Part of a log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Stretch {
    pub start: Lsn,
    pub bytes: Bytes,
}

impl Stretch {
    pub fn end(&self) -> Lsn {
        self.start + self.bytes.len() as u64
    }

    /// `from..to` of it; `None` when that lies outside.
    pub fn slice(&self, from: Lsn, to: Lsn) -> Option<Bytes> {
        let is_inside = self.start <= from && from <= to && to <= self.end();
        let range = || (from.0 - self.start.0) as usize..(to.0 - self.start.0) as usize;
        is_inside.then(|| self.bytes.slice(range()))
    }
}

/// Panics on a stretch that is none of one segment: the caller cut it out of one.
pub fn encode(identity: &Identity, stretch: &Stretch) -> std::io::Result<Bytes> {
    assert!(!stretch.bytes.is_empty() && stretch.bytes.len() as u64 <= WAL_SEGMENT_SIZE);
    let packed = zstd::bulk::compress(&stretch.bytes, ZSTD_LEVEL)?;
    let mut out = Writer::default();
    out.bytes(&identity.tenant.0).bytes(&identity.timeline.0).u32(identity.pg_tli);
    out.u32(identity.pg_major).u64(identity.system_id);
    out.u64(stretch.start.0).u64(stretch.end().0).u32(crc32fast::hash(&stretch.bytes));
    out.block(&packed);
    Ok(out.sealed(MAGIC, VERSION))
}

/// `name` is for the error's words.
///
/// # Errors
/// `Corrupt`, also for the piece of another log or another place of it; `Newer`.
pub fn decode(
    identity: &Identity,
    piece: Piece,
    name: &str,
    bytes: &[u8],
) -> Result<Stretch, RemoteError> {
    let mut reader = Reader::open(name, bytes, MAGIC, VERSION)?;
    let ids = (reader.array()?, reader.array()?, reader.u32()?);
    let system = (reader.u32()?, reader.u64()?);
    if ids != (identity.tenant.0, identity.timeline.0, identity.pg_tli)
        || system != (identity.pg_major, identity.system_id)
    {
        return Err(reader.corrupt("belongs to another log"));
    }
    let (start, end, crc) = (Lsn(reader.u64()?), Lsn(reader.u64()?), reader.u32()?);
    let is_in_place = start >= segment_start(piece.segment()) && start < end;
    if !is_in_place || end != piece.end() {
        return Err(reader.corrupt("belongs to another place of its log"));
    }
    let packed = reader.block()?;
    let len = (end.0 - start.0) as usize;
    let unpacked = zstd::bulk::decompress(packed, len);
    let unpacked = unpacked.map_err(|error| reader.corrupt(&error.to_string()))?;
    if unpacked.len() != len || crc32fast::hash(&unpacked) != crc {
        return Err(reader.corrupt("does not unpack to what was packed"));
    }
    reader.finish()?;
    Ok(Stretch { start, bytes: unpacked.into() })
}

#[cfg(test)]
mod tests {
    use treering_types::{ErrorKind, TenantId, TimelineId};

    use super::*;

    fn identity() -> Identity {
        Identity {
            tenant: TenantId([1; 16]),
            timeline: TimelineId([2; 16]),
            system_id: 0x1122_3344_5566_7788,
            pg_major: 15,
            pg_tli: 4,
            pg_ancestors: Vec::new(),
        }
    }

    fn stretch() -> (Piece, Stretch) {
        let start = Lsn(3 * WAL_SEGMENT_SIZE + 40);
        let bytes: Vec<u8> = (0..10_000u32).map(|n| (n / 7) as u8).collect();
        let stretch = Stretch { start, bytes: bytes.into() };
        (Piece::Begin { segment: 3, end: stretch.end() }, stretch)
    }

    #[test]
    fn round_trip_and_small() {
        let (piece, stretch) = stretch();
        let bytes = encode(&identity(), &stretch).unwrap();
        assert!(bytes.len() < 2000, "{} bytes", bytes.len());
        assert_eq!(decode(&identity(), piece, "x", &bytes).unwrap(), stretch);
        let (from, to) = (stretch.start + 8, stretch.start + 24);
        assert_eq!(stretch.slice(from, to).unwrap(), stretch.bytes.slice(8..24));
        assert_eq!(stretch.slice(Lsn(stretch.start.0 - 1), to), None);
        assert_eq!(stretch.slice(from, stretch.end() + 1), None);
    }

    #[test]
    fn damage_and_strangers_are_named() {
        let (piece, stretch) = stretch();
        let good = encode(&identity(), &stretch).unwrap();
        for at in 0..good.len() {
            let mut bytes = good.to_vec();
            bytes[at] ^= 0x10;
            let error = decode(&identity(), piece, "x", &bytes).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt, "byte {at}: {error}");
            assert!(decode(&identity(), piece, "x", &good[..at]).is_err());
        }
        let other = Piece::Begin { segment: 3, end: stretch.end() + 8 };
        let tenant = TenantId([9; 16]);
        for (identity, piece) in [
            (identity(), other),
            (identity(), Piece::Whole { segment: 3 }),
            (Identity { pg_tli: 5, ..identity() }, piece),
            (Identity { tenant, ..identity() }, piece),
            (Identity { system_id: 1, ..identity() }, piece),
        ] {
            assert!(decode(&identity, piece, "x", &good).is_err());
        }
    }

    /// Bytes as the format document shows them; an object like this must be readable for ever.
    #[test]
    fn golden_object() {
        let start = Lsn(3 * WAL_SEGMENT_SIZE + 40);
        let expected = Stretch { start, bytes: Bytes::from_static(b"committed log...") };
        let golden: String = include_str!("golden-piece.hex").split_whitespace().collect();
        let byte = |at| u8::from_str_radix(&golden[at..at + 2], 16).unwrap();
        let bytes: Vec<u8> = (0..golden.len()).step_by(2).map(byte).collect();
        let piece = Piece::Begin { segment: 3, end: expected.end() };
        assert_eq!(decode(&identity(), piece, "x", &bytes).unwrap(), expected);
    }
}
