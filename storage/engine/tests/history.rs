//! Gc and the indexes: record boundaries and times at whatever is retained are what they were before anything was dropped.

mod support;

use std::{collections::BTreeSet, sync::Arc};

use proptest::prelude::*;
use support::*;
use treering_engine::{Engine, RecordEnds, TimeAnswer, TimeEntry, Timeline, Value, WriteBatch};
use treering_fs::CrashFs;
use treering_pgfmt::wal::encode::record_start_after;
use treering_types::{ErrorKind, Key, KeyClass, Lsn};

/// One timeline's own records: where each ends, and its commit's stamp.
struct Log {
    timeline: Arc<Timeline>,
    ancestor: Option<(usize, Lsn)>,
    records: Vec<(Lsn, Option<i64>)>,
    /// The WAL page under construction, as ingest keeps it.
    page: (Key, RecordEnds),
}

struct Logs {
    fs: CrashFs,
    engine: Arc<Engine>,
    logs: Vec<Log>,
}

fn open_page(timeline: &Timeline) -> (Key, RecordEnds) {
    let at = timeline.last_record_lsn();
    let key = RecordEnds::key_of(at);
    let stored = timeline.get_value(key, at).unwrap();
    let mut page =
        stored.map_or_else(RecordEnds::default, |(_, bytes)| RecordEnds::decode(&bytes).unwrap());
    page.ends.retain(|end| *end <= at);
    if page.ends.last() != Some(&at) {
        page.ends.push(at);
    }
    (key, page)
}

impl Logs {
    fn begin() -> Logs {
        let fs = CrashFs::new();
        let engine = open(&fs).unwrap();
        let tenant = engine.create_tenant(new_tenant()).unwrap();
        let root = tenant.create_root(timeline_id(1), START, 0).unwrap();
        let mut batch = WriteBatch::new(START);
        batch.put(Key::two_phase(1), START, Value::whole(vec![1]));
        root.write(batch).unwrap();
        root.finish_import(START).unwrap();
        let page = open_page(&root);
        let log = Log { timeline: root, ancestor: None, records: Vec::new(), page };
        Logs { fs, engine, logs: vec![log] }
    }

    /// The records that a timeline sees, oldest first, and behind which LSN each lies.
    fn seen(&self, index: usize, upto: Lsn) -> Vec<(Lsn, Option<i64>)> {
        let log = &self.logs[index];
        let mut seen = match log.ancestor {
            Some((ancestor, fork)) => self.seen(ancestor, fork.min(upto)),
            None => vec![(START, None)],
        };
        seen.extend(log.records.iter().filter(|record| record.0 <= upto));
        seen
    }

    fn stamp_max(&self, index: usize, upto: Lsn) -> Option<i64> {
        self.seen(index, upto).into_iter().filter_map(|record| record.1).max()
    }

    /// As ingest would: one batch of records of these lengths, some of them commits.
    fn write(&mut self, index: usize, lengths: &[(u64, Option<i64>)]) {
        let mut last = self.logs[index].timeline.last_record_lsn();
        let mut stamp_max = self.stamp_max(index, last);
        let mut batch = WriteBatch::default();
        let log = &mut self.logs[index];
        // What the page holds was written with the batch before.
        let mut is_dirty = false;
        for (length, stamp) in lengths {
            let end = last + length * 8;
            let key = RecordEnds::key_of(end);
            if key != log.page.0 {
                if is_dirty {
                    batch.put(log.page.0, last, Value::whole(log.page.1.encode()));
                }
                let before = *log.page.1.ends.last().unwrap();
                log.page = (key, RecordEnds { before, ends: Vec::new() });
            }
            log.page.1.ends.push(end);
            is_dirty = true;
            let stamp = stamp.map(|stamp| stamp + i64::try_from(end.0 - START.0).unwrap());
            if let Some(stamp) = stamp.filter(|stamp| stamp_max.is_none_or(|max| *stamp > max)) {
                stamp_max = Some(stamp);
                let (key, value) = TimeEntry::put(stamp, last);
                batch.put(key, end, value);
            }
            log.records.push((end, stamp));
            last = end;
        }
        batch.put(log.page.0, last, Value::whole(log.page.1.encode()));
        batch.last_record_lsn = last;
        log.timeline.write(batch).unwrap();
    }

    fn pick(&self, index: usize, at: u8) -> Lsn {
        let seen = self.seen(index, Lsn::MAX);
        seen[(seen.len() - 1) * usize::from(at) / 255].0
    }

    fn branch(&mut self, from: usize, at: Lsn) {
        let id = timeline_id(u8::try_from(self.logs.len() + 1).unwrap());
        let tenant = self.engine.tenant(TENANT).unwrap();
        let made = match tenant.branch(id, self.logs[from].timeline.id(), at) {
            Ok(made) => made,
            Err(error) => return assert_eq!(error.kind(), ErrorKind::Gone),
        };
        let (ancestor, fork) = made.info().ancestor.unwrap();
        let ancestor = self.logs.iter().position(|log| log.timeline.id() == ancestor).unwrap();
        let page = open_page(&made);
        let ancestor = Some((ancestor, fork));
        self.logs.push(Log { timeline: made, ancestor, records: Vec::new(), page });
    }

    /// Killed after a flush of everything, and opened again.
    fn reopen(&mut self) {
        self.engine.flush_all().unwrap();
        self.engine = open(&self.fs.clone()).unwrap();
        for log in &mut self.logs {
            log.timeline = self.engine.timeline(TENANT, log.timeline.id()).unwrap();
            log.page = open_page(&log.timeline);
        }
    }

    fn is_kept(&self, index: usize, lsn: Lsn) -> bool {
        self.owner(index, lsn).retained().allows(lsn)
    }

    fn check(&self, index: usize, lsn: Lsn) {
        let timeline = &self.logs[index].timeline;
        if !self.is_kept(index, lsn) {
            assert_eq!(kind_of(timeline.record_boundary(lsn)), Some(ErrorKind::Gone));
            return;
        }
        assert_eq!(timeline.time_at(lsn).unwrap(), self.stamp_max(index, lsn), "time at {lsn}");
        let seen = self.seen(index, lsn);
        if let [.., before, end] = seen.as_slice() {
            let found = timeline.record_boundary(lsn).unwrap().expect("two ends are known");
            assert_eq!((found.end, found.start), (end.0, record_start_after(before.0)), "at {lsn}");
        }
    }

    fn check_time(&self, index: usize, time: i64) {
        let timeline = &self.logs[index].timeline;
        let seen = self.seen(index, Lsn::MAX);
        let later = seen.iter().position(|record| record.1.is_some_and(|stamp| stamp > time));
        let answer = timeline.lsn_before_time(time).unwrap();
        let Some(later) = later else {
            return assert_eq!(answer, TimeAnswer::NothingLater(timeline.last_record_lsn()));
        };
        let wanted = seen[later - 1].0;
        let gone = TimeAnswer::BeforeHistory(timeline.earliest_lsn());
        if !self.is_kept(index, wanted) {
            return assert_eq!(answer, gone);
        }
        // Below the cut-off the index keeps what lookups of LSNs need: a pinned LSN need not be found by its time.
        let may_be_gone = wanted < self.owner(index, wanted).cut_off();
        let is_right = answer == TimeAnswer::At(wanted) || (may_be_gone && answer == gone);
        assert!(is_right, "before {time}: {answer:?}, not {wanted}");
    }

    fn owner(&self, index: usize, lsn: Lsn) -> &Timeline {
        let log = &self.logs[index];
        match log.ancestor {
            Some((ancestor, fork)) if lsn < fork => self.owner(ancestor, lsn),
            _ => &log.timeline,
        }
    }

    fn check_all(&self) {
        for index in 0..self.logs.len() {
            for (lsn, stamp) in self.seen(index, Lsn::MAX) {
                self.check(index, lsn);
                for time in stamp.into_iter().flat_map(|stamp| [stamp - 1, stamp]) {
                    self.check_time(index, time);
                }
            }
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// Lengths in eights of bytes, and how a commit's clock differs from the log's.
    Write(usize, Vec<(u64, Option<i64>)>),
    Branch(usize, u8),
    Gc(usize, u8),
    Lease(usize, u8),
    Flush(usize),
    Compact(usize),
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let on = || 0..8usize;
    let length = prop_oneof![4 => 3..60u64, 2 => 100..1500u64, 1 => Just(1024u64)];
    let record = (length, prop::option::of(-4000..4000i64));
    prop_oneof![
        8 => (on(), prop::collection::vec(record, 1..20)).prop_map(|(on, r)| Step::Write(on, r)),
        2 => (on(), any::<u8>()).prop_map(|(on, at)| Step::Branch(on, at)),
        3 => (on(), any::<u8>()).prop_map(|(on, at)| Step::Gc(on, at)),
        1 => (on(), any::<u8>()).prop_map(|(on, at)| Step::Lease(on, at)),
        3 => on().prop_map(Step::Flush),
        3 => on().prop_map(Step::Compact),
        1 => Just(Step::Reopen),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 200,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn answers_at_retained_lsns_never_change(steps in prop::collection::vec(step(), 1..40)) {
        let mut logs = Logs::begin();
        for step in steps {
            let count = logs.logs.len();
            match step {
                Step::Write(on, records) => logs.write(on % count, &records),
                Step::Branch(on, at) if count < 8 => {
                    let on = on % count;
                    logs.branch(on, logs.pick(on, at));
                }
                Step::Branch(..) => {}
                Step::Gc(on, at) => {
                    let on = on % count;
                    logs.logs[on].timeline.gc_below(logs.pick(on, at)).unwrap();
                }
                Step::Lease(on, at) => {
                    let on = on % count;
                    let _ = logs.logs[on].timeline.set_leases([logs.pick(on, at)]);
                }
                Step::Flush(on) => logs.logs[on % count].timeline.flush().unwrap(),
                Step::Compact(on) => drop(logs.logs[on % count].timeline.compact(true).unwrap()),
                Step::Reopen => logs.reopen(),
            }
        }
        logs.check_all();
        for log in &logs.logs {
            log.timeline.flush().unwrap();
            log.timeline.compact(true).unwrap();
        }
        logs.check_all();
    }
}

/// Months of commits leave what the window needs.
#[test]
fn the_indexes_are_collected() {
    let mut logs = Logs::begin();
    for _ in 0..40 {
        logs.write(0, &[(200, Some(0)); 100]);
        logs.logs[0].timeline.flush().unwrap();
    }
    let root = Arc::clone(&logs.logs[0].timeline);
    let keys = |class| {
        let range = Key::class_range(class);
        let last = root.last_record_lsn();
        let found = root.scan(range, last, treering_engine::Direction::Forward, usize::MAX);
        found.unwrap().len()
    };
    assert!(keys(KeyClass::TimeIndex) == 4000 && keys(KeyClass::RecordEnds) > 700);
    let pinned = logs.pick(0, 30);
    logs.branch(0, pinned);
    let cut_off = logs.pick(0, 254);
    root.gc_below(cut_off).unwrap();
    root.compact(true).unwrap();
    let left: BTreeSet<usize> = [keys(KeyClass::TimeIndex), keys(KeyClass::RecordEnds)].into();
    assert!(left.iter().all(|count| *count < 40), "{left:?}");
    logs.check_all();
}
