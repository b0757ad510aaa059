//! A map's first sixteen words: what it is a map of. Written once, before anything else sees the map.

use core::sync::atomic::Ordering;

use crate::shared::SharedWord;
use crate::{BLOCK_SIZE, BLOCKS_MAX};

/// Words before the first block's.
pub const HEADER_WORDS: usize = 16;
/// The first eight bytes of a map.
pub const MAGIC: [u8; 8] = *b"TRPRESNC";
/// The format this crate reads and writes.
pub const VERSION: u32 = 1;

/// Word indexes.
mod at {
    pub const MAGIC: usize = 0;
    pub const VERSION: usize = 2;
    pub const BLOCK_SIZE: usize = 3;
    pub const FILE_NUMBER: usize = 4;
    pub const DEVICE: usize = 6;
    pub const INODE: usize = 8;
    pub const BIRTH: usize = 10;
    pub const SIZE: usize = 12;
    pub const BLOCK_COUNT: usize = 14;
    pub const UNLINKED: usize = 15;
}

/// Which file a descriptor is open on, whatever its path is by now.
///
/// Inode numbers are used again, births are not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FileIdentity {
    /// Device number.
    pub device: u64,
    /// Inode number.
    pub inode: u64,
    /// Birth time (`statx`), nanoseconds since 1970; never zero.
    pub birth_ns: u64,
}

/// Why some memory is not a map.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HeaderError {
    /// No map, or not a whole one yet.
    Magic,
    /// Another version of the format.
    Version(u32),
    /// Another block size.
    BlockSize(u32),
    /// The file at start, in bytes, does not have this count of blocks.
    Size {
        /// Bytes at start.
        size_bytes: u64,
        /// Blocks.
        block_count: u32,
    },
    /// More blocks than a segment has, or than the memory has words for.
    BlockCount(u32),
    /// A birth time of zero: the file system keeps none, so files cannot be told apart.
    NoBirthTime,
    /// Fewer words than a header.
    Short,
}

impl core::fmt::Display for HeaderError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            HeaderError::Magic => write!(f, "no presence map here"),
            HeaderError::Version(found) => {
                write!(f, "presence map of version {found}, this is version {VERSION}")
            }
            HeaderError::BlockSize(found) => write!(f, "presence map for blocks of {found} bytes"),
            HeaderError::Size { size_bytes, block_count } => {
                write!(f, "presence map of {block_count} blocks for {size_bytes} bytes")
            }
            HeaderError::BlockCount(found) => {
                write!(f, "presence map of {found} blocks does not fit its memory or a segment")
            }
            HeaderError::NoBirthTime => write!(f, "the file system keeps no birth times"),
            HeaderError::Short => write!(f, "memory too small for a presence map"),
        }
    }
}

impl core::error::Error for HeaderError {}

/// The words of a map, parted; the header's are checked for their number only.
pub(crate) fn split<W>(words: &[W]) -> Result<(&[W; HEADER_WORDS], &[W]), HeaderError> {
    words.split_first_chunk::<HEADER_WORDS>().ok_or(HeaderError::Short)
}

/// Writes a header; the magic last, so that what has one is a whole map.
pub(crate) fn write<W: SharedWord>(
    header: &[W; HEADER_WORDS],
    file_number: u64,
    identity: FileIdentity,
    block_count: u32,
) {
    put(header, at::VERSION, VERSION);
    put(header, at::BLOCK_SIZE, BLOCK_SIZE as u32);
    put_wide(header, at::FILE_NUMBER, file_number);
    put_wide(header, at::DEVICE, identity.device);
    put_wide(header, at::INODE, identity.inode);
    put_wide(header, at::BIRTH, identity.birth_ns);
    put_wide(header, at::SIZE, u64::from(block_count).saturating_mul(BLOCK_SIZE));
    put(header, at::BLOCK_COUNT, block_count);
    put(header, at::UNLINKED, 0);
    put_wide(header, at::MAGIC, u64::from_le_bytes(MAGIC));
}

/// Checks a header against the words behind it; the count of blocks.
pub(crate) fn check<W: SharedWord>(
    header: &[W; HEADER_WORDS],
    words_behind: usize,
) -> Result<u32, HeaderError> {
    if get_wide(header, at::MAGIC) != u64::from_le_bytes(MAGIC) {
        return Err(HeaderError::Magic);
    }
    let version = get(header, at::VERSION);
    if version != VERSION {
        return Err(HeaderError::Version(version));
    }
    let block_size = get(header, at::BLOCK_SIZE);
    if u64::from(block_size) != BLOCK_SIZE {
        return Err(HeaderError::BlockSize(block_size));
    }
    let block_count = get(header, at::BLOCK_COUNT);
    let size_bytes = get_wide(header, at::SIZE);
    if size_bytes != u64::from(block_count).saturating_mul(BLOCK_SIZE) {
        return Err(HeaderError::Size { size_bytes, block_count });
    }
    fits(block_count, words_behind)?;
    if get_wide(header, at::BIRTH) == 0 {
        return Err(HeaderError::NoBirthTime);
    }
    Ok(block_count)
}

/// Whether this many blocks fit a segment and the words.
pub(crate) fn fits(block_count: u32, words_behind: usize) -> Result<(), HeaderError> {
    if block_count > BLOCKS_MAX || block_count as usize > words_behind {
        return Err(HeaderError::BlockCount(block_count));
    }
    Ok(())
}

/// The file's number in the agent.
pub(crate) fn file_number<W: SharedWord>(header: &[W; HEADER_WORDS]) -> u64 {
    get_wide(header, at::FILE_NUMBER)
}

/// The file's identity.
pub(crate) fn identity<W: SharedWord>(header: &[W; HEADER_WORDS]) -> FileIdentity {
    FileIdentity {
        device: get_wide(header, at::DEVICE),
        inode: get_wide(header, at::INODE),
        birth_ns: get_wide(header, at::BIRTH),
    }
}

/// Marks the file as unlinked.
pub(crate) fn set_unlinked<W: SharedWord>(header: &[W; HEADER_WORDS]) {
    put(header, at::UNLINKED, 1);
}

/// Whether the file was unlinked.
pub(crate) fn is_unlinked<W: SharedWord>(header: &[W; HEADER_WORDS]) -> bool {
    get(header, at::UNLINKED) != 0
}

fn get<W: SharedWord>(header: &[W; HEADER_WORDS], index: usize) -> u32 {
    header.get(index).map_or(0, |word| word.load(Ordering::Acquire))
}

fn put<W: SharedWord>(header: &[W; HEADER_WORDS], index: usize, value: u32) {
    if let Some(word) = header.get(index) {
        word.store(value, Ordering::Release);
    }
}

fn get_wide<W: SharedWord>(header: &[W; HEADER_WORDS], index: usize) -> u64 {
    u64::from(get(header, index)) | u64::from(get(header, index + 1)) << 32
}

fn put_wide<W: SharedWord>(header: &[W; HEADER_WORDS], index: usize, value: u64) {
    put(header, index, value as u32);
    put(header, index + 1, (value >> 32) as u32);
}
