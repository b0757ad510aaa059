//! The files below an engine's root, read without opening an engine: nothing is written, created or removed.
//!
//! On a directory in use, files come and go: a merge removes what it has replaced. So what is found wrong about a timeline counts
//! only if its manifests still say the same afterwards; else the timeline is read again. Nobody can tell what is left over
//! from what is being made there, so leftovers are not looked for.

use std::{collections::BTreeSet, path::Path};

use treering_fs::FileSystem;
use treering_types::{TenantId, TimelineId};

use super::{Finding, Leftover, Relative, ScrubReport};
use crate::{
    error::{EngineError, Result},
    layer::{LayerOwner, file::LayerFile},
    manifest::{MANIFEST_FILE, TenantManifest, TimelineEntry, TimelineManifest, store},
    recover,
};

/// Readings of a timeline that changes all the while; after them what was found last counts.
const READINGS_MAX: usize = 10;

/// Reads all manifests and layers below `root`, the directory of an engine. `in_use`: one may have it open. `is_cache`: layers may be
/// in an object store only; those that are not here are counted, not read.
///
/// # Errors
/// Io when the directory itself cannot be listed; everything else is a finding.
pub fn scrub_directory(
    fs: &dyn FileSystem,
    root: &Path,
    in_use: bool,
    is_cache: bool,
) -> Result<ScrubReport> {
    let mut scrub = Scrub { fs, in_use, is_cache, report: ScrubReport::default() };
    for name in recover::list(fs, root)? {
        let directory = root.join(&name);
        if let Ok(tenant) = name.parse::<TenantId>() {
            scrub.tenant(&directory, tenant);
        } else if name.ends_with(recover::DELETED_SUFFIX) {
            scrub.leftover(&directory, "a deleted project");
        }
    }
    Ok(scrub.report)
}

struct Scrub<'a> {
    fs: &'a dyn FileSystem,
    in_use: bool,
    is_cache: bool,
    report: ScrubReport,
}

impl Scrub<'_> {
    fn leftover(&mut self, path: &Path, what: &'static str) {
        if !self.in_use {
            self.report.leftovers.push(Leftover { path: path.to_owned(), what });
        }
    }

    fn tenant(&mut self, directory: &Path, id: TenantId) {
        match recover::judge_tenant(self.fs, directory, id) {
            Ok(Some(manifest)) => self.timelines(directory, &manifest),
            Ok(None) => self.leftover(directory, "a project whose creation was cut short"),
            // Deleted since its name was read.
            Err(_) if self.in_use && !self.fs.exists(directory).unwrap_or(true) => {}
            Err(error) => self.manifest_finding(directory, id, None, error),
        }
    }

    fn manifest_finding(
        &mut self,
        directory: &Path,
        tenant: TenantId,
        timeline: Option<TimelineId>,
        error: EngineError,
    ) {
        let path = directory.join(MANIFEST_FILE);
        self.report.findings.push(Finding { tenant, timeline, path, error, span: None });
    }

    fn timelines(&mut self, directory: &Path, manifest: &TenantManifest) {
        self.report.tenants += 1;
        let tenant = manifest.tenant;
        for (id, entry) in &manifest.timelines {
            self.report.timelines += 1;
            let relative = Relative { tenant, timeline: *id, ancestor: entry.ancestor };
            self.report.family.push(relative);
            self.timeline(directory, tenant, *id, entry);
        }
        let known: BTreeSet<TimelineId> = manifest.timelines.keys().copied().collect();
        let unknown =
            |name: &String| name.parse::<TimelineId>().is_ok_and(|id| !known.contains(&id));
        match recover::list(self.fs, directory) {
            Ok(names) => names.iter().filter(|name| unknown(name)).for_each(|name| {
                self.leftover(&directory.join(name), "a branch that no manifest names");
            }),
            Err(error) => self.manifest_finding(directory, tenant, None, error),
        }
    }

    /// Reads the timeline until what is found wrong holds still.
    fn timeline(
        &mut self,
        tenant_directory: &Path,
        tenant: TenantId,
        id: TimelineId,
        entry: &TimelineEntry,
    ) {
        let directory = tenant_directory.join(id.to_string());
        let before = self.report.clone();
        for _ in 0..READINGS_MAX {
            let read = self.sequence(&directory);
            self.timeline_once(&directory, tenant, id, entry);
            if self.report.findings.len() == before.findings.len() {
                return;
            }
            let known = store::load::<TenantManifest>(self.fs, tenant_directory).ok().flatten();
            let is_gone = known.is_some_and(|now| !now.timelines.contains_key(&id));
            if !is_gone && self.sequence(&directory) == read {
                return;
            }
            self.report = before.clone();
            if is_gone {
                return;
            }
        }
    }

    /// Which writing of the timeline's manifest is there; `None` when there is none that can be read.
    fn sequence(&self, directory: &Path) -> Option<u64> {
        let manifest = store::load::<TimelineManifest>(self.fs, directory).ok().flatten();
        manifest.map(|manifest| manifest.sequence)
    }

    fn timeline_once(
        &mut self,
        directory: &Path,
        tenant: TenantId,
        id: TimelineId,
        entry: &TimelineEntry,
    ) {
        let empty = TimelineManifest::empty(tenant, id, entry.pg_tli, entry.start_lsn);
        match recover::judge_timeline(self.fs, directory, &empty, entry.flushed) {
            Ok(Some(manifest)) => {
                let owner = LayerOwner { tenant, timeline: id };
                for desc in manifest.layers() {
                    let path = directory.join(desc.file_name());
                    if self.is_cache && matches!(self.fs.exists(&path), Ok(false)) {
                        self.report.absent_layers += 1;
                        continue;
                    }
                    let file = LayerFile::open(self.fs, directory, owner, desc.clone(), 0);
                    self.report.add_layer((tenant, id), &file);
                }
                match recover::unnamed_files(self.fs, directory, &manifest) {
                    Ok(names) => names.iter().for_each(|name| {
                        self.leftover(&directory.join(name), "a file that no manifest names");
                    }),
                    Err(error) => self.manifest_finding(directory, tenant, Some(id), error),
                }
            }
            Ok(None) if self.fs.exists(directory).unwrap_or(false) => {
                self.leftover(directory, "files of a branch that has none");
            }
            Ok(None) => {}
            Err(error) => self.manifest_finding(directory, tenant, Some(id), error),
        }
    }
}
