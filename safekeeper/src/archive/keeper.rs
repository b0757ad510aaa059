//! The thread that keeps the archive up to date: looks at every log once a second, puts what has waited long enough,
//! deletes what nobody needs, and cleans up behind deleted timelines.
//!
//! Any member may do so for any log; members do not talk about it. Each has a rank, and the later ones wait the longer,
//! so that mostly the first one does the work and the others find it done. If it is dead or cut off from the store,
//! the next one's time comes. Two that work at once do it twice, and nothing worse.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use treering_consensus::Configuration;
use treering_remote::retry::Patience;
use treering_types::{ErrorKind, Lsn, NodeId, TenantId, TimelineId};

use super::{Archive, ArchiveOptions, add, object::Stretch, piece};
use crate::{
    control_file::Identity,
    error::StoreError,
    member::Status,
    timeline::{Request, Timeline},
    timelines::Timelines,
    wal_store::segment_start,
};

const TURN: Duration = Duration::from_secs(1);
/// How much longer each later member waits before it takes over.
const TAKEOVER: Duration = Duration::from_secs(30);
/// Segments put for one log before the next one has its turn.
const PUTS_AT_ONCE: usize = 4;
/// Between tries for a log that cannot be brought up to date.
const AFTER_FAILURE: Patience =
    Patience { attempts: 1, pause: Duration::from_secs(2), pause_max: Duration::from_secs(60) };
/// A put that was not answered may still happen for so long. Only then a deleted log's folder is known to stay empty.
const LATE: Duration = Duration::from_secs(600);

/// A log, and what its member knows of it.
pub struct Log<'a> {
    pub identity: &'a Identity,
    pub start_lsn: Lsn,
    /// Before this it is in the archive, or made up, or needed by nobody.
    pub trim_lsn: Lsn,
    pub commit_lsn: Lsn,
    /// Before this its pages are in the object store.
    pub horizon_lsn: Lsn,
    pub read: &'a dyn Fn(Lsn, Lsn) -> Result<Bytes, StoreError>,
}

/// What is to be done for a log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Due {
    /// If it is archived up to here, somebody else was there.
    target: Lsn,
    /// The begin of the segment that it ends in, too.
    with_begin: bool,
}

impl Due {
    /// All that is committed.
    pub fn all(commit_lsn: Lsn) -> Due {
        Due { target: commit_lsn, with_begin: true }
    }
}

/// Looks what there is of a log, puts what is due, a few segments at most, and deletes what is superfluous. `told` hears how far
/// the log is archived, each time that is more.
///
/// # Errors
/// Those of the store; what was told stays true.
pub fn bring_up_to_date(
    archive: &Archive,
    log: &Log<'_>,
    due: Due,
    keep: u64,
    told: &mut dyn FnMut(Lsn),
) -> Result<Lsn, StoreError> {
    let mut pieces = archive.list(log.identity)?;
    // What is older need not be there, and may have been given up by another member.
    let keep_from = Lsn(log.horizon_lsn.min(log.commit_lsn).0.saturating_sub(keep));
    let from = log.trim_lsn.max(keep_from.segment_start());
    let mut archived = piece::archived(&pieces, from);
    told(archived);
    let puts = if archived < due.target { PUTS_AT_ONCE } else { 0 };
    for _ in 0..puts {
        let next = piece::next(archived, log.commit_lsn, due.with_begin);
        let Some(next) = next else { break };
        let start = segment_start(next.segment()).max(log.start_lsn);
        let bytes = (log.read)(start, next.end())?;
        archive.put(log.identity, next, &Stretch { start, bytes })?;
        pieces.insert(next);
        archived = piece::archived(&pieces, from);
        told(archived);
    }
    archive.delete(log.identity, &piece::superfluous(&pieces, keep_from))?;
    Ok(archived)
}

/// How many members come before this one; `None` for one that has left.
fn rank(configuration: &Configuration, node: NodeId, timeline: TimelineId) -> Option<u32> {
    let members = configuration.all_members();
    if members.is_empty() {
        // Nobody has told us of the others. Nodes are numbered from 1.
        return Some(node.0.saturating_sub(1).min(8) as u32);
    }
    let place = members.iter().position(|member| *member == node)?;
    // Not always the same first one.
    let turned = place + timeline.0.iter().map(|byte| usize::from(*byte)).sum::<usize>();
    Some((turned % members.len()) as u32)
}

/// Something that is not archived, and since when we know.
#[derive(Clone, Copy, Debug)]
struct Notice {
    target: Lsn,
    at: Instant,
}

/// What the keeper remembers of a log.
#[derive(Debug)]
struct Watched {
    archived: Lsn,
    /// The last whole segment that is committed.
    whole: Option<Notice>,
    /// All that is committed.
    begin: Option<Notice>,
    failures: u32,
    failed_at: Option<Instant>,
}

impl Watched {
    fn new() -> Watched {
        Watched { archived: Lsn::INVALID, whole: None, begin: None, failures: 0, failed_at: None }
    }

    fn due(&mut self, status: &Status, rank: u32, delay: Duration, now: Instant) -> Option<Due> {
        self.archived = self.archived.max(status.trim_lsn);
        notice(&mut self.whole, status.commit_lsn.segment_start(), self.archived, now);
        notice(&mut self.begin, status.commit_lsn, self.archived, now);
        let pause = AFTER_FAILURE.pause_after(self.failures);
        if self.failures > 0 && self.failed_at.is_some_and(|at| now < at + pause) {
            return None;
        }
        let patience = TAKEOVER * rank;
        let is_ripe = |noticed: &Notice, delay| now >= noticed.at + delay;
        if let Some(noticed) = self.begin.filter(|noticed| is_ripe(noticed, delay + patience)) {
            return Some(Due { target: noticed.target, with_begin: true });
        }
        let noticed = self.whole.filter(|noticed| is_ripe(noticed, patience))?;
        Some(Due { target: noticed.target, with_begin: false })
    }
}

fn notice(noticed: &mut Option<Notice>, target: Lsn, archived: Lsn, now: Instant) {
    if noticed.is_none_or(|noticed| noticed.target <= archived) {
        *noticed = (target > archived).then_some(Notice { target, at: now });
    }
}

type Key = (TenantId, TimelineId);

/// See the module's head.
pub(crate) struct Keeper {
    archive: Arc<Archive>,
    timelines: Arc<Timelines>,
    options: ArchiveOptions,
    watched: HashMap<Key, Watched>,
    /// When a tenant's index may be looked at next.
    looks: HashMap<TenantId, Instant>,
    /// Deleted timelines that are to be cleaned up behind once more.
    again: HashMap<Key, Instant>,
}

impl Keeper {
    pub(crate) fn new(
        archive: Arc<Archive>,
        timelines: Arc<Timelines>,
        options: ArchiveOptions,
    ) -> Keeper {
        let (watched, looks, again) = (HashMap::new(), HashMap::new(), HashMap::new());
        Keeper { archive, timelines, options, watched, looks, again }
    }

    /// Until the archive is stopped.
    pub(crate) fn run(mut self) {
        // Commits go on without it, until the log has no room left.
        treering_threads::unhurried();
        while self.archive.asking.stop.pause(TURN).is_ok() {
            self.turn(Instant::now());
        }
    }

    fn turn(&mut self, now: Instant) {
        let timelines = self.timelines.list();
        let key = |timeline: &Arc<Timeline>| {
            let identity = timeline.identity();
            (identity.tenant, identity.timeline)
        };
        for timeline in &timelines {
            // A store that does not answer is left alone for the rest of the turn, and asked for another log in the next one.
            if self.archive.asking.stop.is_stopped()
                || !self.look_after(key(timeline), timeline, now)
            {
                break;
            }
        }
        self.learn_horizons(&timelines, now);
        self.clean_up(now);
        let there: std::collections::HashSet<Key> = timelines.iter().map(key).collect();
        // Of deleted ones it matters whether the last put was answered.
        self.watched.retain(|key, watched| there.contains(key) || watched.failed_at.is_some());
        self.archive.forget_unread();
    }

    /// False when the store does not answer.
    fn look_after(&mut self, key: Key, timeline: &Timeline, now: Instant) -> bool {
        let (identity, status) = (timeline.identity(), timeline.status());
        if status.latched.is_some() {
            return true;
        }
        let rank = rank(&status.configuration, self.timelines.node(), identity.timeline);
        let Some(rank) = rank else { return true };
        let watched = self.watched.entry(key).or_insert_with(Watched::new);
        let Some(due) = watched.due(&status, rank, self.options.delay, now) else { return true };
        let log = Log {
            identity,
            start_lsn: status.start_lsn,
            trim_lsn: status.trim_lsn,
            commit_lsn: status.commit_lsn,
            horizon_lsn: status.horizon_lsn,
            read: &|from, to| timeline.read_now(from, to),
        };
        let mut known = watched.archived;
        let mut told = |archived: Lsn| {
            if archived > known || status.archived_lsn.is_some_and(|told| told < archived) {
                known = archived;
                // One that stops has no more use for it.
                let _ = timeline.send_now(Request::Archived(archived));
            }
        };
        let done = bring_up_to_date(&self.archive, &log, due, self.options.keep, &mut told);
        watched.archived = watched.archived.max(known);
        match done {
            Ok(_) => {
                if watched.failures > 0 {
                    tracing::info!(timeline = %identity.timeline, "archived again");
                }
                (watched.failures, watched.failed_at) = (0, None);
                true
            }
            Err(error) => {
                if watched.failures == 0 {
                    tracing::warn!(%error, timeline = %identity.timeline, "not archived");
                }
                watched.failures = watched.failures.saturating_add(1);
                watched.failed_at = Some(now);
                add(&self.archive.counters.failures, 1);
                error.kind() != ErrorKind::Unavailable
            }
        }
    }

    /// A member that the pageserver does not stream from, or not now, learns from the object store what is in it.
    fn learn_horizons(&mut self, timelines: &[Arc<Timeline>], now: Instant) {
        let waits = |timeline: &Arc<Timeline>| {
            let status = timeline.status();
            status.trim_lsn < status.commit_lsn && status.horizon_lsn < status.commit_lsn
        };
        let waiting: Vec<&Arc<Timeline>> =
            timelines.iter().filter(|timeline| waits(timeline)).collect();
        let mut tenants: Vec<TenantId> =
            waiting.iter().map(|timeline| timeline.identity().tenant).collect();
        tenants.dedup();
        for tenant in tenants {
            if self.looks.get(&tenant).is_some_and(|next| now < *next) {
                continue;
            }
            self.looks.insert(tenant, now + self.options.delay);
            let published = match self.archive.published(tenant) {
                Ok(published) => published,
                Err(error) => {
                    tracing::debug!(%error, %tenant, "what is published is not known");
                    continue;
                }
            };
            let published: HashMap<_, _> = published.into_iter().collect();
            for timeline in waiting.iter().filter(|at| at.identity().tenant == tenant) {
                let lsn = published.get(&super::life(timeline.identity())).copied();
                let known = timeline.status().horizon_lsn;
                if let Some(lsn) = lsn.filter(|lsn| *lsn > known) {
                    let told = Request::Pageserver { ingested: lsn, horizon: lsn };
                    let _ = timeline.send_now(told);
                }
            }
        }
    }

    /// Deletes what is left of deleted timelines.
    fn clean_up(&mut self, now: Instant) {
        for key in self.timelines.with_objects_left() {
            if self.again.get(&key).is_some_and(|next| now < *next) {
                continue;
            }
            let failed_at = self.watched.get(&key).and_then(|watched| watched.failed_at);
            let is_settled = failed_at.is_none_or(|at| now >= at + LATE);
            let done = self.archive.delete_log(key.0, key.1).map_err(StoreError::from);
            let done = match is_settled {
                true => done.and_then(|()| self.timelines.note_objects_gone(key)),
                false => done,
            };
            match done {
                Ok(()) if is_settled => {
                    self.again.remove(&key);
                    self.watched.remove(&key);
                }
                Ok(()) => {
                    self.again.insert(key, now + LATE);
                }
                Err(error) => {
                    tracing::warn!(%error, timeline = %key.1, "archived log of a deleted timeline stays");
                    self.again.insert(key, now + AFTER_FAILURE.pause_max);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(commit_lsn: u64, trim_lsn: u64) -> Status {
        Status { commit_lsn: Lsn(commit_lsn), trim_lsn: Lsn(trim_lsn), ..Status::default() }
    }

    const SEG: u64 = treering_types::WAL_SEGMENT_SIZE;
    const DELAY: Duration = Duration::from_secs(10);

    #[test]
    fn whole_segments_are_due_at_once_and_the_rest_in_time() {
        let (mut watched, begin) = (Watched::new(), Instant::now());
        let at = |seconds| begin + Duration::from_secs(seconds);
        let (whole, rest) = (Lsn(2 * SEG), Lsn(2 * SEG + 800));
        let mut due = |commit: u64, rank, now| {
            watched
                .due(&status(commit, SEG + 8), rank, DELAY, now)
                .map(|d| (d.target, d.with_begin))
        };
        assert_eq!(due(SEG + 8, 0, at(0)), None, "nothing is committed");
        assert_eq!(due(SEG + 80, 0, at(0)), None);
        assert_eq!(due(SEG + 800, 0, at(9)), None);
        assert_eq!(due(SEG + 900, 0, at(10)), Some((Lsn(SEG + 80), true)));
        assert_eq!(due(2 * SEG + 800, 1, at(10)), None, "the second one waits");
        assert_eq!(due(2 * SEG + 800, 1, at(40)), Some((Lsn(SEG + 80), true)));
        watched.archived = Lsn(SEG + 880);
        let mut due = |commit: u64, rank, now| {
            watched
                .due(&status(commit, SEG + 8), rank, DELAY, now)
                .map(|d| (d.target, d.with_begin))
        };
        // Noticed anew: the member before us has done what we had seen.
        assert_eq!(due(2 * SEG + 800, 1, at(40)), Some((whole, false)), "known since 10");
        assert_eq!(due(2 * SEG + 800, 0, at(41)), Some((whole, false)));
        watched.archived = whole;
        let mut due = |commit: u64, rank, now| {
            watched
                .due(&status(commit, SEG + 8), rank, DELAY, now)
                .map(|d| (d.target, d.with_begin))
        };
        assert_eq!(due(2 * SEG + 800, 0, at(49)), None);
        assert_eq!(due(2 * SEG + 800, 0, at(50)), Some((rest, true)));
        // What is trimmed is archived, whoever did it.
        assert_eq!(watched.due(&status(rest.0, rest.0), 0, DELAY, at(99)), None);
    }

    #[test]
    fn failures_are_not_repeated_at_once() {
        let (mut watched, begin) = (Watched::new(), Instant::now());
        (watched.failures, watched.failed_at) = (1, Some(begin));
        let mut due = |seconds| {
            let now = begin + Duration::from_secs(seconds);
            watched.due(&status(3 * SEG, SEG), 0, DELAY, now).is_some()
        };
        assert!(!due(1) && due(2));
    }

    #[test]
    fn every_member_has_another_rank_and_strangers_have_none() {
        let nodes: Vec<NodeId> = [4, 7, 9].map(NodeId).to_vec();
        let configuration = Configuration::first(nodes.clone()).unwrap();
        for timeline in [TimelineId([0; 16]), TimelineId([5; 16])] {
            let mut ranks: Vec<_> =
                nodes.iter().map(|node| rank(&configuration, *node, timeline).unwrap()).collect();
            ranks.sort();
            assert_eq!(ranks, [0, 1, 2]);
            assert_eq!(rank(&configuration, NodeId(1), timeline), None);
            assert_eq!(rank(&Configuration::none(), NodeId(1), timeline), Some(0));
            assert_eq!(rank(&Configuration::none(), NodeId(3), timeline), Some(2));
        }
    }
}
