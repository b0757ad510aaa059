//! What must stay readable: the cut-off, branch points, leases.
//!
//! The cut-off moves under the lock under which branches and leases are added, before anything is dropped on its account. It is durable
//! before a merge rests on it, and every later manifest carries it. A reader looks at it *after* it has taken its
//! snapshot of the layers: a snapshot that lacks something was published after the cut-off had moved past it.

use std::{collections::BTreeSet, sync::atomic::Ordering, time::Duration};

use treering_types::{Lsn, TimelineId};

use super::{Phase, Timeline};
use crate::{
    branch::RetainedSet,
    compact::Compacted,
    error::{EngineError, Result},
    time_index::TimeAnswer,
};

impl Timeline {
    /// LSNs that must stay readable here.
    pub fn retained(&self) -> RetainedSet {
        self.retained.lock().clone()
    }

    pub(crate) fn change_retained(&self, change: impl FnOnce(&mut RetainedSet)) {
        change(&mut self.retained.lock());
    }

    /// The cut-off and the single retained LSNs, of one moment.
    pub(crate) fn retained_now(&self) -> (Lsn, Vec<Lsn>) {
        let retained = self.retained.lock();
        (retained.cut_off(), retained.lsns())
    }

    /// What the manifest has to say: the cut-off (zero while it is the start), and leases below it.
    pub(crate) fn retention_to_keep(&self) -> (Lsn, Vec<Lsn>) {
        let retained = self.retained.lock();
        let moved = retained.cut_off() > self.start_lsn();
        let cut_off = if moved { retained.cut_off() } else { Lsn::INVALID };
        (cut_off, retained.leases_below())
    }

    /// Below it the timeline's own history (from its start on) has been given up, but for branches and leases.
    pub fn cut_off(&self) -> Lsn {
        Lsn(self.cut_off.load(Ordering::SeqCst))
    }

    /// The lowest LSN from which on everything can be read, ancestors included.
    pub fn earliest_lsn(&self) -> Lsn {
        let mut at = self;
        while at.cut_off() <= at.start_lsn()
            && let Some((ancestor, fork)) = at.ancestor()
            && ancestor.cut_off() <= fork
        {
            at = ancestor;
        }
        at.cut_off().max(at.start_lsn())
    }

    /// # Errors
    /// BelowCutOff when gc may have dropped what a read at `lsn` needs, here or in the ancestor whose log it lies in.
    pub(crate) fn check_kept(&self, lsn: Lsn) -> Result<()> {
        let mut owner = self;
        while lsn < owner.start_lsn()
            && let Some((ancestor, _)) = owner.ancestor()
        {
            owner = ancestor;
        }
        if lsn >= owner.cut_off() || owner.retained.lock().allows(lsn) {
            return Ok(());
        }
        Err(self.below_cut_off(lsn))
    }

    fn below_cut_off(&self, wanted: Lsn) -> EngineError {
        let (timeline, earliest) = (self.id(), self.earliest_lsn());
        let earliest_time = self.time_at(earliest).ok().flatten();
        EngineError::BelowCutOff { timeline, wanted, earliest, earliest_time }
    }

    /// Retains `at` for a branch.
    ///
    /// # Errors
    /// BelowCutOff when it is too late for that.
    pub(crate) fn retain_branch(&self, at: Lsn, child: TimelineId) -> Result<()> {
        {
            let mut retained = self.retained.lock();
            if retained.allows(at) {
                retained.add_branch(at, child);
                return Ok(());
            }
        }
        Err(self.below_cut_off(at))
    }

    /// Replaces the leased LSNs: from this timeline's start on, also above its last record; each stays readable until a call without it. The
    /// caller grants, renews and expires; leases last over a restart, for `gc_delay` unless they are set again.
    ///
    /// # Errors
    /// BelowCutOff or BeforeHistory for an LSN that cannot be leased here. Nothing has changed then.
    pub fn set_leases(&self, leases: impl IntoIterator<Item = Lsn>) -> Result<()> {
        let leases: BTreeSet<Lsn> = leases.into_iter().collect();
        let (timeline, start_lsn) = (self.id(), self.start_lsn());
        if let Some(wanted) = leases.first().copied().filter(|lsn| *lsn < start_lsn) {
            return Err(EngineError::BeforeHistory { timeline, wanted, start_lsn });
        }
        let refused = {
            let mut retained = self.retained.lock();
            let refused = leases.iter().copied().find(|lsn| !retained.allows(*lsn));
            if refused.is_none() {
                retained.set_leases(leases);
            }
            refused
        };
        refused.map_or(Ok(()), |lsn| Err(self.below_cut_off(lsn)))
    }

    /// Moves the cut-off to where the window of the engine's options begins at `now` (µs since 2000-01-01), and compacts what that
    /// makes worth while. Nothing moves before the engine has been open for `gc_delay`.
    ///
    /// # Errors
    /// As reads and [`Timeline::compact`].
    pub fn gc(&self, now: i64) -> Result<Compacted> {
        self.move_cut_off(now)?;
        self.compact(false)
    }

    /// The same with a cut-off of the caller's choice: at most `disk_consistent_lsn`, and never back.
    ///
    /// # Errors
    /// As [`Timeline::gc`].
    pub fn gc_below(&self, cut_off: Lsn) -> Result<Compacted> {
        self.raise_cut_off(cut_off)?;
        self.compact(false)
    }

    /// The first half of [`Timeline::gc`].
    pub(crate) fn move_cut_off(&self, now: i64) -> Result<()> {
        if !self.context.may_collect() || self.check_not_deleted()? != Phase::Live {
            return Ok(());
        }
        let wanted = self.window_start(now)?;
        if wanted <= self.cut_off() {
            return Ok(());
        }
        // "The earliest possible" must be a place where a branch can begin.
        let record_end = self.record_boundary(wanted)?.map_or(wanted, |boundary| boundary.end);
        self.raise_cut_off(record_end)
    }

    /// Where both windows, time and bytes, have begun.
    fn window_start(&self, now: i64) -> Result<Lsn> {
        let options = &self.context.options;
        let last = self.last_record_lsn();
        let by_bytes = Lsn(last.0.saturating_sub(options.pitr_bytes));
        let most = by_bytes.min(self.disk_consistent_lsn());
        if most <= self.cut_off() {
            return Ok(most);
        }
        let by_time = match self.lsn_before_time(now.saturating_sub(micros(options.pitr_window)))? {
            TimeAnswer::At(lsn) | TimeAnswer::NothingLater(lsn) => lsn,
            TimeAnswer::BeforeHistory(_) => Lsn::INVALID,
        };
        Ok(most.min(by_time))
    }

    /// Refuses from now on what lies below `wanted`, durably.
    fn raise_cut_off(&self, wanted: Lsn) -> Result<()> {
        if !self.context.may_collect() {
            return Ok(());
        }
        let mut manifest = self.manifest.lock();
        self.check_latch()?;
        self.check_not_deleted()?;
        {
            let mut retained = self.retained.lock();
            retained.forget_inherited();
            let cut_off = wanted.min(manifest.disk_consistent_lsn);
            if cut_off <= retained.cut_off() {
                return Ok(());
            }
            retained.raise(cut_off);
            self.cut_off.store(cut_off.0, Ordering::SeqCst);
        }
        self.change_manifest(&mut manifest, |_| ())?;
        self.note_saved(&manifest);
        Ok(())
    }
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}
