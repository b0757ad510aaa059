//! What an engine hands over to be published: a tenant at one moment, all of it durable on the local disk.

use std::{
    any::Any,
    path::PathBuf,
    sync::{Arc, Weak},
};

use bytes::Bytes;
use treering_types::{Lsn, TenantId, TimelineId};

use crate::names::TimelineLife;

/// A tenant, consistent in itself: every timeline keeps what the branches named in `manifest` need of it.
pub struct TenantSnapshot {
    /// The engine's count of writes of the tenant manifest.
    pub sequence: u64,
    pub manifest: Bytes,
    /// Those that were flushed.
    pub timelines: Vec<TimelineSnapshot>,
}

/// One timeline.
pub struct TimelineSnapshot {
    pub timeline: TimelineId,
    pub pg_tli: u32,
    /// Without it the tenant makes no sense: its root.
    pub is_root: bool,
    /// The engine's count of writes of the timeline's manifest.
    pub sequence: u64,
    pub disk_consistent_lsn: Lsn,
    /// `None`: as it was published under this count.
    pub content: Option<Content>,
}

impl TimelineSnapshot {
    pub fn life(&self) -> TimelineLife {
        TimelineLife { timeline: self.timeline, pg_tli: self.pg_tli }
    }
}

/// A timeline's manifest and the layers that it names.
pub struct Content {
    pub manifest: Bytes,
    pub layers: Vec<LayerSnapshot>,
}

/// One layer.
pub struct LayerSnapshot {
    pub number: u64,
    pub size: u64,
    /// SHA-256 of all but the last [`UNDIGESTED`] bytes.
    pub digest: [u8; 32],
    pub path: PathBuf,
    /// Alive while somebody may still read the layer.
    pub in_use: Weak<dyn Any + Send + Sync>,
}

/// Bytes at the end of a layer file that its digest does not cover: itself and the magic (`docs/formats/layer.md`).
pub const UNDIGESTED: u64 = 32 + 8;

/// Which layer of which timeline of which tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LayerId {
    pub tenant: TenantId,
    pub life: TimelineLife,
    pub number: u64,
}

/// Nobody reads it.
pub fn unused() -> Weak<dyn Any + Send + Sync> {
    let nothing: Arc<dyn Any + Send + Sync> = Arc::new(());
    Arc::downgrade(&nothing)
}
