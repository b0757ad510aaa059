//! Attaching: from a claimed generation to the state that it begins with.
//!
//! The claim comes first, the look at the indexes second. Whoever held the tenant before publishes first and confirms second
//! ([`Attached::publish`](crate::Attached::publish)); so either they see our claim and acknowledge nothing, or we see their index.

use std::collections::BTreeMap;

use treering_types::{TenantId, TimelineId};

use crate::{
    error::{RemoteError, Result},
    generation::{self, Before, Claimed, Generation},
    index::{Index, TimelineObject},
    names,
    retry::Asking,
    store::Store,
};

/// Looks at the indexes before the store is called broken: a holder that is still alive replaces them under our eyes.
const LOOKS_MAX: usize = 20;
/// Timeline objects read at once.
const READERS: usize = 16;

/// A tenant in the store, as a new generation finds it.
pub struct Found {
    pub claimed: Claimed,
    /// The truth, with all that it names; `None` when nothing was ever published.
    pub index: Option<Index>,
    pub objects: BTreeMap<TimelineId, TimelineObject>,
}

/// What lies on the local disk: the engine's counts of writes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LocalState {
    pub sequence: u64,
    /// Of timelines that were flushed: Postgres's number and the count.
    pub timelines: BTreeMap<TimelineId, (u32, u64)>,
}

/// What an attached tenant begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begin {
    /// With what lies on the local disk: it continues what is in the store.
    Local,
    /// With what lies in the store; what is on the local disk, if anything, goes.
    Store,
    /// It is deleted; what is on the local disk, if anything, goes.
    Deleted,
    /// There is no such tenant, here or there.
    Nothing,
}

/// Reads the newest index of generations before the claimed one.
///
/// # Errors
/// `Unavailable`, `Corrupt`, `Newer`.
pub fn find(
    store: &dyn Store,
    asking: &Asking,
    tenant: TenantId,
    claimed: Claimed,
) -> Result<Found> {
    let index = newest_index(store, asking, tenant, Some(claimed.generation))?;
    let objects = match &index {
        None => BTreeMap::new(),
        Some(index) => read_objects(store, asking, index)?,
    };
    Ok(Found { claimed, index, objects })
}

/// The newest index, for those who hold nothing and only want to know what is durable. `None` while that cannot be said: nothing is
/// published, or somebody has claimed the tenant and may not have seen what another one published at that moment.
///
/// Whoever claims the tenant after this looked for a claim finds this index, or a later one of its generation: what it says stays true.
///
/// # Errors
/// `Unavailable`, `Corrupt`, `Newer`.
pub fn published(store: &dyn Store, asking: &Asking, tenant: TenantId) -> Result<Option<Index>> {
    let Some(index) = newest_index(store, asking, tenant, None)? else { return Ok(None) };
    let is_newest = asking.ask(|| generation::is_newest(store, tenant, index.generation))?;
    Ok(is_newest.then_some(index))
}

/// `claimed`: by the caller, who wants what was there before.
fn newest_index(
    store: &dyn Store,
    asking: &Asking,
    tenant: TenantId,
    claimed: Option<Generation>,
) -> Result<Option<Index>> {
    let below = claimed.unwrap_or(Generation(u64::MAX));
    for _ in 0..LOOKS_MAX {
        if let Some(claimed) = claimed {
            check_listing(store, asking, tenant, claimed)?;
        }
        let files = asking.ask(|| store.list(&names::indexes_folder(tenant)))?;
        let numbered = files.iter().filter_map(|file| names::parse_numbered(file));
        let newest = numbered.filter(|(generation, _)| *generation < below).max();
        let Some((generation, listed)) = newest else { return Ok(None) };
        let mut version = listed;
        while asking.ask(|| store.exists(&names::index(tenant, generation, version + 1)))? {
            version += 1;
        }
        let name = names::index(tenant, generation, version);
        match asking.ask(|| store.get(&name)) {
            Ok(bytes) => return Index::decode(tenant, generation, version, &bytes).map(Some),
            Err(RemoteError::Missing { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    let name = names::indexes_folder(tenant);
    let cause = "the newest index is gone whenever it is read".to_owned();
    Err(RemoteError::Unavailable { action: "reading", name, cause })
}

/// A store whose listings lag behind its writes is noticed by the one write that is known: our own claim.
fn check_listing(
    store: &dyn Store,
    asking: &Asking,
    tenant: TenantId,
    generation: Generation,
) -> Result<()> {
    let folder = names::claims_folder(tenant);
    let files = asking.ask(|| store.list(&folder))?;
    if files.iter().any(|file| names::parse_claim(file) == Some(generation)) {
        return Ok(());
    }
    let cause = "the listing lacks what was just written".to_owned();
    Err(RemoteError::Unavailable { action: "listing", name: folder, cause })
}

fn read_objects(
    store: &dyn Store,
    asking: &Asking,
    index: &Index,
) -> Result<BTreeMap<TimelineId, TimelineObject>> {
    let entries: Vec<_> = index.timelines.iter().collect();
    let share = entries.len().div_ceil(READERS).max(1);
    let read = |(id, at): &(&TimelineId, &crate::index::TimelineAt)| {
        let life = at.life(**id);
        let name = names::manifest(index.tenant, life, at.generation, at.sequence);
        let bytes = asking.ask(|| store.get(&name))?;
        Ok((**id, TimelineObject::decode(index.tenant, life, &name, &bytes)?))
    };
    std::thread::scope(|scope| {
        let readers: Vec<_> = entries
            .chunks(share)
            .map(|share| scope.spawn(move || share.iter().map(read).collect::<Result<Vec<_>>>()))
            .collect();
        let mut objects = BTreeMap::new();
        for reader in readers {
            match reader.join() {
                Ok(read) => objects.extend(read?),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        Ok(objects)
    })
}

/// Decides what a tenant begins with. Pure.
///
/// The local disk counts only if nobody else held the tenant since this directory did, and if it is nowhere behind the index: a disk that was
/// set back (a snapshot restored, a directory copied) is the past of what is in the store, not its continuation.
///
/// # Errors
/// `TwoTruths`: a local tenant that this directory never held, and another in the store.
pub fn begin(tenant: TenantId, found: &Found, local: Option<&LocalState>) -> Result<Begin> {
    let Some(index) = &found.index else {
        return Ok(if local.is_some() { Begin::Local } else { Begin::Nothing });
    };
    if index.manifest.is_none() {
        return Ok(Begin::Deleted);
    }
    let Some(local) = local else { return Ok(Begin::Store) };
    match found.claimed.before {
        Before::Ourselves => Ok(if is_behind(local, index) { Begin::Store } else { Begin::Local }),
        Before::Others { ourselves_once: true } => Ok(Begin::Store),
        Before::Nobody | Before::Others { ourselves_once: false } => {
            Err(RemoteError::TwoTruths { tenant })
        }
    }
}

fn is_behind(local: &LocalState, index: &Index) -> bool {
    local.sequence < index.sequence
        || index.timelines.iter().any(|(id, at)| match local.timelines.get(id) {
            Some((pg_tli, sequence)) if *pg_tli == at.pg_tli => *sequence < at.sequence,
            // Deleted here since, or made again: the tenant's own count has covered it.
            Some(_) | None => local.sequence == index.sequence,
        })
}

#[cfg(test)]
mod tests;
