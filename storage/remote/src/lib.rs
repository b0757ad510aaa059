//! The object store as truth: what of a tenant survives its machine.
//!
//! - [`Store`] is the seam: [`Directory`] (a local directory, the default), [`Bucket`] (S3-compatible, through the `object_store` crate), and
//!   [`sim::SimStore`] for tests.
//! - [`generation`]: who may change a tenant. [`index`]: what is in the store, one immutable object a version. [`attach`]: what a
//!   pageserver begins with. [`Attached`]: upload, publish, confirm, delete, fetch.
//!
//! It does not know what a manifest or a layer means: the engine's bytes go in and come out. What it promises, with the argument for each, is in
//! `docs/formats/object-store.md`; in one line: nothing is acknowledged that a pageserver with an empty disk would not find, and nothing is
//! deleted that any pageserver's newest index may name.

#![forbid(unsafe_code)]

pub mod attach;
mod attached;
pub mod binary;
#[cfg(feature = "s3")]
mod bucket;
mod directory;
pub mod error;
pub mod generation;
pub mod identity;
pub mod index;
mod location;
pub mod names;
pub mod retry;
pub mod sim;
pub mod snapshot;
mod store;
mod verify;

pub use attached::Attached;
#[cfg(feature = "s3")]
pub use bucket::Bucket;
pub use directory::Directory;
pub use error::{RemoteError, Result};
pub use location::Location;
pub use store::Store;
