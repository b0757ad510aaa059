//! The LSNs of a timeline that must stay readable: some below the cut-off, and every one from it on.

use treering_types::{Lsn, LsnRange};

/// See the module. Taken once per merge; what is retained later lies at or above the cut-off, and so is retained here too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Points {
    cut_off: Lsn,
    /// Rising, all below the cut-off.
    below: Vec<Lsn>,
}

impl Points {
    /// `lsns` in any order; those from the cut-off on say nothing new.
    pub fn new(cut_off: Lsn, lsns: impl IntoIterator<Item = Lsn>) -> Points {
        let mut below: Vec<Lsn> = lsns.into_iter().filter(|lsn| *lsn < cut_off).collect();
        below.sort_unstable();
        below.dedup();
        Points { cut_off, below }
    }

    /// These and `lsns`.
    pub fn and(&self, lsns: impl IntoIterator<Item = Lsn>) -> Points {
        Points::new(self.cut_off, self.below.iter().copied().chain(lsns))
    }

    pub fn cut_off(&self) -> Lsn {
        self.cut_off
    }

    /// The first retained LSN in `from..before`.
    pub fn first_in(&self, from: Lsn, before: Lsn) -> Option<Lsn> {
        let single = self.below.get(self.below.partition_point(|lsn| *lsn < from));
        let first = single.copied().unwrap_or_else(|| from.max(self.cut_off));
        (first < before).then_some(first)
    }

    /// How many single LSNs lie in `lsns`.
    pub fn count_in(&self, lsns: LsnRange) -> u32 {
        let count = self.below.iter().filter(|lsn| lsns.contains(**lsn)).count();
        u32::try_from(count).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn single_ones_and_all_from_the_cut_off_on() {
        let points = Points::new(Lsn(100), [70, 20, 70, 100, 300].map(Lsn));
        let first = |from, before| points.first_in(Lsn(from), Lsn(before)).map(|lsn| lsn.0);
        assert_eq!(first(0, 20), None);
        assert_eq!(first(0, 21), Some(20));
        assert_eq!(first(21, 70), None);
        assert_eq!(first(70, 71), Some(70));
        assert_eq!(first(71, 100), None);
        assert_eq!(first(71, 500), Some(100));
        assert_eq!(first(150, 151), Some(150));
        assert_eq!(first(150, 150), None);
        let lsns = LsnRange { start: Lsn(20), end: Lsn(70) };
        assert_eq!(points.count_in(lsns), 1);
    }
}
