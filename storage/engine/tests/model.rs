//! The engine against a naive model: random records on random timelines, branches, flushes, deletions and reopenings,
//! read back at LSNs all over.

mod support;

use std::path::Path;

use proptest::prelude::*;
use support::*;
use treering_engine::{EngineOptions, scrub_directory};
use treering_fs::CrashFs;
use treering_types::{ErrorKind, Lsn, RelTag};

#[derive(Clone, Debug)]
enum Step {
    Write {
        on: usize,
        records: Vec<Vec<Act>>,
    },
    /// At this fraction, in 256ths, of the timeline's history.
    Branch {
        from: usize,
        at: u8,
    },
    Flush {
        on: usize,
    },
    Delete {
        on: usize,
    },
    /// The process is killed; children are sent their lost batches first, or last.
    Reopen {
        children_first: bool,
    },
    Check {
        on: usize,
        at: u8,
    },
    Compact {
        on: usize,
        force: bool,
    },
    Gc {
        on: usize,
        at: u8,
        force: bool,
    },
    Lease {
        on: usize,
        at: Vec<u8>,
    },
}

fn any_rel() -> impl Strategy<Value = RelTag> {
    let parts = (prop::sample::select(DATABASES.to_vec()), 0..RELATIONS);
    parts.prop_map(|(database, number)| rel(database, number))
}

/// What one record does. Those that cut a relation do nothing else, as in Postgres.
fn record() -> impl Strategy<Value = Vec<Act>> {
    let cut = prop_oneof![
        1 => any_rel().prop_map(Act::Create),
        3 => (any_rel(), 0..BLOCKS).prop_map(|(rel, blocks)| Act::Truncate(rel, blocks)),
        1 => any_rel().prop_map(Act::Drop),
        2 => any_rel().prop_map(Act::Copy),
    ];
    prop_oneof![
        1 => cut.prop_map(|act| vec![act]),
        4 => prop::collection::vec(change(), 1..4),
    ]
}

fn change() -> impl Strategy<Value = Act> {
    let relation = || (0..RELATIONS).prop_map(|number| rel(5, number));
    prop_oneof![
        2 => (any_rel(), 0..BLOCKS, 1..=255u8).prop_map(|(r, b, fill)| Act::Image(r, b, fill)),
        1 => (any_rel(), 0..BLOCKS).prop_map(|(rel, block)| Act::Zero(rel, block)),
        12 => (relation(), 0..BLOCKS, 0..4u32, any::<u32>())
            .prop_map(|(rel, block, index, word)| Act::Delta(rel, block, index, word)),
        3 => (any_rel(), 0..BLOCKS, 0..4u32, any::<u32>())
            .prop_map(|(rel, block, index, word)| Act::Delta(rel, block, index, word)),
        1 => (0..SLRU_PAGES, any::<u8>()).prop_map(|(page, fill)| Act::SlruImage(page, fill)),
        4 => (0..SLRU_PAGES, 0..9u32, any::<u32>()).prop_map(|(p, i, w)| Act::SlruDelta(p, i, w)),
        2 => (0..8u32, any::<u8>()).prop_map(|(key, value)| Act::Put(key, value)),
        1 => (0..8u32).prop_map(Act::Remove),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let on = || 0..64usize;
    let records = prop::collection::vec(record(), 1..24);
    prop_oneof![
        8 => (on(), records).prop_map(|(on, records)| Step::Write { on, records }),
        2 => (on(), any::<u8>()).prop_map(|(from, at)| Step::Branch { from, at }),
        3 => on().prop_map(|on| Step::Flush { on }),
        1 => on().prop_map(|on| Step::Delete { on }),
        1 => any::<bool>().prop_map(|children_first| Step::Reopen { children_first }),
        4 => (on(), any::<u8>()).prop_map(|(on, at)| Step::Check { on, at }),
        2 => (on(), any::<bool>()).prop_map(|(on, force)| Step::Compact { on, force }),
        4 => (on(), any::<u8>(), any::<bool>()).prop_map(|(on, at, force)| Step::Gc { on, at, force }),
        1 => (on(), prop::collection::vec(any::<u8>(), 0..3))
            .prop_map(|(on, at)| Step::Lease { on, at }),
    ]
}

fn part_of(world: &World<CrashFs>, index: usize, at: u8) -> Lsn {
    let span = world.timelines[index].last.0 - START.0;
    Lsn(START.0 + span * u64::from(at) / 255)
}

fn run(world: &mut World<CrashFs>, step: &Step) {
    let live = world.live();
    let pick = |number: usize| live[number % live.len()];
    match step {
        Step::Write { on, records } => world.write(pick(*on), records).unwrap(),
        Step::Branch { from, at } if world.timelines.len() < 12 => {
            let from = pick(*from);
            let at = part_of(world, from, *at);
            match world.is_kept(from, at) {
                true => drop(world.branch(from, at).unwrap()),
                false => assert_eq!(kind_of(world.branch(from, at)), Some(ErrorKind::Gone)),
            }
        }
        Step::Branch { .. } => {}
        Step::Flush { on } => world.timeline(pick(*on)).flush().unwrap(),
        Step::Delete { on } => delete(world, pick(*on)),
        Step::Reopen { children_first } => reopen(world, *children_first),
        Step::Check { on, at } => world.check(pick(*on), part_of(world, pick(*on), *at)),
        Step::Compact { on, force } => drop(world.timeline(pick(*on)).compact(*force).unwrap()),
        Step::Gc { on, at, force } => {
            let on = pick(*on);
            world.gc(on, part_of(world, on, *at)).unwrap();
            if *force {
                world.timeline(on).compact(true).unwrap();
            }
        }
        Step::Lease { on, at } => lease(world, pick(*on), at),
    }
}

fn lease(world: &mut World<CrashFs>, index: usize, at: &[u8]) {
    let timeline = world.timeline(index);
    let start = timeline.start_lsn();
    let leases: Vec<Lsn> = at.iter().map(|at| part_of(world, index, *at).max(start)).collect();
    let all_kept = leases.iter().all(|lsn| world.is_kept(index, *lsn));
    let granted = timeline.set_leases(leases.iter().copied());
    match all_kept {
        true => {
            granted.unwrap();
            world.timelines[index].leases = leases.into_iter().collect();
        }
        false => assert_eq!(kind_of(granted), Some(ErrorKind::Gone)),
    }
}

fn delete(world: &mut World<CrashFs>, index: usize) {
    let id = world.timelines[index].id;
    let live = world.live();
    let mut others = live.iter().map(|other| &world.timelines[*other]);
    let has_children = others.any(|t| t.ancestor.is_some_and(|(parent, _)| parent == id));
    let result = world.tenant().delete_timeline(id);
    if has_children {
        assert_eq!(kind_of(result), Some(ErrorKind::Conflict));
    } else if index > 0 {
        result.unwrap();
        world.timelines[index].deleted = true;
    } else {
        // The root is gone: begin again with an empty tenant would be another test.
        result.unwrap();
        world.timelines.clear();
        world.import_root_again();
    }
}

fn reopen(world: &mut World<CrashFs>, children_first: bool) {
    let fs = world.fs.clone();
    world.reopen(fs).unwrap();
    let mut order = world.live();
    for index in &order {
        let timeline = world.timeline(*index);
        assert_eq!(timeline.last_record_lsn(), timeline.disk_consistent_lsn());
        let lost = Lsn(timeline.last_record_lsn().0 + 1);
        assert_eq!(
            kind_of(timeline.get_value(treering_types::Key::MIN, lost)),
            Some(ErrorKind::NotYet)
        );
    }
    if children_first {
        order.reverse();
    }
    for index in order {
        world.send_again(index).unwrap();
    }
}

impl World<CrashFs> {
    fn import_root_again(&mut self) {
        let tenant = self.tenant();
        assert!(tenant.timelines().is_empty());
        self.import_root().unwrap();
    }
}

/// `TREERING_MODEL_CASES=10000` for the long run.
fn cases() -> u32 {
    let set = std::env::var("TREERING_MODEL_CASES").ok();
    set.map_or(300, |cases| cases.parse().expect("a number of cases"))
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: cases(),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn reads_equal_the_model(
        steps in prop::collection::vec(step(), 1..40),
        merge_threads in 1..4usize,
        stretch_bytes_min in prop::sample::select(vec![1, 16 << 10, usize::MAX]),
    ) {
        // However small a merge is, its keys are shared among threads.
        let merge_part_bytes_min = 1;
        let options =
            EngineOptions { merge_threads, merge_part_bytes_min, stretch_bytes_min, ..tiny_options() };
        let mut world = World::begin_with(CrashFs::new(), options).unwrap();
        for step in &steps {
            run(&mut world, step);
        }
        world.check_all(6);
        prop_assert!(world.engine().scrub().findings.is_empty());
        reopen(&mut world, false);
        world.engine().flush_all().unwrap();
        world.check_all(6);
        // Whatever is left to be retained: one run of everything, on all timelines.
        for index in world.live() {
            world.timeline(index).compact(true).unwrap();
            prop_assert!(world.timeline(index).info().runs <= 1);
        }
        world.check_all(6);
        let report = world.engine().scrub();
        prop_assert!(report.findings.is_empty(), "{:?}", report.findings);
        let files = scrub_directory(&world.fs, Path::new("/engine"), false, false).unwrap();
        prop_assert!(files.findings.is_empty() && files.leftovers.is_empty(), "{files:?}");
        prop_assert_eq!((files.layers, files.values), (report.layers, report.values));
    }
}
