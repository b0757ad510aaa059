//! A sync is under way while more is written: what may be lost, and what waits for it.
//!
//! The disk may do what a sync is to do at its begin, at its end, or in between; so tests run the job early, covering just what was
//! written before it began, and late, covering by chance what came after.

use std::{
    cell::Cell,
    io,
    sync::{
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use treering_consensus::{Append, Commit, Generation, VoteRequest};
use treering_fs::{Call, CrashFs, FaultyFs};

use super::{
    tests::{
        Log, NODE, P1, P2, SEEDS, START, append, create, directory, elected, flush_of, identity,
        refusal_of, two_logs,
    },
    *,
};
use crate::unsynced::SyncJob;

fn vote(term: u64) -> ProposerMessage {
    VoteRequest { generation: Generation(0), term: Term(term) }.into()
}

/// A member that follows `P1` in term 1.
fn followed(fs: &Arc<dyn FileSystem>) -> Member {
    let mut member = create(fs);
    member.process(vec![(P1, elected(&[(1, START)]))]);
    member
}

fn take(member: &mut Member, log: &Log, from: Lsn, to: Lsn) -> Vec<Outgoing> {
    member.take_in(vec![(P1, append(log, 1, from, to, START))])
}

fn end_sync(member: &mut Member) -> Vec<Outgoing> {
    let mut out = Vec::new();
    member.end_sync(&mut out);
    out
}

#[test]
fn just_what_was_written_before_a_sync_is_acknowledged_at_its_end() {
    for is_early in [true, false] {
        let (log, ..) = two_logs();
        let crash_fs = CrashFs::new();
        let fs: Arc<dyn FileSystem> = Arc::new(crash_fs.clone());
        let mut member = followed(&fs);
        // Half a record is covered, and not acknowledged.
        let (first, half) = (log.ends[1], Lsn(log.ends[2].0 - 1000));
        assert_eq!(take(&mut member, &log, START, half), []);
        let job = member.begin_sync().unwrap();
        assert!(member.begin_sync().is_none(), "one at a time");
        let mut late = Some(job);
        if is_early {
            late.take().into_iter().for_each(SyncJob::run);
        }
        // The rest, in two segments, one of them new.
        assert_eq!(take(&mut member, &log, half, log.end), []);
        assert_eq!(member.has_synced(), is_early);
        assert_eq!(member.status().flush_lsn, START);
        late.into_iter().for_each(SyncJob::run);
        let out = end_sync(&mut member);
        assert_eq!(flush_of(&out).unwrap().flush_lsn, first, "early: {is_early}");
        for seed in SEEDS {
            let after: Arc<dyn FileSystem> = Arc::new(crash_fs.crash(seed));
            let found = Member::open(after, &directory(), NODE).unwrap().status().flush_lsn;
            assert!(first <= found && log.ends.contains(&found), "seed {seed}: {found}");
        }
        let after: Arc<dyn FileSystem> = Arc::new(crash_fs.crash(0));
        if is_early {
            let found = Member::open(after, &directory(), NODE).unwrap().status().flush_lsn;
            assert_eq!(found, first, "the sync has not covered what came after its begin");
        }
        let mut out = Vec::new();
        member.begin_sync().unwrap().run();
        assert!(member.begin_sync().is_none());
        member.end_sync(&mut out);
        assert_eq!(flush_of(&out).unwrap().flush_lsn, log.end);
        let after: Arc<dyn FileSystem> = Arc::new(crash_fs.crash(0));
        assert_eq!(Member::open(after, &directory(), NODE).unwrap().status().flush_lsn, log.end);
    }
}

/// Appends record by record over two segment boundaries, with a sync always under way; then another proposer takes the log
/// over beside one. Returns what was acknowledged in each term. Stops where the disk does.
fn live(fs: &CrashFs, is_early: bool) -> (Lsn, Option<Lsn>) {
    let (acked, acked_new) = (Cell::new(START), Cell::new(None));
    // Whether the disk goes on.
    let note = |out: &[Outgoing]| {
        match flush_of(out) {
            Some(response) if response.term == Term(1) => acked.set(response.flush_lsn),
            Some(response) => acked_new.set(Some(response.flush_lsn)),
            None => {}
        }
        refusal_of(out).is_none()
    };
    let _ = life(fs, is_early, note);
    (acked.get(), acked_new.get())
}

/// A sync on another thread that does its work as late as it can: when it is told to, or the power is gone.
struct Late {
    may_go: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Late {
    fn begin(job: SyncJob, fs: &CrashFs) -> Late {
        let may_go = Arc::<AtomicBool>::default();
        let (fs, go) = (fs.clone(), may_go.clone());
        let work = move || {
            while !go.load(Ordering::Acquire) && !fs.has_crashed() {
                thread::yield_now();
            }
            job.run();
        };
        Late { may_go, thread: Some(thread::spawn(work)) }
    }
}

impl Drop for Late {
    fn drop(&mut self) {
        self.may_go.store(true, Ordering::Release);
        let _ = self.thread.take().map(thread::JoinHandle::join);
    }
}

fn life(crash_fs: &CrashFs, is_early: bool, note: impl Fn(&[Outgoing]) -> bool) -> Option<()> {
    let going = |goes_on: bool| goes_on.then_some(());
    let (old, new, fork) = two_logs();
    let fs: Arc<dyn FileSystem> = Arc::new(crash_fs.clone());
    let mut member = Member::create(fs, &directory(), NODE, identity(), START).ok()?;
    going(note(&member.process(vec![(P1, elected(&[(1, START)]))])))?;
    let mut late: Option<Late> = None;
    for records in old.ends.windows(2) {
        going(note(&take(&mut member, &old, records[0], records[1])))?;
        drop(late.take());
        going(note(&end_sync(&mut member)))?;
        let commit_lsn = fork.min(member.status().flush_lsn);
        let commit = Commit { generation: Generation(0), term: Term(1), commit_lsn };
        member.take_in(vec![(P1, commit.into())]);
        let job = member.begin_sync()?;
        match is_early {
            true => job.run(),
            false => late = Some(Late::begin(job, crash_fs)),
        }
        // As where it is far: beside the sync.
        member.persist_commit().ok()?;
    }
    // Whatever comes now but appends waits for the sync.
    drop(late);
    let messages =
        [vote(2), elected(&[(1, START), (2, fork)]), append(&new, 2, fork, new.end, fork)];
    messages.into_iter().try_for_each(|message| going(note(&member.process(vec![(P2, message)]))))
}

#[test]
fn nothing_acknowledged_is_lost_by_a_crash_beside_a_sync() {
    let (old, new, fork) = two_logs();
    for is_early in [true, false] {
        for call in 1.. {
            let fs = CrashFs::new();
            fs.crash_at(call);
            let (acked, acked_new) = live(&fs, is_early);
            for seed in [0, call, u64::MAX] {
                let what = format!("crash at call {call}, seed {seed}, early: {is_early}");
                let after: Arc<dyn FileSystem> = Arc::new(fs.crash(seed));
                let member = match Member::open(after, &directory(), NODE) {
                    Ok(member) => member,
                    Err(error) => {
                        assert_eq!((acked, acked_new), (START, None), "{what}: {error}");
                        continue;
                    }
                };
                let status = member.status();
                let is_new = status.last_log_term == Term(2) || acked_new.is_some();
                let (log, least) = match (is_new, acked_new) {
                    (true, acked_new) => (&new, acked_new.unwrap_or(fork)),
                    // Once the next term was voted for the log may have been cut.
                    (false, _) if status.term == Term(2) => (&old, acked.min(fork)),
                    (false, _) => (&old, acked),
                };
                assert!(status.flush_lsn >= least, "{what}: {} < {least}", status.flush_lsn);
                assert!(log.ends.contains(&status.flush_lsn), "{what}: no record end");
                let found = member.files().read(START, status.flush_lsn).unwrap();
                assert_eq!(found, log.range(START, status.flush_lsn), "{what}");
                assert!(is_zero_behind(member.files(), status.flush_lsn).unwrap(), "{what}");
            }
            if !fs.has_crashed() {
                assert_eq!((acked, acked_new), (old.end, Some(new.end)));
                assert!(call > 50, "{call} calls");
                break;
            }
        }
    }
}

/// Another thread is in the middle of the sync: a vote, a cut, a configuration and a stop wait for it.
#[test]
fn all_but_appends_waits_for_a_sync_under_way() {
    let (log, other, fork) = two_logs();
    let check = |message: fn(&mut Member) -> Vec<Outgoing>| {
        let faulty = FaultyFs::new(CrashFs::new());
        let fs: Arc<dyn FileSystem> = Arc::new(faulty.clone());
        let mut member = followed(&fs);
        take(&mut member, &log, START, log.end);
        let job = member.begin_sync().unwrap();
        let (in_sync, let_go) = (mpsc::channel(), mpsc::channel::<()>());
        let (began, go) = (in_sync.0, let_go.1);
        let (told, hears) = mpsc::channel();
        faulty.set_rule(move |call, _| {
            if call == Call::Sync && thread::current().name() == Some("syncs") {
                // Both segments; the second finds nobody there.
                let _ = (began.send(()), go.recv());
            }
            None
        });
        let syncs = thread::Builder::new().name("syncs".into()).spawn(|| job.run()).unwrap();
        in_sync.1.recv().unwrap();
        let asks = thread::spawn(move || {
            let out = message(&mut member);
            let _ = told.send(());
            (member, out)
        });
        assert!(hears.recv_timeout(Duration::from_millis(50)).is_err(), "answered under a sync");
        drop(let_go.0);
        let (member, out) = asks.join().unwrap();
        syncs.join().unwrap();
        assert!(member.is_synced());
        assert_eq!(flush_of(&out[..1]).map(|first| first.flush_lsn), Some(log.end), "first of all");
        (member, out)
    };
    let (_, out) = check(|member| member.take_in(vec![(P2, vote(2))]));
    let AcceptorMessage::VoteResponse(vote) = &out[1].message else { panic!("{out:?}") };
    assert_eq!((vote.granted, vote.flush_lsn), (true, log.end));
    let (mut member, out) = check(|member| {
        let (.., fork) = two_logs();
        member.take_in(vec![(P2, elected(&[(1, START), (2, fork)]))])
    });
    assert_eq!(flush_of(&out).unwrap().flush_lsn, fork);
    let out = member.process(vec![(P2, append(&other, 2, fork, other.end, fork))]);
    assert_eq!(flush_of(&out).unwrap().flush_lsn, other.end);
    check(|member| {
        let mut out = Vec::new();
        member.administer(AdminRequest::Promise(Generation(2)), &mut out).unwrap();
        out
    });
    check(|member| {
        let mut out = Vec::new();
        member.sync(&mut out);
        out
    });
}

#[test]
fn a_sync_that_fails_or_is_given_up_latches_and_acknowledges_nothing() {
    let (log, ..) = two_logs();
    for is_given_up in [true, false] {
        let faulty = FaultyFs::new(CrashFs::new());
        let fs: Arc<dyn FileSystem> = Arc::new(faulty.clone());
        let mut member = followed(&fs);
        take(&mut member, &log, START, log.ends[2]);
        let job = member.begin_sync().unwrap();
        take(&mut member, &log, log.ends[2], log.end);
        faulty.set_rule(|call, _| (call == Call::Sync).then(|| io::Error::other("medium error")));
        match is_given_up {
            true => drop(job),
            false => job.run(),
        }
        faulty.clear();
        assert!(member.has_synced());
        let out = end_sync(&mut member);
        assert_eq!((refusal_of(&out), flush_of(&out)), (Some(RefusalReason::Io), None));
        assert!(member.status().latched.is_some());
        assert!(
            member.begin_sync().is_none(),
            "what came later is not synced as if nothing had been"
        );
        let out = member.process(vec![(P1, append(&log, 1, log.end, log.end, START))]);
        assert_eq!((refusal_of(&out), flush_of(&out)), (Some(RefusalReason::Io), None));
    }
}

/// Bytes that are no WAL make the member look at the disk again. If the sync that is under way then fails, nobody knows what is there.
#[test]
fn bytes_that_are_no_wal_wait_for_the_sync_and_for_how_it_went() {
    let (log, ..) = two_logs();
    for fails in [true, false] {
        let faulty = FaultyFs::new(CrashFs::new());
        let fs: Arc<dyn FileSystem> = Arc::new(faulty.clone());
        let mut member = followed(&fs);
        take(&mut member, &log, START, log.ends[1]);
        let job = member.begin_sync().unwrap();
        if fails {
            faulty
                .set_rule(|call, _| (call == Call::Sync).then(|| io::Error::other("medium error")));
        }
        job.run();
        faulty.clear();
        let bad = Bytes::from(vec![7; 5000]);
        let lsn = log.ends[1];
        let (generation, term) = (Generation(0), Term(1));
        let bad = Append { generation, term, lsn, commit_lsn: START, bytes: bad };
        let out = member.take_in(vec![(P1, bad.into())]);
        assert_eq!(refusal_of(&out), Some(RefusalReason::Invalid));
        assert_eq!((member.status().latched.is_some(), member.is_synced()), (fails, true));
        if !fails {
            assert_eq!(member.status().flush_lsn, lsn);
            member.process(vec![(P1, elected(&[(1, START)]))]);
            let out = member.process(vec![(P1, append(&log, 1, lsn, log.end, START))]);
            assert_eq!(flush_of(&out).unwrap().flush_lsn, log.end);
        }
    }
}

/// The directory is synced by the member's thread, too, and who fails first hears of it alone.
#[test]
fn a_directory_that_fails_beside_a_sync_latches() {
    let (log, ..) = two_logs();
    let faulty = FaultyFs::new(CrashFs::new());
    let fs: Arc<dyn FileSystem> = Arc::new(faulty.clone());
    let mut member = followed(&fs);
    member.process(vec![(P1, append(&log, 1, START, log.ends[1], START))]);
    let rest = append(&log, 1, log.ends[1], log.end, log.ends[1]);
    assert_eq!(member.take_in(vec![(P1, rest)]), []);
    let job = member.begin_sync().unwrap();
    faulty.set_rule(|call, _| (call == Call::SyncDir).then(|| io::Error::other("medium error")));
    thread::scope(|scope| {
        let job = scope.spawn(|| {
            // Not before the other has heard.
            thread::sleep(Duration::from_millis(50));
            faulty.clear();
            job.run();
        });
        assert!(member.persist_commit().is_err());
        job.join().unwrap();
    });
    assert!(member.status().latched.is_some());
    assert_eq!(end_sync(&mut member), []);
    let out = member.process(vec![(P1, append(&log, 1, log.end, log.end, START))]);
    assert_eq!((refusal_of(&out), flush_of(&out)), (Some(RefusalReason::Io), None));
}

#[test]
fn who_writes_hears_of_a_sync_that_failed_under_an_admin() {
    let (log, ..) = two_logs();
    let faulty = FaultyFs::new(CrashFs::new());
    let fs: Arc<dyn FileSystem> = Arc::new(faulty.clone());
    let mut member = followed(&fs);
    take(&mut member, &log, START, log.end);
    faulty.set_rule(|call, _| (call == Call::Sync).then(|| io::Error::other("medium error")));
    let mut out = Vec::new();
    assert!(member.administer(AdminRequest::Read, &mut out).is_err());
    faulty.clear();
    assert_eq!((refusal_of(&out), flush_of(&out)), (Some(RefusalReason::Io), None));
    assert_eq!(out[0].to, P1);
}
