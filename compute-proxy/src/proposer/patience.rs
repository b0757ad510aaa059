//! Which members may hear of the log later than the others.
//!
//! On one machine every member that syncs each commit takes cores and disk from those that the commit waits for. On machines of
//! their own all are told at once: the commit then waits for whoever is quickest.

use treering_consensus::Configuration;
use treering_types::NodeId;

use crate::Safekeeper;

/// Where all members share a machine: as many as a quorum can do without, those with the highest numbers. None while the members
/// change.
pub(super) fn patient_members(
    safekeepers: &[Safekeeper],
    configuration: &Configuration,
) -> Vec<NodeId> {
    let host = |node: &NodeId| {
        let found = safekeepers.iter().find(|known| known.node == *node)?;
        found.wal.rsplit_once(':').map(|(host, _)| host)
    };
    let members = configuration.members();
    let first = members.first().and_then(host);
    let is_one_machine = first.is_some() && members.iter().all(|member| host(member) == first);
    if !is_one_machine || configuration.new_members().is_some() {
        return Vec::new();
    }
    members[members.len() / 2 + 1..].to_vec()
}

#[cfg(test)]
mod tests {
    use treering_consensus::Generation;

    use super::*;

    fn at(addresses: &[&str]) -> Vec<Safekeeper> {
        let safekeeper = |(nth, address): (usize, &&str)| Safekeeper {
            node: NodeId(nth as u64 + 1),
            wal: (*address).to_owned(),
            http: String::new(),
        };
        addresses.iter().enumerate().map(safekeeper).collect()
    }

    fn members(numbers: &[u64]) -> Vec<NodeId> {
        numbers.iter().copied().map(NodeId).collect()
    }

    fn patient(addresses: &[&str], numbers: &[u64]) -> Vec<NodeId> {
        let configuration = Configuration::first(members(numbers)).unwrap();
        patient_members(&at(addresses), &configuration)
    }

    #[test]
    fn on_one_machine_a_quorum_is_told_at_once() {
        let here = ["127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3", "127.0.0.1:4", "127.0.0.1:5"];
        assert_eq!(patient(&here, &[1]), []);
        assert_eq!(patient(&here, &[1, 2]), []);
        assert_eq!(patient(&here, &[1, 2, 3]), members(&[3]));
        assert_eq!(patient(&here, &[1, 2, 3, 4]), members(&[4]));
        assert_eq!(patient(&here, &[1, 2, 3, 4, 5]), members(&[4, 5]));
        assert_eq!(patient(&here, &[2, 4, 5]), members(&[5]));
    }

    #[test]
    fn on_several_machines_all_are_told_at_once() {
        assert_eq!(patient(&["a:1", "b:1", "c:1"], &[1, 2, 3]), []);
        assert_eq!(patient(&["a:1", "a:2", "b:1"], &[1, 2, 3]), [], "b may be the slow one");
        assert_eq!(patient(&["[::1]:1", "[::1]:2", "[::1]:3"], &[1, 2, 3]), members(&[3]));
        assert_eq!(patient(&["a:1", "a:2"], &[1, 2, 3]), [], "nobody knows where the third is");
    }

    #[test]
    fn while_members_change_all_are_told_at_once() {
        let (old, new) = (members(&[1, 2, 3]), Some(members(&[2, 3, 4])));
        let joint = Configuration::new(Generation(2), old, new).unwrap();
        assert_eq!(patient_members(&at(&["a:1", "a:2", "a:3", "a:4"]), &joint), []);
    }
}
