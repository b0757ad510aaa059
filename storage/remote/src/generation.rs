//! Who may change a tenant in the store: generations, each claimed once, in the store itself.
//!
//! `<tenant>/claims/1`, `2`, `3` … are created if absent and never deleted, so generations are used once, have no gaps, and need no clock and no
//! lock service. Generation *g* is the newest exactly as long as claim *g* + 1 does not exist: one look-up of one name, no listing.
//!
//! A claim names its holder, a pageserver's directory, and the life of a process that made it; the directory remembers its own lives
//! ([`Identity`](crate::identity::Identity)). So a pageserver that starts again sees whether anybody else held the tenant since, be it a copy
//! of its own disk, and knows whether what lies there is the continuation of what lies in the store.

use std::fmt;

use bytes::Bytes;
use treering_types::TenantId;

use crate::{
    binary::{Reader, Writer},
    error::{RemoteError, Result},
    identity::Identity,
    names,
    store::Store,
};

const MAGIC: [u8; 8] = *b"TRCLAIM\n";
const VERSION: u32 = 1;
/// Others that claim at the same moment; more is not a race but a broken store.
const RACE_MAX: u64 = 1000;

/// Epoch of a tenant's attached pageserver, counted from 1.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Generation(pub u64);

impl Generation {
    pub fn next(self) -> Generation {
        Generation(self.0 + 1)
    }

    /// `None` before the first.
    pub fn previous(self) -> Option<Generation> {
        self.0.checked_sub(1).filter(|number| *number > 0).map(Generation)
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Who claims: a directory of a pageserver (`holder`, drawn at random when it was made), and the life of one process on it (`nonce`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claimant {
    pub holder: [u8; 16],
    pub nonce: [u8; 16],
}

impl Claimant {
    fn encode(&self) -> Bytes {
        let mut out = Writer::default();
        out.bytes(&self.holder).bytes(&self.nonce);
        out.sealed(MAGIC, VERSION)
    }

    fn decode(name: &str, bytes: &[u8]) -> Result<Claimant> {
        let mut reader = Reader::open(name, bytes, MAGIC, VERSION)?;
        let claimant = Claimant { holder: reader.array()?, nonce: reader.array()? };
        reader.finish()?;
        Ok(claimant)
    }
}

/// A generation, and who held those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claimed {
    pub generation: Generation,
    pub before: Before,
}

/// Who held a tenant before a claim, as the claimant sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Before {
    /// Nobody.
    Nobody,
    /// An earlier life of the claimant's own directory.
    Ourselves,
    /// Somebody else; and whether the claimant's directory, or one it is a copy of, ever did.
    Others { ourselves_once: bool },
}

/// Claims the next generation of a tenant; from the return on every older one is fenced.
///
/// # Errors
/// `Unavailable`, `Corrupt`. It may be tried again in the same life: a claim that was made and not answered is found.
pub fn claim(store: &dyn Store, tenant: TenantId, identity: &Identity) -> Result<Claimed> {
    let claimant = identity.claimant();
    let newest = newest_claim(store, tenant)?;
    // A claim of ours that seemed to have failed is among those that are listed.
    if newest > Generation(0) && read(store, tenant, newest)? == claimant {
        return claimed(store, tenant, newest, identity);
    }
    let mut generation = newest.next();
    for _ in 0..RACE_MAX {
        match store.put_new(&names::claim(tenant, generation), claimant.encode()) {
            Ok(()) => return claimed(store, tenant, generation, identity),
            Err(RemoteError::Exists { .. }) if read(store, tenant, generation)? == claimant => {
                return claimed(store, tenant, generation, identity);
            }
            Err(RemoteError::Exists { .. }) => generation = generation.next(),
            Err(error) => return Err(error),
        }
    }
    let name = names::claims_folder(tenant);
    Err(RemoteError::corrupt(&name, "no generation can be claimed"))
}

/// True while nobody has claimed a later generation.
///
/// # Errors
/// `Unavailable`: nobody knows.
pub fn is_newest(store: &dyn Store, tenant: TenantId, generation: Generation) -> Result<bool> {
    Ok(!store.exists(&names::claim(tenant, generation.next()))?)
}

/// Zero when there is none.
fn newest_claim(store: &dyn Store, tenant: TenantId) -> Result<Generation> {
    let files = store.list(&names::claims_folder(tenant))?;
    Ok(files.iter().filter_map(|file| names::parse_claim(file)).max().unwrap_or_default())
}

fn read(store: &dyn Store, tenant: TenantId, generation: Generation) -> Result<Claimant> {
    let name = names::claim(tenant, generation);
    Claimant::decode(&name, &store.get(&name)?)
}

/// Looks at the claims before `generation`, back to the newest that this directory made.
fn claimed(
    store: &dyn Store,
    tenant: TenantId,
    generation: Generation,
    identity: &Identity,
) -> Result<Claimed> {
    let Some(last) = generation.previous() else {
        return Ok(Claimed { generation, before: Before::Nobody });
    };
    if identity.knows(&read(store, tenant, last)?) {
        return Ok(Claimed { generation, before: Before::Ourselves });
    }
    let mut at = Some(last);
    while let Some(earlier) = at {
        if read(store, tenant, earlier)?.holder == identity.claimant().holder {
            return Ok(Claimed { generation, before: Before::Others { ourselves_once: true } });
        }
        at = earlier.previous();
    }
    Ok(Claimed { generation, before: Before::Others { ourselves_once: false } })
}

#[cfg(test)]
mod tests;
