//! A directory of WAL segments, record by record.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use treering_pgfmt::{
    version::PgMajor,
    wal::{
        error::WalError,
        reader::WalDecoder,
        record::{RawRecord, Record},
    },
};
use treering_types::{Lsn, WAL_SEGMENT_SIZE};

/// Where the WAL of a directory ends.
#[derive(Clone, Debug)]
pub struct End {
    /// Start of the last record.
    pub last_start: Lsn,
    /// End of the last record.
    pub at: Lsn,
    pub records: u64,
    /// What follows it: zeros, an old page of a recycled segment, no further segment.
    pub reason: String,
}

/// The segment file that holds `at`, of the newest timeline there is; a `.partial` one too.
fn segment(dir: &Path, at: Lsn) -> Result<Option<PathBuf>> {
    let position = &at.segment_file_name(0)[8..];
    let is_segment = |name: &str| {
        let name = name.strip_suffix(".partial").unwrap_or(name);
        name.len() == 24 && name.ends_with(position) && u64::from_str_radix(name, 16).is_ok()
            || name.len() == 24 && &name[8..] == position
    };
    let mut found: Vec<String> = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| dir.display().to_string())? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if is_segment(&name) {
            found.push(name);
        }
    }
    Ok(found.into_iter().max().map(|name| dir.join(name)))
}

/// Calls `take` with every record from the record boundary `start` to the end of the WAL.
///
/// # Errors
/// There is no WAL at `start`, or a record passed its checksum and cannot be decoded.
pub fn for_each_record(
    major: PgMajor,
    dir: &Path,
    start: Lsn,
    mut take: impl FnMut(&RawRecord<'_>, &Record<'_>) -> Result<()>,
) -> Result<End> {
    let mut decoder = WalDecoder::new(major, start);
    let mut end = End { last_start: start, at: start, records: 0, reason: String::new() };
    let mut at = start;
    while let Some(path) = segment(dir, at)? {
        let bytes = fs::read(&path).with_context(|| path.display().to_string())?;
        decoder.feed(bytes.get(at.segment_offset() as usize..).unwrap_or_default());
        at = at.segment_start() + WAL_SEGMENT_SIZE;
        loop {
            match decoder.next_record() {
                Ok(Some(raw)) => {
                    let record = Record::decode(major, &raw)?;
                    take(&raw, &record)?;
                    (end.last_start, end.at) = (raw.start, raw.end);
                    end.records += 1;
                }
                Ok(None) => break,
                Err(error @ WalError::Malformed { .. }) => return Err(error.into()),
                Err(error) if end.records > 0 => {
                    end.reason = error.to_string();
                    return Ok(end);
                }
                Err(error) => bail!("no WAL to read: {error}"),
            }
        }
    }
    if end.records == 0 {
        bail!("no segment with {start} in {}", dir.display());
    }
    end.reason = format!("no segment with {at}");
    Ok(end)
}
