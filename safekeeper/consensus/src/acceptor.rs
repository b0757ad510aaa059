//! One member's side: votes, takes over a proposer's history, appends.
//!
//! What it relies on: [`Effect`]s are carried out in the order given, each done (and durable where it says
//! so) before the next begins; when one fails, the state here is ahead of the disk and must be thrown away,
//! to be built again with [`Acceptor::open`] from what the disk holds.
//!
//! What it promises:
//! - `term` and `vote` are persisted before a vote leaves; a term never goes down, a vote never changes within one;
//! - `flush_lsn` leaves only for bytes that the driver reported as synced;
//! - the log is cut, and the cut synced, before the history that made it necessary is persisted: a crash between
//!   the two leaves a prefix of the old log under the old history;
//! - nothing at or below `commit_lsn` is ever cut;
//! - the configuration's generation never goes down, and is persisted before anything is answered under it; nothing is
//!   answered, and no flush acknowledged, under an older one.

use bytes::Bytes;
use treering_types::{Lsn, NodeId, Term};

use crate::{
    AcceptorMessage, AdminRequest, AdminResponse, Append, AppendResponse, Commit, Configuration,
    Elected, Generation, Greeting, GreetingResponse, ProposerId, ProposerMessage, Refusal,
    RefusalReason, TermHistory, VoteRequest, VoteResponse,
};

/// What an acceptor must find again after a crash.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Promises {
    pub term: Term,
    /// To whom this term's vote was given; `None` when the term was learned otherwise.
    pub vote: Option<ProposerId>,
    pub history: TermHistory,
    /// Never above `flush_lsn`. May be persisted late: it is a lower bound after a restart.
    pub commit_lsn: Lsn,
    /// Where the timeline's log begins.
    pub start_lsn: Lsn,
    /// Who decides, as far as known here.
    pub configuration: Configuration,
    /// No configuration below this generation is accepted from who changes it.
    pub promised: Generation,
}

impl Promises {
    /// A log that nobody has written to yet.
    pub fn at(start_lsn: Lsn) -> Promises {
        Promises {
            term: Term(0),
            vote: None,
            history: TermHistory::default(),
            commit_lsn: start_lsn,
            start_lsn,
            configuration: Configuration::none(),
            promised: Generation(0),
        }
    }
}

/// What happens to an acceptor.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Input {
    Received {
        from: ProposerId,
        message: ProposerMessage,
    },
    /// The bytes of [`Effect::Write`]s are synced up to some position; the last whole record before it ends here. What
    /// was written while that sync was under way may be left for the next one.
    Flushed {
        record_end: Lsn,
    },
    Administered(AdminRequest),
}

/// What the driver must do, in order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Effect {
    /// Zero everything from `to` on, later segments included, and sync it.
    Truncate { to: Lsn },
    /// Make this durable, atomically.
    Persist(Promises),
    /// Append at the end of the bytes held; not durable before an [`Input::Flushed`] that covers it.
    Write { lsn: Lsn, bytes: Bytes },
    /// Send to the proposer's newest connection; drop it when there is none.
    Send { to: ProposerId, message: AcceptorMessage },
    /// Answer who sent [`Input::Administered`].
    Answer(AdminResponse),
}

/// The state of one member for one timeline.
#[derive(Clone, Debug)]
pub struct Acceptor {
    node: NodeId,
    promises: Promises,
    flush_lsn: Lsn,
    /// End of the bytes held: beyond `flush_lsn` lie unsynced records and the begin of a partial one.
    write_lsn: Lsn,
    /// Whose appends are taken: the proposer whose [`Elected`] was taken over since the start.
    leader: Option<ProposerId>,
    /// The leader's commit position; ours is never beyond our flush.
    leader_commit_lsn: Lsn,
}

impl Acceptor {
    /// `flush_lsn`: the end of the last whole record on disk, everything behind it zeroed and synced.
    ///
    /// Panics when the log on disk ends before `commit_lsn`: the caller must have refused it as corrupt.
    pub fn open(node: NodeId, promises: Promises, flush_lsn: Lsn) -> Acceptor {
        assert!(promises.start_lsn <= promises.commit_lsn && promises.commit_lsn <= flush_lsn);
        let leader_commit_lsn = promises.commit_lsn;
        Acceptor {
            node,
            promises,
            flush_lsn,
            write_lsn: flush_lsn,
            leader: None,
            leader_commit_lsn,
        }
    }

    pub fn promises(&self) -> &Promises {
        &self.promises
    }

    pub fn term(&self) -> Term {
        self.promises.term
    }

    pub fn flush_lsn(&self) -> Lsn {
        self.flush_lsn
    }

    pub fn commit_lsn(&self) -> Lsn {
        self.promises.commit_lsn
    }

    /// End of the bytes held.
    pub fn write_lsn(&self) -> Lsn {
        self.write_lsn
    }

    /// Whose appends are taken.
    pub fn leader(&self) -> Option<ProposerId> {
        self.leader
    }

    /// The term of the last entry that the log has reached.
    pub fn last_log_term(&self) -> Term {
        self.promises.history.last_term_at(self.flush_lsn)
    }

    /// One step. Pure but for the state itself.
    pub fn step(&mut self, input: Input) -> Vec<Effect> {
        match input {
            Input::Received { from, message } => self.receive(from, message),
            Input::Flushed { record_end } => self.flushed(record_end),
            Input::Administered(request) => self.administer(request),
        }
    }

    fn receive(&mut self, from: ProposerId, message: ProposerMessage) -> Vec<Effect> {
        if let Some(answer) = self.other_generation(from, &message) {
            return vec![answer];
        }
        match message {
            ProposerMessage::Greeting(greeting) => self.greet(from, greeting),
            ProposerMessage::VoteRequest(request) => self.vote(from, &request),
            ProposerMessage::Elected(elected) => self.follow(from, elected),
            ProposerMessage::Append(append) => self.append(from, append),
            ProposerMessage::Commit(commit) => self.learn_commit(from, &commit),
        }
    }

    /// The answer to a message that is not of our configuration's generation.
    fn other_generation(&self, from: ProposerId, message: &ProposerMessage) -> Option<Effect> {
        let theirs = match message {
            ProposerMessage::Greeting(_) => return None,
            ProposerMessage::VoteRequest(request) => request.generation,
            ProposerMessage::Elected(elected) => elected.generation,
            ProposerMessage::Append(append) => append.generation,
            ProposerMessage::Commit(commit) => commit.generation,
        };
        let ours = &self.promises.configuration;
        if theirs < ours.generation() {
            let message = AcceptorMessage::NewerConfiguration(ours.clone());
            return Some(Effect::Send { to: from, message });
        }
        let text = || format!("generation {theirs} was not greeted with");
        (theirs > ours.generation()).then(|| refuse(from, RefusalReason::Invalid, text()))
    }

    /// Follows a newer configuration. Whoever led under the older one has to be elected here again: what was
    /// written under that and is synced from now on must not be acknowledged to it.
    fn adopt(&mut self, configuration: Configuration) -> Option<Effect> {
        if configuration.generation() <= self.promises.configuration.generation() {
            return None;
        }
        self.promises.configuration = configuration;
        self.leader = None;
        Some(Effect::Persist(self.promises.clone()))
    }

    fn administer(&mut self, request: AdminRequest) -> Vec<Effect> {
        let current = self.promises.configuration.generation();
        let mut effects = Vec::new();
        let granted = match request {
            AdminRequest::Read => true,
            AdminRequest::Promise(generation) => {
                let is_free = generation > self.promises.promised && generation > current;
                if is_free {
                    self.promises.promised = generation;
                    effects.push(Effect::Persist(self.promises.clone()));
                }
                is_free
            }
            AdminRequest::Accept(configuration) => {
                let is_known = configuration == self.promises.configuration;
                let is_free = configuration.generation() >= self.promises.promised
                    && (is_known || configuration.generation() > current);
                if is_free {
                    effects.extend(self.adopt(configuration));
                }
                is_free
            }
        };
        effects.push(Effect::Answer(AdminResponse {
            granted,
            promised: self.promises.promised,
            configuration: self.promises.configuration.clone(),
            term: self.promises.term,
            last_log_term: self.last_log_term(),
            flush_lsn: self.flush_lsn,
            commit_lsn: self.promises.commit_lsn,
        }));
        effects
    }

    fn greet(&mut self, from: ProposerId, greeting: Greeting) -> Vec<Effect> {
        let mut effects: Vec<Effect> = self.adopt(greeting.configuration).into_iter().collect();
        let message = AcceptorMessage::GreetingResponse(GreetingResponse {
            node: self.node,
            term: self.promises.term,
            flush_lsn: self.flush_lsn,
            commit_lsn: self.promises.commit_lsn,
            configuration: self.promises.configuration.clone(),
        });
        effects.push(Effect::Send { to: from, message });
        effects
    }

    fn vote(&mut self, from: ProposerId, request: &VoteRequest) -> Vec<Effect> {
        let is_new = request.term > self.promises.term;
        let is_repeated = request.term == self.promises.term && self.promises.vote == Some(from);
        let mut effects = Vec::new();
        if is_new {
            self.promises.term = request.term;
            self.promises.vote = Some(from);
            self.leader = None;
            effects.push(Effect::Persist(self.promises.clone()));
        }
        let message = AcceptorMessage::VoteResponse(VoteResponse {
            term: self.promises.term,
            granted: is_new || is_repeated,
            flush_lsn: self.flush_lsn,
            commit_lsn: self.promises.commit_lsn,
            history: self.promises.history.up_to(self.flush_lsn),
        });
        effects.push(Effect::Send { to: from, message });
        effects
    }

    fn follow(&mut self, from: ProposerId, elected: Elected) -> Vec<Effect> {
        if elected.term < self.promises.term {
            return vec![self.status(from)];
        }
        let Some(start_of_term) = elected.history.last().filter(|entry| entry.term == elected.term)
        else {
            let text = "term history lacks its own term".into();
            return vec![refuse(from, RefusalReason::Invalid, text)];
        };
        let known = self.promises.history.start_of(elected.term);
        if known.is_some_and(|known| known != start_of_term) {
            let text = format!("term {} begins elsewhere in the log here", elected.term);
            return vec![refuse(from, RefusalReason::Conflict, text)];
        }
        // A log that nobody has written to begins at a committed position, with whatever history lies before.
        let cut = match self.promises.history.last() {
            None => self.flush_lsn.min(start_of_term.lsn),
            Some(_) => self.promises.history.divergence(self.flush_lsn, &elected.history),
        };
        if cut < self.promises.commit_lsn {
            let text = format!(
                "term {} would cut the log at {cut}, before committed {}",
                elected.term, self.promises.commit_lsn
            );
            return vec![refuse(from, RefusalReason::Conflict, text)];
        }
        let mut effects = Vec::new();
        if cut < self.write_lsn {
            effects.push(Effect::Truncate { to: cut });
        }
        let before = self.promises.clone();
        if elected.term > self.promises.term {
            self.promises.term = elected.term;
            self.promises.vote = None;
        }
        self.promises.history = elected.history;
        if self.promises != before {
            effects.push(Effect::Persist(self.promises.clone()));
        }
        (self.flush_lsn, self.write_lsn) = (cut, cut);
        self.leader = Some(from);
        self.leader_commit_lsn = self.promises.commit_lsn;
        effects.push(self.status(from));
        effects
    }

    fn append(&mut self, from: ProposerId, append: Append) -> Vec<Effect> {
        if !self.is_led_by(from, append.term) {
            return vec![self.not_led(from, append.term)];
        }
        if append.lsn != self.write_lsn {
            let text = format!("append at {}, the log ends at {}", append.lsn, self.write_lsn);
            return vec![refuse(from, RefusalReason::Invalid, text)];
        }
        self.raise_commit(append.commit_lsn);
        if append.bytes.is_empty() {
            return vec![self.status(from)];
        }
        self.write_lsn = append.lsn + append.bytes.len() as u64;
        vec![Effect::Write { lsn: append.lsn, bytes: append.bytes }]
    }

    fn learn_commit(&mut self, from: ProposerId, commit: &Commit) -> Vec<Effect> {
        if !self.is_led_by(from, commit.term) {
            return vec![self.not_led(from, commit.term)];
        }
        self.raise_commit(commit.commit_lsn);
        Vec::new()
    }

    fn flushed(&mut self, record_end: Lsn) -> Vec<Effect> {
        assert!(self.flush_lsn <= record_end && record_end <= self.write_lsn);
        self.flush_lsn = record_end;
        self.raise_commit(self.leader_commit_lsn);
        self.leader.map(|leader| self.status(leader)).into_iter().collect()
    }

    fn is_led_by(&self, from: ProposerId, term: Term) -> bool {
        term == self.promises.term && self.leader == Some(from)
    }

    /// The answer to a writer whose `Elected` did not come first. It must not hold a `flush_lsn` of the
    /// writer's own term: our log may be another one.
    fn not_led(&self, from: ProposerId, term: Term) -> Effect {
        if term < self.promises.term {
            return self.status(from);
        }
        refuse(from, RefusalReason::Invalid, format!("not elected here in term {term}"))
    }

    fn raise_commit(&mut self, leader_commit_lsn: Lsn) {
        self.leader_commit_lsn = self.leader_commit_lsn.max(leader_commit_lsn);
        let reached = self.leader_commit_lsn.min(self.flush_lsn);
        self.promises.commit_lsn = self.promises.commit_lsn.max(reached);
    }

    fn status(&self, to: ProposerId) -> Effect {
        let message = AcceptorMessage::AppendResponse(AppendResponse {
            generation: self.promises.configuration.generation(),
            term: self.promises.term,
            flush_lsn: self.flush_lsn,
            commit_lsn: self.promises.commit_lsn,
        });
        Effect::Send { to, message }
    }
}

fn refuse(to: ProposerId, reason: RefusalReason, text: String) -> Effect {
    Effect::Send { to, message: AcceptorMessage::Refusal(Refusal { reason, text }) }
}

#[cfg(test)]
mod tests;
