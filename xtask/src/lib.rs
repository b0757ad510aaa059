//! Work on the repository that needs the product's own code: judging redo against stock Postgres, and the table
//! that says what was judged.
//!
//! [`verify`] replays a base and its WAL twice: here, record by record with the images of
//! `wal_consistency_checking` as the judge, and by a stock standby, whose files are then compared with ours byte for
//! byte. [`workload`] makes such WAL; [`coverage`] keeps count of the record types seen.

#![forbid(unsafe_code)]

mod compare;
pub mod coverage;
pub mod mutants;
pub mod record_types;
pub mod regress;
pub mod replica;
pub mod report;
pub mod standby;
pub mod verify;
pub mod wal;
pub mod workload;
