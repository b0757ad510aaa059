//! Manifests: the only files that change. One names a tenant's timelines, one a timeline's layers.
//!
//! A manifest is replaced whole and atomically; what is not named in one does not exist. Before each write the
//! predicates in [`invariants`] are run on the old and the new state together: breaking one is a bug of ours and
//! panics before anything reaches the disk. Layout: `docs/formats/manifest.md`.

pub mod invariants;
pub mod store;
pub mod tenant;
pub mod timeline;

pub use tenant::{TenantManifest, TimelineEntry};
pub use timeline::{Kept, RunDesc, TimelineManifest};

/// Name of a manifest file, in a tenant's or a timeline's directory.
pub const MANIFEST_FILE: &str = "manifest";
