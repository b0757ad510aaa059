//! What a proposer knows about each member of the quorum.

use treering_types::{Lsn, NodeId, Term};

use crate::TermHistory;

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

#[derive(Clone, Debug)]
pub(super) struct Members(Vec<Member>);

impl Members {
    pub(super) fn new(ids: &[NodeId]) -> Members {
        let mut unique = ids.to_vec();
        unique.sort();
        unique.dedup();
        assert!(!ids.is_empty() && unique.len() == ids.len(), "a quorum of distinct members");
        let member = |id: &NodeId| Member {
            id: *id,
            link: Link::Down,
            term_seen: Term(0),
            vote: None,
            flush_lsn: None,
            owes_answer: false,
        };
        Members(ids.iter().map(member).collect())
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Members that make a majority.
    pub(super) fn quorum(&self) -> usize {
        self.0.len() / 2 + 1
    }

    pub(super) fn ids(&self) -> Vec<NodeId> {
        self.0.iter().map(|member| member.id).collect()
    }

    fn get(&self, id: NodeId) -> Option<&Member> {
        self.0.iter().find(|member| member.id == id)
    }

    fn get_mut(&mut self, id: NodeId) -> Option<&mut Member> {
        self.0.iter_mut().find(|member| member.id == id)
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

    pub(super) fn owes_answer(&self, id: NodeId) -> bool {
        self.get(id).is_some_and(|member| member.owes_answer)
    }

    pub(super) fn with_link(&self, link: Link) -> Vec<NodeId> {
        self.0.iter().filter(|member| member.link == link).map(|member| member.id).collect()
    }

    pub(super) fn streaming(&self) -> Vec<NodeId> {
        let is_streaming =
            |member: &&Member| matches!(member.link, Link::Streaming { .. } | Link::Reading { .. });
        self.0.iter().filter(is_streaming).map(|member| member.id).collect()
    }

    /// Members whose greeting was answered.
    pub(super) fn connected(&self) -> usize {
        let is_down = |member: &&Member| matches!(member.link, Link::Down | Link::Greeting);
        self.0.len() - self.0.iter().filter(is_down).count()
    }

    pub(super) fn see_term(&mut self, id: NodeId, term: Term) {
        if let Some(member) = self.get_mut(id) {
            member.term_seen = member.term_seen.max(term);
        }
    }

    pub(super) fn highest_term(&self) -> Term {
        self.0.iter().map(|member| member.term_seen).max().unwrap_or_default()
    }

    pub(super) fn set_vote(&mut self, id: NodeId, vote: Vote) {
        if let Some(member) = self.get_mut(id) {
            member.vote = Some(vote);
        }
    }

    pub(super) fn forget_votes(&mut self) {
        self.0.iter_mut().for_each(|member| member.vote = None);
    }

    pub(super) fn refusals(&self) -> usize {
        self.0.iter().filter(|member| matches!(member.vote, Some(Vote::Refused))).count()
    }

    pub(super) fn grants(&self) -> Vec<Grant> {
        let grant = |member: &Member| match member.vote.clone()? {
            Vote::Granted { last_log_term, flush_lsn, commit_lsn, history } => {
                Some(Grant { member: member.id, last_log_term, flush_lsn, commit_lsn, history })
            }
            Vote::Refused => None,
        };
        self.0.iter().filter_map(grant).collect()
    }

    /// A late report of an earlier connection cannot lower what the member holds for good.
    pub(super) fn set_flush(&mut self, id: NodeId, flush_lsn: Lsn) {
        if let Some(member) = self.get_mut(id) {
            member.flush_lsn = Some(member.flush_lsn.map_or(flush_lsn, |old| old.max(flush_lsn)));
        }
    }

    pub(super) fn flush_lsns(&self) -> Vec<(NodeId, Option<Lsn>)> {
        self.0.iter().map(|member| (member.id, member.flush_lsn)).collect()
    }

    /// The highest position that a majority has reached in our term.
    pub(super) fn quorum_flush_lsn(&self) -> Option<Lsn> {
        let mut reached: Vec<Lsn> = self.0.iter().filter_map(|member| member.flush_lsn).collect();
        reached.sort_by(|a, b| b.cmp(a));
        reached.get(self.quorum() - 1).copied()
    }

    /// The lowest position from which a connected member may need bytes again.
    pub(super) fn lowest_need(&self) -> Option<Lsn> {
        let connected = self.0.iter().filter(|member| member.link != Link::Down);
        connected.filter_map(|member| member.flush_lsn).min()
    }
}
