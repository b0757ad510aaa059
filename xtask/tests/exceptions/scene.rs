//! A base, the WAL after it, and what redo and a stock standby make of them.
//!
//! Scenes live in the build directory, so that tests may share one; what a run before left there is removed first.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, OnceLock},
};

use anyhow::{Context, Result};
use treering_pgfmt::{
    control::{CheckPoint, ClusterStatus, ControlFile},
    redo::rmgr,
    version::PgMajor,
    wal::{
        encode::{SyntheticCheckpoint, synthetic_checkpoint},
        record::{Block, RawRecord, Record},
        state::ClusterState,
    },
};
use treering_stock::{Cluster, Postgres, run};
use treering_types::{Key, Lsn, PAGE_SIZE, PageImage, SlruKind};
use xtask::{
    replica::{Inventory, Replica},
    report::Report,
    verify::{Input, verify},
    wal,
};

const SETTINGS: &str = "
wal_consistency_checking = 'all'
max_wal_size = 8GB
wal_keep_size = 4GB
checkpoint_timeout = 1h
max_prepared_transactions = 10
allow_in_place_tablespaces = on
autovacuum = off
shared_buffers = 64MB
bgwriter_lru_maxpages = 0
";

/// Whether hint bits are logged (WAL.md E10).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hints {
    /// Page checksums are on.
    Logged,
    /// No checksums, no `wal_log_hints`.
    Unlogged,
}

fn folder() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("exceptions");
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).unwrap();
        folder
    })
}

/// The data directory of a new cluster that never ran; its catalogs are frozen, so that its counters may be moved.
pub fn template(major: u32, hints: Hints) -> PathBuf {
    static MADE: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());
    let path = folder().join(format!("template-{major}-{hints:?}"));
    let mut made = MADE.lock().unwrap();
    if !made.contains(&path) {
        let postgres = Postgres::find(major).unwrap();
        let options: &[&str] = if hints == Hints::Logged { &["-k"] } else { &[] };
        let mut cluster = Cluster::create_with(&postgres, options, SETTINGS).unwrap();
        cluster.start().unwrap();
        cluster.sql("VACUUM (FREEZE)").unwrap();
        cluster.stop("fast").unwrap();
        copy(&cluster.data(), &path).unwrap();
        made.push(path.clone());
    }
    path
}

/// A folder of this run's with a copy of `from` in it.
pub fn base_copy(name: &str, from: &Path) -> PathBuf {
    let base = folder().join(name).join("base");
    copy(from, &base).unwrap();
    base
}

pub fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to.parent().context("a path below the folder")?)?;
    run(Command::new("cp").args(["-a", "-T"]).arg(from).arg(to))?;
    Ok(())
}

/// A server on a copy of `base`, not started.
pub fn cluster(major: u32, base: &Path, settings: &str) -> Cluster {
    Cluster::copy_of(&Postgres::find(major).unwrap(), base, settings).unwrap()
}

/// A server on a copy of `base` that is to recover from a crash with the WAL of `crashed` up to `end`: there the WAL
/// stops, whatever came after.
pub fn crashed_at(major: u32, base: &Path, crashed: &Path, end: Lsn, settings: &str) -> Cluster {
    let cluster = cluster(major, base, settings);
    let mut control = read_control(&cluster.data());
    control.set_state(ClusterStatus::InProduction);
    cluster.write("global/pg_control", &control.encode()[..]).unwrap();
    for (name, mut bytes) in segments(crashed) {
        let start = u64::from_str_radix(&name[8..16], 16).unwrap() << 32
            | u64::from_str_radix(&name[16..], 16).unwrap() << 24;
        if start >= end.0 {
            let _ = fs::remove_file(cluster.wal_dir().join(&name));
            continue;
        }
        if let Some(cut) = bytes.get_mut((end.0 - start) as usize..) {
            cut.fill(0);
        }
        cluster.write(&format!("pg_wal/{name}"), &bytes).unwrap();
    }
    cluster
}

/// The WAL segments of a directory by name.
pub fn segments(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let mut found: Vec<(String, Vec<u8>)> = entries
        .filter(|path| path.is_file())
        .map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), path))
        .filter(|(name, _)| name.len() == 24 && name.bytes().all(|byte| byte.is_ascii_hexdigit()))
        .map(|(name, path)| (name, fs::read(path).unwrap()))
        .collect();
    found.sort();
    found
}

pub fn read_control(data: &Path) -> ControlFile {
    ControlFile::parse(&fs::read(data.join("global/pg_control")).unwrap()).unwrap()
}

/// Where the WAL of a cleanly stopped server ends.
pub fn end_of(data: &Path) -> Lsn {
    let control = read_control(data);
    let start = control.checkpoint_start();
    let end = wal::for_each_record(control.major(), &data.join("pg_wal"), start, |_, _| Ok(()));
    end.unwrap().at
}

/// Moves the counters of a cleanly stopped cluster, as `pg_resetwal` would, by another shutdown checkpoint. The SLRU
/// pages that the counters are on are made.
pub fn move_counters(data: &Path, change: impl FnOnce(&mut CheckPoint)) {
    use treering_pgfmt::redo::slru::{MEMBERS_PER_PAGE, MULTIS_PER_PAGE, XACTS_PER_PAGE};
    let mut control = read_control(data);
    let (prev, at) = (control.checkpoint_start(), end_of(data));
    let mut checkpoint = control.checkpoint();
    change(&mut checkpoint);
    let what = SyntheticCheckpoint {
        at,
        prev,
        tli: 1,
        system_id: control.system_id(),
        checkpoint: checkpoint.encode(),
    };
    let made = synthetic_checkpoint(control.major(), &what);
    overwrite(&data.join("pg_wal"), at, &made.bytes);
    control.shut_down_at(made.record_start, &made.checkpoint, control.time());
    fs::write(data.join("global/pg_control"), &control.encode()[..]).unwrap();
    slru_page(data, SlruKind::Xact, checkpoint.next_xid as u32 / XACTS_PER_PAGE);
    slru_page(data, SlruKind::MultiOffsets, checkpoint.next_multi / MULTIS_PER_PAGE);
    slru_page(data, SlruKind::MultiMembers, checkpoint.next_multi_offset / MEMBERS_PER_PAGE);
}

/// Writes raw WAL at `at`, all in one segment; what follows is zeros.
pub fn overwrite(wal: &Path, at: Lsn, bytes: &[u8]) {
    let path = wal.join(at.segment_file_name(1));
    let mut segment = fs::read(&path).unwrap();
    let offset = at.segment_offset() as usize;
    segment[offset..].fill(0);
    segment[offset..offset + bytes.len()].copy_from_slice(bytes);
    fs::write(path, segment).unwrap();
}

/// Makes the segment file of an SLRU page long enough for it.
fn slru_page(data: &Path, kind: SlruKind, page: u32) {
    let path = data.join(kind.directory()).join(format!("{:04X}", page / 32));
    let mut bytes = fs::read(&path).unwrap_or_default();
    bytes.resize(bytes.len().max((page % 32 + 1) as usize * PAGE_SIZE), 0);
    fs::write(path, bytes).unwrap();
}

/// One replay, judged.
pub struct Scene {
    pub major: PgMajor,
    pub base: PathBuf,
    pub records: Vec<Record<'static>>,
    pub report: Report,
    /// What the server that wrote the WAL left, where there was one.
    pub primary: Option<Primary>,
}

/// Files of the server that wrote the WAL.
pub struct Primary {
    pub inventory: Inventory,
    /// Pages of visibility maps and SLRUs.
    pub pages: Vec<(Key, PageImage)>,
}

impl Primary {
    pub fn page(&self, key: &Key) -> Option<&PageImage> {
        self.pages.iter().find(|(of, _)| of == key).map(|(_, page)| page)
    }
}

impl Scene {
    /// Replays the WAL of a stopped server from `base` on, here and by a stock standby.
    pub fn of(base: &Path, cluster: &Cluster) -> Scene {
        let until = read_control(&cluster.data()).checkpoint_start();
        let mut scene = Scene::judge_until(base, &cluster.wal_dir(), Some(until));
        scene.primary = Some(primary(scene.major, &cluster.data()).unwrap());
        scene
    }

    /// Replays the WAL in `wal`.
    pub fn judge(base: &Path, wal: &Path) -> Scene {
        Scene::judge_until(base, wal, None)
    }

    fn judge_until(base: &Path, wal: &Path, until: Option<Lsn>) -> Scene {
        let major = read_control(base).major();
        let mut records = Vec::new();
        let input = Input { base, wal, standby: true, until };
        let report = verify(&input, |_, record| records.push(kept(major, record))).unwrap();
        let base = base.to_owned();
        Scene { major, base, records, report, primary: None }
    }

    /// Fails unless redo agrees with the images in the WAL and with the standby's files.
    #[track_caller]
    pub fn assert_clean(&self) {
        assert!(self.report.is_clean(), "{}", self.report);
    }

    /// The base, nothing redone yet.
    pub fn replica(&self) -> Replica {
        let state = ClusterState::from_control(&read_control(&self.base));
        Replica::new(self.major, &self.base, state).unwrap()
    }

    /// The base with all of the WAL redone.
    pub fn replayed(&self) -> Replica {
        self.replay(|_, _| ())
    }

    /// Redoes all of the WAL, showing each record before it is redone.
    pub fn replay(&self, mut before: impl FnMut(&Replica, &Record)) -> Replica {
        let mut replica = self.replica();
        for record in &self.records {
            before(&replica, record);
            replica.apply(record);
        }
        replica
    }

    /// How many records there are of a resource manager and type.
    pub fn count(&self, rmid: u8, info: u8) -> usize {
        self.of_type(rmid, info).count()
    }

    pub fn of_type(&self, rmid: u8, info: u8) -> impl Iterator<Item = &Record<'static>> {
        let mask = if rmid == rmgr::XACT { 0x70 } else { 0xf0 };
        self.records.iter().filter(move |it| it.rmid == rmid && it.info & mask == info)
    }
}

/// The image of the block that redo restores, is there.
pub fn has_image(block: &Block) -> bool {
    block.image.as_ref().is_some_and(|image| image.apply)
}

fn primary(major: PgMajor, data: &Path) -> Result<Primary> {
    use treering_pgfmt::judge::Bases;
    use treering_types::Fork;
    use xtask::replica::Files;
    let inventory = Inventory::read(major, data)?;
    let files = Files::new(major, data);
    let maps = inventory.rels.iter().filter(|(rel, _)| rel.fork == Fork::VisibilityMap);
    let maps = maps.flat_map(|(rel, blocks)| (0..*blocks).map(|at| Key::rel_block(*rel, at)));
    let slrus = inventory.slru.iter().map(|(kind, page)| Key::slru(*kind, *page));
    let pages = maps.chain(slrus).filter_map(|key| Some((key, files.page(&key)?))).collect();
    Ok(Primary { inventory, pages })
}

/// Runs `script` on the server and fails with what it said.
pub fn script(cluster: &Cluster, text: &str) {
    script_in(cluster, "postgres", text);
}

pub fn script_in(cluster: &Cluster, database: &str, text: &str) {
    cluster.script(database, text).unwrap();
}

/// The record with bytes that stay until the test's end.
pub fn kept(major: PgMajor, record: &Record<'_>) -> Record<'static> {
    let bytes = record.raw.to_vec().into();
    let raw = RawRecord { start: record.start, end: record.end, bytes };
    Record::decode(major, Box::leak(Box::new(raw))).unwrap()
}

/// What a server wrote after `base`.
pub fn records(base: &Path, wal: &Path) -> Vec<Record<'static>> {
    let control = read_control(base);
    let mut found = Vec::new();
    let end =
        wal::for_each_record(control.major(), wal, control.checkpoint_start(), |_, record| {
            found.push(kept(control.major(), record));
            Ok(())
        });
    end.unwrap();
    found
}

/// The file of a relation that SQL names, in the database `postgres`.
pub fn filenode(cluster: &Cluster, name: &str) -> u32 {
    filenode_in(cluster, "postgres", name)
}

pub fn filenode_in(cluster: &Cluster, database: &str, name: &str) -> u32 {
    let sql = format!("SELECT pg_relation_filenode('{name}')");
    cluster.sql_in(database, &sql).unwrap().parse().unwrap()
}
