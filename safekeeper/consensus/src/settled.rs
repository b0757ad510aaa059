//! Where a log ends that nobody writes, told without a new term.
//!
//! An election finds the end of a log too, and commits it, at the price of a vote, a history entry and several syncs on every member.
//! Mostly there is nothing to find and nothing to commit: the last writer has gone and told everyone of its last commit. Then it
//! is enough to ask.
//!
//! Let a majority of the members say, each at a moment of its own, how far it has flushed and what it knows to be committed. Let *f* be the highest of
//! the first, *c* the highest of the second. If *f* = *c*, then this position
//!
//! - **covers everything that was acknowledged before the first of them was asked.** What is acknowledged up to X was flushed up to X by a majority in
//!   one term; one of its members is among those asked. It flushed X before it was asked, and a log is never cut before what is committed: it
//!   says at least X. So X ≤ *f*;
//! - **is committed for good.** A member knows only of commits that a proposer made, and every later log begins with them;
//! - **names one log.** All up to X and all up to *c* are prefixes of the same committed log, whatever else the members hold.
//!
//! If *f* > *c*, somebody holds what may or may not be committed: that takes an election, and the next one who asks finds it settled. Terms do not
//! matter here. A proposer that appends meanwhile is no worse than one that appends right after.

use treering_types::Lsn;

use crate::{Configuration, Generation};

/// What a member says of its log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MemberEnd {
    /// Of the configuration that the member follows.
    pub generation: Generation,
    pub flush_lsn: Lsn,
    pub commit_lsn: Lsn,
}

/// The committed position that covers everything acknowledged before the members were asked, if the `answers` (at most one of each member of
/// `configuration`, as they were given, not older) settle it. A member that has no log of the timeline answers with where the log begins.
pub fn settled_end(answers: &[MemberEnd], configuration: &Configuration) -> Option<Lsn> {
    // Where members are changing or have changed further, an election finds out who decides. What was acknowledged under `configuration` a
    // majority of its members holds, and a change that was decided after it a majority of them knows of.
    let is_newest = answers.iter().all(|end| end.generation <= configuration.generation());
    let is_majority = answers.len() > configuration.members().len() / 2;
    if configuration.new_members().is_some() || !is_newest || !is_majority {
        return None;
    }
    let flushed = answers.iter().map(|end| end.flush_lsn).max()?;
    let committed = answers.iter().map(|end| end.commit_lsn).max()?;
    (flushed == committed).then_some(committed)
}

#[cfg(test)]
mod tests {
    use treering_types::NodeId;

    use super::*;

    fn ends(pairs: &[(u64, u64)]) -> Vec<MemberEnd> {
        let end = |&(flush, commit)| MemberEnd {
            generation: Generation(1),
            flush_lsn: Lsn(flush),
            commit_lsn: Lsn(commit),
        };
        pairs.iter().map(end).collect()
    }

    fn members(count: u64) -> Configuration {
        Configuration::first((1..=count).map(NodeId).collect()).unwrap()
    }

    #[test]
    fn one_member_that_has_committed_all_it_holds() {
        assert_eq!(settled_end(&ends(&[(40, 40)]), &members(1)), Some(Lsn(40)));
        assert_eq!(settled_end(&ends(&[(48, 40)]), &members(1)), None);
    }

    #[test]
    fn a_member_of_a_later_configuration_does_not_settle_it() {
        let mut answers = ends(&[(40, 40), (40, 40)]);
        answers[1].generation = Generation(2);
        assert_eq!(settled_end(&answers, &members(3)), None);
        answers[1].generation = Generation(0);
        assert_eq!(settled_end(&answers, &members(3)), Some(Lsn(40)), "it has no log yet");
    }

    #[test]
    fn members_that_are_changing_do_not_settle_it() {
        let new = vec![NodeId(2), NodeId(4)];
        let joint = Configuration::new(Generation(2), vec![NodeId(1)], Some(new)).unwrap();
        assert_eq!(settled_end(&ends(&[(40, 40)]), &joint), None);
    }

    #[test]
    fn less_than_a_majority_says_nothing() {
        assert_eq!(settled_end(&[], &members(1)), None);
        assert_eq!(settled_end(&ends(&[(40, 40)]), &members(3)), None);
        assert_eq!(settled_end(&ends(&[(40, 40), (40, 40)]), &members(4)), None);
    }

    #[test]
    fn one_may_lag_behind_and_none_may_hold_more() {
        assert_eq!(settled_end(&ends(&[(40, 40), (32, 24)]), &members(3)), Some(Lsn(40)));
        // Perhaps acknowledged with the third.
        assert_eq!(settled_end(&ends(&[(40, 40), (48, 32)]), &members(3)), None);
    }
}
