//! Checkpoints, counters and settings (`catalog/pg_control.h`, `access/xlog_internal.h`, `storage/standbydefs.h`).

use super::{EffectFault, Effects, slru};
use crate::{
    control::CheckPoint,
    cursor::Cursor,
    version::PgMajor,
    wal::{
        record::Record,
        state::{ClusterState, LastCheckpoint, Parameters},
    },
};

const CHECKPOINT_SHUTDOWN: u8 = 0x00;
const CHECKPOINT_ONLINE: u8 = 0x10;
const NEXT_OID: u8 = 0x30;
const PARAMETER_CHANGE: u8 = 0x60;
const FULL_PAGE_WRITES_CHANGE: u8 = 0x80;
/// `WAL_LEVEL_MINIMAL`.
const WAL_LEVEL_MINIMAL: u32 = 0;

/// Everything but the images of FPI records. Other records (NOOP, SWITCH, BACKUP_END, RESTORE_POINT,
/// END_OF_RECOVERY, OVERWRITE_CONTRECORD, CHECKPOINT_REDO) change nothing that is kept.
pub(super) fn xlog(
    state: &mut ClusterState,
    record: &Record<'_>,
    fields: &mut Cursor<'_>,
    major: PgMajor,
    out: &mut Effects<'_>,
) -> Result<(), EffectFault> {
    follow(state, record, fields, major, out).ok_or(EffectFault::Malformed)?;
    let changed = record.rmgr_info() == PARAMETER_CHANGE;
    if changed && state.parameters.wal_level == WAL_LEVEL_MINIMAL {
        return Err(EffectFault::MinimalWal);
    }
    Ok(())
}

fn follow(
    state: &mut ClusterState,
    record: &Record<'_>,
    fields: &mut Cursor<'_>,
    major: PgMajor,
    out: &mut Effects<'_>,
) -> Option<()> {
    match record.rmgr_info() {
        CHECKPOINT_SHUTDOWN => {
            let checkpoint = note_checkpoint(state, record, major)?;
            state.believe(&checkpoint);
        }
        CHECKPOINT_ONLINE => {
            let checkpoint = note_checkpoint(state, record, major)?;
            state.believe_at_least(&checkpoint);
        }
        NEXT_OID => state.next_oid = fields.u32()?,
        PARAMETER_CHANGE => {
            let parameters = changed_parameters(state, fields)?;
            change_parameters(state, parameters, out);
        }
        FULL_PAGE_WRITES_CHANGE => {
            state.parameters.full_page_writes = fields.u8()? != 0;
        }
        _ => {}
    }
    Some(())
}

/// RUNNING_XACTS knows the next xid; the rest of the standby records is for hot standby only.
pub(super) fn standby(
    state: &mut ClusterState,
    record: &Record<'_>,
    fields: &mut Cursor<'_>,
) -> Option<()> {
    const RUNNING_XACTS: u8 = 0x10;
    if record.rmgr_info() == RUNNING_XACTS {
        fields.skip(12)?;
        state.advance_next_xid(fields.u32()?);
    }
    Some(())
}

fn note_checkpoint(
    state: &mut ClusterState,
    record: &Record<'_>,
    major: PgMajor,
) -> Option<CheckPoint> {
    let payload = *record.main.first_chunk()?;
    let checkpoint = CheckPoint::decode(major, &payload)?;
    state.checkpoint = Some(LastCheckpoint { start: record.start, payload });
    state.parameters.full_page_writes = checkpoint.full_page_writes;
    Some(checkpoint)
}

/// `xl_parameter_change`.
fn changed_parameters(state: &ClusterState, fields: &mut Cursor<'_>) -> Option<Parameters> {
    Some(Parameters {
        max_connections: fields.u32()?,
        max_worker_processes: fields.u32()?,
        max_wal_senders: fields.u32()?,
        max_prepared_xacts: fields.u32()?,
        max_locks_per_xact: fields.u32()?,
        wal_level: fields.u32()?,
        wal_log_hints: fields.u8()? != 0,
        track_commit_timestamp: fields.u8()? != 0,
        ..state.parameters
    })
}

/// Switching commit timestamps on creates the current page and starts the range there, switching them off ends
/// both, each without a record of its own (WAL.md E11; `CommitTsParameterChange`).
fn change_parameters(state: &mut ClusterState, new: Parameters, out: &mut Effects<'_>) {
    let was_tracking = state.parameters.track_commit_timestamp;
    state.parameters = new;
    match (was_tracking, new.track_commit_timestamp) {
        (false, true) => {
            let next_xid = state.next_xid as u32;
            out.push(slru::first_commit_ts_page(next_xid));
            if state.oldest_commit_ts_xid == 0 {
                (state.oldest_commit_ts_xid, state.newest_commit_ts_xid) = (next_xid, next_xid);
            }
        }
        (true, false) => (state.oldest_commit_ts_xid, state.newest_commit_ts_xid) = (0, 0),
        (true, true) | (false, false) => {}
    }
}
