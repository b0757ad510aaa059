//! Finding LSNs by time, record boundaries, and relations that cannot be read.

mod support;

use bytes::Bytes;
use support::*;
use treering_engine::{
    Boundary, RecordEnds, RelMeta, TimeAnswer, TimeEntry, Timeline, Unhandled, Value, WriteBatch,
};
use treering_fs::CrashFs;
use treering_pgfmt::change::PageChange;
use treering_types::{ErrorKind, Key, Lsn};

fn world() -> World<CrashFs> {
    World::begin(CrashFs::new()).unwrap()
}

/// A commit record with a stamp, ending at `lsn`, if it sets a new maximum.
fn commit(timeline: &Timeline, prev_end: Lsn, lsn: Lsn, stamp: i64) {
    let mut batch = WriteBatch::new(lsn);
    if timeline.time_at(timeline.last_record_lsn()).unwrap().is_none_or(|max| stamp > max) {
        let (key, value) = TimeEntry::put(stamp, prev_end);
        batch.put(key, lsn, value);
    }
    timeline.write(batch).unwrap();
}

#[test]
fn the_prefix_before_a_time() {
    let mut world = world();
    let root = world.timeline(0);
    let stamps = [100, 200, 150, 300, 250, 400];
    let lsn_of = |n: usize| START + 16 * (n as u64 + 1);
    for (n, stamp) in stamps.into_iter().enumerate() {
        commit(&root, Lsn(lsn_of(n).0 - 16), lsn_of(n), stamp);
    }
    let before = |time| root.lsn_before_time(time).unwrap();
    assert_eq!(before(99), TimeAnswer::At(START));
    assert_eq!(before(100), TimeAnswer::At(lsn_of(0)));
    assert_eq!(before(199), TimeAnswer::At(lsn_of(0)));
    // The commit stamped 150 after the one stamped 200 belongs to the prefix of 200, as in Postgres.
    assert_eq!(before(200), TimeAnswer::At(lsn_of(2)));
    assert_eq!(before(399), TimeAnswer::At(lsn_of(4)));
    assert_eq!(before(400), TimeAnswer::NothingLater(lsn_of(5)));
    assert_eq!(root.time_at(lsn_of(2)).unwrap(), Some(200));
    assert_eq!(root.time_at(START).unwrap(), None);

    world.timelines[0].last = lsn_of(5);
    let child = world.branch(0, lsn_of(1)).unwrap();
    let child = world.timeline(child);
    commit(&child, lsn_of(1), lsn_of(1) + 8, 500);
    root.flush().unwrap();
    child.flush().unwrap();
    let before = |time| child.lsn_before_time(time).unwrap();
    assert_eq!(before(150), TimeAnswer::At(lsn_of(0)));
    assert_eq!(before(250), TimeAnswer::At(lsn_of(1)));
    assert_eq!(before(500), TimeAnswer::NothingLater(lsn_of(1) + 8));
    assert_eq!(child.time_at(lsn_of(1)).unwrap(), Some(200));
    assert_eq!(child.time_at(lsn_of(1) + 8).unwrap(), Some(500));
}

#[test]
fn times_before_the_history_say_so() {
    let world = world();
    let root = world.timeline(0);
    commit(&root, Lsn(START.0 - 8), START + 8, 100);
    assert_eq!(root.lsn_before_time(50).unwrap(), TimeAnswer::BeforeHistory(START));
}

/// Record ends of one page, as ingest writes them: with the LSN of the batch's end.
fn put_ends(timeline: &Timeline, at: Lsn, before: Lsn, ends: &[Lsn]) {
    let mut batch = WriteBatch::new(at);
    let value = RecordEnds { before, ends: ends.to_vec() };
    batch.put(RecordEnds::key_of(ends[0]), at, Value::whole(value.encode()));
    timeline.write(batch).unwrap();
}

#[test]
fn record_boundaries() {
    let mut world = world();
    let root = world.timeline(0);
    let page = START + 8192;
    assert_eq!(root.record_boundary(START).unwrap(), None);
    // 0x40, 0x80 and the page's end in one page; then a record that crosses a whole page.
    let first = [page + 0x40, page + 0x80, page + 8192];
    put_ends(&root, page + 8192, Lsn(0), &first);
    let far = page + 3 * 8192 + 0x100;
    put_ends(&root, far, page + 8192, &[far]);

    let boundary = |lsn| root.record_boundary(lsn).unwrap();
    let at = |end, start| Some(Boundary { end, start });
    assert_eq!(boundary(page + 0x40), None, "where it starts is not known");
    assert_eq!(boundary(page + 0x80), at(page + 0x80, page + 0x40));
    assert_eq!(boundary(page + 0x88), at(page + 0x80, page + 0x40));
    assert_eq!(boundary(page + 8192), at(page + 8192, page + 0x80));
    assert_eq!(boundary(page + 2 * 8192), at(page + 8192, page + 0x80));
    // The record before ended at a page boundary: this one starts behind the page header.
    assert_eq!(boundary(far), at(far, page + 8192 + 24));
    root.flush().unwrap();
    assert_eq!(boundary(far), at(far, page + 8192 + 24));

    // A branch in the middle of the first page: the parent's value there carries a later LSN than the fork.
    world.timelines[0].last = far;
    let fork = page + 0x80;
    let child = world.branch(0, fork).unwrap();
    let child = world.timeline(child);
    assert_eq!(child.record_boundary(fork).unwrap(), at(fork, page + 0x40));
    put_ends(&child, fork + 0x70, Lsn(0), &[fork + 0x70]);
    assert_eq!(child.record_boundary(fork + 8).unwrap(), at(fork, page + 0x40));
    assert_eq!(child.record_boundary(fork + 0x70).unwrap(), at(fork + 0x70, fork));
}

#[test]
fn relations_that_cannot_be_read() {
    let world = world();
    let root = world.timeline(0);
    let (broken, dropped) = (rel(5, 0), rel(5, 1));
    let at = START + 8;
    let mut batch = WriteBatch::new(at);
    let record = Bytes::from_static(b"a record of a stranger");
    let change = PageChange::Unhandled { rmid: 137, info: 0x30, record: record.as_ref().into() };
    batch.put(Key::rel_block(broken, 1), at, Value::change(change.encode()));
    for rel in [broken, dropped] {
        let what = Unhandled { rmid: 137, info: 0x30, count: 1 };
        batch.put(Key::unhandled(rel), at, Value::whole(what.encode()));
    }
    root.write(batch).unwrap();
    let mut batch = WriteBatch::new(at + 8);
    batch.put(Key::rel_meta(dropped), at + 8, Value::tombstone());
    root.write(batch).unwrap();

    for flushed in [false, true] {
        let found = root.unreadable(at).unwrap();
        assert_eq!(found.iter().map(|one| one.rel).collect::<Vec<_>>(), [broken, dropped]);
        let found = root.unreadable(at + 8).unwrap();
        assert_eq!(found.iter().map(|one| (one.rel, one.lsn)).collect::<Vec<_>>(), [(broken, at)]);
        // The page before, its neighbour, and the page itself.
        root.get_page(Key::rel_block(broken, 1), START).unwrap();
        root.get_page(Key::rel_block(broken, 0), at).unwrap();
        let error = root.get_page(Key::rel_block(broken, 1), at + 8).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(error.to_string().contains("rmid 137"), "{error}");
        if !flushed {
            root.flush().unwrap();
        }
    }
    // An image heals the page; a cut heals the relation.
    let mut batch = WriteBatch::new(at + 16);
    let image = PageChange::Image(filled(3).into());
    batch.put(Key::rel_block(broken, 1), at + 16, Value::whole(image.encode()));
    root.write(batch).unwrap();
    assert_eq!(root.get_page(Key::rel_block(broken, 1), at + 16).unwrap(), filled(3));
    let mut batch = WriteBatch::new(at + 24);
    batch.put(Key::rel_meta(broken), at + 24, Value::whole(RelMeta::created(at + 24).encode()));
    root.write(batch).unwrap();
    assert!(root.unreadable(at + 24).unwrap().is_empty());
}
