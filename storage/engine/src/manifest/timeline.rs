//! The timeline manifest: which layer files make up a timeline, and up to which LSN they are its whole truth.

use treering_types::{KEY_SIZE, Key, Lsn, LsnRange, TenantId, TimelineId};

use super::store::Manifest;
use crate::{
    binary::{Malformed, Put, Reader},
    layer::LayerDesc,
};

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TimelineManifest {
    pub tenant: TenantId,
    pub timeline: TimelineId,
    /// Which life of this timeline id the file belongs to: Postgres timeline numbers are never reused.
    pub pg_tli: u32,
    /// Counts the writes of this file.
    pub sequence: u64,
    /// Everything up to here is in the layers; what was ingested above it is lost with the process.
    pub disk_consistent_lsn: Lsn,
    /// Number of the next layer file.
    pub next_layer: u64,
    /// Runs, newest first. Layers of one run hold disjoint key ranges, in key order; each run is older than the one
    /// before it.
    pub runs: Vec<Vec<LayerDesc>>,
}

impl TimelineManifest {
    /// The state of a timeline that has not been flushed yet.
    pub fn empty(
        tenant: TenantId,
        timeline: TimelineId,
        pg_tli: u32,
        start_lsn: Lsn,
    ) -> TimelineManifest {
        TimelineManifest {
            tenant,
            timeline,
            pg_tli,
            sequence: 0,
            disk_consistent_lsn: start_lsn,
            next_layer: 1,
            runs: Vec::new(),
        }
    }

    /// All layers, newest run first.
    pub fn layers(&self) -> impl Iterator<Item = &LayerDesc> {
        self.runs.iter().flatten()
    }
}

/// Bytes of one encoded layer.
const LAYER_SIZE: usize = 8 + 8 + 32 + 2 * KEY_SIZE + 8 + 8 + 8 + 1;

impl Manifest for TimelineManifest {
    const MAGIC: [u8; 8] = *b"TRTIMELN";

    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend_from_slice(&self.tenant.0);
        out.extend_from_slice(&self.timeline.0);
        out.put_u32(self.pg_tli);
        out.put_u64(self.sequence);
        out.put_u64(self.disk_consistent_lsn.0);
        out.put_u64(self.next_layer);
        out.put_count(self.runs.len());
        for run in &self.runs {
            out.put_count(run.len());
            run.iter().for_each(|layer| encode_layer(layer, &mut out));
        }
        out
    }

    fn decode(reader: &mut Reader<'_>) -> Result<TimelineManifest, Malformed> {
        let tenant = TenantId(reader.array()?);
        let timeline = TimelineId(reader.array()?);
        let pg_tli = reader.u32()?;
        let sequence = reader.u64()?;
        let disk_consistent_lsn = Lsn(reader.u64()?);
        let next_layer = reader.u64()?;
        let run_count = reader.count(4)?;
        let mut runs = Vec::with_capacity(run_count);
        for _ in 0..run_count {
            let layer_count = reader.count(LAYER_SIZE)?;
            let run: Result<Vec<_>, _> = (0..layer_count).map(|_| decode_layer(reader)).collect();
            runs.push(run?);
        }
        Ok(TimelineManifest {
            tenant,
            timeline,
            pg_tli,
            sequence,
            disk_consistent_lsn,
            next_layer,
            runs,
        })
    }
}

fn encode_layer(layer: &LayerDesc, out: &mut Vec<u8>) {
    out.put_u64(layer.number);
    out.put_u64(layer.size);
    out.extend_from_slice(&layer.digest);
    out.extend_from_slice(&layer.key_first.0);
    out.extend_from_slice(&layer.key_last.0);
    out.put_u64(layer.lsns.start.0);
    out.put_u64(layer.lsns.end.0);
    out.put_u64(layer.entries);
    out.put_u8(u8::from(layer.complete));
}

fn decode_layer(reader: &mut Reader<'_>) -> Result<LayerDesc, Malformed> {
    Ok(LayerDesc {
        number: reader.u64()?,
        size: reader.u64()?,
        digest: reader.array()?,
        key_first: Key(reader.array()?),
        key_last: Key(reader.array()?),
        lsns: LsnRange { start: Lsn(reader.u64()?), end: Lsn(reader.u64()?) },
        entries: reader.u64()?,
        complete: reader.flag()?,
    })
}
