//! Opening after a stop of any kind: what manifests name is there, everything else goes.
//!
//! Only names of our own making are removed: timeline directories, layer files, `.tmp` files and `.deleted` directories.
//! A manifest that cannot be read stops the opening; nothing is ever cleared away on its account.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use treering_fs::{FileSystem, create_dir_durably};
use treering_types::{TenantId, TimelineId};

use crate::{
    error::{EngineError, Result},
    latch::Latch,
    layer::LAYER_SUFFIX,
    manifest::{MANIFEST_FILE, TenantManifest, TimelineManifest, invariants, store},
    residence::TenantImage,
};

/// Suffix of a tenant's directory while it is put together.
pub(crate) const INSTALLING_SUFFIX: &str = ".installing";
/// Suffix of a tenant's directory once the tenant is deleted.
pub(crate) const DELETED_SUFFIX: &str = ".deleted";

/// The manifest of a tenant; `None` when the tenant's creation was cut short. Changes nothing.
///
/// # Errors
/// Corrupt when it cannot be read, breaks an invariant, or is missing beside other files.
pub(crate) fn judge_tenant(
    fs: &dyn FileSystem,
    directory: &Path,
    id: TenantId,
) -> Result<Option<TenantManifest>> {
    let corrupt = |what: &str| EngineError::corrupt(directory.join(MANIFEST_FILE), 0, what);
    let Some(manifest) = store::load::<TenantManifest>(fs, directory)? else {
        let is_unfinished = list(fs, directory)?.iter().all(|name| name.ends_with(".tmp"));
        return match is_unfinished {
            true => Ok(None),
            false => Err(corrupt("the tenant's manifest is missing")),
        };
    };
    if manifest.tenant != id {
        return Err(corrupt("the manifest belongs to another tenant"));
    }
    invariants::tenant(&manifest).map_err(corrupt)?;
    Ok(Some(manifest))
}

/// Puts a tenant's directory together from manifests that a source had: whole under its name, or not there. Returns it.
///
/// # Errors
/// Corrupt for manifests that are not those of this tenant, NewerFormat, Io.
pub(crate) fn install(
    fs: &dyn FileSystem,
    root: &Path,
    id: TenantId,
    image: &TenantImage,
) -> Result<PathBuf> {
    let directory = root.join(id.to_string());
    let installing = root.join(format!("{id}{INSTALLING_SUFFIX}"));
    let corrupt = |what: &str| EngineError::corrupt(&directory, 0, what);
    let mut tenant: TenantManifest =
        store::decode_file(&directory.join(MANIFEST_FILE), &image.manifest)?;
    if tenant.tenant != id {
        return Err(corrupt("the manifest belongs to another tenant"));
    }
    let flushed: BTreeSet<TimelineId> = image.timelines.iter().map(|(id, _)| *id).collect();
    for (timeline, entry) in &mut tenant.timelines {
        if entry.flushed && !flushed.contains(timeline) {
            // Its first flush had not come so far: it begins at its fork again.
            entry.ancestor.ok_or_else(|| corrupt("the root's manifest is missing"))?;
            entry.flushed = false;
        }
    }
    let io = |error| EngineError::io("creating", &installing, error);
    remove_directory(fs, &installing)?;
    create_dir_durably(fs, &installing).map_err(io)?;
    let save_failed = |failure: store::SaveFailure| failure.latch(&Latch::default());
    for (timeline, bytes) in &image.timelines {
        if !tenant.timelines.contains_key(timeline) {
            continue;
        }
        let place = installing.join(timeline.to_string());
        let manifest: TimelineManifest = store::decode_file(&place.join(MANIFEST_FILE), bytes)?;
        create_dir_durably(fs, &place).map_err(io)?;
        store::save(fs, &place, &manifest).map_err(save_failed)?;
    }
    store::save(fs, &installing, &tenant).map_err(save_failed)?;
    fs.rename(&installing, &directory).and_then(|()| fs.sync_dir(root)).map_err(io)?;
    Ok(directory)
}

/// The manifest of a timeline, its directory rid of files that no manifest names. `empty`: its state if never flushed.
///
/// # Errors
/// Corrupt when it cannot be read, breaks an invariant, or is missing though `flushed`.
pub(crate) fn timeline_manifest(
    fs: &dyn FileSystem,
    directory: &Path,
    empty: TimelineManifest,
    flushed: bool,
) -> Result<TimelineManifest> {
    match judge_timeline(fs, directory, &empty, flushed)? {
        Some(manifest) => {
            remove_unnamed_files(fs, directory, &manifest)?;
            Ok(manifest)
        }
        None => {
            remove_directory(fs, directory)?;
            Ok(empty)
        }
    }
}

/// The manifest of a timeline; `None` when the timeline is empty, and whatever is in its directory is of an earlier life or an
/// unfinished flush. Changes nothing.
///
/// # Errors
/// As [`timeline_manifest`].
pub(crate) fn judge_timeline(
    fs: &dyn FileSystem,
    directory: &Path,
    empty: &TimelineManifest,
    flushed: bool,
) -> Result<Option<TimelineManifest>> {
    let corrupt = |what: &str| EngineError::corrupt(directory.join(MANIFEST_FILE), 0, what);
    let manifest = match store::load::<TimelineManifest>(fs, directory)? {
        Some(manifest) => manifest,
        None if flushed => return Err(corrupt("the timeline's manifest is missing")),
        None => return Ok(None),
    };
    if (manifest.tenant, manifest.timeline) != (empty.tenant, empty.timeline) {
        return Err(corrupt("the manifest belongs to another timeline"));
    }
    if manifest.pg_tli != empty.pg_tli {
        if flushed {
            return Err(corrupt("the manifest belongs to another life of the timeline"));
        }
        // Left over from a deleted timeline of the same id.
        return Ok(None);
    }
    invariants::timeline(&manifest).map_err(corrupt)?;
    if manifest.disk_consistent_lsn < empty.disk_consistent_lsn {
        return Err(corrupt("disk_consistent_lsn lies before the timeline's start"));
    }
    Ok(Some(manifest))
}

/// Names in a timeline's directory that are of our making and that its manifest does not name.
pub(crate) fn unnamed_files(
    fs: &dyn FileSystem,
    directory: &Path,
    manifest: &TimelineManifest,
) -> Result<Vec<String>> {
    let named: BTreeSet<String> = manifest.layers().map(|layer| layer.file_name()).collect();
    let mut names = list(fs, directory)?;
    names.retain(|name| {
        let ours = name.ends_with(LAYER_SUFFIX) || name.ends_with(".tmp");
        ours && !named.contains(name)
    });
    Ok(names)
}

fn remove_unnamed_files(
    fs: &dyn FileSystem,
    directory: &Path,
    manifest: &TimelineManifest,
) -> Result<()> {
    for name in unnamed_files(fs, directory, manifest)? {
        let path = directory.join(&name);
        tracing::info!(path = %path.display(), "removing a file that no manifest names");
        fs.remove_file(&path).map_err(|error| EngineError::io("removing", path, error))?;
    }
    Ok(())
}

/// Removes directories of timelines that the tenant's manifest does not name: unfinished imports, deleted timelines.
pub(crate) fn remove_unknown_timelines(
    fs: &dyn FileSystem,
    directory: &Path,
    known: &BTreeSet<TimelineId>,
) -> Result<()> {
    for name in list(fs, directory)? {
        let unknown = name.parse::<TimelineId>().is_ok_and(|id| !known.contains(&id));
        if unknown {
            tracing::info!(timeline = %name, "removing a timeline that no manifest names");
            remove_directory(fs, &directory.join(name))?;
        }
    }
    Ok(())
}

/// Removes a directory, if it is there, durably.
pub(crate) fn remove_directory(fs: &dyn FileSystem, directory: &Path) -> Result<()> {
    let error = |error| EngineError::io("removing", directory, error);
    if !fs.exists(directory).map_err(error)? {
        return Ok(());
    }
    fs.remove_dir_all(directory).map_err(error)?;
    match directory.parent() {
        Some(parent) => fs.sync_dir(parent).map_err(error),
        None => Ok(()),
    }
}

/// The names in a directory.
pub(crate) fn list(fs: &dyn FileSystem, directory: &Path) -> Result<Vec<String>> {
    fs.list(directory).map_err(|error| EngineError::io("listing", directory, error))
}
