//! WAL from the safekeeper into the engine.
//!
//! [`poll`] learns from the safekeeper which timelines have WAL that we have not, and runs one [`receiver`] for each;
//! the receiver streams up to the commit LSN and hands the bytes to [`apply`]. A receiver that fails is started again
//! with a growing pause; it goes on at `last_record_lsn`, which nothing moves back.

pub mod apply;
mod page_ends;
pub mod poll;
mod receiver;
mod relations;
