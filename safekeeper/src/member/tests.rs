use std::io;

use treering_consensus::{
    Append, AppendResponse, Commit, Configuration, Elected, Generation, Greeting, TermHistory,
    TermStart, VoteRequest,
};
use treering_fs::{Call, CrashFs, FaultyFs};
use treering_pgfmt::wal::encode::{Origin, lay_out, record};
use treering_types::{TenantId, TimelineId};

use super::*;
use crate::wal_store::pg_major;

pub(super) const NODE: NodeId = NodeId(1);
pub(super) const P1: ProposerId = ProposerId([1; 16]);
pub(super) const P2: ProposerId = ProposerId([2; 16]);
pub(super) const SEEDS: [u64; 6] = [0, 1, 2, 3, 4, u64::MAX];
/// Late in a segment, so that the log soon crosses into the next one.
pub(super) const START: Lsn = Lsn(3 * WAL_SEGMENT_SIZE - 3 * 8192 + 64);
const RMGR_XLOG: u8 = 0;
const XLOG_NOOP: u8 = 0x20;
const XLOG_SWITCH: u8 = 0x40;

pub(super) fn identity() -> Identity {
    Identity {
        tenant: TenantId([1; 16]),
        timeline: TimelineId([2; 16]),
        system_id: 4711,
        pg_major: 15,
        pg_tli: 2,
        pg_ancestors: Vec::new(),
    }
}

pub(super) fn directory() -> PathBuf {
    PathBuf::from("/data/timeline")
}

/// WAL as a Postgres of the 15 series would lay it out: records of given sizes that follow each other.
pub(super) struct Log {
    pub(super) end: Lsn,
    prev: Lsn,
    bytes: Vec<u8>,
    /// Record ends.
    pub(super) ends: Vec<Lsn>,
}

impl Log {
    pub(super) fn at(start: Lsn) -> Log {
        Log { end: start, prev: Lsn(start.0 - 64), bytes: Vec::new(), ends: vec![start] }
    }

    /// A record of zeros that ends exactly at `end`, a page's.
    pub(super) fn push_up_to(&mut self, end: Lsn) {
        let mut body_len = (end.0 - self.end.0) as usize / 2;
        loop {
            let mut trial = Log::at(self.end);
            trial.prev = self.prev;
            trial.push(body_len, 0);
            if trial.end == end {
                return self.push(body_len, 0);
            }
            body_len = (body_len as u64 + end.0).checked_sub(trial.end.0).unwrap() as usize;
        }
    }

    /// An XLOG SWITCH and what fills its segment.
    pub(super) fn push_switch(&mut self) {
        self.push_record(XLOG_SWITCH, &[]);
        let end = Lsn((self.end.segment_number() + 1) * WAL_SEGMENT_SIZE);
        self.bytes.resize(self.bytes.len() + (end.0 - self.end.0) as usize, 0);
        self.end = end;
        *self.ends.last_mut().unwrap() = end;
    }

    pub(super) fn push(&mut self, body_len: usize, fill: u8) {
        self.push_record(XLOG_NOOP, &vec![fill; body_len]);
    }

    fn push_record(&mut self, info: u8, body: &[u8]) {
        let identity = identity();
        let origin = Origin {
            major: pg_major(identity.pg_major).unwrap(),
            tli: identity.pg_tli,
            system_id: identity.system_id,
        };
        let record = record(0, self.prev, info, RMGR_XLOG, body);
        let laid_out = lay_out(&origin, self.end, &record);
        self.prev = laid_out.record_start;
        self.end = laid_out.end;
        self.bytes.extend_from_slice(&laid_out.bytes);
        self.ends.push(self.end);
    }

    fn cut(&self, at: Lsn, prev: Lsn) -> Log {
        let len = (at.0 - self.ends[0].0) as usize;
        let ends = self.ends.iter().copied().filter(|end| *end <= at).collect();
        Log { end: at, prev, bytes: self.bytes[..len].to_vec(), ends }
    }

    pub(super) fn range(&self, from: Lsn, to: Lsn) -> Bytes {
        let start = self.ends[0];
        let range = (from.0 - start.0) as usize..(to.0 - start.0) as usize;
        Bytes::copy_from_slice(&self.bytes[range])
    }
}

pub(super) fn history(entries: &[(u64, Lsn)]) -> TermHistory {
    let entries = entries.iter().map(|(term, lsn)| TermStart { term: Term(*term), lsn: *lsn });
    TermHistory::from_entries(entries.collect()).unwrap()
}

pub(super) fn elected(entries: &[(u64, Lsn)]) -> ProposerMessage {
    let history = history(entries);
    Elected { generation: Generation(0), term: history.last().unwrap().term, history }.into()
}

pub(super) fn append(log: &Log, term: u64, from: Lsn, to: Lsn, commit_lsn: Lsn) -> ProposerMessage {
    let (generation, term, bytes) = (Generation(0), Term(term), log.range(from, to));
    Append { generation, term, lsn: from, commit_lsn, bytes }.into()
}

pub(super) fn create(fs: &Arc<dyn FileSystem>) -> Member {
    Member::create(fs.clone(), &directory(), NODE, identity(), START).unwrap()
}

/// The log before `lsn` may be trimmed.
pub(super) fn trimmable(lsn: Lsn) -> Elsewhere {
    Elsewhere { lsn, has_log: false }
}

/// The log before `lsn` can be read elsewhere.
pub(super) fn readable(lsn: Lsn) -> Elsewhere {
    Elsewhere { lsn, has_log: true }
}

pub(super) fn flush_of(out: &[Outgoing]) -> Option<AppendResponse> {
    out.iter().rev().find_map(|outgoing| match &outgoing.message {
        AcceptorMessage::AppendResponse(response) => Some(response.clone()),
        _ => None,
    })
}

pub(super) fn refusal_of(out: &[Outgoing]) -> Option<RefusalReason> {
    out.iter().find_map(|outgoing| match &outgoing.message {
        AcceptorMessage::Refusal(refusal) => Some(refusal.reason),
        _ => None,
    })
}

/// An old log over two segment boundaries, and a new one that parts from it in the middle and whose records have
/// the same lengths: each stale record would fit behind the new ones, links and all.
pub(super) fn two_logs() -> (Log, Log, Lsn) {
    let mut old = Log::at(START);
    for size in [40, 3000, 9000, 300] {
        old.push(size, b'o');
    }
    let (fork, prev) = (old.end, old.prev);
    let mut new = old.cut(fork, prev);
    for size in [88, 5000, 20_000, 700, 70] {
        old.push(size, b'o');
        new.push(size, b'n');
    }
    assert_eq!(old.ends, new.ends);
    assert!(fork.segment_number() < old.end.segment_number());
    (old, new, fork)
}

/// What a member has let out of the house.
#[derive(Default)]
struct Promised {
    term: Term,
    vote: Option<(Term, ProposerId)>,
    old_flush: Lsn,
    new_flush: Lsn,
    joined_new: bool,
    trimmed_to: Lsn,
}

impl Promised {
    fn take_note(&mut self, out: &[Outgoing]) {
        for Outgoing { to, message } in out {
            match message {
                AcceptorMessage::VoteResponse(vote) if vote.granted => {
                    self.term = self.term.max(vote.term);
                    self.vote = Some((vote.term, *to));
                }
                AcceptorMessage::AppendResponse(response) => {
                    self.term = self.term.max(response.term);
                    match response.term {
                        Term(1) => self.old_flush = response.flush_lsn,
                        _ => {
                            self.joined_new = true;
                            self.new_flush = response.flush_lsn;
                        }
                    }
                }
                _ => {}
            }
        }
    }
}

/// Votes, appends an old log, is taken over by a proposer with another one, appends that; all in several batches. Then it
/// gives up what is elsewhere, falls asleep without any log of its own, and is written to once more.
fn live(fs: &Arc<dyn FileSystem>, promised: &mut Promised) -> Result<(), StoreError> {
    let (old, new, fork) = two_logs();
    let mut member = Member::create(fs.clone(), &directory(), NODE, identity(), START)?;
    let mut tell = |member: &mut Member, batch: Vec<(ProposerId, ProposerMessage)>| {
        let out = member.process(batch);
        promised.take_note(&out);
        refusal_of(&out).is_none()
    };
    let done = tell(&mut member, vec![(P1, VoteRequest { generation: Generation(0), term: Term(1) }.into())])
        && tell(&mut member, vec![(P1, elected(&[(1, START)]))])
        // Three appends of one batch, cut inside records; the last bytes are half a record.
        && tell(
            &mut member,
            [(START, fork), (fork, Lsn(fork.0 + 2500)), (Lsn(fork.0 + 2500), Lsn(old.end.0 - 100))]
                .map(|(from, to)| (P1, append(&old, 1, from, to, fork)))
                .to_vec(),
        )
        && member.persist_commit().is_ok()
        && tell(&mut member, vec![(P2, VoteRequest { generation: Generation(0), term: Term(2) }.into())])
        && tell(&mut member, vec![(P2, elected(&[(1, START), (2, fork)]))])
        && tell(&mut member, vec![(P2, append(&new, 2, fork, new.ends[5], fork))])
        && tell(&mut member, vec![(P2, append(&new, 2, new.ends[5], new.ends[8], new.ends[5]))])
        && tell(&mut member, vec![(P2, Commit { generation: Generation(0), term: Term(2), commit_lsn: new.ends[8] }.into())])
        && member.trim(trimmable(new.end), false).is_ok()
        && member.trim(readable(new.end), true).is_ok()
        && member.files().segments()?.is_empty()
        && tell(&mut member, vec![(P2, append(&new, 2, new.ends[8], new.end, new.ends[8]))]);
    if done {
        promised.trimmed_to = new.ends[8];
    }
    Ok(())
}

/// Everything that was let out must still hold after the crash; the log is either log, never a mix.
fn check_after_crash(fs: &Arc<dyn FileSystem>, promised: &Promised, what: &str) {
    let (old, new, fork) = two_logs();
    let member = match Member::open(fs.clone(), &directory(), NODE) {
        Ok(member) => member,
        Err(error) => {
            assert!(promised.term == Term(0), "{what}: {error}");
            create(fs)
        }
    };
    let status = member.status();
    let promises = member.acceptor.promises();
    assert!(promises.term >= promised.term, "{what}: {promises:?}");
    if let Some((term, to)) = promised.vote
        && term == promises.term
    {
        assert_eq!(promises.vote, Some(to), "{what}");
    }
    let is_new = promises.history.last().is_some_and(|entry| entry.term == Term(2));
    assert!(is_new || !promised.joined_new, "{what}");
    let (log, least) = match (is_new, promised.joined_new) {
        (true, true) => (&new, promised.new_flush),
        (true, false) => (&new, fork),
        // The cut may have been synced and the history not.
        (false, _) => (&old, promised.old_flush.min(fork)),
    };
    assert!(status.flush_lsn >= least, "{what}: {} < {least}", status.flush_lsn);
    assert!(log.ends.contains(&status.flush_lsn), "{what}: no record end");
    let from = status.trim_lsn.max(START);
    assert!(from >= promised.trimmed_to, "{what}");
    let found = member.files().read(from, status.flush_lsn).unwrap();
    assert_eq!(found, log.range(from, status.flush_lsn), "{what}");
    assert!(is_zero_behind(member.files(), status.flush_lsn).unwrap(), "{what}");
}

#[test]
fn nothing_promised_is_gone_after_a_crash_at_any_call() {
    let mut calls = 1;
    loop {
        let fs = CrashFs::new();
        fs.crash_at(calls);
        let mut promised = Promised::default();
        let outcome = live(&(Arc::new(fs.clone()) as Arc<dyn FileSystem>), &mut promised);
        assert!(outcome.is_err() || promised.term > Term(0) || fs.has_crashed());
        for seed in SEEDS {
            let after: Arc<dyn FileSystem> = Arc::new(fs.crash(seed));
            check_after_crash(&after, &promised, &format!("crash at call {calls}, seed {seed}"));
        }
        if !fs.has_crashed() {
            assert_eq!(promised.new_flush, two_logs().1.end);
            assert_eq!(promised.trimmed_to, two_logs().1.ends[8]);
            break;
        }
        calls += 1;
    }
    assert!(calls > 30, "{calls} calls");
}

/// A second crash, at any call of the recovery from the first.
#[test]
fn recovery_can_crash_too() {
    let whole = CrashFs::new();
    live(&(Arc::new(whole.clone()) as Arc<dyn FileSystem>), &mut Promised::default()).unwrap();
    for first in (1..whole.calls()).step_by(3) {
        let fs = CrashFs::new();
        fs.crash_at(first);
        let mut promised = Promised::default();
        let _ = live(&(Arc::new(fs.clone()) as Arc<dyn FileSystem>), &mut promised);
        for second in 1.. {
            let again = fs.crash(first + 7);
            again.crash_at(second);
            let opened = Member::open(Arc::new(again.clone()), &directory(), NODE);
            let acked = opened.as_ref().ok().map(|member| member.status().flush_lsn);
            for seed in [0, 5, u64::MAX] {
                let after: Arc<dyn FileSystem> = Arc::new(again.crash(seed));
                let what = format!("crash at {first}, then {second}, seed {seed}");
                check_after_crash(&after, &promised, &what);
                if let Some(acked) = acked {
                    let reopened = Member::open(after, &directory(), NODE).unwrap();
                    assert!(reopened.status().flush_lsn >= acked, "{what}");
                }
            }
            if !again.has_crashed() {
                break;
            }
        }
    }
}

/// The process dies between write and sync, the next one reads the bytes from the page cache and reports them as
/// flushed: then they must be.
#[test]
fn what_a_restart_reports_is_synced() {
    let (old, ..) = two_logs();
    let crash_fs = CrashFs::new();
    let fs: Arc<dyn FileSystem> = Arc::new(crash_fs.clone());
    let mut member = create(&fs);
    member.process(vec![(P1, elected(&[(1, START)]))]);
    member.store.write(START, &old.range(START, old.end)).unwrap();
    drop(member);
    let member = Member::open(fs, &directory(), NODE).unwrap();
    assert_eq!(member.status().flush_lsn, old.end);
    let after: Arc<dyn FileSystem> = Arc::new(crash_fs.crash(0));
    assert_eq!(Member::open(after, &directory(), NODE).unwrap().status().flush_lsn, old.end);
}

#[test]
fn one_sync_answers_a_whole_batch() {
    let (old, ..) = two_logs();
    let crash_fs = CrashFs::new();
    let fs: Arc<dyn FileSystem> = Arc::new(crash_fs.clone());
    let mut member = create(&fs);
    member.process(vec![(P1, elected(&[(1, START)]))]);
    let (a, b) = (old.ends[1], old.ends[2]);
    member.process(vec![(P1, append(&old, 1, START, a, START))]);
    let before = crash_fs.calls();
    let batch = [(a, b), (b, old.ends[3])].map(|(from, to)| (P1, append(&old, 1, from, to, a)));
    let out = member.process(batch.to_vec());
    assert_eq!(crash_fs.calls() - before, 3, "two writes, one sync");
    assert_eq!(out.len(), 1);
    assert_eq!(flush_of(&out).unwrap().flush_lsn, old.ends[3]);
}

#[test]
fn half_a_record_is_held_and_not_reported() {
    let (old, ..) = two_logs();
    let fs: Arc<dyn FileSystem> = Arc::new(CrashFs::new());
    let mut member = create(&fs);
    member.process(vec![(P1, elected(&[(1, START)]))]);
    let half = Lsn(old.ends[2].0 - 1000);
    let out = member.process(vec![(P1, append(&old, 1, START, half, old.end))]);
    assert_eq!(flush_of(&out).unwrap().flush_lsn, old.ends[1]);
    assert_eq!(member.status().commit_lsn, old.ends[1]);
    let out = member.process(vec![(P1, append(&old, 1, half, old.end, old.end))]);
    assert_eq!(flush_of(&out).unwrap().flush_lsn, old.end);
}

#[test]
fn bytes_that_are_no_wal_are_refused_and_leave_nothing() {
    let (old, ..) = two_logs();
    let fs: Arc<dyn FileSystem> = Arc::new(CrashFs::new());
    let mut member = create(&fs);
    member.process(vec![(P1, elected(&[(1, START)]))]);
    member.process(vec![(P1, append(&old, 1, START, old.ends[1], START))]);
    let mut bytes = old.range(old.ends[1], old.ends[2]).to_vec();
    bytes[1000] ^= 1;
    let bad = Append {
        generation: Generation(0),
        term: Term(1),
        lsn: old.ends[1],
        commit_lsn: START,
        bytes: bytes.into(),
    };
    let out = member.process(vec![(P1, bad.into())]);
    assert_eq!(refusal_of(&out), Some(RefusalReason::Invalid));
    assert_eq!(member.status().flush_lsn, old.ends[1]);
    member.process(vec![(P1, elected(&[(1, START)]))]);
    let out = member.process(vec![(P1, append(&old, 1, old.ends[1], old.end, START))]);
    assert_eq!(flush_of(&out).unwrap().flush_lsn, old.end);
}

#[test]
fn a_full_disk_refuses_and_recovers_by_itself() {
    let (old, ..) = two_logs();
    let faulty = FaultyFs::new(CrashFs::new());
    let fs: Arc<dyn FileSystem> = Arc::new(faulty.clone());
    let mut member = create(&fs);
    member.process(vec![(P1, elected(&[(1, START)]))]);
    member.process(vec![(P1, append(&old, 1, START, old.ends[1], old.ends[1]))]);
    faulty.fill_disk();
    let out = member.process(vec![(P1, append(&old, 1, old.ends[1], old.end, START))]);
    assert_eq!(refusal_of(&out), Some(RefusalReason::DiskFull));
    assert_eq!(flush_of(&out), None, "nothing is acknowledged");
    let out =
        member.process(vec![(P2, VoteRequest { generation: Generation(0), term: Term(2) }.into())]);
    assert_eq!(refusal_of(&out), Some(RefusalReason::DiskFull), "a vote needs the control file");
    assert_eq!(member.status().commit_lsn, old.ends[1], "what readers were told stays");
    faulty.clear();
    assert_eq!(member.status().latched, None);
    member.process(vec![(P1, elected(&[(1, START)]))]);
    let out = member.process(vec![(P1, append(&old, 1, old.ends[1], old.end, START))]);
    assert_eq!(flush_of(&out).unwrap().flush_lsn, old.end);
}

#[test]
fn a_failed_sync_latches_until_opened_again() {
    let (old, ..) = two_logs();
    let faulty = FaultyFs::new(CrashFs::new());
    let fs: Arc<dyn FileSystem> = Arc::new(faulty.clone());
    let mut member = create(&fs);
    member.process(vec![(P1, elected(&[(1, START)]))]);
    faulty.set_rule(|call, _| (call == Call::Sync).then(|| io::Error::other("medium error")));
    let out = member.process(vec![(P1, append(&old, 1, START, old.end, START))]);
    assert_eq!((refusal_of(&out), flush_of(&out)), (Some(RefusalReason::Io), None));
    faulty.clear();
    let out = member.process(vec![(P1, elected(&[(1, START)]))]);
    assert_eq!((refusal_of(&out), flush_of(&out)), (Some(RefusalReason::Io), None));
    assert!(member.status().latched.is_some());
    let mut member = Member::open(fs, &directory(), NODE).unwrap();
    let out = member.process(vec![(P1, elected(&[(1, START)]))]);
    assert!(flush_of(&out).is_some());
}

#[test]
fn trimming_keeps_the_segment_of_the_horizon_and_of_the_commit() {
    let (old, ..) = two_logs();
    let fs: Arc<dyn FileSystem> = Arc::new(CrashFs::new());
    let mut member = create(&fs);
    member.process(vec![(P1, elected(&[(1, START)]))]);
    let commit = old.ends[2];
    assert_eq!(commit.segment_number(), START.segment_number());
    member.process(vec![(P1, append(&old, 1, START, old.end, commit))]);
    member.process(vec![(
        P1,
        Commit { generation: Generation(0), term: Term(1), commit_lsn: commit }.into(),
    )]);
    member.trim(trimmable(Lsn::MAX), false).unwrap();
    assert_eq!(member.status().trim_lsn, START, "commit holds it");
    member.process(vec![(
        P1,
        Commit { generation: Generation(0), term: Term(1), commit_lsn: old.end }.into(),
    )]);
    member.trim(trimmable(START), false).unwrap();
    assert_eq!(member.status().trim_lsn, START, "the horizon holds it");
    member.trim(trimmable(old.end), false).unwrap();
    assert_eq!(member.status().trim_lsn, old.end.segment_start());
    let reopened = Member::open(fs, &directory(), NODE).unwrap();
    assert_eq!(reopened.status(), member.status());
}

#[test]
fn a_missing_committed_segment_is_named() {
    let (old, ..) = two_logs();
    let fs: Arc<dyn FileSystem> = Arc::new(CrashFs::new());
    let mut member = create(&fs);
    member.process(vec![(P1, elected(&[(1, START)]))]);
    member.process(vec![(P1, append(&old, 1, START, old.end, old.end))]);
    member.persist_commit().unwrap();
    fs.remove_file(&directory().join(old.end.segment_file_name(identity().pg_tli))).unwrap();
    let error = Member::open(fs, &directory(), NODE).err().unwrap();
    assert!(matches!(error, StoreError::LogTooShort { .. }), "{error}");
}

#[test]
fn a_greeting_is_answered_with_the_watermarks() {
    let fs: Arc<dyn FileSystem> = Arc::new(CrashFs::new());
    let mut member = create(&fs);
    let Identity { tenant, timeline, system_id, pg_major, pg_tli, pg_ancestors } = identity();
    let start_lsn = START;
    let proposer = P1;
    let greeting = Greeting {
        proposer,
        tenant,
        timeline,
        system_id,
        pg_major,
        pg_tli,
        start_lsn,
        pg_ancestors,
        configuration: Configuration::none(),
    };
    let out = member.process(vec![(P1, greeting.into())]);
    let [Outgoing { to: P1, message: AcceptorMessage::GreetingResponse(response) }] = &out[..]
    else {
        panic!("{out:?}")
    };
    assert_eq!((response.flush_lsn, response.term, response.node), (START, Term(0), NODE));
}

#[test]
fn a_start_that_is_no_record_end_is_refused() {
    let fs: Arc<dyn FileSystem> = Arc::new(CrashFs::new());
    for start in [START.0 + 1, START.page_start().0 + 8] {
        let made = Member::create(fs.clone(), &directory(), NODE, identity(), Lsn(start));
        assert!(matches!(made.err().unwrap(), StoreError::NotWal(_)));
    }
}

#[test]
fn what_an_admin_was_told_survives_a_restart() {
    let fs: Arc<dyn FileSystem> = Arc::new(CrashFs::new());
    let mut member = create(&fs);
    let joint = Configuration::new(Generation(2), vec![NODE], Some(vec![NodeId(2)])).unwrap();
    assert!(
        member.administer(AdminRequest::Promise(Generation(2)), &mut Vec::new()).unwrap().granted
    );
    let answer = member.administer(AdminRequest::Accept(joint.clone()), &mut Vec::new()).unwrap();
    assert!(answer.granted && answer.configuration == joint);
    let mut member = Member::open(fs, &directory(), NODE).unwrap();
    assert_eq!(member.status().configuration, joint);
    let answer = member.administer(AdminRequest::Promise(Generation(2)), &mut Vec::new()).unwrap();
    assert!(!answer.granted && answer.promised == Generation(2));
    let out = member.process(vec![(P1, elected(&[(1, START)]))]);
    assert!(
        matches!(&out[..], [Outgoing { message: AcceptorMessage::NewerConfiguration(newer), .. }]
        if *newer == joint)
    );
}
