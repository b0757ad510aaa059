//! The protocol of `docs/formats/quorum.md`, written down once more and small enough that every reachable state can be looked at.
//!
//! Nothing of the crate is used. Messages are not modelled one by one: a vote or an acknowledgement is in its proposer's hands at once,
//! but what the proposer makes of it may come any time later, which is the same as a late message. A loss is a step that is not taken; a
//! crash of a proposer is its next campaign, one of an admin that it does nothing more. Logs are lists of entries: a term's own first entry, and WAL.
//!
//! Each rule that the argument in the document rests on is also taken away once: then a counterexample must be found.

use stateright::{Checker, HasDiscoveries, Model, Property};

/// A set of nodes.
type Nodes = u8;

fn is_majority(of: Nodes, have: Nodes) -> bool {
    (of & have).count_ones() > of.count_ones() / 2
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Configuration {
    generation: u8,
    members: Nodes,
    /// Empty unless joint.
    new: Nodes,
}

impl Configuration {
    fn is_quorum(&self, have: Nodes) -> bool {
        is_majority(self.members, have) && (self.new == 0 || is_majority(self.new, have))
    }

    fn everyone(&self) -> Nodes {
        self.members | self.new
    }
}

/// An entry is its term; the first entry of a term has `FIRST` added.
type Log = Vec<u8>;
const FIRST: u8 = 0x80;

/// What elections compare.
fn rank(log: &[u8]) -> (u8, usize) {
    (log.last().map_or(0, |entry| entry & !FIRST), log.len())
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Acceptor {
    term: u8,
    leader: Option<u8>,
    log: Log,
    follows: Configuration,
    promised: u8,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Role {
    Idle,
    Candidate,
    Leader,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Proposer {
    role: Role,
    term: u8,
    follows: Configuration,
    votes: Vec<Option<Log>>,
    log: Log,
    /// Entries up to the term's own first one.
    start: usize,
    is_open: bool,
    acked: Vec<usize>,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
enum Phase {
    Idle,
    Promising { generation: u8, known: Configuration, granted: Nodes },
    Joining { joint: Configuration, accepted: Nodes, due: ((u8, usize), u8) },
    Filling { joint: Configuration, filled: Nodes, due: ((u8, usize), u8) },
    Finishing { last: Configuration, accepted: Nodes },
    Done,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct State {
    acceptors: Vec<Acceptor>,
    proposers: Vec<Proposer>,
    admins: Vec<Phase>,
    /// The longest log that was committed, and the term in which it grew to that.
    committed: Log,
    committed_in: u8,
    leaders: Vec<Option<u8>>,
    broken: Option<&'static str>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    Campaign(usize),
    Vote(usize, usize),
    TakeOffice(usize),
    Follow(usize, usize),
    Append(usize, usize),
    Write(usize),
    Adopt(usize, usize),
    BeginChange(usize),
    Promise(usize, usize),
    Accept(usize, usize),
    Fill(usize, usize),
    Finish(usize, usize),
}

/// A rule left out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Without {
    Nothing,
    /// New members take over empty.
    Filling,
    /// New members take over in whatever term they are.
    HighestTerm,
    /// Members acknowledge under a configuration older than theirs.
    Forgetting,
    /// A leader counts acknowledgements that were given under an older configuration.
    FreshAcknowledgements,
    /// An admin proposes what it wants, without asking what has been accepted.
    Promising,
}

struct Spec {
    nodes: usize,
    proposers: usize,
    members: Nodes,
    /// What each admin wants.
    wanted: Vec<Nodes>,
    terms_max: u8,
    log_max: usize,
    generations_max: u8,
    without: Without,
}

fn has(nodes: Nodes, node: usize) -> bool {
    nodes & (1 << node) != 0
}

impl Spec {
    fn first(&self) -> Configuration {
        Configuration { generation: 1, members: self.members, new: 0 }
    }

    /// What the proposer's acknowledgements amount to by now.
    fn count(&self, state: &mut State, proposer: usize) {
        let leader = &mut state.proposers[proposer];
        let reached = |len: usize| {
            let have = leader.acked.iter().enumerate().filter(|(_, acked)| **acked >= len);
            have.fold(0, |set: Nodes, (node, _)| set | 1 << node)
        };
        let lens = (leader.start..=leader.log.len()).rev();
        let Some(len) = lens.into_iter().find(|len| leader.follows.is_quorum(reached(*len))) else {
            return;
        };
        leader.is_open = true;
        let (log, term) = (leader.log[..len].to_vec(), leader.term);
        let common = log.len().min(state.committed.len());
        if log[..common] != state.committed[..common] {
            state.broken = Some("committed logs part");
        } else if log.len() > common {
            state.committed = log;
            state.committed_in = term;
        }
    }

    fn adopt(&self, acceptor: &mut Acceptor, newer: Configuration) {
        if newer.generation > acceptor.follows.generation {
            acceptor.follows = newer;
            if self.without != Without::Forgetting {
                acceptor.leader = None;
            }
        }
    }

    fn take_office(&self, state: &mut State, index: usize) {
        let proposer = &mut state.proposers[index];
        let best = proposer.votes.iter().flatten().max_by_key(|log| rank(log));
        proposer.log = best.expect("votes").clone();
        proposer.log.push(proposer.term | FIRST);
        proposer.start = proposer.log.len();
        proposer.role = Role::Leader;
        proposer.is_open = false;
        proposer.votes.fill(None);
        let (term, log) = (proposer.term, proposer.log.clone());
        let holder = *state.leaders[usize::from(term)].get_or_insert(index as u8);
        if holder != index as u8 {
            state.broken = Some("two leaders in a term");
        }
        if term > state.committed_in && !log.starts_with(&state.committed) {
            state.broken = Some("an elected log lacks what was committed");
        }
        self.count(state, index);
    }

    fn follow(&self, state: &mut State, p: usize, a: usize) {
        let (proposer, acceptor) = (&mut state.proposers[p], &mut state.acceptors[a]);
        self.adopt(acceptor, proposer.follows);
        let pairs = acceptor.log.iter().zip(&proposer.log);
        let common = pairs.take_while(|(own, theirs)| own == theirs).count();
        acceptor.log.truncate(common);
        acceptor.term = proposer.term;
        acceptor.leader = Some(p as u8);
        proposer.acked[a] = proposer.acked[a].max(common);
        self.count(state, p);
    }

    fn promise(&self, state: &mut State, i: usize, a: usize) {
        let acceptor = &mut state.acceptors[a];
        let Phase::Promising { generation, known, granted } = &mut state.admins[i] else { return };
        acceptor.promised = *generation;
        *granted |= 1 << a;
        if acceptor.follows.generation > known.generation {
            *known = acceptor.follows;
        }
        if !known.is_quorum(*granted) {
            return;
        }
        let new = if known.new != 0 { known.new } else { self.wanted[i] };
        state.admins[i] = if known.new == 0 && known.members == new {
            Phase::Done
        } else {
            let joint = Configuration { generation: *generation, members: known.members, new };
            Phase::Joining { joint, accepted: 0, due: ((0, 0), 0) }
        };
    }

    fn accept(&self, state: &mut State, i: usize, a: usize) {
        let acceptor = &mut state.acceptors[a];
        let Phase::Joining { joint, accepted, due } = &mut state.admins[i] else { return };
        self.adopt(acceptor, *joint);
        *accepted |= 1 << a;
        if has(joint.members, a) {
            let due_log =
                if self.without == Without::Filling { (0, 0) } else { rank(&acceptor.log) };
            let due_term = if self.without == Without::HighestTerm { 0 } else { acceptor.term };
            *due = (due.0.max(due_log), due.1.max(due_term));
        }
        if is_majority(joint.members, *accepted) {
            state.admins[i] = Phase::Filling { joint: *joint, filled: 0, due: *due };
        }
    }

    fn fill(&self, state: &mut State, i: usize, a: usize) {
        let acceptor = &mut state.acceptors[a];
        let Phase::Filling { joint, filled, due } = &mut state.admins[i] else { return };
        self.adopt(acceptor, *joint);
        if rank(&acceptor.log) >= due.0 && acceptor.term >= due.1 {
            *filled |= 1 << a;
        }
        if is_majority(joint.new, *filled) {
            let generation = joint.generation + 1;
            let last = Configuration { generation, members: joint.new, new: 0 };
            state.admins[i] = Phase::Finishing { last, accepted: 0 };
        }
    }

    fn steps_of_proposer(&self, state: &State, p: usize, steps: &mut Vec<Step>) {
        let proposer = &state.proposers[p];
        let reach = |a: &usize| {
            has(proposer.follows.everyone(), *a)
                && state.acceptors[*a].follows.generation <= proposer.follows.generation
        };
        if self.next_term(state, p) <= self.terms_max {
            steps.push(Step::Campaign(p));
        }
        for a in 0..self.nodes {
            if state.acceptors[a].follows.generation > proposer.follows.generation {
                steps.push(Step::Adopt(p, a));
            }
        }
        match proposer.role {
            Role::Idle => {}
            Role::Candidate => {
                let voters = proposer.votes.iter().enumerate().filter(|(_, vote)| vote.is_some());
                let granted = voters.fold(0, |set: Nodes, (node, _)| set | 1 << node);
                if proposer.follows.is_quorum(granted) {
                    steps.push(Step::TakeOffice(p));
                }
                let may_vote = |a: &usize| reach(a) && state.acceptors[*a].term < proposer.term;
                steps.extend((0..self.nodes).filter(may_vote).map(|a| Step::Vote(p, a)));
            }
            Role::Leader => {
                for a in 0..self.nodes {
                    let acceptor = &state.acceptors[a];
                    let is_led = acceptor.leader == Some(p as u8) && acceptor.term == proposer.term;
                    let same = acceptor.follows.generation == proposer.follows.generation
                        || self.without == Without::Forgetting;
                    if is_led && same && acceptor.log.len() < proposer.log.len() {
                        steps.push(Step::Append(p, a));
                    }
                    let leads_newly =
                        !is_led || acceptor.follows.generation < proposer.follows.generation;
                    if reach(&a) && acceptor.term <= proposer.term && leads_newly {
                        steps.push(Step::Follow(p, a));
                    }
                }
                if proposer.is_open && proposer.log.len() < self.log_max {
                    steps.push(Step::Write(p));
                }
            }
        }
    }

    fn next_term(&self, state: &State, p: usize) -> u8 {
        let proposer = &state.proposers[p];
        let known = state.acceptors.iter().enumerate();
        let known = known.filter(|(a, _)| has(proposer.follows.everyone(), *a));
        known.map(|(_, acceptor)| acceptor.term).max().unwrap_or(0).max(proposer.term) + 1
    }

    fn next_generation(&self, state: &State) -> u8 {
        let met = state.acceptors.iter().map(|a| a.promised.max(a.follows.generation));
        (met.max().unwrap_or(0) + 2) & !1
    }

    fn steps_of_admin(&self, state: &State, i: usize, steps: &mut Vec<Step>) {
        let nodes = state.acceptors.iter().enumerate();
        let accepts = |acceptor: &Acceptor, configuration: Configuration| {
            configuration.generation >= acceptor.promised
                && (acceptor.follows == configuration
                    || configuration.generation > acceptor.follows.generation)
        };
        match &state.admins[i] {
            Phase::Idle => {
                if self.next_generation(state) <= self.generations_max {
                    steps.push(Step::BeginChange(i));
                }
            }
            Phase::Promising { generation, known, granted } => {
                let may = nodes.filter(|(a, acceptor)| {
                    has(known.everyone() & !granted, *a)
                        && acceptor.promised.max(acceptor.follows.generation) < *generation
                });
                steps.extend(may.map(|(a, _)| Step::Promise(i, a)));
            }
            Phase::Joining { joint, accepted, .. } => {
                let may = nodes.filter(|(a, acceptor)| {
                    has(joint.everyone() & !accepted, *a) && accepts(acceptor, *joint)
                });
                steps.extend(may.map(|(a, _)| Step::Accept(i, a)));
            }
            Phase::Filling { joint, filled, due } => {
                let may = nodes.filter(|(a, acceptor)| {
                    let is_news = acceptor.follows != *joint
                        || (rank(&acceptor.log) >= due.0 && acceptor.term >= due.1);
                    has(joint.new & !filled, *a) && accepts(acceptor, *joint) && is_news
                });
                steps.extend(may.map(|(a, _)| Step::Fill(i, a)));
            }
            Phase::Finishing { last, accepted } => {
                let may = nodes.filter(|(a, acceptor)| {
                    has(last.members & !accepted, *a) && accepts(acceptor, *last)
                });
                steps.extend(may.map(|(a, _)| Step::Finish(i, a)));
            }
            Phase::Done => {}
        }
    }
}

impl Model for Spec {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        let acceptor = Acceptor {
            term: 0,
            leader: None,
            log: Vec::new(),
            follows: Configuration { generation: 0, members: 0, new: 0 },
            promised: 0,
        };
        let proposer = Proposer {
            role: Role::Idle,
            term: 0,
            follows: self.first(),
            votes: vec![None; self.nodes],
            log: Vec::new(),
            start: 0,
            is_open: false,
            acked: vec![0; self.nodes],
        };
        vec![State {
            acceptors: vec![acceptor; self.nodes],
            proposers: vec![proposer; self.proposers],
            admins: vec![Phase::Idle; self.wanted.len()],
            committed: Vec::new(),
            committed_in: 0,
            leaders: vec![None; usize::from(self.terms_max) + 1],
            broken: None,
        }]
    }

    fn actions(&self, state: &State, steps: &mut Vec<Step>) {
        (0..self.proposers).for_each(|p| self.steps_of_proposer(state, p, steps));
        (0..self.wanted.len()).for_each(|i| self.steps_of_admin(state, i, steps));
    }

    fn next_state(&self, before: &State, step: Step) -> Option<State> {
        let mut state = before.clone();
        match step {
            Step::Campaign(p) => {
                let term = self.next_term(before, p);
                let proposer = &mut state.proposers[p];
                proposer.role = Role::Candidate;
                proposer.term = term;
                proposer.votes.fill(None);
                proposer.acked.fill(0);
                proposer.log.clear();
                (proposer.start, proposer.is_open) = (0, false);
            }
            Step::Vote(p, a) => {
                let (proposer, acceptor) = (&mut state.proposers[p], &mut state.acceptors[a]);
                self.adopt(acceptor, proposer.follows);
                acceptor.term = proposer.term;
                acceptor.leader = None;
                proposer.votes[a] = Some(acceptor.log.clone());
            }
            Step::TakeOffice(p) => self.take_office(&mut state, p),
            Step::Follow(p, a) => self.follow(&mut state, p, a),
            Step::Append(p, a) => {
                let (proposer, acceptor) = (&mut state.proposers[p], &mut state.acceptors[a]);
                acceptor.log.push(proposer.log[acceptor.log.len()]);
                proposer.acked[a] = proposer.acked[a].max(acceptor.log.len());
                self.count(&mut state, p);
            }
            Step::Write(p) => {
                let proposer = &mut state.proposers[p];
                proposer.log.push(proposer.term);
            }
            Step::Adopt(p, a) => {
                let proposer = &mut state.proposers[p];
                proposer.follows = before.acceptors[a].follows;
                if self.without != Without::FreshAcknowledgements {
                    proposer.acked.fill(0);
                }
                match proposer.role {
                    Role::Candidate => {
                        proposer.role = Role::Idle;
                        proposer.votes.fill(None);
                    }
                    Role::Idle => {}
                    Role::Leader => self.count(&mut state, p),
                }
            }
            Step::BeginChange(i) => {
                let (generation, known) = (self.next_generation(before), self.first());
                let joint = Configuration { generation, new: self.wanted[i], ..known };
                state.admins[i] = match self.without {
                    Without::Promising => Phase::Joining { joint, accepted: 0, due: ((0, 0), 0) },
                    _ => Phase::Promising { generation, known, granted: 0 },
                };
            }
            Step::Promise(i, a) => self.promise(&mut state, i, a),
            Step::Accept(i, a) => self.accept(&mut state, i, a),
            Step::Fill(i, a) => self.fill(&mut state, i, a),
            Step::Finish(i, a) => {
                let acceptor = &mut state.acceptors[a];
                let Phase::Finishing { last, accepted } = &mut state.admins[i] else { return None };
                self.adopt(acceptor, *last);
                *accepted |= 1 << a;
                if is_majority(last.members, *accepted) {
                    state.admins[i] = Phase::Done;
                }
            }
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("nothing that was committed is lost", |_, state: &State| {
                state.broken.is_none()
            }),
            Property::sometimes("something is committed", |spec: &Spec, state: &State| {
                let changed = |p: &Proposer| p.follows.generation > 1 && p.follows.new == 0;
                let wal = state.committed.iter().any(|entry| entry & FIRST == 0);
                wal && (spec.wanted.is_empty()
                    || state.proposers.iter().any(|p| changed(p) && p.is_open))
            }),
        ]
    }
}

/// Three members, nobody changes them.
fn fixed(terms_max: u8, log_max: usize) -> Spec {
    Spec {
        nodes: 3,
        proposers: 2,
        members: 0b111,
        wanted: Vec::new(),
        terms_max,
        log_max,
        generations_max: 1,
        without: Without::Nothing,
    }
}

/// Two members give way to a third, by one admin.
fn changing(log_max: usize, without: Without) -> Spec {
    Spec {
        nodes: 3,
        proposers: 2,
        members: 0b011,
        wanted: vec![0b100],
        terms_max: 2,
        log_max,
        generations_max: 2,
        without,
    }
}

/// Two admins want different members.
fn contested(proposers: usize, without: Without) -> Spec {
    Spec {
        nodes: 3,
        proposers,
        members: 0b001,
        wanted: vec![0b010, 0b100],
        terms_max: 2,
        log_max: 3,
        generations_max: 4,
        without,
    }
}

fn check(name: &str, spec: Spec) {
    let checker = spec.checker().threads(2).spawn_bfs().join();
    println!("{name}: {} states, depth {}", checker.unique_state_count(), checker.max_depth());
    checker.assert_properties();
}

#[test]
fn three_members() {
    check("three members", fixed(2, 3));
}

#[test]
fn members_change() {
    check("members change", changing(2, Without::Nothing));
}

#[test]
fn two_admins() {
    check("two admins", contested(1, Without::Nothing));
}

#[test]
#[ignore = "minutes: make test-long"]
fn three_members_at_length() {
    check("three members", fixed(3, 4));
}

#[test]
#[ignore = "minutes: make test-long"]
fn members_change_at_length() {
    check("members change", changing(3, Without::Nothing));
}

#[test]
#[ignore = "minutes: make test-long"]
fn two_admins_at_length() {
    check("two admins", contested(2, Without::Nothing));
}

/// With any of the rules left out, something is lost.
#[test]
fn each_rule_is_needed() {
    let cases = [
        changing(2, Without::Filling),
        changing(2, Without::HighestTerm),
        changing(2, Without::Forgetting),
        changing(2, Without::FreshAcknowledgements),
        contested(1, Without::Promising),
    ];
    let is_missed = |spec: Spec| {
        let without = spec.without;
        let checker = spec.checker().threads(2).finish_when(HasDiscoveries::AnyFailures);
        let checker = checker.spawn_bfs().join();
        println!("without {without:?}: {} states", checker.unique_state_count());
        let found = checker.discovery("nothing that was committed is lost");
        found.is_none().then_some(without)
    };
    let unneeded: Vec<Without> = cases.into_iter().filter_map(is_missed).collect();
    assert!(unneeded.is_empty(), "nobody misses {unneeded:?}");
}
