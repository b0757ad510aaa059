//! The words every part of Treering shares: log positions, identities, keys, relation tags, page images
//! and the small public error kind.
//!
//! Pure values only: no I/O, no clock, no randomness. Nothing here knows about a file format, a protocol or
//! a service; those crates depend on this one, never the reverse.

#![forbid(unsafe_code)]

mod error_kind;
mod id;
mod key;
mod lsn;
mod page;
mod rel;

pub use error_kind::ErrorKind;
pub use id::{IdError, NodeId, TenantId, Term, TimelineId};
pub use key::{ControlField, KEY_SIZE, Key, KeyClass, KeyError, KeyRange, SlruKind};
pub use lsn::{Lsn, LsnError, LsnRange, WAL_PAGE_SIZE, WAL_SEGMENT_SIZE};
pub use page::{PAGE_SIZE, PageImage};
pub use rel::{Fork, ForkError, RelTag};
