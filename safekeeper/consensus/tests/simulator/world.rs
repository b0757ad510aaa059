//! Nodes, computes and admins in virtual time: a queue of events, each of which makes more.

use std::collections::BTreeMap;

use bytes::Bytes;
use treering_consensus::*;
use treering_types::{Lsn, NodeId, Term};

use crate::{
    Bug, Plan,
    check::Checker,
    compute::{Admin, Compute, Postgres, nodes},
    dice::{Dice, mix},
    node::{Node, Sent},
    record::{START, record, whole_records},
};

/// Virtual time, in milliseconds.
pub type Time = u64;

/// How long an appearance of trouble lasts, and how often there is a new one.
const TROUBLE_EVERY: usize = 60;
const BEAT_EVERY: usize = 12;
const ADMIN_EVERY: u64 = 25;

#[derive(Clone, Debug)]
pub enum Event {
    ToNode {
        from: ProposerId,
        to: NodeId,
        message: ProposerMessage,
    },
    ToCompute {
        from: NodeId,
        to: ProposerId,
        message: AcceptorMessage,
    },
    Ask {
        from: u64,
        to: NodeId,
        request: AdminRequest,
    },
    Answer {
        from: NodeId,
        to: u64,
        response: AdminResponse,
    },
    /// A sync begins, of what was written so far.
    Sync {
        node: NodeId,
    },
    /// It ends, unless it had to before.
    Synced {
        node: NodeId,
    },
    Start {
        node: NodeId,
    },
    Reconnect {
        compute: ProposerId,
        node: NodeId,
    },
    /// A compute writes, or shows a sign of life.
    Beat {
        compute: ProposerId,
    },
    AdminBeat {
        admin: u64,
    },
    Trouble,
}

#[derive(Default, Clone, Copy, Debug)]
pub struct Stats {
    pub elections: usize,
    pub commits: usize,
    pub cuts: usize,
    pub crashes: usize,
    pub fenced: usize,
    pub went_on: usize,
    pub changes: usize,
    pub given_way: usize,
    pub reconfigured: usize,
    pub settled: usize,
    pub unsettled: usize,
    pub held_back: usize,
}

pub struct World {
    pub dice: Dice,
    pub plan: Plan,
    pub now: Time,
    pub nodes: Vec<Node>,
    pub computes: Vec<Compute>,
    pub admins: Vec<Admin>,
    /// Servers whose agent is gone.
    pub left: Vec<Postgres>,
    pub checker: Checker,
    pub queue: BTreeMap<(Time, u64), Event>,
    serial: u64,
    pub faulty: bool,
    /// Decides who can reach whom, while there is one.
    pub partition: Option<u64>,
    /// Who is slow to sync.
    pub slow: Option<NodeId>,
    /// Logs and flush positions that votes were given with.
    voted: BTreeMap<(ProposerId, Term, NodeId), Vec<u8>>,
    /// How long the committed log was when somebody began to ask where it ends, and what the members have said since.
    reading: Option<(usize, BTreeMap<NodeId, MemberEnd>)>,
    pub trace: u64,
    pub stats: Stats,
}

impl World {
    pub fn new(seed: u64, plan: Plan) -> World {
        World {
            dice: Dice(seed),
            plan,
            now: 0,
            nodes: (1..=plan.nodes).map(|id| Node::new(NodeId(id), plan.bug)).collect(),
            computes: Vec::new(),
            admins: Vec::new(),
            left: Vec::new(),
            checker: Checker::default(),
            queue: BTreeMap::new(),
            serial: 0,
            faulty: true,
            partition: None,
            slow: None,
            voted: BTreeMap::new(),
            reading: None,
            trace: 0,
            stats: Stats::default(),
        }
    }

    fn note(&mut self, what: &impl std::fmt::Debug) {
        for byte in format!("{} {what:?}", self.now).bytes() {
            self.trace = (self.trace ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    pub fn after(&mut self, delay: u64, event: Event) {
        self.serial += 1;
        self.queue.insert((self.now + delay, self.serial), event);
    }

    /// Handles the next event; false when there is none.
    pub fn step(&mut self) -> bool {
        let Some(((time, _), event)) = self.queue.pop_first() else { return false };
        self.now = time;
        self.note(&event);
        match event {
            Event::ToNode { from, to, message } => self.deliver_to_node(from, to, message),
            Event::ToCompute { from, to, message } => self.deliver_to_compute(from, to, message),
            Event::Ask { from, to, request } => self.deliver_request(from, to, request),
            Event::Answer { from, to, response } => self.deliver_answer(from, to, response),
            Event::Sync { node } => self.sync(node),
            Event::Synced { node } => self.synced(node),
            Event::Start { node } => {
                if self.node(node).acceptor.is_none() {
                    self.node(node).start();
                }
            }
            Event::Reconnect { compute, node } => self.connect(compute, node),
            Event::Beat { compute } => self.beat(compute),
            Event::AdminBeat { admin } => self.admin_beat(admin),
            Event::Trouble => {
                self.trouble();
                let pause = 1 + self.dice.below(TROUBLE_EVERY) as u64;
                self.after(pause, Event::Trouble);
            }
        }
        if !self.plan.changes && self.dice.once_in(4) {
            self.ask_for_end();
        }
        self.check_nodes();
        true
    }

    /// Asks one more member where its log ends; once a majority has answered, the answer is judged.
    fn ask_for_end(&mut self) {
        let id = self.some_node();
        let Some(acceptor) = &self.node(id).acceptor else { return };
        let end = MemberEnd {
            generation: Generation(0),
            flush_lsn: acceptor.flush_lsn(),
            commit_lsn: acceptor.commit_lsn(),
        };
        let begun = || (self.checker.committed().len(), BTreeMap::new());
        let (before, mut answers) = self.reading.take().unwrap_or_else(begun);
        answers.insert(id, end);
        if answers.len() <= self.nodes.len() / 2 {
            self.reading = Some((before, answers));
            return;
        }
        let answers: Vec<_> = answers.into_values().collect();
        let everyone = Configuration::unnumbered(self.nodes.iter().map(|node| node.id).collect());
        match settled_end(&answers, &everyone.expect("nodes")) {
            None => self.stats.unsettled += 1,
            Some(end) => {
                self.checker.on_settled(before, (end.0 - START) as usize);
                self.stats.settled += 1;
            }
        }
    }

    pub fn node(&mut self, id: NodeId) -> &mut Node {
        &mut self.nodes[id.0 as usize - 1]
    }

    pub fn some_node(&mut self) -> NodeId {
        NodeId(1 + self.dice.below(self.nodes.len()) as u64)
    }

    fn compute(&mut self, id: ProposerId) -> Option<usize> {
        self.computes.iter().position(|compute| compute.id == id)
    }

    // The network.

    fn can_reach(&self, one: u64, node: NodeId) -> bool {
        let side = |partition: u64, who: u64| mix(partition ^ mix(who)) & 1;
        self.partition.is_none_or(|p| side(p, one) == side(p, node.0))
    }

    /// Sends between a node and `peer`: late, twice, never, out of order.
    fn transmit(&mut self, peer: u64, node: NodeId, event: Event) {
        if !self.faulty {
            return self.after(1, event);
        }
        if !self.can_reach(peer, node) || self.dice.once_in(25) {
            return;
        }
        if self.dice.once_in(25) {
            let late = self.dice.below(400) as u64;
            self.after(late, event.clone());
        }
        let delay = match self.dice.below(20) {
            0 => self.dice.below(300) as u64,
            1..=4 => 1 + self.dice.below(10) as u64,
            _ => 2,
        };
        self.after(delay, event);
    }

    // Computes.

    pub fn new_compute(&mut self, configuration: Configuration, left: Option<Postgres>) {
        self.serial += 1;
        let mut id = [0; 16];
        id[..8].copy_from_slice(&self.serial.to_le_bytes());
        let mut compute = Compute::new(ProposerId(id), configuration, left);
        let id = compute.id;
        let members = compute.proposer.configuration().all_members();
        // A planted error is rare enough without it.
        if self.plan.bug.is_none() && self.dice.once_in(2) {
            let mut patient = members.clone();
            patient.retain(|_| self.dice.once_in(3));
            compute.proposer.set_patient(patient);
        }
        self.computes.push(compute);
        members.into_iter().for_each(|node| self.connect(id, node));
        self.after(1, Event::Beat { compute: id });
    }

    pub fn connect(&mut self, id: ProposerId, node: NodeId) {
        let Some(index) = self.compute(id) else { return };
        let proposer = &mut self.computes[index].proposer;
        proposer.on_disconnected(node);
        let actions = proposer.on_connected(node);
        self.carry_out(id, actions);
    }

    fn carry_out(&mut self, id: ProposerId, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Send { to, message } => {
                    self.transmit(number(id), to, Event::ToNode { from: id, to, message });
                }
                Action::ReadWal { to_member, from, to, source } => {
                    self.read_wal(id, to_member, (from, to), source);
                }
                Action::Reconfigured(configuration) => {
                    self.stats.reconfigured += 1;
                    for node in configuration.all_members() {
                        self.after(1, Event::Reconnect { compute: id, node });
                    }
                }
                Action::Disconnect { member, reason, text } => {
                    let is_bad = matches!(reason, RefusalReason::Conflict | RefusalReason::Corrupt);
                    assert!(!is_bad, "{member} refuses: {text}");
                    let pause = 1 + self.dice.below(20) as u64;
                    self.after(pause, Event::Reconnect { compute: id, node: member });
                }
            }
        }
        self.look_at(id);
    }

    fn read_of(&mut self, id: ProposerId, from: Lsn, to: Lsn, of: WalHolder) -> Option<Vec<u8>> {
        let is_there = !self.faulty || self.can_reach(number(id), of.node);
        let holder = self.node(of.node);
        let is_same = holder.acceptor.as_ref().is_some_and(|a| a.term() == of.term);
        let place = (from.0 - START) as usize..(to.0 - START) as usize;
        let log = holder.disk.log().get(place).map(<[u8]>::to_vec);
        log.filter(|_| is_there && is_same)
    }

    fn read_wal(&mut self, id: ProposerId, member: NodeId, range: (Lsn, Lsn), source: WalSource) {
        let Some(index) = self.compute(id) else { return };
        let (from, to) = range;
        let place = (from.0 - START) as usize..(to.0 - START) as usize;
        let bytes = match source {
            WalSource::Compute { or: Some(holder) } if self.dice.once_in(2) => {
                // Postgres has removed it there.
                self.read_of(id, from, to.min(holder.end), holder)
            }
            WalSource::Compute { .. } => self.computes[index].log().get(place).map(<[u8]>::to_vec),
            WalSource::Member(holder) => self.read_of(id, from, to, holder),
        };
        let part = self.dice.below(2) + 1;
        let proposer = &mut self.computes[index].proposer;
        match bytes {
            Some(bytes) => {
                let first = bytes.len().div_ceil(part);
                let bytes = Bytes::from(bytes).slice(..first);
                let actions = proposer.on_wal(member, from, bytes);
                self.carry_out(id, actions);
            }
            None => proposer.on_wal_failed(member),
        }
    }

    /// What clients of this compute may rely on by now.
    fn look_at(&mut self, id: ProposerId) {
        let Some(index) = self.compute(id) else { return };
        let bug = self.plan.bug;
        let compute = &mut self.computes[index];
        let Some(election) = compute.proposer.elected().cloned() else { return };
        if !compute.has_office {
            // As it was voted with: by now the donor may follow a later term, and hold another log.
            let end = (election.start_lsn.0 - START) as usize;
            let adopted = &self.voted[&(id, election.term, election.donor)][..end];
            self.checker.on_elected(id, election.term.0, adopted);
            let had = compute.postgres.is_some();
            compute.take_office(&election, adopted, bug);
            self.stats.elections += 1;
            self.stats.went_on += usize::from(had && compute.log().len() > end);
            if bug == Some(Bug::CommitOfOldTerm) {
                self.commit_by_votes(index, &election);
            }
        }
        let compute = &self.computes[index];
        let log = &compute.log()[..compute.commit_len()];
        if compute.proposer.term_is_committed() {
            let is_news = self.checker.on_commit(id, election.term.0, log);
            self.stats.commits += usize::from(is_news);
        }
    }

    /// The planted error: what a majority held when it voted is taken for committed.
    fn commit_by_votes(&mut self, index: usize, election: &Election) {
        let id = self.computes[index].id;
        let votes = self.voted.range((id, election.term, NodeId(0))..);
        let votes = votes.take_while(|((of, term, _), _)| (*of, *term) == (id, election.term));
        let log = self.computes[index].log();
        let agrees = |vote: &[u8]| vote.iter().zip(log).take_while(|(a, b)| a == b).count();
        let all = votes.map(|(_, vote)| agrees(vote)).min().unwrap_or(0);
        self.checker.on_commit(id, election.term.0, &log[..whole_records(&log[..all])]);
    }

    fn deliver_to_compute(&mut self, from: NodeId, to: ProposerId, message: AcceptorMessage) {
        let Some(index) = self.compute(to) else { return };
        let actions = self.computes[index].proposer.on_message(from, message);
        self.carry_out(to, actions);
        let Some(index) = self.compute(to) else { return };
        if self.computes[index].proposer.fenced_by().is_some() {
            self.stats.fenced += 1;
            self.lose_agent(index);
        }
    }

    /// The agent is gone; its server may be left, to be found by the next one.
    pub fn lose_agent(&mut self, index: usize) {
        let compute = self.computes.remove(index);
        let survives = self.dice.once_in(2);
        self.left.extend(compute.postgres.filter(|_| survives));
        self.left.truncate(4);
    }

    fn beat(&mut self, id: ProposerId) {
        let Some(index) = self.compute(id) else { return };
        if self.faulty && self.dice.once_in(10) {
            let node = self.some_node();
            self.connect(id, node);
        }
        let term = self.computes[index].proposer.elected().map(|election| election.term.0);
        if let Some(term) = term
            && self.faulty
            && self.computes[index].proposer.term_is_committed()
        {
            self.write(index, term);
        }
        let cut = 1 + self.dice.below(40);
        let compute = &mut self.computes[index];
        let heartbeat = compute.proposer.heartbeat();
        let appends = match compute.unsent(cut) {
            Some((lsn, bytes)) => compute.proposer.append(lsn, bytes.into()).unwrap_or_default(),
            None => Vec::new(),
        };
        self.carry_out(id, heartbeat);
        self.carry_out(id, appends);
        self.let_go(id);
        let pause = 1 + self.dice.below(BEAT_EVERY) as u64;
        self.after(pause, Event::Beat { compute: id });
    }

    /// What patient members were not sent, sooner or later.
    fn let_go(&mut self, id: ProposerId) {
        let Some(index) = self.compute(id) else { return };
        let proposer = &mut self.computes[index].proposer;
        if proposer.holds_back() && self.dice.once_in(2) {
            self.stats.held_back += 1;
            let actions = proposer.let_go();
            self.carry_out(id, actions);
        }
    }

    /// Postgres writes a few records, whether or not anyone carries them out.
    pub fn write(&mut self, index: usize, term: u64) {
        for _ in 0..self.dice.below(3) {
            self.serial += 1;
            let record = record(term, self.serial as u16, self.dice.below(3));
            if let Some(postgres) = &mut self.computes[index].postgres {
                postgres.log.extend(record);
            }
        }
    }

    // Nodes.

    fn deliver_to_node(&mut self, from: ProposerId, to: NodeId, message: ProposerMessage) {
        let limit = self.crash_limit();
        if !Node::is_looked_at_unsynced(&message) {
            self.flush(to);
        }
        let before = self.node(to).disk.log().len();
        let is_append = matches!(message, ProposerMessage::Append(_));
        let sent = self.node(to).receive(from, message, limit.unwrap_or(usize::MAX));
        self.stats.cuts += usize::from(self.node(to).disk.log().len() < before);
        self.post(to, sent);
        if is_append {
            let pause = self.dice.below(3) as u64;
            self.after(pause, Event::Sync { node: to });
        }
        self.crash_if(limit, to);
    }

    /// The log goes on beside it.
    fn sync(&mut self, node: NodeId) {
        if self.node(node).begin_sync() {
            let slow = if self.slow == Some(node) { 200 } else { 3 };
            let pause = self.dice.below(slow) as u64;
            self.after(pause, Event::Synced { node });
        }
    }

    /// What was written meanwhile is the next one's.
    fn synced(&mut self, node: NodeId) {
        let mut sent = Sent::default();
        self.node(node).end_sync(&mut sent);
        self.post(node, sent);
        self.sync(node);
    }

    fn flush(&mut self, node: NodeId) {
        let sent = self.node(node).flush();
        self.post(node, sent);
    }

    /// How many effects are carried out before a crash in their midst, when there is to be one.
    fn crash_limit(&mut self) -> Option<usize> {
        (self.faulty && self.dice.once_in(80)).then(|| self.dice.below(3))
    }

    fn crash_if(&mut self, limit: Option<usize>, node: NodeId) {
        if limit.is_some() {
            self.crash(node);
        }
    }

    pub fn crash(&mut self, id: NodeId) {
        self.stats.crashes += 1;
        let is_power_lost = !self.dice.once_in(3);
        let World { nodes, dice, .. } = self;
        let node = &mut nodes[id.0 as usize - 1];
        match is_power_lost {
            true => node.lose_power(dice),
            false => node.stop(),
        }
        let pause = 1 + self.dice.below(150) as u64;
        self.after(pause, Event::Start { node: id });
    }

    fn post(&mut self, from: NodeId, sent: Sent) {
        for (to, message) in sent.messages {
            let disk = &self.nodes[from.0 as usize - 1].disk;
            self.checker.on_sent(from, to, &message, disk.durable());
            if let AcceptorMessage::VoteResponse(vote) = &message {
                let log = disk.log()[..(vote.flush_lsn.0 - START) as usize].to_vec();
                self.voted.insert((to, vote.term, from), log);
            }
            self.transmit(number(to), from, Event::ToCompute { from, to, message });
        }
    }

    fn check_nodes(&self) {
        for node in &self.nodes {
            let Some(acceptor) = &node.acceptor else { continue };
            let commit = (acceptor.commit_lsn().0 - START) as usize;
            self.checker.on_member(node.id, node.disk.log(), commit);
        }
    }

    // Admins.

    pub fn new_admin(&mut self, known: Configuration, wanted: Vec<NodeId>) {
        self.serial += 1;
        let id = self.serial;
        let change = Change::new(known, wanted).expect("members");
        self.admins.push(Admin { id, change });
        self.after(1, Event::AdminBeat { admin: id });
    }

    fn admin_beat(&mut self, id: u64) {
        let Some(index) = self.admins.iter().position(|admin| admin.id == id) else { return };
        let actions = self.admins[index].change.tick();
        self.ask(id, actions);
        if let ChangePhase::Filling(joint) = self.admins[index].change.phase().clone() {
            if self.plan.bug == Some(Bug::NotFilled) {
                let new = joint.new_members().unwrap_or_default().to_vec();
                let last = Generation(joint.generation().0 + 1);
                let last = Configuration::new(last, new.clone(), None).expect("sets");
                let accept =
                    |to| ChangeAction::Send { to, request: AdminRequest::Accept(last.clone()) };
                self.ask(id, new.into_iter().map(accept).collect());
            } else if self.computes.is_empty() || self.dice.once_in(20) {
                self.new_compute(joint, None);
            }
        }
        self.after(ADMIN_EVERY, Event::AdminBeat { admin: id });
    }

    fn ask(&mut self, id: u64, actions: Vec<ChangeAction>) {
        for ChangeAction::Send { to, request } in actions {
            self.transmit(id, to, Event::Ask { from: id, to, request });
        }
    }

    fn deliver_request(&mut self, from: u64, to: NodeId, request: AdminRequest) {
        if self.node(to).acceptor.is_none() {
            return;
        }
        self.flush(to);
        let limit = self.crash_limit();
        let mut sent = self.node(to).administer(request, limit.unwrap_or(usize::MAX));
        let answer = sent.answer.take();
        self.post(to, sent);
        if let Some(response) = answer {
            self.transmit(from, to, Event::Answer { from: to, to: from, response });
        }
        self.crash_if(limit, to);
    }

    fn deliver_answer(&mut self, from: NodeId, to: u64, response: AdminResponse) {
        let Some(index) = self.admins.iter().position(|admin| admin.id == to) else { return };
        let actions = self.admins[index].change.on_response(from, response);
        self.ask(to, actions);
        match self.admins[index].change.phase() {
            ChangePhase::Done(_) => self.stats.changes += 1,
            ChangePhase::Superseded(_) => self.stats.given_way += 1,
            ChangePhase::Promising(_)
            | ChangePhase::Joining(_)
            | ChangePhase::Filling(_)
            | ChangePhase::Finishing(_) => return,
        }
        if self.faulty {
            self.admins.remove(index);
        }
    }

    /// What some node follows, or what the timeline began with.
    pub fn some_configuration(&mut self) -> Configuration {
        let node = self.some_node();
        let control = &self.node(node).disk.control;
        match control.configuration.members().is_empty() {
            true => Configuration::first(nodes(1..=self.plan.members)).expect("members"),
            false => control.configuration.clone(),
        }
    }
}

/// Names a compute where nodes are numbers too.
fn number(id: ProposerId) -> u64 {
    id.0.iter().fold(7, |sum: u64, byte| sum.wrapping_mul(31) ^ u64::from(*byte))
}
