//! Layers that a merge takes over into its run as they are: not read, not written, only named in another place.
//!
//! A merge reads a layer to bring its entries into one order with those of other runs, and to drop what nobody can ask for. Where
//! a layer lies alone there is no such order to bring, and from the cut-off on nothing to drop: every LSN is retained there, so each entry
//! is what somebody sees, chains are as long as they were (the layer's writer has bounded them), and the sieve would
//! let through what it gets. What remains of such a merge is the run's new layers around the moved ones ([`super::output`]
//! ends a layer where a moved one stands).
//!
//! Relations that are written anew make such layers ([`crate::stretch`]). Once the cut-off has passed them they are merged like others.

use std::{cmp::Reverse, sync::Arc};

use treering_types::{Key, KeyClass, Lsn};

use crate::{
    cache::Caches, error::Result, layer::file::LayerFile, layer_map::Run, value::Direction,
};

/// Layers that one merge moves: the largest ones. It writes the others into layers of full size, so that a run never has many more
/// than its bytes ask for.
const MOVES_MAX: usize = 64;

/// Layers of adjacent runs, and which of them stay as they are.
#[derive(Default)]
pub(super) struct Moves {
    /// In key order.
    pub layers: Vec<Arc<LayerFile>>,
    /// Of the runs' history bytes, the layers' share.
    pub history_bytes: u64,
}

impl Moves {
    /// What can be moved of `runs`: layers of `bytes_min` or more, with nothing below `cut_off`, that have the keys between their first and
    /// their last to themselves.
    ///
    /// # Errors
    /// What keeps a layer from being read.
    pub fn of(runs: &[Run], cut_off: Lsn, bytes_min: u64, caches: &Caches) -> Result<Moves> {
        let layers = |number: usize, run: &Run| -> Vec<_> {
            run.layers.iter().map(|layer| (number, Arc::clone(layer))).collect()
        };
        let mut able: Vec<(usize, Arc<LayerFile>)> =
            runs.iter().enumerate().flat_map(|(number, run)| layers(number, run)).collect();
        able.retain(|(_, layer)| is_able(layer, cut_off, bytes_min));
        able.sort_by_key(|(_, layer)| (Reverse(layer.desc.size), layer.desc.number));
        let mut moves = Moves::default();
        for (number, layer) in able {
            if moves.layers.len() >= MOVES_MAX {
                break;
            }
            let (newer, others) = runs.split_at(number);
            let Some((run, older)) = others.split_first() else { continue };
            if is_alone(&layer, newer.iter().chain(older), caches)? {
                moves.history_bytes += share(run, layer.desc.size);
                moves.layers.push(layer);
            }
        }
        moves.layers.sort_by_key(|layer| layer.desc.key_first);
        Ok(moves)
    }

    /// Bytes of the layers' files.
    pub fn bytes(&self) -> u64 {
        self.layers.iter().map(|layer| layer.desc.size).sum()
    }

    /// Where layers that are written have to end: in front of these keys.
    pub fn cuts(&self) -> Vec<Key> {
        self.layers.iter().map(|layer| layer.desc.key_first).collect()
    }

    /// The runs without the layers that are moved.
    pub fn rest_of(&self, runs: &[Run]) -> Vec<Run> {
        let rest = |run: &Run| Run {
            layers: self.others_of(&run.layers).cloned().collect(),
            kept: run.kept,
        };
        runs.iter().map(rest).collect()
    }

    /// Those of `layers` that are not moved.
    pub fn others_of<'l>(
        &self,
        layers: impl IntoIterator<Item = &'l Arc<LayerFile>>,
    ) -> impl Iterator<Item = &'l Arc<LayerFile>> {
        layers.into_iter().filter(|layer| !self.holds(layer))
    }

    fn holds(&self, layer: &LayerFile) -> bool {
        let number = layer.desc.number;
        let at = self.layers.partition_point(|moved| moved.desc.key_first < layer.desc.key_first);
        self.layers.get(at).is_some_and(|moved| moved.desc.number == number)
    }
}

/// Blocks of relations only: record ends and times are histories across keys.
fn is_able(layer: &LayerFile, cut_off: Lsn, bytes_min: u64) -> bool {
    let desc = &layer.desc;
    let ends = [desc.key_first, desc.key_last];
    desc.size >= bytes_min
        && desc.lsns.start >= cut_off
        && ends.iter().all(|key| key.class() == Ok(KeyClass::RelBlock))
        // A damaged one is for the merge to fail at.
        && layer.broken().is_none()
}

fn is_alone<'r>(
    layer: &LayerFile,
    others: impl Iterator<Item = &'r Run>,
    caches: &Caches,
) -> Result<bool> {
    let range = layer.desc.key_first..layer.desc.key_last.next();
    for run in others {
        let from = run.layers.partition_point(|other| other.desc.key_last < range.start);
        let near = run.layers.iter().skip(from);
        for other in near.take_while(|other| other.desc.key_first < range.end) {
            // Most often its ends say it; otherwise there may be a gap in it, as wide as the layer.
            let has_end =
                range.contains(&other.desc.key_first) || range.contains(&other.desc.key_last);
            if has_end || other.first_key(&range, Direction::Forward, caches)?.is_some() {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

fn share(run: &Run, bytes: u64) -> u64 {
    let share = u128::from(run.kept.history_bytes) * u128::from(bytes);
    u64::try_from(share / u128::from(run.bytes().max(1))).unwrap_or(bytes)
}
