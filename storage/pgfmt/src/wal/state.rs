//! What must be known along the WAL beside pages: the counters and settings a checkpoint would hold.
//!
//! [`ClusterState`] starts from an imported `pg_control` and follows every record; at any record end it can name
//! the checkpoint that stock Postgres starts from there. It is a pure function of the WAL prefix: the same
//! records give the same state, so it is stored field by field, each a small value that is written only when it
//! changed.
//!
//! Invariants: `next_xid` is above every xid seen, and like the other counters goes back only to the exact
//! value of a shutdown checkpoint; its low half is never one of the three reserved xids after an advance.
//!
//! Sources: `access/transam.h`, `varsup.c`, `multixact.c`, `xlog_redo` in `access/transam/xlog.c`.

use bytes::{BufMut, Bytes};
use treering_types::{ControlField, ErrorKind, Lsn};

use super::encode::CHECKPOINT_SIZE;
use crate::{
    control::{CheckPoint, ControlFile},
    cursor::Cursor,
    page::xid_precedes,
};

/// The first xid that belongs to a transaction (`FirstNormalTransactionId`).
pub const FIRST_NORMAL_XID: u32 = 3;
/// Fields that [`ClusterState`] holds: all but the imported file.
pub const STATE_FIELDS: [ControlField; 8] = [
    ControlField::NextXid,
    ControlField::NextOid,
    ControlField::NextMulti,
    ControlField::OldestXid,
    ControlField::OldestMulti,
    ControlField::CommitTs,
    ControlField::Parameters,
    ControlField::Checkpoint,
];

/// Counters, horizons and settings at one point of the WAL.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ClusterState {
    /// Next full transaction id: epoch in the high half.
    pub next_xid: u64,
    pub next_oid: u32,
    pub next_multi: u32,
    pub next_multi_offset: u32,
    pub oldest_xid: u32,
    pub oldest_xid_db: u32,
    pub oldest_multi: u32,
    pub oldest_multi_db: u32,
    /// Oldest and newest xid with a commit timestamp; both 0 while tracking is off.
    pub oldest_commit_ts_xid: u32,
    pub newest_commit_ts_xid: u32,
    pub parameters: Parameters,
    /// The last checkpoint record; `None` only before anything was loaded.
    pub checkpoint: Option<LastCheckpoint>,
}

/// Settings that the WAL reports because recovery depends on them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Parameters {
    /// 0 minimal, 1 replica, 2 logical.
    pub wal_level: u32,
    pub max_connections: u32,
    pub max_worker_processes: u32,
    pub max_wal_senders: u32,
    pub max_prepared_xacts: u32,
    pub max_locks_per_xact: u32,
    pub wal_log_hints: bool,
    pub track_commit_timestamp: bool,
    pub full_page_writes: bool,
    /// Fixed when the cluster was made.
    pub data_checksums: bool,
}

impl Parameters {
    /// `XLogHintBitIsNeeded`: hint-bit changes are logged, and Heap2 VISIBLE moves the heap page's LSN (E10).
    pub fn hints_logged(&self) -> bool {
        self.wal_log_hints || self.data_checksums
    }
}

/// A checkpoint record of the WAL: where followers start.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LastCheckpoint {
    /// Start of the record.
    pub start: Lsn,
    /// Its `CheckPoint`, redo pointer included.
    pub payload: [u8; CHECKPOINT_SIZE],
}

/// A stored field that is not what [`ClusterState::encode`] writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("stored control field {0:?} is malformed")]
pub struct StateError(pub ControlField);

impl StateError {
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::Corrupt
    }
}

impl ClusterState {
    /// The state that a control file describes: exact after a clean shutdown, else the minima from which the WAL
    /// after the checkpoint's redo pointer leads on.
    pub fn from_control(control: &ControlFile) -> ClusterState {
        let mut state = ClusterState::default();
        let checkpoint = control.checkpoint();
        state.believe(&checkpoint);
        let file = control.parameters();
        state.parameters = Parameters {
            wal_level: file.wal_level,
            max_connections: file.max_connections,
            max_worker_processes: file.max_worker_processes,
            max_wal_senders: file.max_wal_senders,
            max_prepared_xacts: file.max_prepared_xacts,
            max_locks_per_xact: file.max_locks_per_xact,
            wal_log_hints: file.wal_log_hints,
            track_commit_timestamp: file.track_commit_timestamp,
            full_page_writes: checkpoint.full_page_writes,
            data_checksums: control.data_checksum_version() != 0,
        };
        let payload = checkpoint.encode();
        state.checkpoint = Some(LastCheckpoint { start: control.checkpoint_start(), payload });
        state
    }

    /// The checkpoint from which stock Postgres starts here without recovery: a shutdown checkpoint, so
    /// transactions still running count as aborted. `redo` is the start of the checkpoint record itself, `time`
    /// in Unix seconds.
    pub fn checkpoint_for_start(
        &self,
        pg_tli: u32,
        prev_tli: u32,
        redo: Lsn,
        time: i64,
    ) -> CheckPoint {
        // 17 put wal_level into what is padding before; the WAL's own last checkpoint tells which it is.
        let carried = self.checkpoint.is_some_and(|last| last.payload[20..24] != [0; 4]);
        CheckPoint {
            redo,
            this_tli: pg_tli,
            prev_tli,
            full_page_writes: self.parameters.full_page_writes,
            wal_level: if carried { self.parameters.wal_level } else { 0 },
            next_xid: self.next_xid,
            next_oid: self.next_oid,
            next_multi: self.next_multi,
            next_multi_offset: self.next_multi_offset,
            oldest_xid: self.oldest_xid,
            oldest_xid_db: self.oldest_xid_db,
            oldest_multi: self.oldest_multi,
            oldest_multi_db: self.oldest_multi_db,
            time,
            oldest_commit_ts_xid: self.oldest_commit_ts_xid,
            newest_commit_ts_xid: self.newest_commit_ts_xid,
            oldest_active_xid: 0,
        }
    }

    /// Takes every counter of a checkpoint at which nothing ran.
    pub(super) fn believe(&mut self, exact: &CheckPoint) {
        self.next_xid = exact.next_xid;
        self.next_oid = exact.next_oid;
        self.next_multi = exact.next_multi;
        self.next_multi_offset = exact.next_multi_offset;
        self.oldest_xid = exact.oldest_xid;
        self.oldest_xid_db = exact.oldest_xid_db;
        self.oldest_multi = exact.oldest_multi;
        self.oldest_multi_db = exact.oldest_multi_db;
        self.oldest_commit_ts_xid = exact.oldest_commit_ts_xid;
        self.newest_commit_ts_xid = exact.newest_commit_ts_xid;
    }

    /// Takes the counters of an online checkpoint as minima; its next oid may be stale and is ignored.
    pub(super) fn believe_at_least(&mut self, minima: &CheckPoint) {
        self.next_xid = self.next_xid.max(minima.next_xid);
        self.advance_multi(minima.next_multi, minima.next_multi_offset);
        self.advance_oldest_xid(minima.oldest_xid, minima.oldest_xid_db);
        if precedes(self.oldest_multi, minima.oldest_multi) {
            self.oldest_multi = minima.oldest_multi;
            self.oldest_multi_db = minima.oldest_multi_db;
        }
        self.advance_oldest_commit_ts(minima.oldest_commit_ts_xid);
    }

    /// The full id of an xid near the next one: within 2^31 of it either way.
    pub fn full_xid(&self, xid: u32) -> u64 {
        let distance = xid.wrapping_sub(self.next_xid as u32) as i32;
        self.next_xid.checked_add_signed(i64::from(distance)).unwrap_or(u64::from(xid))
    }

    /// Notes that `xid` is in use (`AdvanceNextFullTransactionIdPastXid`); reserved xids count for nothing.
    pub(super) fn note_xid(&mut self, xid: u32) {
        if xid < FIRST_NORMAL_XID || precedes(xid, self.next_xid as u32) {
            return;
        }
        let next = self.full_xid(xid).saturating_add(1);
        let reserved = (next as u32) < FIRST_NORMAL_XID;
        self.next_xid = if reserved { next | u64::from(FIRST_NORMAL_XID) } else { next };
    }

    /// The next xid is at least `xid`.
    pub(super) fn advance_next_xid(&mut self, xid: u32) {
        if xid >= FIRST_NORMAL_XID {
            self.next_xid = self.next_xid.max(self.full_xid(xid));
        }
    }

    /// `MultiXactAdvanceNextMXact`: each counter on its own.
    pub(super) fn advance_multi(&mut self, multi: u32, offset: u32) {
        if precedes(self.next_multi, multi) {
            self.next_multi = multi;
        }
        if precedes(self.next_multi_offset, offset) {
            self.next_multi_offset = offset;
        }
    }

    pub(super) fn advance_oldest_xid(&mut self, xid: u32, database: u32) {
        if xid_precedes(self.oldest_xid, xid) {
            self.oldest_xid = xid;
            self.oldest_xid_db = database;
        }
    }

    /// `AdvanceOldestCommitTsXid`: only while there is a range.
    pub(super) fn advance_oldest_commit_ts(&mut self, xid: u32) {
        if self.oldest_commit_ts_xid != 0 && xid_precedes(self.oldest_commit_ts_xid, xid) {
            self.oldest_commit_ts_xid = xid;
        }
    }

    /// A commit of a tree whose last xid is `newest` was stamped.
    pub(super) fn note_commit_ts(&mut self, newest: u32) {
        if xid_precedes(self.newest_commit_ts_xid, newest) {
            self.newest_commit_ts_xid = newest;
        }
    }

    /// The stored form of one field; `None` for the imported file and for a checkpoint not seen yet.
    pub fn encode(&self, field: ControlField) -> Option<Bytes> {
        let mut out = Vec::new();
        let mut words = |words: &[u32]| words.iter().for_each(|word| out.put_u32_le(*word));
        match field {
            ControlField::Imported => return None,
            ControlField::NextXid => out.put_u64_le(self.next_xid),
            ControlField::NextOid => words(&[self.next_oid]),
            ControlField::NextMulti => words(&[self.next_multi, self.next_multi_offset]),
            ControlField::OldestXid => words(&[self.oldest_xid, self.oldest_xid_db]),
            ControlField::OldestMulti => words(&[self.oldest_multi, self.oldest_multi_db]),
            ControlField::CommitTs => {
                words(&[self.oldest_commit_ts_xid, self.newest_commit_ts_xid]);
            }
            ControlField::Parameters => self.parameters.encode_into(&mut out),
            ControlField::Checkpoint => {
                let last = self.checkpoint.as_ref()?;
                out.put_u64_le(last.start.0);
                out.put_slice(&last.payload);
            }
        }
        Some(Bytes::from(out))
    }

    /// True when both would store the same value for `field`.
    pub(super) fn agrees(&self, other: &ClusterState, field: ControlField) -> bool {
        match field {
            ControlField::Imported => true,
            ControlField::NextXid => self.next_xid == other.next_xid,
            ControlField::NextOid => self.next_oid == other.next_oid,
            ControlField::NextMulti => {
                (self.next_multi, self.next_multi_offset)
                    == (other.next_multi, other.next_multi_offset)
            }
            ControlField::OldestXid => {
                (self.oldest_xid, self.oldest_xid_db) == (other.oldest_xid, other.oldest_xid_db)
            }
            ControlField::OldestMulti => {
                (self.oldest_multi, self.oldest_multi_db)
                    == (other.oldest_multi, other.oldest_multi_db)
            }
            ControlField::CommitTs => {
                (self.oldest_commit_ts_xid, self.newest_commit_ts_xid)
                    == (other.oldest_commit_ts_xid, other.newest_commit_ts_xid)
            }
            ControlField::Parameters => self.parameters == other.parameters,
            ControlField::Checkpoint => self.checkpoint == other.checkpoint,
        }
    }

    /// Sets one field from its stored form. The imported file is not part of the state and changes nothing.
    ///
    /// # Errors
    /// [`StateError`]; the state is then unchanged.
    pub fn load(&mut self, field: ControlField, bytes: &Bytes) -> Result<(), StateError> {
        let mut loaded = self.clone();
        let mut fields = Cursor::new(bytes);
        let read = loaded.load_from(field, &mut fields);
        if read.is_none() || (field != ControlField::Imported && !fields.is_at_end()) {
            return Err(StateError(field));
        }
        *self = loaded;
        Ok(())
    }

    fn load_from(&mut self, field: ControlField, fields: &mut Cursor<'_>) -> Option<()> {
        match field {
            ControlField::Imported => {}
            ControlField::NextXid => self.next_xid = fields.u64()?,
            ControlField::NextOid => self.next_oid = fields.u32()?,
            ControlField::NextMulti => {
                (self.next_multi, self.next_multi_offset) = (fields.u32()?, fields.u32()?);
            }
            ControlField::OldestXid => {
                (self.oldest_xid, self.oldest_xid_db) = (fields.u32()?, fields.u32()?);
            }
            ControlField::OldestMulti => {
                (self.oldest_multi, self.oldest_multi_db) = (fields.u32()?, fields.u32()?);
            }
            ControlField::CommitTs => {
                self.oldest_commit_ts_xid = fields.u32()?;
                self.newest_commit_ts_xid = fields.u32()?;
            }
            ControlField::Parameters => self.parameters = Parameters::decode(fields)?,
            ControlField::Checkpoint => {
                let start = Lsn(fields.u64()?);
                let payload = fields.slice(CHECKPOINT_SIZE)?.as_ref().try_into().ok()?;
                self.checkpoint = Some(LastCheckpoint { start, payload });
            }
        }
        Some(())
    }
}

const PARAMETER_WAL_LOG_HINTS: u8 = 0x01;
const PARAMETER_TRACK_COMMIT_TIMESTAMP: u8 = 0x02;
const PARAMETER_FULL_PAGE_WRITES: u8 = 0x04;
const PARAMETER_DATA_CHECKSUMS: u8 = 0x08;

impl Parameters {
    fn encode_into(&self, out: &mut Vec<u8>) {
        for number in [
            self.wal_level,
            self.max_connections,
            self.max_worker_processes,
            self.max_wal_senders,
            self.max_prepared_xacts,
            self.max_locks_per_xact,
        ] {
            out.put_u32_le(number);
        }
        let flag = |set: bool, bit: u8| if set { bit } else { 0 };
        out.put_u8(
            flag(self.wal_log_hints, PARAMETER_WAL_LOG_HINTS)
                | flag(self.track_commit_timestamp, PARAMETER_TRACK_COMMIT_TIMESTAMP)
                | flag(self.full_page_writes, PARAMETER_FULL_PAGE_WRITES)
                | flag(self.data_checksums, PARAMETER_DATA_CHECKSUMS),
        );
    }

    fn decode(fields: &mut Cursor<'_>) -> Option<Parameters> {
        let mut parameters = Parameters {
            wal_level: fields.u32()?,
            max_connections: fields.u32()?,
            max_worker_processes: fields.u32()?,
            max_wal_senders: fields.u32()?,
            max_prepared_xacts: fields.u32()?,
            max_locks_per_xact: fields.u32()?,
            ..Parameters::default()
        };
        let flags = fields.u8().filter(|flags| *flags < 0x10)?;
        parameters.wal_log_hints = flags & PARAMETER_WAL_LOG_HINTS != 0;
        parameters.track_commit_timestamp = flags & PARAMETER_TRACK_COMMIT_TIMESTAMP != 0;
        parameters.full_page_writes = flags & PARAMETER_FULL_PAGE_WRITES != 0;
        parameters.data_checksums = flags & PARAMETER_DATA_CHECKSUMS != 0;
        Some(parameters)
    }
}

/// Order of counters that wrap around at 2^32 (`MultiXactIdPrecedes`).
fn precedes(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) < 0
}

#[cfg(test)]
mod tests;
