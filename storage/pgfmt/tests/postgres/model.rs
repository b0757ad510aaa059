//! A cluster in memory: what an engine would keep, fed by effects alone.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use bytes::Bytes;
use treering_pgfmt::{
    change::PageChange,
    control::ControlFile,
    redo::{self, RedoReason},
    relmap, relpath,
    version::PgMajor,
    wal::{
        effects::{DatabaseDir, Effect, effects},
        record::Record,
        state::ClusterState,
    },
};
use treering_types::{Fork, Key, Lsn, PAGE_SIZE, PageImage, RelTag, SlruKind};

pub const MAJOR: PgMajor = PgMajor::V15;

/// Pages by number; a missing one is zeros.
pub type Relations = BTreeMap<RelTag, Vec<PageImage>>;
pub type SlruPages = BTreeMap<(SlruKind, u32), PageImage>;
pub type Maps = BTreeMap<(u32, u32), Bytes>;

#[derive(Default)]
pub struct Model {
    pub state: ClusterState,
    pub rels: Relations,
    pub slru: SlruPages,
    /// `pg_filenode.map` by tablespace and database.
    pub maps: Maps,
    pub databases: BTreeSet<(u32, u32)>,
    pub two_phase: BTreeMap<u64, Bytes>,
    pub origins: BTreeMap<u16, u64>,
    pub tablespaces: BTreeMap<u32, String>,
    /// Pages this version cannot redo.
    pub unhandled: BTreeSet<(RelTag, u32)>,
    /// Databases copied page by page, whose visibility maps the log does not carry (all zeros instead).
    pub logged_copies: BTreeSet<(u32, u32)>,
    pub ends: Vec<(i64, bool)>,
}

fn zeros() -> PageImage {
    Box::new([0; PAGE_SIZE])
}

fn pages_of(bytes: &[u8]) -> Vec<PageImage> {
    let (pages, rest) = bytes.as_chunks::<PAGE_SIZE>();
    assert!(rest.is_empty());
    pages.iter().map(|page| Box::new(*page)).collect()
}

/// Every file below `folder` as a path relative to `root`.
fn walk(root: &Path, folder: &Path, found: &mut Vec<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            walk(root, &path, found);
        } else {
            found.push(path.strip_prefix(root).unwrap().to_str().unwrap().to_owned());
        }
    }
}

impl Model {
    /// What a stopped server left on disk.
    pub fn read(data: &Path) -> Model {
        let control = fs::read(data.join("global/pg_control")).unwrap();
        let control = ControlFile::parse(&control).unwrap();
        let mut model = Model { state: ClusterState::from_control(&control), ..Model::default() };
        let mut paths = Vec::new();
        walk(data, data, &mut paths);
        for path in &paths {
            model.read_file(path, &fs::read(data.join(path)).unwrap());
        }
        model
    }

    fn read_file(&mut self, path: &str, bytes: &[u8]) {
        if let Some((rel, segment_no)) = relpath::parse_path(MAJOR, path) {
            assert_eq!(segment_no, 0, "the workload is small");
            self.rels.insert(rel, pages_of(bytes));
            return;
        }
        let Some((dir, name)) = path.rsplit_once('/') else { return };
        if let Some(kind) = SlruKind::ALL.into_iter().find(|kind| kind.directory() == dir) {
            let first = u32::from_str_radix(name, 16).unwrap() * 32;
            let pages = (first..).zip(pages_of(bytes));
            self.slru.extend(pages.map(|(page, image)| ((kind, page), image)));
        } else if let Some((tablespace, database)) = relpath::parse_db_dir(MAJOR, dir) {
            if name == relmap::FILE_NAME {
                self.maps.insert((tablespace, database), Bytes::copy_from_slice(bytes));
            }
            if name == "PG_VERSION" {
                self.databases.insert((tablespace, database));
            }
        } else if dir == "pg_twophase" {
            let xid = u64::from_str_radix(name, 16).unwrap();
            self.two_phase.insert(xid, Bytes::copy_from_slice(bytes));
        } else if path == "pg_logical/replorigin_checkpoint" {
            // Magic, then (u16, padding, u64) each, then a CRC.
            let entries = bytes[4..bytes.len() - 4].as_chunks::<16>().0;
            self.origins.extend(entries.iter().map(|entry| {
                let id = u16::from_le_bytes([entry[0], entry[1]]);
                (id, u64::from_le_bytes(*entry.last_chunk().unwrap()))
            }));
        }
    }

    /// Applies all that one record does.
    pub fn apply(&mut self, record: &Record) {
        let found = effects(&mut self.state, record, MAJOR).unwrap();
        let mut reloaded = ClusterState::default();
        for field in treering_pgfmt::wal::state::STATE_FIELDS {
            reloaded.load(field, &self.state.encode(field).unwrap()).unwrap();
        }
        assert_eq!(reloaded, self.state);
        for effect in found {
            self.apply_effect(effect, record.end);
        }
    }

    fn apply_effect(&mut self, effect: Effect, lsn: Lsn) {
        match effect {
            Effect::Page { rel, block, change } => self.change_page(rel, block, &change, lsn),
            Effect::PageIfExists { rel, block, change } => {
                let blocks = self.rels.get(&rel).map_or(0, Vec::len);
                if (block as usize) < blocks {
                    self.change_page(rel, block, &change, lsn);
                }
            }
            Effect::Slru { kind, page, change } => {
                let image = self.slru.entry((kind, page)).or_insert_with(zeros);
                redo::apply(MAJOR, &Key::slru(kind, page), lsn, &stored(&change), image).unwrap();
            }
            Effect::RelCreate(rel) => {
                self.rels.entry(rel).or_default();
            }
            Effect::RelTruncate { rel, blocks } => {
                if let Some(pages) = self.rels.get_mut(&rel) {
                    pages.truncate(blocks as usize);
                }
            }
            Effect::RelDrop(rel) => {
                Fork::ALL.into_iter().for_each(|fork| {
                    self.rels.remove(&rel.with_fork(fork));
                });
            }
            Effect::DatabaseCopy { from, to } => self.copy_database(from, to),
            Effect::DatabaseCreate(dir) => {
                self.databases.insert((dir.tablespace, dir.database));
                self.logged_copies.insert((dir.tablespace, dir.database));
            }
            Effect::DatabaseDrop(dir) => self.drop_database(dir),
            Effect::TablespaceCreate { tablespace, path } => {
                self.tablespaces.insert(tablespace, path);
            }
            Effect::TablespaceDrop { tablespace } => {
                self.tablespaces.remove(&tablespace);
            }
            Effect::RelMap { dir, file } => {
                self.maps.insert((dir.tablespace, dir.database), file);
            }
            Effect::TwoPhasePrepared { full_xid, file } => {
                self.two_phase.insert(full_xid, file);
            }
            Effect::TwoPhaseEnded { full_xid } => {
                self.two_phase.remove(&full_xid).expect("it was prepared");
            }
            Effect::Ended { stamp, committed } => self.ends.push((stamp, committed)),
            Effect::Control { .. } => {}
            Effect::Origin { id, remote_lsn: Some(lsn) } => {
                self.origins.insert(id, lsn);
            }
            Effect::Origin { id, remote_lsn: None } => {
                self.origins.remove(&id);
            }
            Effect::Unhandled { rel, rmid, .. } => panic!("unhandled {rmid} {rel:?}"),
        }
    }

    fn change_page(&mut self, rel: RelTag, block: u32, change: &PageChange, lsn: Lsn) {
        let pages = self.rels.entry(rel).or_default();
        let size = pages.len().max(block as usize + 1);
        pages.resize_with(size, zeros);
        let page = &mut pages[block as usize];
        if change.is_base() {
            page.fill(0xa5);
            self.unhandled.remove(&(rel, block));
        }
        let key = Key::rel_block(rel, block);
        match redo::apply(MAJOR, &key, lsn, &stored(change), page) {
            Ok(()) => {}
            Err(error) if error.reason == RedoReason::Unhandled => {
                self.unhandled.insert((rel, block));
            }
            Err(error) => panic!("{error}"),
        }
    }

    fn copy_database(&mut self, from: DatabaseDir, to: DatabaseDir) {
        let is_source =
            |rel: &RelTag| (rel.tablespace, rel.database) == (from.tablespace, from.database);
        let copies: Relations = self
            .rels
            .iter()
            .filter(|(rel, _)| is_source(rel))
            .map(|(rel, pages)| {
                let (tablespace, database) = (to.tablespace, to.database);
                (RelTag { tablespace, database, ..*rel }, pages.clone())
            })
            .collect();
        self.rels.extend(copies);
        let map = self.maps[&(from.tablespace, from.database)].clone();
        self.maps.insert((to.tablespace, to.database), map);
        self.databases.insert((to.tablespace, to.database));
    }

    fn drop_database(&mut self, dir: DatabaseDir) {
        let key = (dir.tablespace, dir.database);
        self.rels.retain(|rel, _| (rel.tablespace, rel.database) != key);
        self.maps.remove(&key);
        self.databases.remove(&key);
        self.logged_copies.remove(&key);
    }
}

/// The change after a trip through its disk form.
fn stored(change: &PageChange) -> PageChange {
    let again = PageChange::decode(&change.encode()).unwrap();
    assert_eq!(again, *change);
    again
}
