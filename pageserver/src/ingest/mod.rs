//! WAL from the safekeepers into the engine.
//!
//! [`poll`] learns from the safekeepers which timelines have WAL that we have not, and runs one [`receiver`] for each;
//! the receiver streams from one of them ([`sources`]), up to the commit LSN that this one knows of, and hands the bytes
//! to [`apply`]. A receiver that fails, or whose safekeeper is behind what another one knows of, is started again with a
//! growing pause, at another safekeeper if there is one; it goes on at `last_record_lsn`, which nothing moves back.

pub mod apply;
mod page_ends;
pub mod poll;
mod receiver;
mod relations;
pub(crate) mod sources;
