//! Replay in memory: the WAL's effects on the pages of a cold copy, one thread, nothing written.
//!
//! What recovery of stock Postgres does to its buffers, ours does to [`Pages`]: a page is read from the copy when a
//! change first needs its old contents, a full-page image replaces it unread. At the end the pages are those that
//! recovery leaves in the files ([`Pages::differences`]), so that a fast replay is a right one.
//!
//! Made for benches: relations and SLRUs only. Databases that the WAL copies, creates or drops are refused.

use std::{
    collections::HashMap,
    fs::File,
    hash::{BuildHasherDefault, Hash, Hasher},
    io,
    num::NonZeroU32,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use memmap2::{Advice, MmapMut};
use treering_pgfmt::{
    change::PageChange,
    redo::{self, slru::PAGES_PER_SEGMENT},
    relpath::{SEGMENT_BLOCKS, path_of},
    version::PgMajor,
    wal::{
        effects::{Effect, effects},
        record::Record,
        state::ClusterState,
    },
};
use treering_types::{Fork, Key, Lsn, PAGE_SIZE, RelTag, SlruKind};

use crate::{
    cpu, glance,
    log::{Log, Piece, control_file},
};

/// Where the checksum is, which redo leaves stale.
const CHECKSUM: std::ops::Range<usize> = 8..10;

/// A sequence of pages in files: a relation fork or an SLRU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Area {
    Relation(RelTag),
    Slru(SlruKind),
}

impl Area {
    fn key(self, page: u32) -> Key {
        match self {
            Area::Relation(rel) => Key::rel_block(rel, page),
            Area::Slru(kind) => Key::slru(kind, page),
        }
    }

    fn pages_per_file(self) -> u32 {
        match self {
            Area::Relation(_) => SEGMENT_BLOCKS,
            Area::Slru(_) => PAGES_PER_SEGMENT,
        }
    }

    /// The file that holds `page`, below the data directory.
    fn path(self, major: PgMajor, page: u32) -> PathBuf {
        let number = page / self.pages_per_file();
        match self {
            Area::Relation(rel) => PathBuf::from(path_of(major, rel, number)),
            Area::Slru(kind) => Path::new(kind.directory()).join(format!("{number:04X}")),
        }
    }
}

impl Hash for Area {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let pair = |high: u32, low: u32| u64::from(high) << 32 | u64::from(low);
        match self {
            Area::Relation(rel) => {
                state.write_u64(pair(rel.database, rel.relation));
                state.write_u64(pair(rel.tablespace, rel.fork as u32));
            }
            Area::Slru(kind) => kind.hash(state),
        }
    }
}

/// A hash for keys that nobody chooses to harm us.
#[derive(Default)]
struct Mixer(u64);

impl Hasher for Mixer {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = (self.0 ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(26);
    }

    fn write_isize(&mut self, number: isize) {
        self.write_u64(number as u64);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// The files of one area, each opened once.
struct Files {
    area: Area,
    open: HashMap<u32, Option<File>>,
}

impl Files {
    fn of(area: Area) -> Files {
        Files { area, open: HashMap::new() }
    }

    /// Reads a page; false where the files have none.
    fn read(&mut self, data: &Path, major: PgMajor, page: u32, into: &mut [u8; PAGE_SIZE]) -> bool {
        let per_file = self.area.pages_per_file();
        let file = self
            .open
            .entry(page / per_file)
            .or_insert_with(|| File::open(data.join(self.area.path(major, page))).ok());
        let offset = u64::from(page % per_file) * PAGE_SIZE as u64;
        file.as_ref().is_some_and(|file| file.read_exact_at(into, offset).is_ok())
    }
}

/// Frames allocated at once: 32 MiB, of which the kernel gives only what is touched.
const FRAMES_AT_ONCE: usize = 4096;

/// Frames that the kernel clears in one call.
const FRAMES_CLEARED_AT_ONCE: usize = 16;

/// Memory for pages, given out in the order in which pages are first needed: what the kernel has just cleared is still
/// in the core's cache when the page is written.
#[derive(Default)]
struct Arena {
    extents: Vec<MmapMut>,
    used: usize,
}

impl Arena {
    /// The number of a frame that nobody has yet.
    ///
    /// Ordinary pages of 4 KiB, as stock Postgres uses by default, asked for in pieces that stay in the core's cache until
    /// they are written. Huge pages would be dearer in a virtual machine that gives free memory back to its host: they
    /// come from the blocks that it gave back.
    fn new_frame(&mut self) -> io::Result<u32> {
        if self.used == self.extents.len() * FRAMES_AT_ONCE {
            let extent = MmapMut::map_anon(FRAMES_AT_ONCE * PAGE_SIZE)?;
            self.extents.push(extent);
        }
        if self.used.is_multiple_of(FRAMES_CLEARED_AT_ONCE)
            && let Some(extent) = self.extents.last()
        {
            let at = self.used % FRAMES_AT_ONCE * PAGE_SIZE;
            let bytes = FRAMES_CLEARED_AT_ONCE * PAGE_SIZE;
            extent.advise_range(Advice::PopulateWrite, at, bytes)?;
        }
        self.used += 1;
        Ok((self.used - 1) as u32)
    }

    fn frame(&self, number: u32) -> &[u8; PAGE_SIZE] {
        let number = number as usize;
        &self.extents[number / FRAMES_AT_ONCE].as_chunks().0[number % FRAMES_AT_ONCE]
    }

    fn frame_mut(&mut self, number: u32) -> &mut [u8; PAGE_SIZE] {
        let number = number as usize;
        &mut self.extents[number / FRAMES_AT_ONCE].as_chunks_mut().0[number % FRAMES_AT_ONCE]
    }
}

/// The pages of one area that changes touched, and where to find the others.
struct Sheaf {
    files: Files,
    /// Pages from here on are not taken from the files: they were cut off.
    cut_at: u32,
    /// The frame of each page, as far as pages are held.
    frames: Vec<Option<NonZeroU32>>,
}

impl Sheaf {
    fn of(area: Area) -> Sheaf {
        Sheaf { files: Files::of(area), cut_at: u32::MAX, frames: Vec::new() }
    }

    fn cut(&mut self, pages: u32) {
        self.frames.truncate(pages as usize);
        self.cut_at = self.cut_at.min(pages);
    }

    fn frame(&self, page: u32) -> Option<u32> {
        self.frames.get(page as usize).copied().flatten().map(|number| number.get() - 1)
    }

    fn hold(&mut self, page: u32, frame: u32) {
        let page = page as usize;
        if self.frames.len() <= page {
            self.frames.resize(page + 1, None);
        }
        self.frames[page] = NonZeroU32::new(frame + 1);
    }

    /// The pages held, with their frames.
    fn held(&self) -> impl Iterator<Item = (u32, u32)> {
        (0..).zip(&self.frames).filter_map(|(page, frame)| Some((page, (*frame)?.get() - 1)))
    }
}

/// A replay and what it took.
pub struct Replayed {
    pub pages: Pages,
    pub records: u64,
    /// From the first record's start to the last one's end.
    pub wal_bytes: u64,
    /// Start of the last record.
    pub last_record: Lsn,
    pub elapsed: Duration,
    pub cpu: Duration,
    /// Of that, the kernel's part.
    pub system: Duration,
}

/// Replays the WAL in `wal_dir` from the copy's redo position to the log's end.
pub fn replay(data: &Path, wal_dir: &Path) -> anyhow::Result<Replayed> {
    let (began, cpu_before, system_before) =
        (Instant::now(), cpu::thread_time(), cpu::thread_system_time());
    let control = control_file(data)?;
    let (major, from) = (control.major(), control.checkpoint().redo);
    let mut pages = Pages::over(major, data, ClusterState::from_control(&control));
    let mut log = Log::open(major, wal_dir, from);
    let mut records = 0;
    log.read(|piece| match piece {
        Piece::Ahead(log) => {
            pages.touch(log);
            Ok(())
        }
        Piece::Record(raw) => {
            records += 1;
            pages.apply(&Record::decode(major, raw)?)
        }
    })?;
    Ok(Replayed {
        pages,
        records,
        wal_bytes: log.position().bytes_since(from).context("the log has records")?,
        last_record: log.last_record_start(),
        elapsed: began.elapsed(),
        cpu: cpu::thread_time() - cpu_before,
        system: cpu::thread_system_time().saturating_sub(system_before),
    })
}

/// Pages in memory over a cold copy of a data directory.
pub struct Pages {
    major: PgMajor,
    data: PathBuf,
    state: ClusterState,
    sheaves: HashMap<Area, Sheaf, BuildHasherDefault<Mixer>>,
    arena: Arena,
    /// Pages read from the copy.
    pub read: u64,
}

impl Pages {
    /// Nothing read yet. `state` is that of the copy's control file.
    pub fn over(major: PgMajor, data: &Path, state: ClusterState) -> Pages {
        Pages {
            major,
            data: data.to_owned(),
            state,
            sheaves: HashMap::default(),
            arena: Arena::default(),
            read: 0,
        }
    }

    /// Applies all that a record does.
    ///
    /// # Errors
    /// The record or a page contradicts itself, or the record does what replay in memory has no place for.
    pub fn apply(&mut self, record: &Record<'_>) -> anyhow::Result<()> {
        for effect in &effects(&mut self.state, record, self.major)? {
            self.apply_effect(effect, record.end)?;
        }
        Ok(())
    }

    /// Loads the heads of the pages that the records in `log` will change, one soon after the other: waiting for memory
    /// once for many of them, not once for each when its turn comes.
    fn touch(&self, log: &[u8]) {
        let (mut area, mut sheaf) = (None, None);
        let mut heads = 0;
        for (rel, block) in glance::changed_blocks(log) {
            if area != Some(rel) {
                (area, sheaf) = (Some(rel), self.sheaves.get(&Area::Relation(rel)));
            }
            let frame = sheaf.and_then(|sheaf| sheaf.frame(block));
            heads ^= frame.map_or(0, |frame| self.arena.frame(frame)[0]);
        }
        std::hint::black_box(heads);
    }

    fn apply_effect(&mut self, effect: &Effect<'_>, lsn: Lsn) -> anyhow::Result<()> {
        match effect {
            Effect::Page { rel, block, change } => {
                self.change(Area::Relation(*rel), *block, change, lsn)?;
            }
            Effect::PageIfExists { rel, block, change } => {
                if self.load(Area::Relation(*rel), *block)?.is_some() {
                    self.change(Area::Relation(*rel), *block, change, lsn)?;
                }
            }
            Effect::Slru { kind, page, change } => {
                self.change(Area::Slru(*kind), *page, change, lsn)?;
            }
            Effect::RelTruncate { rel, blocks } => self.sheaf(Area::Relation(*rel)).cut(*blocks),
            Effect::RelDrop(rel) => {
                let forks = Fork::ALL.map(|fork| Area::Relation(rel.with_fork(fork)));
                forks.into_iter().for_each(|fork| self.sheaf(fork).cut(0));
            }
            Effect::DatabaseCopy { .. } | Effect::DatabaseCreate(_) | Effect::DatabaseDrop(_) => {
                bail!("{effect:?} at {lsn} is not for replay in memory");
            }
            Effect::Unhandled { rmid, info, .. } => bail!("rmid {rmid} info {info:#x} at {lsn}"),
            Effect::RelCreate(_)
            | Effect::TablespaceCreate { .. }
            | Effect::TablespaceDrop { .. }
            | Effect::RelMap { .. }
            | Effect::TwoPhasePrepared { .. }
            | Effect::TwoPhaseEnded { .. }
            | Effect::Ended { .. }
            | Effect::Control { .. }
            | Effect::Origin { .. } => {}
        }
        Ok(())
    }

    fn sheaf(&mut self, area: Area) -> &mut Sheaf {
        self.sheaves.entry(area).or_insert_with(|| Sheaf::of(area))
    }

    /// The page's frame: filled from the copy if need be, `None` where there is no such page.
    fn load(&mut self, area: Area, page: u32) -> anyhow::Result<Option<u32>> {
        let sheaf = self.sheaves.entry(area).or_insert_with(|| Sheaf::of(area));
        if let Some(frame) = sheaf.frame(page) {
            return Ok(Some(frame));
        }
        if page >= sheaf.cut_at {
            return Ok(None);
        }
        let mut bytes = [0; PAGE_SIZE];
        if !sheaf.files.read(&self.data, self.major, page, &mut bytes) {
            return Ok(None);
        }
        let frame = self.arena.new_frame()?;
        *self.arena.frame_mut(frame) = bytes;
        sheaf.hold(page, frame);
        self.read += 1;
        Ok(Some(frame))
    }

    /// A frame of zeros for a page that has none yet.
    fn new_page(&mut self, area: Area, page: u32) -> anyhow::Result<u32> {
        let frame = self.arena.new_frame()?;
        self.sheaf(area).hold(page, frame);
        Ok(frame)
    }

    fn change(
        &mut self,
        area: Area,
        page: u32,
        change: &PageChange<'_>,
        lsn: Lsn,
    ) -> anyhow::Result<()> {
        let held = self.sheaf(area).frame(page);
        let frame = match held {
            Some(frame) => frame,
            None if change.is_base() => self.new_page(area, page)?,
            None => match self.load(area, page)? {
                Some(frame) => frame,
                None => self.new_page(area, page)?,
            },
        };
        let page_bytes = self.arena.frame_mut(frame);
        Ok(redo::apply(self.major, &area.key(page), lsn, change, page_bytes)?)
    }

    /// How many pages are held.
    pub fn held(&self) -> usize {
        self.sheaves.values().map(|sheaf| sheaf.held().count()).sum()
    }

    /// The pages that are not as in the files below `data`, with the first byte that differs. Checksums are not
    /// compared, nor free space maps, which are served by nobody.
    ///
    /// # Errors
    /// A page that the files do not have.
    pub fn differences(&self, data: &Path) -> anyhow::Result<Vec<(Area, u32, usize)>> {
        let mut found = Vec::new();
        for (area, sheaf) in &self.sheaves {
            let (mut files, mut theirs) = (Files::of(*area), [0; PAGE_SIZE]);
            let checksum = match area {
                Area::Relation(rel) if rel.fork == Fork::Fsm => continue,
                Area::Relation(_) => CHECKSUM,
                Area::Slru(_) => 0..0,
            };
            for (page, frame) in sheaf.held() {
                let ours = self.arena.frame(frame);
                let there = files.read(data, self.major, page, &mut theirs);
                there.then_some(()).with_context(|| format!("{area:?} has no page {page}"))?;
                theirs[checksum.clone()].copy_from_slice(&ours[checksum.clone()]);
                let first = ours.iter().zip(&theirs).position(|(ours, theirs)| ours != theirs);
                found.extend(first.map(|at| (*area, page, at)));
            }
        }
        Ok(found)
    }
}
