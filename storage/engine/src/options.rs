//! The engine's bounds, each with a name.

use std::time::Duration;

/// Bounds and defaults. All sizes are bytes of memory.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// An open layer larger than this is frozen and flushed.
    pub open_layer_bytes_max: usize,
    /// An open layer older than this is frozen and flushed, so that `disk_consistent_lsn` moves on quiet timelines.
    pub open_layer_age_max: Duration,
    /// All open and frozen layers together: above it, the writer that notices freezes its own, and the
    /// background thread the largest.
    pub open_bytes_total_max: usize,
    /// A writer waits while this many frozen layers of its timeline wait for their flush.
    pub frozen_layers_max: usize,
    /// Materialised pages.
    pub page_cache_bytes: usize,
    /// Decompressed layer blocks.
    pub block_cache_bytes: usize,
    /// Changes of one page between images in layer files: the bound on what a read has to redo there.
    pub chain_max: usize,
    /// The same bound for the open layer, where an image costs memory instead of disk.
    pub open_chain_max: usize,
    /// Target size of a layer block before compression.
    pub block_bytes: usize,
    /// Run the flush thread. Without it, writers flush inline (tests that count file-system calls).
    pub background: bool,
}

impl Default for EngineOptions {
    fn default() -> Self {
        EngineOptions {
            open_layer_bytes_max: 64 << 20,
            open_layer_age_max: Duration::from_secs(60),
            open_bytes_total_max: 512 << 20,
            frozen_layers_max: 3,
            page_cache_bytes: 128 << 20,
            block_cache_bytes: 128 << 20,
            chain_max: 64,
            open_chain_max: 256,
            block_bytes: 32 << 10,
            background: true,
        }
    }
}
