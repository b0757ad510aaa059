//! The WAL files of a data directory, read as recovery reads them: to the first thing that is no record.

use std::{
    fs::{File, read},
    path::{Path, PathBuf},
};

use anyhow::{Context, ensure};
use bytes::Bytes;
use rustix::{buffer::spare_capacity, io::pread};
use treering_pgfmt::{
    control::ControlFile,
    version::PgMajor,
    wal::{reader::WalDecoder, record::RawRecord},
};
use treering_types::Lsn;

/// Bytes read at once: as much as a walsender sends in one message.
pub const CHUNK_BYTES: usize = 128 * 1024;

/// Reads the control file of a data directory.
pub fn control_file(data: &Path) -> anyhow::Result<ControlFile> {
    let path = data.join("global/pg_control");
    Ok(ControlFile::parse(&read(&path).with_context(|| path.display().to_string())?)?)
}

/// The bytes of WAL files on server timeline 1, one chunk after the other.
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

    /// What comes next, up to a chunk; empty where no file goes on.
    pub fn read(&mut self) -> anyhow::Result<Bytes> {
        if self.at.segment_offset() == 0 || self.file.is_none() {
            self.file = File::open(self.dir.join(self.at.segment_file_name(1))).ok();
        }
        let Some(file) = &self.file else { return Ok(Bytes::new()) };
        let mut chunk = Vec::with_capacity(CHUNK_BYTES);
        pread(file, spare_capacity(&mut chunk), self.at.segment_offset())?;
        self.at = self.at + chunk.len() as u64;
        Ok(Bytes::from(chunk))
    }
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

    /// The next record. `None` at the log's end: after a crash it ends in whatever was in the file before, so the
    /// first bytes that are no record end it, as in recovery.
    pub fn next_record(&mut self) -> anyhow::Result<Option<RawRecord>> {
        loop {
            match self.decoder.next_record() {
                Ok(Some(record)) => return Ok(Some(record)),
                Ok(None) => {}
                Err(_) => return Ok(None),
            }
            match self.bytes.read()? {
                chunk if chunk.is_empty() => return Ok(None),
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
    let mut out = Vec::with_capacity(size + CHUNK_BYTES);
    let mut bytes = LogBytes::open(wal_dir, from);
    while out.len() < size {
        let chunk = bytes.read()?;
        ensure!(!chunk.is_empty(), "WAL files end before {to}");
        out.extend_from_slice(&chunk);
    }
    out.truncate(size);
    Ok(out)
}
