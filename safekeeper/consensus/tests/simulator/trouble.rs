//! What goes wrong, and how a run ends: with everything healed, and work going on.

use treering_consensus::{ChangePhase, Configuration};
use treering_types::NodeId;

use crate::{
    compute::nodes,
    world::{Event, World},
};

impl World {
    /// One thing happens that nobody asked for.
    pub fn trouble(&mut self) {
        let node = self.some_node();
        match self.dice.below(20) {
            0..=1 if self.node(node).acceptor.is_some() => self.crash(node),
            2..=3 if self.computes.len() < 4 => self.another_compute(),
            4 if !self.computes.is_empty() => {
                let index = self.dice.below(self.computes.len());
                self.lose_agent(index);
            }
            5 => self.partition = Some(self.dice.next()),
            6..=8 => self.partition = None,
            9 => self.slow = Some(node),
            10 => self.slow = None,
            11 => self.node(node).disk.is_full = true,
            12..=13 => {
                (1..=self.plan.nodes).for_each(|id| self.node(NodeId(id)).disk.is_full = false)
            }
            14 => self.node(node).persist(),
            15..=16 if self.plan.changes && self.admins.len() < 3 => self.another_admin(),
            17 if !self.admins.is_empty() && self.dice.once_in(2) => {
                let index = self.dice.below(self.admins.len());
                self.admins.remove(index);
            }
            _ if self.computes.is_empty() => self.another_compute(),
            _ => {}
        }
    }

    /// A compute starts; it may find a server that was left running.
    fn another_compute(&mut self) {
        let configuration = self.some_configuration();
        let finds = !self.left.is_empty() && !self.dice.once_in(3);
        let left = finds.then(|| self.left.remove(0));
        self.new_compute(configuration, left);
    }

    fn another_admin(&mut self) {
        let known = self.some_configuration();
        let count = 1 + self.dice.below(3);
        let mut wanted = Vec::new();
        while wanted.len() < count {
            let node = self.some_node();
            if !wanted.contains(&node) {
                wanted.push(node);
            }
        }
        self.new_admin(known, wanted);
    }

    /// Everything works from here on: a change that was begun must end, a compute be elected, and new log committed.
    pub fn heal(&mut self) {
        self.faulty = false;
        (self.partition, self.slow) = (None, None);
        self.queue.clear();
        self.computes.clear();
        self.admins.clear();
        for node in &mut self.nodes {
            node.disk.is_full = false;
            if node.acceptor.is_none() {
                node.start();
            }
        }
        let mut configuration = self.newest();
        if self.plan.changes {
            configuration = self.end_changes(configuration);
        }
        let acknowledged = self.checker.committed().to_vec();
        self.work(configuration.clone());
        assert!(self.checker.committed().len() > acknowledged.len(), "no progress");
        assert!(self.checker.committed().starts_with(&acknowledged));
        for member in configuration.all_members() {
            let commit = self.node(member).acceptor.as_ref().expect("runs").commit_lsn();
            let all = self.computes[0].proposer.commit_lsn();
            assert_eq!(commit, all, "news of the commit reaches {member}");
        }
    }

    fn newest(&self) -> Configuration {
        let first = Configuration::first(nodes(1..=self.plan.members)).expect("members");
        let followed = self.nodes.iter().map(|node| node.disk.control.configuration.clone());
        followed.chain([first]).max_by_key(Configuration::generation).expect("one")
    }

    /// A change to the first nodes, whatever was under way.
    fn end_changes(&mut self, mut known: Configuration) -> Configuration {
        let wanted = nodes(1..=self.plan.members);
        for _ in 0..20 {
            self.new_admin(known.clone(), wanted.clone());
            self.run_for(3_000);
            let phase = self.admins.pop().map(|admin| admin.change.phase().clone());
            self.computes.clear();
            self.queue.clear();
            match phase {
                Some(ChangePhase::Done(done)) if done.members() == wanted => return done,
                _ => known = self.newest(),
            }
        }
        panic!("the change does not end: {known:?}");
    }

    fn work(&mut self, configuration: Configuration) {
        for _ in 0..10 {
            self.computes.clear();
            self.queue.clear();
            self.new_compute(configuration.clone(), None);
            self.run_for(400);
            let compute = self.computes.first();
            if compute.is_some_and(|compute| compute.proposer.term_is_committed()) {
                let id = self.computes[0].id;
                let term = self.computes[0].proposer.elected().expect("elected").term.0;
                let before = self.computes[0].log().len();
                while self.computes[0].log().len() == before {
                    self.write(0, term);
                }
                self.after(1, Event::Beat { compute: id });
                self.run_for(600);
                let compute = &self.computes[0];
                assert_eq!(compute.commit_len(), compute.log().len(), "everything is committed");
                return;
            }
        }
        panic!("nobody gets elected in {configuration:?}");
    }

    fn run_for(&mut self, time: u64) {
        let end = self.now + time;
        while self.queue.first_key_value().is_some_and(|((at, _), _)| *at <= end) {
            self.step();
        }
    }
}
