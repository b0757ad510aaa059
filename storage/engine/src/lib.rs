//! The copy-on-write page engine: "page P of timeline T at LSN L".
//!
//! Synchronous, on files through the [`treering_fs`] seam. It stores values at (key, LSN), in memory first
//! (`layer::open`), then in immutable layer files (`layer::file`); a branch is a new timeline that reads through to its
//! ancestor at its fork LSN. It does not know what a WAL record is, where values come from, or who asks: the
//! pageserver tells it what to write, and [`treering_pgfmt::redo`] turns changes into pages.
//!
//! What it promises:
//! - reads at an LSN see everything written at or below it and nothing above, whatever happens meanwhile;
//! - after a crash at any moment each timeline is exactly what it was at its `disk_consistent_lsn`, and every
//!   acknowledged tenant, branch and deletion stands;
//! - bytes that fail a check are named and never served.
//!
//! Start at [`Engine::open`]; [`Timeline::write`] and [`Timeline::get_pages`] are the two ways through it.

#![forbid(unsafe_code)]

mod background;
mod binary;
mod branch;
mod cache;
mod compact;
mod context;
mod engine;
mod error;
mod flush;
pub mod inspect;
mod latch;
mod layer;
mod layer_map;
mod manifest;
mod options;
mod progress;
mod read;
pub mod record_ends;
mod recover;
pub mod relation;
mod residence;
mod scrub;
mod size;
mod stretch;
mod tenant;
pub mod time_index;
mod timeline;
pub mod unhandled;
mod value;

pub use branch::RetainedSet;
pub use cache::READ_LAYERS_SLOTS;
pub use compact::Compacted;
pub use context::TrafficInfo;
pub use engine::Engine;
pub use error::{EngineError, Result};
pub use options::EngineOptions;
pub use record_ends::{Boundary, RecordEnds};
pub use relation::{CopyOf, RelMeta};
pub use residence::{
    LayerSource, LayerState, ResidenceInfo, StoredLayer, TenantImage, TenantState, TimelineContent,
    TimelineState,
};
pub use scrub::{Finding, Leftover, Relative, ScrubReport, Span, scrub_directory};
pub use size::{Pin, TimelineSize};
pub use tenant::{NewTenant, Tenant, TenantInfo};
pub use time_index::{TimeAnswer, TimeEntry};
pub use timeline::{Timeline, TimelineIdentity, TimelineInfo};
pub use unhandled::{Unhandled, Unreadable};
pub use value::{Direction, VALUE_BYTES_MAX, Value, WriteBatch};
