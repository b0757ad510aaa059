//! Members and a store that fails them: whatever was called archived can be read, by whoever comes next.

use treering_remote::{
    retry::Patience,
    sim::{Call, Fault, SimStore},
};
use treering_types::{ErrorKind, WAL_SEGMENT_SIZE};

use super::{
    keeper::{Due, Log, bring_up_to_date},
    *,
};

const SEG: u64 = WAL_SEGMENT_SIZE;
const START: Lsn = Lsn(3 * SEG + SEG / 2 + 48);
/// Log that stays in the store behind the horizon.
const KEEP: u64 = SEG;

fn identity() -> Identity {
    Identity {
        tenant: TenantId([1; 16]),
        timeline: TimelineId([2; 16]),
        system_id: 4711,
        pg_major: 15,
        pg_tli: 2,
        pg_ancestors: Vec::new(),
    }
}

fn archive(store: &SimStore) -> Archive {
    Archive::new(Arc::new(store.clone()), Asking::new(Patience::NONE))
}

/// A log in which every place looks different.
fn log_bytes(from: Lsn, to: Lsn) -> Bytes {
    let mut bytes = vec![0; (to.0 - from.0) as usize];
    let mut at = from.0 / 512 * 512;
    while at < to.0 {
        for (place, byte) in (at..).zip(at.to_le_bytes()) {
            if (from.0..to.0).contains(&place) {
                bytes[(place - from.0) as usize] = byte;
            }
        }
        at += 512;
    }
    bytes.into()
}

/// What a member knows.
#[derive(Clone, Copy)]
struct Member {
    trim_lsn: Lsn,
    commit_lsn: Lsn,
    horizon_lsn: Lsn,
}

impl Member {
    fn at(commit_lsn: u64) -> Member {
        Member { trim_lsn: START, commit_lsn: Lsn(commit_lsn), horizon_lsn: Lsn::INVALID }
    }

    /// Archives all that it knows to be committed, as far as the store lets it.
    fn work(&self, archive: &Archive, told: &mut Lsn) -> Result<Lsn, StoreError> {
        let identity = identity();
        let trim = self.trim_lsn;
        let read = |from: Lsn, to: Lsn| {
            let mut bytes = BytesMut::new();
            if from < trim {
                bytes.extend_from_slice(&archive.read(&identity, from, trim.min(to))?);
            }
            bytes.extend_from_slice(&log_bytes(from.max(trim).min(to), to));
            Ok(bytes.freeze())
        };
        let log = Log {
            identity: &identity,
            start_lsn: START,
            trim_lsn: trim,
            commit_lsn: self.commit_lsn,
            horizon_lsn: self.horizon_lsn,
            read: &read,
        };
        let mut tell = |archived: Lsn| *told = (*told).max(archived);
        bring_up_to_date(archive, &log, Due::all(self.commit_lsn), KEEP, &mut tell)
    }
}

/// All that was told is there, from what is to be kept on, and it is the log.
fn check(archive: &Archive, told: Lsn, horizon: Lsn) {
    let keep_from = Lsn(horizon.min(told).0.saturating_sub(KEEP)).segment_start().max(START);
    if keep_from < told {
        let found = archive.read(&identity(), keep_from, told).unwrap();
        assert!(found == log_bytes(keep_from, told), "{keep_from} to {told}");
    }
}

fn names(store: &SimStore) -> Vec<String> {
    let short = |name: String| name.rsplit('/').next().map(str::to_owned);
    store.names().into_iter().filter_map(short).collect()
}

/// Two begins, then whole segments behind them, and history that goes.
fn live(archive: &Archive, told: &mut Lsn) -> Result<(), StoreError> {
    Member::at(START.0 + 800).work(archive, told)?;
    Member::at(START.0 + 8000).work(archive, told)?;
    // All of its own log had gone by then.
    let slept = Member { trim_lsn: START + 8000, ..Member::at(6 * SEG + 80) };
    slept.work(archive, told)?;
    let horizon_lsn = Lsn(6 * SEG + 8);
    Member { horizon_lsn, ..Member::at(7 * SEG + 80) }.work(archive, told)?;
    Ok(())
}

#[test]
fn a_log_is_archived_read_and_given_up() {
    let store = SimStore::new();
    let archive = archive(&store);
    let mut told = START;
    let first = Member::at(START.0 + 800);
    assert_eq!(first.work(&archive, &mut told).unwrap(), START + 800);
    let begin = format!("{:016x}-{:016x}.part", 3, START.0 + 800);
    assert_eq!(names(&store), [begin]);
    check(&archive, told, Lsn::INVALID);
    live(&archive, &mut told).unwrap();
    assert_eq!(told, Lsn(7 * SEG + 80));
    let whole = |segment| format!("{segment:016x}.wal");
    let last = format!("{:016x}-{:016x}.part", 7, 7 * SEG + 80);
    assert_eq!(names(&store), [whole(5), whole(6), last], "the horizon less a segment keeps 5");
    check(&archive, told, Lsn(6 * SEG + 8));
    // Asked anew: this one still has in memory what it has read.
    let another = self::archive(&store);
    let gone = another.read(&identity(), START, START + 8);
    assert!(matches!(gone, Err(StoreError::Trimmed { .. })));
    let beyond = another.read(&identity(), told, told + 8);
    assert!(matches!(beyond, Err(StoreError::Trimmed { .. })));
    // Packed, it is a fraction.
    assert!(archive.counters.put_bytes.load(Ordering::Relaxed) < SEG);
    let calls = archive.counters.fetched_bytes.load(Ordering::Relaxed);
    check(&archive, told, Lsn(6 * SEG + 8));
    assert_eq!(archive.counters.fetched_bytes.load(Ordering::Relaxed), calls, "read from memory");
}

#[test]
fn only_what_is_committed_goes_there_and_once() {
    let store = SimStore::new();
    let archive = archive(&store);
    let mut told = START;
    Member::at(4 * SEG - 8).work(&archive, &mut told).unwrap();
    assert_eq!(told, Lsn(4 * SEG - 8));
    let puts = || archive.counters.put_objects.load(Ordering::Relaxed);
    assert_eq!(puts(), 1);
    Member::at(4 * SEG - 8).work(&archive, &mut told).unwrap();
    Member::at(START.0 + 800).work(&archive, &mut told).unwrap();
    assert_eq!((puts(), names(&store).len()), (1, 1), "a member that lags finds it done");
    Member::at(4 * SEG).work(&archive, &mut told).unwrap();
    assert_eq!(names(&store), [format!("{:016x}.wal", 3)]);
}

/// A crash at each change of the store, which happens or not; late ones come or not. Another member goes on.
#[test]
fn whatever_was_told_is_there_after_a_crash() {
    for n in 1.. {
        let mut crashes = 0;
        for happens in [false, true] {
            let store = SimStore::new();
            store.crash_at(n, happens, || {});
            let mut told = START;
            crashes += u32::from(live(&archive(&store), &mut told).is_err());
            let horizon = Lsn(6 * SEG + 8);
            let survivor = store.survivor(true);
            let archive = archive(&survivor);
            check(&archive, told, horizon);
            // One that is behind does no harm, one that is ahead goes on.
            let _ = Member::at(START.0 + 80).work(&archive, &mut told.clone());
            check(&archive, told, horizon);
            let ahead = Member { horizon_lsn: horizon, ..Member::at(7 * SEG + 800) };
            let ahead = Member { trim_lsn: told, ..ahead };
            let mut after = told;
            while ahead.work(&archive, &mut after).unwrap() < ahead.commit_lsn {}
            check(&archive, after, horizon);
            assert_eq!(after, Lsn(7 * SEG + 800));
            assert_eq!(names(&survivor).len(), 3, "crash at {n}: {:?}", names(&survivor));
        }
        if crashes == 0 {
            assert!(n > 8, "{n} changes");
            return;
        }
    }
}

/// Three members work at random on a store that refuses, answers late, never, or after the fact.
#[test]
fn members_that_know_nothing_of_each_other_do_no_harm() {
    for seed in 0..16u64 {
        let mut dice = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut roll = move |sides: u64| {
            // xorshift64*
            dice ^= dice >> 12;
            dice ^= dice << 25;
            dice ^= dice >> 27;
            (dice.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % sides
        };
        let store = SimStore::new();
        let mut members = [START.0; 3].map(Member::at);
        let mut told = [START; 3];
        let (mut end, mut horizon) = (START.0, Lsn::INVALID);
        for _ in 0..12 {
            end += [8, 800, SEG / 3, SEG][roll(4) as usize];
            let who = roll(3) as usize;
            let member = &mut members[who];
            // Each learns of the commit, and of what is elsewhere, in its own time.
            member.commit_lsn = Lsn(end);
            member.horizon_lsn = horizon;
            if roll(2) == 0 {
                member.trim_lsn = told[who].min(horizon.max(START)).max(member.trim_lsn);
            }
            let mut faults = roll(1 << 30) | 1;
            store.set_rule(move |call, _| {
                faults = faults.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                match (faults >> 40) % 8 {
                    0 => Some(Fault::Refused),
                    1 if call.is_change() => Some(Fault::AnswerLost),
                    2 if call.is_change() => Some(Fault::Late),
                    _ => None,
                }
            });
            let _ = member.work(&archive(&store), &mut told[who]);
            store.clear_rule();
            if roll(3) == 0 {
                store.deliver_late();
            }
            let most = told.into_iter().max().unwrap();
            if roll(3) == 0 {
                horizon = horizon.max(Lsn(roll(most.0 - START.0 + 1) + START.0));
            }
            check(&archive(&store), most, horizon);
        }
        store.deliver_late();
        check(&archive(&store), told.into_iter().max().unwrap(), horizon);
    }
}

#[test]
fn damage_is_named_and_never_served_or_trusted() {
    let store = SimStore::new();
    let good = archive(&store);
    let mut told = START;
    Member::at(START.0 + 800).work(&good, &mut told).unwrap();
    let name = store.names().remove(0);
    let bytes = store.get(&name).unwrap();
    let damaged = SimStore::new();
    let mut torn = bytes.to_vec();
    torn.truncate(bytes.len() / 2);
    damaged.put_new(&name, torn.into()).unwrap();
    let error = archive(&damaged).read(&identity(), START, START + 8).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    // Another log under the name: found out by whoever puts its own.
    let stretch = Stretch { start: START, bytes: vec![7; 800].into() };
    let other = object::encode(&identity(), &stretch).unwrap();
    let strange = SimStore::new();
    strange.put_new(&name, other).unwrap();
    let piece = Piece::Begin { segment: 3, end: START + 800 };
    let own = Stretch { start: START, bytes: log_bytes(START, START + 800) };
    let error = archive(&strange).put(&identity(), piece, &own).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    good.put(&identity(), piece, &own).unwrap();
}

#[test]
fn a_deleted_log_leaves_nothing_and_others_stay() {
    let store = SimStore::new();
    let archive = archive(&store);
    let mut told = START;
    live(&archive, &mut told).unwrap();
    let other = Identity { timeline: TimelineId([3; 16]), ..identity() };
    let stretch = Stretch { start: START, bytes: log_bytes(START, START + 800) };
    let piece = Piece::Begin { segment: 3, end: START + 800 };
    archive.put(&other, piece, &stretch).unwrap();
    // A put that was not answered comes after the deletion: a second one finds it.
    store.set_rule(|call, _| (call == Call::Put).then_some(Fault::Late));
    let longer = Member { horizon_lsn: Lsn(6 * SEG), ..Member::at(7 * SEG + 8000) };
    longer.work(&archive, &mut told).unwrap_err();
    store.clear_rule();
    archive.delete_log(identity().tenant, identity().timeline).unwrap();
    assert_eq!(store.names().len(), 1);
    store.deliver_late();
    assert_eq!(store.names().len(), 2);
    archive.delete_log(identity().tenant, identity().timeline).unwrap();
    let folder = names::log_folder(other.tenant, life(&other));
    assert_eq!(store.names(), [format!("{folder}{piece}")]);
    archive.delete_log(TenantId([9; 16]), other.timeline).unwrap();
    assert_eq!(archive.read(&other, START, START + 8).unwrap(), log_bytes(START, START + 8));
}
