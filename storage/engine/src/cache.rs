//! The engine's two caches, shared by all timelines: materialised pages and unpacked layer blocks.
//!
//! Entries never go stale: a page is named by the change that made it, a block by an immutable file; serials are never
//! reused in a process.

use std::sync::Arc;

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

/// See the module.
pub(crate) struct Caches {
    pages: Cache<PageKey, SharedPage, PageWeight>,
    blocks: Cache<(u64, u32), Arc<Block>, BlockWeight>,
}

impl Caches {
    pub fn new(page_bytes: usize, block_bytes: usize) -> Caches {
        let pages = Cache::with_weighter(page_bytes / PAGE_SIZE, page_bytes as u64, PageWeight);
        let blocks =
            Cache::with_weighter(block_bytes / (48 << 10), block_bytes as u64, BlockWeight);
        Caches { pages, blocks }
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
