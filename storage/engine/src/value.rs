//! Values and write batches: what a writer hands to a timeline.

use bytes::Bytes;
use treering_types::{Key, Lsn};

/// Longest value that is stored: a WAL record is at most 1020 MiB (`XLogRecordMaxSize`), plus our own header.
pub const VALUE_BYTES_MAX: usize = 1 << 30;

/// What is stored at one (key, LSN).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value {
    /// No older value of the key is needed to read this one.
    pub base: bool,
    /// The value's own encoding; no bytes mean that the key is gone from this LSN on. Kept as it is handed in: a slice of
    /// a larger buffer keeps all of that in memory.
    pub bytes: Bytes,
}

impl Value {
    /// A value that stands alone.
    pub fn whole(bytes: impl Into<Bytes>) -> Value {
        Value { base: true, bytes: bytes.into() }
    }

    /// A change to the value before it.
    pub fn change(bytes: impl Into<Bytes>) -> Value {
        Value { base: false, bytes: bytes.into() }
    }

    /// The key does not exist from this LSN on.
    pub const fn tombstone() -> Value {
        Value { base: true, bytes: Bytes::new() }
    }

    /// True for a value that says the key is gone.
    pub fn is_tombstone(&self) -> bool {
        self.bytes.is_empty()
    }
}

/// Changes that become visible together.
///
/// LSNs do not go back within a batch, lie above the timeline's `last_record_lsn` and at or below the batch's. Several
/// values of one key at one LSN are kept in order: a page read applies them all, a value read sees the last.
#[derive(Clone, Debug, Default)]
pub struct WriteBatch {
    pub values: Vec<(Key, Lsn, Value)>,
    /// The timeline's `last_record_lsn` once the batch is visible: the end of the last record in it.
    pub last_record_lsn: Lsn,
}

impl WriteBatch {
    /// An empty batch that moves the watermark to `last_record_lsn`.
    pub fn new(last_record_lsn: Lsn) -> WriteBatch {
        WriteBatch { values: Vec::new(), last_record_lsn }
    }

    /// Appends a value.
    pub fn put(&mut self, key: Key, lsn: Lsn, value: Value) {
        self.values.push((key, lsn, value));
    }
}

/// The order in which a scan goes through its range.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    Forward,
    Backward,
}
