//! The file that the library and the agent share: its header, the index by inode, the maps. Layout:
//! `docs/formats/pages-door.md`. Pure: bytes that somebody else mapped.

use core::sync::atomic::Ordering;

use crate::header::{FileIdentity, HEADER_WORDS, HeaderError};
use crate::map::Map;
use crate::shared::{SharedWord, update};
use crate::{BLOCK_SIZE, BLOCKS_MAX};

/// The first eight bytes of the file.
pub const DIRECTORY_MAGIC: [u8; 8] = *b"TRPGDOOR";
/// The format this crate reads and writes.
pub const DIRECTORY_VERSION: u32 = 3;
/// Bytes of the socket's path, with its closing zero.
pub const SOCKET_PATH_BYTES: usize = 112;
/// Words before the index.
const FIXED_WORDS: usize = 64;
const SLOT_WORDS: usize = 4;
/// Maps start at multiples of this many words: 64 bytes.
const UNIT_WORDS: usize = 16;
/// Most maps of one file: a third of what the index's numbers could name.
const MAPS_MAX: u32 = 1 << 28;

/// Word indexes.
mod at {
    pub const MAGIC: usize = 0;
    pub const VERSION: usize = 2;
    pub const PRESENCE_VERSION: usize = 3;
    pub const LENGTH: usize = 4;
    pub const START: usize = 6;
    pub const MAPS: usize = 8;
    pub const SLOTS: usize = 9;
    pub const WAIT_LIMIT: usize = 10;
    pub const FLUSH_ASKED: usize = 11;
    pub const FLUSH_DONE: usize = 12;
    pub const REPORTED: usize = 13;
    pub const SOCKET: usize = 16;
}

/// Why some memory is not a directory of maps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DirectoryError {
    /// Not one, or not a whole one yet.
    Magic,
    /// Another version of the file or of the maps in it.
    Version(u32),
    /// The length in the header is not the memory's.
    Length(u64),
    /// Slots that are no power of two, too few, or beyond the end.
    Index(u32),
    /// More than can be laid out.
    TooMany,
    /// A socket path that is empty, too long or not closed.
    SocketPath,
    /// No start number.
    Start,
    /// A map that cannot be.
    Map(HeaderError),
}

impl core::fmt::Display for DirectoryError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            DirectoryError::Magic => write!(f, "no directory of presence maps here"),
            DirectoryError::Version(found) => write!(
                f,
                "presence maps of version {found}, the library and the agent are of another release"
            ),
            DirectoryError::Length(found) => {
                write!(f, "presence maps of {found} bytes, but the file has another length")
            }
            DirectoryError::Index(slots) => write!(f, "an index of {slots} slots cannot be"),
            DirectoryError::TooMany => write!(f, "more files or blocks than can be laid out"),
            DirectoryError::SocketPath => write!(f, "no usable path of the agent's socket"),
            DirectoryError::Start => write!(f, "no start number"),
            DirectoryError::Map(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for DirectoryError {}

/// Where a file's map is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MapPlace {
    /// Start, in units of 64 bytes.
    pub unit: u32,
    /// Blocks of the file.
    pub block_count: u32,
}

/// What is decided before the file is made: places for maps of these sizes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    map_count: u32,
    slots: u32,
    words: usize,
    next_word: usize,
}

impl Layout {
    /// For this many maps, none placed yet.
    pub fn new(map_count: usize) -> Result<Layout, DirectoryError> {
        let map_count = u32::try_from(map_count).ok().filter(|count| *count <= MAPS_MAX);
        let map_count = map_count.ok_or(DirectoryError::TooMany)?;
        let slots = map_count.saturating_mul(2).max(16).next_power_of_two();
        let next_word = first_map_word(slots);
        Ok(Layout { map_count, slots, words: next_word, next_word })
    }

    /// A place for the next map.
    pub fn place(&mut self, block_count: u32) -> Result<MapPlace, DirectoryError> {
        let unit = u32::try_from(self.next_word.div_ceil(UNIT_WORDS));
        let unit = unit.map_err(|_| DirectoryError::TooMany)?;
        let words = HEADER_WORDS.saturating_add(block_count as usize);
        self.next_word = self.next_word.saturating_add(words.next_multiple_of(UNIT_WORDS));
        self.words = self.next_word;
        Ok(MapPlace { unit, block_count })
    }

    /// Length of the file, once all maps are placed.
    pub fn bytes(&self) -> u64 {
        (self.words as u64).saturating_mul(4)
    }
}

const fn first_map_word(slots: u32) -> usize {
    (FIXED_WORDS + slots as usize * SLOT_WORDS).next_multiple_of(UNIT_WORDS)
}

/// What the agent decides about a start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms<'p> {
    /// Random, never zero.
    pub start: u64,
    /// The longest that one call of Postgres waits.
    pub wait_limit_ms: u32,
    /// Path of the agent's socket.
    pub socket: &'p str,
}

/// The shared file, mapped. Copying it copies a slice.
#[derive(Debug)]
pub struct Directory<'m, W> {
    words: &'m [W],
    slots: u32,
}

impl<W> Clone for Directory<'_, W> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<W> Copy for Directory<'_, W> {}

impl<'m, W: SharedWord> Directory<'m, W> {
    /// Writes the header over zeroed words, all but the magic: add the maps, then [`Directory::publish`].
    pub fn create(
        words: &'m [W],
        layout: &Layout,
        terms: &Terms<'_>,
    ) -> Result<Self, DirectoryError> {
        if words.len() != layout.words {
            return Err(DirectoryError::Length(layout.bytes()));
        }
        let path = terms.socket.as_bytes();
        if path.is_empty() || path.len() >= SOCKET_PATH_BYTES || path.contains(&0) {
            return Err(DirectoryError::SocketPath);
        }
        if terms.start == 0 {
            return Err(DirectoryError::Start);
        }
        let directory = Directory { words, slots: layout.slots };
        directory.put(at::VERSION, DIRECTORY_VERSION);
        directory.put(at::PRESENCE_VERSION, crate::VERSION);
        directory.put_wide(at::LENGTH, layout.bytes());
        directory.put_wide(at::START, terms.start);
        directory.put(at::MAPS, layout.map_count);
        directory.put(at::SLOTS, layout.slots);
        directory.put(at::WAIT_LIMIT, terms.wait_limit_ms);
        for (index, piece) in path.chunks(4).enumerate() {
            let mut bytes = [0; 4];
            bytes.iter_mut().zip(piece).for_each(|(to, from)| *to = *from);
            directory.put(at::SOCKET + index, u32::from_le_bytes(bytes));
        }
        Ok(directory)
    }

    /// Makes the map of a file and enters it into the index.
    pub fn add(
        &self,
        file_number: u64,
        identity: FileIdentity,
        place: MapPlace,
    ) -> Result<Map<'m, W>, DirectoryError> {
        let words = self.map_words(place).ok_or(DirectoryError::TooMany)?;
        let map = Map::create(words, file_number, identity, place.block_count);
        let map = map.map_err(DirectoryError::Map)?;
        let free = self.probe(identity.inode).find(|slot| self.get(slot + 2) == 0);
        let slot = free.ok_or(DirectoryError::Index(self.slots))?;
        self.put_wide(slot, identity.inode);
        self.put(slot + 3, place.block_count);
        self.put(slot + 2, place.unit);
        Ok(map)
    }

    /// All maps are in: it can be opened.
    pub fn publish(&self) {
        self.put_wide(at::MAGIC, u64::from_le_bytes(DIRECTORY_MAGIC));
    }

    /// Opens the file: `words` is all of it.
    pub fn open(words: &'m [W]) -> Result<Self, DirectoryError> {
        let directory = Directory { words, slots: 0 };
        if words.len() < FIXED_WORDS
            || directory.get_wide(at::MAGIC) != u64::from_le_bytes(DIRECTORY_MAGIC)
        {
            return Err(DirectoryError::Magic);
        }
        for (index, expected) in
            [(at::VERSION, DIRECTORY_VERSION), (at::PRESENCE_VERSION, crate::VERSION)]
        {
            let found = directory.get(index);
            if found != expected {
                return Err(DirectoryError::Version(found));
            }
        }
        let length = directory.get_wide(at::LENGTH);
        if length != (words.len() as u64).saturating_mul(4) {
            return Err(DirectoryError::Length(length));
        }
        let slots = directory.get(at::SLOTS);
        let enough = u64::from(slots) >= u64::from(directory.get(at::MAPS)).saturating_mul(2);
        if !slots.is_power_of_two() || !enough || first_map_word(slots) > words.len() {
            return Err(DirectoryError::Index(slots));
        }
        if directory.start() == 0 {
            return Err(DirectoryError::Start);
        }
        directory.socket_path(&mut [0; SOCKET_PATH_BYTES]).ok_or(DirectoryError::SocketPath)?;
        Ok(Directory { words, slots })
    }

    /// Maps in the file.
    pub fn map_count(&self) -> u32 {
        self.get(at::MAPS)
    }

    /// The number of the start.
    pub fn start(&self) -> u64 {
        self.get_wide(at::START)
    }

    /// The longest that one call of Postgres waits.
    pub fn wait_limit_ms(&self) -> u32 {
        self.get(at::WAIT_LIMIT)
    }

    /// Copies the socket's path, without its closing zero, and gives its length.
    pub fn socket_path(&self, into: &mut [u8; SOCKET_PATH_BYTES]) -> Option<usize> {
        for (index, piece) in into.chunks_mut(4).enumerate() {
            let word = self.get(at::SOCKET + index).to_le_bytes();
            piece.iter_mut().zip(word).for_each(|(to, from)| *to = from);
        }
        into.iter().position(|byte| *byte == 0).filter(|length| *length > 0)
    }

    /// The map of a file, if it has one.
    ///
    /// An inode number only proposes: a later file may have the number of one that is gone, and files of several
    /// file systems (tablespaces) may share one. So every proposal is asked; one that is damaged might have been the
    /// right one, and is an error.
    pub fn find(&self, identity: FileIdentity) -> Result<Option<MapPlace>, HeaderError> {
        for place in self.proposed(identity.inode) {
            if self.map(place)?.is_of(identity) {
                return Ok(Some(place));
            }
        }
        Ok(None)
    }

    /// The places of an inode number, up to the first empty slot.
    fn proposed(&self, inode: u64) -> impl Iterator<Item = MapPlace> + use<'_, 'm, W> {
        self.probe(inode)
            .map(|slot| (self.get_wide(slot), self.get(slot + 2), self.get(slot + 3)))
            .take_while(|(_, unit, _)| *unit != 0)
            .filter(move |(found, _, _)| *found == inode)
            .map(|(_, unit, block_count)| MapPlace { unit, block_count })
    }

    /// Opens and checks the map at a place.
    pub fn map(&self, place: MapPlace) -> Result<Map<'m, W>, HeaderError> {
        let words = self.map_words(place).ok_or(HeaderError::BlockCount(place.block_count))?;
        let map = Map::open(words)?;
        match map.block_count() == place.block_count {
            true => Ok(map),
            false => Err(HeaderError::BlockCount(place.block_count)),
        }
    }

    /// The map at a place that [`Directory::map`] has checked before: for every call on a file, without looking at
    /// the header again.
    #[inline]
    pub fn known_map(&self, place: MapPlace) -> Option<Map<'m, W>> {
        self.map_words(place).and_then(Map::checked_before)
    }

    /// Every place in the index.
    pub fn places(&self) -> impl Iterator<Item = MapPlace> + use<'_, 'm, W> {
        (0..self.slots as usize).filter_map(|slot| {
            let slot = FIXED_WORDS + slot * SLOT_WORDS;
            let unit = self.get(slot + 2);
            (unit != 0).then(|| MapPlace { unit, block_count: self.get(slot + 3) })
        })
    }

    /// Asks that all WAL which is written by now become durable; the number of the request. Numbers count up, and wrap.
    pub fn ask_for_flush(&self) -> u32 {
        let next = |asked: u32| Ok::<_, core::convert::Infallible>(asked.wrapping_add(1));
        match self.words.get(at::FLUSH_ASKED).map(|word| update(word, next)) {
            Some(Ok(before)) => before.wrapping_add(1),
            None => 0,
        }
    }

    /// Whether a request is done: what was written before it is durable.
    pub fn is_flushed(&self, request: u32) -> bool {
        let ahead = self.get(at::FLUSH_DONE).wrapping_sub(request);
        ahead <= u32::MAX / 2
    }

    /// The newest request, unless it is done. Read before the WAL that it is about.
    pub fn flush_request(&self) -> Option<u32> {
        let asked = self.get(at::FLUSH_ASKED);
        (!self.is_flushed(asked)).then_some(asked)
    }

    /// All requests up to this one are done. To be followed by a wake-up of those who sleep on [`Directory::flush_word`].
    pub fn set_flushed(&self, request: u32) {
        self.put(at::FLUSH_DONE, request);
    }

    /// The word that changes when requests are done, to sleep on.
    pub fn flush_word(&self) -> Option<&'m W> {
        self.words.get(at::FLUSH_DONE)
    }

    /// A process said hello; the first one to do so is the postmaster, before it has children.
    pub fn set_reported(&self, process: u32) {
        if let Some(word) = self.words.get(at::REPORTED) {
            let _ = word.compare_exchange(0, process, Ordering::AcqRel, Ordering::Acquire);
        }
    }

    /// The process that said hello first; 0 before that.
    pub fn reported(&self) -> u32 {
        self.get(at::REPORTED)
    }

    #[inline]
    fn map_words(&self, place: MapPlace) -> Option<&'m [W]> {
        if place.block_count > BLOCKS_MAX {
            return None;
        }
        let start = (place.unit as usize).checked_mul(UNIT_WORDS)?;
        let end = start.checked_add(HEADER_WORDS)?.checked_add(place.block_count as usize)?;
        self.words.get(start..end)
    }

    /// Word indexes of the slots to look at, in order, each once.
    fn probe(&self, inode: u64) -> impl Iterator<Item = usize> + use<W> {
        let slots = self.slots as usize;
        let hash = inode.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let first = match self.slots.checked_ilog2() {
            None | Some(0) => 0,
            Some(bits) => (hash >> (64 - bits)) as usize,
        };
        (0..slots).map(move |step| {
            FIXED_WORDS + (first.wrapping_add(step) & slots.wrapping_sub(1)) * SLOT_WORDS
        })
    }

    #[inline]
    fn get(&self, index: usize) -> u32 {
        self.words.get(index).map_or(0, |word| word.load(Ordering::Acquire))
    }

    fn put(&self, index: usize, value: u32) {
        if let Some(word) = self.words.get(index) {
            word.store(value, Ordering::Release);
        }
    }

    fn get_wide(&self, index: usize) -> u64 {
        u64::from(self.get(index)) | u64::from(self.get(index + 1)) << 32
    }

    fn put_wide(&self, index: usize, value: u64) {
        self.put(index, value as u32);
        self.put(index + 1, (value >> 32) as u32);
    }
}

/// Blocks of a file of this size; `None` when it is not whole blocks, or more than a segment.
pub fn blocks_of_size(bytes: u64) -> Option<u32> {
    let blocks = u32::try_from(bytes / BLOCK_SIZE).ok()?;
    (bytes.is_multiple_of(BLOCK_SIZE) && blocks <= BLOCKS_MAX).then_some(blocks)
}

#[cfg(test)]
mod tests;
