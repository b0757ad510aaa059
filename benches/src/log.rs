//! The WAL files of a data directory, read as recovery reads them: to the first thing that is no record.

use std::{
    fs::{File, read},
    io::Read,
    path::{Path, PathBuf},
};

use anyhow::{Context, ensure};
use treering_pgfmt::{
    control::ControlFile,
    version::PgMajor,
    wal::{reader::WalDecoder, record::RawRecord},
};
use treering_types::{Lsn, WAL_SEGMENT_SIZE};

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

    /// Fills `chunk` with what comes next, at least one byte; 0 where no file goes on.
    pub fn read(&mut self, chunk: &mut [u8]) -> anyhow::Result<usize> {
        if self.at.segment_offset() == 0 || self.file.is_none() {
            let Ok(mut file) = File::open(self.dir.join(self.at.segment_file_name(1))) else {
                return Ok(0);
            };
            std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(self.at.segment_offset()))?;
            self.file = Some(file);
        }
        let left = (WAL_SEGMENT_SIZE - self.at.segment_offset()).min(chunk.len() as u64) as usize;
        let file = self.file.as_mut().context("a file is open")?;
        file.read_exact(&mut chunk[..left])?;
        self.at = self.at + left as u64;
        Ok(left)
    }
}

/// Records of WAL files up to the log's end.
pub struct Log {
    bytes: LogBytes,
    decoder: WalDecoder,
    chunk: Vec<u8>,
}

impl Log {
    /// Starts at `from`, a record boundary.
    pub fn open(major: PgMajor, wal_dir: &Path, from: Lsn) -> Log {
        let bytes = LogBytes::open(wal_dir, from);
        Log { bytes, decoder: WalDecoder::new(major, from), chunk: vec![0; CHUNK_BYTES] }
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
            match self.bytes.read(&mut self.chunk)? {
                0 => return Ok(None),
                count => self.decoder.feed(&self.chunk[..count]),
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
    let mut out = vec![0; size];
    let (mut bytes, mut filled) = (LogBytes::open(wal_dir, from), 0);
    while filled < size {
        let count = bytes.read(&mut out[filled..])?;
        ensure!(count > 0, "WAL files end before {to}");
        filled += count;
    }
    Ok(out)
}
