//! Laying out a start: a sparse file of the right size for everything that is fetched later, and its map.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, ensure};
use rustix::fs::{AtFlags, StatxFlags};
use serde::{Deserialize, Serialize};
use treering_pgfmt::{
    relpath::{SEGMENT_BLOCKS, path_of},
    version::PgMajor,
};
use treering_presence::{BLOCK_SIZE, Directory, FileIdentity, Layout, MapPlace, Terms};
use treering_types::{Fork, Lsn, RelTag};

use super::shared::{self, Memory};

/// What the base backup lists instead of sending it.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct LazyFiles {
    /// Tablespace, database, relation, fork, the fork whose pages it gets, blocks.
    pub relations: Vec<(u32, u32, u32, Fork, Fork, u32)>,
    pub slru_segments: Vec<LazySegment>,
}

/// A whole segment of an SLRU.
#[derive(Debug, Clone, Deserialize)]
pub struct LazySegment {
    /// Below the data directory.
    pub path: String,
    /// As page requests name it.
    pub kind: u8,
    pub segment: u32,
    pub pages: u32,
}

/// Where a file's pages come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Source {
    /// Blocks of a relation fork, from this one on.
    Relation { tablespace: u32, database: u32, relation: u32, fork: Fork, first_block: u32 },
    /// Pages of an SLRU segment: always all of them.
    Slru { kind: u8, segment: u32 },
}

/// A file that is fetched page by page. Its place in [`Record::files`] is its file number.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LazyFile {
    /// Below the data directory.
    pub path: String,
    pub source: Source,
    pub blocks: u32,
    /// Whether what Postgres writes into it is in WAL as well, so that its pages may be dropped and fetched again.
    pub is_logged: bool,
    inode: u64,
    device: u64,
    birth_ns: u64,
}

impl LazyFile {
    pub fn identity(&self) -> FileIdentity {
        FileIdentity { device: self.device, inode: self.inode, birth_ns: self.birth_ns }
    }

    /// The relation fork whose pages it gets.
    pub fn relation(&self) -> Option<(RelTag, u32)> {
        match self.source {
            Source::Relation { tablespace, database, relation, fork, first_block } => {
                Some((RelTag { tablespace, database, relation, fork }, first_block))
            }
            Source::Slru { .. } => None,
        }
    }
}

/// What an agent needs to serve a start that an agent before it laid out.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Record {
    /// F.
    pub lsn: Lsn,
    pub start: u64,
    pub shared_file: PathBuf,
    pub data_dir: PathBuf,
    pub socket: PathBuf,
    pub files: Vec<LazyFile>,
}

const RECORD_FILE: &str = "pages.json";

impl Record {
    /// Reads the record of a run directory. `None` when that start fetched everything before it began.
    pub fn load(run_dir: &Path) -> anyhow::Result<Option<Record>> {
        match fs::read(run_dir.join(RECORD_FILE)) {
            Ok(text) => Ok(Some(serde_json::from_slice(&text).context(RECORD_FILE)?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).context(RECORD_FILE),
        }
    }

    /// Nothing outlives the machine here: no sync.
    fn save(&self, run_dir: &Path) -> io::Result<()> {
        fs::write(run_dir.join(RECORD_FILE), serde_json::to_vec(self)?)
    }
}

/// What a start decides.
pub struct Start<'a> {
    pub run_dir: &'a Path,
    pub data_dir: &'a Path,
    pub socket: &'a Path,
    pub major: PgMajor,
    pub lsn: Lsn,
    pub wait_limit_ms: u32,
}

/// Makes the files, the shared file, and the record of both. Blocking.
///
/// # Errors
/// A file that exists already, a file system that keeps no birth times, no room.
pub fn lay_out(start: &Start<'_>, lazy: &LazyFiles) -> anyhow::Result<(Record, File)> {
    let mut files = Vec::new();
    for wanted in files_of(start.major, lazy) {
        let made = make_file(start.data_dir, &wanted).with_context(|| wanted.path.clone())?;
        // An empty file is all there.
        if made.blocks > 0 {
            files.push(made);
        }
    }
    let mut layout = Layout::new(files.len())?;
    let places =
        files.iter().map(|file| layout.place(file.blocks)).collect::<Result<Vec<_>, _>>()?;
    let number = rand::random_range(1..=u64::MAX);
    let (file, path) = shared::create(layout.bytes(), number, start.run_dir)?;
    let filled = fill(&file, start, number, &layout, &files, &places);
    let record = Record {
        lsn: start.lsn,
        start: number,
        shared_file: path,
        data_dir: start.data_dir.to_owned(),
        socket: start.socket.to_owned(),
        files,
    };
    match filled.and_then(|()| Ok(record.save(start.run_dir)?)) {
        Ok(()) => Ok((record, file)),
        Err(error) => {
            let _ = fs::remove_file(&record.shared_file);
            Err(error)
        }
    }
}

fn fill(
    file: &File,
    start: &Start<'_>,
    number: u64,
    layout: &Layout,
    files: &[LazyFile],
    places: &[MapPlace],
) -> anyhow::Result<()> {
    let memory = Memory::map(file)?;
    let terms = Terms {
        start: number,
        wait_limit_ms: start.wait_limit_ms,
        socket: start.socket.to_str().context("a socket path that is not UTF-8")?,
    };
    let directory = Directory::create(memory.words(), layout, &terms)?;
    for (number, (file, place)) in files.iter().zip(places).enumerate() {
        directory.add(number as u64, file.identity(), *place)?;
    }
    directory.publish();
    Ok(())
}

/// The files to make, not yet with an identity.
fn files_of(major: PgMajor, lazy: &LazyFiles) -> impl Iterator<Item = LazyFile> {
    let relations = lazy.relations.iter().flat_map(move |&row| segments_of(major, row));
    let slrus = lazy.slru_segments.iter().map(|segment| LazyFile {
        path: segment.path.clone(),
        source: Source::Slru { kind: segment.kind, segment: segment.segment },
        blocks: segment.pages,
        is_logged: false,
        inode: 0,
        device: 0,
        birth_ns: 0,
    });
    relations.chain(slrus)
}

/// One file for each segment, one for a relation without blocks; a full last segment has no empty one behind it.
fn segments_of(
    major: PgMajor,
    (tablespace, database, relation, name, pages_of, blocks): (u32, u32, u32, Fork, Fork, u32),
) -> impl Iterator<Item = LazyFile> {
    let named = RelTag { tablespace, database, relation, fork: name };
    (0..blocks.div_ceil(SEGMENT_BLOCKS).max(1)).map(move |segment| {
        let first_block = segment * SEGMENT_BLOCKS;
        LazyFile {
            path: path_of(major, named, segment),
            source: Source::Relation {
                tablespace,
                database,
                relation,
                fork: pages_of,
                first_block,
            },
            blocks: (blocks - first_block).min(SEGMENT_BLOCKS),
            // Init forks and what is made of them are not logged page by page.
            is_logged: pages_of != Fork::Init,
            inode: 0,
            device: 0,
            birth_ns: 0,
        }
    })
}

fn make_file(data_dir: &Path, wanted: &LazyFile) -> anyhow::Result<LazyFile> {
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(data_dir.join(&wanted.path))?;
    file.set_len(u64::from(wanted.blocks) * BLOCK_SIZE)?;
    let identity = identity(&file)?;
    ensure!(identity.birth_ns != 0, "{NO_BIRTH_TIMES}");
    let FileIdentity { device, inode, birth_ns } = identity;
    Ok(LazyFile { device, inode, birth_ns, ..wanted.clone() })
}

/// Why a file system does not serve the lazy way.
const NO_BIRTH_TIMES: &str = "the file system keeps no birth times of files";

/// Which file a descriptor is open on.
pub fn identity(file: &File) -> io::Result<FileIdentity> {
    let wanted = StatxFlags::INO | StatxFlags::BTIME;
    let stat = rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, wanted)?;
    let has_birth = StatxFlags::from_bits_retain(stat.stx_mask).contains(StatxFlags::BTIME);
    let birth = stat.stx_btime;
    let seconds = u64::try_from(birth.tv_sec).unwrap_or(0);
    Ok(FileIdentity {
        device: libc::makedev(stat.stx_dev_major, stat.stx_dev_minor),
        inode: stat.stx_ino,
        birth_ns: match has_birth {
            true => seconds.saturating_mul(1_000_000_000) + u64::from(birth.tv_nsec),
            false => 0,
        },
    })
}

/// Whether files below `dir` can be told apart for good.
///
/// # Errors
/// The sentence why not.
pub fn probe(dir: &Path) -> Result<(), String> {
    let path = dir.join("birth-time-probe");
    let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
    let found = made.and_then(|file| identity(&file));
    let _ = fs::remove_file(&path);
    match found {
        Ok(identity) if identity.birth_ns != 0 => Ok(()),
        Ok(_) => Err(format!("{NO_BIRTH_TIMES} ({})", dir.display())),
        Err(error) => Err(format!("{}: {error}", path.display())),
    }
}
