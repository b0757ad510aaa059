//! When a member hears what is committed.
//!
//! Each piece of log carries it, and under load the next one follows at once: a message of its own would wake the member for nothing. So where
//! log has followed the news before, they wait for it a little. Where none did, they go out alone, at once: the pageserver may be waited for.

use std::time::Duration;

use tokio::time::Instant;
use treering_consensus::Commit;

/// News wait so long for log that carries them, at most.
const CARRIED_WITHIN: Duration = Duration::from_millis(4);

/// What one member is to hear, and when.
#[derive(Debug, Default)]
pub(super) struct News {
    waiting: Option<Commit>,
    /// When there were news last, and no older ones waiting.
    since: Option<Instant>,
    are_carried: bool,
}

impl News {
    /// Gives them back if they are not to wait.
    pub(super) fn on_commit(&mut self, commit: Commit, now: Instant) -> Option<Commit> {
        if self.waiting.is_none() {
            self.since = Some(now);
        }
        if !self.are_carried {
            return Some(commit);
        }
        self.waiting = Some(commit);
        None
    }

    /// Log was sent, and the news with it.
    pub(super) fn on_append(&mut self, now: Instant) {
        self.waiting = None;
        self.are_carried = self.since.is_some_and(|since| now < since + CARRIED_WITHIN);
    }

    /// When they have waited long enough.
    pub(super) fn due(&self) -> Option<Instant> {
        self.since.filter(|_| self.waiting.is_some()).map(|since| since + CARRIED_WITHIN)
    }

    /// They go out alone.
    pub(super) fn take(&mut self) -> Option<Commit> {
        self.are_carried &= self.waiting.is_none();
        self.waiting.take()
    }

    /// Nobody is there to hear them.
    pub(super) fn forget(&mut self) {
        *self = News::default();
    }
}

#[cfg(test)]
mod tests {
    use treering_consensus::Generation;
    use treering_types::{Lsn, Term};

    use super::*;

    fn commit(lsn: u64) -> Commit {
        Commit { generation: Generation(1), term: Term(1), commit_lsn: Lsn(lsn) }
    }

    #[test]
    fn a_lone_commit_is_told_at_once() {
        let (mut news, now) = (News::default(), Instant::now());
        for second in 0..3 {
            let at = now + Duration::from_secs(second);
            news.on_append(at);
            assert_eq!(news.on_commit(commit(second), at), Some(commit(second)));
            assert_eq!(news.due(), None);
        }
    }

    #[test]
    fn where_log_follows_it_carries_the_news() {
        let (mut news, mut now) = (News::default(), Instant::now());
        news.on_append(now);
        assert!(news.on_commit(commit(1), now).is_some());
        for lsn in 2..5 {
            now += CARRIED_WITHIN / 4;
            news.on_append(now);
            assert_eq!(
                (news.on_commit(commit(lsn), now), news.due()),
                (None, Some(now + CARRIED_WITHIN))
            );
        }
        // Older news do not wait longer for newer ones.
        let due = news.due();
        assert_eq!((news.on_commit(commit(5), now + CARRIED_WITHIN / 2), news.due()), (None, due));
        assert_eq!((news.take(), news.due()), (Some(commit(5)), None));
        assert!(news.on_commit(commit(6), now + CARRIED_WITHIN).is_some());
    }

    #[test]
    fn what_was_carried_is_not_told_again() {
        let (mut news, now) = (News::default(), Instant::now());
        news.on_append(now);
        assert!(news.on_commit(commit(1), now).is_some());
        news.on_append(now);
        assert!(news.on_commit(commit(2), now).is_none());
        news.on_append(now);
        assert_eq!((news.take(), news.due()), (None, None));
        assert!(news.on_commit(commit(3), now).is_none(), "and the next are carried, too");
        news.forget();
        assert_eq!(news.due(), None);
    }
}
