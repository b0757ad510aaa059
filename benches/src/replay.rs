//! Replay in memory: the WAL's effects on the pages of a cold copy, one thread, nothing written.
//!
//! What recovery of stock Postgres does to its buffers, ours does to [`Pages`]: a page is read from the copy when a
//! change first needs its old contents, a full-page image replaces it unread. At the end the pages are those that
//! recovery leaves in the files ([`Pages::differences`]), so that a fast replay is a right one.
//!
//! Made for benches: relations and SLRUs only. Databases that the WAL copies, creates or drops are refused.

mod sheaf;

use std::{
    io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use memmap2::{Advice, MmapMut};
use treering_pgfmt::{
    change::PageChange,
    redo,
    version::PgMajor,
    wal::{
        effects::{Effect, Effects, effects_into},
        record::Record,
        state::ClusterState,
    },
};
use treering_types::{Fork, Lsn, PAGE_SIZE};

use crate::{
    cpu, glance,
    log::{Log, Piece, control_file},
};
pub use sheaf::Area;
use sheaf::{Files, Sheaves};

/// Where the checksum is, which redo leaves stale.
const CHECKSUM: std::ops::Range<usize> = 8..10;

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
    /// In huge pages, where the kernel has them: a hundredth of the faults, and the core finds most addresses in its own
    /// table. Where it has none, asked for in pieces that stay in the core's cache until they are written.
    fn new_frame(&mut self) -> io::Result<u32> {
        if self.used == self.extents.len() * FRAMES_AT_ONCE {
            let extent = MmapMut::map_anon(FRAMES_AT_ONCE * PAGE_SIZE)?;
            // A kernel that has none refuses: then they are small.
            let _ = extent.advise(Advice::HugePage);
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
            let mut record = Record::of(raw);
            record.take_apart(major)?;
            pages.apply(&record)
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
    sheaves: Sheaves,
    arena: Arena,
    /// Frames of pages that the records ahead change.
    upcoming: Vec<u32>,
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
            sheaves: Sheaves::default(),
            arena: Arena::default(),
            upcoming: Vec::new(),
            read: 0,
        }
    }

    /// Applies all that a record does.
    ///
    /// # Errors
    /// The record or a page contradicts itself, or the record does what replay in memory has no place for.
    pub fn apply(&mut self, record: &Record<'_>) -> anyhow::Result<()> {
        let mut effects = Effects::new();
        effects_into(&mut effects, &mut self.state, record, self.major)?;
        for effect in &effects {
            self.apply_effect(effect, record.end)?;
        }
        Ok(())
    }

    /// Loads what the records in `log` will need of memory, one soon after the other: waiting once for many pages, not once
    /// for each when its turn comes. First where the pages are, then the heads of those that are not replaced.
    fn touch(&mut self, log: &[u8]) {
        let (mut area, mut sheaf) = (None, None);
        let mut sum = 0;
        self.upcoming.clear();
        for seen in glance::blocks_of(log) {
            if area != Some(seen.rel) {
                (area, sheaf) = (Some(seen.rel), self.sheaves.get(Area::Relation(seen.rel)));
            }
            match sheaf.and_then(|sheaf| sheaf.frame(seen.block)) {
                Some(frame) if !seen.image => self.upcoming.push(frame),
                frame => sum ^= frame.unwrap_or(0),
            }
        }
        for frame in &self.upcoming {
            sum ^= u32::from(self.arena.frame(*frame)[0]);
        }
        std::hint::black_box(sum);
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
            Effect::RelTruncate { rel, blocks } => {
                self.sheaves.of(Area::Relation(*rel)).cut(*blocks)
            }
            Effect::RelDrop(rel) => {
                let forks = Fork::ALL.map(|fork| Area::Relation(rel.with_fork(fork)));
                forks.into_iter().for_each(|fork| self.sheaves.of(fork).cut(0));
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

    /// The page's frame: filled from the copy if need be, `None` where there is no such page.
    fn load(&mut self, area: Area, page: u32) -> anyhow::Result<Option<u32>> {
        let sheaf = self.sheaves.of(area);
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
        self.sheaves.of(area).hold(page, frame);
        Ok(frame)
    }

    fn change(
        &mut self,
        area: Area,
        page: u32,
        change: &PageChange<'_>,
        lsn: Lsn,
    ) -> anyhow::Result<()> {
        let held = self.sheaves.of(area).frame(page);
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
        self.sheaves.iter().map(|(_, sheaf)| sheaf.held().count()).sum()
    }

    /// The pages that are not as in the files below `data`, with the first byte that differs. Checksums are not
    /// compared, nor free space maps, which are served by nobody.
    ///
    /// # Errors
    /// A page that the files do not have.
    pub fn differences(&self, data: &Path) -> anyhow::Result<Vec<(Area, u32, usize)>> {
        let mut found = Vec::new();
        for (area, sheaf) in self.sheaves.iter() {
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
