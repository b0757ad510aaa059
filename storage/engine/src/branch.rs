//! Branch points: where timelines fork, and what that makes the ancestor keep.

use std::{collections::BTreeSet, sync::Arc};

use treering_types::{Lsn, TimelineId};

use crate::{
    error::{EngineError, Result},
    timeline::Timeline,
};

/// LSNs at which a timeline must stay readable whatever gc drops: gc plans with this set, under its lock.
///
/// Invariant: what may be read has been retained ever since it was written. So nothing below the cut-off is added that is not in
/// the set already, and the cut-off never goes back.
#[derive(Clone, Debug, Default)]
pub struct RetainedSet {
    cut_off: Lsn,
    branches: BTreeSet<(Lsn, TimelineId)>,
    leases: BTreeSet<Lsn>,
    /// Leases from before the engine was opened, until their holders have had time to ask again.
    inherited: BTreeSet<Lsn>,
}

impl RetainedSet {
    pub(crate) fn new(cut_off: Lsn, inherited: impl IntoIterator<Item = Lsn>) -> RetainedSet {
        let inherited = inherited.into_iter().collect();
        RetainedSet { cut_off, inherited, ..RetainedSet::default() }
    }

    /// Everything from here on is retained.
    pub fn cut_off(&self) -> Lsn {
        self.cut_off
    }

    /// True when the timeline can be read at `lsn`, as far as gc is concerned.
    pub fn allows(&self, lsn: Lsn) -> bool {
        let from = (lsn, TimelineId([0; 16]));
        lsn >= self.cut_off
            || self.leases.contains(&lsn)
            || self.inherited.contains(&lsn)
            || self.branches.range(from..).next().is_some_and(|(at, _)| *at == lsn)
    }

    /// True when nothing but one branch retains `lsn`.
    pub(crate) fn is_single(&self, lsn: Lsn) -> bool {
        let branches = self.branches.iter().filter(|(at, _)| *at == lsn).count();
        branches == 1 && !self.leases.contains(&lsn) && !self.inherited.contains(&lsn)
    }

    /// `child` forks at `lsn`.
    pub(crate) fn add_branch(&mut self, lsn: Lsn, child: TimelineId) {
        self.branches.insert((lsn, child));
    }

    pub(crate) fn remove_branch(&mut self, lsn: Lsn, child: TimelineId) {
        self.branches.remove(&(lsn, child));
    }

    pub(crate) fn set_leases(&mut self, leases: BTreeSet<Lsn>) {
        self.leases = leases;
    }

    pub(crate) fn forget_inherited(&mut self) {
        self.inherited.clear();
    }

    pub(crate) fn raise(&mut self, cut_off: Lsn) {
        self.cut_off = self.cut_off.max(cut_off);
    }

    /// Leased LSNs below the cut-off, rising.
    pub(crate) fn leases_below(&self) -> Vec<Lsn> {
        let below = self.leases.union(&self.inherited).filter(|lsn| **lsn < self.cut_off);
        below.copied().collect()
    }

    /// The single retained LSNs, rising: of branches and leases.
    pub fn lsns(&self) -> Vec<Lsn> {
        let branches = self.branches.iter().map(|(lsn, _)| *lsn);
        let all: BTreeSet<Lsn> =
            branches.chain(self.leases.iter().chain(&self.inherited).copied()).collect();
        all.into_iter().collect()
    }

    /// The branches and where they fork, by LSN.
    pub fn branches(&self) -> impl Iterator<Item = (TimelineId, Lsn)> {
        self.branches.iter().map(|(lsn, child)| (*child, *lsn))
    }
}

/// The timeline that holds `at` in the history of `from`: itself, or the ancestor whose log that part is.
///
/// # Errors
/// NotYet above `from`'s last record, BeforeHistory below the root's start.
pub(crate) fn owner_of(from: &Arc<Timeline>, at: Lsn) -> Result<Arc<Timeline>> {
    let last_record_lsn = from.last_record_lsn();
    if at > last_record_lsn {
        let timeline = from.id();
        return Err(EngineError::NotYet { timeline, wanted: at, last_record_lsn });
    }
    let mut owner = from;
    while at < owner.start_lsn() {
        owner = owner.ancestor().map(|(ancestor, _)| ancestor).ok_or_else(|| {
            let (timeline, start_lsn) = (owner.id(), owner.start_lsn());
            EngineError::BeforeHistory { timeline, wanted: at, start_lsn }
        })?;
    }
    Ok(Arc::clone(owner))
}
