//! Which term wrote which part of the log.

use treering_types::{Lsn, Term};

/// The point where a term's log begins: bytes from `lsn` to the next entry were written in `term`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TermStart {
    pub term: Term,
    pub lsn: Lsn,
}

/// All terms that wrote to a log, oldest first: terms strictly increase, positions never decrease.
///
/// An acceptor persists the whole history of its proposer at once, so entries may lie beyond the bytes that it
/// holds; such entries do not count as *its* log until its `flush_lsn` has reached them.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct TermHistory(Vec<TermStart>);

/// A list of entries that is no history.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("term history goes back at term {term}, {lsn}")]
pub struct HistoryError {
    pub term: Term,
    pub lsn: Lsn,
}

impl TermHistory {
    /// Checks the order of the entries.
    pub fn from_entries(entries: Vec<TermStart>) -> Result<TermHistory, HistoryError> {
        for pair in entries.windows(2) {
            if let [earlier, later] = pair
                && (later.term <= earlier.term || later.lsn < earlier.lsn)
            {
                return Err(HistoryError { term: later.term, lsn: later.lsn });
            }
        }
        Ok(TermHistory(entries))
    }

    pub fn entries(&self) -> &[TermStart] {
        &self.0
    }

    /// The last entry, reached or not.
    pub fn last(&self) -> Option<TermStart> {
        self.0.last().copied()
    }

    /// Where `term` begins, if it wrote to this log.
    pub fn start_of(&self, term: Term) -> Option<TermStart> {
        self.0.iter().rev().find(|entry| entry.term == term).copied()
    }

    /// The entries that a log ending at `end` has reached; one that begins exactly there counts.
    pub fn up_to(&self, end: Lsn) -> TermHistory {
        TermHistory(self.0.iter().take_while(|entry| entry.lsn <= end).copied().collect())
    }

    /// The term of a log that ends at `end` (`last_log_term`); zero when no term has written.
    pub fn last_term_at(&self, end: Lsn) -> Term {
        let reached = self.0.iter().take_while(|entry| entry.lsn <= end).last();
        reached.map_or(Term(0), |entry| entry.term)
    }

    /// This history with one more term.
    pub fn followed_by(mut self, next: TermStart) -> Result<TermHistory, HistoryError> {
        self.0.push(next);
        TermHistory::from_entries(self.0)
    }

    /// How far a log with this history that ends at `end` agrees with one that has `other`: everything up to
    /// the answer is the same in both (as far as the other one reaches), everything after it must be cut.
    pub fn divergence(&self, end: Lsn, other: &TermHistory) -> Lsn {
        let common = self.0.iter().zip(&other.0).take_while(|(a, b)| a == b).count();
        let stop = |history: &TermHistory| history.0.get(common).map_or(Lsn::MAX, |e| e.lsn);
        end.min(stop(self)).min(stop(other))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(entries: &[(u64, u64)]) -> TermHistory {
        let entries =
            entries.iter().map(|(term, lsn)| TermStart { term: Term(*term), lsn: Lsn(*lsn) });
        TermHistory::from_entries(entries.collect()).unwrap()
    }

    #[test]
    fn order_is_checked() {
        let entry = |term, lsn| TermStart { term: Term(term), lsn: Lsn(lsn) };
        assert!(TermHistory::from_entries(vec![entry(1, 8), entry(1, 16)]).is_err());
        assert!(TermHistory::from_entries(vec![entry(1, 8), entry(2, 0)]).is_err());
        assert!(history(&[(1, 8)]).followed_by(entry(2, 8)).is_ok());
    }

    #[test]
    fn an_entry_counts_once_it_is_reached() {
        let log = history(&[(1, 100), (3, 200)]);
        assert_eq!(log.last_term_at(Lsn(99)), Term(0));
        assert_eq!(log.last_term_at(Lsn(199)), Term(1));
        assert_eq!(log.last_term_at(Lsn(200)), Term(3));
        assert_eq!(log.up_to(Lsn(199)), history(&[(1, 100)]));
    }

    #[test]
    fn divergence_points() {
        type Entries = &'static [(u64, u64)];
        let cases: [(Entries, u64, Entries, u64); 7] = [
            (&[], 100, &[(1, 100)], 100),
            (&[(1, 100)], 250, &[(1, 100), (2, 200)], 200),
            (&[(1, 100)], 150, &[(1, 100), (2, 200)], 150),
            (&[(1, 100), (2, 200)], 300, &[(1, 100), (3, 200)], 200),
            (&[(1, 100), (2, 200)], 300, &[(1, 100), (2, 200), (3, 280)], 280),
            (&[(1, 100), (2, 200)], 300, &[(3, 100)], 100),
            // The acceptor never reached the entry that it was told of.
            (&[(1, 100), (2, 200)], 150, &[(1, 100), (3, 180)], 150),
        ];
        for (own, end, other, expected) in cases {
            let found = history(own).divergence(Lsn(end), &history(other));
            assert_eq!(found, Lsn(expected), "{own:?} to {end} against {other:?}");
        }
    }
}
