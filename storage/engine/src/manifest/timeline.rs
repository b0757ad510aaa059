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
    /// Gc: below here only what `leases` and the branches of the tenant's manifest name can be read. Zero: no gc yet.
    pub cut_off: Lsn,
    /// Leased LSNs below `cut_off`, rising: they can be read, and outlive a restart until their holders may have asked again.
    pub leases: Vec<Lsn>,
    /// Runs, newest first; each is older than the one before it.
    pub runs: Vec<RunDesc>,
}

/// Layers of disjoint key ranges, in key order, and why they hold what they hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunDesc {
    pub layers: Vec<LayerDesc>,
    pub kept: Kept,
}

/// What a run had to keep when it was written: with what is to be kept now, an estimate of the garbage in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// The cut-off then; zero for a run that a flush wrote.
    pub cut_off: Lsn,
    /// How many single LSNs below it were retained.
    pub points: u32,
    /// About how many of its bytes in files are values that newer values of the same run supersede.
    pub history_bytes: u64,
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
            cut_off: Lsn::INVALID,
            leases: Vec::new(),
            runs: Vec::new(),
        }
    }

    /// All layers, newest run first.
    pub fn layers(&self) -> impl Iterator<Item = &LayerDesc> {
        self.runs.iter().flat_map(|run| &run.layers)
    }
}

/// Bytes of one encoded layer.
const LAYER_SIZE: usize = 8 + 8 + 32 + 2 * KEY_SIZE + 8 + 8 + 8 + 1;

impl Manifest for TimelineManifest {
    const MAGIC: [u8; 8] = *b"TRTIMELN";
    const VERSION: u32 = 2;

    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend_from_slice(&self.tenant.0);
        out.extend_from_slice(&self.timeline.0);
        out.put_u32(self.pg_tli);
        out.put_u64(self.sequence);
        out.put_u64(self.disk_consistent_lsn.0);
        out.put_u64(self.next_layer);
        out.put_u64(self.cut_off.0);
        out.put_count(self.leases.len());
        self.leases.iter().for_each(|lsn| out.put_u64(lsn.0));
        out.put_count(self.runs.len());
        for run in &self.runs {
            out.put_u64(run.kept.cut_off.0);
            out.put_u32(run.kept.points);
            out.put_u64(run.kept.history_bytes);
            out.put_count(run.layers.len());
            run.layers.iter().for_each(|layer| encode_layer(layer, &mut out));
        }
        out
    }

    fn decode(reader: &mut Reader<'_>, version: u32) -> Result<TimelineManifest, Malformed> {
        let tenant = TenantId(reader.array()?);
        let timeline = TimelineId(reader.array()?);
        let pg_tli = reader.u32()?;
        let sequence = reader.u64()?;
        let disk_consistent_lsn = Lsn(reader.u64()?);
        let next_layer = reader.u64()?;
        let (cut_off, leases) = match version {
            1 => (Lsn::INVALID, Vec::new()),
            _ => (Lsn(reader.u64()?), decode_leases(reader)?),
        };
        let run_count = reader.count(4)?;
        let runs: Result<Vec<_>, _> = (0..run_count).map(|_| decode_run(reader, version)).collect();
        Ok(TimelineManifest {
            tenant,
            timeline,
            pg_tli,
            sequence,
            disk_consistent_lsn,
            next_layer,
            cut_off,
            leases,
            runs: runs?,
        })
    }
}

fn decode_leases(reader: &mut Reader<'_>) -> Result<Vec<Lsn>, Malformed> {
    let count = reader.count(8)?;
    (0..count).map(|_| reader.u64().map(Lsn)).collect()
}

fn decode_run(reader: &mut Reader<'_>, version: u32) -> Result<RunDesc, Malformed> {
    let kept = match version {
        1 => Kept::default(),
        _ => Kept {
            cut_off: Lsn(reader.u64()?),
            points: reader.u32()?,
            history_bytes: reader.u64()?,
        },
    };
    let count = reader.count(LAYER_SIZE)?;
    let layers: Result<Vec<_>, _> = (0..count).map(|_| decode_layer(reader)).collect();
    Ok(RunDesc { layers: layers?, kept })
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
