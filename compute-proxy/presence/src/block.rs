//! One block's word: what it says, and every change that the protocol allows, as pure functions.
//!
//! ```text
//!  31                                8   7   6     5      4      3      2   0
//!  +----------------------------------+---+------+-------+-------+--------+-------+
//!  |             version              | 0 | zero | noted | dirty | backed | state |
//!  +----------------------------------+---+------+-------+-------+--------+-------+
//! ```
//!
//! Nothing here trusts a word: what contradicts itself decodes to `None`.

use crate::map::Reason;

const STATE: u32 = 0b111;
const BACKED: u32 = 1 << 3;
const DIRTY: u32 = 1 << 4;
const NOTED: u32 = 1 << 5;
const ZERO: u32 = 1 << 6;
const UNUSED: u32 = 1 << 7;
const VERSION_SHIFT: u32 = 8;

/// Where versions end: a block dropped this often is not dropped again, so no version ever repeats.
pub const VERSION_MAX: u32 = (1 << 24) - 1;

/// Who owns a block's bytes in the file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum State {
    /// Nobody; they mean nothing and are to be fetched.
    Absent = 0,
    /// The agent, storing the fetched page.
    Fetching = 1,
    /// A Postgres process, writing or truncating.
    Writing = 2,
    /// The agent, giving the space back.
    Dropping = 3,
    /// Nobody; they are the page.
    Present = 4,
}

/// What the agent must know before a block may be dropped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum History {
    /// As fetched.
    Clean,
    /// Written by Postgres, and its insert position was not asked since.
    Dirty,
    /// Written by Postgres, and its insert position was asked after the last write. In an absent block: it
    /// was when it was dropped.
    Noted,
}

/// A decoded word. Encoding and decoding are inverses on what is well formed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Block {
    /// Who owns the bytes.
    pub state: State,
    /// In [`State::Writing`]: the block was present when it was claimed, so its bytes can be read.
    pub backed: bool,
    /// Written since it was fetched?
    pub history: History,
    /// Zeros by right, or the file ends inside it: not dropped until it is written whole.
    pub zero: bool,
    /// How often the block was dropped.
    pub version: u32,
}

impl Block {
    /// What a word says; `None` if it is damaged.
    pub const fn decode(word: u32) -> Option<Block> {
        let state = match word & STATE {
            0 => State::Absent,
            1 => State::Fetching,
            2 => State::Writing,
            3 => State::Dropping,
            4 => State::Present,
            _ => return None,
        };
        let history = match (word & DIRTY != 0, word & NOTED != 0) {
            (false, false) => History::Clean,
            (true, false) => History::Dirty,
            (false, true) => History::Noted,
            (true, true) => return None,
        };
        let (backed, zero) = (word & BACKED != 0, word & ZERO != 0);
        let filled = matches!(state, State::Present) || backed;
        let misplaced = (backed && !matches!(state, State::Writing))
            || (!filled && (zero || matches!(history, History::Dirty)));
        if misplaced || word & UNUSED != 0 {
            return None;
        }
        Some(Block { state, backed, history, zero, version: version(word) })
    }

    /// The word.
    pub const fn encode(self) -> u32 {
        let history = match self.history {
            History::Clean => 0,
            History::Dirty => DIRTY,
            History::Noted => NOTED,
        };
        let backed = if self.backed { BACKED } else { 0 };
        let zero = if self.zero { ZERO } else { 0 };
        self.state as u32 | backed | history | zero | self.version << VERSION_SHIFT
    }

    const fn with_state(self, state: State) -> Block {
        Block { state, backed: false, ..self }
    }

    /// Back to where it was before it was claimed for writing, by what it is now.
    const fn unclaimed(self) -> Block {
        self.with_state(if self.backed { State::Present } else { State::Absent })
    }
}

/// The version in a word, well formed or not.
#[inline]
pub(crate) const fn version(word: u32) -> u32 {
    word >> VERSION_SHIFT
}

/// Whether the bytes can be read: present, or being written over what was present.
#[inline]
pub(crate) const fn is_readable(word: u32) -> bool {
    matches!(word & (STATE | BACKED | UNUSED), 4 | 10)
}

/// Why a block is not readable or not to be claimed.
pub(crate) fn reason(word: u32) -> Reason {
    match Block::decode(word).map(|block| block.state) {
        None => Reason::Damaged,
        Some(State::Absent) => Reason::Absent,
        Some(State::Fetching) => Reason::Fetching,
        Some(State::Writing) => Reason::Writing,
        Some(State::Dropping) => Reason::Dropping,
        Some(State::Present) => Reason::Changed,
    }
}

/// Claims a block for a write, which must cover it whole to be allowed on an absent one.
pub(crate) fn claim_write(word: u32, whole: bool) -> Result<u32, Reason> {
    let block = Block::decode(word).ok_or(Reason::Damaged)?;
    let backed = match block.state {
        State::Present => true,
        State::Absent if whole => false,
        State::Absent | State::Fetching | State::Writing | State::Dropping => {
            return Err(reason(word));
        }
    };
    Ok(Block { state: State::Writing, backed, ..block }.encode())
}

/// How a claim for writing ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Ending {
    /// Every byte of the block is written.
    Written,
    /// All bytes that the call had for the block are written.
    WrittenInPart,
    /// The block was cut off: it reads as zeros when the file grows again.
    Cut,
    /// The file now ends inside the block.
    Clipped,
    /// The call failed, or stopped inside the block: some bytes may be written.
    Failed,
    /// No call was made.
    Released,
}

/// Ends a claim for writing. `None`: the word is not a claimed one, which its holder never lets happen.
///
/// Looks at the word as it is now: a new agent may have turned *noted* into *dirty* meanwhile.
pub(crate) fn end_write(word: u32, ending: Ending) -> Option<u32> {
    let block = Block::decode(word).filter(|block| block.state == State::Writing)?;
    let full = Block { history: History::Dirty, ..block.with_state(State::Present) };
    let ended = match ending {
        Ending::Written => Block { zero: false, ..full },
        Ending::Cut => Block { zero: true, ..full },
        Ending::Clipped if block.backed => Block { zero: true, ..full },
        Ending::WrittenInPart | Ending::Failed if block.backed => full,
        Ending::WrittenInPart | Ending::Clipped | Ending::Failed | Ending::Released => {
            block.unclaimed()
        }
    };
    Some(ended.encode())
}

/// Claims an absent block for a fetch.
pub(crate) fn claim_fetch(word: u32) -> Option<u32> {
    let block = Block::decode(word).filter(|block| block.state == State::Absent)?;
    Some(block.with_state(State::Fetching).encode())
}

/// The fetched page is in the file.
pub(crate) fn publish_fetch(word: u32) -> Option<u32> {
    let block = Block::decode(word).filter(|block| block.state == State::Fetching)?;
    Some(Block { history: History::Clean, ..block.with_state(State::Present) }.encode())
}

/// The fetched page is not in the file, or only a part of it.
pub(crate) fn abort_fetch(word: u32) -> Option<u32> {
    let block = Block::decode(word).filter(|block| block.state == State::Fetching)?;
    Some(block.with_state(State::Absent).encode())
}

/// The insert position is going to be asked: a write after this makes the block dirty again.
pub(crate) fn note(word: u32) -> Option<u32> {
    let block = Block::decode(word)?;
    let ready = block.state == State::Present && block.history == History::Dirty;
    ready.then(|| Block { history: History::Noted, ..block }.encode())
}

/// Claims a present block for dropping; `noted_too` if a noted one may go.
pub(crate) fn claim_drop(word: u32, noted_too: bool) -> Option<u32> {
    let block = Block::decode(word)?;
    let allowed = match block.history {
        History::Clean => true,
        History::Noted => noted_too,
        History::Dirty => false,
    };
    let ready =
        block.state == State::Present && allowed && !block.zero && block.version < VERSION_MAX;
    let next = block.version.wrapping_add(1) & VERSION_MAX;
    ready.then(|| Block { version: next, ..block.with_state(State::Dropping) }.encode())
}

/// How a claim for dropping ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum DropEnding {
    /// The hole was punched, or that was tried.
    Gone,
    /// The block was all zeros, so that the hole is what it holds.
    Zero,
    /// Nothing was punched.
    Kept,
}

/// Ends a claim for dropping.
pub(crate) fn end_drop(word: u32, ending: DropEnding) -> Option<u32> {
    let block = Block::decode(word).filter(|block| block.state == State::Dropping)?;
    let ended = match ending {
        DropEnding::Gone => block.with_state(State::Absent),
        DropEnding::Zero => Block { zero: true, ..block.with_state(State::Present) },
        DropEnding::Kept => block.with_state(State::Present),
    };
    Some(ended.encode())
}

/// What a new agent makes of a word; `None` if it may stay.
pub(crate) fn take_over(word: u32) -> Option<u32> {
    let block = Block::decode(word)?;
    let filled = block.state == State::Present || block.backed;
    match block.state {
        State::Fetching | State::Dropping => Some(block.with_state(State::Absent).encode()),
        State::Present | State::Writing if filled && block.history == History::Noted => {
            Some(Block { history: History::Dirty, ..block }.encode())
        }
        State::Absent | State::Present | State::Writing => None,
    }
}

#[cfg(test)]
mod tests;
