//! What the fuzz targets share: how a fuzzer's bytes become a case, how cases are mutated, and a meter for memory.
//!
//! Every byte string is a case: lengths are cut to what is there, so that no input is wasted on a parser of our
//! own. `write` is the inverse of `read` for seeds made from real WAL (`src/bin/seeds.rs`).

pub mod input;
pub mod memory;
pub mod redo_case;
pub mod wal_case;
