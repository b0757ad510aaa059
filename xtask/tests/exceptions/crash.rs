//! A server that stopped in the middle of a record, and what it made of that: the counters that its recovery came
//! to are the ones to match, without any slack.

use std::sync::OnceLock;

use treering_pgfmt::{control::CheckPoint, redo::rmgr, wal::record::Record};
use treering_types::{Lsn, WAL_PAGE_SIZE, WAL_SEGMENT_SIZE};

use super::{
    ordinary::{assert_all_clean, lives},
    scene::{Hints, Scene, cluster, crashed_at, records, script, template},
};

const OVERWRITE_CONTRECORD: u8 = 0xd0;
const SWITCH: u8 = 0x40;
const NEXT_OID: u8 = 0x30;

const BEFORE: &str = "
create table t (id int primary key, n int);
insert into t select g, 0 from generate_series(1, 500) g;
begin; insert into t values (1001, 1); savepoint one; insert into t values (1002, 1);
prepare transaction 'before the checkpoint';
checkpoint;
do $$ begin
  for i in 1..100 loop
    perform 1 from t where id = i for key share;
    begin
      update t set n = n + 1 where id = i;
    exception when division_by_zero then null;
    end;
  end loop;
end $$;
select lo_create(0) from generate_series(1, 9000);
begin; insert into t values (1003, 1); prepare transaction 'after the checkpoint';
select length(pg_logical_emit_message(false, 'long', repeat('y', 100000))::text);
create table flushed (id int);
";

struct Crash {
    scene: Scene,
    /// Start of the record whose end was lost.
    broken: Lsn,
}

fn crashes() -> [&'static Crash; 2] {
    static CRASHES: [OnceLock<Crash>; 2] = [const { OnceLock::new() }; 2];
    let [first, second] = &CRASHES;
    [first.get_or_init(|| crash(15)), second.get_or_init(|| crash(17))]
}

fn crash(major: u32) -> Crash {
    const SETTINGS: &str = "track_commit_timestamp = on";
    let base = template(major, Hints::Logged);
    let mut server = cluster(major, &base, SETTINGS);
    server.start().unwrap();
    script(&server, BEFORE);
    server.stop("immediate").unwrap();
    let records = records(&base, &server.wal_dir());
    let long = records.iter().find(|it| it.rmid == rmgr::LOGICAL_MESSAGE).unwrap();
    let lost_from = long.start.page_start() + 4 * WAL_PAGE_SIZE;
    assert!(lost_from < long.end);
    let mut server = crashed_at(major, &base, &server.wal_dir(), lost_from, SETTINGS);
    server.start().unwrap();
    script(&server, "insert into t values (1004, 1);");
    server.stop("fast").unwrap();
    Crash { scene: Scene::of(&base, &server), broken: long.start }
}

fn is(record: &Record, info: u8) -> bool {
    (record.rmid, record.info & 0xf0) == (rmgr::XLOG, info)
}

#[test]
fn e16_a_record_that_never_ended_is_passed_over() {
    for crash in crashes() {
        let at = crash.scene.records.iter().position(|it| is(it, OVERWRITE_CONTRECORD)).unwrap();
        let (before, overwrite) = (&crash.scene.records[at - 1], &crash.scene.records[at]);
        assert_eq!(overwrite.main[..8], crash.broken.0.to_le_bytes());
        // The broken one takes no part: the next record is on the page after, and links to the one before.
        assert_eq!((before.end, overwrite.prev), (crash.broken, before.start));
        assert!(overwrite.start.page_start() > crash.broken.page_start());
        assert_eq!(crash.scene.count(rmgr::LOGICAL_MESSAGE, 0x00), 0);
        crash.scene.assert_clean();
    }
}

#[test]
fn e16_nothing_follows_a_switch_in_its_segment() {
    for life in lives() {
        let records = &life.scene.records;
        let switch = records.iter().position(|it| is(it, SWITCH)).unwrap();
        let (switch, next) = (&records[switch], &records[switch + 1]);
        assert_eq!(switch.end, switch.start.segment_start() + WAL_SEGMENT_SIZE);
        assert_eq!((next.start, next.prev), (switch.end + 40, switch.start));
    }
    assert_all_clean();
}

/// Recovery ends with a checkpoint of all counters as the WAL gave them.
#[test]
fn counters_are_those_of_crash_recovery() {
    for crash in crashes() {
        let mut checkpoints = 0;
        let mut overwritten = false;
        let first = crash.scene.replica().judge.state;
        crash.scene.replay(|replica, record| {
            overwritten |= is(record, OVERWRITE_CONTRECORD);
            if !overwritten || !is(record, 0x00) || checkpoints > 0 {
                return;
            }
            checkpoints += 1;
            let theirs = CheckPoint::decode(crash.scene.major, record.main).unwrap();
            let state = &replica.judge.state;
            let ours = state.checkpoint_for_start(
                theirs.this_tli,
                theirs.prev_tli,
                theirs.redo,
                theirs.time,
            );
            assert_eq!(ours, theirs);
            // Each moved, so that none is right by standing still.
            assert!(state.next_xid > first.next_xid + 100);
            assert!(state.next_oid > first.next_oid + 8192);
            assert!(state.next_multi > first.next_multi + 90);
            assert!(state.next_multi_offset > first.next_multi_offset + 190);
            assert!(state.newest_commit_ts_xid > state.oldest_commit_ts_xid);
            assert_ne!(state.oldest_commit_ts_xid, 0);
        });
        assert_eq!(checkpoints, 1);
        assert!(crash.scene.count(rmgr::XLOG, NEXT_OID) >= 2);
        crash.scene.assert_clean();
    }
}

/// What was prepared after the last checkpoint is in no file when the WAL ends: recovery makes the file from the WAL.
#[test]
fn e12_files_of_late_prepared_transactions_are_the_servers() {
    for crash in crashes() {
        let mut at_crash = None;
        crash.scene.replay(|replica, record| {
            if is(record, OVERWRITE_CONTRECORD) {
                at_crash = Some((replica.inventory.two_phase.clone(), replica.prepared_at.clone()));
            }
        });
        let (ours, prepared_at) = at_crash.unwrap();
        let checkpoint = crash.scene.records.iter().find(|it| is(it, 0x10)).unwrap().start;
        assert_eq!(prepared_at.values().filter(|at| **at > checkpoint).count(), 1);
        assert_eq!(ours.len(), 2);
        assert_eq!(ours, crash.scene.primary.as_ref().unwrap().inventory.two_phase);
        crash.scene.assert_clean();
    }
}
