//! A timeline's WAL as ordinary 16 MiB segment files.
//!
//! Files are named as Postgres names them and have their full length from the beginning: sparse where a log begins, so that
//! room is taken as it is written, and with all their room where a log grows ([`Spares`]).
//! In front of the timeline's start nothing is stored; readers get what [`SegmentHead`] makes up. What this module promises:
//! - after [`WalStore::sync`] everything written so far, and the names of the files, survive a crash; after
//!   [`Unsynced::sync`], which may run on another thread while more is written, everything written before it was
//!   taken out of the store;
//! - after [`WalStore::truncate`] there is nothing but zeros behind the cut, and that is synced;
//! - behind what was written there are zeros up to the end of the log's page, and on later pages zeros or, in the place where they
//!   stood in their own segment, pages that this log trimmed: their headers name a position that has passed. So nobody who
//!   follows the log takes them for its next page, or takes anything in its last page for its next record;
//! - it never looks into the bytes; where records end is its caller's knowledge.

use std::{io, path::PathBuf, sync::Arc};

use bytes::{BufMut, Bytes, BytesMut};
use treering_fs::{File, FileSystem, OpenMode};
use treering_pgfmt::version::PgMajor;
use treering_types::{Lsn, WAL_PAGE_SIZE, WAL_SEGMENT_SIZE};

use crate::{
    error::StoreError,
    segment_head::SegmentHead,
    spares::{Content, Filler, Spares},
    unsynced::Unsynced,
};

/// A log that writes so much into its first segment will fill it, most likely.
const GROWING_BYTES: u64 = WAL_SEGMENT_SIZE / 8;

/// Where a timeline's segments are. Readers and the writer share nothing else: bytes at or before a record end
/// that was reported never change, and segments are only ever removed whole.
#[derive(Clone)]
pub struct WalFiles {
    fs: Arc<dyn FileSystem>,
    directory: PathBuf,
    /// In front of the timeline's start.
    head: SegmentHead,
}

impl WalFiles {
    pub fn new(fs: Arc<dyn FileSystem>, directory: PathBuf, head: SegmentHead) -> WalFiles {
        WalFiles { fs, directory, head }
    }

    fn path(&self, segment: u64) -> PathBuf {
        self.directory.join(segment_start(segment).segment_file_name(self.head.pg_tli()))
    }

    /// Numbers of the segments on disk, ascending.
    pub fn segments(&self) -> Result<Vec<u64>, StoreError> {
        let names =
            self.fs.list(&self.directory).map_err(StoreError::io("list", &self.directory))?;
        let mut numbers: Vec<u64> =
            names.iter().filter_map(|name| segment_number(name, self.head.pg_tli())).collect();
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// Reads `from..to`. Zeros stand for bytes that a shorter file lacks. In front of the timeline's start a file is not
    /// looked at: those of earlier versions hold there what is made up now.
    ///
    /// # Errors
    /// [`StoreError::Trimmed`] when a segment is not there.
    pub fn read(&self, from: Lsn, to: Lsn) -> Result<Bytes, StoreError> {
        let mut out = BytesMut::with_capacity(to.bytes_since(from).unwrap_or(0) as usize);
        let mut at = from;
        while at < to {
            let mut end = to.min(segment_start(at.segment_number() + 1));
            if self.head.covers(at) {
                end = end.min(self.head.until());
                self.head.read(at, end, &mut out);
            } else {
                self.read_within_segment(at, (end.0 - at.0) as usize, &mut out)?;
            }
            at = end;
        }
        Ok(out.freeze())
    }

    fn read_within_segment(
        &self,
        at: Lsn,
        len: usize,
        out: &mut BytesMut,
    ) -> Result<(), StoreError> {
        let path = self.path(at.segment_number());
        let file = match self.fs.open(&path, OpenMode::Read) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let oldest = self.segments()?.first().copied().unwrap_or(at.segment_number() + 1);
                return Err(StoreError::Trimmed { lsn: at, trim_lsn: segment_start(oldest) });
            }
            opened => opened.map_err(StoreError::io("open", &path))?,
        };
        let failed = StoreError::io("read", &path);
        let start = out.len();
        out.put_bytes(0, len);
        let target = &mut out[start..];
        // Mostly all of it is there. Its length is asked for only where it is not: the kernel remembers that a file's times
        // were looked at, and the writer's next sync has to bring them to the disk as well.
        match file.read_exact_at(target, at.segment_offset()) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {}
            read => return read.map_err(failed),
        }
        let file_len = file.len().map_err(&failed)?;
        let there = file_len.saturating_sub(at.segment_offset()).min(len as u64) as usize;
        let (there, hole) = target.split_at_mut(there);
        hole.fill(0);
        match there.is_empty() {
            true => Ok(()),
            false => file.read_exact_at(there, at.segment_offset()).map_err(failed),
        }
    }
}

/// The writer's side. One per timeline.
pub struct WalStore {
    files: WalFiles,
    spares: Spares,
    /// The segment written last.
    current: Option<Current>,
    /// Since a sync was last begun.
    unsynced: Unsynced,
    /// The next segment's file is wanted, and nobody has been asked for it.
    wants_spare: bool,
}

struct Current {
    number: u64,
    path: PathBuf,
    file: Arc<dyn File>,
    /// Between what was written and this offset there are zeros; behind it there may be old log.
    zeros_to: u64,
    /// When the log passes this offset, the next segment's file is wanted.
    grows_at: u64,
    /// All of its room is taken already.
    is_full_size: bool,
}

impl Current {
    /// Returns whether the next segment's file is wanted now.
    fn write(&mut self, bytes: &[u8], offset: u64) -> io::Result<bool> {
        let end = offset + bytes.len() as u64;
        if end > self.zeros_to {
            let zeros_to = end.next_multiple_of(WAL_PAGE_SIZE);
            self.file.write_all_at(&vec![0; (zeros_to - end) as usize], end)?;
            self.zeros_to = zeros_to;
        }
        self.file.write_all_at(bytes, offset)?;
        let grows = end > self.grows_at;
        if grows {
            self.grows_at = u64::MAX;
        }
        Ok(grows)
    }
}

impl WalStore {
    pub fn new(files: WalFiles) -> WalStore {
        let spares = Spares::new(files.fs.clone(), files.directory.clone());
        let unsynced = Unsynced::nothing(files.fs.clone(), &files.directory);
        WalStore { files, spares, current: None, unsynced, wants_spare: false }
    }

    pub fn files(&self) -> &WalFiles {
        &self.files
    }

    /// Writes bytes where the last ones end; not durable before [`WalStore::sync`].
    pub fn write(&mut self, lsn: Lsn, bytes: &[u8]) -> Result<(), StoreError> {
        let (mut at, mut rest) = (lsn, bytes);
        while !rest.is_empty() {
            let room = WAL_SEGMENT_SIZE - at.segment_offset();
            let (now, later) = rest.split_at(rest.len().min(room as usize));
            let segment = self.segment(at)?;
            let written = segment.write(now, at.segment_offset());
            let grows = written.map_err(StoreError::io("write", &segment.path))?;
            self.wants_spare |= grows;
            (at, rest) = (at + now.len() as u64, later);
        }
        Ok(())
    }

    /// The segment that holds `lsn`, the first byte written there, marked as written to.
    fn segment(&mut self, lsn: Lsn) -> Result<&mut Current, StoreError> {
        let number = lsn.segment_number();
        let segment = match self.current.take() {
            Some(current) if current.number == number => current,
            last => {
                let has_filled_one = last.is_some_and(|last| last.number + 1 == number);
                self.open_segment(lsn, has_filled_one)?
            }
        };
        self.unsynced.note_file(&segment.path, &segment.file);
        Ok(self.current.insert(segment))
    }

    /// `may_take`: the log comes from the segment before, so that there is no file yet.
    fn open_segment(&mut self, lsn: Lsn, may_take: bool) -> Result<Current, StoreError> {
        let number = lsn.segment_number();
        let path = self.files.path(number);
        let refused = StoreError::io("create", &path);
        let taken = if may_take { self.spares.take(&path).map_err(&refused)? } else { None };
        let file = self.files.fs.open(&path, OpenMode::CreateOrOpen).map_err(&refused)?;
        let len = file.len().map_err(&refused)?;
        if len < WAL_SEGMENT_SIZE {
            file.set_len(WAL_SEGMENT_SIZE).map_err(&refused)?;
        }
        if len == 0 {
            self.files.head.before(lsn).mark(&*file).map_err(&refused)?;
        }
        if len < WAL_SEGMENT_SIZE || taken.is_some() {
            self.unsynced.note_name();
        }
        let zeros_to = if taken == Some(Content::OldLog) { 0 } else { WAL_SEGMENT_SIZE };
        drop(refused);
        let grows_at = if may_take { 0 } else { lsn.segment_offset() + GROWING_BYTES };
        let is_full_size = taken.is_some();
        Ok(Current { number, path, file, zeros_to, grows_at, is_full_size })
    }

    /// What fills a file for the log to come: wanted once for each segment, when the log comes into it from the one before, or has
    /// shown that it grows.
    pub(crate) fn filler(&mut self) -> Option<Filler> {
        if !std::mem::take(&mut self.wants_spare) {
            return None;
        }
        self.spares.filler().unwrap_or_else(|error| {
            tracing::debug!(%error, "no segment file made ahead");
            None
        })
    }

    /// What is taken for the log to come: spare files, and the rest of the segment that ends behind `end`.
    pub fn ahead_bytes(&self, end: Lsn) -> u64 {
        let is_full_size = self.current.as_ref().is_some_and(|current| current.is_full_size);
        let rest = end.0.next_multiple_of(WAL_SEGMENT_SIZE) - end.0;
        self.spares.bytes() + if is_full_size { rest } else { 0 }
    }

    pub fn has_spares(&self) -> bool {
        self.spares.bytes() > 0
    }

    /// Removes spare files but for `left` of them.
    pub fn shrink_spares(&mut self, left: usize) -> Result<(), StoreError> {
        self.spares
            .shrink(left)
            .map_err(StoreError::io("remove spare files of", &self.files.directory))
    }

    /// Removes spare files, those too that an earlier process left, and those that are being made.
    pub fn remove_spares(&mut self) -> Result<(), StoreError> {
        self.spares.remove().map_err(StoreError::io("remove spare files of", &self.files.directory))
    }

    /// Gives the rest of the segment that ends behind `end` back, where it was taken ahead. All that was written is synced.
    pub fn give_back_rest(&mut self, end: Lsn) -> Result<(), StoreError> {
        match self.current.as_ref().is_some_and(|current| current.is_full_size) {
            true => self.truncate(end),
            false => Ok(()),
        }
    }

    /// Makes everything written so far durable. After an error the store must not be used again.
    pub fn sync(&mut self) -> Result<(), StoreError> {
        self.take_unsynced().sync()
    }

    /// What is to be synced now. What is written from here on is for the next sync, in the same files or not.
    pub(crate) fn take_unsynced(&mut self) -> Unsynced {
        let nothing = Unsynced::nothing(self.files.fs.clone(), &self.files.directory);
        std::mem::replace(&mut self.unsynced, nothing)
    }

    fn sync_names(&self) -> Result<(), StoreError> {
        let directory = &self.files.directory;
        self.files.fs.sync_dir(directory).map_err(StoreError::sync(directory))
    }

    /// Zeroes everything from `to` on: later segments are removed, the rest of its own becomes a hole. (Removed and not
    /// kept as spare files: this log may come to the same positions again.)
    /// Durable on return. What lies before `to` must have been synced.
    pub fn truncate(&mut self, to: Lsn) -> Result<(), StoreError> {
        self.current = None;
        self.unsynced.forget_files();
        let (number, offset) = (to.segment_number(), to.segment_offset());
        let first_removed = if offset == 0 { number } else { number + 1 };
        self.remove(|segment| segment >= first_removed)?;
        let path = self.files.path(number);
        if offset > 0 && self.files.fs.exists(&path).map_err(StoreError::io("find", &path))? {
            let refused = StoreError::io("truncate", &path);
            let file = self.files.fs.open(&path, OpenMode::ReadWrite).map_err(&refused)?;
            file.set_len(offset).map_err(&refused)?;
            file.set_len(WAL_SEGMENT_SIZE).map_err(&refused)?;
            file.sync_data().map_err(StoreError::sync(&path))?;
        }
        Ok(())
    }

    /// Removes whole segments that end at or before `lsn`. Durable on return.
    pub fn remove_before(&mut self, lsn: Lsn) -> Result<(), StoreError> {
        self.remove(|segment| segment < lsn.segment_number())
    }

    /// The same, but with `may_keep` a log that fills segment after segment keeps some of the files for what it writes next.
    ///
    /// Whoever reads them must be told that they are trimmed before anything else is written: they go on under other names.
    pub fn recycle_before(&mut self, lsn: Lsn, may_keep: bool) -> Result<(), StoreError> {
        let segments = self.files.segments()?;
        let is_growing = self
            .current
            .as_ref()
            .is_some_and(|current| segments.contains(&current.number.wrapping_sub(1)));
        for segment in segments.into_iter().filter(|segment| *segment < lsn.segment_number()) {
            let path = self.files.path(segment);
            if !(may_keep && is_growing && self.spares.keep(&path)) {
                self.files.fs.remove_file(&path).map_err(StoreError::io("remove", &path))?;
            }
        }
        self.sync_names()
    }

    /// Removes every segment. Durable on return. What is written next makes its file anew.
    pub fn remove_all(&mut self) -> Result<(), StoreError> {
        self.current = None;
        self.unsynced.forget_files();
        self.wants_spare = false;
        self.remove(|_| true)
    }

    fn remove(&mut self, which: impl Fn(u64) -> bool) -> Result<(), StoreError> {
        let segments = self.files.segments()?;
        for segment in segments.into_iter().filter(|segment| which(*segment)) {
            let path = self.files.path(segment);
            self.files.fs.remove_file(&path).map_err(StoreError::io("remove", &path))?;
        }
        self.sync_names()
    }

    /// Syncs the segments that hold `from..=to`, whoever wrote them, and their names: what a process reads after
    /// its start may have been written by one that was killed before its own sync.
    pub fn sync_range(&mut self, from: Lsn, to: Lsn) -> Result<(), StoreError> {
        for segment in from.segment_number()..=to.segment_number() {
            let path = self.files.path(segment);
            match self.files.fs.open(&path, OpenMode::ReadWrite) {
                Ok(file) => file.sync_data().map_err(StoreError::sync(&path))?,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(StoreError::io("open", &path)(error)),
            }
        }
        self.sync_names()
    }
}

/// First byte of a segment.
pub fn segment_start(number: u64) -> Lsn {
    Lsn(number * WAL_SEGMENT_SIZE)
}

/// The Postgres major version that a control file or greeting names.
pub fn pg_major(number: u32) -> Result<PgMajor, StoreError> {
    PgMajor::from_number(number).map_err(|_| StoreError::PgMajor(number))
}

/// The number of a segment file of this Postgres timeline; `None` for other names.
fn segment_number(name: &str, pg_tli: u32) -> Option<u64> {
    let part = |range| u32::from_str_radix(name.get(range)?, 16).ok();
    let (tli, high, low) = (part(0..8)?, part(8..16)?, part(16..24)?);
    let number = u64::from(high) * (0x1_0000_0000 / WAL_SEGMENT_SIZE) + u64::from(low);
    let is_exact = segment_start(number).segment_file_name(tli) == name;
    (tli == pg_tli && is_exact).then_some(number)
}

#[cfg(test)]
mod tests {
    use treering_fs::{CrashFs, RealFs};
    use treering_pgfmt::wal::reader::find_first_record;
    use treering_types::{TenantId, TimelineId};

    use super::*;
    use crate::control_file::Identity;

    const SEG: u64 = WAL_SEGMENT_SIZE;

    fn head(start: Lsn) -> SegmentHead {
        let identity = Identity {
            tenant: TenantId([0; 16]),
            timeline: TimelineId([0; 16]),
            system_id: 77,
            pg_major: 15,
            pg_tli: 3,
            pg_ancestors: Vec::new(),
        };
        SegmentHead::new(&identity, start).unwrap()
    }

    fn store(fs: &CrashFs) -> WalStore {
        let directory = PathBuf::from("/t");
        treering_fs::create_dir_durably(fs, &directory).unwrap();
        WalStore::new(WalFiles::new(Arc::new(fs.clone()), directory, head(Lsn(SEG))))
    }

    fn read(store: &WalStore, from: u64, to: u64) -> Vec<u8> {
        store.files().read(Lsn(from), Lsn(to)).unwrap().to_vec()
    }

    #[test]
    fn names_are_postgres_own() {
        assert_eq!(segment_number("000000030000000700000001", 3), Some(7 * 256 + 1));
        for other in ["000000020000000700000001", "control", "00000003000000070000000g", "00000003"]
        {
            assert_eq!(segment_number(other, 3), None);
        }
        assert_eq!(segment_number("000000030000000700000100", 3), None, "no such segment");
    }

    #[test]
    fn writes_cross_segments_and_survive_a_crash_once_synced() {
        let fs = CrashFs::new();
        let mut s = store(&fs);
        s.write(Lsn(2 * SEG - 3), b"abcdef").unwrap();
        s.sync().unwrap();
        s.write(Lsn(2 * SEG + 3), b"ghi").unwrap();
        let after = store(&fs.crash(0));
        assert_eq!(read(&after, 2 * SEG - 4, 2 * SEG + 5), b"\0abcdef\0\0");
        assert_eq!(after.files().segments().unwrap(), [1, 2]);
        assert_eq!(read(&s, 2 * SEG - 4, 2 * SEG + 6), b"\0abcdefghi");
    }

    #[test]
    fn nothing_comes_back_from_behind_a_cut() {
        for cut in [SEG + 5, 2 * SEG] {
            let fs = CrashFs::new();
            let mut s = store(&fs);
            s.write(Lsn(SEG), &[7; 100]).unwrap();
            s.write(Lsn(2 * SEG), &[7; 100]).unwrap();
            s.write(Lsn(3 * SEG), &[7; 100]).unwrap();
            s.sync().unwrap();
            s.truncate(Lsn(cut)).unwrap();
            let mut after = store(&fs.crash(0));
            assert_eq!(after.files().segments().unwrap(), [1]);
            let kept = (cut - SEG).min(100) as usize;
            let mut expected = vec![7; kept];
            expected.resize(SEG as usize, 0);
            assert_eq!(read(&after, SEG, 2 * SEG), expected);
            after.write(Lsn(cut), b"new").unwrap();
            assert_eq!(read(&after, cut, cut + 4), b"new\0");
        }
    }

    #[test]
    fn whole_segments_are_trimmed() {
        let fs = CrashFs::new();
        let mut s = store(&fs);
        for segment in 1..4 {
            s.write(Lsn(segment * SEG), b"x").unwrap();
        }
        s.sync().unwrap();
        s.remove_before(Lsn(3 * SEG + 9)).unwrap();
        assert_eq!(store(&fs.crash(0)).files().segments().unwrap(), [3]);
        let gone = s.files().read(Lsn(2 * SEG), Lsn(2 * SEG + 1));
        assert!(matches!(gone, Err(StoreError::Trimmed { trim_lsn, .. }) if trim_lsn.0 == 3 * SEG));
    }

    /// Nothing of a first segment is stored in front of the start but what tools look for there; of the rest, what was written.
    #[test]
    fn a_first_segment_takes_the_room_of_what_was_written() {
        use std::os::unix::fs::MetadataExt;
        let folder = tempfile::tempdir().unwrap();
        let start = Lsn(SEG + SEG / 2 + 8192 + 48);
        let files = WalFiles::new(Arc::new(RealFs), folder.path().to_path_buf(), head(start));
        let mut s = WalStore::new(files.clone());
        s.write(start, &[7; 100]).unwrap();
        s.sync().unwrap();
        let on_disk = std::fs::metadata(files.path(1)).unwrap();
        assert_eq!(on_disk.len(), SEG);
        assert!(on_disk.blocks() * 512 <= 16 << 10, "{} blocks of 512", on_disk.blocks());
        let bytes = read(&s, SEG, 2 * SEG);
        let until = (start.segment_offset() as usize).next_multiple_of(8192);
        let found = find_first_record(PgMajor::V15, Lsn(SEG), &bytes[..until]).unwrap();
        assert_eq!(found, Some(start));
        let (before, after) = bytes.split_at(start.segment_offset() as usize);
        assert_eq!(after[..100], [7; 100]);
        assert!(after[100..].iter().all(|byte| *byte == 0));
        // A cut at the start leaves the file as it was made.
        s.truncate(start).unwrap();
        s.write(start, &[8; 100]).unwrap();
        assert_eq!(read(&s, SEG, start.0), before);
        assert_eq!(read(&s, start.0, start.0 + 101), [&[8; 100][..], &[0]].concat());
    }

    /// Earlier versions stored the made-up bytes; the file may also hold anything else there.
    #[test]
    fn what_a_file_holds_in_front_of_the_start_is_not_read() {
        let fs = CrashFs::new();
        let start = Lsn(SEG + 3 * 8192 + 48);
        let directory = PathBuf::from("/t");
        treering_fs::create_dir_durably(&fs, &directory).unwrap();
        let files = WalFiles::new(Arc::new(fs.clone()), directory, head(start));
        let mut s = WalStore::new(files.clone());
        s.write(Lsn(SEG), &[9; 3 * 8192 + 48]).unwrap();
        s.write(start, b"log").unwrap();
        let mut made_up = BytesMut::new();
        head(start).read(Lsn(SEG), start, &mut made_up);
        assert_eq!(read(&s, SEG, start.0 + 3), [&made_up[..], b"log"].concat());
    }
}
