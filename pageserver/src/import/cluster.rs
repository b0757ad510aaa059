//! A data directory into the engine.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
    sync::Arc,
};

use treering_engine::{RecordEnds, RelMeta, Tenant, Timeline, Value, WriteBatch};
use treering_pgfmt::{
    change::PageChange,
    checksum,
    control::{CONTROL_FILE_PATH, ClusterStatus, ControlFile},
    relmap::{self, RelMap},
    relpath::{self, DEFAULT_TABLESPACE, GLOBAL_TABLESPACE, SEGMENT_BLOCKS},
    twophase,
    version::PgMajor,
    wal::{
        image::Image,
        state::{ClusterState, STATE_FIELDS},
    },
};
use treering_types::{ControlField, Fork, Key, Lsn, PAGE_SIZE, RelTag, SlruKind, TimelineId};

use super::{ImportError, wal_end};
use crate::directory::{Directory, tablespace_key};

/// Values handed to the engine at once: bounds memory at about 8 MiB of pages.
const BATCH_VALUES_MAX: usize = 1024;
/// Pages in one SLRU segment file (`SLRU_PAGES_PER_SEGMENT`).
const SLRU_SEGMENT_PAGES: u32 = 32;
/// `WAL_LEVEL_MINIMAL` (`access/xlog.h`).
const WAL_LEVEL_MINIMAL: u32 = 0;

/// Imports the cleanly shut down cluster in `data` as the root timeline of `tenant`, with the tenant's own system
/// identifier and a fresh nonce. Blocking. The timeline is visible and durable when this returns, not before.
///
/// `created_at` is in µs since 2000-01-01.
///
/// # Errors
/// A directory that is not such a cluster, damage found on the way (page checksums, CRCs), the engine's errors.
/// The unfinished timeline is then removed.
pub fn import_cluster(
    tenant: &Arc<Tenant>,
    timeline: TimelineId,
    data: &Path,
    created_at: i64,
) -> Result<Arc<Timeline>, ImportError> {
    let control = read_control(tenant, data)?;
    let end = wal_end::find(data, &control)?;
    let root = tenant.create_root(timeline, end.end, created_at)?;
    let checksums = control.data_checksum_version() != 0;
    let mut import = Import {
        data,
        major: control.major(),
        checksums,
        sink: Sink { timeline: &root, at: end.end, batch: WriteBatch::new(end.end) },
    };
    let done = import.all(&control, end).and_then(|()| Ok(root.finish_import(end.end)?));
    if let Err(error) = done {
        if let Err(left) = tenant.delete_timeline(timeline) {
            tracing::warn!(%timeline, error = %left, "unfinished import stays behind");
        }
        return Err(error);
    }
    Ok(root)
}

fn read_control(tenant: &Tenant, data: &Path) -> Result<ControlFile, ImportError> {
    let control = ControlFile::parse(&read(&data.join(CONTROL_FILE_PATH))?)?;
    if control.state() != ClusterStatus::ShutDown {
        return Err(ImportError::NotShutDown);
    }
    if control.wal_level() == WAL_LEVEL_MINIMAL {
        return Err(ImportError::MinimalWal);
    }
    let expected = tenant.info().pg_major;
    if control.major() != expected {
        return Err(ImportError::OtherMajor { found: control.major(), expected });
    }
    let mut control = control;
    control.set_system_id(tenant.info().system_id);
    control.set_nonce(&rand::random());
    Ok(control)
}

/// Collects values at one LSN and writes them in bounded batches.
struct Sink<'a> {
    timeline: &'a Timeline,
    at: Lsn,
    batch: WriteBatch,
}

impl Sink<'_> {
    fn put(&mut self, key: Key, value: Value) -> Result<(), ImportError> {
        self.batch.put(key, self.at, value);
        if self.batch.values.len() >= BATCH_VALUES_MAX { self.write() } else { Ok(()) }
    }

    fn write(&mut self) -> Result<(), ImportError> {
        let batch = std::mem::replace(&mut self.batch, WriteBatch::new(self.at));
        self.timeline.write(batch)?;
        // The engine's own flush looks after live timelines; here the writer does, or it would wait for itself.
        if self.timeline.info().frozen_layers > 0 {
            self.timeline.flush()?;
        }
        Ok(())
    }
}

struct Import<'a> {
    data: &'a Path,
    major: PgMajor,
    checksums: bool,
    sink: Sink<'a>,
}

impl Import<'_> {
    fn all(&mut self, control: &ControlFile, end: wal_end::WalEnd) -> Result<(), ImportError> {
        self.relations()?;
        SlruKind::ALL.into_iter().try_for_each(|kind| self.slru(kind))?;
        self.two_phase(control)?;
        self.state(control)?;
        let in_page = |lsn: &Lsn| RecordEnds::key_of(*lsn) == RecordEnds::key_of(end.end);
        let (ends, before) = match in_page(&end.before) {
            true => (vec![end.before, end.end], Lsn::INVALID),
            false => (vec![end.end], end.before),
        };
        let ends = RecordEnds { before, ends };
        self.sink.put(RecordEnds::key_of(end.end), Value::whole(ends.encode()))?;
        self.sink.write()
    }

    fn state(&mut self, control: &ControlFile) -> Result<(), ImportError> {
        let imported = Value::whole(control.encode().to_vec());
        self.sink.put(Key::control(ControlField::Imported), imported)?;
        let state = ClusterState::from_control(control);
        for field in STATE_FIELDS {
            if let Some(bytes) = state.encode(field) {
                self.sink.put(Key::control(field), Value::whole(bytes))?;
            }
        }
        Ok(())
    }

    fn relations(&mut self) -> Result<(), ImportError> {
        self.database_dir(GLOBAL_TABLESPACE, 0)?;
        for database in numbered(&self.data.join("base"))? {
            self.database_dir(DEFAULT_TABLESPACE, database)?;
        }
        let version_dir = relpath::tablespace_version_dir(self.major);
        for tablespace in numbered(&self.data.join("pg_tblspc"))? {
            let bare = Directory::Bare { path: String::new() };
            self.sink.put(tablespace_key(tablespace), Value::whole(bare.encode()))?;
            let dir = self.data.join(format!("pg_tblspc/{tablespace}")).join(&version_dir);
            for database in numbered(&dir)? {
                self.database_dir(tablespace, database)?;
            }
        }
        Ok(())
    }

    /// One database directory: its map (which stands for the directory's existence) and its relations.
    fn database_dir(&mut self, tablespace: u32, database: u32) -> Result<(), ImportError> {
        let dir = self.data.join(relpath::db_dir(self.major, tablespace, database));
        let mut sizes: HashMap<RelTag, u32> = HashMap::new();
        for name in names(&dir)? {
            let path = dir.join(&name);
            if name == relmap::FILE_NAME {
                let bytes = read(&path)?;
                RelMap::parse(self.major, &bytes)?;
                self.sink.put(Key::rel_map(tablespace, database), Value::whole(bytes))?;
            } else if let Some((relation, fork, segment)) = relpath::parse_file_name(&name)
                && fork != Fork::Fsm
            {
                let rel = RelTag { tablespace, database, relation, fork };
                let blocks = self.relation_segment(rel, segment, &path)?;
                let size = sizes.entry(rel).or_default();
                *size = (*size).max(blocks);
            }
        }
        for (rel, blocks) in sizes {
            let mut meta = RelMeta::created_by_write(self.sink.at);
            meta.grow(blocks);
            self.sink.put(Key::rel_meta(rel), Value::whole(meta.encode()))?;
        }
        Ok(())
    }

    /// Returns how many blocks the relation has up to the end of this segment.
    fn relation_segment(
        &mut self,
        rel: RelTag,
        segment: u32,
        path: &Path,
    ) -> Result<u32, ImportError> {
        let first = segment.checked_mul(SEGMENT_BLOCKS);
        let first = first.ok_or_else(|| bad_file(path, "segment number is too high"))?;
        let mut block = first;
        for_each_page(path, |page| {
            if self.checksums {
                checksum::verify(page, block).map_err(|error| bad_file(path, error))?;
            }
            self.sink.put(Key::rel_block(rel, block), page_value(page))?;
            block += 1;
            Ok(())
        })?;
        Ok(block)
    }

    fn slru(&mut self, kind: SlruKind) -> Result<(), ImportError> {
        let dir = self.data.join(kind.directory());
        for name in names(&dir)? {
            let path = dir.join(&name);
            let segment = u32::from_str_radix(&name, 16);
            let segment = segment.map_err(|_| bad_file(&path, "is no SLRU segment"))?;
            let mut page_no = segment.saturating_mul(SLRU_SEGMENT_PAGES);
            for_each_page(&path, |page| {
                self.sink.put(Key::slru(kind, page_no), page_value(page))?;
                page_no += 1;
                Ok(())
            })?;
        }
        Ok(())
    }

    fn two_phase(&mut self, control: &ControlFile) -> Result<(), ImportError> {
        let state = ClusterState::from_control(control);
        let dir = self.data.join(twophase::DIRECTORY);
        for name in names(&dir)? {
            let path = dir.join(&name);
            let xid = twophase::parse_file_name(self.major, &name)
                .ok_or_else(|| bad_file(&path, "is no prepared transaction"))?;
            let bytes = read(&path)?;
            twophase::main_data_of(&bytes).ok_or_else(|| bad_file(&path, "fails its checksum"))?;
            let key = Key::two_phase(state.full_xid(xid as u32));
            self.sink.put(key, Value::whole(bytes))?;
        }
        Ok(())
    }
}

fn page_value(page: &[u8; PAGE_SIZE]) -> Value {
    let change = match page.iter().all(|byte| *byte == 0) {
        true => PageChange::Zero,
        false => PageChange::Image(Image::whole(page)),
    };
    Value::whole(change.encode())
}

fn for_each_page(
    path: &Path,
    mut each: impl FnMut(&[u8; PAGE_SIZE]) -> Result<(), ImportError>,
) -> Result<(), ImportError> {
    let unreadable = |source| ImportError::Read { path: path.to_owned(), source };
    let mut file =
        io::BufReader::with_capacity(64 * PAGE_SIZE, File::open(path).map_err(unreadable)?);
    let length = file.get_ref().metadata().map_err(unreadable)?.len();
    if length % PAGE_SIZE as u64 != 0 {
        return Err(bad_file(path, format!("{length} bytes are no whole number of pages")));
    }
    let mut page = [0; PAGE_SIZE];
    for _ in 0..length / PAGE_SIZE as u64 {
        file.read_exact(&mut page).map_err(unreadable)?;
        each(&page)?;
    }
    Ok(())
}

fn read(path: &Path) -> Result<Vec<u8>, ImportError> {
    fs::read(path).map_err(|source| ImportError::Read { path: path.to_owned(), source })
}

fn bad_file(path: &Path, what: impl ToString) -> ImportError {
    ImportError::BadFile { path: path.to_owned(), what: what.to_string() }
}

/// Names in a directory, sorted; none when there is no directory.
fn names(dir: &Path) -> Result<Vec<String>, ImportError> {
    let unreadable = |source| ImportError::Read { path: PathBuf::from(dir), source };
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(unreadable)?,
    };
    let mut names = Vec::new();
    for entry in entries {
        names.extend(entry.map_err(unreadable)?.file_name().into_string().ok());
    }
    names.sort_unstable();
    Ok(names)
}

/// Names that are oids.
fn numbered(dir: &Path) -> Result<Vec<u32>, ImportError> {
    Ok(names(dir)?.iter().filter_map(|name| name.parse().ok()).collect())
}

#[cfg(test)]
mod tests {
    use treering_engine::{Engine, EngineOptions, NewTenant};
    use treering_fs::CrashFs;
    use treering_pgfmt::crc::crc32c;
    use treering_types::TenantId;

    use super::*;

    /// A `pg_control` of 15 with what is checked: versions, state, sizes, CRC.
    fn control(state: u32, wal_level: u32) -> Vec<u8> {
        const CRC_OFFSET: usize = 288;
        let fields = [
            (8, 1300),
            (12, 202209061),
            (16, state),
            (172, wal_level),
            (216, 8192),
            (220, SEGMENT_BLOCKS),
            (224, 8192),
            (228, 16 << 20),
        ];
        let mut file = vec![0; 8192];
        for (at, value) in fields {
            file[at..at + 4].copy_from_slice(&u32::to_le_bytes(value));
        }
        let crc = crc32c(&file[..CRC_OFFSET]);
        file[CRC_OFFSET..CRC_OFFSET + 4].copy_from_slice(&crc.to_le_bytes());
        file
    }

    #[test]
    fn clusters_that_are_not_for_us_are_refused() {
        let folder = tempfile::tempdir().expect("folder");
        let fs = Arc::new(CrashFs::new());
        let engine = Engine::open(fs, Path::new("/e"), EngineOptions::default()).expect("engine");
        let found = |state, wal_level, pg_major| {
            let id = TenantId(rand::random());
            let new = NewTenant { id, pg_major, system_id: 7 };
            let tenant = engine.create_tenant(new).expect("tenant");
            fs::create_dir_all(folder.path().join("global")).expect("global");
            fs::write(folder.path().join(CONTROL_FILE_PATH), control(state, wal_level))
                .expect("file");
            read_control(&tenant, folder.path()).map(|control| control.wal_level())
        };
        let (shut_down, in_production) = (1, 6);
        assert!(matches!(found(shut_down, 1, PgMajor::V15), Ok(1)));
        assert!(matches!(found(shut_down, 0, PgMajor::V15), Err(ImportError::MinimalWal)));
        assert!(matches!(found(in_production, 1, PgMajor::V15), Err(ImportError::NotShutDown)));
        assert!(matches!(found(shut_down, 1, PgMajor::V17), Err(ImportError::OtherMajor { .. })));
    }
}
