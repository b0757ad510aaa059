//! Who decides: the members of a quorum, and the order in which memberships follow each other.
//!
//! `docs/formats/quorum.md` has the protocol and the argument why it is safe. In short: a *joint* configuration
//! names an old and a new set, and everything under it needs a majority of both; a *final* one names one set.
//! Configurations are ordered by generation, and everyone who meets a higher one follows it.

use std::fmt;

use treering_types::NodeId;

/// Orders configurations. Odd for final ones (1 is what a timeline is created with), even for joint ones; 0 is
/// a list of members that nobody has agreed on by this protocol.
///
/// Not the generation of an attached pageserver.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Generation(pub u64);

impl Generation {
    /// The lowest generation above this one that a joint configuration can have.
    pub fn next_joint(self) -> Generation {
        Generation(self.0.saturating_add(2) & !1)
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// The members of a quorum; sets are sorted and without repetition.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Configuration {
    generation: Generation,
    members: Vec<NodeId>,
    new_members: Option<Vec<NodeId>>,
}

/// Sets and a generation that make no configuration.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ConfigurationError {
    #[error("a quorum without members")]
    Empty,
    #[error("node {0} is named twice")]
    Twice(NodeId),
    #[error(
        "generation {0} cannot be that of such a configuration: joint ones are even, others odd"
    )]
    Generation(Generation),
}

impl Configuration {
    /// Checks the sets and the parity of the generation. Generation 0 may have members or none, and is never joint.
    pub fn new(
        generation: Generation,
        members: Vec<NodeId>,
        new_members: Option<Vec<NodeId>>,
    ) -> Result<Configuration, ConfigurationError> {
        let is_joint = new_members.is_some();
        let fits = match generation.0 {
            0 => !is_joint,
            number => (number % 2 == 0) == is_joint,
        };
        if !fits {
            return Err(ConfigurationError::Generation(generation));
        }
        let members = match members.is_empty() && generation.0 == 0 {
            true => members,
            false => sorted(members)?,
        };
        let new_members = new_members.map(sorted).transpose()?;
        Ok(Configuration { generation, members, new_members })
    }

    /// What an acceptor has that was never told of one.
    pub fn none() -> Configuration {
        Configuration::default()
    }

    /// Members as their owner lists them, generation 0: any configuration that somebody agreed on replaces it.
    pub fn unnumbered(members: Vec<NodeId>) -> Result<Configuration, ConfigurationError> {
        let members = sorted(members)?;
        Ok(Configuration { generation: Generation(0), members, new_members: None })
    }

    /// What a timeline is created with.
    pub fn first(members: Vec<NodeId>) -> Result<Configuration, ConfigurationError> {
        Configuration::new(Generation(1), members, None)
    }

    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// The old set of a joint configuration, the only one of another.
    pub fn members(&self) -> &[NodeId] {
        &self.members
    }

    pub fn new_members(&self) -> Option<&[NodeId]> {
        self.new_members.as_deref()
    }

    /// Everyone in either set, in order.
    pub fn all_members(&self) -> Vec<NodeId> {
        let mut all = self.members.clone();
        all.extend(self.new_members.iter().flatten());
        all.sort();
        all.dedup();
        all
    }

    pub fn contains(&self, node: NodeId) -> bool {
        self.sets().any(|set| set.contains(&node))
    }

    /// True when the nodes that satisfy `has` hold a majority of each set.
    pub fn is_quorum(&self, has: impl Fn(NodeId) -> bool) -> bool {
        self.sets().all(|set| is_majority(set, &has))
    }

    /// The highest value that a majority of each set has reached; `None` when no majority has any.
    pub fn quorum_value<T: Ord + Copy>(&self, value: impl Fn(NodeId) -> Option<T>) -> Option<T> {
        let of_set = |set: &[NodeId]| {
            let mut reached: Vec<T> = set.iter().filter_map(|node| value(*node)).collect();
            reached.sort_by(|a, b| b.cmp(a));
            reached.get(set.len() / 2).copied()
        };
        // The lesser of two majorities; one missing is less than any.
        self.sets().map(of_set).min().flatten()
    }

    fn sets(&self) -> impl Iterator<Item = &[NodeId]> {
        std::iter::once(&self.members[..]).chain(self.new_members.as_deref())
    }
}

/// True when the nodes that satisfy `has` are more than half of `set`.
pub fn is_majority(set: &[NodeId], has: impl Fn(NodeId) -> bool) -> bool {
    set.iter().filter(|node| has(**node)).count() > set.len() / 2
}

fn sorted(mut set: Vec<NodeId>) -> Result<Vec<NodeId>, ConfigurationError> {
    if set.is_empty() {
        return Err(ConfigurationError::Empty);
    }
    set.sort();
    match set.windows(2).find(|pair| pair.first() == pair.last()) {
        Some(pair) => Err(ConfigurationError::Twice(pair[0])),
        None => Ok(set),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(ids: &[u64]) -> Vec<NodeId> {
        ids.iter().copied().map(NodeId).collect()
    }

    fn joint(old: &[u64], new: &[u64]) -> Configuration {
        Configuration::new(Generation(2), nodes(old), Some(nodes(new))).unwrap()
    }

    #[test]
    fn generations_fit_their_kind() {
        let make = |generation, new: Option<&[u64]>| {
            Configuration::new(Generation(generation), nodes(&[1]), new.map(nodes))
        };
        assert!(make(1, None).is_ok() && make(2, Some(&[2])).is_ok() && make(0, None).is_ok());
        for bad in [make(2, None), make(1, Some(&[2])), make(0, Some(&[2]))] {
            assert!(matches!(bad, Err(ConfigurationError::Generation(_))));
        }
        assert_eq!([0, 1, 2, 3].map(|g| Generation(g).next_joint().0), [2, 2, 4, 4]);
    }

    #[test]
    fn sets_are_sets() {
        let make = |ids| Configuration::first(nodes(ids));
        assert_eq!(make(&[3, 1]).unwrap().members(), nodes(&[1, 3]));
        assert_eq!(make(&[]), Err(ConfigurationError::Empty));
        assert_eq!(make(&[2, 1, 2]), Err(ConfigurationError::Twice(NodeId(2))));
    }

    #[test]
    fn a_joint_quorum_is_a_majority_of_both() {
        let configuration = joint(&[1, 2, 3], &[3, 4, 5]);
        let is_quorum = |ids: &[u64]| configuration.is_quorum(|node| ids.contains(&node.0));
        assert!(!is_quorum(&[1, 2, 3]) && !is_quorum(&[3, 4, 5]) && !is_quorum(&[1, 2, 4]));
        assert!(is_quorum(&[1, 3, 4]) && is_quorum(&[1, 2, 4, 5]));
        let reached =
            |node: NodeId| [None, Some(90), Some(80), Some(70), None, Some(60)][node.0 as usize];
        assert_eq!(configuration.quorum_value(reached), Some(60));
        assert_eq!(joint(&[1, 2], &[4]).quorum_value(reached), None);
        assert!(!Configuration::none().is_quorum(|_| true));
    }
}
