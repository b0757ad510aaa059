//! LSN leases of one timeline: where computes read, and gc therefore keeps what a read needs.
//!
//! A holder has one lease, at one LSN, for a bounded time; taking it again renews and moves it. A compute that writes moves
//! its lease forward as its commits are known, one that is pinned stays where it is, a replica that follows moves with
//! what it has replayed: to this table all are the same.
//!
//! In memory only. After a restart the table is empty, the engine retains what was leased before, and no gc runs for one lease
//! length: time for every holder to come again.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use parking_lot::{Mutex, MutexGuard};
use treering_engine::EngineError;
use treering_types::Lsn;
use treering_wire::lease::Holder;

use crate::error::ServiceError;

/// Holders on one timeline: far more than computes that could read it.
const HOLDERS_MAX: usize = 4096;

/// See the module.
#[derive(Debug)]
pub struct Leases {
    /// How long a lease lasts that is not renewed.
    length: Duration,
    held: Mutex<BTreeMap<Holder, Held>>,
}

#[derive(Clone, Copy, Debug)]
struct Held {
    lsn: Lsn,
    until: Instant,
}

/// A lease as it is shown.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Lease {
    pub holder: Holder,
    pub lsn: Lsn,
    pub left: Duration,
}

impl Leases {
    pub fn new(length: Duration) -> Leases {
        Leases { length, held: Mutex::default() }
    }

    /// Gives `holder` a lease at `lsn` in place of the one it has; how long it lasts. May lie above what is ingested: nothing
    /// waits.
    ///
    /// `keep` hands the engine all LSNs that are held then, under the table's lock: it takes them at the lock under which its cut-off
    /// moves, or refuses what gc may have been at. So no lease is granted on what a plan gave up, and every plan honours
    /// every lease granted before it.
    ///
    /// # Errors
    /// Those of `keep`, TooManyLeases; the lease that `holder` has stays.
    pub fn take(
        &self,
        holder: Holder,
        lsn: Lsn,
        now: Instant,
        keep: impl FnOnce(BTreeSet<Lsn>) -> Result<(), EngineError>,
    ) -> Result<Duration, ServiceError> {
        let mut held = self.unexpired(now);
        if held.len() >= HOLDERS_MAX && !held.contains_key(&holder) {
            return Err(ServiceError::TooManyLeases { most: HOLDERS_MAX });
        }
        let before = held.insert(holder.clone(), Held { lsn, until: now + self.length });
        if let Err(error) = keep(lsns(&held)) {
            match before {
                Some(before) => held.insert(holder, before),
                None => held.remove(&holder),
            };
            return Err(error.into());
        }
        Ok(self.length)
    }

    /// The holder reads no more. `keep` as for [`Leases::take`]; it has nothing to refuse.
    pub fn release(
        &self,
        holder: &Holder,
        now: Instant,
        keep: impl FnOnce(BTreeSet<Lsn>) -> Result<(), EngineError>,
    ) {
        let mut held = self.unexpired(now);
        if held.remove(holder).is_some() {
            shrink(&held, keep);
        }
    }

    /// Lets the engine know what has run out: to be called now and then, for nothing is collected that it believes held.
    pub fn expire(
        &self,
        now: Instant,
        keep: impl FnOnce(BTreeSet<Lsn>) -> Result<(), EngineError>,
    ) {
        shrink(&self.unexpired(now), keep);
    }

    /// All leases, by holder.
    pub fn list(&self, now: Instant) -> Vec<Lease> {
        let lease = |(holder, held): (&Holder, &Held)| Lease {
            holder: holder.clone(),
            lsn: held.lsn,
            left: held.until.saturating_duration_since(now),
        };
        self.unexpired(now).iter().map(lease).collect()
    }

    pub fn count(&self, now: Instant) -> usize {
        self.unexpired(now).len()
    }

    /// The table, rid of what has run out.
    fn unexpired(&self, now: Instant) -> MutexGuard<'_, BTreeMap<Holder, Held>> {
        let mut held = self.held.lock();
        held.retain(|_, held| held.until > now);
        held
    }
}

fn lsns(held: &BTreeMap<Holder, Held>) -> BTreeSet<Lsn> {
    held.values().map(|held| held.lsn).collect()
}

fn shrink(
    held: &BTreeMap<Holder, Held>,
    keep: impl FnOnce(BTreeSet<Lsn>) -> Result<(), EngineError>,
) {
    if let Err(error) = keep(lsns(held)) {
        // The engine keeps more than it has to, until the next call.
        tracing::warn!(%error, "LSN leases that ended stay retained");
    }
}

#[cfg(test)]
#[path = "leases_tests.rs"]
mod tests;
