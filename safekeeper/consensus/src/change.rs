//! Changing the members of a quorum: the side of who wants the change, as a pure state machine.
//!
//! Any number of these may run at once, die at any step, and be started anew; `docs/formats/quorum.md` argues why.
//! One run goes through
//!
//! 1. *promising*: a majority (of both sets, where the configuration is joint) promises to accept nothing below a new, even
//!    generation G, and says what it follows. The highest of those answers counts;
//! 2. *joining*: the joint configuration G goes to everyone; a majority of the old members accepting it decides it.
//!    Was the highest one joint already, then its new members are carried on with, whatever was wanted;
//! 3. *filling*: a majority of the new members comes to hold all that the old ones held when they accepted, in a term
//!    no lower. A writer that is elected does that by itself; without one somebody must be
//!    ([`ChangePhase::Filling`] says so), to go no further than committing its term;
//! 4. *finishing*: the new members alone, generation G+1; a majority of them accepting it ends the change.
//!
//! Once decided a change goes forward only. What was wanted instead is another change after it.

use std::collections::BTreeMap;

use treering_types::{Lsn, NodeId, Term};

use crate::{
    AdminRequest, AdminResponse, Configuration, ConfigurationError, Generation, is_majority,
};

/// Times that a generation is found taken before the change gives way to whoever takes them.
const TRIES: u32 = 8;

/// What the owner must do; none of it has to succeed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ChangeAction {
    Send { to: NodeId, request: AdminRequest },
}

/// How far a change has come.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ChangePhase {
    Promising(Generation),
    Joining(Configuration),
    /// The owner sees to it that somebody is elected under this configuration, if nobody is.
    Filling(Configuration),
    Finishing(Configuration),
    /// This configuration is in force. Its members are not those wanted when an earlier change had to be ended first.
    Done(Configuration),
    /// Somebody else changes the configuration: nothing is lost by beginning anew, later.
    Superseded(Generation),
}

/// One run of a change.
#[derive(Clone, Debug)]
pub struct Change {
    wanted: Vec<NodeId>,
    /// The highest configuration met.
    known: Configuration,
    phase: ChangePhase,
    tries: u32,
    /// The last answer of each member in this phase that granted what the phase asks for.
    granted: BTreeMap<NodeId, AdminResponse>,
    /// What the old members held when they accepted: the highest (last log term, flush LSN), and the highest term.
    due: (Term, Lsn, Term),
}

impl Change {
    /// `known`: any configuration of the quorum, the newer the better: its members must still be there to answer.
    pub fn new(known: Configuration, wanted: Vec<NodeId>) -> Result<Change, ConfigurationError> {
        let wanted = Configuration::unnumbered(wanted)?.members().to_vec();
        if known.members().is_empty() {
            return Err(ConfigurationError::Empty);
        }
        let phase = ChangePhase::Promising(known.generation().next_joint());
        let due = (Term(0), Lsn::INVALID, Term(0));
        Ok(Change { wanted, known, phase, tries: 0, granted: BTreeMap::new(), due })
    }

    pub fn phase(&self) -> &ChangePhase {
        &self.phase
    }

    /// Asks, again too, everyone whose answer is wanting. For the start, and for a clock.
    pub fn tick(&self) -> Vec<ChangeAction> {
        let (to, request) = match &self.phase {
            ChangePhase::Promising(generation) => {
                (self.known.all_members(), AdminRequest::Promise(*generation))
            }
            ChangePhase::Joining(joint) => {
                (joint.all_members(), AdminRequest::Accept(joint.clone()))
            }
            // Told as well as asked: a new member may have been away so far.
            ChangePhase::Filling(joint) => {
                let new = joint.new_members().unwrap_or_default().to_vec();
                return send(new, &AdminRequest::Accept(joint.clone()));
            }
            ChangePhase::Finishing(last) => {
                // Those who leave are told too: they would go on asking for votes' worth of attention.
                let mut everyone = self.known.all_members();
                everyone.extend(last.members());
                everyone.sort();
                everyone.dedup();
                (everyone, AdminRequest::Accept(last.clone()))
            }
            ChangePhase::Done(_) | ChangePhase::Superseded(_) => return Vec::new(),
        };
        let open = to.into_iter().filter(|node| !self.granted.contains_key(node));
        send(open.collect(), &request)
    }

    /// An answer, late and repeated ones included: which phase it belongs to is read off it.
    pub fn on_response(&mut self, from: NodeId, response: AdminResponse) -> Vec<ChangeAction> {
        match self.phase.clone() {
            ChangePhase::Promising(generation) => self.on_promise(from, response, generation),
            ChangePhase::Joining(joint) => {
                if !self.accepts(from, response, &joint)
                    || !is_majority(joint.members(), |node| self.granted.contains_key(&node))
                {
                    return Vec::new();
                }
                self.due = self.highest_of(joint.members());
                // The new members' answers so far count: they accepted this configuration.
                self.phase = ChangePhase::Filling(joint);
                self.go_on_when_filled()
            }
            ChangePhase::Filling(joint) => {
                if self.accepts(from, response, &joint) {
                    self.go_on_when_filled()
                } else {
                    Vec::new()
                }
            }
            ChangePhase::Finishing(last) => {
                if self.accepts(from, response, &last)
                    && is_majority(last.members(), |node| self.granted.contains_key(&node))
                {
                    self.phase = ChangePhase::Done(last);
                }
                Vec::new()
            }
            ChangePhase::Done(_) | ChangePhase::Superseded(_) => Vec::new(),
        }
    }

    fn on_promise(
        &mut self,
        from: NodeId,
        response: AdminResponse,
        generation: Generation,
    ) -> Vec<ChangeAction> {
        let met = response.configuration.generation();
        if met > self.known.generation() {
            // Its members have to promise as well; the promises so far stand.
            self.known = response.configuration.clone();
        }
        if met >= generation || response.promised > generation {
            return self.try_again(response.promised.max(met));
        }
        if response.granted && response.promised == generation {
            self.granted.insert(from, response);
        } else if response.promised == generation && !self.granted.contains_key(&from) {
            // To us, in an answer that was lost, or to somebody else: nobody can tell.
            return self.try_again(generation);
        }
        if !self.known.is_quorum(|node| self.granted.contains_key(&node)) {
            return Vec::new();
        }
        let (members, new_members) = match self.known.new_members() {
            Some(already) => (self.known.members(), already.to_vec()),
            None if self.known.members() == self.wanted && self.known.generation().0 > 0 => {
                // Nothing to change; that it is in force a majority has still to confirm.
                let last = self.known.members().to_vec();
                return self.finish(Generation(generation.0 + 1), last);
            }
            None => (self.known.members(), self.wanted.clone()),
        };
        let joint = Configuration::new(generation, members.to_vec(), Some(new_members))
            .expect("even, and made of checked sets");
        self.known = joint.clone();
        self.enter(ChangePhase::Joining(joint))
    }

    fn try_again(&mut self, taken: Generation) -> Vec<ChangeAction> {
        self.tries += 1;
        if self.tries >= TRIES {
            return self.enter(ChangePhase::Superseded(taken));
        }
        self.enter(ChangePhase::Promising(taken.next_joint()))
    }

    /// Notes an acceptance of `configuration`; somebody else's higher generation ends this run.
    fn accepts(
        &mut self,
        from: NodeId,
        response: AdminResponse,
        configuration: &Configuration,
    ) -> bool {
        let generation = configuration.generation();
        let higher = response.promised.max(response.configuration.generation());
        if higher > generation {
            self.enter(ChangePhase::Superseded(higher));
            return false;
        }
        let accepts = response.granted && response.configuration == *configuration;
        if accepts {
            self.granted.insert(from, response);
        }
        accepts
    }

    fn highest_of(&self, members: &[NodeId]) -> (Term, Lsn, Term) {
        let accepted = || members.iter().filter_map(|node| self.granted.get(node));
        let log = accepted().map(|held| (held.last_log_term, held.flush_lsn)).max();
        let (last_log_term, flush_lsn) = log.unwrap_or_default();
        let term = accepted().map(|held| held.term).max().unwrap_or_default();
        (last_log_term, flush_lsn, term)
    }

    fn go_on_when_filled(&mut self) -> Vec<ChangeAction> {
        let ChangePhase::Filling(joint) = &self.phase else { return Vec::new() };
        let (last_log_term, flush_lsn, term) = self.due;
        let is_filled = |held: &AdminResponse| {
            held.term >= term && (held.last_log_term, held.flush_lsn) >= (last_log_term, flush_lsn)
        };
        let new_members = joint.new_members().unwrap_or_default();
        if !is_majority(new_members, |node| self.granted.get(&node).is_some_and(is_filled)) {
            return Vec::new();
        }
        let (generation, last) = (Generation(joint.generation().0 + 1), new_members.to_vec());
        self.finish(generation, last)
    }

    fn finish(&mut self, generation: Generation, members: Vec<NodeId>) -> Vec<ChangeAction> {
        let last = Configuration::new(generation, members, None).expect("odd, a checked set");
        self.enter(ChangePhase::Finishing(last))
    }

    fn enter(&mut self, phase: ChangePhase) -> Vec<ChangeAction> {
        self.phase = phase;
        self.granted.clear();
        self.tick()
    }
}

fn send(to: Vec<NodeId>, request: &AdminRequest) -> Vec<ChangeAction> {
    to.into_iter().map(|to| ChangeAction::Send { to, request: request.clone() }).collect()
}

#[cfg(test)]
mod tests;
