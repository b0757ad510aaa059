//! What must hold of a manifest, and between one and its successor. Run before each write, and on what was read.
//!
//! Each predicate gives the sentence that it found broken.

use std::collections::{BTreeMap, BTreeSet};

use super::{RunDesc, TenantManifest, TimelineEntry, TimelineManifest};
use crate::layer::LayerDesc;

/// A sentence that does not hold.
pub type Broken = &'static str;

fn holds(condition: bool, sentence: Broken) -> Result<(), Broken> {
    if condition { Ok(()) } else { Err(sentence) }
}

/// A tenant manifest by itself.
pub fn tenant(manifest: &TenantManifest) -> Result<(), Broken> {
    let mut numbers = BTreeSet::new();
    let mut roots = 0;
    for entry in manifest.timelines.values() {
        holds(entry.pg_tli > 0, "a pg_tli is above zero")?;
        holds(entry.pg_tli < manifest.next_pg_tli, "a pg_tli is below the next one")?;
        holds(numbers.insert(entry.pg_tli), "no two timelines have one pg_tli")?;
        holds(entry.start_lsn.is_valid(), "a timeline starts at a valid LSN")?;
        match entry.ancestor {
            None => roots += 1,
            Some(_) => fork(manifest, entry)?,
        }
    }
    holds(roots <= 1, "a tenant has one root")
}

fn fork(manifest: &TenantManifest, entry: &TimelineEntry) -> Result<(), Broken> {
    let Some((ancestor, lsn)) = entry.ancestor else { return Ok(()) };
    let parent = manifest.timelines.get(&ancestor).ok_or("an ancestor exists")?;
    // Numbers rise with creation, so this also rules out cycles.
    holds(parent.pg_tli < entry.pg_tli, "an ancestor has a smaller pg_tli")?;
    holds(parent.start_lsn <= lsn, "a fork lies within its ancestor")?;
    holds(!parent.archived || entry.archived, "branches of an archived timeline are archived")?;
    holds(entry.start_lsn == lsn, "a branch starts at its fork LSN")
}

/// A tenant manifest and the one that replaces it.
pub fn tenant_step(old: &TenantManifest, new: &TenantManifest) -> Result<(), Broken> {
    tenant(new)?;
    holds(new.sequence == old.sequence + 1, "the sequence counts writes")?;
    holds(new.next_pg_tli >= old.next_pg_tli, "the next pg_tli never goes back")?;
    let identity =
        |manifest: &TenantManifest| (manifest.tenant, manifest.pg_major, manifest.system_id);
    holds(identity(old) == identity(new), "a tenant keeps its identity")?;
    for (id, entry) in &new.timelines {
        let Some(before) = old.timelines.get(id) else {
            holds(entry.pg_tli >= old.next_pg_tli, "a new timeline has a new pg_tli")?;
            continue;
        };
        holds(entry.flushed || !before.flushed, "a timeline stays flushed")?;
        let (flushed, archived) = (before.flushed, before.archived);
        let same = TimelineEntry { flushed, archived, ..*entry } == *before;
        holds(same, "a timeline keeps its ancestry")?;
    }
    Ok(())
}

/// A timeline manifest by itself.
pub fn timeline(manifest: &TimelineManifest) -> Result<(), Broken> {
    let mut numbers = BTreeSet::new();
    for layer in manifest.layers() {
        holds(layer.number > 0 && layer.number < manifest.next_layer, "layer numbers were given")?;
        holds(numbers.insert(layer.number), "no two layers have one number")?;
        holds(layer.key_first <= layer.key_last, "a layer's keys are a range")?;
        holds(!layer.lsns.is_empty(), "a layer's LSNs are a range")?;
        let last = layer.lsns.end.0.saturating_sub(1);
        holds(last <= manifest.disk_consistent_lsn.0, "layers end at disk_consistent_lsn")?;
    }
    for RunDesc { layers, .. } in &manifest.runs {
        holds(!layers.is_empty(), "a run has layers")?;
        let disjoint = layers.is_sorted_by(|a, b| a.key_last < b.key_first);
        holds(disjoint, "layers of a run are disjoint")?;
    }
    let collectable = manifest.cut_off <= manifest.disk_consistent_lsn;
    holds(collectable, "the cut-off lies at or below disk_consistent_lsn")?;
    holds(manifest.leases.is_sorted_by(|a, b| a < b), "leases rise")?;
    holds(manifest.runs.is_sorted_by(|newer, older| is_older(older, newer)), "runs age downwards")
}

/// Every value of `older` lies at or below every value of `newer` (at: an import writes several runs at one LSN).
fn is_older(older: &RunDesc, newer: &RunDesc) -> bool {
    let last = older.layers.iter().map(|layer| layer.lsns.end.0.saturating_sub(1)).max();
    let first = newer.layers.iter().map(|layer| layer.lsns.start.0).min();
    last <= first
}

/// A timeline manifest and the one that replaces it.
pub fn timeline_step(old: &TimelineManifest, new: &TimelineManifest) -> Result<(), Broken> {
    timeline(new)?;
    holds(new.sequence == old.sequence + 1, "the sequence counts writes")?;
    let identity = |m: &TimelineManifest| (m.tenant, m.timeline, m.pg_tli);
    holds(identity(old) == identity(new), "a timeline keeps its identity")?;
    let advances = new.disk_consistent_lsn >= old.disk_consistent_lsn;
    holds(advances, "disk_consistent_lsn never goes back")?;
    holds(new.next_layer >= old.next_layer, "the next layer number never goes back")?;
    holds(new.cut_off >= old.cut_off, "the cut-off never goes back")?;
    let known: BTreeMap<u64, &LayerDesc> =
        old.layers().map(|layer| (layer.number, layer)).collect();
    let same = |layer: &LayerDesc| known.get(&layer.number).is_none_or(|before| *before == layer);
    holds(new.layers().all(same), "a layer number is never reused")
}

#[cfg(test)]
mod tests;
