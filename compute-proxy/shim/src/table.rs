//! What each descriptor is, by its number: one look-up, no lock.
//!
//! A process's own; a fork copies it with the descriptors. An entry is set after the call that makes the descriptor
//! and cleared before the call that closes it, so that a number used again never finds its forerunner's.

use core::ffi::c_int;
use core::sync::atomic::{AtomicU64, Ordering};

use treering_presence::MapPlace;

/// Descriptors with an entry. One beyond is plain for ever, so a file that needs more cannot be opened there.
pub const DESCRIPTORS: usize = 65_536;

static TABLE: [AtomicU64; DESCRIPTORS] = [const { AtomicU64::new(0) }; DESCRIPTORS];

/// What a descriptor is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Entry {
    /// Not ours to look at.
    Plain,
    /// A file with a presence map.
    Mapped(Mapped),
    /// The library's own connection, which Postgres does not know of.
    Ours,
}

/// A descriptor of a file with a map.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mapped {
    /// Its map.
    pub place: MapPlace,
    /// Whether it was opened for appending. The kernel was told that it was not: the place of a write must be known
    /// before it is made.
    pub appends: bool,
}

/// ```text
///   63        32   29      8     2     1 0
///  | map's unit |  | blocks |   | app | 1 |
/// ```
const KIND: u64 = 0b11;
const MAPPED: u64 = 1;
const OURS: u64 = 3;
const APPENDS: u64 = 1 << 2;
const VALUE_SHIFT: u32 = 8;
const BLOCKS: u64 = (1 << 18) - 1;

impl Entry {
    fn encode(self) -> u64 {
        match self {
            Entry::Plain => 0,
            Entry::Mapped(file) => {
                let appends = if file.appends { APPENDS } else { 0 };
                let blocks = u64::from(file.place.block_count) & BLOCKS;
                MAPPED | appends | blocks << VALUE_SHIFT | u64::from(file.place.unit) << 32
            }
            Entry::Ours => OURS,
        }
    }

    #[inline]
    fn decode(word: u64) -> Entry {
        match word & KIND {
            MAPPED => Entry::Mapped(Mapped {
                place: MapPlace {
                    unit: (word >> 32) as u32,
                    block_count: (word >> VALUE_SHIFT & BLOCKS) as u32,
                },
                appends: word & APPENDS != 0,
            }),
            OURS => Entry::Ours,
            _ => Entry::Plain,
        }
    }
}

/// What a descriptor is.
#[inline]
pub fn get(fd: c_int) -> Entry {
    slot(fd).map_or(Entry::Plain, |slot| Entry::decode(slot.load(Ordering::Relaxed)))
}

/// The file, if it has a map.
#[inline]
pub fn mapped(fd: c_int) -> Option<Mapped> {
    match get(fd) {
        Entry::Mapped(file) => Some(file),
        Entry::Plain | Entry::Ours => None,
    }
}

/// Whether a descriptor can be anything but plain.
pub fn has_room(fd: c_int) -> bool {
    slot(fd).is_some()
}

/// Says what a descriptor is.
pub fn set(fd: c_int, entry: Entry) {
    if let Some(slot) = slot(fd) {
        slot.store(entry.encode(), Ordering::Relaxed);
    }
}

#[inline]
fn slot(fd: c_int) -> Option<&'static AtomicU64> {
    usize::try_from(fd).ok().and_then(|fd| TABLE.get(fd))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_what_was_set() {
        let place = MapPlace { unit: u32::MAX, block_count: treering_presence::BLOCKS_MAX };
        let small = MapPlace { unit: 1, block_count: 0 };
        for entry in [
            Entry::Plain,
            Entry::Ours,
            Entry::Mapped(Mapped { place, appends: true }),
            Entry::Mapped(Mapped { place: small, appends: false }),
        ] {
            assert_eq!(Entry::decode(entry.encode()), entry);
        }
    }

    #[test]
    fn numbers_outside_are_plain() {
        for fd in [-1, i32::MIN, DESCRIPTORS as c_int, i32::MAX] {
            set(fd, Entry::Ours);
            assert_eq!(get(fd), Entry::Plain);
            assert!(!has_room(fd));
        }
    }
}
