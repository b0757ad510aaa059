//! Ingest of hand-made WAL into an engine in memory.

use std::path::Path;

use treering_engine::{Engine, EngineOptions, NewTenant, TimeAnswer};
use treering_fs::CrashFs;
use treering_pgfmt::wal::encode::{self, Origin};
use treering_types::{PAGE_SIZE, TenantId, TimelineId};

use super::*;

const TENANT: TenantId = TenantId([1; 16]);
const MAIN: TimelineId = TimelineId([2; 16]);
const SYSTEM_ID: u64 = 77;
/// Near the end of a segment: pages and segments are crossed soon.
const START: Lsn = Lsn(0x1FF_F000);
const REL: RelTag = RelTag { tablespace: 1663, database: 5, relation: 16384, fork: Fork::Main };

fn engine() -> (Arc<Engine>, Arc<Timeline>) {
    let engine = Engine::open(Arc::new(CrashFs::new()), Path::new("/e"), EngineOptions::default());
    let engine = engine.expect("engine");
    let new = NewTenant { id: TENANT, pg_major: PgMajor::V15, system_id: SYSTEM_ID };
    let tenant = engine.create_tenant(new).expect("tenant");
    let root = tenant.create_root(MAIN, START, 0).expect("root");
    root.finish_import(START).expect("import");
    (engine, root)
}

/// A log under construction.
struct Log {
    bytes: Vec<u8>,
    end: Lsn,
    /// Start and end of each record.
    records: Vec<(Lsn, Lsn)>,
}

impl Log {
    fn new() -> Log {
        Log { bytes: Vec::new(), end: START, records: Vec::new() }
    }

    fn append(&mut self, rmid: u8, info: u8, blocks: &[u8], main: &[u8]) -> Lsn {
        let mut body = blocks.to_vec();
        if !main.is_empty() {
            body.extend_from_slice(&[255, main.len() as u8]);
            body.extend_from_slice(main);
        }
        self.append_body(rmid, info, &body)
    }

    fn append_body(&mut self, rmid: u8, info: u8, body: &[u8]) -> Lsn {
        let prev = self.records.last().map_or(Lsn(START.0 - 64), |(start, _)| *start);
        let origin = Origin { major: PgMajor::V15, tli: 1, system_id: SYSTEM_ID };
        let laid = encode::lay_out(&origin, self.end, &encode::record(0, prev, info, rmid, body));
        self.bytes.extend_from_slice(&laid.bytes);
        self.records.push((laid.record_start, laid.end));
        self.end = laid.end;
        laid.end
    }

    fn commit(&mut self, stamp: i64) -> Lsn {
        self.append(1, 0x00, &[], &stamp.to_le_bytes())
    }

    fn abort(&mut self, stamp: i64) -> Lsn {
        self.append(1, 0x20, &[], &stamp.to_le_bytes())
    }

    fn create(&mut self, rel: RelTag) -> Lsn {
        let main = [&locator(rel)[..], &(rel.fork as u32).to_le_bytes()].concat();
        self.append(2, 0x10, &[], &main)
    }

    fn truncate(&mut self, rel: RelTag, blocks: u32) -> Lsn {
        let flags = 1u32.to_le_bytes();
        let main = [&blocks.to_le_bytes()[..], &locator(rel), &flags].concat();
        self.append(2, 0x20, &[], &main)
    }

    /// A full-page image of a page filled with `fill`.
    fn image(&mut self, rel: RelTag, block: u32, fill: u8) -> Lsn {
        let mut body = vec![0, 0x10 | rel.fork as u8, 0, 0];
        body.extend_from_slice(&(PAGE_SIZE as u16).to_le_bytes());
        body.extend_from_slice(&[0, 0, 0x02]);
        body.extend_from_slice(&locator(rel));
        body.extend_from_slice(&block.to_le_bytes());
        body.extend_from_slice(&[fill; PAGE_SIZE]);
        self.append_body(0, 0xB0, &body)
    }
}

fn locator(rel: RelTag) -> Vec<u8> {
    let numbers = [rel.tablespace, rel.database, rel.relation];
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}

fn apply_all(timeline: &Arc<Timeline>, log: &Log) {
    let mut applier = Applier::open(Arc::clone(timeline)).expect("applier");
    let from = applier.fed_to();
    let skip = (from.0 - START.0) as usize;
    applier.feed(from, log.bytes[skip..].to_vec().into()).expect("feed");
    assert_eq!(applier.apply().expect("apply"), log.end);
}

#[test]
fn times_follow_the_running_maximum() {
    let (_engine, timeline) = engine();
    let mut log = Log::new();
    let first = log.commit(100);
    let back = log.commit(50);
    let same = log.commit(100);
    let last = log.abort(200);
    apply_all(&timeline, &log);
    let at = |time| timeline.lsn_before_time(time).expect("time");
    assert_eq!(at(40), TimeAnswer::At(START));
    assert_eq!(at(99), TimeAnswer::At(START));
    assert_eq!(at(100), TimeAnswer::At(same), "the clock that jumped back confuses nobody");
    assert_eq!(at(199), TimeAnswer::At(same));
    assert_eq!(at(200), TimeAnswer::NothingLater(last));
    assert_eq!(timeline.time_at(back).expect("time"), Some(100));
    assert_eq!(timeline.time_at(first).expect("time"), Some(100));
    // The maximum survives a new applier.
    let later = log.commit(150);
    let latest = log.commit(300);
    apply_all(&timeline, &log);
    assert_eq!(at(200), TimeAnswer::At(later));
    assert_eq!(timeline.time_at(latest).expect("time"), Some(300));
}

/// Prepared transactions end out of order: what they say of their origin may be old news.
#[test]
fn origins_go_back_by_hand_only() {
    const FORCED: u8 = 1;
    let (_engine, timeline) = engine();
    let mut log = Log::new();
    let set = |log: &mut Log, remote_lsn: u64, force: u8| {
        log.append(19, 0x00, &[], &[&remote_lsn.to_le_bytes()[..], &[4, 0, force]].concat())
    };
    let progress = |at: Lsn| {
        let found = timeline.scan(Key::class_range(KeyClass::Origin), at, Direction::Forward, 9);
        found.expect("scan").iter().map(|(_, _, remote)| remote[0]).collect::<Vec<_>>()
    };
    let first = set(&mut log, 7, 0);
    let late = set(&mut log, 6, 0);
    apply_all(&timeline, &log);
    assert_eq!((progress(first), progress(late)), (vec![7], vec![7]));
    // A new applier knows as well.
    let late = set(&mut log, 5, 0);
    apply_all(&timeline, &log);
    let by_hand = set(&mut log, 3, FORCED);
    let next = set(&mut log, 4, 0);
    let dropped = log.append(19, 0x10, &[], &[4, 0]);
    let anew = set(&mut log, 1, 0);
    apply_all(&timeline, &log);
    let found = [late, by_hand, next, dropped, anew].map(progress);
    assert_eq!(found, [vec![7], vec![3], vec![4], vec![], vec![1]]);
}

/// However the log is cut, and wherever ingest is taken up again, each position finds its record.
#[test]
fn every_record_end_is_found() {
    for piece in [1, 7, 100, 8192, usize::MAX] {
        let (_engine, timeline) = engine();
        let mut log = Log::new();
        for number in 0..600 {
            // Sizes that leave records across pages and ends exactly on some of them.
            log.append(0, 0x20, &[], &vec![1; number % 250 + 1]);
        }
        let mut applier = Applier::open(Arc::clone(&timeline)).expect("applier");
        let mut at = START;
        for (number, bytes) in log.bytes.chunks(piece).enumerate() {
            if number % 5 == 4 && piece > 50 {
                applier = Applier::open(Arc::clone(&timeline)).expect("applier");
                let skip = (applier.fed_to().0 - START.0) as usize;
                let known = &log.bytes[skip..(at.0 - START.0) as usize];
                applier.feed(applier.fed_to(), known.to_vec().into()).expect("feed");
            }
            applier.feed(at, bytes.to_vec().into()).expect("feed");
            applier.apply().expect("apply");
            at = at + bytes.len() as u64;
        }
        assert_eq!(timeline.last_record_lsn(), log.end);
        for pair in log.records.windows(2) {
            let [(_, before), (start, end)] = *pair else { unreachable!() };
            let found = timeline.record_boundary(end).expect("read").expect("boundary");
            assert_eq!((found.end, found.start), (end, start));
            if before > log.records[0].1 {
                let found =
                    timeline.record_boundary(Lsn(end.0 - 1)).expect("read").expect("boundary");
                assert_eq!(found.end, before);
            }
        }
    }
}

/// A branch at a record end in the middle of the parent's batch: its own log begins there.
#[test]
fn boundaries_reach_across_a_fork() {
    let (engine, timeline) = engine();
    let mut log = Log::new();
    for number in 0..40 {
        log.commit(number);
    }
    apply_all(&timeline, &log);
    let (start, fork) = log.records[20];
    let child = TimelineId([3; 16]);
    let branch =
        engine.tenant(TENANT).and_then(|tenant| tenant.branch(child, MAIN, fork)).expect("branch");
    let found = branch.record_boundary(fork).expect("read").expect("boundary");
    assert_eq!((found.end, found.start), (fork, start));

    let mut own = Log { bytes: Vec::new(), end: fork, records: vec![(start, fork)] };
    let ended = own.commit(1000);
    let mut applier = Applier::open(Arc::clone(&branch)).expect("applier");
    applier.feed(fork, own.bytes.clone().into()).expect("feed");
    assert_eq!(applier.apply().expect("apply"), ended);
    let found = branch.record_boundary(ended).expect("read").expect("boundary");
    assert_eq!(
        (found.end, found.start),
        own.records.last().map(|(start, end)| (*end, *start)).expect("record")
    );
    let found = branch.record_boundary(fork).expect("read").expect("boundary");
    assert_eq!((found.end, found.start), (fork, start));
    // The parent's commit after the fork is not the branch's.
    assert_eq!(branch.time_at(ended).expect("time"), Some(1000));
    assert_eq!(branch.lsn_before_time(20).expect("time"), TimeAnswer::At(fork));
}

#[test]
fn relations_come_grow_shrink_and_go() {
    let (_engine, timeline) = engine();
    let mut log = Log::new();
    let before = log.commit(1);
    let created = log.create(REL);
    let grown = log.image(REL, 3, 7);
    let cut = log.truncate(REL, 2);
    let again = log.image(REL, 4, 9);
    let again_created = log.create(REL);
    apply_all(&timeline, &log);
    let blocks = |lsn| timeline.rel_meta(REL, lsn).expect("read").map(|meta| meta.blocks);
    assert_eq!(
        [before, created, grown, cut, again, again_created].map(blocks),
        [None, Some(0), Some(4), Some(2), Some(5), Some(5)]
    );
    let byte =
        |block, lsn| timeline.get_page(Key::rel_block(REL, block), lsn).map(|page| page[5000]);
    assert_eq!(byte(3, grown).expect("page"), 7);
    assert!(matches!(byte(3, cut), Err(EngineError::NoBlock { blocks: 2, .. })));
    assert_eq!(byte(3, again).expect("page"), 0, "what was cut off does not come back");
    assert_eq!(byte(4, again).expect("page"), 9);
}

/// Visibility maps and free space maps are never announced by a creation record.
#[test]
fn a_fork_comes_into_being_by_its_first_write() {
    let (_engine, timeline) = engine();
    let map = REL.with_fork(Fork::VisibilityMap);
    let mut log = Log::new();
    let written = log.image(map, 0, 3);
    apply_all(&timeline, &log);
    assert_eq!(timeline.get_page(Key::rel_block(map, 0), written).expect("page")[5000], 3);
}

#[test]
fn records_of_unknown_kind_are_counted() {
    let (_engine, timeline) = engine();
    let mut log = Log::new();
    log.create(REL);
    // A custom resource manager, with a block reference and no image.
    let mut block = vec![0, 0, 0, 0];
    block.extend_from_slice(&locator(REL));
    block.extend_from_slice(&[0; 4]);
    log.append(200, 0x10, &block, &[1; 8]);
    let last = log.append(200, 0x20, &block, &[1; 8]);
    apply_all(&timeline, &log);
    let found = timeline.unreadable(last).expect("unreadable");
    assert_eq!(found.len(), 1);
    assert_eq!(
        (found[0].rel, found[0].lsn, found[0].what.count, found[0].what.info),
        (REL, last, 2, 0x20)
    );
    assert!(timeline.get_page(Key::rel_block(REL, 0), last).is_err());
}

#[test]
fn gaps_and_damage_are_refused() {
    let (_engine, timeline) = engine();
    let mut log = Log::new();
    let first = log.commit(1);
    log.commit(2);
    let mut applier = Applier::open(Arc::clone(&timeline)).expect("applier");
    let strange = applier.feed(first, vec![0; 8].into());
    assert!(matches!(strange, Err(ApplyError::Gap { expected: START, .. })));
    let mut damaged = log.bytes.clone();
    let in_second = (first.0 - START.0) as usize + 30;
    damaged[in_second] ^= 1;
    let error = applier.feed(START, damaged.into()).expect_err("damage");
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    // Nothing of the damaged chunk is visible; a new applier goes on with good bytes.
    assert_eq!(timeline.last_record_lsn(), START);
    apply_all(&timeline, &log);
}
