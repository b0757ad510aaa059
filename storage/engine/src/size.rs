//! Where a timeline's bytes go, and what would be free without whom.
//!
//! Nothing is estimated: merges of everything are tried with other retained LSNs, and weighed (`compact::weigh`). What a branch pins in its
//! ancestor is what a merge would drop there if the branch were gone. Bytes in memory, not flushed yet, are on no disk and do
//! not count.

use serde::{Deserialize, Serialize};
use treering_types::{Lsn, TimelineId};

use crate::{
    compact::Points,
    error::{EngineError, Result},
    tenant::Tenant,
    timeline::Timeline,
};

/// Bytes of one timeline's layer files, and what they are for.
///
/// `layer_bytes` = `live_bytes` + `window_bytes` + `pinned_bytes` + `garbage_bytes`, unless a merge would write more than it drops.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimelineSize {
    pub timeline_id: TimelineId,
    pub ancestor_timeline_id: Option<TimelineId>,
    /// The fork.
    pub ancestor_lsn: Option<Lsn>,
    /// Layer files, and their bytes.
    pub layers: usize,
    pub layer_bytes: u64,
    /// What reads of the newest LSN need.
    pub live_bytes: u64,
    /// Older versions from the cut-off on: those of the window, whoever reads them.
    pub window_bytes: u64,
    /// Older versions below the cut-off: for branches, leases and database copies.
    pub pinned_bytes: u64,
    /// What each branch alone pins of those; what several pin together is in none of these.
    pub pins: Vec<Pin>,
    /// What nobody can ask for any more: freed as merges come to it.
    pub garbage_bytes: u64,
    /// Bytes of ancestors' files that begin at or below the fork: what it shares with others.
    pub ancestor_bytes: u64,
}

/// A branch that keeps a version of its ancestor below the ancestor's cut-off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pin {
    pub timeline_id: TimelineId,
    /// Its fork.
    pub lsn: Lsn,
    /// Bytes that nobody else retains; 0 where another branch or a lease is at the same LSN.
    pub alone_bytes: u64,
}

impl TimelineSize {
    /// What the branch alone pins.
    pub fn pinned_by(&self, branch: TimelineId) -> u64 {
        self.pins.iter().filter(|pin| pin.timeline_id == branch).map(|pin| pin.alone_bytes).sum()
    }
}

impl Tenant {
    /// The sizes of all timelines, by id. Reads all their files: once, and once more for each eight branches that lie below the
    /// cut-off of one ancestor.
    ///
    /// # Errors
    /// Corrupt naming a damaged layer, Io, Shutdown.
    pub fn sizes(&self) -> Result<Vec<TimelineSize>> {
        let mut sizes = Vec::new();
        for timeline in self.timelines() {
            match timeline.size() {
                // Deleted meanwhile.
                Err(EngineError::NoTimeline(id)) if id == timeline.id() => {}
                size => sizes.push(size?),
            }
        }
        Ok(sizes)
    }
}

impl Timeline {
    /// See [`TimelineSize`].
    ///
    /// # Errors
    /// As [`Tenant::sizes`]; NoTimeline when it is deleted meanwhile.
    pub fn size(&self) -> Result<TimelineSize> {
        let retained = self.retained();
        let cut_off = retained.cut_off();
        let tip = self.disk_consistent_lsn().max(cut_off);
        // After the retained set: whatever that asks for is in these.
        let files = self.layers().files.clone();
        let all = retained.lsns();
        let pinning: Vec<_> = retained.branches().filter(|(_, lsn)| *lsn < cut_off).collect();
        let mut tries = vec![
            Points::new(cut_off, all.iter().copied()),
            Points::new(cut_off, []),
            Points::new(tip, []),
        ];
        let lone: Vec<_> = pinning.iter().filter(|(_, lsn)| retained.is_single(*lsn)).collect();
        tries.extend(
            lone.iter().map(|(_, lone)| {
                Points::new(cut_off, all.iter().copied().filter(|lsn| lsn != lone))
            }),
        );
        let weights = self.weigh(&files, &tries)?;
        let weight = |number: usize| weights.get(number).copied().unwrap_or_default();
        let (kept, in_window, live) = (weight(0), weight(1), weight(2));
        let alone = |branch| {
            let number = lone.iter().position(|(lone, _)| *lone == branch);
            number.map_or(0, |number| kept.saturating_sub(weight(3 + number)))
        };
        let pins = pinning.iter().map(|(branch, lsn)| Pin {
            timeline_id: *branch,
            lsn: *lsn,
            alone_bytes: alone(*branch),
        });
        let layer_bytes = files.files().map(|file| file.desc.size).sum();
        Ok(TimelineSize {
            timeline_id: self.id(),
            ancestor_timeline_id: self.ancestor().map(|(ancestor, _)| ancestor.id()),
            ancestor_lsn: self.ancestor().map(|(_, lsn)| lsn),
            layers: files.files().count(),
            layer_bytes,
            live_bytes: live,
            window_bytes: in_window.saturating_sub(live),
            pinned_bytes: kept.saturating_sub(in_window),
            pins: pins.collect(),
            garbage_bytes: layer_bytes.saturating_sub(kept),
            ancestor_bytes: self.ancestor_bytes(),
        })
    }

    fn ancestor_bytes(&self) -> u64 {
        let (mut at, mut clip, mut bytes) = (self, Lsn::MAX, 0);
        while let Some((ancestor, fork)) = at.ancestor() {
            clip = clip.min(fork);
            let layers = ancestor.layers();
            let visible = layers.files.files().filter(|file| file.desc.lsns.start <= clip);
            bytes += visible.map(|file| file.desc.size).sum::<u64>();
            at = ancestor;
        }
        bytes
    }
}
