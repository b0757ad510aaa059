//! What a record does, as pure data: which page changes, and everything beside pages.
//!
//! A record is taken apart into effects once, when it is ingested; redo later sees only the part stored for its
//! page. What stock redo derives from state beyond the record (next xid, hint logging, commit timestamps) comes
//! from [`ClusterState`], which moves along.
//!
//! - [`blocks`]: the pages a record references; [`heap`]: the visibility-map clears it does not reference;
//! - [`xact`], [`slru`]: transaction status, commit times, multixacts, two-phase state;
//! - [`storage`]: relations, databases, tablespaces, relation maps; [`xlog`]: checkpoints and settings.
//!
//! Not derived, on purpose: free space maps (lossy and unlogged, E4), standby locks, invalidations, statistics,
//! logical decoding, and removal of SLRU segments (pages before the oldest xid or multixact are simply not served).

mod blocks;
mod heap;
mod slru;
mod storage;
mod xact;
mod xlog;

pub(crate) use self::blocks::apply_kept;

use std::borrow::Cow;

use bytes::Bytes;
use smallvec::SmallVec;
use treering_types::{ControlField, ErrorKind, Lsn, RelTag, SlruKind};

use super::{
    image::ImageError,
    record::Record,
    state::{ClusterState, STATE_FIELDS},
};
use crate::{
    change::PageChange,
    cursor::Cursor,
    redo::{rmgr, rmgr_name},
    relmap::RelMapError,
    version::PgMajor,
};

/// One effect of a record. Order within a record matters and is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect<'a> {
    /// A page of a relation fork changes (the relation grows to hold it).
    Page {
        rel: RelTag,
        block: u32,
        change: PageChange<'a>,
    },
    /// A page that only changes if it exists (derived visibility-map clears, E1: a missing map has no bits set).
    PageIfExists {
        rel: RelTag,
        block: u32,
        change: PageChange<'a>,
    },
    /// An SLRU page changes.
    Slru {
        kind: SlruKind,
        page: u32,
        change: PageChange<'a>,
    },
    /// A relation fork is created empty; one that exists is left alone.
    RelCreate(RelTag),
    /// A relation fork is cut to `blocks` (forks already derived: one effect per fork). One that does not exist or
    /// is not longer stays as it is.
    RelTruncate {
        rel: RelTag,
        blocks: u32,
    },
    /// All forks of the relation that `rel` (main fork) names are dropped.
    RelDrop(RelTag),
    /// CREATE DATABASE STRATEGY FILE_COPY, also ALTER DATABASE SET TABLESPACE (E5).
    DatabaseCopy {
        from: DatabaseDir,
        to: DatabaseDir,
    },
    /// A database directory comes into being, empty.
    DatabaseCreate(DatabaseDir),
    /// A database directory goes, with every relation in it.
    DatabaseDrop(DatabaseDir),
    TablespaceCreate {
        tablespace: u32,
        path: String,
    },
    TablespaceDrop {
        tablespace: u32,
    },
    /// A whole `pg_filenode.map` (database 0: global), as file bytes.
    RelMap {
        dir: DatabaseDir,
        file: Bytes,
    },
    /// A transaction was prepared: the bytes of its `pg_twophase` file.
    TwoPhasePrepared {
        full_xid: u64,
        file: Bytes,
    },
    /// A prepared transaction ended.
    TwoPhaseEnded {
        full_xid: u64,
    },
    /// A commit or abort with its stamp, µs since 2000-01-01.
    Ended {
        stamp: i64,
        committed: bool,
    },
    /// A field of the control state has a new value (encoded by `wal::state`).
    Control {
        field: ControlField,
        value: Bytes,
    },
    /// What becomes of a replication origin's progress.
    Origin {
        id: u16,
        change: OriginChange,
    },
    /// A record that names a relation but cannot be handled and references no page.
    Unhandled {
        rel: Option<RelTag>,
        rmid: u8,
        info: u8,
        record: Cow<'a, [u8]>,
    },
}

/// What one record does. Few records do more than is kept in place.
pub type Effects<'a> = SmallVec<[Effect<'a>; 2]>;

/// How a record changes the progress of a replication origin (`replorigin_advance`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OriginChange {
    /// A transaction was replayed up to there. Prepared ones end out of order, so this may be less than is known.
    AtLeast(u64),
    /// Set by hand, back as well.
    Set(u64),
    Dropped,
}

impl OriginChange {
    /// The progress after the change; `None`: there is no such origin.
    pub fn after(self, known: Option<u64>) -> Option<u64> {
        match self {
            OriginChange::AtLeast(lsn) => Some(known.map_or(lsn, |known| known.max(lsn))),
            OriginChange::Set(lsn) => Some(lsn),
            OriginChange::Dropped => None,
        }
    }
}

/// A database directory: `base/<database>` or its like in another tablespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DatabaseDir {
    pub tablespace: u32,
    pub database: u32,
}

/// Why a record cannot be taken apart. The WAL after it must not be applied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("record {rmgr} (rmid {rmid}) info {info:#04x} at {start}, byte {offset}: {fault}")]
pub struct EffectError {
    /// Start of the record.
    pub start: Lsn,
    pub rmid: u8,
    pub rmgr: &'static str,
    pub info: u8,
    /// Byte of the record up to which it made sense.
    pub offset: usize,
    pub fault: EffectFault,
}

/// The fact behind an [`EffectError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EffectFault {
    #[error("shorter than its layout, or with fields that contradict each other")]
    Malformed,
    #[error("a full-page image record without an image")]
    NoImage,
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error(transparent)]
    RelMap(#[from] RelMapError),
    /// WAL.md E18. Stock recovery from an archive stops here too (`CheckRequiredParameterValues`).
    #[error("the server goes on with wal_level minimal and no longer logs every change")]
    MinimalWal,
}

/// A fault and the byte of the record where it is.
type Located = (usize, EffectFault);

impl EffectError {
    /// Damage, or a server that is not for us.
    pub fn kind(&self) -> ErrorKind {
        match self.fault {
            EffectFault::MinimalWal => ErrorKind::Invalid,
            EffectFault::Malformed
            | EffectFault::NoImage
            | EffectFault::Image(_)
            | EffectFault::RelMap(_) => ErrorKind::Corrupt,
        }
    }
}

/// What `record` does, in order, with control fields last. `state` is the state before it and becomes the one
/// after it.
///
/// # Errors
/// [`EffectError`]; the state is then unchanged.
pub fn effects<'a>(
    state: &mut ClusterState,
    record: &'a Record<'_>,
    major: PgMajor,
) -> Result<Effects<'a>, EffectError> {
    let mut out = Effects::new();
    effects_into(&mut out, state, record, major)?;
    Ok(out)
}

/// As [`effects`], into `out`, which is empty: so that they need not be moved once more.
///
/// # Errors
/// [`EffectError`]; the state is then unchanged and `out` empty.
pub fn effects_into<'a>(
    out: &mut Effects<'a>,
    state: &mut ClusterState,
    record: &'a Record<'_>,
    major: PgMajor,
) -> Result<(), EffectError> {
    let before = Before::of(state, record.rmid);
    match take_apart(state, record, major, out) {
        Ok(()) => {
            before.control_effects(state, out);
            Ok(())
        }
        Err((offset, fault)) => {
            before.restore(state);
            out.clear();
            let (start, rmid, info) = (record.start, record.rmid, record.info);
            Err(EffectError { start, rmid, rmgr: rmgr_name(rmid), info, offset, fault })
        }
    }
}

/// What a record may change of the state, as it was before.
///
/// Most records name a transaction and say nothing else about the cluster: a copy of the whole state for each of them
/// would be a good part of taking them apart.
enum Before {
    Xids { next: u64, newest_commit_ts: u32 },
    All(Box<ClusterState>),
}

impl Before {
    fn of(state: &ClusterState, rmid: u8) -> Before {
        match rmid {
            rmgr::XLOG | rmgr::CLOG | rmgr::MULTIXACT | rmgr::STANDBY | rmgr::COMMIT_TS => {
                Before::All(Box::new(state.clone()))
            }
            _ => {
                Before::Xids { next: state.next_xid, newest_commit_ts: state.newest_commit_ts_xid }
            }
        }
    }

    fn restore(self, state: &mut ClusterState) {
        match self {
            Before::Xids { next, newest_commit_ts } => {
                (state.next_xid, state.newest_commit_ts_xid) = (next, newest_commit_ts);
            }
            Before::All(before) => *state = *before,
        }
    }

    /// One effect for each field of the control state that differs, in the order of [`STATE_FIELDS`].
    fn control_effects(&self, after: &ClusterState, out: &mut Effects<'_>) {
        // As after most records.
        if let Before::Xids { next, newest_commit_ts } = self
            && (*next, *newest_commit_ts) == (after.next_xid, after.newest_commit_ts_xid)
        {
            return;
        }
        let fields = STATE_FIELDS.into_iter().filter(|field| match (self, field) {
            (Before::Xids { next, .. }, ControlField::NextXid) => *next != after.next_xid,
            (Before::Xids { newest_commit_ts, .. }, ControlField::CommitTs) => {
                *newest_commit_ts != after.newest_commit_ts_xid
            }
            (Before::Xids { .. }, _) => false,
            (Before::All(before), field) => !before.agrees(after, *field),
        });
        out.extend(
            fields.filter_map(|field| Some(Effect::Control { field, value: after.encode(field)? })),
        );
    }
}

fn take_apart<'a>(
    state: &mut ClusterState,
    record: &'a Record<'_>,
    major: PgMajor,
    out: &mut Effects<'a>,
) -> Result<(), Located> {
    state.note_xid(record.xid);
    if let Some(xid) = record.toplevel_xid {
        state.note_xid(xid);
    }
    blocks::page_effects(state, record, out)?;
    let mut main = Cursor::new(record.main);
    let taken = main_effects(state, record, &mut main, major, out);
    taken.map_err(|fault| (record.offset_of(record.main) + main.position(), fault))
}

/// What the main data says; `main` is left where it stopped making sense.
fn main_effects<'a>(
    state: &mut ClusterState,
    record: &'a Record<'_>,
    main: &mut Cursor<'_>,
    major: PgMajor,
    out: &mut Effects<'a>,
) -> Result<(), EffectFault> {
    let parsed = match record.rmid {
        rmgr::XLOG => return xlog::xlog(state, record, main, major, out),
        rmgr::XACT => xact::xact(state, record, main, major, out),
        rmgr::SMGR => storage::smgr(record, main, out),
        rmgr::CLOG => slru::clog(state, record, main, major, out),
        rmgr::DATABASE => storage::database(record, main, out),
        rmgr::TABLESPACE => storage::tablespace(record, main, out),
        rmgr::MULTIXACT => slru::multixact(state, record, main, major, out),
        rmgr::RELMAP => return storage::rel_map(record, main, major, out),
        rmgr::STANDBY => xlog::standby(state, record, main),
        rmgr::HEAP => heap::heap(record, main, out),
        rmgr::HEAP2 => heap::heap2(state, record, main, out),
        rmgr::COMMIT_TS => slru::commit_ts(state, record, main, major, out),
        rmgr::ORIGIN => xact::origin(record, main, out),
        rmgr::BTREE
        | rmgr::HASH
        | rmgr::GIN
        | rmgr::GIST
        | rmgr::SEQUENCE
        | rmgr::SPGIST
        | rmgr::BRIN
        | rmgr::GENERIC
        | rmgr::LOGICAL_MESSAGE => Some(()),
        _ => blocks::foreign(record, out),
    };
    parsed.ok_or(EffectFault::Malformed)
}

#[cfg(test)]
mod tests;
