//! The writer's side: election, distribution of the log, computation of the commit position.
//!
//! The life of a proposer: connect to the members ([`Proposer::on_connected`]), be elected by a majority,
//! adopt the best log among the voters ([`Proposer::elected`]), bring a majority to its end F
//! ([`Proposer::term_is_committed`]), append. A higher term in any answer ends it: it is *fenced* for good,
//! and its owner makes a new one with a new id if it wants to try again.
//!
//! A newer configuration in any answer is followed at once: everyone is greeted again under it. Who is elected stays
//! so, and needs the new quorum from then on; who is not, starts its election anew: votes and acknowledgements count only
//! under the configuration that they were given under.
//!
//! The log's bytes are kept only in a bounded window of what was appended last. A member that needs older ones
//! makes the proposer ask its owner ([`Action::ReadWal`]), who finds them at the donor, at the compute, or at a member
//! that has them. No member is sent more than it has room to answer for: one that hangs costs a bounded amount of memory.
//!
//! Every call returns the actions to carry out, in order; none of them has to succeed.

mod members;
mod patience;
mod window;

use bytes::Bytes;
use treering_types::{ErrorKind, Lsn, NodeId, TenantId, Term, TimelineId};

use self::{
    members::{Link, Members, Vote},
    patience::{PATIENT_BYTES_MAX, Patience},
    window::Window,
};
use crate::{
    AcceptorMessage, Append, AppendResponse, Commit, Configuration, Elected, Generation, Greeting,
    GreetingResponse, PgAncestor, ProposerId, ProposerMessage, Refusal, RefusalReason, TermHistory,
    TermStart, VoteRequest, VoteResponse,
};

/// Largest piece of log in one append and one [`Action::ReadWal`].
const APPEND_BYTES_MAX: usize = 1024 * 1024;
/// What a member was sent and has not acknowledged may be so much. Beyond it, as within a record that is longer, it is
/// sent one more piece for each answer.
const IN_FLIGHT_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// Less than this waits while a member has not answered for what it was sent before. It would wait for that sync there
/// as well; here it becomes one message, which carries the commit position too.
const GATHERED_BYTES_MAX: u64 = 32 * 1024;

/// The timeline that is written; sent to every member, which creates it if it is missing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TimelineIdentity {
    pub tenant: TenantId,
    pub timeline: TimelineId,
    pub system_id: u64,
    pub pg_major: u32,
    pub pg_tli: u32,
    /// Where its log begins: the fork LSN of a branch, a record end.
    pub start_lsn: Lsn,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ProposerConfig {
    /// Random and never used before: votes are given to it.
    pub proposer: ProposerId,
    /// Who decides, as far as the owner knows: members that know better will say so.
    pub configuration: Configuration,
    pub timeline: TimelineIdentity,
    /// Bytes of log kept for members that are behind.
    pub window_bytes_max: usize,
}

/// What the owner must do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Action {
    /// Send on the member's connection; drop it when there is none.
    Send { to: NodeId, message: ProposerMessage },
    /// Find the bytes `from..to` of the log and hand them (or a first part) to [`Proposer::on_wal`], or say that they
    /// cannot be had ([`Proposer::on_wal_failed`]).
    ReadWal { to_member: NodeId, from: Lsn, to: Lsn, source: WalSource },
    /// The member refused: close its connection, connect again later if `reason` leaves hope.
    Disconnect { member: NodeId, reason: RefusalReason, text: String },
    /// A newer configuration is followed: keep connections to its members, and to nobody else.
    Reconfigured(Configuration),
}

/// Where old log can be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WalSource {
    /// From the member whose log was adopted, or another that has followed since: the bytes lie before F.
    Member(WalHolder),
    /// From the compute's own `pg_wal`: the bytes were passed to [`Proposer::append`] once. Postgres removes there what
    /// is committed; then from `or`.
    Compute { or: Option<WalHolder> },
}

/// A member whose log is the term's up to `end`. It must still be in `term` *after* the bytes were read
/// (`wal?from=&to=&term=` sees to it): a later proposer may have cut its log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WalHolder {
    pub node: NodeId,
    pub term: Term,
    pub end: Lsn,
}

/// The outcome of a won election.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Election {
    pub term: Term,
    /// F: the end of the adopted log, where the new term begins. A record end.
    pub start_lsn: Lsn,
    pub donor: NodeId,
    /// Term of the adopted log's last entry: a live Postgres may go on only if its own data directory wrote in it.
    pub donor_last_log_term: Term,
    /// Ends with (`term`, `start_lsn`).
    pub term_history: TermHistory,
}

/// Why WAL was not taken.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ProposerError {
    #[error("fenced: term {0} has begun")]
    Fenced(Term),
    #[error("the term is not committed yet")]
    NotCommitted,
    #[error("append at {found}, the log ends at {expected}")]
    NotContiguous { expected: Lsn, found: Lsn },
}

impl ProposerError {
    pub fn kind(&self) -> ErrorKind {
        match self {
            ProposerError::Fenced(_) => ErrorKind::Fenced,
            ProposerError::NotCommitted => ErrorKind::NotYet,
            ProposerError::NotContiguous { .. } => ErrorKind::Conflict,
        }
    }
}

#[derive(Clone, Debug)]
enum Phase {
    /// Fewer than a majority have answered the greeting.
    Gathering,
    /// Votes were asked for.
    Candidate(Term),
    Elected(Election),
    /// Another proposer holds this or a higher term.
    Fenced(Term),
}

/// The writer of one timeline, from its election until it is fenced or dropped.
#[derive(Clone, Debug)]
pub struct Proposer {
    config: ProposerConfig,
    pg_ancestors: Vec<PgAncestor>,
    phase: Phase,
    members: Members,
    /// The last term that votes were asked for in.
    last_campaign: Term,
    /// F was committed: new log may follow.
    is_term_committed: bool,
    /// The end of the log, and its last bytes.
    window: Window,
    commit_lsn: Lsn,
    patience: Patience,
}

impl Proposer {
    pub fn new(config: ProposerConfig) -> Proposer {
        Proposer {
            members: Members::new(config.configuration.clone()),
            window: Window::at(config.timeline.start_lsn, config.window_bytes_max),
            commit_lsn: config.timeline.start_lsn,
            patience: Patience::default(),
            config,
            pg_ancestors: Vec::new(),
            phase: Phase::Gathering,
            last_campaign: Term(0),
            is_term_committed: false,
        }
    }

    /// Names the Postgres timelines that a branch descends from, oldest first, for the history file that stock
    /// receivers ask a member for. Counts only for members that do not know the timeline yet.
    pub fn with_pg_ancestors(self, pg_ancestors: Vec<PgAncestor>) -> Proposer {
        Proposer { pg_ancestors, ..self }
    }

    /// The outcome of the election, once a majority has voted and until a fencing.
    pub fn elected(&self) -> Option<&Election> {
        match &self.phase {
            Phase::Elected(election) => Some(election),
            Phase::Gathering | Phase::Candidate(_) | Phase::Fenced(_) => None,
        }
    }

    /// True once a majority holds the log up to F under the new term: from here on no older proposer can
    /// commit anything, and [`Proposer::append`] is open.
    pub fn term_is_committed(&self) -> bool {
        self.elected().is_some() && self.is_term_committed
    }

    /// Who decides, as far as known.
    pub fn configuration(&self) -> &Configuration {
        self.members.configuration()
    }

    fn generation(&self) -> Generation {
        self.configuration().generation()
    }

    /// The term that deposed this proposer.
    pub fn fenced_by(&self) -> Option<Term> {
        match self.phase {
            Phase::Fenced(term) => Some(term),
            Phase::Gathering | Phase::Candidate(_) | Phase::Elected(_) => None,
        }
    }

    /// Everything up to here is on a majority, for good. Never goes back.
    pub fn commit_lsn(&self) -> Lsn {
        self.commit_lsn
    }

    /// End of the log as appended so far (F before the first append).
    pub fn end_lsn(&self) -> Lsn {
        self.window.end()
    }

    /// A connection to the member was made; an older one counts as closed.
    pub fn on_connected(&mut self, member: NodeId) -> Vec<Action> {
        if self.fenced_by().is_some() || !self.members.set_link(member, Link::Greeting) {
            return Vec::new();
        }
        vec![send(member, self.greeting())]
    }

    fn greeting(&self) -> Greeting {
        let timeline = &self.config.timeline;
        Greeting {
            proposer: self.config.proposer,
            tenant: timeline.tenant,
            timeline: timeline.timeline,
            system_id: timeline.system_id,
            pg_major: timeline.pg_major,
            pg_tli: timeline.pg_tli,
            start_lsn: timeline.start_lsn,
            pg_ancestors: self.pg_ancestors.clone(),
            configuration: self.configuration().clone(),
        }
    }

    /// Follows `configuration` if it is newer than the one known. The owner may call this; the members' answers do.
    pub fn on_configuration(&mut self, configuration: Configuration) -> Vec<Action> {
        if self.fenced_by().is_some() || configuration.generation() <= self.generation() {
            return Vec::new();
        }
        self.members.follow(configuration.clone());
        if matches!(self.phase, Phase::Candidate(_)) {
            self.phase = Phase::Gathering;
        }
        let mut actions = vec![Action::Reconfigured(configuration)];
        for member in self.members.ids() {
            if self.members.link(member).is_some_and(|link| link != Link::Down) {
                self.members.set_link(member, Link::Greeting);
                actions.push(send(member, self.greeting()));
            }
        }
        actions
    }

    /// The member's connection is gone.
    pub fn on_disconnected(&mut self, member: NodeId) {
        self.members.set_link(member, Link::Down);
    }

    /// An answer came. Those of nodes that are no members are ignored.
    pub fn on_message(&mut self, from: NodeId, message: AcceptorMessage) -> Vec<Action> {
        if self.fenced_by().is_some() {
            return Vec::new();
        }
        // Whatever else a late message is good for, a term that has begun has begun.
        if let (Some(election), Some(term)) = (self.elected(), term_in(&message))
            && term > election.term
        {
            self.phase = Phase::Fenced(term);
            return Vec::new();
        }
        if self.members.link(from).is_none_or(|link| link == Link::Down) {
            return Vec::new();
        }
        match message {
            AcceptorMessage::GreetingResponse(response) => self.on_greeting(from, response),
            AcceptorMessage::VoteResponse(response) => self.on_vote(from, response),
            AcceptorMessage::AppendResponse(response) => self.on_flush(from, &response),
            AcceptorMessage::NewerConfiguration(newer) => self.on_configuration(newer),
            AcceptorMessage::Refusal(Refusal { reason, text }) => {
                self.on_disconnected(from);
                vec![Action::Disconnect { member: from, reason, text }]
            }
        }
    }

    /// The next bytes of the log. Whole records or not: members report record ends only.
    pub fn append(&mut self, lsn: Lsn, bytes: Bytes) -> Result<Vec<Action>, ProposerError> {
        if let Some(term) = self.fenced_by() {
            return Err(ProposerError::Fenced(term));
        }
        if !self.term_is_committed() {
            return Err(ProposerError::NotCommitted);
        }
        let expected = self.window.end();
        if lsn != expected {
            return Err(ProposerError::NotContiguous { expected, found: lsn });
        }
        self.window.push(bytes);
        Ok(self.pump_all())
    }

    /// Bytes for [`Action::ReadWal`]; late or unasked ones are ignored.
    pub fn on_wal(&mut self, to_member: NodeId, lsn: Lsn, bytes: Bytes) -> Vec<Action> {
        let Phase::Elected(Election { term, .. }) = self.phase else { return Vec::new() };
        if bytes.is_empty() || self.members.link(to_member) != Some(Link::Reading { next: lsn }) {
            return Vec::new();
        }
        let available = self.window.end().bytes_since(lsn).unwrap_or(0) as usize;
        let bytes = bytes.slice(..bytes.len().min(APPEND_BYTES_MAX).min(available));
        self.members.note_sent(to_member, lsn + bytes.len() as u64);
        let generation = self.generation();
        let append = Append { generation, term, lsn, commit_lsn: self.commit_lsn, bytes };
        let mut actions = vec![send(to_member, append)];
        actions.extend(self.pump(to_member));
        actions
    }

    /// The bytes asked for could not be read: the member is asked for again with the next append or heartbeat.
    pub fn on_wal_failed(&mut self, to_member: NodeId) {
        if let Some(Link::Reading { next }) = self.members.link(to_member) {
            self.members.set_link(to_member, Link::Streaming { next });
        }
    }

    /// A sign of life to every member that is being streamed to; each answers.
    pub fn heartbeat(&mut self) -> Vec<Action> {
        let Phase::Elected(Election { term, .. }) = self.phase else { return Vec::new() };
        let mut actions = self.pump_all();
        for member in self.members.ids() {
            if let Some(Link::Streaming { next: lsn }) = self.members.link(member) {
                let (generation, commit_lsn) = (self.generation(), self.commit_lsn);
                let bytes = Bytes::new();
                actions.push(send(member, Append { generation, term, lsn, commit_lsn, bytes }));
            }
        }
        actions
    }

    /// `flush_lsn` of each member in this term; `None` for one that has not followed yet.
    pub fn member_flush_lsns(&self) -> Vec<(NodeId, Option<Lsn>)> {
        self.members.flush_lsns()
    }

    fn on_greeting(&mut self, from: NodeId, response: GreetingResponse) -> Vec<Action> {
        if response.node != from {
            // One member counted as two would make a minority look like a majority.
            let text = format!("safekeeper {} answers where {from} was expected", response.node);
            return self.break_off(from, RefusalReason::Conflict, text);
        }
        if response.configuration.generation() > self.generation() {
            self.members.see_term(from, response.term);
            return self.on_configuration(response.configuration);
        }
        let is_numbered = self.generation() > Generation(0);
        if is_numbered
            && response.configuration.generation() == self.generation()
            && response.configuration != *self.configuration()
        {
            // A generation names one configuration: we were started with a list of members that is not the log's, or no
            // longer. Others may know a newer one.
            let text = format!(
                "safekeeper {from} knows the log's members as {:?}, not as {:?}",
                response.configuration.all_members(),
                self.configuration().all_members()
            );
            return self.break_off(from, RefusalReason::Invalid, text);
        }
        let is_late = response.configuration.generation() < self.generation();
        if is_late || self.members.link(from) != Some(Link::Greeting) {
            return Vec::new();
        }
        self.members.see_term(from, response.term);
        match &self.phase {
            Phase::Gathering => {
                self.members.set_link(from, Link::Ready);
                if self.members.are_gathered() { self.campaign() } else { Vec::new() }
            }
            Phase::Candidate(term) if response.term > *term => {
                self.members.set_link(from, Link::Ready);
                self.campaign()
            }
            Phase::Candidate(term) => {
                let request = VoteRequest { generation: self.generation(), term: *term };
                self.members.set_link(from, Link::Ready);
                vec![send(from, request)]
            }
            Phase::Elected(_) => self.introduce(from),
            Phase::Fenced(_) => Vec::new(),
        }
    }

    /// Asks everyone who is there for a vote in a term above all that were seen.
    fn campaign(&mut self) -> Vec<Action> {
        let highest = self.members.highest_term().max(self.last_campaign);
        // No election ever gets there: whoever answered so is broken.
        let Some(next) = highest.0.checked_add(1) else {
            self.phase = Phase::Fenced(highest);
            return Vec::new();
        };
        let (generation, term) = (self.generation(), Term(next));
        self.phase = Phase::Candidate(term);
        self.last_campaign = term;
        self.members.forget_votes();
        let ready = self.members.with_link(Link::Ready);
        ready.into_iter().map(|member| send(member, VoteRequest { generation, term })).collect()
    }

    /// A member that is not what it should be: nothing of it counts.
    fn break_off(&mut self, member: NodeId, reason: RefusalReason, text: String) -> Vec<Action> {
        self.on_disconnected(member);
        vec![Action::Disconnect { member, reason, text }]
    }

    fn on_vote(&mut self, from: NodeId, response: VoteResponse) -> Vec<Action> {
        let own = match &self.phase {
            Phase::Candidate(term) => *term,
            Phase::Gathering | Phase::Elected(_) | Phase::Fenced(_) => return Vec::new(),
        };
        if response.term > own {
            self.phase = Phase::Fenced(response.term);
            return Vec::new();
        }
        if response.term < own {
            return Vec::new();
        }
        let vote = if response.granted {
            Vote::Granted {
                last_log_term: response.history.last_term_at(response.flush_lsn),
                flush_lsn: response.flush_lsn,
                commit_lsn: response.commit_lsn,
                history: response.history,
            }
        } else {
            Vote::Refused
        };
        self.members.set_vote(from, vote);
        if self.members.is_election_lost() {
            self.phase = Phase::Fenced(own);
        } else if self.members.is_election_won() {
            return self.take_office(own);
        }
        Vec::new()
    }

    /// Adopts the best log among the voters and introduces itself to everyone who is there.
    fn take_office(&mut self, term: Term) -> Vec<Action> {
        let grants = self.members.grants();
        let best = grants.iter().max_by_key(|grant| (grant.last_log_term, grant.flush_lsn));
        let best = best.expect("a majority has voted").clone();
        let start = TermStart { term, lsn: best.flush_lsn };
        let Ok(term_history) = best.history.up_to(best.flush_lsn).followed_by(start) else {
            // The donor's log holds a term as high as the one it granted: not a log of this quorum's making.
            self.phase = Phase::Fenced(best.last_log_term);
            return Vec::new();
        };
        let known = grants.iter().map(|grant| grant.commit_lsn).max().unwrap_or_default();
        if known > best.flush_lsn {
            // Some member has lost what it promised to hold. Going on would lose it for good.
            self.phase = Phase::Fenced(term);
            let text = format!(
                "the best log of a majority ends at {}, before committed {known}",
                best.flush_lsn
            );
            return self.break_off(best.member, RefusalReason::Conflict, text);
        }
        self.commit_lsn = self.commit_lsn.max(known);
        self.window = Window::at(best.flush_lsn, self.config.window_bytes_max);
        self.phase = Phase::Elected(Election {
            term,
            start_lsn: best.flush_lsn,
            donor: best.member,
            donor_last_log_term: best.last_log_term,
            term_history,
        });
        let ready = self.members.with_link(Link::Ready);
        ready.into_iter().flat_map(|member| self.introduce(member)).collect()
    }

    fn introduce(&mut self, member: NodeId) -> Vec<Action> {
        let Phase::Elected(election) = &self.phase else { return Vec::new() };
        let message = Elected {
            generation: self.generation(),
            term: election.term,
            history: election.term_history.clone(),
        };
        self.members.set_link(member, Link::Joining);
        vec![send(member, message)]
    }

    fn on_flush(&mut self, from: NodeId, response: &AppendResponse) -> Vec<Action> {
        let own = match &self.phase {
            Phase::Elected(election) => election.term,
            Phase::Candidate(term) => *term,
            Phase::Gathering | Phase::Fenced(_) => return Vec::new(),
        };
        if response.term > own {
            self.phase = Phase::Fenced(response.term);
            return Vec::new();
        }
        let follows = matches!(
            self.members.link(from),
            Some(Link::Joining | Link::Streaming { .. } | Link::Reading { .. })
        );
        let is_late = response.term < own || response.generation != self.generation();
        if is_late || !follows || response.flush_lsn > self.window.end() {
            return Vec::new();
        }
        self.members.set_flush(from, response.flush_lsn);
        self.members.note_answer(from);
        let mut actions = Vec::new();
        if self.members.link(from) == Some(Link::Joining) {
            self.members.set_link(from, Link::Streaming { next: response.flush_lsn });
            let (generation, commit_lsn) = (self.generation(), self.commit_lsn);
            actions.push(send(from, Commit { generation, term: own, commit_lsn }));
        }
        let has_advanced = self.advance_commit();
        // Others may have waited for this answer, or for nobody any more.
        let appends = match has_advanced || self.keeps_step(from) {
            true => self.pump_all(),
            false => self.pump(from),
        };
        if has_advanced {
            actions.extend(self.announce_commit(&appends));
        }
        actions.extend(appends);
        actions
    }

    /// Commit is what a majority has flushed in this term, once that covers the term's own first entry.
    fn advance_commit(&mut self) -> bool {
        let Phase::Elected(election) = &self.phase else { return false };
        let reached = self.members.quorum_flush_lsn().unwrap_or(Lsn::INVALID);
        if reached < election.start_lsn {
            return false;
        }
        self.is_term_committed = true;
        if reached <= self.commit_lsn {
            return false;
        }
        self.commit_lsn = reached;
        self.patience.is_stuck = false;
        self.window.drop_before(self.members.lowest_need().unwrap_or(reached).min(reached));
        true
    }

    /// To all that follow, but those to whom one of `appends` tells it, or the one that goes out with their next answer: under load
    /// that is nearly everyone, and each message wakes its receiver. Patient members hear of it later.
    fn announce_commit(&mut self, appends: &[Action]) -> Vec<Action> {
        let Phase::Elected(election) = &self.phase else { return Vec::new() };
        let (generation, commit_lsn) = (self.generation(), self.commit_lsn);
        let news = Commit { generation, term: election.term, commit_lsn };
        let is_told = |member: &NodeId| {
            appends.iter().any(|action| matches!(action, Action::Send { to, .. } if to == member))
        };
        let will_be_told = |member: &NodeId| {
            self.members.owes_answer(*member) && self.members.lacks(*member, self.window.end()) > 0
        };
        let mut streaming = self.members.streaming();
        streaming.retain(|member| !is_told(member) && !will_be_told(member));
        let (later, now): (Vec<_>, Vec<_>) =
            streaming.into_iter().partition(|member| self.may_wait(*member));
        self.patience.holds_back |= !later.is_empty();
        now.into_iter().map(|member| send(member, news.clone())).collect()
    }

    fn pump_all(&mut self) -> Vec<Action> {
        let members = self.members.streaming();
        members.into_iter().flat_map(|member| self.pump(member)).collect()
    }

    /// Sends a streaming member everything that it lacks, unless that may gather.
    fn pump(&mut self, member: NodeId) -> Vec<Action> {
        let lacking = self.members.lacks(member, self.window.end());
        let held_back = match lacking {
            0 => return Vec::new(),
            _ if self.may_wait(member) => PATIENT_BYTES_MAX,
            _ if self.waits_for_step(member) => GATHERED_BYTES_MAX,
            _ => 0,
        };
        let enough = if self.members.owes_answer(member) { GATHERED_BYTES_MAX } else { 1 };
        self.patience.holds_back |= lacking < held_back;
        if lacking < enough.max(held_back) { Vec::new() } else { self.send_lacking(member) }
    }

    /// Sends a streaming member what it lacks and the window has; asks for what the window has not.
    fn send_lacking(&mut self, member: NodeId) -> Vec<Action> {
        let Phase::Elected(election) = &self.phase else { return Vec::new() };
        let mut actions = Vec::new();
        while let Some(Link::Streaming { next }) = self.members.link(member) {
            if next >= self.window.end() || !self.members.may_be_sent(member, IN_FLIGHT_BYTES_MAX) {
                break;
            }
            match self.window.piece(next, APPEND_BYTES_MAX) {
                Some(bytes) => {
                    self.members.note_sent(member, next + bytes.len() as u64);
                    let append = Append {
                        generation: self.generation(),
                        term: election.term,
                        lsn: next,
                        commit_lsn: self.commit_lsn,
                        bytes,
                    };
                    actions.push(send(member, append));
                }
                None => {
                    self.members.set_link(member, Link::Reading { next });
                    actions.push(self.read_wal(member, next, election));
                }
            }
        }
        actions
    }

    fn read_wal(&self, to_member: NodeId, from: Lsn, election: &Election) -> Action {
        let &Election { term, start_lsn, donor, .. } = election;
        let holder = self.members.holder_of(from, donor, to_member);
        let holder = holder.map(|(node, end)| WalHolder { node, term, end });
        let (limit, source) = if from < start_lsn {
            let holder = holder.unwrap_or(WalHolder { node: donor, term, end: start_lsn });
            (start_lsn.min(holder.end), WalSource::Member(holder))
        } else {
            (self.window.start(), WalSource::Compute { or: holder })
        };
        let to = limit.min(from + APPEND_BYTES_MAX as u64);
        Action::ReadWal { to_member, from, to, source }
    }
}

/// The term that the sender of `message` is in.
fn term_in(message: &AcceptorMessage) -> Option<Term> {
    match message {
        AcceptorMessage::GreetingResponse(response) => Some(response.term),
        AcceptorMessage::VoteResponse(response) => Some(response.term),
        AcceptorMessage::AppendResponse(response) => Some(response.term),
        AcceptorMessage::NewerConfiguration(_) | AcceptorMessage::Refusal(_) => None,
    }
}

fn send(to: NodeId, message: impl Into<ProposerMessage>) -> Action {
    Action::Send { to, message: message.into() }
}

#[cfg(test)]
mod tests;
