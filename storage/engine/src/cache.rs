//! The engine's caches, shared by all timelines: materialised pages, unpacked layer blocks, and for the flush the lengths of chains.
//!
//! Entries never go stale: a page is named by the change that made it, a block by an immutable file; serials are never
//! reused in a process.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use quick_cache::{Weighter, sync::Cache};
use treering_types::{Key, Lsn, PAGE_SIZE};

use crate::layer::block::Block;

/// A page in the cache.
pub(crate) type SharedPage = Arc<[u8; PAGE_SIZE]>;

/// The page that the change at `lsn` left, with everything before it applied.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct PageKey {
    /// Serial of the timeline that holds the change.
    pub timeline: u64,
    pub key: Key,
    pub lsn: Lsn,
}

#[derive(Clone)]
struct PageWeight;

impl Weighter<PageKey, SharedPage> for PageWeight {
    fn weight(&self, _: &PageKey, _: &SharedPage) -> u64 {
        PAGE_SIZE as u64 + 96
    }
}

#[derive(Clone)]
struct BlockWeight;

impl Weighter<(u64, u32), Arc<Block>> for BlockWeight {
    fn weight(&self, _: &(u64, u32), block: &Arc<Block>) -> u64 {
        block.memory() as u64
    }
}

/// Pages whose chains are remembered, of all timelines: about 16 MiB.
const CHAINS_MAX: usize = 1 << 18;
/// Page reads by how many layers they had to look into: the number of the slot; the last one counts all above.
pub const READ_LAYERS_SLOTS: usize = 33;

/// See the module.
pub(crate) struct Caches {
    pages: Cache<PageKey, SharedPage, PageWeight>,
    blocks: Cache<(u64, u32), Arc<Block>, BlockWeight>,
    chains: Cache<(u64, Key), u16>,
    /// Of the page reads that went through these caches.
    read_layers: [AtomicU64; READ_LAYERS_SLOTS],
}

impl Caches {
    pub fn new(page_bytes: usize, block_bytes: usize) -> Caches {
        let pages = Cache::with_weighter(page_bytes / PAGE_SIZE, page_bytes as u64, PageWeight);
        let blocks =
            Cache::with_weighter(block_bytes / (48 << 10), block_bytes as u64, BlockWeight);
        let chains = Cache::new(CHAINS_MAX);
        Caches {
            pages,
            blocks,
            chains,
            read_layers: [const { AtomicU64::new(0) }; READ_LAYERS_SLOTS],
        }
    }

    /// How long the chain of a page was at its last flush, if that is remembered.
    pub fn chain(&self, timeline: u64, key: Key) -> Option<u16> {
        self.chains.get(&(timeline, key))
    }

    pub fn put_chain(&self, timeline: u64, key: Key, chain: u16) {
        self.chains.insert((timeline, key), chain);
    }

    /// A page was read out of so many layers.
    pub fn count_read(&self, layers: usize) {
        if let Some(slot) = self.read_layers.get(layers.min(READ_LAYERS_SLOTS - 1)) {
            slot.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub fn reads_by_layers(&self) -> [u64; READ_LAYERS_SLOTS] {
        std::array::from_fn(|slot| {
            self.read_layers.get(slot).map_or(0, |count| count.load(Ordering::Relaxed))
        })
    }

    pub fn page(&self, key: &PageKey) -> Option<SharedPage> {
        self.pages.get(key)
    }

    pub fn put_page(&self, key: PageKey, page: SharedPage) {
        self.pages.insert(key, page);
    }

    pub fn block(&self, layer: u64, number: usize) -> Option<Arc<Block>> {
        self.blocks.get(&(layer, number as u32))
    }

    pub fn put_block(&self, layer: u64, number: usize, block: &Arc<Block>) {
        self.blocks.insert((layer, number as u32), Arc::clone(block));
    }
}
