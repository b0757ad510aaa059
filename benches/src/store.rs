//! An engine in a temporary folder, filled the way the pageserver fills its own: a stock cluster imported, its log applied.

use std::{
    collections::HashSet,
    fs, io,
    os::unix::fs::MetadataExt,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::ensure;
use tempfile::TempDir;
use treering_engine::{Engine, EngineOptions, NewTenant, Tenant, Timeline};
use treering_fs::RealFs;
use treering_pageserver::{import::import_cluster, ingest::apply::Applier};
use treering_types::{TenantId, TimelineId};

use crate::{
    log::{LogBytes, control_file},
    source::{MAJOR, Written},
};

const TENANT: TenantId = TenantId([1; 16]);
const ROOT: TimelineId = TimelineId([2; 16]);
/// Bytes fed at once: as much as a walsender sends in one message.
const MESSAGE_BYTES: usize = 128 << 10;
/// Compaction is given this long to come to rest.
const SETTLE_LIMIT: Duration = Duration::from_secs(1200);

/// See the module.
pub struct Store {
    pub engine: Arc<Engine>,
    pub tenant: Arc<Tenant>,
    pub timeline: Arc<Timeline>,
    _folder: Option<TempDir>,
}

impl Store {
    /// A new engine with the cluster in `base` as its root timeline, durable.
    pub fn import(base: &Path, options: EngineOptions) -> anyhow::Result<Store> {
        let folder = tempfile::Builder::new().prefix("bench-store-").tempdir()?;
        let store = Store::import_at(folder.path(), base, options)?;
        Ok(Store { _folder: Some(folder), ..store })
    }

    /// The same in an empty folder of the caller's.
    pub fn import_at(at: &Path, base: &Path, options: EngineOptions) -> anyhow::Result<Store> {
        let engine = Engine::open(Arc::new(RealFs), at, options)?;
        let system_id = control_file(base)?.system_id();
        let tenant = engine.create_tenant(NewTenant { id: TENANT, pg_major: MAJOR, system_id })?;
        let timeline = import_cluster(&tenant, ROOT, base, 0)?;
        Ok(Store { engine, tenant, timeline, _folder: None })
    }

    /// The store that was made in this folder.
    pub fn open(at: &Path, options: EngineOptions) -> anyhow::Result<Store> {
        let engine = Engine::open(Arc::new(RealFs), at, options)?;
        let tenant = engine.tenant(TENANT)?;
        let timeline = tenant.timeline(ROOT)?;
        Ok(Store { engine, tenant, timeline, _folder: None })
    }

    /// Applies a log to its end. What was written is visible, and not all of it durable.
    pub fn apply(&self, source: &Written) -> anyhow::Result<()> {
        let mut applier = Applier::open(Arc::clone(&self.timeline))?;
        let mut log = LogBytes::open(&source.dir, applier.fed_to());
        while applier.fed_to() < source.end {
            let mut chunk = log.read()?;
            ensure!(!chunk.is_empty(), "the log ends before {}", source.end);
            let wanted = source.end.bytes_since(applier.fed_to()).unwrap_or(0);
            chunk.truncate(usize::try_from(wanted)?);
            while !chunk.is_empty() {
                let message = chunk.split_to(chunk.len().min(MESSAGE_BYTES));
                applier.feed(applier.fed_to(), message)?;
                applier.apply()?;
            }
        }
        ensure!(
            self.timeline.last_record_lsn() == source.end,
            "the log was not applied to its end"
        );
        Ok(())
    }

    /// Flushes, and waits until compaction finds nothing more to do.
    pub fn settle(&self) -> anyhow::Result<()> {
        self.timeline.flush()?;
        let deadline = Instant::now() + SETTLE_LIMIT;
        while self.timeline.info().compaction_due_bytes > 0 {
            ensure!(Instant::now() < deadline, "compaction does not come to rest");
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }
}

/// Bytes of files below `dir`, as the disk counts them: once, however many names a file has. What goes away meanwhile does
/// not count.
pub fn disk_bytes(dir: &Path) -> io::Result<u64> {
    bytes_below(dir, &mut HashSet::new())
}

/// `seen`: device and inode number of files with several names that are counted.
fn bytes_below(dir: &Path, seen: &mut HashSet<(u64, u64)>) -> io::Result<u64> {
    let gone = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => Ok(0),
        _ => Err(error),
    };
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) => return gone(error),
    };
    let mut bytes = 0;
    for entry in entries {
        let entry = entry?;
        let metadata = match entry.metadata() {
            Ok(metadata) => metadata,
            Err(error) => {
                bytes += gone(error)?;
                continue;
            }
        };
        if metadata.is_dir() {
            bytes += bytes_below(&entry.path(), seen)?;
        } else if metadata.nlink() > 1 && !seen.insert((metadata.dev(), metadata.ino())) {
            continue;
        }
        bytes += metadata.blocks() * 512;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_with_two_names_is_counted_once() {
        let folder = tempfile::tempdir().unwrap();
        let below = folder.path().join("below");
        fs::create_dir(&below).unwrap();
        let bytes = |dir: &Path| disk_bytes(dir).unwrap();
        let empty = bytes(folder.path());
        fs::write(folder.path().join("one"), [7; 20_000]).unwrap();
        let once = bytes(folder.path());
        assert!(once >= empty + 20_000, "{empty} {once}");
        fs::hard_link(folder.path().join("one"), below.join("another")).unwrap();
        assert_eq!(bytes(folder.path()), once);
        fs::copy(folder.path().join("one"), below.join("copy")).unwrap();
        assert!(bytes(folder.path()) >= once + 20_000);
    }
}
