//! A base and its WAL, redone here and by stock Postgres.

use std::{fs, path::Path, time::Instant};

use anyhow::{Context, Result, ensure};
use treering_pgfmt::{
    control::{CheckPoint, ControlFile},
    judge::Finding,
    version::PgMajor,
    wal::{record::Record, state::ClusterState},
};
use treering_stock::Postgres;
use treering_types::Lsn;

use crate::{compare, replica::Replica, report::Report, standby, wal};

/// What to replay.
#[derive(Clone, Debug)]
pub struct Input<'a> {
    /// A base backup, or a data directory copied while its server was stopped.
    pub base: &'a Path,
    /// WAL from the base's start on; best written with `wal_consistency_checking = all`.
    pub wal: &'a Path,
    /// Also recover a copy of the base with stock Postgres and compare the files.
    pub standby: bool,
    /// Start of the record that the WAL must reach: the shutdown checkpoint of a server that was stopped.
    pub until: Option<Lsn>,
}

/// Where the last checkpoint of a stopped server is.
///
/// # Errors
/// `global/pg_control` cannot be read.
pub fn last_checkpoint(data: &Path) -> Result<Lsn> {
    Ok(control_of(data)?.checkpoint_start())
}

fn control_of(data: &Path) -> Result<ControlFile> {
    let path = data.join("global/pg_control");
    let bytes = fs::read(&path).with_context(|| path.display().to_string())?;
    ControlFile::parse(&bytes).with_context(|| path.display().to_string())
}

/// Where recovery of a base begins.
struct Start {
    major: PgMajor,
    state: ClusterState,
    at: Lsn,
}

/// Replays `input`, showing every record to `watch` after it was redone.
///
/// # Errors
/// The input cannot be read, or the standby does not run. Mismatches are no errors: they are in the report.
pub fn verify(input: &Input<'_>, mut watch: impl FnMut(&Replica, &Record)) -> Result<Report> {
    let start = start_of(input.base)?;
    let mut replica = Replica::new(start.major, input.base, start.state)?;
    let (mut wal_bytes, mut stored_bytes, mut checkpoint) = (0, 0, None);
    let mut faults = Vec::new();
    let began = Instant::now();
    let end = wal::for_each_record(start.major, input.wal, start.at, |raw, record| {
        wal_bytes += raw.bytes.len() as u64;
        faults.extend(check_counters(&replica, record));
        stored_bytes += replica.apply(record);
        if record.rmid == 0 && record.rmgr_info() <= 0x10 {
            checkpoint = CheckPoint::decode(start.major, record.main).map(|it| it.redo);
        }
        watch(&replica, record);
        Ok(())
    })?;
    let redo_time = began.elapsed();
    let began = Instant::now();
    let files = match input.standby {
        true => {
            let redo = checkpoint.context(
                "the WAL has no checkpoint record: without one a standby does not write its pages to files",
            )?;
            let postgres = Postgres::find(start.major.number())?;
            let standby = standby::recover(&postgres, input.base, input.wal, end.last_start)?;
            Some(compare::compare(&replica, &standby.data(), redo)?)
        }
        false => None,
    };
    if let Some(until) = input.until.filter(|until| end.last_start < *until) {
        let (at, reason) = (end.at, &end.reason);
        faults.push(format!("the WAL should reach {until} and ends at {at}: {reason}"));
    }
    faults.extend(replica.judge.findings.iter().map(Finding::to_string));
    Ok(Report {
        major: start.major,
        records: end.records,
        wal_bytes,
        stored_bytes,
        end: end.reason,
        tallies: replica.judge.tallies.clone(),
        findings: faults,
        files,
        redo_time,
        standby_time: began.elapsed(),
    })
}

/// Reads `global/pg_control`, and `backup_label` where there is one: a base backup starts where it says.
fn start_of(base: &Path) -> Result<Start> {
    let control = control_of(base)?;
    let at = match fs::read_to_string(base.join("backup_label")) {
        Ok(label) => {
            let line = label.lines().find_map(|line| line.strip_prefix("START WAL LOCATION: "));
            let lsn = line.and_then(|line| line.split(' ').next()).context("backup_label")?;
            lsn.parse().context("backup_label: START WAL LOCATION")?
        }
        Err(_) => control.checkpoint().redo,
    };
    ensure!(at.is_valid(), "pg_control of {} names no start", base.display());
    Ok(Start { major: control.major(), state: ClusterState::from_control(&control), at })
}

/// A shutdown checkpoint carries the counters exactly: they must have been known before it is read. The oldest ids
/// may be behind: `vac_truncate_clog` logs them only with the removal of a segment, and otherwise moves them, and the
/// databases they come from, in memory.
fn check_counters(replica: &Replica, record: &Record) -> Option<String> {
    if record.rmid != 0 || record.rmgr_info() != 0 {
        return None;
    }
    let theirs = CheckPoint::decode(replica.major, record.main)?;
    let state = &replica.judge.state;
    let ours =
        state.checkpoint_for_start(theirs.this_tli, theirs.prev_tli, theirs.redo, theirs.time);
    // Oids are logged 8192 ahead of their use; settings that changed are logged after a restart.
    let ours = CheckPoint {
        next_oid: if ours.next_oid.wrapping_sub(theirs.next_oid) <= 8192 {
            theirs.next_oid
        } else {
            ours.next_oid
        },
        full_page_writes: theirs.full_page_writes,
        ..ours
    };
    let ours = with_oldest(ours, &theirs);
    (ours != theirs)
        .then(|| format!("counters at the checkpoint {}: ours {ours:?}, {theirs:?}", record.start))
}

/// `ours` with the oldest ids of `theirs`, unless ours are past them.
fn with_oldest(mut ours: CheckPoint, theirs: &CheckPoint) -> CheckPoint {
    let reaches = |ours: u32, theirs: u32| theirs.wrapping_sub(ours).cast_signed() >= 0;
    if reaches(ours.oldest_xid, theirs.oldest_xid) {
        (ours.oldest_xid, ours.oldest_xid_db) = (theirs.oldest_xid, theirs.oldest_xid_db);
    }
    if reaches(ours.oldest_multi, theirs.oldest_multi) {
        (ours.oldest_multi, ours.oldest_multi_db) = (theirs.oldest_multi, theirs.oldest_multi_db);
    }
    // 0: commit times are not tracked.
    if ours.oldest_commit_ts_xid != 0
        && reaches(ours.oldest_commit_ts_xid, theirs.oldest_commit_ts_xid)
    {
        ours.oldest_commit_ts_xid = theirs.oldest_commit_ts_xid;
    }
    ours
}
