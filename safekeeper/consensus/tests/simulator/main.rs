//! A deterministic simulator: the real acceptors, proposers and changes of members in virtual time, on disks that lose or
//! tear what was not synced, over a network that loses, repeats, delays and reorders, with crashes between any two
//! effects, partitions, full and slow disks, several computes and several admins at once. One seed, one run.
//!
//! [`check`] says what must hold, and shares no code with what it judges. At the end of each run everything heals, and
//! work must go on. To know that the checks can fail, errors are planted: each [`Bug`] must be caught.
//!
//! The network is harsher than TCP: messages of old connections may arrive, and late.
//! `SIMULATOR_SEED=n` runs one seed only, `SIMULATOR_TIMES=n` that many times as many as usual.

mod check;
mod compute;
mod dice;
mod node;
mod record;
mod trouble;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use treering_consensus::Configuration;

use crate::{
    compute::nodes,
    world::{Event, Stats, World},
};

/// Errors that drivers or owners of the state machines could make, or the machines themselves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bug {
    /// A vote leaves before it is persisted.
    VoteBeforePersist,
    /// What a majority held when it voted counts as committed, before an entry of the new term does.
    CommitOfOldTerm,
    /// A member cuts more than it was told to: below what it knows to be committed.
    CutTooFar,
    /// What lay behind a cut is not zeroed.
    StaleTail,
    /// The position flushed is that of the bytes, not of the last whole record.
    FlushInsideRecord,
    /// What was written while a sync was under way is reported with what that covers.
    FlushBehindSync,
    /// A Postgres that was left running goes on because its log is long enough, whoever wrote the quorum's.
    KeptByLsn,
    /// New members take over before they hold what the old ones do.
    NotFilled,
}

/// The size of a run.
#[derive(Clone, Copy)]
pub struct Plan {
    /// Nodes there are, numbered from 1.
    nodes: u64,
    /// The first of them are the members that the timeline begins with.
    members: u64,
    /// Members come and go.
    changes: bool,
    bug: Option<Bug>,
}

impl Plan {
    fn fixed(members: u64) -> Plan {
        Plan { nodes: members, members, changes: false, bug: None }
    }

    fn changing() -> Plan {
        Plan { nodes: 5, members: 3, changes: true, bug: None }
    }
}

/// Events of a run, before everything heals.
const EVENTS: usize = 1500;

fn run(seed: u64, plan: Plan) -> (u64, Stats) {
    let mut world = World::new(seed, plan);
    world.new_compute(Configuration::first(nodes(1..=plan.members)).unwrap(), None);
    world.after(50, Event::Trouble);
    for _ in 0..EVENTS {
        world.step();
    }
    world.heal();
    (world.trace, world.stats)
}

fn number(name: &str) -> Option<u64> {
    let set = std::env::var(name).ok()?;
    Some(set.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

fn seeds(usual: u64) -> std::ops::Range<u64> {
    match number("SIMULATOR_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..usual * number("SIMULATOR_TIMES").unwrap_or(1),
    }
}

/// Runs the seeds, and wants every kind of event to have happened in them.
fn run_all(plan: Plan, count: u64) {
    let mut total = Stats::default();
    for seed in seeds(count) {
        let outcome = catch_unwind(AssertUnwindSafe(|| run(seed, plan)));
        let (_, stats) = outcome.unwrap_or_else(|panic| {
            eprintln!("failed with SIMULATOR_SEED={seed}");
            resume_unwind(panic)
        });
        total.elections += stats.elections;
        total.commits += stats.commits;
        total.cuts += stats.cuts;
        total.crashes += stats.crashes;
        total.fenced += stats.fenced;
        total.went_on += stats.went_on;
        total.changes += stats.changes;
        total.given_way += stats.given_way;
        total.reconfigured += stats.reconfigured;
        total.settled += stats.settled;
        total.unsettled += stats.unsettled;
        total.held_back += stats.held_back;
    }
    println!("{} of {} members: {total:?}", plan.members, plan.nodes);
    if number("SIMULATOR_SEED").is_none() {
        let least = count as usize;
        assert!(total.elections > least && total.commits > least && total.crashes > least);
        assert!(total.cuts > 0 && total.fenced > 0 && total.went_on > 0, "{total:?}");
        let has_changed =
            total.changes > least && total.given_way > 0 && total.reconfigured > least;
        assert!(has_changed || !plan.changes, "{total:?}");
        let is_asked = total.settled > least && total.unsettled > 0;
        assert!(is_asked || plan.changes, "{total:?}");
        assert!(total.held_back > least || plan.members == 1, "{total:?}");
    }
}

#[test]
fn a_quorum_of_one() {
    run_all(Plan::fixed(1), 100);
}

#[test]
fn a_quorum_of_three() {
    run_all(Plan::fixed(3), 500);
}

#[test]
fn a_quorum_of_five() {
    run_all(Plan::fixed(5), 100);
}

#[test]
fn members_come_and_go() {
    run_all(Plan::changing(), 500);
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    for seed in 0..10 {
        assert_eq!(run(seed, Plan::changing()).0, run(seed, Plan::changing()).0);
    }
    assert_ne!(run(0, Plan::changing()).0, run(1, Plan::changing()).0);
}

/// Each planted error, and words of the checks that are meant to find it.
const PLANTED: [(Bug, &[&str]); 8] = [
    (Bug::VoteBeforePersist, &["votes twice", "goes back", "two leaders"]),
    (Bug::CommitOfOldTerm, &["acknowledged log lost", "committed logs part", "misses some of"]),
    (Bug::CutTooFar, &["has less than", "parts before", "not synced"]),
    // The tail may also begin in the middle of a record.
    (
        Bug::StaleTail,
        &["parts before", "acknowledged log lost", "committed logs part", "inside a record"],
    ),
    (Bug::FlushInsideRecord, &["flushed inside a record"]),
    (Bug::FlushBehindSync, &["not synced"]),
    // What others hold of its log and what it wrote itself may also meet in the middle of a record.
    (Bug::KeptByLsn, &["parts before", "committed logs part", "committed inside a record"]),
    // Not filled means not in the term of the old ones either.
    (Bug::NotFilled, &["acknowledged log lost", "committed logs part", "two leaders"]),
];

thread_local! {
    static IS_EXPECTED: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// Panics of this thread say nothing: they are what is being looked for.
fn expect_panics() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if !IS_EXPECTED.get() {
            usual(info);
        }
    }));
    IS_EXPECTED.set(true);
}

#[test]
fn planted_errors_are_caught() {
    expect_panics();
    for (bug, expected) in PLANTED {
        let usual = if bug == Bug::NotFilled { Plan::changing() } else { Plan::fixed(3) };
        let plan = Plan { bug: Some(bug), ..usual };
        let caught = (0..5000).find_map(|seed| {
            let panic = catch_unwind(AssertUnwindSafe(|| run(seed, plan))).err()?;
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            Some((seed, text.unwrap_or_default()))
        });
        IS_EXPECTED.set(false);
        let (seed, text) = caught.unwrap_or_else(|| panic!("{bug:?} is not caught"));
        println!("{bug:?} is caught with seed {seed}: {text}");
        let is_meant = expected.iter().any(|words| text.contains(words));
        assert!(is_meant, "{bug:?} fails by accident: {text}");
        IS_EXPECTED.set(true);
    }
}
