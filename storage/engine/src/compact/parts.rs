//! How a large merge is shared among threads: ranges of keys that hold about the same number of bytes.
//!
//! What is kept of a key depends on that key's entries alone (and on the timeline's history, which a merge does not change), so ranges
//! can be merged side by side. There are two exceptions. The classes of record ends and of times are one history each, across keys: no
//! range begins inside one. And pages of copied databases are announced by relation metadata far ahead of them: while a copy
//! is due the merge is one range. The parts' layers, one part's behind the other's, are the run.

use treering_types::{Key, KeyClass, KeyRange};

use crate::layer_map::Run;

/// Places at which the keys are looked at, to find where a range should begin.
const SAMPLES_MAX: usize = 4096;

/// Half-open ranges, rising and without gaps, that hold all keys of `runs`: at most `parts_max`, each (roughly) of `bytes_min` bytes of
/// files or more. The same files give the same ranges.
pub(crate) fn ranges(runs: &[Run], parts_max: usize, bytes_min: u64) -> Vec<KeyRange> {
    let bytes: u64 = runs.iter().map(Run::bytes).sum();
    let parts = usize::try_from(bytes / bytes_min.max(1)).unwrap_or(usize::MAX).min(parts_max);
    let samples = if parts > 1 { samples(runs) } else { Vec::new() };
    let mut starts = cuts(&samples, parts);
    starts.insert(0, Key::MIN);
    let ends = starts.iter().skip(1).copied().chain([Key::MAX]);
    starts.iter().copied().zip(ends).map(|(start, end)| start..end).collect()
}

/// Keys in order, with the bytes of files from each on.
fn samples(runs: &[Run]) -> Vec<(Key, u64)> {
    let layers = || runs.iter().flat_map(|run| &run.layers);
    let blocks: usize = layers().map(|layer| layer.block_count()).sum();
    let stride = blocks.div_ceil(SAMPLES_MAX);
    let mut samples: Vec<_> = layers().flat_map(|layer| layer.weights(stride)).collect();
    samples.sort_unstable();
    samples
}

/// Where ranges behind the first begin.
fn cuts(samples: &[(Key, u64)], parts: usize) -> Vec<Key> {
    let total: u64 = samples.iter().map(|(_, bytes)| bytes).sum();
    let first = samples.first().map_or(Key::MIN, |(key, _)| *key);
    let mut cuts: Vec<Key> = Vec::new();
    let mut before = 0;
    for (key, bytes) in samples {
        let due = share(total, cuts.len() + 1, parts);
        let cut = cut_at(key);
        let is_new = cut > cuts.last().copied().unwrap_or(first);
        if cuts.len() + 1 < parts && before >= due && is_new {
            cuts.push(cut);
        }
        before += bytes;
    }
    cuts
}

fn share(total: u64, part: usize, parts: usize) -> u64 {
    let share = u128::from(total) * part as u128 / parts.max(1) as u128;
    u64::try_from(share).unwrap_or(total)
}

/// The key at or before this one at which a range may begin.
fn cut_at(key: &Key) -> Key {
    match key.class() {
        Ok(class @ (KeyClass::TimeIndex | KeyClass::RecordEnds)) => Key::class_range(class).start,
        _ => *key,
    }
}

#[cfg(test)]
mod tests {
    use treering_types::{Fork, RelTag};

    use super::*;

    fn block(number: u32) -> Key {
        let rel = RelTag { tablespace: 1663, database: 5, relation: 16384, fork: Fork::Main };
        Key::rel_block(rel, number)
    }

    #[test]
    fn cuts_share_the_bytes() {
        let even: Vec<_> = (0..100).map(|number| (block(number), 10)).collect();
        assert_eq!(cuts(&even, 1), []);
        assert_eq!(cuts(&even, 2), [block(50)]);
        assert_eq!(cuts(&even, 4), [block(25), block(50), block(75)]);
        // A page with a long history is not cut.
        let hot: Vec<_> = (0..100).map(|n| (block(if n < 90 { 3 } else { n }), 10)).collect();
        assert_eq!(cuts(&hot, 2), [block(90)]);
        assert_eq!(cuts(&[(block(1), 10), (block(1), 10)], 2), []);
        assert_eq!(cuts(&[], 2), []);
    }

    #[test]
    fn a_class_that_is_one_history_is_not_cut() {
        let ends = Key::class_range(KeyClass::RecordEnds).start;
        let mut samples = vec![(block(1), 10)];
        samples.extend((1..100u8).map(|n| {
            let mut key = ends;
            key.0[17] = n;
            (key, 10)
        }));
        assert_eq!(cuts(&samples, 3), [ends]);
    }
}
