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
    /// Neighbouring blocks of one relation fork with so many bytes of values get a layer file of their own from a flush.
    pub stretch_bytes_min: usize,
    /// Materialised pages.
    pub page_cache_bytes: usize,
    /// Decompressed layer blocks.
    pub block_cache_bytes: usize,
    /// Changes of one page between images in layer files: the bound on what a read has to redo there.
    pub chain_max: usize,
    /// The same bound for the open layer, where an image costs memory instead of disk.
    pub open_chain_max: usize,
    /// Target size of a layer block before compression; measured: `docs/decisions/0007-layer-blocks.md`.
    pub block_bytes: usize,
    /// Runs of similar size that a merge waits for. Fewer: fewer layers to read, more bytes written.
    pub fan_in: usize,
    /// Runs of layer files of a timeline above which the cheapest adjacent ones are merged whatever their sizes.
    pub runs_max: usize,
    /// A writer waits while its timeline has this many runs: compaction is behind. An import's are not counted.
    pub runs_hard_max: usize,
    /// A merge begins another layer file at the first key past this size in bytes of file.
    pub layer_bytes_max: u64,
    /// A merge takes a layer file of at least so many bytes over as it is if nothing else lies between its keys.
    pub moved_bytes_min: u64,
    /// Memory that one merge may take, with all its threads.
    pub merge_bytes_max: usize,
    /// Threads that one merge may use: each takes a range of keys (decision 11).
    pub merge_threads: usize,
    /// A range that a thread takes holds at least about this many bytes of files. Smaller merges are one thread's, and the order of
    /// their file-system calls is always the same.
    pub merge_part_bytes_min: u64,
    /// History is kept readable for at least this long (point-in-time restore) ...
    pub pitr_window: Duration,
    /// ... and for at least this many bytes of log.
    pub pitr_bytes: u64,
    /// How often gc looks whether history has left the window.
    pub gc_interval: Duration,
    /// No gc for this long after the engine was opened: the length of an LSN lease, so that whoever held one across a restart can
    /// ask for it again.
    pub gc_delay: Duration,
    /// Run the flush and the compaction thread. Without them writers flush and compact inline (tests that count file-system
    /// calls).
    pub background: bool,
}

impl EngineOptions {
    /// Memory that all of these bounds together allow: open layers, caches and one merge. Filters and indexes of layer files
    /// (about a five-hundredth of their bytes) come on top.
    pub const fn memory_bytes_max(&self) -> usize {
        self.open_bytes_total_max
            + self.page_cache_bytes
            + self.block_cache_bytes
            + self.merge_bytes_max
    }
}

impl Default for EngineOptions {
    fn default() -> Self {
        EngineOptions {
            open_layer_bytes_max: 64 << 20,
            open_layer_age_max: Duration::from_secs(60),
            open_bytes_total_max: 512 << 20,
            frozen_layers_max: 3,
            stretch_bytes_min: 8 << 20,
            page_cache_bytes: 128 << 20,
            block_cache_bytes: 128 << 20,
            chain_max: 64,
            open_chain_max: 256,
            block_bytes: 32 << 10,
            fan_in: 4,
            runs_max: 8,
            runs_hard_max: 24,
            layer_bytes_max: 128 << 20,
            moved_bytes_min: 1 << 20,
            merge_bytes_max: 256 << 20,
            merge_threads: 2,
            merge_part_bytes_min: 16 << 20,
            pitr_window: Duration::from_secs(7 * 24 * 3600),
            pitr_bytes: 64 << 20,
            gc_interval: Duration::from_secs(60),
            gc_delay: Duration::from_secs(600),
            background: true,
        }
    }
}
