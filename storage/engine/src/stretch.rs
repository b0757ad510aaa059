//! Where a flush begins another layer file: around stretches of neighbouring blocks. Pure.
//!
//! What writes a relation anew (a load, `VACUUM FULL`, an index build) goes through it in order, so one flush has one part of it and the
//! next one the next. In a file of its own such a part shares no keys with the files of the flushes around it, and merges need not
//! read it (`compact::moves`). In one file with the flush's other keys, which every flush has (sizes of relations, commit status,
//! record ends), it would lie between them.
//!
//! A stretch has no gaps: a block that is missing may be written later. Upper pages of an index are, when they are full, long after
//! their neighbours; what lies in front of the one that is not full yet is a stretch that nothing is added to.

use treering_types::{Key, KeyClass};

/// Takes a layer's keys in order.
pub(crate) struct Stretches {
    bytes_min: usize,
    /// The stretch so far: its first and its last key, its bytes.
    open: Option<(Key, Key, usize)>,
    starts: Vec<Key>,
}

impl Stretches {
    /// Shorter ones than `bytes_min`, in bytes of values, stay with the other keys.
    pub fn new(bytes_min: usize) -> Stretches {
        Stretches { bytes_min, open: None, starts: Vec::new() }
    }

    /// The next key, and the bytes of its values.
    pub fn push(&mut self, key: Key, bytes: usize) {
        match &mut self.open {
            Some((_, last, held)) if goes_on(last, &key) => {
                *last = key;
                *held += bytes;
            }
            _ => {
                self.close(Some(key));
                self.open = Some((key, key, bytes));
            }
        }
    }

    fn close(&mut self, next: Option<Key>) {
        if let Some((first, _, bytes)) = self.open.take()
            && bytes >= self.bytes_min
        {
            // It may be the end of another one, too.
            if self.starts.last() != Some(&first) {
                self.starts.push(first);
            }
            self.starts.extend(next);
        }
    }

    /// The keys with which files begin, rising; the first file begins in any case.
    pub fn finish(mut self) -> Vec<Key> {
        self.close(None);
        self.starts
    }
}

fn goes_on(last: &Key, next: &Key) -> bool {
    // The key is the block's number behind what names the relation fork.
    last.class() == Ok(KeyClass::RelBlock) && last.block() < u32::MAX && *next == last.next()
}

#[cfg(test)]
mod tests {
    use treering_types::{Fork, RelTag, SlruKind};

    use super::*;

    fn rel(relation: u32) -> RelTag {
        RelTag { tablespace: 1663, database: 5, relation, fork: Fork::Main }
    }

    /// The starts of files for these keys, each with ten bytes, of stretches from fifty on.
    fn starts(keys: impl IntoIterator<Item = Key>) -> Vec<Key> {
        let mut stretches = Stretches::new(50);
        keys.into_iter().for_each(|key| stretches.push(key, 10));
        stretches.finish()
    }

    fn blocks(relation: u32, blocks: impl IntoIterator<Item = u32>) -> Vec<Key> {
        blocks.into_iter().map(|block| Key::rel_block(rel(relation), block)).collect()
    }

    #[test]
    fn a_stretch_has_a_file_of_its_own() {
        let block = |relation, block| Key::rel_block(rel(relation), block);
        let other = |page| Key::slru(SlruKind::Xact, page);
        assert_eq!(starts([]), []);
        assert_eq!(starts(blocks(7, [1, 20, 40, 60, 80, 100])), [], "no neighbours");
        assert_eq!(starts(blocks(7, 10..14)), [], "too short");
        assert_eq!(starts(blocks(7, 10..15)), [block(7, 10)]);
        let mut keys = blocks(6, [3, 4]);
        keys.extend(blocks(7, [0]));
        // A page is missing: it is to come.
        keys.extend(blocks(7, (100..105).chain(106..108)));
        keys.push(other(1));
        assert_eq!(starts(keys.iter().copied()), [block(7, 100), block(7, 106)]);
        // Two, one behind the other, and one that begins where its relation does.
        keys.truncate(3);
        keys.extend(blocks(7, (100..105).chain(200..205)));
        keys.extend(blocks(8, 0..6));
        assert_eq!(starts(keys), [block(7, 100), block(7, 200), block(8, 0)]);
    }

    #[test]
    fn relations_and_classes_end_a_stretch() {
        let keys = blocks(7, 0..3).into_iter().chain(blocks(8, 3..6));
        assert_eq!(starts(keys), []);
        assert_eq!(starts((0..9).map(|page| Key::slru(SlruKind::Xact, page))), []);
        let meta = Key::rel_meta(rel(7));
        assert_eq!(starts([meta].into_iter().chain(blocks(7, 0..4))), []);
    }
}
