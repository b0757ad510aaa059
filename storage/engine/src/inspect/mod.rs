//! Looking at one file of the engine, by itself: what it says, and what is wrong with it.
//!
//! Works on damaged files as far as it can, so nothing here decides what a read may trust: that is `layer::file` and
//! `manifest::store`. Reads the whole file into memory.

mod layer;
mod manifest;
mod walk;

use std::{io, path::Path};

use serde::Serialize;
use treering_fs::{FileSystem, read_file};

pub use layer::{BlockReport, Entry, FooterReport, LayerReport};
pub use manifest::{
    LayerLine, ManifestHead, RunReport, TenantReport, TimelineEntryReport, TimelineReport,
};

use crate::{layer::LAYER_SUFFIX, manifest::MANIFEST_FILE};

/// Something that is wrong with the file, and at which offset.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Damage {
    pub offset: u64,
    pub what: String,
}

impl Damage {
    fn at(offset: u64, what: impl Into<String>) -> Damage {
        Damage { offset, what: what.into() }
    }
}

/// What a file is and says.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Inspected {
    Layer(Box<LayerReport>),
    TenantManifest(TenantReport),
    TimelineManifest(TimelineReport),
}

impl Inspected {
    /// Everything that is wrong with the file by itself. (What it should hold is for a scrub to say.)
    pub fn damage(&self) -> &[Damage] {
        match self {
            Inspected::Layer(report) => &report.damage,
            Inspected::TenantManifest(report) => &report.head.damage,
            Inspected::TimelineManifest(report) => &report.head.damage,
        }
    }
}

/// Reads a layer file or manifest; `each` is shown every value of a layer that can be read, in the order of the file.
///
/// # Errors
/// Io; `InvalidData` when neither the first bytes nor the name say what the file is.
pub fn inspect(
    fs: &dyn FileSystem,
    path: &Path,
    each: &mut dyn FnMut(Entry<'_>),
) -> io::Result<Inspected> {
    let bytes = read_file(fs, path)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let begins = |magic: &[u8]| bytes.starts_with(magic);
    if begins(b"TRTENANT") {
        return Ok(Inspected::TenantManifest(manifest::tenant(path, &bytes)));
    }
    if begins(b"TRTIMELN") {
        return Ok(Inspected::TimelineManifest(manifest::timeline(path, &bytes)));
    }
    if begins(b"TRLAYER\n") || name.contains(LAYER_SUFFIX) {
        return Ok(Inspected::Layer(Box::new(layer::layer(&bytes, each))));
    }
    // Both kinds have one name: a timeline's lies one directory deeper, in one that is named like the other.
    if name.starts_with(MANIFEST_FILE) {
        let is_id = |path: Option<&Path>| {
            let name = path.and_then(Path::file_name).unwrap_or_default().to_string_lossy();
            name.parse::<treering_types::TenantId>().is_ok()
        };
        let above = path.parent();
        return Ok(match is_id(above) && is_id(above.and_then(Path::parent)) {
            true => Inspected::TimelineManifest(manifest::timeline(path, &bytes)),
            false => Inspected::TenantManifest(manifest::tenant(path, &bytes)),
        });
    }
    let what = "neither its first bytes nor its name are those of a layer file or a manifest";
    Err(io::Error::new(io::ErrorKind::InvalidData, what))
}
