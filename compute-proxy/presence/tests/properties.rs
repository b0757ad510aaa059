//! Random histories of one file, compared with a plain file to which the same calls were made: every read of a
//! lazily fetched file returns what the plain one returns, whatever the agent does in between and wherever it
//! dies.

use std::sync::atomic::AtomicU32;

use proptest::prelude::*;
use treering_presence::{Agent, BLOCK_SIZE, DropRule, FileIdentity, Map, Reason};

const BLOCKS: u32 = 4;
const SIZE: usize = BLOCKS as usize * BLOCK_SIZE as usize;

#[derive(Clone, Debug)]
enum Call {
    Read {
        offset: usize,
        length: usize,
    },
    /// `kept` of 256 parts of the bytes get written.
    Write {
        offset: usize,
        length: usize,
        fill: u8,
        kept: usize,
    },
    /// The call may fail and cut nothing.
    Truncate {
        size: usize,
        fails: bool,
    },
    Grow {
        size: usize,
    },
    /// The agent dies after so many steps.
    Fetch {
        block: u32,
        steps: u32,
    },
    Note {
        block: u32,
    },
    Drop {
        block: u32,
        steps: u32,
    },
    /// A page planned for long ago lands.
    Plan {
        block: u32,
    },
    Land,
    TakeOver,
}

fn place() -> impl Strategy<Value = usize> {
    let aligned = (0..=BLOCKS as usize + 1).prop_map(|block| block * BLOCK_SIZE as usize);
    prop_oneof![3 => aligned, 1 => 0..SIZE + 9000]
}

fn call() -> impl Strategy<Value = Call> {
    let length = prop_oneof![3 => Just(8192_usize), 1 => Just(16384_usize), 1 => 1..20000_usize];
    let kept = prop_oneof![4 => Just(256_usize), 1 => 0..256_usize];
    let blocks = 0..BLOCKS;
    prop_oneof![
        4 => (place(), length.clone()).prop_map(|(offset, length)| Call::Read { offset, length }),
        4 => (place(), length, 2..=255_u8, kept)
            .prop_map(|(offset, length, fill, kept)| Call::Write { offset, length, fill, kept }),
        1 => (place(), prop::bool::weighted(0.2))
            .prop_map(|(size, fails)| Call::Truncate { size, fails }),
        1 => place().prop_map(|size| Call::Grow { size }),
        2 => (blocks.clone(), 0..5_u32).prop_map(|(block, steps)| Call::Fetch { block, steps }),
        3 => blocks.clone().prop_map(|block| Call::Note { block }),
        4 => (blocks.clone(), 0..5_u32).prop_map(|(block, steps)| Call::Drop { block, steps }),
        1 => blocks.prop_map(|block| Call::Plan { block }),
        1 => Just(Call::Land),
        1 => Just(Call::TakeOver),
    ]
}

/// The lazy file, the plain one, and the pageserver.
struct World<'m> {
    map: Map<'m>,
    agent: Agent<'m, AtomicU32>,
    lazy: Vec<u8>,
    plain: Vec<u8>,
    /// Each block at the LSN that the agent may ask for: at F, or at its last note.
    server: Vec<Vec<u8>>,
    plan: Option<(treering_presence::FetchPlan, Vec<u8>)>,
}

fn bytes_of(block: u32) -> std::ops::Range<usize> {
    let start = block as usize * BLOCK_SIZE as usize;
    start..start + BLOCK_SIZE as usize
}

impl World<'_> {
    fn fetch(&mut self, block: u32, steps: u32) {
        let Some(plan) = self.agent.plan_fetch(block) else { return };
        self.land(plan, self.server[block as usize].clone(), steps);
    }

    fn land(&mut self, plan: treering_presence::FetchPlan, page: Vec<u8>, steps: u32) {
        let Some(claim) = self.agent.claim_fetch(plan) else { return };
        let bytes = bytes_of(plan.block());
        assert!(bytes.end <= self.lazy.len(), "a page lands past the end");
        let written = bytes.len() * steps.min(3) as usize / 3;
        self.lazy[bytes][..written].copy_from_slice(&page[..written]);
        match steps {
            0..4 => self.take_over(),
            _ => self.agent.publish_fetch(claim).unwrap(),
        }
    }

    fn drop_block(&mut self, block: u32, steps: u32) {
        let Some(claim) = self.agent.claim_drop(block, DropRule::NotedToo) else { return };
        let bytes = bytes_of(block);
        let page = &mut self.lazy[bytes];
        if steps == 4 && page.iter().all(|byte| *byte == 0) {
            return self.agent.finish_drop_zero(claim).unwrap();
        }
        let punched = page.len() * steps.min(3) as usize / 3;
        page[..punched].fill(0);
        match steps {
            0..4 => self.take_over(),
            _ => self.agent.finish_drop(claim).unwrap(),
        }
    }

    fn take_over(&mut self) {
        self.plan = None;
        self.agent = Agent::take_over(self.map).0;
    }

    fn note(&mut self, block: u32) {
        if self.agent.note(block)
            && let Some(page) = self.plain.get(bytes_of(block))
        {
            self.server[block as usize] = page.to_vec();
        }
    }

    fn read(&mut self, offset: usize, length: usize) {
        let ticket = loop {
            match self.map.begin_read(offset as u64, length as u64) {
                Ok(ticket) => break ticket,
                Err(missing) => self.supply(missing.block, missing.reason),
            }
        };
        let clip = |file: &[u8]| {
            let end = (offset + length).min(file.len());
            file.get(offset..end).unwrap_or(&[]).to_vec()
        };
        assert!(self.map.validate(&ticket));
        assert!(clip(&self.lazy) == clip(&self.plain), "a read of {length} at {offset} differs");
    }

    fn supply(&mut self, block: u32, reason: Reason) {
        assert_eq!(reason, Reason::Absent, "nobody holds anything between calls");
        self.fetch(block, 4);
    }

    fn write(&mut self, offset: usize, length: usize, fill: u8, kept: usize) {
        let mut pending = self.map.write(offset as u64, length as u64);
        let held = loop {
            match pending.advance() {
                Ok(held) => break held,
                Err((waiting, missing)) => {
                    pending = waiting;
                    self.supply(missing.block, missing.reason);
                }
            }
        };
        let written = length * kept / 256;
        put(&mut self.lazy, offset, written, fill);
        let reported = held.finish(written as u64) as usize;
        assert!(reported <= written);
        put(&mut self.plain, offset, reported, fill);
        // A file that a short write grew: the size is not the map's business.
        let size = self.plain.len().max(self.lazy.len());
        self.plain.resize(size, 0);
        self.lazy.resize(size, 0);
        // Past the map everything that was written counts.
        if offset + reported > SIZE {
            assert_eq!(reported, written);
        }
    }

    fn truncate(&mut self, size: usize, fails: bool) {
        if size >= self.lazy.len() {
            return;
        }
        let mut pending = self.map.truncate(size as u64);
        let held = loop {
            match pending.advance() {
                Ok(held) => break held,
                Err((waiting, missing)) => {
                    pending = waiting;
                    self.supply(missing.block, missing.reason);
                }
            }
        };
        if !fails {
            self.lazy.truncate(size);
            self.plain.truncate(size);
        }
        held.finish(self.lazy.len() as u64);
    }

    fn run(&mut self, call: &Call) {
        match *call {
            Call::Read { offset, length } => self.read(offset, length),
            Call::Write { offset, length, fill, kept } => self.write(offset, length, fill, kept),
            Call::Truncate { size, fails } => self.truncate(size, fails),
            Call::Grow { size } => {
                let size = size.max(self.lazy.len());
                self.lazy.resize(size, 0);
                self.plain.resize(size, 0);
            }
            Call::Fetch { block, steps } => self.fetch(block, steps),
            Call::Note { block } => self.note(block),
            Call::Drop { block, steps } => self.drop_block(block, steps),
            Call::Plan { block } => {
                let page = self.server[block as usize].clone();
                self.plan = self.agent.plan_fetch(block).map(|plan| (plan, page));
            }
            Call::Land => {
                if let Some((plan, page)) = self.plan.take() {
                    self.land(plan, page, 4);
                }
            }
            Call::TakeOver => self.take_over(),
        }
    }
}

fn put(file: &mut Vec<u8>, offset: usize, length: usize, fill: u8) {
    if length > 0 {
        let size = file.len().max(offset + length);
        file.resize(size, 0);
        file[offset..offset + length].fill(fill);
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 5000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]
    #[test]
    fn a_lazy_file_reads_as_a_plain_one(calls in prop::collection::vec(call(), 1..60)) {
        let words: Vec<AtomicU32> =
            (0..Map::<AtomicU32>::words_for(BLOCKS)).map(|_| AtomicU32::new(0)).collect();
        let identity = FileIdentity { device: 1, inode: 2, birth_ns: 3 };
        let map = Map::create(&words, 1, identity, BLOCKS).unwrap();
        let mut world = World {
            map,
            agent: Agent::take_over(map).0,
            lazy: vec![0; SIZE],
            plain: vec![1; SIZE],
            server: vec![vec![1; BLOCK_SIZE as usize]; BLOCKS as usize],
            plan: None,
        };
        for call in &calls {
            world.run(call);
        }
        world.read(0, SIZE + 10000);
    }
}
