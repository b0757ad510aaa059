//! Which blocks of a lazily fetched file are really in it: the protocol between the library under Postgres,
//! which reads, writes and truncates, and the agent, which fetches and drops.
//!
//! One map a file, in memory that all Postgres processes and the agent share; one atomic word a block. The
//! layout, the reasons for every transition and ordering, and what each crash leaves are in
//! `docs/formats/presence.md`. This crate is the words and their transitions, nothing else: no I/O, no
//! allocation, no waiting, no system. It does not know what a descriptor is, which LSN a fetch needs, or how to
//! ask for one.
//!
//! What holds, if each side does what its operation's documentation says (checked in `tests/model.rs` over all
//! interleavings and weak orderings of small cases, with an agent that dies after each of its steps):
//! - a read that [`Map::validate`] accepted saw no hole of a block that was never fetched or was dropped;
//! - bytes written by Postgres are never replaced by older ones;
//! - blocks cut by a truncation are never fetched again;
//! - versions of a word never repeat.
//!
//! ```
//! use core::sync::atomic::AtomicU32;
//! use treering_presence::{Agent, BLOCK_SIZE, FileIdentity, HEADER_WORDS, Map, NotReady, Reason};
//!
//! let memory: Vec<AtomicU32> = (0..HEADER_WORDS + 2).map(|_| AtomicU32::new(0)).collect();
//! let identity = FileIdentity { device: 1, inode: 12, birth_ns: 1_700_000_000_000_000_000 };
//! let map = Map::create(&memory, 7, identity, 2).unwrap();
//!
//! // A reader meets a hole, and the agent fills it.
//! let missing = map.begin_read(0, 100).unwrap_err();
//! assert_eq!(missing, NotReady { block: 0, reason: Reason::Absent });
//! let (agent, _) = Agent::take_over(map);
//! let plan = agent.plan_fetch(0).unwrap(); // ... the network ...
//! let claim = agent.claim_fetch(plan).unwrap(); // ... pwrite ...
//! agent.publish_fetch(claim).unwrap();
//! let ticket = map.begin_read(0, 100).unwrap(); // ... pread ...
//! assert!(map.validate(&ticket));
//!
//! // A writer needs no fetch for a block that it covers whole.
//! let held = map.write(BLOCK_SIZE, BLOCK_SIZE).advance().map_err(|(_, why)| why).unwrap(); // ... pwrite ...
//! assert_eq!(held.finish(BLOCK_SIZE), BLOCK_SIZE);
//! ```

#![no_std]
#![forbid(unsafe_code)]
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::panic))]

mod agent;
mod block;
mod claim;
mod directory;
mod header;
mod map;
mod shared;

pub use agent::{Agent, DropClaim, DropRule, FetchClaim, FetchPlan, Lost, TakeOver};
pub use block::{Block, History, State, VERSION_MAX};
pub use claim::{Goal, Held, Pending, Truncation, Write};
pub use directory::{
    DIRECTORY_MAGIC, DIRECTORY_VERSION, Directory, DirectoryError, Layout, MapPlace,
    SOCKET_PATH_BYTES, Terms, blocks_of_size,
};
pub use header::{FileIdentity, HEADER_WORDS, HeaderError, MAGIC, VERSION};
pub use map::{Map, NotReady, ReadTicket, Reason};
pub use shared::SharedWord;

/// Bytes of a block: Postgres's page.
pub const BLOCK_SIZE: u64 = 8192;
/// Most blocks of one file: a segment of 1 GiB.
pub const BLOCKS_MAX: u32 = 131_072;
