//! Too little room, and a log that has gone elsewhere.

use std::io;

use tokio::sync::watch;
use treering_consensus::{Commit, Generation, VoteRequest};
use treering_fs::{Call, CrashFs, FaultyFs};

use super::{
    tests::{
        Log, NODE, P1, P2, SEEDS, START, append, create, directory, elected, flush_of, readable,
        refusal_of, trimmable, two_logs,
    },
    *,
};
use crate::log_reader::LogReader;

fn vote(term: u64) -> ProposerMessage {
    VoteRequest { generation: Generation(0), term: Term(term) }.into()
}

pub(super) fn commit(commit_lsn: Lsn) -> ProposerMessage {
    Commit { generation: Generation(0), term: Term(1), commit_lsn }.into()
}

/// A member that follows `P1` in term 1.
fn followed(fs: &Arc<dyn FileSystem>) -> Member {
    let mut member = create(fs);
    member.process(vec![(P1, elected(&[(1, START)]))]);
    member
}

/// All of the log up to `to`, committed.
fn written(member: &mut Member, log: &Log, to: Lsn) {
    let out = member.process(vec![(P1, append(log, 1, START, to, to))]);
    assert_eq!(flush_of(&out).unwrap().flush_lsn, to);
    member.process(vec![(P1, commit(to))]);
    assert_eq!(member.status().commit_lsn, to);
}

#[test]
fn a_limit_refuses_without_a_trace_until_there_is_room() {
    let (log, ..) = two_logs();
    let crash_fs = CrashFs::new();
    let fs: Arc<dyn FileSystem> = Arc::new(crash_fs.clone());
    let (to, from) = (log.ends[7], START.0);
    assert!(to.segment_number() > START.segment_number());
    // The next record is longer than what is left.
    let room = Room::of(to.0 - from + 500);
    let mut member = followed(&fs).charged_to(&room);
    written(&mut member, &log, to);
    assert_eq!(room.used(), to.0 - from);
    let calls = crash_fs.calls();
    for _ in 0..3 {
        let out = member.process(vec![(P1, append(&log, 1, to, log.end, to))]);
        assert_eq!((refusal_of(&out), flush_of(&out)), (Some(RefusalReason::DiskFull), None));
    }
    assert_eq!(crash_fs.calls(), calls, "nothing was touched");
    let status = member.status();
    assert!(status.refusing.unwrap().contains("disk limit"));
    assert_eq!((status.flush_lsn, room.used()), (to, to.0 - from));
    // Elections go on, whoever is elected.
    let out = member.process(vec![(P2, vote(2))]);
    assert_eq!(refusal_of(&out), None);
    member.process(vec![(P2, elected(&[(1, START), (2, to)]))]);
    let out = member.process(vec![(P2, append(&log, 2, to, log.end, to))]);
    assert_eq!(refusal_of(&out), Some(RefusalReason::DiskFull));
    // Room comes by trimming.
    member.trim(trimmable(to), false).unwrap();
    assert_eq!(room.used(), to.segment_offset());
    member.process(vec![(P2, elected(&[(1, START), (2, to)]))]);
    let out = member.process(vec![(P2, append(&log, 2, to, log.end, to))]);
    assert_eq!(flush_of(&out).unwrap().flush_lsn, log.end);
    assert_eq!(member.status().refusing, None);
    assert_eq!(room.used(), log.end.segment_offset());
    drop(member);
    assert_eq!(room.used(), 0);
}

#[test]
fn what_is_cut_off_is_room_again() {
    let (log, other, fork) = two_logs();
    let fs: Arc<dyn FileSystem> = Arc::new(CrashFs::new());
    let room = Room::of(log.end.0 - START.0);
    let mut member = followed(&fs).charged_to(&room);
    member.process(vec![(P1, append(&log, 1, START, log.end, fork))]);
    assert_eq!(room.used(), room.limit());
    member.process(vec![(P2, elected(&[(1, START), (2, fork)]))]);
    assert_eq!(room.used(), fork.0 - START.0);
    let out = member.process(vec![(P2, append(&other, 2, fork, other.end, fork))]);
    assert_eq!(flush_of(&out).unwrap().flush_lsn, other.end);
}

#[test]
fn a_file_system_that_is_nearly_full_takes_votes_only() {
    let (log, ..) = two_logs();
    let faulty = FaultyFs::new(CrashFs::new());
    let fs: Arc<dyn FileSystem> = Arc::new(faulty.clone());
    let mut member = followed(&fs);
    faulty.limit_free_bytes(1 << 20);
    let out = member.process(vec![(P1, append(&log, 1, START, log.end, START))]);
    assert_eq!(refusal_of(&out), Some(RefusalReason::DiskFull));
    let out = member.process(vec![(P2, vote(2))]);
    assert_eq!(refusal_of(&out), None);
    faulty.limit_free_bytes(1 << 30);
    member.process(vec![(P2, elected(&[(2, START)]))]);
    let out = member.process(vec![(P2, append(&log, 2, START, log.end, START))]);
    assert_eq!(flush_of(&out).unwrap().flush_lsn, log.end);
}

/// The disk fills up in the middle of an append, and is too full even to take back what was written of it.
#[test]
fn a_torn_append_on_a_full_disk_is_put_right_once_there_is_room() {
    let (log, ..) = two_logs();
    let faulty = FaultyFs::new(CrashFs::new());
    let fs: Arc<dyn FileSystem> = Arc::new(faulty.clone());
    let mut member = followed(&fs);
    written(&mut member, &log, log.ends[1]);
    // The append crosses into a new segment: its first part is written.
    faulty.set_rule(|call, _| match call {
        Call::SetLen(len) if len > 0 => Some(io::Error::from_raw_os_error(28)),
        _ => None,
    });
    let out = member.process(vec![(P1, append(&log, 1, log.ends[1], log.end, START))]);
    assert_eq!((refusal_of(&out), flush_of(&out)), (Some(RefusalReason::DiskFull), None));
    for _ in 0..3 {
        let out = member.process(vec![(P2, vote(2))]);
        assert_eq!(refusal_of(&out), Some(RefusalReason::DiskFull), "nothing is said from memory");
        let status = member.status();
        assert_eq!((status.latched, status.flush_lsn), (None, log.ends[1]));
        assert_eq!((status.commit_lsn, status.term), (log.ends[1], Term(1)));
        assert!(status.refusing.is_some());
    }
    assert!(member.trim(trimmable(log.ends[1]), false).is_err());
    faulty.clear();
    let out = member.process(vec![(P2, vote(2))]);
    assert_eq!(refusal_of(&out), None);
    let found = member.status().flush_lsn;
    assert!(found >= log.ends[1] && log.ends.contains(&found));
    member.process(vec![(P2, elected(&[(1, START), (2, log.ends[1])]))]);
    let out = member.process(vec![(P2, append(&log, 2, log.ends[1], log.end, log.ends[1]))]);
    assert_eq!(flush_of(&out).unwrap().flush_lsn, log.end);
}

/// Trimming makes room, and must not need any.
#[test]
fn a_disk_without_room_for_a_control_file_is_trimmed_all_the_same() {
    let (log, ..) = two_logs();
    let faulty = FaultyFs::new(CrashFs::new());
    let fs: Arc<dyn FileSystem> = Arc::new(faulty.clone());
    let mut member = followed(&fs);
    written(&mut member, &log, log.end);
    member.persist_commit().unwrap();
    assert_eq!(member.files().segments().unwrap().len(), 2);
    faulty.fill_disk();
    assert!(member.trim(trimmable(log.end), false).is_err());
    assert_eq!(member.files().segments().unwrap(), [log.end.segment_number()]);
    faulty.clear();
    let reopened = Member::open(fs, &directory(), NODE).unwrap();
    assert_eq!(reopened.status().flush_lsn, log.end);
    member.trim(trimmable(log.end), false).unwrap();
    assert_eq!(member.status().trim_lsn, log.end.segment_start());
}

/// Read on whichever thread asks: what was written last, and lies here.
#[test]
fn what_was_written_last_is_at_hand_until_it_is_trimmed() {
    let (log, ..) = two_logs();
    let fs: Arc<dyn FileSystem> = Arc::new(CrashFs::new());
    let mut member = followed(&fs);
    let (middle, end) = (log.ends[7], log.end);
    written(&mut member, &log, end);
    let (publish, status) = watch::channel(member.status());
    let reader = LogReader {
        identity: Arc::new(member.identity().clone()),
        files: member.files().clone(),
        archive: None,
        status,
    };
    for from in [START, middle, end] {
        let read = reader.read(from, end).unwrap();
        assert_eq!(reader.read_at_hand(from, end), Some(read));
    }
    assert_eq!(reader.read_at_hand(middle, end + 1), None, "not there yet");
    publish.send_modify(|status| status.flush_lsn = end + (1 << 20));
    assert_eq!(reader.read_at_hand(middle, end), None, "may have left the kernel's memory");
    member.trim(trimmable(middle), false).unwrap();
    publish.send_replace(member.status());
    assert_eq!(reader.read_at_hand(START, end), None, "trimmed");
    let read = reader.read(middle, end).unwrap();
    assert_eq!(reader.read_at_hand(middle, end), Some(read));
}

#[test]
fn a_sleeping_log_that_is_elsewhere_takes_no_room_and_goes_on() {
    let (log, ..) = two_logs();
    let crash_fs = CrashFs::new();
    let fs: Arc<dyn FileSystem> = Arc::new(crash_fs.clone());
    let room = Room::of(1 << 20);
    let mut member = followed(&fs).charged_to(&room);
    let middle = log.ends[8];
    let half = Lsn(middle.0 + 11);
    member.process(vec![(P1, append(&log, 1, START, half, middle))]);
    member.process(vec![(P1, commit(middle))]);
    member.trim(readable(middle), true).unwrap();
    assert_eq!(member.status().trim_lsn, middle.segment_start(), "half a record is held");
    member.process(vec![(P1, elected(&[(1, START)]))]);
    member.trim(readable(Lsn(middle.0 - 8)), true).unwrap();
    member.trim(readable(middle), false).unwrap();
    member.trim(trimmable(middle), true).unwrap();
    assert_eq!(member.status().trim_lsn, middle.segment_start());
    member.trim(readable(middle), true).unwrap();
    assert_eq!((member.status().trim_lsn, room.used()), (middle, 0));
    assert!(member.files().segments().unwrap().is_empty());
    for seed in SEEDS {
        let after: Arc<dyn FileSystem> = Arc::new(crash_fs.crash(seed));
        let mut after = Member::open(after, &directory(), NODE).unwrap();
        assert_eq!(after.status().flush_lsn, middle);
        after.process(vec![(P2, elected(&[(1, START), (2, middle)]))]);
        let out = after.process(vec![(P2, append(&log, 2, middle, log.end, middle))]);
        assert_eq!(flush_of(&out).unwrap().flush_lsn, log.end);
        assert_eq!(after.files().read(middle, log.end).unwrap(), log.range(middle, log.end));
    }
}
