//! Page images.

/// Bytes in one relation or SLRU page (`BLCKSZ`, `pg_config.h`).
pub const PAGE_SIZE: usize = 8192;

/// One page, owned. Boxed: pages travel between threads and caches far more often than they are built.
pub type PageImage = Box<[u8; PAGE_SIZE]>;
