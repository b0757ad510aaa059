//! A map as everyone sees it: its file, its blocks, and reading. Readers never write to the map.

use core::ops::Range;
use core::sync::atomic::{AtomicU32, Ordering};

use crate::block::{self, Block};
use crate::claim::{Pending, Truncation, Write};
use crate::header::{self, FileIdentity, HEADER_WORDS, HeaderError};
use crate::shared::SharedWord;
use crate::{BLOCK_SIZE, BLOCKS_MAX};

/// A view of one file's map in shared memory. Blocks beyond it are present by definition.
///
/// Copying it copies two pointers. The header is checked once; the count of blocks is this process's own from
/// then on, so that scribbled memory is never indexed by.
#[derive(Debug)]
pub struct Map<'m, W = AtomicU32> {
    header: &'m [W; HEADER_WORDS],
    words: &'m [W],
}

impl<W> Clone for Map<'_, W> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<W> Copy for Map<'_, W> {}

/// A block stands in the way of a call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NotReady {
    /// The first such block.
    pub block: u32,
    /// What to do about it.
    pub reason: Reason,
}

/// What a block that is not ready needs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reason {
    /// A fetch: ask the agent.
    Absent,
    /// The agent is storing it: wait, or ask.
    Fetching,
    /// Another process is writing it: wait.
    Writing,
    /// The agent is dropping it: ask, or wait if it is to be written.
    Dropping,
    /// Nothing; it became ready meanwhile.
    Changed,
    /// The word is not one that the protocol writes. Fail the call.
    Damaged,
}

/// Proof of the state before a read, to be checked after it.
#[derive(Clone, PartialEq, Eq, Debug)]
#[must_use = "bytes read under a ticket mean nothing until it is validated"]
pub struct ReadTicket {
    blocks: Range<u32>,
    version_sum: u64,
}

impl<'m, W: SharedWord> Map<'m, W> {
    /// Makes a map of a file of `block_count` blocks, all absent, out of zeroed words.
    ///
    /// For the agent, before the file's compute starts. The words must be zero and nobody else's.
    pub fn create(
        words: &'m [W],
        file_number: u64,
        identity: FileIdentity,
        block_count: u32,
    ) -> Result<Self, HeaderError> {
        let (header, behind) = header::split(words)?;
        header::fits(block_count, behind.len())?;
        if identity.birth_ns == 0 {
            return Err(HeaderError::NoBirthTime);
        }
        header::write(header, file_number, identity, block_count);
        Self::open(words)
    }

    /// Opens the map at the start of `words`, which may be longer than it.
    pub fn open(words: &'m [W]) -> Result<Self, HeaderError> {
        let (header, behind) = header::split(words)?;
        let block_count = header::check(header, behind.len())?;
        let words =
            behind.get(..block_count as usize).ok_or(HeaderError::BlockCount(block_count))?;
        Ok(Map { header, words })
    }

    /// A map that was opened before, in exactly its words: what it is a map of is not looked at again.
    #[inline]
    pub(crate) fn checked_before(words: &'m [W]) -> Option<Self> {
        let (header, words) = words.split_first_chunk::<HEADER_WORDS>()?;
        Some(Map { header, words })
    }

    /// Words that a map of this many blocks takes.
    pub const fn words_for(block_count: u32) -> usize {
        HEADER_WORDS + block_count as usize
    }

    /// Whether this is the map of the file that a descriptor is open on.
    pub fn is_of(&self, identity: FileIdentity) -> bool {
        header::identity(self.header) == identity
    }

    /// The number by which the agent knows the file.
    pub fn file_number(&self) -> u64 {
        header::file_number(self.header)
    }

    /// Tells the agent that the file was unlinked: no more fetching ahead, no dropping.
    pub fn mark_unlinked(&self) {
        header::set_unlinked(self.header);
    }

    /// Whether the file was unlinked.
    pub fn is_unlinked(&self) -> bool {
        header::is_unlinked(self.header)
    }

    /// Blocks of the file at start.
    pub fn block_count(&self) -> u32 {
        // Checked on opening to be at most BLOCKS_MAX.
        u32::try_from(self.words.len()).unwrap_or(BLOCKS_MAX)
    }

    /// What a block's word says just now; `None` if it is damaged or not in the map.
    pub fn block(&self, block: u32) -> Option<Block> {
        self.word(block).and_then(|word| Block::decode(word.load(Ordering::Acquire)))
    }

    /// Whether all of these bytes are in the file just now. A hint: a drop may follow at once.
    pub fn is_present(&self, offset: u64, length: u64) -> bool {
        self.begin_read(offset, length).is_ok()
    }

    /// Before `pread` of these bytes. Afterwards: [`Map::validate`].
    #[inline]
    pub fn begin_read(&self, offset: u64, length: u64) -> Result<ReadTicket, NotReady> {
        let blocks = self.blocks_of(offset, length);
        let mut version_sum = 0_u64;
        for (block, word) in self.enumerate(&blocks) {
            let seen = word.load(Ordering::Acquire);
            if !block::is_readable(seen) {
                return Err(NotReady { block, reason: block::reason(seen) });
            }
            version_sum = version_sum.wrapping_add(u64::from(block::version(seen)));
        }
        Ok(ReadTicket { blocks, version_sum })
    }

    /// After the `pread`: whether what it returned counts. If not, begin again.
    ///
    /// Versions only grow, so their sum is unchanged only if each of them is.
    #[inline]
    pub fn validate(&self, ticket: &ReadTicket) -> bool {
        // With the release fence in `claim_drop`: who saw a hole sees its version.
        W::fence(Ordering::Acquire);
        let sum = self.enumerate(&ticket.blocks).fold(0_u64, |sum, (_, word)| {
            sum.wrapping_add(u64::from(block::version(word.load(Ordering::Relaxed))))
        });
        sum == ticket.version_sum
    }

    /// A write of these bytes, no block claimed yet: go on with [`Pending::advance`].
    pub fn write(&self, offset: u64, length: u64) -> Pending<'m, W, Write> {
        let blocks = self.blocks_of(offset, length);
        Pending::new(self.words, blocks, Write { offset, end: offset.saturating_add(length) })
    }

    /// A truncation to `size_bytes`, no block claimed yet: go on with [`Pending::advance`].
    pub fn truncate(&self, size_bytes: u64) -> Pending<'m, W, Truncation> {
        let cut = self.blocks_of(size_bytes, u64::MAX);
        Pending::new(self.words, cut, Truncation { size_bytes })
    }

    /// The mapped blocks that a range of bytes touches.
    #[inline]
    fn blocks_of(&self, offset: u64, length: u64) -> Range<u32> {
        let count = self.block_count();
        let clip = |block: u64| u32::try_from(block).map_or(count, |block| block.min(count));
        if length == 0 {
            return 0..0;
        }
        let end = offset.saturating_add(length);
        clip(offset / BLOCK_SIZE)..clip(end.div_ceil(BLOCK_SIZE))
    }

    #[inline]
    fn enumerate(&self, blocks: &Range<u32>) -> impl Iterator<Item = (u32, &'m W)> + use<'m, W> {
        let words = self.words.get(blocks.start as usize..blocks.end as usize).unwrap_or(&[]);
        (blocks.start..).zip(words)
    }

    pub(crate) fn word(&self, block: u32) -> Option<&'m W> {
        self.words.get(block as usize)
    }

    pub(crate) fn words(&self) -> &'m [W] {
        self.words
    }
}

#[cfg(test)]
pub(crate) mod tests;
