use std::{cell::RefCell, sync::Arc, thread};

use proptest::prelude::*;
use treering_types::{ErrorKind, TimelineId};

use super::*;

const LENGTH: Duration = Duration::from_secs(600);

fn holder(number: usize) -> Holder {
    Holder::new(format!("run-{number}")).unwrap()
}

/// What an engine knows of leases: LSNs from the cut-off on are retained, and those that are leased.
#[derive(Debug, Default)]
struct Store {
    cut_off: Lsn,
    leases: BTreeSet<Lsn>,
}

impl Store {
    fn set_leases(&mut self, leases: BTreeSet<Lsn>) -> Result<(), EngineError> {
        let refused = leases.iter().find(|lsn| **lsn < self.cut_off && !self.leases.contains(lsn));
        if let Some(&wanted) = refused {
            let (timeline, earliest) = (TimelineId([1; 16]), self.cut_off);
            return Err(EngineError::BelowCutOff {
                timeline,
                wanted,
                earliest,
                earliest_time: None,
            });
        }
        self.leases = leases;
        Ok(())
    }
}

/// A table and its engine.
struct Table {
    leases: Leases,
    store: RefCell<Store>,
}

impl Table {
    fn new() -> Table {
        Table { leases: Leases::new(LENGTH), store: RefCell::default() }
    }

    fn take(&self, number: usize, lsn: u64, now: Instant) -> Result<Duration, ServiceError> {
        let keep = |lsns| self.store.borrow_mut().set_leases(lsns);
        self.leases.take(holder(number), Lsn(lsn), now, keep)
    }

    fn release(&self, number: usize, now: Instant) {
        self.leases.release(&holder(number), now, |lsns| self.store.borrow_mut().set_leases(lsns));
    }

    fn expire(&self, now: Instant) {
        self.leases.expire(now, |lsns| self.store.borrow_mut().set_leases(lsns));
    }

    fn collect(&self, cut_off: u64) {
        self.store.borrow_mut().cut_off = Lsn(cut_off);
    }

    fn kept(&self) -> Vec<u64> {
        self.store.borrow().leases.iter().map(|lsn| lsn.0).collect()
    }
}

#[test]
fn a_lease_moves_is_renewed_and_runs_out() {
    let (table, began) = (Table::new(), Instant::now());
    let take = |lsn, after: u64| table.take(1, lsn, began + Duration::from_secs(after)).unwrap();
    assert_eq!(take(20, 0), LENGTH);
    assert_eq!(take(50, 200), LENGTH);
    assert_eq!(table.kept(), [50]);
    take(30, 300);
    let listed = table.leases.list(began + Duration::from_secs(301));
    let left = Duration::from_secs(599);
    assert_eq!(listed, [Lease { holder: holder(1), lsn: Lsn(30), left }]);
    let (almost, over) = (began + Duration::from_secs(899), began + Duration::from_secs(900));
    table.expire(almost);
    assert_eq!((table.leases.count(almost), table.kept()), (1, vec![30]));
    assert_eq!((table.leases.count(over), table.kept()), (0, vec![30]));
    table.expire(over);
    assert_eq!(table.kept(), [0; 0]);
}

#[test]
fn what_is_refused_names_the_earliest_and_changes_nothing() {
    let (table, now) = (Table::new(), Instant::now());
    table.take(1, 20, now).unwrap();
    table.collect(0x1A);
    let error = table.take(1, 9, now).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Gone);
    assert!(error.to_string().contains("begins at 0/1A"), "{error}");
    assert_eq!((table.kept(), table.leases.count(now)), (vec![20], 1));
    assert!(table.take(2, 9, now).is_err());
    assert_eq!((table.kept(), table.leases.count(now)), (vec![20], 1));
    // What is held is retained, wherever the cut-off is by now: for its holder, and for whoever joins it.
    table.collect(30);
    table.take(1, 20, now).unwrap();
    table.take(2, 20, now).unwrap();
    table.release(1, now);
    table.take(1, 20, now).unwrap();
    // Between the two nothing is kept, though it lies ahead.
    assert!(table.take(1, 25, now).is_err());
    table.expire(now + LENGTH);
    assert!(table.take(1, 20, now + LENGTH).is_err());
}

#[test]
fn a_released_lease_goes_at_once() {
    let (table, now) = (Table::new(), Instant::now());
    table.take(1, 20, now).unwrap();
    table.take(2, 30, now).unwrap();
    table.release(1, now);
    table.release(7, now);
    let holders: Vec<_> = table.leases.list(now).into_iter().map(|lease| lease.holder).collect();
    assert_eq!((holders, table.kept()), (vec![holder(2)], vec![30]));
}

#[test]
fn holders_are_bounded() {
    let (table, now) = (Table::new(), Instant::now());
    for number in 0..HOLDERS_MAX {
        table.take(number, 20, now).unwrap();
    }
    assert_eq!(table.take(HOLDERS_MAX, 20, now).unwrap_err().kind(), ErrorKind::Busy);
    table.take(0, 20, now).unwrap();
    table.take(HOLDERS_MAX, 20, now + LENGTH).unwrap();
}

/// Two who take at once: what the engine is handed last is what is held.
#[test]
fn the_engine_hears_of_changes_in_their_order() {
    let (leases, now) = (Arc::new(Leases::new(LENGTH)), Instant::now());
    let heard = Arc::new(Mutex::new(Vec::new()));
    let threads: Vec<_> = (0..4)
        .map(|number| {
            let (leases, heard) = (Arc::clone(&leases), Arc::clone(&heard));
            thread::spawn(move || {
                for lsn in 0..200 {
                    let keep = |lsns: BTreeSet<Lsn>| {
                        heard.lock().push(lsns);
                        Ok(())
                    };
                    leases.take(holder(number), Lsn(lsn * 4 + number as u64), now, keep).unwrap();
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    let held: BTreeSet<Lsn> = leases.list(now).into_iter().map(|lease| lease.lsn).collect();
    assert_eq!(heard.lock().last(), Some(&held));
}

#[derive(Clone, Debug)]
enum Step {
    Take { holder: usize, lsn: u64 },
    Release { holder: usize },
    Pass { seconds: u64 },
    Collect { cutoff: u64 },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0..4_usize, 0..60_u64).prop_map(|(holder, lsn)| Step::Take { holder, lsn }),
        1 => (0..4_usize).prop_map(|holder| Step::Release { holder }),
        2 => (1..400_u64).prop_map(|seconds| Step::Pass { seconds }),
        2 => (0..50_u64).prop_map(|cutoff| Step::Collect { cutoff }),
    ];
    prop::collection::vec(step, 1..60)
}

proptest! {
    /// Beside a plain list of who holds what until when: what is held can always be read, and what is not is let go.
    #[test]
    fn what_is_held_can_be_read_whatever_gc_does(steps in steps()) {
        let (table, began) = (Table::new(), Instant::now());
        let (mut seconds, mut cut_off) = (0, 0);
        let mut model: Vec<(usize, u64, u64)> = Vec::new();
        for step in steps {
            let now = began + Duration::from_secs(seconds);
            match step {
                Step::Take { holder: number, lsn } => {
                    // What ran out and was not let go of yet is still retained.
                    let is_there = lsn >= cut_off || table.kept().contains(&lsn);
                    prop_assert_eq!(table.take(number, lsn, now).is_ok(), is_there);
                    if is_there {
                        model.retain(|held| held.0 != number);
                        model.push((number, lsn, seconds + LENGTH.as_secs()));
                    }
                }
                Step::Release { holder: number } => {
                    table.release(number, now);
                    model.retain(|held| held.0 != number);
                }
                Step::Pass { seconds: passed } => {
                    seconds += passed;
                    model.retain(|held| held.2 > seconds);
                    if passed % 2 == 0 {
                        table.expire(began + Duration::from_secs(seconds));
                    }
                }
                Step::Collect { cutoff: next } => {
                    cut_off = cut_off.max(next);
                    table.collect(cut_off);
                }
            }
            let now = began + Duration::from_secs(seconds);
            prop_assert!(model.iter().all(|held| table.kept().contains(&held.1)));
            model.sort_unstable();
            let shown = table.leases.list(now);
            let expected = model.iter().map(|(number, lsn, until)| Lease {
                holder: holder(*number),
                lsn: Lsn(*lsn),
                left: Duration::from_secs(until - seconds),
            });
            prop_assert_eq!(shown, expected.collect::<Vec<_>>());
        }
        table.expire(began + Duration::from_secs(seconds));
        let mut held: Vec<u64> = model.iter().map(|held| held.1).collect();
        held.sort_unstable();
        held.dedup();
        prop_assert_eq!(table.kept(), held);
    }
}
