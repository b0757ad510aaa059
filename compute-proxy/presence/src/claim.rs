//! Claiming blocks for a write or a truncation, by a process that must not allocate and may have to wait.
//!
//! A [`Pending`] claims in ascending order and keeps what it has while its caller waits for the next block; when
//! all is claimed it becomes a [`Held`], under which the system call is made. Either one, when given up, leaves
//! every block as right as it was: a dropped `Pending` gives back unchanged blocks, a dropped `Held` counts as a
//! call that failed.

use core::mem;
use core::ops::Range;

use crate::BLOCK_SIZE;
use crate::block::{self, Ending};
use crate::map::NotReady;
use crate::shared::{SharedWord, update};

/// What a claim is for.
pub trait Goal: Copy {
    /// Whether the call will define every byte of the block, so that it needs none of the old ones.
    fn covers(&self, block: u32) -> bool;
}

/// A write of bytes.
#[derive(Clone, Copy, Debug)]
pub struct Write {
    pub(crate) offset: u64,
    pub(crate) end: u64,
}

/// A truncation.
#[derive(Clone, Copy, Debug)]
pub struct Truncation {
    pub(crate) size_bytes: u64,
}

impl Goal for Write {
    fn covers(&self, block: u32) -> bool {
        self.offset <= start_of(block) && end_of(block) <= self.end
    }
}

impl Goal for Truncation {
    fn covers(&self, block: u32) -> bool {
        self.size_bytes <= start_of(block)
    }
}

const fn start_of(block: u32) -> u64 {
    block as u64 * BLOCK_SIZE
}

const fn end_of(block: u32) -> u64 {
    start_of(block) + BLOCK_SIZE
}

/// Some blocks claimed, some to go.
#[derive(Debug)]
#[must_use = "dropping it gives the blocks back"]
pub struct Pending<'m, W: SharedWord, G: Goal> {
    claimed: Claimed<'m, W>,
    end: u32,
    goal: G,
}

/// All blocks claimed: make the call, then finish.
#[derive(Debug)]
#[must_use = "dropping it counts as a failed call"]
pub struct Held<'m, W: SharedWord, G: Goal> {
    claimed: Claimed<'m, W>,
    goal: G,
}

/// Blocks in *writing* that are this call's to end.
#[derive(Debug)]
struct Claimed<'m, W> {
    words: &'m [W],
    blocks: Range<u32>,
}

impl<W: SharedWord> Claimed<'_, W> {
    /// Moves them out, so that what is left ends nothing when dropped.
    fn take(&mut self) -> Self {
        Claimed { words: self.words, blocks: mem::replace(&mut self.blocks, 0..0) }
    }

    fn claim_next(&mut self, goal: &impl Goal) -> Result<(), NotReady> {
        let block = self.blocks.end;
        if let Some(word) = self.words.get(block as usize) {
            update(word, |seen| block::claim_write(seen, goal.covers(block)))
                .map_err(|reason| NotReady { block, reason })?;
        }
        self.blocks.end = block.saturating_add(1);
        Ok(())
    }

    /// Ends one block; whether its old bytes were in the file.
    fn end(&self, block: u32, ending: Ending) -> bool {
        let Some(word) = self.words.get(block as usize) else { return true };
        // A word that is not a claim of ours was scribbled on; it is not made worse here.
        update(word, |seen| block::end_write(seen, ending).ok_or(()))
            .map_or(true, block::is_readable)
    }

    fn end_all(&self, ending: Ending) {
        for block in self.blocks.clone() {
            self.end(block, ending);
        }
    }
}

impl<'m, W: SharedWord, G: Goal> Pending<'m, W, G> {
    pub(crate) fn new(words: &'m [W], blocks: Range<u32>, goal: G) -> Self {
        let claimed = Claimed { words, blocks: blocks.start..blocks.start };
        Pending { claimed, end: blocks.end, goal }
    }

    /// Claims what is free, in order. The first block that is not comes back with what it needs; wait or ask
    /// for it, then call again. What is claimed stays claimed meanwhile.
    pub fn advance(mut self) -> Result<Held<'m, W, G>, (Self, NotReady)> {
        while self.claimed.blocks.end < self.end {
            if let Err(not_ready) = self.claimed.claim_next(&self.goal) {
                return Err((self, not_ready));
            }
        }
        Ok(Held { claimed: self.claimed.take(), goal: self.goal })
    }
}

impl<W: SharedWord, G: Goal> Drop for Pending<'_, W, G> {
    fn drop(&mut self) {
        self.claimed.end_all(Ending::Released);
    }
}

impl<W: SharedWord, G: Goal> Held<'_, W, G> {
    /// Gives the blocks back as they were. Only if the call was not made.
    pub fn release(mut self) {
        self.claimed.take().end_all(Ending::Released);
    }
}

impl<W: SharedWord> Held<'_, W, Write> {
    /// After the call returned `written_bytes` (0 for an error): the count to report in its place.
    ///
    /// It is smaller where the call stopped inside a block whose other bytes are not in the file: such a block
    /// stays absent, so that none of it is written. If nothing is left of a count above 0, report ENOSPC.
    pub fn finish(mut self, written_bytes: u64) -> u64 {
        let (claimed, goal) = (self.claimed.take(), self.goal);
        let stop = goal.offset.saturating_add(written_bytes).min(goal.end);
        let mut reported = stop.saturating_sub(goal.offset);
        for block in claimed.blocks.clone() {
            let whole = end_of(block).min(goal.end) <= stop;
            let ending = match whole {
                true if goal.covers(block) => Ending::Written,
                true => Ending::WrittenInPart,
                false => Ending::Failed,
            };
            let was_backed = claimed.end(block, ending);
            if !whole && !was_backed {
                reported = reported.min(start_of(block).saturating_sub(goal.offset));
            }
        }
        reported
    }
}

impl<W: SharedWord> Held<'_, W, Truncation> {
    /// After the call, with the size that the file now has: what was asked for, or after an error what `fstat`
    /// says. Blocks from there on are cut; those before it are given back.
    pub fn finish(mut self, size_bytes: u64) {
        let claimed = self.claimed.take();
        for block in claimed.blocks.clone() {
            let ending = match () {
                () if size_bytes <= start_of(block) => Ending::Cut,
                () if size_bytes < end_of(block) => Ending::Clipped,
                () => Ending::Released,
            };
            claimed.end(block, ending);
        }
    }
}

impl<W: SharedWord, G: Goal> Drop for Held<'_, W, G> {
    fn drop(&mut self) {
        self.claimed.end_all(Ending::Failed);
    }
}

#[cfg(test)]
mod tests;
