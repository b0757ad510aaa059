//! Layers: everything a timeline knows about a span of LSNs.
//!
//! - [`open`]: in memory; takes writes until it is frozen.
//! - [`file`]: the one immutable layer file format (`docs/formats/layer.md`), made of [`block`]s, an [`index`] and a
//!   [`bloom`] filter; [`writer`] makes one.

pub(crate) mod block;
pub(crate) mod bloom;
pub(crate) mod file;
pub(crate) mod footer;
pub(crate) mod index;
pub(crate) mod open;
pub(crate) mod writer;

use treering_types::{Key, Lsn, LsnRange, TenantId, TimelineId};

/// Format version of layer files that this version writes, and the newest it reads.
pub const LAYER_FORMAT_VERSION: u32 = 1;

/// What a manifest says about one layer file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerDesc {
    /// Names the file; unique within the timeline, never reused.
    pub number: u64,
    /// Length of the file in bytes.
    pub size: u64,
    /// SHA-256 of everything before the digest in the file.
    pub digest: [u8; 32],
    /// Smallest and largest key.
    pub key_first: Key,
    pub key_last: Key,
    /// LSNs of the values, half-open.
    pub lsns: LsnRange,
    /// Count of values.
    pub entries: u64,
    /// Holds an image for every live key of its range at its lowest LSN.
    pub complete: bool,
}

impl LayerDesc {
    /// The file's name within the timeline's directory.
    pub fn file_name(&self) -> String {
        layer_file_name(self.number)
    }

    /// True when a value of `key` at or below `upto` and above `floor` may be here, judged by ranges alone.
    pub fn may_hold(&self, key: &Key, floor: Lsn, upto: Lsn) -> bool {
        self.key_first <= *key
            && *key <= self.key_last
            && self.lsns.start <= upto
            && self.lsns.end.0.saturating_sub(1) > floor.0
    }
}

/// Which timeline of which tenant a layer belongs to; in every footer, so that a misplaced file is noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerOwner {
    pub tenant: TenantId,
    pub timeline: TimelineId,
}

/// The name of layer file `number`.
pub(crate) fn layer_file_name(number: u64) -> String {
    format!("{number:016x}{LAYER_SUFFIX}")
}

/// How layer files' names end.
pub(crate) const LAYER_SUFFIX: &str = ".layer";

/// One value on its way into a layer file.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub key: Key,
    pub lsn: Lsn,
    /// No older value is needed.
    pub base: bool,
    /// Changes to redo from the base up to and with this one; saturates. Zero for a base.
    pub chain: u16,
    pub bytes: bytes::Bytes,
}
