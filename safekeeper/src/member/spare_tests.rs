//! A log that fills segment after segment, in files that held others of its segments before.
//!
//! Every segment is laid out alike: where one of its records is due, the file it took over has an older one, whole, with a
//! right checksum.

use treering_fs::CrashFs;

use super::{
    room_tests::commit,
    tests::{
        Log, NODE, P1, START, append, create, directory, elected, flush_of, refusal_of, trimmable,
    },
    *,
};

const SEG: u64 = WAL_SEGMENT_SIZE;
/// Sizes of the records with which each segment begins: some end in the middle of a page, one is several pages long.
const SIZES: [usize; 4] = [40, 9000, 300, 20_000];
/// The segment that begins with an older one's file.
const TAKEN: u64 = 5;

/// From the end of segment 2 into segment 6. Most of a segment is one long record, most of segment 5 the filler of a switch.
fn alike() -> Log {
    let mut log = Log::at(START);
    for segment in 3..=6 {
        match segment {
            6 => log.push_switch(),
            _ => log.push_up_to(Lsn(segment * SEG)),
        }
        SIZES.iter().for_each(|size| log.push(*size, b'a' + segment as u8));
    }
    log
}

/// Appends record by record, each committed, with the commit position persisted: an open looks for the next record there, and
/// cannot know what that one's link should be.
/// Returns how much was acknowledged; less than all when the disk fails.
fn follow(member: &mut Member, log: &Log, from: Lsn, to: Lsn) -> Lsn {
    let mut acked = from;
    for end in log.ends.iter().copied().filter(|end| from < *end && *end <= to) {
        // What is long comes in parts.
        let part = Lsn(acked.0 + (end.0 - acked.0).min(SEG / 2));
        if part < end {
            member.process(vec![(P1, append(log, 1, acked, part, acked))]);
        }
        let from = if part < end { part } else { acked };
        let out = member.process(vec![(P1, append(log, 1, from, end, acked))]);
        match flush_of(&out) {
            Some(response) if refusal_of(&out).is_none() => acked = response.flush_lsn,
            _ => break,
        }
        member.process(vec![(P1, commit(acked))]);
        if member.persist_commit().is_err() {
            break;
        }
    }
    acked
}

fn spare_files(fs: &Arc<dyn FileSystem>) -> Vec<String> {
    let mut names = fs.list(&directory()).unwrap();
    names.retain(|name| name.starts_with("spare"));
    names
}

/// A disk with the log up to the middle of segment 4.
fn grown(log: &Log) -> (CrashFs, Lsn) {
    let fs = CrashFs::new();
    let mut member = create(&(Arc::new(fs.clone()) as Arc<dyn FileSystem>));
    member.process(vec![(P1, elected(&[(1, START)]))]);
    let to = log.ends.iter().copied().filter(|end| end.segment_number() == 4).nth(2).unwrap();
    assert_eq!(follow(&mut member, log, START, to), to);
    (fs.crash(u64::MAX), to)
}

/// Goes on from there: segment 3's file becomes segment 5's, and segment 6 gets one of zeros. Returns what was
/// acknowledged.
fn live(fs: &Arc<dyn FileSystem>, log: &Log, from: Lsn) -> Lsn {
    let Ok(mut member) = Member::open(fs.clone(), &directory(), NODE) else { return from };
    member.process(vec![(P1, elected(&[(1, START)]))]);
    let in_4 = log.ends.iter().copied().find(|end| *end > from).unwrap();
    let mut acked = follow(&mut member, log, from, in_4);
    if acked < in_4 || member.trim(trimmable(Lsn(4 * SEG)), false).is_err() {
        return acked;
    }
    let in_5 = log.ends.iter().copied().rfind(|end| end.0 < 6 * SEG).unwrap();
    acked = follow(&mut member, log, acked, in_5);
    if let Some(filler) = member.filler()
        && filler.run().is_err()
    {
        return acked;
    }
    follow(&mut member, log, acked, log.end)
}

fn check_after_crash(after: &CrashFs, log: &Log, acked: Lsn, what: &str) {
    let fs: Arc<dyn FileSystem> = Arc::new(after.clone());
    let mut member = Member::open(fs.clone(), &directory(), NODE).unwrap();
    let Status { flush_lsn: end, trim_lsn, .. } = member.status();
    assert!(end >= acked, "{what}: {end} < {acked}");
    assert!(log.ends.contains(&end), "{what}: {end} is no record end");
    let from = trim_lsn.max(START);
    assert!(member.files().read(from, end).unwrap() == log.range(from, end), "{what}");
    assert!(is_zero_behind(member.files(), end).unwrap(), "{what}");
    assert_eq!(spare_files(&fs), Vec::<String>::new(), "{what}");
    // The log goes on there.
    let next = log.ends.iter().copied().find(|next| *next > end).unwrap_or(end);
    member.process(vec![(P1, elected(&[(1, START)]))]);
    assert_eq!(follow(&mut member, log, end, next), next, "{what}");
    assert!(member.files().read(from, next).unwrap() == log.range(from, next), "{what}");
}

#[test]
fn older_records_in_a_file_taken_over_are_never_taken_for_the_log() {
    let log = alike();
    let (before, from) = grown(&log);
    let run = |crash_at: Option<u64>| {
        let fs = before.crash(u64::MAX);
        crash_at.into_iter().for_each(|call| fs.crash_at(call));
        let acked = live(&(Arc::new(fs.clone()) as Arc<dyn FileSystem>), &log, from);
        (fs, acked)
    };
    let (whole, acked) = run(None);
    assert_eq!(acked, log.end);
    let calls = whole.calls();
    assert!(calls > 80, "{calls} calls");
    for call in 1..=calls {
        let (fs, acked) = run(Some(call));
        for seed in [0, call, u64::MAX] {
            let what = format!("crash at call {call} of {calls}, seed {seed}");
            check_after_crash(&fs.crash(seed), &log, acked, &what);
        }
    }
}

/// What the test above is about does happen: the file is the same, with the older records behind the log's last page.
#[test]
fn a_trimmed_segment_goes_on_as_a_later_one() {
    let log = alike();
    let (crash_fs, from) = grown(&log);
    let fs: Arc<dyn FileSystem> = Arc::new(crash_fs);
    let room = Room::of(u64::MAX);
    let mut member = Member::open(fs.clone(), &directory(), NODE).unwrap().charged_to(&room);
    member.process(vec![(P1, elected(&[(1, START)]))]);
    let in_4 = log.ends.iter().copied().find(|end| *end > from).unwrap();
    follow(&mut member, &log, from, in_4);
    member.trim(trimmable(Lsn(4 * SEG)), false).unwrap();
    assert_eq!(spare_files(&fs).len(), 2, "those of segments 2 and 3");
    assert_eq!(room.used(), in_4.0 - 4 * SEG + 2 * SEG);
    let begin = Lsn(TAKEN * SEG);
    let first = log.ends.iter().copied().find(|end| *end > begin).unwrap();
    follow(&mut member, &log, in_4, first);
    assert_eq!(member.files().segments().unwrap(), [4, 5]);
    assert_eq!((spare_files(&fs).len(), room.used()), (1, 3 * SEG), "one, and two whole segments");
    let page_end = first.page_start() + 8192;
    let behind = member.files().read(first, page_end).unwrap();
    assert!(behind.iter().all(|byte| *byte == 0), "the last page is zeros behind the log");
    let later = member.files().read(page_end, page_end + 8192).unwrap();
    let old = log.range(Lsn(page_end.0 - 2 * SEG), Lsn(page_end.0 - 2 * SEG + 8192));
    assert_eq!(later, old, "the next one is as it was");
    assert!(member.filler().is_none(), "one is left");
    member.give_back().unwrap();
    assert_eq!((spare_files(&fs).len(), room.used()), (0, first.0 - 4 * SEG));
    assert!(is_zero_behind(member.files(), first).unwrap());
}

#[test]
fn files_for_the_log_to_come_give_way_to_the_log() {
    let log = alike();
    let (crash_fs, from) = grown(&log);
    let fs: Arc<dyn FileSystem> = Arc::new(crash_fs);
    let room = Room::of(12 * SEG);
    let mut member = Member::open(fs.clone(), &directory(), NODE).unwrap().charged_to(&room);
    member.process(vec![(P1, elected(&[(1, START)]))]);
    let in_5 = log.ends.iter().copied().find(|end| end.0 > TAKEN * SEG).unwrap();
    assert_eq!(follow(&mut member, &log, from, in_5), in_5);
    let mut others = room.share();
    others.set(9 * SEG);
    assert!(member.filler().is_none(), "no room for it: {} is used", room.used());
    assert_eq!(spare_files(&fs), Vec::<String>::new());
    others.set(0);
    member.trim(trimmable(Lsn(4 * SEG)), false).unwrap();
    assert_eq!(spare_files(&fs).len(), 2);
    // The rest of segment 5 is left, and all that others may have is taken.
    others.set(room.limit() - room.used());
    let out = member.process(vec![(P1, append(&log, 1, in_5, log.end, in_5))]);
    assert_eq!(flush_of(&out).map(|response| response.flush_lsn), Some(log.end));
    assert_eq!(spare_files(&fs), Vec::<String>::new());
    assert!(room.used() <= room.limit(), "{} of {}", room.used(), room.limit());
}

/// A filler is given up in the middle: what it was at work on is gone, and nothing of it is taken later.
#[test]
fn a_filler_that_is_no_longer_wanted_leaves_nothing() {
    let log = alike();
    let (crash_fs, from) = grown(&log);
    let fs: Arc<dyn FileSystem> = Arc::new(crash_fs);
    let mut member = Member::open(fs.clone(), &directory(), NODE).unwrap();
    member.process(vec![(P1, elected(&[(1, START)]))]);
    let in_5 = log.ends.iter().copied().find(|end| end.0 > TAKEN * SEG).unwrap();
    follow(&mut member, &log, from, in_5);
    let filler = member.filler().unwrap();
    assert!(member.filler().is_none(), "one at a time, once a segment");
    assert_eq!((spare_files(&fs).len(), member.store.has_spares()), (1, true));
    member.give_back().unwrap();
    filler.run().unwrap();
    assert_eq!((spare_files(&fs).len(), member.store.has_spares()), (0, false));
    assert_eq!(follow(&mut member, &log, in_5, log.end), log.end);
    drop(member.filler().unwrap());
    assert_eq!((spare_files(&fs).len(), member.store.has_spares()), (0, false));
}
