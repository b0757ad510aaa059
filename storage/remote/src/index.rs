//! The index: what a tenant is made of at one moment, in the store. The newest one is the truth.
//!
//! `<tenant>/indexes/<generation>-<version>`, created if absent, never changed: a put that arrives late can only become an index that has been
//! superseded already. Greater generation wins, then greater version. The manifests in it are the engine's own, byte for byte.

use std::collections::BTreeMap;

use bytes::Bytes;
use treering_types::{Lsn, TenantId, TimelineId};

use crate::{
    binary::{Reader, Writer},
    error::Result,
    generation::Generation,
    names::{self, TimelineLife},
};

const INDEX_MAGIC: [u8; 8] = *b"TRINDEX\n";
const TIMELINE_MAGIC: [u8; 8] = *b"TROTIML\n";
const VERSION: u32 = 1;
/// Bytes of one encoded timeline of an index, and of one layer of a timeline.
const TIMELINE_SIZE: usize = 16 + 4 + 8 + 8 + 8;
const LAYER_SIZE: usize = 8 + 8;

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Index {
    pub tenant: TenantId,
    pub generation: Generation,
    pub version: u64,
    /// The engine's count of writes of the tenant manifest.
    pub sequence: u64,
    /// The engine's tenant manifest; `None` once the tenant is deleted.
    pub manifest: Option<Bytes>,
    /// Timelines with a manifest of their own: those that were flushed.
    pub timelines: BTreeMap<TimelineId, TimelineAt>,
}

/// Which object holds a timeline's manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimelineAt {
    pub pg_tli: u32,
    /// The generation that wrote the object.
    pub generation: Generation,
    /// The engine's count of writes of the timeline's manifest.
    pub sequence: u64,
    pub disk_consistent_lsn: Lsn,
}

impl TimelineAt {
    pub fn life(&self, timeline: TimelineId) -> TimelineLife {
        TimelineLife { timeline, pg_tli: self.pg_tli }
    }
}

impl Index {
    pub fn name(&self) -> String {
        names::index(self.tenant, self.generation, self.version)
    }

    /// True when both say the same, whoever says it.
    pub fn says_the_same(&self, other: &Index) -> bool {
        (self.sequence, &self.manifest, &self.timelines)
            == (other.sequence, &other.manifest, &other.timelines)
    }

    pub fn encode(&self) -> Bytes {
        let mut out = Writer::default();
        out.bytes(&self.tenant.0).u64(self.generation.0).u64(self.version).u64(self.sequence);
        out.block(self.manifest.as_deref().unwrap_or_default());
        out.u32(self.timelines.len() as u32);
        for (id, at) in &self.timelines {
            out.bytes(&id.0).u32(at.pg_tli).u64(at.generation.0);
            out.u64(at.sequence).u64(at.disk_consistent_lsn.0);
        }
        out.sealed(INDEX_MAGIC, VERSION)
    }

    /// # Errors
    /// `Corrupt`, also for an index that belongs elsewhere; `Newer`.
    pub fn decode(
        tenant: TenantId,
        generation: Generation,
        version: u64,
        bytes: &[u8],
    ) -> Result<Index> {
        let name = names::index(tenant, generation, version);
        let mut reader = Reader::open(&name, bytes, INDEX_MAGIC, VERSION)?;
        let found = (TenantId(reader.array()?), Generation(reader.u64()?), reader.u64()?);
        if found != (tenant, generation, version) {
            return Err(reader.corrupt("belongs to another name"));
        }
        let sequence = reader.u64()?;
        let manifest = Some(Bytes::copy_from_slice(reader.block()?)).filter(|m| !m.is_empty());
        let mut timelines = BTreeMap::new();
        for _ in 0..reader.count(TIMELINE_SIZE)? {
            let id = TimelineId(reader.array()?);
            let at = TimelineAt {
                pg_tli: reader.u32()?,
                generation: Generation(reader.u64()?),
                sequence: reader.u64()?,
                disk_consistent_lsn: Lsn(reader.u64()?),
            };
            if timelines.insert(id, at).is_some() {
                return Err(reader.corrupt("names a timeline twice"));
            }
        }
        reader.finish()?;
        Ok(Index { tenant, generation, version, sequence, manifest, timelines })
    }
}

/// `<tenant>/<timeline>-<pg_tli>/<generation>-<sequence>.manifest`: a timeline's manifest, and which generation wrote each layer in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TimelineObject {
    pub manifest: Bytes,
    /// By layer number.
    pub layers: BTreeMap<u64, Generation>,
}

impl TimelineObject {
    pub fn encode(&self, tenant: TenantId, life: TimelineLife) -> Bytes {
        let mut out = Writer::default();
        out.bytes(&tenant.0).bytes(&life.timeline.0).u32(life.pg_tli).block(&self.manifest);
        out.u32(self.layers.len() as u32);
        for (number, generation) in &self.layers {
            out.u64(*number).u64(generation.0);
        }
        out.sealed(TIMELINE_MAGIC, VERSION)
    }

    /// # Errors
    /// `Corrupt`, also for an object that belongs elsewhere; `Newer`.
    pub fn decode(
        tenant: TenantId,
        life: TimelineLife,
        name: &str,
        bytes: &[u8],
    ) -> Result<TimelineObject> {
        let mut reader = Reader::open(name, bytes, TIMELINE_MAGIC, VERSION)?;
        let timeline = (TenantId(reader.array()?), TimelineId(reader.array()?), reader.u32()?);
        if timeline != (tenant, life.timeline, life.pg_tli) {
            return Err(reader.corrupt("belongs to another timeline"));
        }
        let manifest = Bytes::copy_from_slice(reader.block()?);
        let mut layers = BTreeMap::new();
        for _ in 0..reader.count(LAYER_SIZE)? {
            layers.insert(reader.u64()?, Generation(reader.u64()?));
        }
        reader.finish()?;
        Ok(TimelineObject { manifest, layers })
    }
}

#[cfg(test)]
mod tests;
