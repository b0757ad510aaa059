//! Ends of transactions, two-phase state and replication origins (`access/xact.h`, `access/twophase.c`).

use bytes::Bytes;
use treering_types::{Fork, RelTag};

use super::{Effect, Effects, OriginChange, slru};
use crate::{
    change::Xids,
    cursor::Cursor,
    page::max_align,
    twophase,
    version::PgMajor,
    wal::{record::Record, state::ClusterState},
};

const COMMIT: u8 = 0x00;
const PREPARE: u8 = 0x10;
const ABORT: u8 = 0x20;
const COMMIT_PREPARED: u8 = 0x30;
const ABORT_PREPARED: u8 = 0x40;
const ASSIGNMENT: u8 = 0x50;
const INVALIDATIONS: u8 = 0x60;
const OPERATION: u8 = 0x70;

const STATUS_COMMITTED: u8 = 1;
const STATUS_ABORTED: u8 = 2;

pub(super) fn xact(
    state: &mut ClusterState,
    record: &Record<'_>,
    fields: &mut Cursor<'_>,
    major: PgMajor,
    out: &mut Effects<'_>,
) -> Option<()> {
    match record.info & OPERATION {
        COMMIT | COMMIT_PREPARED | ABORT | ABORT_PREPARED => {
            let end = TransactionEnd::parse(record, fields, major)?;
            end.effects(state, record, out);
        }
        PREPARE => prepare(state, record, fields, out)?,
        ASSIGNMENT => {
            state.note_xid(fields.u32()?);
            let count = fields.count()?;
            fields.u32s(count)?.iter().for_each(|xid| state.note_xid(*xid));
        }
        INVALIDATIONS => {}
        _ => return None,
    }
    Some(())
}

/// A commit or abort record, plain or prepared. Both kinds share one layout.
struct TransactionEnd {
    committed: bool,
    /// µs since 2000-01-01.
    time: i64,
    /// The transaction that ends: for a prepared one the xid inside the record, not the header's.
    xid: u32,
    prepared: bool,
    subxids: Vec<u32>,
    dropped: Vec<RelTag>,
    origin: Option<OriginProgress>,
}

/// How far a replication origin had come when it was replayed here.
#[derive(Clone, Copy)]
struct OriginProgress {
    remote_lsn: u64,
    remote_time: i64,
}

impl TransactionEnd {
    /// `ParseCommitRecord`, `ParseAbortRecord` (`access/rmgrdesc/xactdesc.c`).
    fn parse(
        record: &Record<'_>,
        fields: &mut Cursor<'_>,
        major: PgMajor,
    ) -> Option<TransactionEnd> {
        const HAS_INFO: u8 = 0x80;
        const DATABASE: u32 = 1 << 0;
        const SUBXACTS: u32 = 1 << 1;
        const RELATIONS: u32 = 1 << 2;
        const INVALIDATIONS: u32 = 1 << 3;
        const TWOPHASE: u32 = 1 << 4;
        const ORIGIN: u32 = 1 << 5;
        const GID: u32 = 1 << 7;
        const DROPPED_STATS: u32 = 1 << 8;
        const INVALIDATION_SIZE: usize = 16;

        let operation = record.info & OPERATION;
        let mut end = TransactionEnd {
            committed: matches!(operation, COMMIT | COMMIT_PREPARED),
            time: fields.i64()?,
            xid: record.xid,
            prepared: matches!(operation, COMMIT_PREPARED | ABORT_PREPARED),
            subxids: Vec::new(),
            dropped: Vec::new(),
            origin: None,
        };
        let info = if record.info & HAS_INFO != 0 { fields.u32()? } else { 0 };
        let has = |bit: u32| info & bit != 0;
        if has(DATABASE) {
            fields.skip(8)?;
        }
        if has(SUBXACTS) {
            let count = fields.count()?;
            end.subxids = fields.u32s(count)?;
        }
        if has(RELATIONS) {
            end.dropped = relations(fields)?;
        }
        if has(DROPPED_STATS) {
            skip_items(fields, major.layout().stats_item_size)?;
        }
        if has(INVALIDATIONS) {
            skip_items(fields, INVALIDATION_SIZE)?;
        }
        if has(TWOPHASE) {
            let xid = fields.u32()?;
            if end.prepared {
                end.xid = xid;
            }
            if has(GID) {
                fields.c_string()?;
            }
        }
        if has(ORIGIN) {
            end.origin =
                Some(OriginProgress { remote_lsn: fields.u64()?, remote_time: fields.i64()? });
        }
        // A prepared end without its xid would end the wrong transaction.
        (!end.prepared || has(TWOPHASE)).then_some(end)
    }

    /// In the order of `xact_redo_commit` and `xact_redo_abort`.
    fn effects(&self, state: &mut ClusterState, record: &Record<'_>, out: &mut Effects<'_>) {
        let tree: Xids =
            [self.xid].iter().chain(&self.subxids).copied().filter(|xid| *xid != 0).collect();
        tree.iter().for_each(|xid| state.note_xid(*xid));
        let origin = record.origin.unwrap_or(0);
        if self.committed {
            if state.parameters.track_commit_timestamp {
                let time = self.origin.map_or(self.time, |origin| origin.remote_time);
                out.extend(slru::commit_time(time, origin, &tree));
                state.note_commit_ts(tree.last().copied().unwrap_or(0));
            }
            out.extend(slru::xact_status(STATUS_COMMITTED, &tree));
        } else {
            out.extend(slru::xact_status(STATUS_ABORTED, &tree));
        }
        out.extend(self.origin.and_then(|progress| origin_effect(origin, progress.remote_lsn)));
        out.extend(self.dropped.iter().map(|rel| Effect::RelDrop(*rel)));
        if self.prepared {
            out.push(Effect::TwoPhaseEnded { full_xid: state.full_xid(self.xid) });
        }
        out.push(Effect::Ended { stamp: self.time, committed: self.committed });
    }
}

/// A PREPARE record is the two-phase state file without its CRC; it begins with the file's header.
fn prepare(
    state: &mut ClusterState,
    record: &Record<'_>,
    fields: &mut Cursor<'_>,
    out: &mut Effects<'_>,
) -> Option<()> {
    const HEADER_SIZE: usize = 72;
    fields.skip(8)?;
    let xid = fields.u32()?;
    fields.skip(16)?;
    let subxid_count = fields.count()?;
    fields.skip(22)?;
    let gid_length = fields.u16()?;
    let remote_lsn = fields.u64()?;
    fields.skip(HEADER_SIZE - 64)?;
    fields.skip(max_align(usize::from(gid_length)))?;
    state.note_xid(xid);
    fields.u32s(subxid_count)?.iter().for_each(|xid| state.note_xid(*xid));
    let file = Bytes::from(twophase::file_bytes(record.main));
    out.push(Effect::TwoPhasePrepared { full_xid: state.full_xid(xid), file });
    out.extend(origin_effect(record.origin.unwrap_or(0), remote_lsn));
    Some(())
}

pub(super) fn origin(
    record: &Record<'_>,
    fields: &mut Cursor<'_>,
    out: &mut Effects<'_>,
) -> Option<()> {
    const SET: u8 = 0x00;
    const DROP: u8 = 0x10;
    let effect = match record.rmgr_info() {
        SET => {
            let remote_lsn = fields.u64()?;
            let (id, force) = (fields.u16()?, fields.u8()? != 0);
            let change = match force {
                true => OriginChange::Set(remote_lsn),
                false => OriginChange::AtLeast(remote_lsn),
            };
            Effect::Origin { id, change }
        }
        DROP => Effect::Origin { id: fields.u16()?, change: OriginChange::Dropped },
        _ => return None,
    };
    out.push(effect);
    Some(())
}

/// Progress noted by a transaction. Origin 0 is none, and progress never goes back this way: 0 is none either.
fn origin_effect(id: u16, remote_lsn: u64) -> Option<Effect<'static>> {
    let progressed = id != 0 && remote_lsn != 0;
    progressed.then_some(Effect::Origin { id, change: OriginChange::AtLeast(remote_lsn) })
}

fn relations(fields: &mut Cursor<'_>) -> Option<Vec<RelTag>> {
    let count = fields.count()?;
    let words = fields.u32s(count.checked_mul(3)?)?;
    let tag = |[tablespace, database, relation]: &[u32; 3]| RelTag {
        tablespace: *tablespace,
        database: *database,
        relation: *relation,
        fork: Fork::Main,
    };
    Some(words.as_chunks::<3>().0.iter().map(tag).collect())
}

/// An array of a counted C `int` and items that redo of files does not need.
fn skip_items(fields: &mut Cursor<'_>, size: usize) -> Option<()> {
    let count = fields.count()?;
    fields.skip(count.checked_mul(size)?)
}
