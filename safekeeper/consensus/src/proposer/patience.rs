//! Members that may hear of the log a little later than the others.
//!
//! Where members share a machine, each of them that syncs every commit takes cores and disk from those that the commit waits
//! for. While the others are a quorum and follow closely, a *patient* member is sent what has gathered in a while instead of every
//! piece, and the others are sent the log in step: when all of them have answered for what they had. To a member the network is
//! somewhat slower, and nothing else is different. Once the commit has passed so many of the others by that the rest are no quorum,
//! nobody waits for anybody.

use super::{Action, Link, NodeId, Phase, Proposer, send};
use crate::Commit;

/// So much is not held back from a patient member.
pub(super) const PATIENT_BYTES_MAX: u64 = 256 * 1024;

#[derive(Clone, Debug, Default)]
pub(super) struct Patience {
    members: Vec<NodeId>,
    /// Something was not sent for patience's sake.
    pub(super) holds_back: bool,
    /// Nothing was committed since something was last let go.
    pub(super) is_stuck: bool,
}

impl Proposer {
    /// Names the members that may hear of the log, and of commits, later than the others, as far as the commit does not wait
    /// for them. The owner sees to it that what is held back ([`Proposer::holds_back`]) is let go soon ([`Proposer::let_go`]):
    /// while one of the others hangs, the first commit waits for that, and longer than for one call only within a record.
    pub fn set_patient(&mut self, members: Vec<NodeId>) {
        self.patience.members = members;
    }

    /// Something waits for [`Proposer::let_go`].
    pub fn holds_back(&self) -> bool {
        self.patience.holds_back
    }

    /// Sends patient members what was held back: log, or else just the news of what is committed. The others go on waiting for each
    /// other, unless nothing was committed since the call before, or one of them is gone.
    pub fn let_go(&mut self) -> Vec<Action> {
        self.patience.holds_back = false;
        let was_stuck = std::mem::replace(&mut self.patience.is_stuck, true);
        let all_go = was_stuck || !self.can_do_without_patient();
        let Phase::Elected(election) = &self.phase else { return Vec::new() };
        let (generation, commit_lsn) = (self.generation(), self.commit_lsn);
        let news = Commit { generation, term: election.term, commit_lsn };
        let mut actions = Vec::new();
        for member in self.members.streaming() {
            let is_patient = self.is_patient(member);
            match self.members.lacks(member, self.window.end()) {
                0 if is_patient => actions.push(send(member, news.clone())),
                0 => {}
                _ if is_patient || all_go => actions.extend(self.send_lacking(member)),
                _ => self.patience.holds_back = true,
            }
        }
        actions
    }

    fn is_patient(&self, member: NodeId) -> bool {
        self.patience.members.contains(&member)
    }

    /// One of those that are sent the log first, and has all that is committed.
    fn is_in_front(&self, member: NodeId) -> bool {
        !self.is_patient(member)
            && matches!(self.members.link(member), Some(Link::Streaming { .. }))
            && self.members.flush_lsn(member) >= Some(self.commit_lsn)
    }

    /// True while the commit can do without the patient: the others follow so closely that nothing was committed without one
    /// of a quorum of them.
    fn can_do_without_patient(&self) -> bool {
        !self.patience.members.is_empty()
            && self.is_term_committed
            && self.configuration().is_quorum(|member| self.is_in_front(member))
    }

    pub(super) fn may_wait(&self, member: NodeId) -> bool {
        self.is_patient(member) && self.can_do_without_patient()
    }

    /// Those in front are sent the log at the same time: what would go to one of them while another syncs is not committed any
    /// sooner, and makes two syncs and two commits of what could be one.
    pub(super) fn keeps_step(&self, member: NodeId) -> bool {
        self.is_in_front(member) && self.can_do_without_patient()
    }

    /// Another one in front is still busy with what this one has been sent.
    pub(super) fn waits_for_step(&self, member: NodeId) -> bool {
        let next = |of| match self.members.link(of) {
            Some(Link::Streaming { next }) => Some(next),
            _ => None,
        };
        let is_busy = |other: &NodeId| {
            self.is_in_front(*other)
                && self.members.owes_answer(*other)
                && next(*other) <= next(member)
        };
        self.keeps_step(member)
            && self.members.ids().iter().any(|other| *other != member && is_busy(other))
    }
}
