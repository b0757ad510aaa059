//! A branch's ancestors, flattened: what all its reads share, made once and kept until a layer of an ancestor changes.
//!
//! Depth must not show, so a read may neither walk a thousand timelines to see what they hold nor ask each of them for a key. Up to
//! the fork nothing in an ancestor changes but its form (a flush, a merge): the list of ancestors with their layers is kept
//! ([`Lineages`]) and forgotten whenever a timeline that has branches gets other layers, so that nothing old is held for long.
//! And ancestors come in *groups* of 64: a map from the hash of a key to the members that may hold it. Groups are cut by depth, counted
//! from the root, so branches of one line share them; the group of a full 64 belongs to its youngest member. A member with
//! more than a thousand keys is not in the map: it is always asked, and its filters and indexes answer.

use std::{
    collections::{HashMap, HashSet},
    hash::{BuildHasherDefault, Hasher},
    sync::{Arc, Weak},
};

use parking_lot::RwLock;
use treering_types::{Key, Lsn};

use super::Level;
use crate::{layer::bloom, layer_map::LayerSet};

/// Members of a group: the bits of a mask.
const GROUP_LEVELS: usize = 64;
/// A branch with fewer ancestors asks each of them.
const INDEXED_FROM: usize = 4;
/// A member with more keys is always asked.
const MEMBER_KEYS_MAX: usize = 1024;
/// Levels of all kept ancestries of a tenant, about 64 bytes each.
const LEVELS_KEPT_MAX: usize = 1 << 17;

/// See the module.
pub(crate) struct Ancestry {
    /// Nearest first; never empty.
    pub levels: Vec<Level>,
    /// Nearest first. Of 64 levels each, the nearest of what is left over; none when there are few levels.
    groups: Vec<Arc<Group>>,
}

/// Which of up to 64 neighbouring levels may hold a key.
pub(crate) struct Group {
    /// The layers that it was made of, held by name only.
    made_of: Vec<Weak<LayerSet>>,
    /// Up to here all keys of the nearest member are in it. (The others' forks are fixed.)
    upto: Lsn,
    /// Bit n: the nth level, nearest first.
    by_key: HashMap<u64, u64, BuildHasherDefault<AlreadyHashed>>,
    always: u64,
}

impl Ancestry {
    /// `levels`, nearest first. `full_group` gives the group of 64 levels, the first of which is the level of that number.
    pub fn new(levels: Vec<Level>, full_group: impl Fn(usize, &[Level]) -> Arc<Group>) -> Ancestry {
        let mut groups = Vec::new();
        if levels.len() >= INDEXED_FROM {
            let (rest, full) = levels.split_at(levels.len() % GROUP_LEVELS);
            if !rest.is_empty() {
                groups.push(Arc::new(Group::of(rest, Lsn::MAX)));
            }
            let full = full.chunks(GROUP_LEVELS).enumerate();
            groups.extend(
                full.map(|(n, members)| full_group(rest.len() + n * GROUP_LEVELS, members)),
            );
        }
        Ancestry { levels, groups }
    }

    /// Without an index: every level is asked for every key.
    pub fn unindexed(levels: Vec<Level>) -> Ancestry {
        Ancestry { levels, groups: Vec::new() }
    }

    /// The levels that may hold `key`, nearest first.
    pub fn levels_of<'a>(&'a self, key: &Key) -> LevelsOf<'a> {
        let hash = bloom::hash(key);
        LevelsOf { ancestry: self, hash, next_group: 0, base: 0, mask: 0, next_level: 0 }
    }
}

/// See [`Ancestry::levels_of`].
pub(crate) struct LevelsOf<'a> {
    ancestry: &'a Ancestry,
    hash: u64,
    next_group: usize,
    /// Number of the group's first level.
    base: usize,
    /// What is left of the group's answer.
    mask: u64,
    /// Number of the next group's first level, or of the next level where there are no groups.
    next_level: usize,
}

impl<'a> Iterator for LevelsOf<'a> {
    type Item = &'a Level;

    fn next(&mut self) -> Option<&'a Level> {
        if self.ancestry.groups.is_empty() {
            let level = self.ancestry.levels.get(self.next_level);
            self.next_level += 1;
            return level;
        }
        while self.mask == 0 {
            let group = self.ancestry.groups.get(self.next_group)?;
            self.next_group += 1;
            self.base = self.next_level;
            self.next_level += group.made_of.len();
            self.mask = group.always | group.by_key.get(&self.hash).copied().unwrap_or(0);
        }
        let bit = self.mask.trailing_zeros() as usize;
        self.mask &= self.mask - 1;
        self.ancestry.levels.get(self.base + bit)
    }
}

impl Group {
    /// Of at most 64 levels; `upto`: what the nearest one's timeline had reached before its layers were taken.
    pub fn of(levels: &[Level], upto: Lsn) -> Group {
        let mut group = Group {
            made_of: levels.iter().map(|level| Arc::downgrade(&level.layers)).collect(),
            upto,
            by_key: HashMap::default(),
            always: 0,
        };
        for (bit, level) in levels.iter().enumerate() {
            match keys_of(&level.layers) {
                None => group.always |= 1 << bit,
                Some(hashes) => {
                    for hash in hashes {
                        *group.by_key.entry(hash).or_default() |= 1 << bit;
                    }
                }
            }
        }
        group
    }

    /// True when it says what these levels hold, up to where they are clipped.
    pub fn fits(&self, levels: &[Level]) -> bool {
        let same = |(made_of, level): (&Weak<LayerSet>, &Level)| {
            std::ptr::eq(made_of.as_ptr(), Arc::as_ptr(&level.layers))
        };
        self.made_of.len() == levels.len()
            && levels.first().is_some_and(|nearest| nearest.clip <= self.upto)
            && self.made_of.iter().zip(levels).all(same)
    }
}

/// Hashes of all keys of these layers; `None` when they are many, or cannot be read now.
fn keys_of(layers: &LayerSet) -> Option<HashSet<u64, BuildHasherDefault<AlreadyHashed>>> {
    let mut hashes = HashSet::default();
    for layer in layers.in_memory() {
        hashes.extend(layer.few_keys(MEMBER_KEYS_MAX)?);
    }
    for file in layers.files.files() {
        hashes.extend(file.few_keys(MEMBER_KEYS_MAX)?.iter());
    }
    (hashes.len() <= MEMBER_KEYS_MAX).then_some(hashes)
}

/// Keys' hashes are hashes.
#[derive(Default)]
pub(crate) struct AlreadyHashed(u64);

impl Hasher for AlreadyHashed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.0 = self.0.rotate_left(8) ^ u64::from(*byte));
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

/// The ancestries of a tenant's branches, as long as no layer in them has been replaced.
///
/// What is in here is as good as new: a timeline replaces its layers first and then has everything forgotten, and an ancestry that
/// was begun before that is not taken in.
#[derive(Default)]
pub(crate) struct Lineages(RwLock<Known>);

#[derive(Default)]
struct Known {
    /// How often all has been forgotten.
    epoch: u64,
    levels: usize,
    /// By serial of the branch.
    ancestries: HashMap<u64, Arc<Ancestry>>,
}

impl Lineages {
    /// The ancestry of a branch; else the epoch in which it is to be made.
    pub fn get(&self, serial: u64) -> Result<Arc<Ancestry>, u64> {
        let known = self.0.read();
        known.ancestries.get(&serial).cloned().ok_or(known.epoch)
    }

    /// Keeps an ancestry that was begun in `epoch`.
    pub fn keep(&self, serial: u64, epoch: u64, ancestry: &Arc<Ancestry>) {
        let mut known = self.0.write();
        if known.epoch != epoch {
            return;
        }
        let full = known.levels + ancestry.levels.len() > LEVELS_KEPT_MAX;
        let _gone = full.then(|| known.forget());
        known.levels += ancestry.levels.len();
        known.ancestries.insert(serial, Arc::clone(ancestry));
    }

    /// A timeline that has branches has got other layers.
    pub fn forget(&self) {
        let gone = {
            let mut known = self.0.write();
            known.epoch += 1;
            known.forget()
        };
        // Not under the lock: the last reference to an open layer may go.
        drop(gone);
    }
}

impl Known {
    fn forget(&mut self) -> HashMap<u64, Arc<Ancestry>> {
        self.levels = 0;
        std::mem::take(&mut self.ancestries)
    }
}
