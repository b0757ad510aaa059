//! Branch points: where timelines fork, and what that makes the ancestor keep.

use std::{collections::BTreeSet, sync::Arc};

use treering_types::{Lsn, TimelineId};

use crate::{
    error::{EngineError, Result},
    timeline::Timeline,
};

/// LSNs at which a timeline must stay readable whatever gc drops: gc plans with this set, under its lock.
#[derive(Clone, Debug, Default)]
pub struct RetainedSet {
    branches: BTreeSet<(Lsn, TimelineId)>,
}

impl RetainedSet {
    /// `child` forks at `lsn`.
    pub(crate) fn add_branch(&mut self, lsn: Lsn, child: TimelineId) {
        self.branches.insert((lsn, child));
    }

    pub(crate) fn remove_branch(&mut self, lsn: Lsn, child: TimelineId) {
        self.branches.remove(&(lsn, child));
    }

    /// The retained LSNs, rising.
    pub fn lsns(&self) -> Vec<Lsn> {
        let mut lsns: Vec<Lsn> = self.branches.iter().map(|(lsn, _)| *lsn).collect();
        lsns.dedup();
        lsns
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
