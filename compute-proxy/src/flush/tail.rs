//! The written end of a log, read from `pg_wal` as Postgres writes it.
//!
//! Postgres writes page after page, each from its start on, and a page only when all that lies before it was inserted (`XLogWrite`,
//! `access/transam/xlog.c`). So a page with a written one behind it is as it will stay. The last one may be written again; of that one as much
//! counts as is whole records. What Postgres waits for is among them: it was inserted before the page was written. Behind that may be records that
//! nobody waits for yet, as good as any, and a part of one that was being copied into the buffer meanwhile. Its checksum gives that away.
//!
//! A checksum can be right by chance, once in four thousand million such parts. The quorum has it then; but nobody waited for it, and before
//! this agent grants anything behind it the page is read again, and compared.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use rustix::fs::Dir;
use treering_pgfmt::{
    version::PgMajor,
    wal::{
        ends::RecordEnds,
        page_header::{self, PageHeader},
    },
};
use treering_types::{Lsn, WAL_PAGE_SIZE, WAL_SEGMENT_SIZE};

use crate::compute::beneath::Beneath;

/// Log that is read at once, at most.
const READ_BYTES_MAX: u64 = 1024 * 1024;

#[derive(Debug, thiserror::Error)]
pub(super) enum TailError {
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It is not what Postgres writes, or not what it was.
    #[error("the log is damaged at {at}: {what}")]
    Damaged { at: Lsn, what: &'static str },
}

/// Log that stays as it is.
pub(super) struct Written {
    pub from: Lsn,
    pub bytes: Bytes,
    /// Nothing more is written.
    pub is_all: bool,
}

/// See the module's head.
pub(super) struct Tail {
    files: Segments,
    major: PgMajor,
    /// All before it has been read and stays: the start of the page that may change, at first of less.
    closed: Lsn,
    /// Fed up to there.
    scan: RecordEnds,
    /// What was read behind it and given on.
    given: Bytes,
    /// The end of the last whole record that was given on.
    whole: Lsn,
}

impl Tail {
    /// From a record's end on.
    pub fn new(wal_dir: PathBuf, major: PgMajor, pg_tli: u32, next: Lsn) -> Tail {
        let files = Segments { dir: wal_dir, pg_tli, open: None };
        Tail {
            files,
            major,
            closed: next,
            scan: RecordEnds::from(next),
            given: Bytes::new(),
            whole: next,
        }
    }

    /// Everything before was given on.
    pub fn next(&self) -> Lsn {
        self.closed + self.given.len() as u64
    }

    /// What can become durable of it: a quorum commits whole records.
    pub fn whole(&self) -> Lsn {
        self.whole
    }

    /// What is written behind [`Tail::next`], or a part of it. After an error it may be called again.
    pub fn read(&mut self) -> Result<Written, TailError> {
        let from = self.next();
        // Looked for before the content is read: what has a written page behind it is then read as it stays.
        let (last, is_all) = self.last_page()?;
        let Some(last) = last else { return Ok(Written { from, bytes: Bytes::new(), is_all }) };
        let (begin, open, end) = (self.closed, last.max(self.closed), last + WAL_PAGE_SIZE);
        let at = |lsn: Lsn| lsn.0.saturating_sub(begin.0) as usize;
        let mut bytes = self.files.read(begin, end)?;
        if !bytes.starts_with(&self.given) {
            return Err(TailError::Damaged { at: begin, what: "what was read has changed" });
        }
        let damaged = |at| TailError::Damaged { at, what: "no whole record, and the log goes on" };
        let mut scan = self.scan;
        scan.feed(&bytes[..at(open)]).map_err(|error| damaged(error.at))?;
        if scan.position() > open {
            // Pages in what is filler.
            return Err(damaged(open));
        }
        let mut ahead = scan;
        // Where there is no record, and be it one that is not whole, the log ends.
        let _ = ahead.feed(&bytes[at(open)..]);
        let whole = ahead.position();
        if ahead.skip_filler() {
            bytes.extend(self.files.read(end, whole)?);
            self.whole = whole;
            (self.closed, self.scan, self.given) = (whole, ahead, Bytes::new());
            return Ok(Written {
                from,
                bytes: Bytes::from(bytes).slice(at(from)..),
                is_all: false,
            });
        }
        let upto = from.max(open).max(whole);
        bytes.truncate(at(upto));
        (self.closed, self.scan, self.whole) = (open, scan, whole);
        self.given = Bytes::copy_from_slice(&bytes[at(open)..]);
        Ok(Written { from, bytes: Bytes::from(bytes).slice(at(from)..), is_all })
    }

    /// The last page that is written, not too far away, and whether it is the last one of all.
    fn last_page(&mut self) -> Result<(Option<Lsn>, bool), TailError> {
        let mut page = self.closed.page_start();
        if page == self.closed && !self.is_written(page)? {
            return Ok((None, true));
        }
        while page < self.closed + READ_BYTES_MAX {
            let next = page + WAL_PAGE_SIZE;
            if !self.is_written(next)? {
                return Ok((Some(page), true));
            }
            page = next;
        }
        Ok((Some(page), false))
    }

    /// A page is that of its place or nothing at all: no segment is made of an older one.
    fn is_written(&mut self, page: Lsn) -> Result<bool, TailError> {
        let header = page + page_header::size_at(page) as u64;
        // Postgres makes a segment when it begins to write to it.
        if page.segment_offset() == 0 && !self.files.is_there(page)? {
            return match self.files.is_any_behind(page)? {
                false => Ok(false),
                true => Err(TailError::Damaged { at: page, what: "a segment is missing" }),
            };
        }
        let bytes = self.files.read(page, header)?;
        if PageHeader::parse(self.major, page, &bytes).is_ok() {
            return Ok(true);
        }
        match bytes.iter().all(|byte| *byte == 0) {
            true => Ok(false),
            false => Err(TailError::Damaged { at: page, what: "no page of this log" }),
        }
    }
}

/// The segments of a `pg_wal`.
struct Segments {
    dir: PathBuf,
    pg_tli: u32,
    /// The one that was read last, with its number.
    open: Option<(u64, File)>,
}

impl Segments {
    fn read(&mut self, from: Lsn, to: Lsn) -> Result<Vec<u8>, TailError> {
        let mut bytes = vec![0; to.bytes_since(from).unwrap_or(0) as usize];
        let mut done = 0;
        while done < bytes.len() {
            let at = from + done as u64;
            let rest = (WAL_SEGMENT_SIZE - at.segment_offset()) as usize;
            let here = rest.min(bytes.len() - done);
            let read = |segment: &File| {
                segment.read_exact_at(&mut bytes[done..done + here], at.segment_offset())
            };
            self.segment(at).and_then(read).map_err(|error| match error.kind() {
                io::ErrorKind::NotFound => {
                    TailError::Damaged { at, what: "its segment is missing" }
                }
                io::ErrorKind::UnexpectedEof => TailError::Damaged { at, what: "its segment ends" },
                _ => TailError::Io(error),
            })?;
            done += here;
        }
        Ok(bytes)
    }

    fn is_there(&mut self, at: Lsn) -> io::Result<bool> {
        match self.segment(at) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Whether there is a segment that is newer than that of `at`.
    fn is_any_behind(&self, at: Lsn) -> io::Result<bool> {
        let name = at.segment_file_name(self.pg_tli);
        let is_newer = |other: &[u8]| {
            other.len() == name.len()
                && other.starts_with(&name.as_bytes()[..8])
                && other > name.as_bytes()
        };
        for entry in Dir::read_from(&Beneath::open(&self.dir)?.dir(Path::new("."))?)? {
            if is_newer(entry?.file_name().to_bytes()) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn segment(&mut self, at: Lsn) -> io::Result<&File> {
        let number = at.segment_number();
        let open = match self.open.take().filter(|(open, _)| *open == number) {
            Some(open) => open,
            None => {
                let name = at.segment_file_name(self.pg_tli);
                (number, Beneath::open(&self.dir)?.file(Path::new(&name))?)
            }
        };
        Ok(&self.open.insert(open).1)
    }
}

#[cfg(test)]
mod tests;
