//! The agent's side: fetching, dropping, and taking over from one that died.
//!
//! Its claims have no destructor: the agent may die at any instruction, and then the next one ends them. The
//! agent never waits for a word; what it cannot claim, it leaves.

use core::sync::atomic::Ordering;

use crate::block::{self, Block, DropEnding, History, State};
use crate::map::Map;
use crate::shared::{SharedWord, replace, update};

/// The one agent's hold on a map.
#[derive(Debug)]
pub struct Agent<'m, W> {
    map: Map<'m, W>,
}

impl<W> Clone for Agent<'_, W> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<W> Copy for Agent<'_, W> {}

/// What a new agent met in a map.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TakeOver {
    /// Blocks in the file, those being written over included.
    pub present: u32,
    /// Fetches cut short.
    pub fetching: u32,
    /// Drops cut short.
    pub dropping: u32,
    /// Blocks whose L_w was lost, to be noted anew.
    pub noted: u32,
    /// Words that are damaged; they were left.
    pub damaged: u32,
}

/// An absent block as it was when its fetch was decided on. Nothing is held.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FetchPlan {
    block: u32,
    word: u32,
}

impl FetchPlan {
    /// The block.
    pub const fn block(&self) -> u32 {
        self.block
    }

    /// Whether the page was Postgres's own once: fetch it at no less than its L_w.
    pub fn was_written(&self) -> bool {
        Block::decode(self.word).is_some_and(|block| block.history == History::Noted)
    }
}

/// A block in *fetching*: write its page, then publish; or abort.
#[derive(PartialEq, Eq, Debug)]
#[must_use = "the block waits until the claim is ended"]
pub struct FetchClaim {
    block: u32,
    word: u32,
}

/// A block in *dropping*: punch it, then finish; or abort.
#[derive(PartialEq, Eq, Debug)]
#[must_use = "the block waits until the claim is ended"]
pub struct DropClaim {
    block: u32,
    word: u32,
}

impl FetchClaim {
    /// The block.
    pub const fn block(&self) -> u32 {
        self.block
    }
}

impl DropClaim {
    /// The block.
    pub const fn block(&self) -> u32 {
        self.block
    }
}

/// What the agent knows about a block it wants to drop.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DropRule {
    /// Nothing: only as it was fetched.
    OnlyClean,
    /// The pageserver has ingested the L_w of its last note, every transaction of then has ended, and the
    /// relation's fork is logged.
    NotedToo,
}

/// The word changed under a claim: another agent is at work, or the memory was scribbled on. Stop serving.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lost {
    /// The block.
    pub block: u32,
}

impl core::fmt::Display for Lost {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "block {} changed while this agent held it", self.block)
    }
}

impl core::error::Error for Lost {}

impl<'m, W: SharedWord> Agent<'m, W> {
    /// Becomes the map's agent: ends what the last one began and forgets what only it knew.
    ///
    /// The caller holds the exclusive lock, and the last agent has been reaped: none of its system calls is
    /// still running. Postgres may be at work. Dying in the middle is as good as not having begun.
    pub fn take_over(map: Map<'m, W>) -> (Self, TakeOver) {
        let mut met = TakeOver::default();
        for word in map.words() {
            let seen = match update(word, |seen| block::take_over(seen).ok_or(seen)) {
                Ok(seen) | Err(seen) => seen,
            };
            met.count(seen);
        }
        (Agent { map }, met)
    }

    /// The map.
    pub const fn map(&self) -> Map<'m, W> {
        self.map
    }

    /// Decides on a fetch, if the block is absent. Before choosing an LSN and asking the pageserver.
    pub fn plan_fetch(&self, block: u32) -> Option<FetchPlan> {
        let word = self.map.word(block)?.load(Ordering::Acquire);
        block::claim_fetch(word).map(|_| FetchPlan { block, word })
    }

    /// With the page at hand: claims the block, if nothing happened to it since the plan. Otherwise the page
    /// may be older than the block: throw it away.
    pub fn claim_fetch(&self, plan: FetchPlan) -> Option<FetchClaim> {
        let word = block::claim_fetch(plan.word)?;
        replace(self.map.word(plan.block)?, plan.word, word).ok()?;
        Some(FetchClaim { block: plan.block, word })
    }

    /// All 8192 bytes are in the file.
    pub fn publish_fetch(&self, claim: FetchClaim) -> Result<(), Lost> {
        self.end(claim.block, claim.word, block::publish_fetch(claim.word))
    }

    /// They are not, or not all of them.
    pub fn abort_fetch(&self, claim: FetchClaim) -> Result<(), Lost> {
        self.end(claim.block, claim.word, block::abort_fetch(claim.word))
    }

    /// Before asking Postgres for its insert position L_w: from now on a write makes the block dirty again.
    /// `false` if the block is not dirty, or being written.
    ///
    /// L_w must be asked after this returned.
    pub fn note(&self, block: u32) -> bool {
        self.map
            .word(block)
            .is_some_and(|word| update(word, |seen| block::note(seen).ok_or(())).is_ok())
    }

    /// Claims a block to drop it, if the rule allows.
    pub fn claim_drop(&self, block: u32, rule: DropRule) -> Option<DropClaim> {
        let word = self.map.word(block)?;
        let noted_too = rule == DropRule::NotedToo;
        let seen = update(word, |seen| block::claim_drop(seen, noted_too).ok_or(())).ok()?;
        // With the acquire fence in `validate`: the new version before the hole.
        W::fence(Ordering::Release);
        block::claim_drop(seen, noted_too).map(|word| DropClaim { block, word })
    }

    /// The hole was punched, or that was tried.
    pub fn finish_drop(&self, claim: DropClaim) -> Result<(), Lost> {
        self.end(claim.block, claim.word, block::end_drop(claim.word, DropEnding::Gone))
    }

    /// The block was read under the claim and is all zeros, so that it is what the hole reads as. The block stays
    /// present and is not dropped until it is written again.
    pub fn finish_drop_zero(&self, claim: DropClaim) -> Result<(), Lost> {
        self.end(claim.block, claim.word, block::end_drop(claim.word, DropEnding::Zero))
    }

    /// Nothing was punched, and nothing was tried.
    pub fn abort_drop(&self, claim: DropClaim) -> Result<(), Lost> {
        self.end(claim.block, claim.word, block::end_drop(claim.word, DropEnding::Kept))
    }

    fn end(&self, block: u32, held: u32, ended: Option<u32>) -> Result<(), Lost> {
        let replaced = self.map.word(block).zip(ended).map(|(word, new)| replace(word, held, new));
        if replaced == Some(Ok(())) { Ok(()) } else { Err(Lost { block }) }
    }
}

impl TakeOver {
    fn count(&mut self, word: u32) {
        let Some(block) = Block::decode(word) else {
            self.damaged = self.damaged.saturating_add(1);
            return;
        };
        let filled = block.state == State::Present || block.backed;
        let noted = filled && block.history == History::Noted;
        self.present = self.present.saturating_add(u32::from(filled));
        self.fetching = self.fetching.saturating_add(u32::from(block.state == State::Fetching));
        self.dropping = self.dropping.saturating_add(u32::from(block.state == State::Dropping));
        self.noted = self.noted.saturating_add(u32::from(noted));
    }
}

#[cfg(test)]
mod tests;
