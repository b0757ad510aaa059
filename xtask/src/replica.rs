//! A data directory that exists in memory only: the base's files and what the effects of the WAL made of them.
//!
//! Pages are with the [`Judge`]; here is everything beside them: which relation forks there are and how long,
//! databases, relation maps, tablespaces, prepared transactions, replication origins.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet, HashMap},
    fs::{self, File},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use bytes::Bytes;
use treering_pgfmt::{
    judge::{Bases, Judge},
    relmap,
    relpath::{self, SEGMENT_BLOCKS},
    twophase,
    version::PgMajor,
    wal::{
        effects::{DatabaseDir, Effect},
        record::Record,
        state::ClusterState,
    },
};
use treering_types::{Fork, Key, Lsn, PAGE_SIZE, PageImage, RelTag, SlruKind};

/// Pages of an SLRU segment file (`SLRU_PAGES_PER_SEGMENT`).
const SLRU_SEGMENT_PAGES: u32 = 32;

/// The pages of a data directory that nobody writes to.
pub struct Files {
    major: PgMajor,
    root: PathBuf,
    open: RefCell<HashMap<PathBuf, Option<File>>>,
}

impl Files {
    pub fn new(major: PgMajor, root: &Path) -> Files {
        Files { major, root: root.to_owned(), open: RefCell::new(HashMap::new()) }
    }

    fn read(&self, path: PathBuf, page: u32) -> Option<PageImage> {
        let mut open = self.open.borrow_mut();
        let file = open.entry(path).or_insert_with_key(|path| File::open(path).ok());
        let mut bytes = Box::new([0; PAGE_SIZE]);
        let offset = u64::from(page) * PAGE_SIZE as u64;
        file.as_ref()?.read_exact_at(&mut bytes[..], offset).ok()?;
        Some(bytes)
    }
}

impl Bases for Files {
    fn page(&self, key: &Key) -> Option<PageImage> {
        if let Some((kind, page)) = key.slru_page() {
            let name = format!("{:04X}", page / SLRU_SEGMENT_PAGES);
            let path = self.root.join(kind.directory()).join(name);
            return self.read(path, page % SLRU_SEGMENT_PAGES);
        }
        let path = relpath::path_of(self.major, key.rel()?, key.block() / SEGMENT_BLOCKS);
        self.read(self.root.join(path), key.block() % SEGMENT_BLOCKS)
    }
}

/// What a data directory holds beside the contents of pages.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inventory {
    /// Relation forks and their blocks.
    pub rels: BTreeMap<RelTag, u32>,
    pub slru: BTreeSet<(SlruKind, u32)>,
    pub databases: BTreeSet<(u32, u32)>,
    /// `pg_filenode.map` by tablespace and database.
    pub maps: BTreeMap<(u32, u32), Bytes>,
    pub tablespaces: BTreeSet<u32>,
    /// By file name.
    pub two_phase: BTreeMap<String, Bytes>,
    pub origins: BTreeMap<u16, u64>,
}

impl Inventory {
    /// Reads a data directory whose server is stopped, or a base backup.
    pub fn read(major: PgMajor, root: &Path) -> Result<Inventory> {
        let mut inventory = Inventory::default();
        let mut paths = Vec::new();
        walk(root, root, &mut paths)?;
        for path in &paths {
            inventory.add(major, root, path).with_context(|| path.clone())?;
        }
        for entry in fs::read_dir(root.join("pg_tblspc"))? {
            inventory.tablespaces.extend(entry?.file_name().to_string_lossy().parse::<u32>());
        }
        inventory.forget_unlogged();
        Ok(inventory)
    }

    fn add(&mut self, major: PgMajor, root: &Path, path: &str) -> Result<()> {
        let file = root.join(path);
        let pages = |file: &Path| -> Result<u32> {
            Ok(u32::try_from(fs::metadata(file)?.len() / PAGE_SIZE as u64)?)
        };
        if let Some((rel, segment)) = relpath::parse_path(major, path) {
            let blocks = segment * SEGMENT_BLOCKS + pages(&file)?;
            let known = self.rels.entry(rel).or_default();
            *known = blocks.max(*known);
            return Ok(());
        }
        let Some((dir, name)) = path.rsplit_once('/') else { return Ok(()) };
        if let Some(kind) = SlruKind::ALL.into_iter().find(|kind| kind.directory() == dir) {
            let first = u32::from_str_radix(name, 16)? * SLRU_SEGMENT_PAGES;
            self.slru.extend((first..first + pages(&file)?).map(|page| (kind, page)));
        } else if let Some(database) = relpath::parse_db_dir(major, dir) {
            if name == relmap::FILE_NAME {
                self.maps.insert(database, fs::read(&file)?.into());
            }
            if name == "PG_VERSION" {
                self.databases.insert(database);
            }
        } else if dir == twophase::DIRECTORY {
            self.two_phase.insert(name.to_owned(), fs::read(&file)?.into());
        } else if path == "pg_logical/replorigin_checkpoint" {
            self.origins = origins_of(&fs::read(&file)?);
        }
        Ok(())
    }

    /// Unlogged relations keep their init fork only: recovery removes the others (`reinit.c`).
    fn forget_unlogged(&mut self) {
        let unlogged: Vec<RelTag> =
            self.rels.keys().copied().filter(|rel| rel.fork == Fork::Init).collect();
        let others = [Fork::Main, Fork::Fsm, Fork::VisibilityMap];
        for rel in unlogged {
            self.rels.retain(|other, _| !others.iter().any(|fork| rel.with_fork(*fork) == *other));
        }
    }
}

/// `ReplicationStateOnDisk` entries between a magic and a CRC (`replication/logical/origin.c`).
fn origins_of(file: &[u8]) -> BTreeMap<u16, u64> {
    let entries = file.get(4..file.len().saturating_sub(4)).unwrap_or_default();
    let entry = |bytes: &[u8; 16]| {
        let [low, high, ..] = *bytes;
        let [.., a, b, c, d, e, f, g, h] = *bytes;
        (u16::from_le_bytes([low, high]), u64::from_le_bytes([a, b, c, d, e, f, g, h]))
    };
    entries.as_chunks::<16>().0.iter().map(entry).collect()
}

fn walk(root: &Path, folder: &Path, found: &mut Vec<String>) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            walk(root, &path, found)?;
        } else {
            let relative = path.strip_prefix(root)?;
            found.push(relative.to_string_lossy().into_owned());
        }
    }
    Ok(())
}

/// The base with the WAL applied.
pub struct Replica {
    pub major: PgMajor,
    pub judge: Judge<Files>,
    pub inventory: Inventory,
    /// End of the record that prepared a transaction, by file name.
    pub prepared_at: BTreeMap<String, Lsn>,
}

impl Replica {
    pub fn new(major: PgMajor, base: &Path, state: ClusterState) -> Result<Replica> {
        Ok(Replica {
            major,
            judge: Judge::new(major, state, Files::new(major, base)),
            inventory: Inventory::read(major, base)?,
            prepared_at: BTreeMap::new(),
        })
    }

    /// Redoes one record. Returns the bytes that the store would keep for its page changes.
    pub fn apply(&mut self, record: &Record) -> u64 {
        let mut stored = 0;
        for effect in self.judge.judge(record) {
            if let Effect::Page { change, .. } | Effect::Slru { change, .. } = &effect {
                stored += change.encode().len() as u64;
            }
            self.effect(effect, record);
        }
        stored
    }

    fn effect(&mut self, effect: Effect, record: &Record) {
        let files = &mut self.inventory;
        match effect {
            Effect::Page { rel, block, .. } => {
                let blocks = files.rels.entry(rel).or_default();
                *blocks = block.saturating_add(1).max(*blocks);
            }
            Effect::Slru { kind, page, .. } => {
                files.slru.insert((kind, page));
            }
            Effect::RelCreate(rel) => {
                files.rels.entry(rel).or_default();
            }
            Effect::RelTruncate { rel, blocks } => {
                if let Some(known) = files.rels.get_mut(&rel) {
                    *known = blocks.min(*known);
                }
            }
            Effect::RelDrop(rel) => {
                for fork in Fork::ALL {
                    files.rels.remove(&rel.with_fork(fork));
                }
            }
            Effect::DatabaseCopy { from, to } => files.copy_database(from, to),
            Effect::DatabaseCreate(dir) => {
                files.databases.insert((dir.tablespace, dir.database));
            }
            Effect::DatabaseDrop(dir) => files.drop_database(dir),
            Effect::TablespaceCreate { tablespace, .. } => {
                files.tablespaces.insert(tablespace);
            }
            Effect::TablespaceDrop { tablespace } => {
                files.tablespaces.remove(&tablespace);
            }
            Effect::RelMap { dir, file } => {
                files.maps.insert((dir.tablespace, dir.database), file);
            }
            Effect::TwoPhasePrepared { full_xid, file } => {
                let name = twophase::file_name(self.major, full_xid);
                files.two_phase.insert(name.clone(), file);
                self.prepared_at.insert(name, record.end);
            }
            Effect::TwoPhaseEnded { full_xid } => {
                files.two_phase.remove(&twophase::file_name(self.major, full_xid));
            }
            Effect::Origin { id, change } => {
                let progress = change.after(files.origins.remove(&id));
                files.origins.extend(progress.map(|lsn| (id, lsn)));
            }
            Effect::PageIfExists { .. }
            | Effect::Ended { .. }
            | Effect::Control { .. }
            | Effect::Unhandled { .. } => {}
        }
    }

    /// The page as it is now; `None` where there is none.
    pub fn page(&self, key: &Key) -> Option<PageImage> {
        match self.judge.page(key) {
            Some(held) => Some(held.bytes.clone()),
            None => self.judge.base(key),
        }
    }
}

impl Inventory {
    fn copy_database(&mut self, from: DatabaseDir, to: DatabaseDir) {
        let (from, to) = ((from.tablespace, from.database), (to.tablespace, to.database));
        let of_source = |rel: &RelTag| (rel.tablespace, rel.database) == from;
        let copies: Vec<(RelTag, u32)> = self
            .rels
            .iter()
            .filter(|(rel, _)| of_source(rel))
            .map(|(rel, blocks)| (RelTag { tablespace: to.0, database: to.1, ..*rel }, *blocks))
            .collect();
        self.rels.extend(copies);
        if let Some(map) = self.maps.get(&from).cloned() {
            self.maps.insert(to, map);
        }
        self.databases.insert(to);
    }

    fn drop_database(&mut self, dir: DatabaseDir) {
        let key = (dir.tablespace, dir.database);
        self.rels.retain(|rel, _| (rel.tablespace, rel.database) != key);
        self.maps.remove(&key);
        self.databases.remove(&key);
    }
}
