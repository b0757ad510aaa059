//! Waiting until a block can be read or claimed: the slow path of every door.
//!
//! A wait has the limit that the shared file names, counted from the first time that the call had to wait.

use core::ffi::c_int;
use core::sync::atomic::AtomicU32;

use treering_presence::{Goal, Held, Map, NotReady, Pending, Reason};

use crate::complain::complain;
use crate::{agent, attach, calls};

/// Looks at a word before the first sleep: a block is written in a few microseconds.
const SPINS: u32 = 200;
const NAP_FIRST_US: u32 = 20;
const NAP_LONGEST_US: u32 = 200;
/// Between two tries to reach an agent.
const TRY_EVERY_US: u32 = 20_000;

/// How long one call may go on waiting.
#[derive(Debug)]
pub struct Patience {
    limit_ms: u32,
    ends_ns: Option<u64>,
    rounds: u32,
}

impl Patience {
    /// Its clock starts when it is first asked.
    pub const fn new(limit_ms: u32) -> Self {
        Patience { limit_ms, ends_ns: None, rounds: 0 }
    }

    /// The limit.
    pub const fn limit_ms(&self) -> u32 {
        self.limit_ms
    }

    /// What is left of it, rounded up, so that 0 means over.
    pub fn left_ms(&mut self) -> u32 {
        let now = calls::now_ns();
        let limit_ns = u64::from(self.limit_ms).saturating_mul(1_000_000);
        let ends = *self.ends_ns.get_or_insert(now.saturating_add(limit_ns));
        let left = ends.saturating_sub(now).div_ceil(1_000_000);
        u32::try_from(left).unwrap_or(u32::MAX)
    }

    /// Whether nothing is left.
    pub fn is_over(&mut self) -> bool {
        self.left_ms() == 0
    }

    /// Waits a little for another process; longer the more often it was asked. `false` if the time is over.
    pub fn nap(&mut self) -> bool {
        self.rounds = self.rounds.saturating_add(1);
        if self.rounds <= SPINS {
            core::hint::spin_loop();
            return true;
        }
        let doublings = self.rounds.saturating_sub(SPINS).min(8);
        calls::sleep_us(NAP_LONGEST_US.min(NAP_FIRST_US << doublings));
        !self.is_over()
    }

    /// After an answer: the next may come at once, but not for ever. `false` if the time is over.
    pub fn after_answer(&mut self) -> bool {
        self.rounds = self.rounds.saturating_add(SPINS / 4);
        self.rounds <= SPINS || self.nap()
    }

    /// Waits before the agent is tried again. `false` if the time is over.
    pub fn before_next_try(&mut self) -> bool {
        calls::sleep_us(TRY_EVERY_US.min(self.left_ms().saturating_mul(1000)));
        !self.is_over()
    }
}

/// A call that may have to wait.
pub struct Waiting<'m> {
    map: Map<'m>,
    patience: Patience,
}

impl<'m> Waiting<'m> {
    /// For a call on the file of this map.
    pub fn new(map: Map<'m>) -> Self {
        let limit_ms = attach::shared().map_or(0, |shared| shared.wait_limit_ms());
        Waiting { map, patience: Patience::new(limit_ms) }
    }

    /// Its map.
    pub fn map(&self) -> Map<'m> {
        self.map
    }

    /// Waits for one block after the other until a call holds them all. On an error, which is the call's errno and
    /// was explained, what it held is given back.
    #[cold]
    pub fn hold<G: Goal>(
        mut self,
        mut pending: Pending<'m, AtomicU32, G>,
        mut missing: NotReady,
    ) -> Result<Held<'m, AtomicU32, G>, c_int> {
        loop {
            self.before_claim(missing)?;
            match pending.advance() {
                Ok(held) => return Ok(held),
                Err(next) => (pending, missing) = next,
            }
        }
    }

    /// Before a read of blocks up to `end` looks again. An error is the call's errno, and was explained.
    #[cold]
    pub fn before_read(&mut self, missing: NotReady, end: u32) -> Result<(), c_int> {
        calls::keeping_errno(|| match missing.reason {
            Reason::Absent | Reason::Fetching | Reason::Dropping => self.fetch(missing.block, end),
            Reason::Writing => self.nap(missing),
            Reason::Changed => Ok(()),
            Reason::Damaged => Err(self.damaged(missing.block)),
        })
    }

    /// Before a write or a truncation claims again. Blocks that the agent holds are waited for; only one that is
    /// written in part is fetched, for a whole one never comes back as absent.
    fn before_claim(&mut self, missing: NotReady) -> Result<(), c_int> {
        calls::keeping_errno(|| match missing.reason {
            Reason::Absent => self.fetch(missing.block, missing.block.saturating_add(1)),
            Reason::Fetching | Reason::Dropping | Reason::Writing => self.nap(missing),
            Reason::Changed => Ok(()),
            Reason::Damaged => Err(self.damaged(missing.block)),
        })
    }

    /// A read met a drop, and begins again. It loses only to an agent that drops its blocks again and again.
    #[cold]
    pub fn before_reread(&mut self) -> Result<(), c_int> {
        calls::keeping_errno(|| self.nap(NotReady { block: 0, reason: Reason::Dropping }))
    }

    fn fetch(&mut self, first: u32, end: u32) -> Result<(), c_int> {
        let count = end.min(self.map.block_count()).saturating_sub(first).max(1);
        agent::fetch(self.map.file_number(), first, count, &mut self.patience)?;
        // An agent that answers and does not fetch is waited for like one that does not answer.
        match self.patience.after_answer() {
            true => Ok(()),
            false => Err(self.too_long(first)),
        }
    }

    fn nap(&mut self, missing: NotReady) -> Result<(), c_int> {
        if self.patience.nap() { Ok(()) } else { Err(self.too_long(missing.block)) }
    }

    fn too_long(&self, block: u32) -> c_int {
        let (file, limit) = (self.map.file_number(), self.patience.limit_ms());
        complain(format_args!("block {block} of file {file} was not to be had within {limit} ms"));
        libc::EIO
    }

    fn damaged(&self, block: u32) -> c_int {
        let file = self.map.file_number();
        complain(format_args!("the presence map of file {file} is damaged at block {block}"));
        libc::EIO
    }
}

/// A descriptor whose map cannot be reached, which no call leaves behind.
#[cold]
pub fn no_map(fd: c_int) -> c_int {
    complain(format_args!("the presence map of descriptor {fd} is gone"));
    libc::EIO
}
