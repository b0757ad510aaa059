//! The open layer: values in memory, one writer, many readers.
//!
//! Invariants: values of one key are kept in the order they were written, LSNs never falling; a value is never changed or
//! removed; once frozen nothing is added. A reader that asks for LSNs at or below a published `last_record_lsn` therefore
//! sees a consistent prefix, whatever the writer adds meanwhile.

use std::{
    collections::BTreeMap,
    ops::{Bound, ControlFlow},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use parking_lot::RwLock;
use treering_types::{Key, KeyRange, Lsn};

use super::bloom;
use crate::value::{Direction, Value};

/// Memory that one value and one key take besides the value's bytes, roughly.
const VALUE_OVERHEAD: usize = 56;
const KEY_OVERHEAD: usize = 128;
/// Values inserted under one hold of the lock, so that readers never wait for a whole batch.
const INSERT_CHUNK: usize = 256;

/// One value of one key.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    pub lsn: Lsn,
    pub base: bool,
    pub bytes: Bytes,
}

#[derive(Default)]
struct History {
    values: Vec<Stored>,
    /// Values since the last base, itself not counted.
    since_base: usize,
}

/// See the module.
pub(crate) struct OpenLayer {
    values: RwLock<BTreeMap<Key, History>>,
    bytes: AtomicUsize,
    /// Memory of all open and frozen layers of the engine; this one's share leaves it when the layer is dropped.
    gauge: Arc<AtomicUsize>,
    /// `last_record_lsn` when it was frozen; zero before.
    end_lsn: AtomicU64,
    opened_at: Instant,
    first_write: OnceLock<Instant>,
}

impl OpenLayer {
    pub fn new(gauge: Arc<AtomicUsize>) -> OpenLayer {
        OpenLayer {
            values: RwLock::default(),
            bytes: AtomicUsize::new(0),
            gauge,
            end_lsn: AtomicU64::new(0),
            opened_at: Instant::now(),
            first_write: OnceLock::new(),
        }
    }

    /// An empty layer to take writes after this one.
    pub fn successor(&self) -> OpenLayer {
        OpenLayer::new(Arc::clone(&self.gauge))
    }

    fn count(&self, bytes: usize) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.gauge.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Memory in use, roughly.
    pub fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    pub fn is_empty(&self) -> bool {
        self.bytes() == 0
    }

    /// How long its oldest value waits; of an empty layer, how long it is open.
    pub fn age(&self) -> Duration {
        self.first_write.get().unwrap_or(&self.opened_at).elapsed()
    }

    /// Marks the layer as complete up to `end_lsn`. The caller holds the writer's lock.
    pub fn freeze(&self, end_lsn: Lsn) {
        self.end_lsn.store(end_lsn.0, Ordering::Release);
    }

    /// The timeline's `last_record_lsn` at the freeze.
    pub fn frozen_at(&self) -> Lsn {
        Lsn(self.end_lsn.load(Ordering::Acquire))
    }

    /// Adds values. Gives back the keys whose run of changes without a base reached a multiple of `chain_max`.
    pub fn insert(&self, values: Vec<(Key, Lsn, Value)>, chain_max: usize) -> Vec<(Key, Lsn)> {
        let mut long = Vec::new();
        self.first_write.get_or_init(Instant::now);
        let mut values = values.into_iter().peekable();
        while values.peek().is_some() {
            let mut map = self.values.write();
            let mut added = 0;
            for (key, lsn, value) in values.by_ref().take(INSERT_CHUNK) {
                let history = map.entry(key).or_default();
                added += value.bytes.len() + VALUE_OVERHEAD;
                added += if history.values.is_empty() { KEY_OVERHEAD } else { 0 };
                history.since_base = if value.base { 0 } else { history.since_base + 1 };
                if !value.base && history.since_base.is_multiple_of(chain_max) {
                    long.push((key, lsn));
                }
                history.values.push(Stored { lsn, base: value.base, bytes: value.bytes });
            }
            self.count(added);
        }
        long
    }

    /// Puts a materialised value behind all values of `key` at or below `lsn`: it changes what a read costs, not
    /// what it sees.
    pub fn insert_image(&self, key: Key, lsn: Lsn, image: Bytes) {
        let mut map = self.values.write();
        let Some(history) = map.get_mut(&key) else { return };
        self.count(image.len() + VALUE_OVERHEAD);
        let at = history.values.partition_point(|value| value.lsn <= lsn);
        history.values.insert(at, Stored { lsn, base: true, bytes: image });
        let after_base = history.values.iter().rev().take_while(|value| !value.base);
        history.since_base = after_base.count();
    }

    /// Calls `visit` with the values of `key` at or below `upto`, newest first, until it breaks.
    pub fn visit_back(
        &self,
        key: &Key,
        upto: Lsn,
        mut visit: impl FnMut(&Stored) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let map = self.values.read();
        let Some(history) = map.get(key) else { return ControlFlow::Continue(()) };
        let end = history.values.partition_point(|value| value.lsn <= upto);
        history.values.iter().take(end).rev().try_for_each(&mut visit)
    }

    /// The newest value of `key` at or below `upto`.
    pub fn newest(&self, key: &Key, upto: Lsn) -> Option<(Lsn, Bytes)> {
        let mut found = None;
        let _ = self.visit_back(key, upto, |value| {
            found = Some((value.lsn, value.bytes.clone()));
            ControlFlow::Break(())
        });
        found
    }

    /// Hashes of its keys; `None` when there are more than `keys_max`.
    pub fn few_keys(&self, keys_max: usize) -> Option<Vec<u64>> {
        let map = self.values.read();
        (map.len() <= keys_max).then(|| map.keys().map(bloom::hash).collect())
    }

    /// The first key of `range` in scan order.
    pub fn first_key(&self, range: &KeyRange, direction: Direction) -> Option<Key> {
        if range.is_empty() {
            return None;
        }
        let map = self.values.read();
        let mut keys = map.range(range.clone());
        let found = match direction {
            Direction::Forward => keys.next(),
            Direction::Backward => keys.next_back(),
        };
        found.map(|(key, _)| *key)
    }

    /// Calls `visit` with each key, in order, and the bytes of its values.
    pub fn visit_sizes(&self, mut visit: impl FnMut(Key, usize)) {
        for (key, history) in self.values.read().iter() {
            visit(*key, history.values.iter().map(|value| value.bytes.len()).sum());
        }
    }

    /// The first key above `after` (the first of all for `None`) with its values in order. For the flush of a frozen layer.
    pub fn next_history(&self, after: Option<Key>) -> Option<(Key, Vec<Stored>)> {
        let map = self.values.read();
        let lower = after.map_or(Bound::Unbounded, Bound::Excluded);
        let (key, history) = map.range((lower, Bound::Unbounded)).next()?;
        Some((*key, history.values.clone()))
    }
}

impl Drop for OpenLayer {
    fn drop(&mut self) {
        self.gauge.fetch_sub(self.bytes(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u32) -> Key {
        Key::slru(treering_types::SlruKind::Xact, number)
    }

    #[test]
    fn reads_see_a_prefix_in_write_order() {
        let layer = OpenLayer::new(Arc::default());
        let put = |lsn, text: &'static str| (key(1), Lsn(lsn), Value::change(text.as_bytes()));
        layer.insert(vec![put(10, "a"), put(20, "b"), put(20, "c"), put(30, "d")], 100);
        let seen = |upto| {
            let mut seen = Vec::new();
            let _ = layer.visit_back(&key(1), Lsn(upto), |value| {
                seen.push(value.bytes.clone());
                ControlFlow::Continue(())
            });
            seen
        };
        assert!(seen(9).is_empty());
        assert_eq!(seen(20), ["c", "b", "a"]);
        layer.insert_image(key(1), Lsn(20), Bytes::from_static(b"image"));
        assert_eq!(seen(25), ["image", "c", "b", "a"]);
        assert_eq!(layer.newest(&key(1), Lsn(99)), Some((Lsn(30), Bytes::from_static(b"d"))));
    }

    #[test]
    fn long_chains_are_reported_until_an_image_comes() {
        let layer = OpenLayer::new(Arc::default());
        let put = |lsn| (key(1), Lsn(lsn), Value::change(b"x".as_slice()));
        assert!(layer.insert(vec![put(1), put(2)], 3).is_empty());
        assert_eq!(layer.insert(vec![put(3), put(4)], 3), [(key(1), Lsn(3))]);
        layer.insert_image(key(1), Lsn(4), Bytes::from_static(b"image"));
        assert!(layer.insert(vec![put(5), put(6)], 3).is_empty());
        assert_eq!(layer.insert(vec![put(7)], 3), [(key(1), Lsn(7))]);
    }
}
