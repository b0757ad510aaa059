//! A manifest, entry by entry.

use std::path::Path;

use serde::Serialize;
use treering_types::{Lsn, TenantId, TimelineId};

use super::Damage;
use crate::{
    binary::Reader,
    error::EngineError,
    manifest::{
        RunDesc, TenantManifest, TimelineManifest, invariants,
        store::{self, Manifest},
    },
};

/// Bytes before the payload: magic, version, length.
const ENVELOPE_SIZE: usize = 8 + 4 + 8;
/// A payload that lies about its length is not believed beyond this.
const PAYLOAD_BYTES_MAX: u64 = 1 << 30;

/// The envelope.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ManifestHead {
    /// Bytes of the file.
    pub size: u64,
    pub version: Option<u32>,
    pub damage: Vec<Damage>,
}

/// What a tenant's manifest says.
#[derive(Clone, Debug, Default, Serialize)]
pub struct TenantReport {
    #[serde(flatten)]
    pub head: ManifestHead,
    pub tenant: Option<TenantId>,
    pub sequence: u64,
    pub pg_version: u32,
    /// Text: it does not fit a JavaScript number.
    pub system_id: String,
    pub next_pg_tli: u32,
    pub timelines: Vec<TimelineEntryReport>,
}

/// A timeline in its tenant's manifest.
#[derive(Clone, Debug, Serialize)]
pub struct TimelineEntryReport {
    pub timeline: TimelineId,
    pub ancestor: Option<TimelineId>,
    pub pg_tli: u32,
    pub start_lsn: Lsn,
    /// µs since 2000-01-01.
    pub created_at: i64,
    pub flushed: bool,
}

/// What a timeline's manifest says.
#[derive(Clone, Debug, Default, Serialize)]
pub struct TimelineReport {
    #[serde(flatten)]
    pub head: ManifestHead,
    pub tenant: Option<TenantId>,
    pub timeline: Option<TimelineId>,
    pub pg_tli: u32,
    pub sequence: u64,
    pub disk_consistent_lsn: Lsn,
    pub next_layer: u64,
    pub cut_off: Lsn,
    pub leases: Vec<Lsn>,
    /// Newest first.
    pub runs: Vec<RunReport>,
}

/// A run.
#[derive(Clone, Debug, Serialize)]
pub struct RunReport {
    /// What it had to keep when it was written: the cut-off then (0: a flush wrote it), single LSNs, bytes that are superseded.
    pub kept_cut_off: Lsn,
    pub kept_points: u32,
    pub history_bytes: u64,
    pub layers: Vec<LayerLine>,
}

/// A layer as its manifest has it.
#[derive(Clone, Debug, Serialize)]
pub struct LayerLine {
    pub file: String,
    pub size: u64,
    pub entries: u64,
    pub complete: bool,
    pub key_first: String,
    pub key_last: String,
    pub lsn_first: Lsn,
    pub lsn_last: Lsn,
}

pub(super) fn tenant(path: &Path, bytes: &[u8]) -> TenantReport {
    let (head, manifest) = read::<TenantManifest>(path, bytes, invariants::tenant);
    let Some(manifest) = manifest else { return TenantReport { head, ..TenantReport::default() } };
    let timelines = manifest.timelines.iter().map(|(id, entry)| TimelineEntryReport {
        timeline: *id,
        ancestor: entry.ancestor.map(|(ancestor, _)| ancestor),
        pg_tli: entry.pg_tli,
        start_lsn: entry.start_lsn,
        created_at: entry.created_at,
        flushed: entry.flushed,
    });
    TenantReport {
        head,
        tenant: Some(manifest.tenant),
        sequence: manifest.sequence,
        pg_version: manifest.pg_major.number(),
        system_id: manifest.system_id.to_string(),
        next_pg_tli: manifest.next_pg_tli,
        timelines: timelines.collect(),
    }
}

pub(super) fn timeline(path: &Path, bytes: &[u8]) -> TimelineReport {
    let (head, manifest) = read::<TimelineManifest>(path, bytes, invariants::timeline);
    let Some(manifest) = manifest else {
        return TimelineReport { head, ..TimelineReport::default() };
    };
    TimelineReport {
        head,
        tenant: Some(manifest.tenant),
        timeline: Some(manifest.timeline),
        pg_tli: manifest.pg_tli,
        sequence: manifest.sequence,
        disk_consistent_lsn: manifest.disk_consistent_lsn,
        next_layer: manifest.next_layer,
        cut_off: manifest.cut_off,
        leases: manifest.leases,
        runs: manifest.runs.iter().map(run).collect(),
    }
}

fn run(RunDesc { layers, kept }: &RunDesc) -> RunReport {
    let layers = layers.iter().map(|layer| LayerLine {
        file: layer.file_name(),
        size: layer.size,
        entries: layer.entries,
        complete: layer.complete,
        key_first: format!("{:?}", layer.key_first),
        key_last: format!("{:?}", layer.key_last),
        lsn_first: layer.lsns.start,
        lsn_last: Lsn(layer.lsns.end.0.saturating_sub(1)),
    });
    RunReport {
        kept_cut_off: kept.cut_off,
        kept_points: kept.points,
        history_bytes: kept.history_bytes,
        layers: layers.collect(),
    }
}

/// The manifest as the engine reads it; if it would not, what its bytes say, and why it would not.
fn read<M: Manifest>(
    path: &Path,
    bytes: &[u8],
    invariant: fn(&M) -> Result<(), invariants::Broken>,
) -> (ManifestHead, Option<M>) {
    let version =
        bytes.get(8..12).and_then(|bytes| Some(u32::from_le_bytes(*bytes.first_chunk()?)));
    let mut head = ManifestHead { size: bytes.len() as u64, version, damage: Vec::new() };
    let manifest = match store::decode_file::<M>(path, bytes) {
        Ok(manifest) => Some(manifest),
        Err(EngineError::NewerFormat { found, known, .. }) => {
            let what = format!("format version {found}; this version knows up to {known}");
            head.damage.push(Damage::at(8, what));
            None
        }
        Err(error) => {
            let what = match error {
                EngineError::Corrupt { what, .. } => what,
                other => other.to_string(),
            };
            head.damage.push(Damage::at(0, what));
            decode_regardless(bytes, version.unwrap_or(M::VERSION), &mut head)
        }
    };
    if let Some(Err(sentence)) = manifest.as_ref().map(invariant) {
        head.damage.push(Damage::at(ENVELOPE_SIZE as u64, format!("does not hold: {sentence}")));
    }
    (head, manifest)
}

/// Whatever the payload decodes to; bytes that are missing at its end are taken for zeros.
fn decode_regardless<M: Manifest>(
    bytes: &[u8],
    version: u32,
    head: &mut ManifestHead,
) -> Option<M> {
    let stated = bytes.get(12..ENVELOPE_SIZE)?.first_chunk().copied().map(u64::from_le_bytes)?;
    let there = bytes.get(ENVELOPE_SIZE..)?;
    let mut payload = there.to_vec();
    let is_cut = stated > there.len() as u64 && stated <= PAYLOAD_BYTES_MAX;
    if is_cut {
        let what = format!("the payload should have {stated} bytes; zeros are shown for the rest");
        head.damage.push(Damage::at(bytes.len() as u64, what));
        payload.resize(usize::try_from(stated).ok()?, 0);
    } else {
        // The crc32, or more.
        let len = usize::try_from(stated).ok()?.min(there.len().saturating_sub(4));
        payload.truncate(len);
    }
    match M::decode(&mut Reader::new(&payload), version.min(M::VERSION)) {
        Ok(manifest) => Some(manifest),
        Err(malformed) => {
            head.damage.push(Damage::at(ENVELOPE_SIZE as u64, malformed.0));
            None
        }
    }
}
