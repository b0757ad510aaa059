//! A deterministic simulator: acceptors and proposers over a network that loses, repeats and reorders, on disks
//! that lose what was not synced, with crashes between any two effects. One seed, one run.
//!
//! Checked after every step: one leader a term; whatever a proposer reported as committed is in the log of
//! every proposer elected in a later term; acceptors agree with the committed log up to their `commit_lsn`; committed
//! positions are record ends; the end of the log as a majority tells it without a term covers what was committed when the first
//! of them was asked, and is committed. At the end of each run everything heals, and one more proposer must get through.
//!
//! The network is harsher than TCP: messages of old connections may arrive, and late.
//! `SIMULATOR_SEED=n` runs one seed only, `SIMULATOR_TIMES=n` that many times as many as usual.

use std::collections::BTreeMap;

use bytes::Bytes;
use treering_consensus::*;
use treering_types::{Lsn, NodeId, TenantId, Term, TimelineId};

const START: u64 = 1000;
/// Every record of the simulated log is this long.
const RECORD: u64 = 8;

/// splitmix64 (constants from Steele, Lea, Flood 2014).
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    fn once_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}

fn record_end(len: usize) -> u64 {
    START + len as u64 / RECORD * RECORD
}

/// A member: what its disk holds, and the process while it runs.
struct Node {
    id: NodeId,
    promises: Promises,
    /// The log from `START` on; bytes from `synced` on may be lost.
    log: Vec<u8>,
    synced: usize,
    acceptor: Option<Acceptor>,
}

impl Node {
    fn new(id: NodeId) -> Node {
        let promises = Promises::at(Lsn(START));
        let mut node = Node { id, promises, log: Vec::new(), synced: 0, acceptor: None };
        node.restart();
        node
    }

    /// Loses some suffix of what was not synced.
    fn crash(&mut self, dice: &mut Dice) {
        self.acceptor = None;
        let kept = dice.below(self.log.len() - self.synced + 1);
        self.log.truncate(self.synced + kept);
        self.synced = self.log.len();
    }

    /// Finds the last record end and cuts what lies behind it.
    fn restart(&mut self) {
        let end = record_end(self.log.len());
        self.log.truncate((end - START) as usize);
        self.synced = self.log.len();
        self.acceptor = Some(Acceptor::open(self.id, self.promises.clone(), Lsn(end)));
    }

    /// Gives the acceptor an input and carries out the effects, all or the first `limit` of them; the messages
    /// that got out are returned.
    fn step(&mut self, input: Input, limit: usize) -> Vec<(ProposerId, AcceptorMessage)> {
        let Some(acceptor) = &mut self.acceptor else { return Vec::new() };
        let mut sent = Vec::new();
        for effect in acceptor.step(input).into_iter().take(limit) {
            match effect {
                Effect::Truncate { to } => {
                    self.log.truncate((to.0 - START) as usize);
                    self.synced = self.log.len();
                }
                Effect::Persist(promises) => self.promises = promises,
                Effect::Write { lsn, bytes } => {
                    assert_eq!(lsn.0, START + self.log.len() as u64);
                    self.log.extend_from_slice(&bytes);
                }
                Effect::Send { to, message } => sent.push((to, message)),
            }
        }
        sent
    }

    fn flush(&mut self) -> Vec<(ProposerId, AcceptorMessage)> {
        if self.acceptor.is_none() || self.synced == self.log.len() {
            return Vec::new();
        }
        self.synced = self.log.len();
        self.step(Input::Flushed { record_end: Lsn(record_end(self.synced)) }, usize::MAX)
    }
}

struct Writer {
    id: ProposerId,
    proposer: Proposer,
    /// The whole log as this proposer has it, from `START` on; filled once it is elected.
    log: Option<Vec<u8>>,
}

enum Packet {
    ToAcceptor { from: ProposerId, to: NodeId, message: ProposerMessage },
    ToProposer { from: NodeId, to: ProposerId, message: AcceptorMessage },
}

impl Clone for Packet {
    fn clone(&self) -> Packet {
        match self {
            Packet::ToAcceptor { from, to, message } => {
                Packet::ToAcceptor { from: *from, to: *to, message: message.clone() }
            }
            Packet::ToProposer { from, to, message } => {
                Packet::ToProposer { from: *from, to: *to, message: message.clone() }
            }
        }
    }
}

struct World {
    dice: Dice,
    nodes: Vec<Node>,
    writers: Vec<Writer>,
    packets: Vec<Packet>,
    leaders: BTreeMap<Term, ProposerId>,
    committed: Vec<u8>,
    /// Logs that votes were given with.
    voted: BTreeMap<(ProposerId, Term, NodeId), Vec<u8>>,
    /// In which term the log was committed up to which length, as it grew.
    commits: Vec<(Term, usize)>,
    proposers_made: u8,
    /// How long the committed log was when somebody began to ask where it ends, and what the members have said since.
    reading: Option<(usize, BTreeMap<usize, MemberEnd>)>,
    faulty: bool,
    trace: u64,
    stats: Stats,
}

#[derive(Default, Clone, Copy, Debug)]
struct Stats {
    elections: usize,
    commits: usize,
    cuts: usize,
    crashes: usize,
    fenced: usize,
    settled: usize,
    unsettled: usize,
}

impl World {
    fn new(seed: u64, members: u64) -> World {
        World {
            dice: Dice(seed),
            nodes: (1..=members).map(|id| Node::new(NodeId(id))).collect(),
            writers: Vec::new(),
            packets: Vec::new(),
            leaders: BTreeMap::new(),
            committed: Vec::new(),
            voted: BTreeMap::new(),
            commits: Vec::new(),
            proposers_made: 0,
            reading: None,
            faulty: true,
            trace: 0,
            stats: Stats::default(),
        }
    }

    fn note(&mut self, what: impl std::fmt::Debug) {
        for byte in format!("{what:?}").bytes() {
            self.trace = (self.trace ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    fn new_writer(&mut self) {
        self.proposers_made += 1;
        let id = ProposerId([self.proposers_made; 16]);
        let proposer = Proposer::new(ProposerConfig {
            proposer: id,
            members: self.nodes.iter().map(|node| node.id).collect(),
            timeline: TimelineIdentity {
                tenant: TenantId([0; 16]),
                timeline: TimelineId([0; 16]),
                system_id: 1,
                pg_major: 15,
                pg_tli: 1,
                start_lsn: Lsn(START),
            },
            window_bytes_max: 64,
        });
        self.writers.push(Writer { id, proposer, log: None });
        let index = self.writers.len() - 1;
        (0..self.nodes.len()).for_each(|node| self.connect(index, node));
    }

    fn connect(&mut self, writer: usize, node: usize) {
        let id = self.nodes[node].id;
        self.writers[writer].proposer.on_disconnected(id);
        let actions = self.writers[writer].proposer.on_connected(id);
        self.carry_out(writer, actions);
    }

    fn carry_out(&mut self, writer: usize, actions: Vec<Action>) {
        let from = self.writers[writer].id;
        for action in actions {
            match action {
                Action::Send { to, message } => {
                    self.packets.push(Packet::ToAcceptor { from, to, message });
                }
                Action::ReadWal { to_member, from, to, source } => {
                    self.read_wal(writer, to_member, (from, to), source);
                }
                Action::Disconnect { member, .. } => {
                    let node = self.nodes.iter().position(|node| node.id == member).unwrap();
                    if !self.faulty || self.dice.once_in(2) {
                        self.connect(writer, node);
                    }
                }
            }
        }
        self.check_writer(writer);
    }

    fn read_wal(
        &mut self,
        writer: usize,
        member: NodeId,
        (from, to): (Lsn, Lsn),
        source: WalSource,
    ) {
        let range = (from.0 - START) as usize..(to.0 - START) as usize;
        let bytes = match source {
            WalSource::Compute => self.writers[writer].log.as_ref().map(|log| log[range].to_vec()),
            WalSource::Donor { node, term } => {
                let donor = self.nodes.iter().find(|donor| donor.id == node).unwrap();
                let is_same = donor.acceptor.as_ref().is_some_and(|a| a.term() == term);
                is_same.then(|| donor.log[range].to_vec())
            }
        };
        let part = self.dice.below(2) + 1;
        let writer_of = &mut self.writers[writer].proposer;
        match bytes {
            Some(bytes) => {
                let part = Bytes::from(bytes).slice(..((to.0 - from.0) as usize).div_ceil(part));
                let actions = writer_of.on_wal(member, from, part);
                self.carry_out(writer, actions);
            }
            None => writer_of.on_wal_failed(member),
        }
    }

    /// The invariants, after every change of a proposer.
    fn check_writer(&mut self, index: usize) {
        let Some(election) = self.writers[index].proposer.elected().cloned() else { return };
        let id = self.writers[index].id;
        let holder = *self.leaders.entry(election.term).or_insert(id);
        assert_eq!(holder, id, "two leaders in term {}", election.term);
        if self.writers[index].log.is_none() {
            // As it was voted with: by now the donor may follow a later term, and hold another one.
            let end = (election.start_lsn.0 - START) as usize;
            let log = self.voted[&(id, election.term, election.donor)][..end].to_vec();
            // Later terms may have committed before the last vote came: such a leader need not know of that, and gets nothing committed,
            // which is checked below. What earlier terms committed it must have.
            let earlier = self.commits.iter().filter(|(term, _)| *term < election.term);
            let due = earlier.map(|(_, len)| *len).max().unwrap_or(0);
            assert!(log.starts_with(&self.committed[..due]), "{election:?} lost committed log");
            self.writers[index].log = Some(log);
            self.stats.elections += 1;
            self.note(&election);
        }
        let writer = &self.writers[index];
        let commit = writer.proposer.commit_lsn();
        assert_eq!(commit.0 % RECORD, START % RECORD, "commit is a record end");
        let log = &writer.log.as_ref().unwrap()[..(commit.0 - START) as usize];
        let common = log.len().min(self.committed.len());
        assert_eq!(log[..common], self.committed[..common], "committed logs part");
        if log.len() > self.committed.len() {
            self.committed = log.to_vec();
            self.commits.push((election.term, log.len()));
            self.stats.commits += 1;
        }
    }

    fn check_nodes(&self) {
        for node in &self.nodes {
            let Some(acceptor) = &node.acceptor else { continue };
            let commit = (acceptor.commit_lsn().0 - START) as usize;
            assert!(node.log.len() >= commit);
            assert!(self.committed.starts_with(&node.log[..commit]), "{} diverged", node.id);
        }
    }

    /// Asks one more member where its log ends; once a majority has answered, the answer is judged.
    fn ask_for_end(&mut self, index: usize) {
        let Some(acceptor) = &self.nodes[index].acceptor else { return };
        let (flush_lsn, commit_lsn) = (acceptor.flush_lsn(), acceptor.commit_lsn());
        let begun = || (self.committed.len(), BTreeMap::new());
        let (before, mut answers) = self.reading.take().unwrap_or_else(begun);
        answers.insert(index, MemberEnd { flush_lsn, commit_lsn });
        if answers.len() <= self.nodes.len() / 2 {
            self.reading = Some((before, answers));
            return;
        }
        let answers: Vec<_> = answers.into_values().collect();
        match settled_end(&answers, self.nodes.len()) {
            None => self.stats.unsettled += 1,
            Some(end) => {
                let end = (end.0 - START) as usize;
                assert!(before <= end, "{answers:?} miss some of {before} committed bytes");
                assert!(end <= self.committed.len(), "{answers:?} are not committed");
                self.stats.settled += 1;
            }
        }
    }

    fn deliver(&mut self) {
        if self.packets.is_empty() {
            return;
        }
        let at = if self.faulty { self.dice.below(self.packets.len()) } else { 0 };
        // Mostly in order: chaos alone never gets far.
        let at = if self.dice.once_in(4) { at } else { 0 };
        let packet = self.packets.remove(at);
        if self.faulty && self.dice.once_in(12) {
            return;
        }
        if self.faulty && self.dice.once_in(12) {
            self.packets.push(packet.clone());
        }
        match packet {
            Packet::ToAcceptor { from, to, message } => {
                let index = self.nodes.iter().position(|node| node.id == to).unwrap();
                self.note(&message);
                let crashes = self.faulty && self.dice.once_in(60);
                let limit = if crashes { self.dice.below(3) } else { usize::MAX };
                // As the driver does: nothing is decided over unsynced bytes.
                let is_append = matches!(message, ProposerMessage::Append(_));
                let mut sent = if is_append { Vec::new() } else { self.nodes[index].flush() };
                let before = self.nodes[index].log.len();
                sent.extend(self.nodes[index].step(Input::Received { from, message }, limit));
                self.stats.cuts += usize::from(self.nodes[index].log.len() < before);
                self.post(index, sent);
                if crashes {
                    self.stats.crashes += 1;
                    self.nodes[index].crash(&mut self.dice);
                }
            }
            Packet::ToProposer { from, to, message } => {
                let Some(index) = self.writers.iter().position(|w| w.id == to) else { return };
                let actions = self.writers[index].proposer.on_message(from, message);
                self.carry_out(index, actions);
                if self.writers[index].proposer.fenced_by().is_some() {
                    self.writers.remove(index);
                    self.stats.fenced += 1;
                }
            }
        }
    }

    fn post(&mut self, node: usize, sent: Vec<(ProposerId, AcceptorMessage)>) {
        let from = self.nodes[node].id;
        for (to, message) in &sent {
            if let AcceptorMessage::VoteResponse(vote) = message {
                self.voted.insert((*to, vote.term, from), self.nodes[node].log.clone());
            }
        }
        let packet = |(to, message)| Packet::ToProposer { from, to, message };
        self.packets.extend(sent.into_iter().map(packet));
    }

    fn flush(&mut self, node: usize) {
        let sent = self.nodes[node].flush();
        self.post(node, sent);
    }

    fn append(&mut self, index: usize) {
        let count = self.dice.below(40) + 1;
        let writer = &mut self.writers[index];
        let (Some(log), Some(election)) = (&mut writer.log, writer.proposer.elected()) else {
            return;
        };
        let bytes: Vec<u8> = (0..count)
            .map(|at| (election.term.0 as u8).wrapping_mul(31) ^ (log.len() + at) as u8)
            .collect();
        let lsn = Lsn(START + log.len() as u64);
        if let Ok(actions) = writer.proposer.append(lsn, bytes.clone().into()) {
            log.extend_from_slice(&bytes);
            self.carry_out(index, actions);
        }
    }

    fn some_writer(&mut self) -> Option<usize> {
        (!self.writers.is_empty()).then(|| self.dice.below(self.writers.len()))
    }

    fn step(&mut self) {
        let node = self.dice.below(self.nodes.len());
        match self.dice.below(100) {
            0..=69 => self.deliver(),
            70..=79 => self.flush(node),
            80..=87 => {
                if let Some(writer) = self.some_writer() {
                    self.append(writer);
                }
            }
            88..=90 => {
                if let Some(writer) = self.some_writer() {
                    self.connect(writer, node);
                }
            }
            91..=92 if self.writers.len() < 3 => self.new_writer(),
            93 => {
                if let Some(writer) = self.some_writer() {
                    self.writers.remove(writer);
                }
            }
            94..=95 if self.nodes[node].acceptor.is_some() => {
                self.stats.crashes += 1;
                self.nodes[node].crash(&mut self.dice);
            }
            96..=98 if self.nodes[node].acceptor.is_none() => self.nodes[node].restart(),
            99 if self.nodes[node].acceptor.is_some() => {
                // A commit position is persisted now and then, for no promise's sake.
                self.nodes[node].flush();
                let promises = self.nodes[node].acceptor.as_ref().unwrap().promises().clone();
                self.nodes[node].promises = promises;
            }
            _ => {}
        }
        if self.dice.once_in(4) {
            let node = self.dice.below(self.nodes.len());
            self.ask_for_end(node);
        }
        self.check_nodes();
    }

    /// Everything works from here on: a new proposer must be elected, commit its term, and commit new log.
    fn heal(&mut self) {
        self.faulty = false;
        self.packets.clear();
        self.writers.clear();
        for node in &mut self.nodes {
            if node.acceptor.is_none() {
                node.restart();
            }
        }
        let committed = self.committed.clone();
        for _ in 0..10 {
            self.new_writer();
            for _ in 0..500 {
                self.deliver();
                (0..self.nodes.len()).for_each(|node| self.flush(node));
            }
            if self.writers.first().is_some_and(|writer| writer.proposer.term_is_committed()) {
                break;
            }
            self.writers.clear();
        }
        assert!(self.writers[0].proposer.term_is_committed(), "nobody gets elected");
        self.append(0);
        self.append(0);
        while !self.packets.is_empty() {
            self.deliver();
            (0..self.nodes.len()).for_each(|node| self.flush(node));
        }
        let writer = &self.writers[0];
        let log = writer.log.as_ref().unwrap();
        assert_eq!(writer.proposer.commit_lsn().0, record_end(log.len()));
        assert!(self.committed.starts_with(&committed));
        for node in &self.nodes {
            let commit = node.acceptor.as_ref().unwrap().commit_lsn();
            assert_eq!(commit, writer.proposer.commit_lsn(), "news of the commit reaches everyone");
        }
    }
}

fn run(seed: u64, members: u64) -> (u64, Stats) {
    let mut world = World::new(seed, members);
    world.new_writer();
    for _ in 0..600 {
        world.step();
    }
    world.heal();
    (world.trace, world.stats)
}

fn number(name: &str) -> Option<u64> {
    let set = std::env::var(name).ok()?;
    Some(set.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

fn seeds(usual: u64) -> Vec<u64> {
    match number("SIMULATOR_SEED") {
        Some(seed) => vec![seed],
        None => (0..usual * number("SIMULATOR_TIMES").unwrap_or(1)).collect(),
    }
}

/// Runs the seeds, and wants every kind of event to have happened in them.
fn run_all(members: u64, count: u64) {
    let mut total = Stats::default();
    for seed in seeds(count) {
        let outcome = std::panic::catch_unwind(|| run(seed, members));
        let (_, stats) = outcome.unwrap_or_else(|panic| {
            eprintln!("failed with SIMULATOR_SEED={seed}, {members} members");
            std::panic::resume_unwind(panic)
        });
        total.elections += stats.elections;
        total.commits += stats.commits;
        total.cuts += stats.cuts;
        total.crashes += stats.crashes;
        total.fenced += stats.fenced;
        total.settled += stats.settled;
        total.unsettled += stats.unsettled;
    }
    println!("{members} members: {total:?}");
    if seeds(count).len() as u64 >= count {
        let least = count as usize;
        assert!(total.elections > least && total.commits > least && total.crashes > least);
        assert!(total.cuts > 0 && total.fenced > 0, "{total:?}");
        assert!(total.settled > least && total.unsettled > least, "{total:?}");
    }
}

#[test]
fn a_quorum_of_one() {
    run_all(1, 1500);
}

#[test]
fn a_quorum_of_three() {
    run_all(3, 3000);
}

#[test]
fn a_quorum_of_five() {
    run_all(5, 500);
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    for seed in 0..20 {
        assert_eq!(run(seed, 3).0, run(seed, 3).0);
    }
}
