//! Postgres's bytes: pages, WAL, the control file and redo, as pure functions.
//!
//! No I/O, no clock, no randomness. Every decoder takes bytes from a disk or a network and answers with a
//! typed error, never a panic. Version differences live in [`version`]'s tables.

#![forbid(unsafe_code)]

pub mod change;
pub mod checksum;
pub mod control;
pub mod crc;
mod cursor;
pub mod fields;
pub mod item;
pub mod judge;
mod le;
pub mod mask;
pub mod page;
pub mod pglz;
pub mod redo;
pub mod relmap;
pub mod relpath;
pub mod timestamp;
pub mod twophase;
pub mod version;
pub mod wal;
