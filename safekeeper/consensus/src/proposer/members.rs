//! What a proposer knows about each member of the quorum.

use treering_types::{Lsn, NodeId, Term};

use crate::{Configuration, TermHistory};

/// Where the conversation with a member stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Link {
    Down,
    /// The greeting was sent.
    Greeting,
    /// It has answered: votes can be asked for, an election announced.
    Ready,
    /// The election was announced; its answer says from where to stream.
    Joining,
    /// Everything before `next` was sent.
    Streaming {
        next: Lsn,
    },
    /// As streaming, but the bytes at `next` have to be read elsewhere first.
    Reading {
        next: Lsn,
    },
}

#[derive(Clone, Debug)]
pub(super) enum Vote {
    Granted { last_log_term: Term, flush_lsn: Lsn, commit_lsn: Lsn, history: TermHistory },
    Refused,
}

/// A vote in our favour, and the log behind it.
#[derive(Clone, Debug)]
pub(super) struct Grant {
    pub(super) member: NodeId,
    pub(super) last_log_term: Term,
    pub(super) flush_lsn: Lsn,
    pub(super) commit_lsn: Lsn,
    pub(super) history: TermHistory,
}

#[derive(Clone, Debug)]
struct Member {
    id: NodeId,
    link: Link,
    term_seen: Term,
    vote: Option<Vote>,
    /// Reported in our term.
    flush_lsn: Option<Lsn>,
    /// Bytes were sent and nothing was heard since.
    owes_answer: bool,
}

/// The members of the configuration that is followed, each with what is known of it.
#[derive(Clone, Debug)]
pub(super) struct Members {
    configuration: Configuration,
    /// One for each of the configuration's members.
    states: Vec<Member>,
}

impl Members {
    pub(super) fn new(configuration: Configuration) -> Members {
        let mut members = Members { configuration: Configuration::none(), states: Vec::new() };
        members.follow(configuration);
        members
    }

    pub(super) fn configuration(&self) -> &Configuration {
        &self.configuration
    }

    /// Keeps the links of those who stay, and forgets what they voted and acknowledged: both count only under the
    /// configuration that they were given under.
    pub(super) fn follow(&mut self, configuration: Configuration) {
        let link = |id| self.link(id).unwrap_or(Link::Down);
        let term_seen = |id| self.get(id).map_or(Term(0), |member| member.term_seen);
        let member = |id| Member {
            id,
            link: link(id),
            term_seen: term_seen(id),
            vote: None,
            flush_lsn: None,
            owes_answer: false,
        };
        self.states = configuration.all_members().into_iter().map(member).collect();
        self.configuration = configuration;
    }

    pub(super) fn ids(&self) -> Vec<NodeId> {
        self.states.iter().map(|member| member.id).collect()
    }

    fn get(&self, id: NodeId) -> Option<&Member> {
        self.states.iter().find(|member| member.id == id)
    }

    fn get_mut(&mut self, id: NodeId) -> Option<&mut Member> {
        self.states.iter_mut().find(|member| member.id == id)
    }

    pub(super) fn link(&self, id: NodeId) -> Option<Link> {
        self.get(id).map(|member| member.link)
    }

    /// False when there is no such member.
    pub(super) fn set_link(&mut self, id: NodeId, link: Link) -> bool {
        let member = self.get_mut(id);
        member
            .map(|member| {
                member.owes_answer &= matches!(link, Link::Streaming { .. } | Link::Reading { .. });
                member.link = link;
            })
            .is_some()
    }

    /// Bytes up to `next` are on their way to a streaming member.
    pub(super) fn note_sent(&mut self, id: NodeId, next: Lsn) {
        if let Some(member) = self.get_mut(id) {
            member.link = Link::Streaming { next };
            member.owes_answer = true;
        }
    }

    /// The member has answered.
    pub(super) fn note_answer(&mut self, id: NodeId) {
        if let Some(member) = self.get_mut(id) {
            member.owes_answer = false;
        }
    }

    /// Bytes before `end` that a streaming member was not sent.
    pub(super) fn lacks(&self, id: NodeId, end: Lsn) -> u64 {
        match self.link(id) {
            Some(Link::Streaming { next }) => end.bytes_since(next).unwrap_or(0),
            _ => 0,
        }
    }

    /// False while a streaming member has so many bytes to acknowledge that it is not given more: until it answers, be
    /// it only that a record is not whole yet.
    pub(super) fn may_be_sent(&self, id: NodeId, in_flight_bytes_max: u64) -> bool {
        let Some(Member { link: Link::Streaming { next }, flush_lsn, owes_answer, .. }) =
            self.get(id)
        else {
            return false;
        };
        let in_flight = flush_lsn.and_then(|flush_lsn| next.bytes_since(flush_lsn)).unwrap_or(0);
        in_flight < in_flight_bytes_max || !owes_answer
    }

    pub(super) fn owes_answer(&self, id: NodeId) -> bool {
        self.get(id).is_some_and(|member| member.owes_answer)
    }

    pub(super) fn with_link(&self, link: Link) -> Vec<NodeId> {
        self.states.iter().filter(|member| member.link == link).map(|member| member.id).collect()
    }

    pub(super) fn streaming(&self) -> Vec<NodeId> {
        let is_streaming =
            |member: &&Member| matches!(member.link, Link::Streaming { .. } | Link::Reading { .. });
        self.states.iter().filter(is_streaming).map(|member| member.id).collect()
    }

    /// True when enough members have answered the greeting to be elected by.
    pub(super) fn are_gathered(&self) -> bool {
        let is_there = |link| !matches!(link, Link::Down | Link::Greeting);
        self.configuration.is_quorum(|id| self.link(id).is_some_and(is_there))
    }

    pub(super) fn see_term(&mut self, id: NodeId, term: Term) {
        if let Some(member) = self.get_mut(id) {
            member.term_seen = member.term_seen.max(term);
        }
    }

    pub(super) fn highest_term(&self) -> Term {
        self.states.iter().map(|member| member.term_seen).max().unwrap_or_default()
    }

    pub(super) fn set_vote(&mut self, id: NodeId, vote: Vote) {
        if let Some(member) = self.get_mut(id) {
            member.vote = Some(vote);
        }
    }

    pub(super) fn forget_votes(&mut self) {
        self.states.iter_mut().for_each(|member| member.vote = None);
    }

    /// True when those who refused leave no quorum to be elected by.
    pub(super) fn is_election_lost(&self) -> bool {
        let may_grant = |member: &Member| !matches!(member.vote, Some(Vote::Refused));
        !self.configuration.is_quorum(|id| self.get(id).is_some_and(may_grant))
    }

    pub(super) fn is_election_won(&self) -> bool {
        let granted = |member: &Member| matches!(member.vote, Some(Vote::Granted { .. }));
        self.configuration.is_quorum(|id| self.get(id).is_some_and(granted))
    }

    pub(super) fn grants(&self) -> Vec<Grant> {
        let grant = |member: &Member| match member.vote.clone()? {
            Vote::Granted { last_log_term, flush_lsn, commit_lsn, history } => {
                Some(Grant { member: member.id, last_log_term, flush_lsn, commit_lsn, history })
            }
            Vote::Refused => None,
        };
        self.states.iter().filter_map(grant).collect()
    }

    /// A late report of an earlier connection cannot lower what the member holds for good.
    pub(super) fn set_flush(&mut self, id: NodeId, flush_lsn: Lsn) {
        if let Some(member) = self.get_mut(id) {
            member.flush_lsn = Some(member.flush_lsn.map_or(flush_lsn, |old| old.max(flush_lsn)));
        }
    }

    pub(super) fn flush_lsn(&self, id: NodeId) -> Option<Lsn> {
        self.get(id)?.flush_lsn
    }

    pub(super) fn flush_lsns(&self) -> Vec<(NodeId, Option<Lsn>)> {
        self.states.iter().map(|member| (member.id, member.flush_lsn)).collect()
    }

    /// The highest position that a majority (of both sets, if there are two) has reached in our term.
    pub(super) fn quorum_flush_lsn(&self) -> Option<Lsn> {
        self.configuration.quorum_value(|id| self.get(id)?.flush_lsn)
    }

    /// Who can be read from at `lsn`: a connected member, other than `but`, whose log is our term's to beyond it. `preferred`
    /// if it can, else the one that has most.
    pub(super) fn holder_of(
        &self,
        lsn: Lsn,
        preferred: NodeId,
        but: NodeId,
    ) -> Option<(NodeId, Lsn)> {
        let can_serve = |member: &&Member| {
            member.id != but && matches!(member.link, Link::Streaming { .. } | Link::Reading { .. })
        };
        let holders = self.states.iter().filter(can_serve);
        let holders = holders.filter_map(|member| Some((member.id, member.flush_lsn?)));
        holders
            .filter(|(_, flush_lsn)| *flush_lsn > lsn)
            .max_by_key(|(id, flush_lsn)| (*id == preferred, *flush_lsn))
    }

    /// The lowest position from which a connected member may need bytes again.
    pub(super) fn lowest_need(&self) -> Option<Lsn> {
        let connected = self.states.iter().filter(|member| member.link != Link::Down);
        connected.filter_map(|member| member.flush_lsn).min()
    }
}
