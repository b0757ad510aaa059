//! The tenant manifest: which timelines exist. A branch exists from the moment this file names it.

use std::collections::BTreeMap;

use treering_pgfmt::version::PgMajor;
use treering_types::{Lsn, TenantId, TimelineId};

use super::store::Manifest;
use crate::binary::{Malformed, Put, Reader};

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TenantManifest {
    pub tenant: TenantId,
    /// Counts the writes of this file.
    pub sequence: u64,
    pub pg_major: PgMajor,
    /// Postgres's system identifier, the same on all timelines.
    pub system_id: u64,
    /// The next Postgres timeline number; never goes back, so that none is used twice.
    pub next_pg_tli: u32,
    pub timelines: BTreeMap<TimelineId, TimelineEntry>,
}

/// What the tenant knows about one timeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimelineEntry {
    /// The ancestor and the fork LSN; `None` for the root.
    pub ancestor: Option<(TimelineId, Lsn)>,
    pub pg_tli: u32,
    /// First LSN of its own: the fork LSN, or where the import stands.
    pub start_lsn: Lsn,
    /// µs since 2000-01-01.
    pub created_at: i64,
    /// It has been flushed: its own manifest must exist. (Not set: it may exist; none means that it is empty.)
    pub flushed: bool,
    /// Kept, and not to be read or written before it is unarchived.
    pub archived: bool,
}

impl TenantManifest {
    /// Timelines forked from `ancestor`, with their fork LSNs.
    pub fn children(&self, ancestor: TimelineId) -> impl Iterator<Item = (TimelineId, Lsn)> {
        self.timelines.iter().filter_map(move |(id, entry)| {
            entry.ancestor.filter(|(parent, _)| *parent == ancestor).map(|(_, lsn)| (*id, lsn))
        })
    }

    /// The root timeline, if there is one yet.
    pub fn root(&self) -> Option<TimelineId> {
        self.timelines.iter().find(|(_, entry)| entry.ancestor.is_none()).map(|(id, _)| *id)
    }
}

const HAS_ANCESTOR: u8 = 1;
const FLUSHED: u8 = 2;
/// Since version 2.
const ARCHIVED: u8 = 4;
/// Least bytes of one encoded timeline.
const ENTRY_SIZE: usize = 16 + 1 + 4 + 8 + 8;

impl Manifest for TenantManifest {
    const MAGIC: [u8; 8] = *b"TRTENANT";
    const VERSION: u32 = 2;

    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend_from_slice(&self.tenant.0);
        out.put_u64(self.sequence);
        out.put_u32(self.pg_major.number());
        out.put_u64(self.system_id);
        out.put_u32(self.next_pg_tli);
        out.put_count(self.timelines.len());
        for (id, entry) in &self.timelines {
            out.extend_from_slice(&id.0);
            let ancestor = if entry.ancestor.is_some() { HAS_ANCESTOR } else { 0 };
            let flushed = if entry.flushed { FLUSHED } else { 0 };
            let archived = if entry.archived { ARCHIVED } else { 0 };
            out.put_u8(ancestor | flushed | archived);
            out.put_u32(entry.pg_tli);
            out.put_u64(entry.start_lsn.0);
            out.extend_from_slice(&entry.created_at.to_le_bytes());
            if let Some((ancestor, lsn)) = entry.ancestor {
                out.extend_from_slice(&ancestor.0);
                out.put_u64(lsn.0);
            }
        }
        out
    }

    fn decode(reader: &mut Reader<'_>, version: u32) -> Result<TenantManifest, Malformed> {
        let tenant = TenantId(reader.array()?);
        let sequence = reader.u64()?;
        let pg_major = PgMajor::from_number(reader.u32()?)
            .map_err(|_| Malformed("unknown Postgres major version"))?;
        let (system_id, next_pg_tli) = (reader.u64()?, reader.u32()?);
        let count = reader.count(ENTRY_SIZE)?;
        let mut timelines = BTreeMap::new();
        for _ in 0..count {
            let (id, entry) = decode_entry(reader, version)?;
            if timelines.insert(id, entry).is_some() {
                return Err(Malformed("a timeline is named twice"));
            }
        }
        Ok(TenantManifest { tenant, sequence, pg_major, system_id, next_pg_tli, timelines })
    }
}

fn decode_entry(
    reader: &mut Reader<'_>,
    version: u32,
) -> Result<(TimelineId, TimelineEntry), Malformed> {
    let id = TimelineId(reader.array()?);
    let flags = reader.u8()?;
    let known = HAS_ANCESTOR | FLUSHED | if version > 1 { ARCHIVED } else { 0 };
    if flags & !known != 0 {
        return Err(Malformed("unknown timeline flags"));
    }
    let pg_tli = reader.u32()?;
    let start_lsn = Lsn(reader.u64()?);
    let created_at = reader.i64()?;
    let ancestor = match flags & HAS_ANCESTOR {
        0 => None,
        _ => Some((TimelineId(reader.array()?), Lsn(reader.u64()?))),
    };
    let flushed = flags & FLUSHED != 0;
    let archived = flags & ARCHIVED != 0;
    Ok((id, TimelineEntry { ancestor, pg_tli, start_lsn, created_at, flushed, archived }))
}
