//! What must hold, judged from what can be seen from outside: messages, disks, and what writers told their clients.
//! Nothing here asks the code under test whether it is right.

use std::collections::BTreeMap;

use treering_consensus::{AcceptorMessage, ProposerId};
use treering_types::NodeId;

use crate::record::{START, whole_records};

#[derive(Default)]
pub struct Checker {
    /// Whom a member gave its vote, by term.
    votes: BTreeMap<(NodeId, u64), ProposerId>,
    leaders: BTreeMap<u64, ProposerId>,
    committing: BTreeMap<u64, ProposerId>,
    /// The longest log that any writer called committed, from `START` on.
    committed: Vec<u8>,
    /// In which term it was committed up to which length, as it grew.
    commits: Vec<(u64, usize)>,
    commit_of: BTreeMap<ProposerId, usize>,
    term_of: BTreeMap<NodeId, u64>,
    generation_of: BTreeMap<NodeId, u64>,
}

impl Checker {
    pub fn committed(&self) -> &[u8] {
        &self.committed
    }

    /// A proposer says that it won `term` with this log.
    pub fn on_elected(&mut self, id: ProposerId, term: u64, log: &[u8]) {
        let holder = *self.leaders.entry(term).or_insert(id);
        assert_eq!(holder, id, "two leaders in term {term}");
        assert_eq!(whole_records(log), log.len(), "term {term} begins inside a record");
        // Later terms may have committed before the last vote came: such a leader need not know of that, and gets
        // nothing committed. What earlier terms committed it must have.
        let earlier = self.commits.iter().filter(|(earlier, _)| *earlier < term);
        let due = earlier.map(|(_, len)| *len).max().unwrap_or(0);
        assert!(log.starts_with(&self.committed[..due]), "acknowledged log lost in term {term}");
    }

    /// A proposer says that `log`, as its compute has it, is committed. True when that is news.
    pub fn on_commit(&mut self, id: ProposerId, term: u64, log: &[u8]) -> bool {
        let holder = *self.committing.entry(term).or_insert(id);
        assert_eq!(holder, id, "two proposers commit in term {term}");
        let before = self.commit_of.insert(id, log.len()).unwrap_or(0);
        assert!(before <= log.len(), "commit goes back in term {term}");
        let common = log.len().min(self.committed.len());
        assert!(log[..common] == self.committed[..common], "committed logs part in term {term}");
        if log.len() == common {
            return false;
        }
        assert_eq!(whole_records(log), log.len(), "committed inside a record");
        self.committed = log.to_vec();
        self.commits.push((term, log.len()));
        true
    }

    /// A member let a message out; `durable` is what it would find after losing power now.
    pub fn on_sent(
        &mut self,
        node: NodeId,
        to: ProposerId,
        sent: &AcceptorMessage,
        durable: &[u8],
    ) {
        let (term, flush_lsn) = match sent {
            AcceptorMessage::VoteResponse(vote) => {
                if vote.granted {
                    let given = *self.votes.entry((node, vote.term.0)).or_insert(to);
                    assert_eq!(given, to, "{node} votes twice in term {}", vote.term);
                }
                (vote.term, vote.flush_lsn)
            }
            AcceptorMessage::AppendResponse(response) => (response.term, response.flush_lsn),
            AcceptorMessage::GreetingResponse(response) => {
                self.on_generation(node, response.configuration.generation().0);
                (response.term, response.flush_lsn)
            }
            AcceptorMessage::NewerConfiguration(newer) => {
                return self.on_generation(node, newer.generation().0);
            }
            AcceptorMessage::Refusal(_) => return,
        };
        let highest = self.term_of.insert(node, term.0).unwrap_or(0);
        assert!(highest <= term.0, "term of {node} goes back");
        let flushed = (flush_lsn.0 - START) as usize;
        assert!(flushed <= durable.len(), "{node} says flushed what is not synced");
        assert_eq!(whole_records(&durable[..flushed]), flushed, "{node} flushed inside a record");
    }

    fn on_generation(&mut self, node: NodeId, generation: u64) {
        let highest = self.generation_of.insert(node, generation).unwrap_or(0);
        assert!(highest <= generation, "configuration of {node} goes back");
    }

    /// A majority was asked where the log ends, from when `before` bytes of it were committed.
    pub fn on_settled(&self, before: usize, end: usize) {
        assert!(before <= end, "the end of the log misses some of {before} committed bytes");
        assert!(end <= self.committed.len(), "the end of the log is not committed");
    }

    /// A member says that its log is committed up to `commit`.
    pub fn on_member(&self, node: NodeId, log: &[u8], commit: usize) {
        assert!(log.len() >= commit, "{node} has less than it knows to be committed");
        assert!(
            self.committed.starts_with(&log[..commit]),
            "log of {node} parts before its commit"
        );
    }
}
