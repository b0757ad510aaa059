//! Who waits for a timeline's log.

use parking_lot::Mutex;
use tokio::sync::Notify;
use treering_types::Lsn;

/// Everyone who waits for log that has not come yet, and the word for who may hurry it.
#[derive(Debug, Default)]
pub(crate) struct Waiters {
    wanted: Mutex<Vec<Lsn>>,
    arrived: Notify,
}

impl Waiters {
    /// Counts somebody in for as long as what is returned lives.
    pub(crate) fn enter(&self, lsn: Lsn) -> Waiting<'_> {
        self.wanted.lock().push(lsn);
        self.arrived.notify_one();
        Waiting { waiters: self, lsn }
    }

    /// Returns when somebody has come since it last did. For one caller at a time.
    pub(crate) async fn arrived(&self) {
        self.arrived.notified().await;
    }

    /// Somebody waits for log behind `lsn`.
    pub(crate) fn want_more_than(&self, lsn: Lsn) -> bool {
        self.wanted.lock().iter().any(|wanted| *wanted > lsn)
    }
}

/// Somebody waits.
pub(crate) struct Waiting<'w> {
    waiters: &'w Waiters,
    lsn: Lsn,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut wanted = self.waiters.wanted.lock();
        if let Some(at) = wanted.iter().position(|lsn| *lsn == self.lsn) {
            wanted.swap_remove(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        pin::pin,
        task::{Context, Waker},
    };

    use super::*;

    fn have_arrived(waiters: &Waiters) -> bool {
        pin!(waiters.arrived()).poll(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    #[test]
    fn who_waits_counts_until_it_is_gone() {
        let waiters = Waiters::default();
        assert!(!have_arrived(&waiters));
        let (near, far, as_far) =
            (waiters.enter(Lsn(10)), waiters.enter(Lsn(20)), waiters.enter(Lsn(20)));
        assert_eq!(
            [9, 10, 19, 20].map(|lsn| waiters.want_more_than(Lsn(lsn))),
            [true, true, true, false]
        );
        // Several that came are one word, and one who came before it was asked for is not missed.
        assert!(have_arrived(&waiters));
        assert!(!have_arrived(&waiters));
        drop((near, far));
        assert!(waiters.want_more_than(Lsn(19)), "the third still waits");
        drop(as_far);
        assert!(!waiters.want_more_than(Lsn(0)));
    }
}
