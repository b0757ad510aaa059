//! How fast the compaction thread merges: not at the cost of whoever uses the database, while there is time.
//!
//! Nobody waits for a merge as long as reads have few runs to look at. On a machine with a core to spare it goes on as fast as it can.
//! Where it has to wait for a core, somebody else wants that one: a nice thread would still keep its share of it, and turn over caches that are
//! being used. So it works in short stints with long rests between. The more runs wait, the shorter the rests; in the end there are
//! none, and after that writers have to wait (`runs_hard_max`).

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use treering_threads::{CoreClock, CoreTime};

use crate::context::Context;

/// So long it runs before it looks whether others wait.
const STINT: Duration = Duration::from_millis(5);
/// Others want the core if it had to wait for it for more than this part of what it ran.
const CONTENDED: u32 = 4;
/// A rest, in stints, by how many runs some timeline has past `runs_max`.
const RESTS: [u32; 4] = [31, 15, 5, 1];
/// While it rests it looks this often whether there is haste now.
const LOOK: Duration = Duration::from_millis(20);

/// What makes merges urgent: of all timelines, since there is one thread for all.
#[derive(Default)]
pub(crate) struct Haste {
    /// The most runs of any.
    runs: AtomicUsize,
    /// How many callers wait for merges.
    awaited: AtomicUsize,
}

/// Merges are awaited as long as it lives.
pub(crate) struct Awaited<'h>(&'h Haste);

impl Haste {
    /// A timeline has so many runs now.
    pub fn note_runs(&self, runs: usize) {
        self.runs.fetch_max(runs, Ordering::Relaxed);
    }

    /// None has more.
    pub fn set_runs(&self, runs: usize) {
        self.runs.store(runs, Ordering::Relaxed);
    }

    pub fn await_merge(&self) -> Awaited<'_> {
        self.awaited.fetch_add(1, Ordering::Relaxed);
        Awaited(self)
    }

    /// How many stints a rest takes.
    fn rest(&self, runs_max: usize) -> u32 {
        if self.awaited.load(Ordering::Relaxed) > 0 {
            return 0;
        }
        let beyond = self.runs.load(Ordering::Relaxed).saturating_sub(runs_max);
        RESTS.get(beyond).copied().unwrap_or(0)
    }
}

impl Drop for Awaited<'_> {
    fn drop(&mut self) {
        self.0.awaited.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The pace of one thread of a merge.
pub(super) struct Pace<'c> {
    context: &'c Context,
    /// With the beginning of the stint. Without it there is no telling, and no rest.
    clock: Option<(CoreClock, CoreTime)>,
}

impl<'c> Pace<'c> {
    pub fn of_this_thread(context: &'c Context) -> Pace<'c> {
        let clock = CoreClock::of_this_thread();
        let clock = clock.and_then(|clock| clock.now().map(|now| (clock, now)));
        Pace { context, clock }
    }

    /// Rests if it is time to. Between two pieces of work, with nothing held that others wait for.
    pub fn keep(&mut self) {
        let Some((clock, began)) = &mut self.clock else { return };
        let Some(now) = clock.now() else { return };
        let ran = now.ran.saturating_sub(began.ran);
        if ran < STINT {
            return;
        }
        let waited = now.waited.saturating_sub(began.waited);
        *began = now;
        if waited * CONTENDED > ran {
            self.rest(ran);
        }
    }

    fn rest(&self, stint: Duration) {
        let begin = Instant::now();
        loop {
            let stints = self.context.haste.rest(self.context.options.runs_max);
            let left = (stint * stints).saturating_sub(begin.elapsed());
            if left.is_zero() || self.context.is_stopping() {
                return;
            }
            std::thread::sleep(left.min(LOOK));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rests_grow_shorter_with_runs_and_end_where_somebody_waits() {
        let haste = Haste::default();
        let rests: Vec<u32> = (0..16)
            .map(|runs| {
                haste.set_runs(runs);
                haste.rest(8)
            })
            .collect();
        assert_eq!(rests, [31, 31, 31, 31, 31, 31, 31, 31, 31, 15, 5, 1, 0, 0, 0, 0]);
        haste.set_runs(3);
        haste.note_runs(9);
        haste.note_runs(2);
        assert_eq!(haste.rest(8), 15);
        let (one, other) = (haste.await_merge(), haste.await_merge());
        drop(one);
        assert_eq!(haste.rest(8), 0);
        drop(other);
        assert_eq!(haste.rest(8), 15);
    }
}
