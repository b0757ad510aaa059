//! Which safekeeper a timeline is read from.
//!
//! All of them hold the same committed log, each up to where it knows of: any will do that has more than we have. Of
//! several the one with most is taken, of equals the one with the lowest number (those that may hear of commits later have the
//! highest), and one that has just failed us only when there is no other.

use std::{cmp::Reverse, time::Duration};

use parking_lot::Mutex;
use tokio::time::Instant;
use treering_types::{Lsn, NodeId};

/// Who was not heard of for so long is not there.
const HEARD_FOR: Duration = Duration::from_secs(6);
/// Log that is kept at the others for a safekeeper that is behind or away. Beyond that it is given up, and that one has
/// to get it elsewhere.
const KEPT_BYTES_MAX: u64 = 1 << 30;
/// A horizon is told again after this: a safekeeper that was started again has forgotten it.
const TOLD_FOR: Duration = Duration::from_secs(30);

/// What is known of the safekeepers' copies of one timeline's log.
#[derive(Debug, Default)]
pub struct Sources(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    known: Vec<Source>,
    avoided: Option<NodeId>,
}

#[derive(Debug)]
struct Source {
    node: NodeId,
    commit_lsn: Lsn,
    heard_at: Instant,
    /// The horizon that it was told last, and when.
    told: Option<(Lsn, Instant)>,
}

impl Sources {
    /// A safekeeper says how far it knows the log to be committed.
    pub fn note(&self, node: NodeId, commit_lsn: Lsn, heard_at: Instant) {
        let mut state = self.0.lock();
        match state.known.iter_mut().find(|source| source.node == node) {
            Some(source) => (source.commit_lsn, source.heard_at) = (commit_lsn, heard_at),
            None => state.known.push(Source { node, commit_lsn, heard_at, told: None }),
        }
    }

    /// Whom to read from who has the log only up to `have`.
    pub fn choose(&self, have: Lsn, now: Instant) -> Option<NodeId> {
        let state = self.0.lock();
        let has_more = |source: &&Source| {
            source.commit_lsn > have && now.duration_since(source.heard_at) < HEARD_FOR
        };
        let known = state.known.iter().filter(has_more);
        let best = known.max_by_key(|source| {
            let is_trusted = Some(source.node) != state.avoided;
            (is_trusted, source.commit_lsn, Reverse(source.node))
        });
        best.map(|source| source.node)
    }

    /// `node` has failed us.
    pub fn avoid(&self, node: NodeId) {
        self.0.lock().avoided = Some(node);
    }

    /// Up to where all of so many safekeepers have the log: what lies behind one of them may still need, and has from the
    /// others.
    pub fn everywhere(&self, safekeepers: usize) -> Lsn {
        if safekeepers <= 1 {
            return Lsn::MAX;
        }
        let state = self.0.lock();
        let commit_lsns = || state.known.iter().map(|source| source.commit_lsn);
        let all_are_known = state.known.len() == safekeepers;
        let lowest = commit_lsns().min().filter(|_| all_are_known).unwrap_or_default();
        let highest = commit_lsns().max().unwrap_or_default();
        lowest.max(Lsn(highest.0.saturating_sub(KEPT_BYTES_MAX)))
    }

    /// Whether `node` is to be told now that no WAL before `horizon` is needed.
    pub fn shall_tell(&self, node: NodeId, horizon: Lsn, now: Instant) -> bool {
        let mut state = self.0.lock();
        let Some(source) = state.known.iter_mut().find(|source| source.node == node) else {
            return false;
        };
        let is_known =
            |(told, at): (Lsn, Instant)| told >= horizon && now.duration_since(at) < TOLD_FOR;
        if source.told.is_some_and(is_known) {
            return false;
        }
        source.told = Some((horizon, now));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: NodeId = NodeId(1);
    const B: NodeId = NodeId(2);

    #[test]
    fn the_one_with_most_that_did_not_fail_is_read_from() {
        let (sources, now) = (Sources::default(), Instant::now());
        assert_eq!(sources.choose(Lsn(0), now), None);
        sources.note(A, Lsn(40), now);
        sources.note(B, Lsn(48), now);
        assert_eq!(sources.choose(Lsn(32), now), Some(B));
        sources.avoid(B);
        assert_eq!(sources.choose(Lsn(32), now), Some(A));
        assert_eq!(sources.choose(Lsn(40), now), Some(B), "there is no other");
        assert_eq!(sources.choose(Lsn(48), now), None);
        let equals = Sources::default();
        equals.note(A, Lsn(48), now);
        equals.note(B, Lsn(48), now);
        assert_eq!(equals.choose(Lsn(40), now), Some(A));
        sources.avoid(A);
        let later = now + HEARD_FOR;
        sources.note(A, Lsn(40), later);
        assert_eq!(sources.choose(Lsn(32), later), Some(A), "nothing is heard of B");
    }

    #[test]
    fn log_is_kept_for_who_is_behind_within_bounds() {
        let (sources, now) = (Sources::default(), Instant::now());
        assert_eq!(sources.everywhere(1), Lsn::MAX);
        assert_eq!(sources.everywhere(2), Lsn(0));
        sources.note(A, Lsn(4000), now);
        assert_eq!(sources.everywhere(2), Lsn(0), "B was not heard of");
        sources.note(B, Lsn(3000), now);
        assert_eq!(sources.everywhere(2), Lsn(3000));
        sources.note(A, Lsn(KEPT_BYTES_MAX + 5000), now);
        assert_eq!(sources.everywhere(2), Lsn(5000));
    }

    #[test]
    fn a_horizon_is_told_when_it_moves_and_now_and_then() {
        let (sources, now) = (Sources::default(), Instant::now());
        assert!(!sources.shall_tell(A, Lsn(16), now), "nobody knows it");
        sources.note(A, Lsn(40), now);
        assert!(sources.shall_tell(A, Lsn(16), now) && !sources.shall_tell(A, Lsn(16), now));
        assert!(sources.shall_tell(A, Lsn(32), now));
        assert!(sources.shall_tell(A, Lsn(32), now + TOLD_FOR));
    }
}
