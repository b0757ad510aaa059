//! A timeline's WAL as ordinary 16 MiB segment files.
//!
//! Files are named as Postgres names them, have their full length from the beginning (sparse: room is taken as it is
//! written), and hold zeros where nothing was written. In front of the timeline's start nothing is stored; readers get
//! what [`SegmentHead`] makes up. What this module promises:
//! - after [`WalStore::sync`] everything written so far, and the names of the files, survive a crash;
//! - after [`WalStore::truncate`] there is nothing but zeros behind the cut, and that is synced;
//! - it never looks into the bytes; where records end is its caller's knowledge.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::{BufMut, Bytes, BytesMut};
use treering_fs::{File, FileSystem, OpenMode};
use treering_pgfmt::version::PgMajor;
use treering_types::{Lsn, WAL_SEGMENT_SIZE};

use crate::{error::StoreError, segment_head::SegmentHead};

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
        let file_len = file.len().map_err(StoreError::io("read", &path))?;
        let there = file_len.saturating_sub(at.segment_offset()).min(len as u64) as usize;
        let start = out.len();
        out.put_bytes(0, len);
        if there == 0 {
            return Ok(());
        }
        let target = &mut out[start..start + there];
        file.read_exact_at(target, at.segment_offset()).map_err(StoreError::io("read", &path))
    }
}

/// The writer's side. One per timeline.
pub struct WalStore {
    files: WalFiles,
    /// The segment written last.
    current: Option<(u64, Arc<dyn File>)>,
    /// Files written since the last sync.
    unsynced: Vec<(PathBuf, Arc<dyn File>)>,
    /// A file was created since the last sync.
    has_new_names: bool,
}

impl WalStore {
    pub fn new(files: WalFiles) -> WalStore {
        WalStore { files, current: None, unsynced: Vec::new(), has_new_names: false }
    }

    pub fn files(&self) -> &WalFiles {
        &self.files
    }

    /// Writes bytes; not durable before [`WalStore::sync`].
    pub fn write(&mut self, lsn: Lsn, bytes: &[u8]) -> Result<(), StoreError> {
        let (mut at, mut rest) = (lsn, bytes);
        while !rest.is_empty() {
            let room = WAL_SEGMENT_SIZE - at.segment_offset();
            let (now, later) = rest.split_at(rest.len().min(room as usize));
            let file = self.segment(at)?;
            let path = self.files.path(at.segment_number());
            file.write_all_at(now, at.segment_offset()).map_err(StoreError::io("write", &path))?;
            (at, rest) = (at + now.len() as u64, later);
        }
        Ok(())
    }

    /// The file of the segment that holds `lsn`, the first byte written there, marked as written to.
    fn segment(&mut self, lsn: Lsn) -> Result<Arc<dyn File>, StoreError> {
        let number = lsn.segment_number();
        let path = self.files.path(number);
        let file = match &self.current {
            Some((current, file)) if *current == number => file.clone(),
            Some(_) | None => self.open_segment(lsn, &path)?,
        };
        if self.unsynced.last().is_none_or(|(last, _)| *last != path) {
            self.unsynced.push((path, file.clone()));
        }
        Ok(file)
    }

    fn open_segment(&mut self, lsn: Lsn, path: &Path) -> Result<Arc<dyn File>, StoreError> {
        let refused = StoreError::io("create", path);
        let file = self.files.fs.open(path, OpenMode::CreateOrOpen).map_err(&refused)?;
        let len = file.len().map_err(&refused)?;
        if len < WAL_SEGMENT_SIZE {
            self.has_new_names = true;
            file.set_len(WAL_SEGMENT_SIZE).map_err(&refused)?;
        }
        if len == 0 {
            self.files.head.before(lsn).mark(&*file).map_err(&refused)?;
        }
        self.current = Some((lsn.segment_number(), file.clone()));
        Ok(file)
    }

    /// Makes everything written so far durable. After an error the store must not be used again.
    pub fn sync(&mut self) -> Result<(), StoreError> {
        for (path, file) in std::mem::take(&mut self.unsynced) {
            file.sync_data().map_err(StoreError::sync(&path))?;
        }
        if std::mem::take(&mut self.has_new_names) {
            self.sync_names()?;
        }
        Ok(())
    }

    fn sync_names(&self) -> Result<(), StoreError> {
        let directory = &self.files.directory;
        self.files.fs.sync_dir(directory).map_err(StoreError::sync(directory))
    }

    /// Zeroes everything from `to` on: later segments are removed, the rest of its own becomes a hole.
    /// Durable on return. What lies before `to` must have been synced.
    pub fn truncate(&mut self, to: Lsn) -> Result<(), StoreError> {
        self.current = None;
        self.unsynced.clear();
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

    /// Removes every segment. Durable on return. What is written next makes its file anew.
    pub fn remove_all(&mut self) -> Result<(), StoreError> {
        self.current = None;
        self.unsynced.clear();
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
