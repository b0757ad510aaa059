//! The WAL files of a data directory, read as recovery reads them: to the first thing that is no record.

use std::{
    fs::{File, read},
    io,
    path::{Path, PathBuf},
};

use anyhow::{Context, ensure};
use bytes::Bytes;
use rustix::buffer::spare_capacity;
use treering_pgfmt::{
    control::ControlFile,
    version::PgMajor,
    wal::{reader::WalDecoder, record::RawRecord},
};
use treering_types::{Lsn, WAL_PAGE_SIZE, WAL_SEGMENT_SIZE};

/// Reads the control file of a data directory.
pub fn control_file(data: &Path) -> anyhow::Result<ControlFile> {
    let path = data.join("global/pg_control");
    Ok(ControlFile::parse(&read(&path).with_context(|| path.display().to_string())?)?)
}

/// Bytes read at once: they stay in the core's second-level cache until they are checked and copied.
const READ_AT_ONCE: usize = 256 * 1024;

/// The bytes of WAL files on server timeline 1, one file after the other.
pub struct LogBytes {
    dir: PathBuf,
    at: Lsn,
    file: Option<File>,
}

impl LogBytes {
    /// Starts at `from`, any position.
    pub fn open(wal_dir: &Path, from: Lsn) -> LogBytes {
        LogBytes { dir: wal_dir.to_owned(), at: from, file: None }
    }

    /// What comes next, up to the end of a file at most; empty where no file goes on.
    pub fn read(&mut self) -> anyhow::Result<Bytes> {
        if self.at.segment_offset() == 0 {
            self.file = None;
        }
        let file = match &mut self.file {
            Some(file) => file,
            None => match File::open(self.dir.join(self.at.segment_file_name(1))) {
                Ok(file) => self.file.insert(file),
                Err(_) => return Ok(Bytes::new()),
            },
        };
        let bytes = some_of(file, self.at)?;
        self.at = self.at + bytes.len() as u64;
        Ok(bytes)
    }
}

/// What follows `at` in the file, up to a whole number of reads from the file's beginning: pages of the log are then read
/// whole, and nothing of one piece is left when the next comes. A new buffer each time: what is handed out may be held.
fn some_of(file: &File, at: Lsn) -> io::Result<Bytes> {
    let size = READ_AT_ONCE - at.segment_offset() as usize % READ_AT_ONCE;
    let mut bytes = Vec::with_capacity(size);
    while bytes.len() < size {
        let offset = at.segment_offset() + bytes.len() as u64;
        if rustix::io::pread(file, spare_capacity(&mut bytes), offset)? == 0 {
            break;
        }
    }
    Ok(Bytes::from(bytes))
}

/// What a log is made of, to who reads it.
pub enum Piece<'a> {
    /// The rest of a page of the log, not checked yet. It begins with a record.
    Ahead(&'a [u8]),
    Record(&'a RawRecord<'a>),
}

/// Records of WAL files up to the log's end.
pub struct Log {
    bytes: LogBytes,
    decoder: WalDecoder,
}

impl Log {
    /// Starts at `from`, a record boundary.
    pub fn open(major: PgMajor, wal_dir: &Path, from: Lsn) -> Log {
        let bytes = LogBytes::open(wal_dir, from);
        Log { bytes, decoder: WalDecoder::new(major, from) }
    }

    /// Calls `take` with every record up to the log's end: after a crash it ends in whatever was in the file before, so
    /// the first bytes that are no record end it, as in recovery.
    pub fn for_each_record(
        &mut self,
        mut take: impl FnMut(&RawRecord<'_>) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        self.read(|piece| match piece {
            Piece::Ahead(_) => Ok(()),
            Piece::Record(record) => take(record),
        })
    }

    /// As [`Log::for_each_record`], with a look ahead at each page of the log.
    pub fn read(
        &mut self,
        mut take: impl FnMut(Piece<'_>) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let mut page = Lsn::INVALID;
        loop {
            let position = self.decoder.position();
            if position.page_start() != page {
                page = position.page_start();
                let upcoming = self.decoder.upcoming();
                let left = WAL_PAGE_SIZE as usize - position.page_offset();
                take(Piece::Ahead(upcoming.get(..left).unwrap_or(upcoming)))?;
            }
            match self.decoder.next_record() {
                Ok(Some(record)) => {
                    take(Piece::Record(&record))?;
                    continue;
                }
                Ok(None) => {}
                Err(_) => return Ok(()),
            }
            match self.bytes.read()? {
                chunk if chunk.is_empty() => return Ok(()),
                chunk => self.decoder.feed_shared(chunk),
            }
        }
    }

    /// Start of the last record read.
    pub fn last_record_start(&self) -> Lsn {
        self.decoder.last_record_start().unwrap_or(Lsn::INVALID)
    }

    /// End of the last record read.
    pub fn position(&self) -> Lsn {
        self.decoder.position()
    }
}

/// The raw WAL between two positions.
pub fn bytes_between(wal_dir: &Path, from: Lsn, to: Lsn) -> anyhow::Result<Vec<u8>> {
    let size = to.bytes_since(from).context("WAL ends before it begins")? as usize;
    let mut out = Vec::with_capacity(size + WAL_SEGMENT_SIZE as usize);
    let mut bytes = LogBytes::open(wal_dir, from);
    while out.len() < size {
        let chunk = bytes.read()?;
        ensure!(!chunk.is_empty(), "WAL files end before {to}");
        out.extend_from_slice(&chunk);
    }
    out.truncate(size);
    Ok(out)
}
