//! `storage size PROJECT`.

use std::{
    collections::HashSet,
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::Context;
use serde::Serialize;
use treering_control::error::ApiError;
use treering_engine::{Engine, EngineOptions, TimelineSize};
use treering_fs::{DryFs, RealFs};
use treering_types::{Lsn, TenantId, TimelineId};

use super::{engine_root, names::Names, people};
use crate::{
    cli::Place,
    output::{Format, table},
};

/// Where the disk went. All sizes are bytes; those on disk are what the file system has given out, as `du` counts: a file
/// with several names once.
#[derive(Serialize)]
struct ProjectSize {
    project: String,
    tenant_id: TenantId,
    /// The whole data directory.
    disk_bytes: u64,
    /// Of the project's branches: layer files and manifests, objects in the data directory among them; write-ahead log;
    /// files of computes.
    pages_bytes: u64,
    log_bytes: u64,
    compute_bytes: u64,
    /// Everything else: service logs, the template of new clusters, other projects.
    other_bytes: u64,
    branches: Vec<BranchSize>,
}

/// A branch.
#[derive(Serialize)]
struct BranchSize {
    name: String,
    parent: Option<String>,
    timeline_id: TimelineId,
    /// On disk.
    pages_bytes: u64,
    log_bytes: u64,
    compute_bytes: u64,
    /// On disk because of this branch: the three, and what it alone pins in its parent.
    unique_bytes: u64,
    /// Of its ancestors' files: what it can read and does not pin alone.
    shared_bytes: u64,
    /// Its own layer files: what the newest reads need, older versions, and what nobody can ask for any more.
    live_bytes: u64,
    history: History,
    garbage_bytes: u64,
    /// `None` when it cannot be deleted.
    freed_if_deleted_bytes: Option<u64>,
    /// The part of that which the parent's next merges free.
    freed_by_merges_bytes: u64,
    /// Why it cannot be deleted.
    #[serde(skip_serializing_if = "Option::is_none")]
    not_deletable: Option<String>,
}

/// Older versions in a branch's own files, and who pins them.
#[derive(Serialize)]
struct History {
    bytes: u64,
    /// Kept for `--pitr-window`, whoever reads them.
    window_bytes: u64,
    /// Older than the window.
    pinned_bytes: u64,
    /// Of those, what each branch pins alone.
    pins: Vec<Pinned>,
    /// The rest: pinned by several branches together, by leases, or by copies of databases.
    pinned_together_bytes: u64,
}

/// A branch that pins a version.
#[derive(Serialize)]
struct Pinned {
    branch: String,
    lsn: Lsn,
    bytes: u64,
}

pub fn run(place: &Place, project: &str, output: Format) -> anyhow::Result<()> {
    let is_in_use = place.data_dir().is_in_use()?;
    let names = Names::find(place, is_in_use);
    let tenant = names
        .tenant(project)
        .ok_or_else(|| ApiError::not_found(format!("there is no project \"{project}\"")))?;
    let sizes = if is_in_use { ask(place, tenant)? } else { measure(place, tenant)? };
    let size = project_size(place, &names, tenant, &sizes)?;
    output.show(&size, text)
}

/// The engine that is running has a say in what is there.
fn ask(place: &Place, tenant: TenantId) -> anyhow::Result<Vec<TimelineSize>> {
    let url = format!("{}/v1/tenant/{tenant}/size", place.running()?.pageserver_http);
    let client = reqwest::blocking::Client::builder().timeout(None).build()?;
    let answer = client.get(&url).send()?;
    if answer.status().is_success() {
        return Ok(answer.json()?);
    }
    let (status, body) = (answer.status(), answer.text()?);
    let named = serde_json::from_str::<ApiError>(&body);
    Err(named.unwrap_or_else(|_| ApiError::internal(format!("{url}: {status} {body}"))).into())
}

/// Opens the engine's files without writing to them.
fn measure(place: &Place, tenant: TenantId) -> anyhow::Result<Vec<TimelineSize>> {
    let options = EngineOptions { background: false, ..EngineOptions::default() };
    let fs = Arc::new(DryFs::over(Arc::new(RealFs)));
    let engine = Engine::open(fs, &engine_root(place), options);
    let engine = engine.context("`treering storage scrub` says more")?;
    Ok(engine.tenant(tenant)?.sizes()?)
}

fn project_size(
    place: &Place,
    names: &Names,
    tenant: TenantId,
    sizes: &[TimelineSize],
) -> anyhow::Result<ProjectSize> {
    let data_dir = place.data_dir();
    let disk_bytes = on_disk(std::slice::from_ref(&data_dir.0))?;
    let objects = objects(&data_dir.0.join("objects").join(tenant.to_string()))?;
    let mut branches = Vec::new();
    for size in sizes {
        branches.push(branch_size(place, names, tenant, size, sizes, &objects)?);
    }
    let is_default =
        |branch: &BranchSize| names.known(branch.timeline_id).is_some_and(|known| known.is_default);
    branches.sort_by(|a, b| (!is_default(a), &a.name).cmp(&(!is_default(b), &b.name)));
    let sum = |part: fn(&BranchSize) -> u64| branches.iter().map(part).sum::<u64>();
    let pages_bytes = sum(|branch| branch.pages_bytes);
    let log_bytes = sum(|branch| branch.log_bytes);
    let compute_bytes = sum(|branch| branch.compute_bytes);
    Ok(ProjectSize {
        project: names.project(tenant),
        tenant_id: tenant,
        disk_bytes,
        pages_bytes,
        log_bytes,
        compute_bytes,
        other_bytes: disk_bytes.saturating_sub(pages_bytes + log_bytes + compute_bytes),
        branches,
    })
}

fn branch_size(
    place: &Place,
    names: &Names,
    tenant: TenantId,
    size: &TimelineSize,
    all: &[TimelineSize],
    objects: &[PathBuf],
) -> anyhow::Result<BranchSize> {
    let data_dir = place.data_dir();
    let id = size.timeline_id;
    let below =
        |dir: PathBuf, parts: [&str; 2]| dir.join(parts[0]).join(parts[1]).join(id.to_string());
    let tenant = tenant.to_string();
    // A timeline's objects lie in `<timeline>-<pg_tli>`.
    let is_own = |path: &&PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.split_once('-').is_some_and(|(timeline, _)| timeline == id.to_string())
    };
    let local = below(data_dir.service_dir("pageserver"), ["tenants", &tenant]);
    let own_objects = objects.iter().filter(is_own).cloned();
    let pages: Vec<PathBuf> = [local].into_iter().chain(own_objects).collect();
    let pages_bytes = on_disk(&pages)?;
    // Each safekeeper has a copy.
    let logs = data_dir.safekeeper_dirs()?.into_iter().map(|dir| below(dir, [&tenant, ""]));
    let log_bytes = on_disk(&logs.collect::<Vec<_>>())?;
    let compute_bytes = on_disk(&[below(data_dir.service_dir("agent"), ["computes", ""])])?;
    let parent =
        size.ancestor_timeline_id.and_then(|id| all.iter().find(|of| of.timeline_id == id));
    let pinned = parent.map_or(0, |parent| parent.pinned_by(id));
    let unique_bytes = pages_bytes + log_bytes + compute_bytes + pinned;
    let not_deletable = not_deletable(names, id, all);
    Ok(BranchSize {
        name: names.branch(id),
        parent: size.ancestor_timeline_id.map(|id| names.branch(id)),
        timeline_id: id,
        pages_bytes,
        log_bytes,
        compute_bytes,
        unique_bytes,
        shared_bytes: size.ancestor_bytes.saturating_sub(pinned),
        live_bytes: size.live_bytes,
        history: history(names, size),
        garbage_bytes: size.garbage_bytes,
        freed_if_deleted_bytes: not_deletable.is_none().then_some(unique_bytes),
        freed_by_merges_bytes: pinned,
        not_deletable,
    })
}

fn history(names: &Names, size: &TimelineSize) -> History {
    let pins: Vec<Pinned> = size
        .pins
        .iter()
        .map(|pin| Pinned {
            branch: names.branch(pin.timeline_id),
            lsn: pin.lsn,
            bytes: pin.alone_bytes,
        })
        .collect();
    let alone: u64 = pins.iter().map(|pin| pin.bytes).sum();
    History {
        bytes: size.window_bytes + size.pinned_bytes,
        window_bytes: size.window_bytes,
        pinned_bytes: size.pinned_bytes,
        pinned_together_bytes: size.pinned_bytes.saturating_sub(alone),
        pins,
    }
}

fn not_deletable(names: &Names, id: TimelineId, all: &[TimelineSize]) -> Option<String> {
    if names.known(id).is_some_and(|known| known.is_default) {
        return Some("it is the default branch".to_owned());
    }
    let children = all.iter().filter(|of| of.ancestor_timeline_id == Some(id));
    let children: Vec<String> = children.map(|of| names.branch(of.timeline_id)).collect();
    (!children.is_empty()).then(|| format!("it has branches: {}", children.join(", ")))
}

/// What lies in a directory; nothing if there is no such directory.
fn objects(directory: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let listed = entries(directory);
    listed.with_context(|| directory.display().to_string())
}

/// Bytes that the file system has given to files, or to directories and all below them, each file once: objects may be
/// further names of layer files.
fn on_disk(paths: &[PathBuf]) -> anyhow::Result<u64> {
    let mut seen = HashSet::new();
    let mut bytes = 0;
    for path in paths {
        bytes += count(path, &mut seen).with_context(|| path.display().to_string())?;
    }
    Ok(bytes)
}

/// What is not there, or goes while it is being counted, does not count.
fn count(path: &Path, seen: &mut HashSet<(u64, u64)>) -> io::Result<u64> {
    let meta = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        meta => meta?,
    };
    if !meta.is_dir() && meta.nlink() > 1 && !seen.insert((meta.dev(), meta.ino())) {
        return Ok(0);
    }
    let mut bytes = meta.blocks() * 512;
    if meta.is_dir() {
        for entry in entries(path)? {
            bytes += count(&entry, seen)?;
        }
    }
    Ok(bytes)
}

/// Empty where there is no such directory.
fn entries(directory: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        entries => entries?.map(|entry| Ok(entry?.path())).collect(),
    }
}

fn text(size: &ProjectSize) -> String {
    let mut lines = vec![table(
        &["BRANCH", "UNIQUE", "SHARED", "HISTORY", "FREED IF DELETED"],
        size.branches.iter().map(|branch| {
            let freed = branch.freed_if_deleted_bytes.map_or_else(|| "-".to_owned(), people);
            let [unique, shared, history] =
                [branch.unique_bytes, branch.shared_bytes, branch.history.bytes].map(people);
            vec![branch.name.clone(), unique, shared, history, freed]
        }),
    )];
    let pinned = size.branches.iter().filter(|branch| branch.history.bytes > 0);
    for BranchSize { name, history, .. } in pinned {
        lines.push(String::new());
        lines.push(format!("history of {name}: {}", people(history.bytes)));
        lines.push(format!("  {:>10}  the window", people(history.window_bytes)));
        lines.extend(history.pins.iter().map(|pin| {
            format!("  {:>10}  branch {} at {}, alone", people(pin.bytes), pin.branch, pin.lsn)
        }));
        if history.pinned_together_bytes > 0 {
            let together = people(history.pinned_together_bytes);
            lines.push(format!(
                "  {together:>10}  several of these together, leases, copies of databases"
            ));
        }
    }
    let garbage: u64 = size.branches.iter().map(|branch| branch.garbage_bytes).sum();
    let blocked = size.branches.iter().filter_map(|branch| {
        Some(format!("{} cannot be deleted: {}", branch.name, branch.not_deletable.as_ref()?))
    });
    lines.push(String::new());
    lines.extend(blocked);
    lines.push(format!(
        "on disk {}: pages {} ({} of it goes as layers are merged), log {}, files of computes {}, other {}",
        people(size.disk_bytes),
        people(size.pages_bytes),
        people(garbage),
        people(size.log_bytes),
        people(size.compute_bytes),
        people(size.other_bytes)
    ));
    lines.join("\n")
}
