//! Bytes of the Postgres protocol, version 3, in both directions: start-up, messages, replication, pages.
//!
//! Sans-IO: everything here turns buffers into values and values into buffers; callers own the sockets. Promises:
//! bytes from a peer never panic, never make a parser allocate more than a stated bound, and leave the buffer
//! untouched when more bytes are needed. The one impurity is the SCRAM client's nonce, drawn by `postgres-protocol`.
//!
//! Who uses what: a server reads [`startup`], then [`frame`] + [`frontend`] (and [`replication`] for its commands) and
//! answers with a [`backend::Writer`]; a client of ours runs [`client::Handshake`] and [`client::Reply`]; the relay
//! finds message boundaries with [`frame::Scanner`] without copying.

#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::arithmetic_side_effects)
)]

pub mod backend;
pub mod client;
mod cursor;
mod error;
pub mod frame;
pub mod frontend;
pub mod lease;
pub mod neighbour;
pub mod pagestream;
pub mod replication;
pub mod startup;
pub mod startup_options;

pub use error::WireError;

/// Microseconds since 2000-01-01 00:00:00 UTC: Postgres's own clock (`TimestampTz`, `datatype/timestamp.h`).
pub type PgTime = i64;

/// Seconds from the Unix epoch to Postgres's (`POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE` days).
pub const PG_EPOCH_UNIX_SECONDS: i64 = 946_684_800;
