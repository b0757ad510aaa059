//! The engine's keys: 18 bytes whose order as bytes is their order as values.
//!
//! ```text
//!  0      1           5          9          13     14         18
//!  +------+-----------+----------+----------+------+----------+
//!  |class | tablespace| database | relation | fork |  block   |   all big endian
//!  +------+-----------+----------+----------+------+----------+
//! ```
//!
//! Classes other than relation blocks reuse the fields as their constructors say. The class byte is part of
//! the disk format: numbers are never reused.

use std::{fmt, ops::Range};

use crate::{Fork, Lsn, RelTag, WAL_PAGE_SIZE};

/// Bytes in an encoded key.
pub const KEY_SIZE: usize = 18;

/// What a key names. The number is the first byte on disk.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum KeyClass {
    /// Existence, size and cuts of one relation fork.
    RelMeta = 1,
    /// One block of a relation fork.
    RelBlock = 2,
    /// One page of an SLRU (`pg_xact`, `pg_multixact`, `pg_commit_ts`).
    Slru = 3,
    /// One `pg_filenode.map`, and with it the existence of a database directory.
    RelMap = 4,
    /// One prepared transaction's state.
    TwoPhase = 5,
    /// One field of the control state (see [`ControlField`]).
    Control = 6,
    /// Commit-time index: running maximum of commit stamps.
    TimeIndex = 7,
    /// Record ends within one WAL page.
    RecordEnds = 8,
    /// Resource-manager records kept because this version cannot redo them, per relation (for `doctor`).
    Unhandled = 9,
    /// Replication origin progress.
    Origin = 10,
}

/// SLRUs that are part of a database's history.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum SlruKind {
    Xact = 0,
    MultiOffsets = 1,
    MultiMembers = 2,
    CommitTs = 3,
}

impl SlruKind {
    pub const ALL: [SlruKind; 4] =
        [SlruKind::Xact, SlruKind::MultiOffsets, SlruKind::MultiMembers, SlruKind::CommitTs];

    /// The directory below the data directory.
    pub const fn directory(self) -> &'static str {
        match self {
            SlruKind::Xact => "pg_xact",
            SlruKind::MultiOffsets => "pg_multixact/offsets",
            SlruKind::MultiMembers => "pg_multixact/members",
            SlruKind::CommitTs => "pg_commit_ts",
        }
    }
}

/// Fields of the control state, each a key of its own so that a transaction costs one small value.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum ControlField {
    /// The `pg_control` file as imported (system identifier, block sizes, checksum version, nonce): 8192 bytes.
    Imported = 0,
    /// Next full transaction id: epoch in the high half.
    NextXid = 1,
    NextOid = 2,
    /// Next multixact id and next member offset.
    NextMulti = 3,
    /// Oldest transaction id and its database.
    OldestXid = 4,
    /// Oldest multixact id and its database.
    OldestMulti = 5,
    /// Oldest and newest xid with a commit timestamp.
    CommitTs = 6,
    /// Settings that steer redo and start-up: wal_level, wal_log_hints, track_commit_timestamp, full_page_writes, max_*.
    Parameters = 7,
    /// Last checkpoint record: its start LSN and payload (followers start there).
    Checkpoint = 8,
}

/// An 18-byte, order-preserving engine key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(pub [u8; KEY_SIZE]);

/// A half-open range of keys.
pub type KeyRange = Range<Key>;

/// Bytes that are no key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("key class {0} is unknown")]
pub struct KeyError(pub u8);

impl Key {
    pub const MIN: Key = Key([0; KEY_SIZE]);
    pub const MAX: Key = Key([0xff; KEY_SIZE]);

    const fn pack(class: KeyClass, spc: u32, db: u32, rel: u32, fork: u8, block: u32) -> Key {
        let (s, d, r, b) =
            (spc.to_be_bytes(), db.to_be_bytes(), rel.to_be_bytes(), block.to_be_bytes());
        Key([
            class as u8,
            s[0],
            s[1],
            s[2],
            s[3],
            d[0],
            d[1],
            d[2],
            d[3],
            r[0],
            r[1],
            r[2],
            r[3],
            fork,
            b[0],
            b[1],
            b[2],
            b[3],
        ])
    }

    /// Block `block` of a relation fork.
    pub const fn rel_block(rel: RelTag, block: u32) -> Key {
        Key::pack(
            KeyClass::RelBlock,
            rel.tablespace,
            rel.database,
            rel.relation,
            rel.fork as u8,
            block,
        )
    }

    /// Existence and size of a relation fork.
    pub const fn rel_meta(rel: RelTag) -> Key {
        Key::pack(KeyClass::RelMeta, rel.tablespace, rel.database, rel.relation, rel.fork as u8, 0)
    }

    /// The metadata keys of every relation fork of one database in one tablespace.
    pub fn rel_meta_of_database(tablespace: u32, database: u32) -> KeyRange {
        let first = Key::pack(KeyClass::RelMeta, tablespace, database, 0, 0, 0);
        let last = Key::pack(KeyClass::RelMeta, tablespace, database, u32::MAX, u8::MAX, u32::MAX);
        first..last.next()
    }

    /// Page `page` of an SLRU (pages, not segment files).
    pub const fn slru(kind: SlruKind, page: u32) -> Key {
        Key::pack(KeyClass::Slru, kind as u32, 0, 0, 0, page)
    }

    /// The relation map of a database (`database` 0: the global one, tablespace 1664).
    pub const fn rel_map(tablespace: u32, database: u32) -> Key {
        Key::pack(KeyClass::RelMap, tablespace, database, 0, 0, 0)
    }

    /// A prepared transaction, by its full transaction id (epoch in the high half).
    pub const fn two_phase(full_xid: u64) -> Key {
        Key::pack(KeyClass::TwoPhase, (full_xid >> 32) as u32, full_xid as u32, 0, 0, 0)
    }

    /// One field of the control state.
    pub const fn control(field: ControlField) -> Key {
        Key::pack(KeyClass::Control, field as u32, 0, 0, 0, 0)
    }

    /// The commit at which the running maximum of commit stamps first reached `stamp` (µs since
    /// 2000-01-01). Order-preserving for negative stamps too.
    pub const fn time_index(stamp: i64) -> Key {
        let ordered = (stamp as u64) ^ (1 << 63);
        Key::pack(KeyClass::TimeIndex, (ordered >> 32) as u32, ordered as u32, 0, 0, 0)
    }

    /// The record ends in the WAL page that holds `lsn`.
    pub const fn record_ends(lsn: Lsn) -> Key {
        let page = lsn.0 / WAL_PAGE_SIZE;
        Key::pack(KeyClass::RecordEnds, (page >> 32) as u32, page as u32, 0, 0, 0)
    }

    /// Records kept for a relation that this version cannot redo.
    pub const fn unhandled(rel: RelTag) -> Key {
        Key::pack(
            KeyClass::Unhandled,
            rel.tablespace,
            rel.database,
            rel.relation,
            rel.fork as u8,
            0,
        )
    }

    /// Progress of one replication origin.
    pub const fn origin(id: u16) -> Key {
        Key::pack(KeyClass::Origin, id as u32, 0, 0, 0, 0)
    }

    /// All keys of one class.
    pub fn class_range(class: KeyClass) -> KeyRange {
        let mut end = [0; KEY_SIZE];
        end[0] = class as u8 + 1;
        let mut start = [0; KEY_SIZE];
        start[0] = class as u8;
        Key(start)..Key(end)
    }

    /// The smallest key above this one ([`Key::MAX`] stays).
    pub fn next(mut self) -> Key {
        if self == Key::MAX {
            return self;
        }
        for byte in self.0.iter_mut().rev() {
            let (sum, carried) = byte.overflowing_add(1);
            *byte = sum;
            if !carried {
                break;
            }
        }
        self
    }

    fn word(&self, at: usize) -> u32 {
        let b = &self.0;
        u32::from_be_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]])
    }

    /// The last four bytes: a block or SLRU page number.
    pub fn block(&self) -> u32 {
        self.word(14)
    }

    /// The relation fork of a `RelBlock`, `RelMeta` or `Unhandled` key; `None` for other classes.
    pub fn rel(&self) -> Option<RelTag> {
        match self.class() {
            Ok(KeyClass::RelMeta | KeyClass::RelBlock | KeyClass::Unhandled) => {}
            _ => return None,
        }
        let fork = Fork::try_from(self.0[13]).ok()?;
        Some(RelTag {
            tablespace: self.word(1),
            database: self.word(5),
            relation: self.word(9),
            fork,
        })
    }

    /// The SLRU and page of an `Slru` key.
    pub fn slru_page(&self) -> Option<(SlruKind, u32)> {
        (self.class() == Ok(KeyClass::Slru)).then_some(())?;
        let kind = SlruKind::ALL.into_iter().find(|kind| *kind as u32 == self.word(1))?;
        Some((kind, self.block()))
    }

    /// Tablespace and database of a `RelMap` key.
    pub fn rel_map_of(&self) -> Option<(u32, u32)> {
        (self.class() == Ok(KeyClass::RelMap)).then(|| (self.word(1), self.word(5)))
    }

    /// The 64-bit payload of `TwoPhase` (full xid), `TimeIndex` (ordered stamp) and `RecordEnds` (page number) keys.
    fn wide(&self) -> u64 {
        u64::from(self.word(1)) << 32 | u64::from(self.word(5))
    }

    /// The full transaction id of a `TwoPhase` key.
    pub fn full_xid(&self) -> Option<u64> {
        (self.class() == Ok(KeyClass::TwoPhase)).then(|| self.wide())
    }

    /// The stamp of a `TimeIndex` key, µs since 2000-01-01.
    pub fn stamp(&self) -> Option<i64> {
        (self.class() == Ok(KeyClass::TimeIndex)).then(|| (self.wide() ^ (1 << 63)) as i64)
    }

    /// First byte of the WAL page of a `RecordEnds` key.
    pub fn wal_page(&self) -> Option<Lsn> {
        (self.class() == Ok(KeyClass::RecordEnds)).then(|| Lsn(self.wide() * WAL_PAGE_SIZE))
    }

    /// The class, or an error for a byte this version does not know.
    pub fn class(&self) -> Result<KeyClass, KeyError> {
        Ok(match self.0[0] {
            1 => KeyClass::RelMeta,
            2 => KeyClass::RelBlock,
            3 => KeyClass::Slru,
            4 => KeyClass::RelMap,
            5 => KeyClass::TwoPhase,
            6 => KeyClass::Control,
            7 => KeyClass::TimeIndex,
            8 => KeyClass::RecordEnds,
            9 => KeyClass::Unhandled,
            10 => KeyClass::Origin,
            other => return Err(KeyError(other)),
        })
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.class(), self.rel()) {
            (Ok(class), Some(rel)) => write!(f, "{class:?}({rel}, {})", self.block()),
            (Ok(class), None) => {
                write!(f, "{class:?}({}, {}, {})", self.word(1), self.word(5), self.block())
            }
            (Err(_), _) => write!(f, "Key({:02x?})", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REL: RelTag =
        RelTag { tablespace: 1663, database: 5, relation: 16384, fork: Fork::VisibilityMap };

    #[test]
    fn order_is_block_order_within_a_fork() {
        assert!(Key::rel_block(REL, 1) < Key::rel_block(REL, 256));
        assert!(Key::rel_block(REL.with_fork(Fork::Main), u32::MAX) < Key::rel_block(REL, 0));
        assert!(Key::time_index(-5) < Key::time_index(0));
        assert!(Key::time_index(0) < Key::time_index(7));
    }

    #[test]
    fn parts_come_back() {
        let key = Key::rel_block(REL, 77);
        assert_eq!((key.rel(), key.block(), key.class()), (Some(REL), 77, Ok(KeyClass::RelBlock)));
        assert_eq!(Key::slru(SlruKind::CommitTs, 9).slru_page(), Some((SlruKind::CommitTs, 9)));
        assert_eq!(Key::time_index(-123).stamp(), Some(-123));
        assert_eq!(Key::two_phase(3 << 32 | 9).full_xid(), Some(3 << 32 | 9));
        assert_eq!(Key::record_ends(Lsn(0x18A_3FC0)).wal_page(), Some(Lsn(0x18A_2000)));
        assert_eq!(Key::rel_map(1663, 5).rel_map_of(), Some((1663, 5)));
    }

    #[test]
    fn ranges_hold_their_keys() {
        let range = Key::rel_meta_of_database(1663, 5);
        assert!(range.contains(&Key::rel_meta(REL)));
        assert!(!range.contains(&Key::rel_meta(RelTag {
            database: 6,
            relation: 0,
            fork: Fork::Main,
            ..REL
        })));
        assert!(Key::class_range(KeyClass::Slru).contains(&Key::slru(SlruKind::Xact, u32::MAX)));
        assert_eq!(Key::MAX.next(), Key::MAX);
        assert!(Key::rel_block(REL, u32::MAX).next() > Key::rel_block(REL, u32::MAX));
    }
}
