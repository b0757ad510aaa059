//! A file and its map in the model checker's memory, the actors' system calls on it, and an oracle that is told
//! what each call under a claim made of a block.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool as PlainBool, AtomicU32 as PlainU32, Ordering as Plain};

use loom::sync::Arc;
use loom::sync::atomic::{AtomicU32, Ordering, fence};
use loom::thread;
use treering_presence::{
    Agent, BLOCK_SIZE, DropRule, FetchPlan, FileIdentity, Goal, HEADER_WORDS, Held, Map, Pending,
    SharedWord, State,
};

/// What a hole reads as.
pub const HOLE: u32 = 0;
/// What a cut block reads as.
pub const CUT: u32 = 0;
/// The page as the pageserver has it.
pub const ORIGIN: u32 = 1;
/// What a writer writes.
pub const WRITTEN: u32 = 2;
/// What it writes next.
pub const WRITTEN_AGAIN: u32 = 3;

/// Two halves, as the kernel copies them one after the other.
pub type Page = [u32; 2];

/// As many tries, and whether each is the last: then the wait is over, as a bounded wait ends.
fn waits(tries: usize) -> impl Iterator<Item = bool> {
    (1..=tries).map(move |this| this == tries)
}

/// A word in the model checker's memory.
#[derive(Debug)]
pub struct Word(AtomicU32);

impl SharedWord for Word {
    fn load(&self, ordering: Ordering) -> u32 {
        self.0.load(ordering)
    }
    fn store(&self, value: u32, ordering: Ordering) {
        self.0.store(value, ordering);
    }
    fn compare_exchange(
        &self,
        current: u32,
        new: u32,
        success: Ordering,
        failure: Ordering,
    ) -> Result<u32, u32> {
        self.0.compare_exchange(current, new, success, failure)
    }
    fn fence(ordering: Ordering) {
        fence(ordering);
    }
}

/// The death of the agent.
#[derive(Debug)]
pub struct Dead;

/// How many more steps an agent has.
pub struct Life(Cell<u32>);

impl Life {
    pub fn of(steps: u32) -> Life {
        Life(Cell::new(steps))
    }
    pub fn long() -> Life {
        Life::of(u32::MAX)
    }
    fn step(&self) -> Result<(), Dead> {
        self.0.set(self.0.get().checked_sub(1).ok_or(Dead)?);
        Ok(())
    }
}

/// A file, its map, the log, and the oracle.
pub struct File {
    words: Vec<Word>,
    data: Vec<[AtomicU32; 2]>,
    /// Whether block 0 is in the file; 0 while it is cut off.
    size: AtomicU32,
    log: AtomicU32,
    /// Per block: what the last call that ended under a claim made of it. Not the model checker's: it has no
    /// part in the ordering.
    last: Vec<PlainU32>,
    cut_began: PlainBool,
}

impl File {
    /// A file whose blocks are absent or present and clean.
    pub fn new(states: &[State]) -> Arc<File> {
        let count = states.len();
        let words = (0..HEADER_WORDS + count).map(|_| Word(AtomicU32::new(0))).collect();
        let file = Arc::new(File {
            words,
            data: (0..count).map(|_| [AtomicU32::new(HOLE), AtomicU32::new(HOLE)]).collect(),
            size: AtomicU32::new(1),
            log: AtomicU32::new(ORIGIN),
            last: (0..count).map(|_| PlainU32::new(ORIGIN)).collect(),
            cut_began: PlainBool::new(false),
        });
        let identity = FileIdentity { device: 1, inode: 2, birth_ns: 3 };
        Map::create(&file.words, 1, identity, count as u32).unwrap();
        let actor = Actor::new(file.clone());
        for (block, state) in (0..).zip(states) {
            if *state == State::Present {
                actor.fetch(&actor.agent(), block, &Life::long()).unwrap();
            }
        }
        file
    }

    pub fn map(&self) -> Map<'_, Word> {
        Map::open(&self.words).unwrap()
    }

    pub fn cut_began(&self) -> bool {
        self.cut_began.load(Plain::SeqCst)
    }

    fn half(&self, block: u32, half: usize) -> &AtomicU32 {
        &self.data[block as usize][half]
    }

    fn set(&self, block: u32, value: u32) {
        self.half(block, 0).store(value, Ordering::Relaxed);
        self.half(block, 1).store(value, Ordering::Relaxed);
    }

    fn get(&self, block: u32) -> Page {
        [0, 1].map(|half| self.half(block, half).load(Ordering::Relaxed))
    }

    fn made(&self, block: u32, value: u32) {
        self.last[block as usize].store(value, Plain::SeqCst);
    }
}

/// One thread's calls.
pub struct Actor {
    file: Arc<File>,
    /// Tries before a claim that has to wait is given up.
    waits: usize,
}

impl Actor {
    pub fn new(file: Arc<File>) -> Actor {
        Actor { file, waits: 2 }
    }

    /// One that does not wait: for models of many.
    pub fn hasty(file: Arc<File>) -> Actor {
        Actor { file, waits: 1 }
    }

    pub fn file(&self) -> Arc<File> {
        self.file.clone()
    }

    /// Takes over as the agent. The last one, if any, ran on this thread or was joined: it is reaped.
    pub fn agent(&self) -> Agent<'_, Word> {
        Agent::take_over(self.file.map()).0
    }

    // Postgres ------------------------------------------------------------------------------------------

    /// A `pread` of a block, tried so often; `None` if it never was ready or never held still.
    pub fn read(&self, block: u32, tries: usize) -> Option<Page> {
        let map = self.file.map();
        for last in waits(tries) {
            if let Ok(ticket) = map.begin_read(u64::from(block) * BLOCK_SIZE, BLOCK_SIZE) {
                let page = self.file.get(block);
                if map.validate(&ticket) {
                    return Some(page);
                }
            }
            if !last {
                thread::yield_now();
            }
        }
        None
    }

    /// The same of blocks 0 and 1 in one call.
    pub fn read_two(&self, tries: usize) -> Option<[Page; 2]> {
        let map = self.file.map();
        for last in waits(tries) {
            if let Ok(ticket) = map.begin_read(0, 2 * BLOCK_SIZE) {
                let pages = [self.file.get(0), self.file.get(1)];
                if map.validate(&ticket) {
                    return Some(pages);
                }
            }
            if !last {
                thread::yield_now();
            }
        }
        None
    }

    /// Claims, waiting so often.
    fn claim<'m, G: Goal>(&self, mut pending: Pending<'m, Word, G>) -> Option<Held<'m, Word, G>> {
        for last in waits(self.waits) {
            match pending.advance() {
                Ok(held) => return Some(held),
                Err((waiting, _)) => pending = waiting,
            }
            if !last {
                thread::yield_now();
            }
        }
        None
    }

    /// A whole-block `pwrite`; `false` if the wait was given up.
    pub fn write(&self, block: u32, value: u32) -> bool {
        let map = self.file.map();
        let pending = map.write(u64::from(block) * BLOCK_SIZE, BLOCK_SIZE);
        let Some(held) = self.claim(pending) else { return false };
        self.file.set(block, value);
        self.file.made(block, value);
        assert_eq!(held.finish(BLOCK_SIZE), BLOCK_SIZE);
        true
    }

    /// A `pwrite` of blocks 0 and 1.
    pub fn write_two(&self, value: u32) -> bool {
        let map = self.file.map();
        let Some(held) = self.claim(map.write(0, 2 * BLOCK_SIZE)) else { return false };
        for block in 0..2 {
            self.file.set(block, value);
            self.file.made(block, value);
        }
        assert_eq!(held.finish(2 * BLOCK_SIZE), 2 * BLOCK_SIZE);
        true
    }

    /// A `pwrite` that stops half way.
    pub fn write_half(&self, block: u32, value: u32) {
        let map = self.file.map();
        let pending = map.write(u64::from(block) * BLOCK_SIZE, BLOCK_SIZE);
        let Some(held) = self.claim(pending) else { return };
        self.file.half(block, 0).store(value, Ordering::Relaxed);
        let reported = held.finish(BLOCK_SIZE / 2);
        assert!(reported == 0 || reported == BLOCK_SIZE / 2);
    }

    /// A claim that is given back without a call.
    pub fn claim_and_release(&self, block: u32) {
        let map = self.file.map();
        let pending = map.write(u64::from(block) * BLOCK_SIZE, BLOCK_SIZE);
        if let Some(held) = self.claim(pending) {
            held.release();
        }
    }

    /// `ftruncate` to nothing, then to the old size; `false` if the wait was given up.
    pub fn truncate_and_grow(&self) -> bool {
        let map = self.file.map();
        let Some(held) = self.claim(map.truncate(0)) else { return false };
        self.file.cut_began.store(true, Plain::SeqCst);
        self.file.size.store(0, Ordering::Relaxed);
        self.file.set(0, CUT);
        self.file.made(0, CUT);
        held.finish(0);
        self.file.size.store(1, Ordering::Relaxed);
        true
    }

    /// A record goes into the log, before the page that it changed is written.
    pub fn log(&self, value: u32) {
        self.file.log.store(value, Ordering::Relaxed);
    }

    // The agent -----------------------------------------------------------------------------------------

    /// Asks for the insert position and waits until the pageserver has ingested it: what it then answers.
    pub fn ingest(&self) -> u32 {
        self.file.log.load(Ordering::Relaxed)
    }

    /// Fetches a block that was never dropped dirty.
    pub fn fetch(&self, agent: &Agent<'_, Word>, block: u32, life: &Life) -> Result<(), Dead> {
        self.fetch_as(agent, block, ORIGIN, life)
    }

    /// Notes a written block, waits for ingest, drops it and fetches it again.
    pub fn note_drop_fetch(
        &self,
        agent: &Agent<'_, Word>,
        block: u32,
        life: &Life,
    ) -> Result<(), Dead> {
        life.step()?;
        if !agent.note(block) {
            return Ok(());
        }
        life.step()?;
        let ingested = self.ingest();
        self.drop_block(agent, block, DropRule::NotedToo, life)?;
        self.fetch_as(agent, block, ingested, life)
    }

    /// Fetches a block; a written one at an LSN where the pageserver answers `written`.
    pub fn fetch_as(
        &self,
        agent: &Agent<'_, Word>,
        block: u32,
        written: u32,
        life: &Life,
    ) -> Result<(), Dead> {
        let Some(plan) = agent.plan_fetch(block) else { return Ok(()) };
        let value = if plan.was_written() { written } else { ORIGIN };
        self.land(agent, plan, value, life)
    }

    /// The page planned for has come.
    pub fn land(
        &self,
        agent: &Agent<'_, Word>,
        plan: FetchPlan,
        value: u32,
        life: &Life,
    ) -> Result<(), Dead> {
        life.step()?;
        let Some(claim) = agent.claim_fetch(plan) else { return Ok(()) };
        assert_eq!(self.file.size.load(Ordering::Relaxed), 1, "a page lands past the end");
        for half in [0, 1] {
            life.step()?;
            self.file.half(plan.block(), half).store(value, Ordering::Relaxed);
        }
        life.step()?;
        agent.publish_fetch(claim).unwrap();
        Ok(())
    }

    /// Drops a block, if the rule allows: whether it did.
    pub fn drop_block(
        &self,
        agent: &Agent<'_, Word>,
        block: u32,
        rule: DropRule,
        life: &Life,
    ) -> Result<bool, Dead> {
        life.step()?;
        let Some(claim) = agent.claim_drop(block, rule) else { return Ok(false) };
        for half in [0, 1] {
            life.step()?;
            self.file.half(block, half).store(HOLE, Ordering::Relaxed);
        }
        life.step()?;
        agent.finish_drop(claim).unwrap();
        Ok(true)
    }

    // The judge -----------------------------------------------------------------------------------------

    /// When all is quiet: nobody holds anything, absent blocks are fetched, and each block is what the last
    /// call under a claim made of it.
    pub fn settle(&self, server: u32) {
        for block in 0..self.file.map().block_count() {
            let last = self.file.last[block as usize].load(Plain::SeqCst);
            assert_eq!(self.quiet_page(block, server), [last; 2], "block {block}");
        }
    }

    /// The same for block 0, which may be any of these.
    pub fn settle_any(&self, server: u32, allowed: &[u32]) {
        let page = self.settled(server);
        assert!(allowed.iter().any(|value| page == [*value; 2]), "{page:?}");
    }

    /// Block 0 when all is quiet.
    pub fn settled(&self, server: u32) -> Page {
        self.quiet_page(0, server)
    }

    fn quiet_page(&self, block: u32, server: u32) -> Page {
        let state = self.file.map().block(block).unwrap().state;
        assert!(matches!(state, State::Absent | State::Present), "{state:?} is held by nobody");
        self.fetch_as(&self.agent(), block, server, &Life::long()).unwrap();
        self.read(block, 1).unwrap()
    }
}
