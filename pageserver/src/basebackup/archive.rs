//! The tar stream: ustar headers, files in the order of the plan, `pg_control` and the description last.

use bytes::{Bytes, BytesMut};
use tokio::sync::mpsc::Sender;
use treering_engine::{EngineError, Timeline};
use treering_pgfmt::{checksum, relpath, version::PgMajor};
use treering_types::{Key, PAGE_SIZE, RelTag, SlruKind};

use super::{
    pages::{self, Pages},
    plan::{Plan, RelationFile, SlruRange},
    start::{START_FILE, UnreadableRelation},
};
use crate::{clock, error::ServiceError};

/// Handed on at this size.
const CHUNK_BYTES: usize = 256 << 10;
const TAR_BLOCK: usize = 512;
const DIRECTORY_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;
/// Pages in one SLRU segment file (`SLRU_PAGES_PER_SEGMENT`).
const SLRU_SEGMENT_PAGES: u32 = 32;
const ZEROS: [u8; PAGE_SIZE] = [0; PAGE_SIZE];

type Sink = Sender<Result<Bytes, ServiceError>>;

/// Writes the whole archive. Blocking; ends early without an error when nobody takes the chunks any more.
///
/// # Errors
/// Pages that cannot be read, except for those that this version has no redo for.
pub(super) fn write(timeline: &Timeline, plan: Plan, sink: &Sink) -> Result<(), ServiceError> {
    let mut tar =
        Tar { out: BytesMut::with_capacity(2 * CHUNK_BYTES), sink, time: clock::unix_seconds() };
    match write_all(timeline, plan, &mut tar) {
        Err(ServiceError::Shutdown) if sink.is_closed() => Ok(()),
        other => other,
    }
}

fn write_all(timeline: &Timeline, mut plan: Plan, tar: &mut Tar) -> Result<(), ServiceError> {
    for directory in &plan.directories {
        tar.directory(directory)?;
    }
    for (path, bytes) in &plan.files {
        tar.file(path, bytes)?;
    }
    let slru_keys = plan.slru_segments.iter().flat_map(|segment| segment.keys());
    pages::with_read_ahead(timeline, plan.lsn, slru_keys, |pages| {
        plan.slru_segments.iter().try_for_each(|segment| slru_segment(tar, pages, segment))
    })?;
    let keys = plan.relations.iter().flat_map(|file| {
        let rel = file.pages_of;
        (0..file.blocks).map(move |block| Key::rel_block(rel, block))
    });
    let mut unreadable = Vec::new();
    pages::with_read_ahead(timeline, plan.lsn, keys, |pages| {
        let mut relations = plan.relations.iter();
        relations.try_for_each(|file| {
            let found = relation(tar, pages, plan.major, plan.checksums, file)?;
            unreadable.extend(found);
            Ok(())
        })
    })?;
    plan.start.unreadable = unreadable;
    let (path, control) = plan.control_file();
    tar.file(path, control)?;
    let start = serde_json::to_vec(&plan.start).map_err(std::io::Error::from)?;
    tar.file(START_FILE, &start)?;
    tar.end()
}

/// One SLRU segment file: whole from its first page on, up to the range's last page.
#[derive(Clone, Copy)]
pub(super) struct Segment {
    range: SlruRange,
    pub(super) number: u32,
    pub(super) pages: u32,
}

impl Segment {
    fn keys(self) -> impl Iterator<Item = Key> {
        self.page_numbers().map(move |page| Key::slru(self.range.kind, page))
    }

    pub(super) fn kind(&self) -> SlruKind {
        self.range.kind
    }

    /// Below the data directory.
    pub(super) fn path(&self) -> String {
        format!("{}/{:04X}", self.range.kind.directory(), self.number)
    }

    /// Neither the range's first nor its last: every page was once needed, and no new one is made in it.
    pub(super) fn is_inside(&self) -> bool {
        let ends = [self.range.first, self.range.last].map(|page| page / SLRU_SEGMENT_PAGES);
        !ends.contains(&self.number) && self.pages == SLRU_SEGMENT_PAGES
    }

    fn page_numbers(&self) -> impl Iterator<Item = u32> + use<> {
        let first = self.number * SLRU_SEGMENT_PAGES;
        first..first + self.pages
    }

    /// Pages outside the range, and the last one, which is made when its first entry is: zeros when not there.
    fn may_be_missing(&self, page: u32) -> bool {
        let range = &self.range;
        let within = match range.first <= range.last {
            true => range.first <= page && page < range.last,
            false => page >= range.first || page < range.last,
        };
        range.is_sparse || !within
    }
}

pub(super) fn segments(range: SlruRange) -> impl Iterator<Item = Segment> {
    let (first, last) = (range.first / SLRU_SEGMENT_PAGES, range.last / SLRU_SEGMENT_PAGES);
    let count = range.pages.div_ceil(SLRU_SEGMENT_PAGES);
    let steps = if first <= last && range.first <= range.last {
        last - first
    } else {
        count - first + last
    };
    (0..=steps).map(move |step| {
        let number = (first + step) % count;
        let start = number * SLRU_SEGMENT_PAGES;
        let is_last = step == steps;
        let until_end = range.pages - start;
        let pages = if is_last { range.last - start + 1 } else { SLRU_SEGMENT_PAGES };
        Segment { range, number, pages: pages.min(until_end) }
    })
}

fn slru_segment(tar: &mut Tar, pages: &mut Pages, segment: &Segment) -> Result<(), ServiceError> {
    tar.header(&segment.path(), u64::from(segment.pages) * PAGE_SIZE as u64, FILE_MODE)?;
    for page_no in segment.page_numbers() {
        match pages.next() {
            Ok(page) => tar.bytes(&page[..])?,
            Err(EngineError::NoPage { .. }) if segment.may_be_missing(page_no) => {
                tar.bytes(&ZEROS)?
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn relation(
    tar: &mut Tar,
    pages: &mut Pages,
    major: PgMajor,
    checksums: bool,
    file: &RelationFile,
) -> Result<Option<UnreadableRelation>, ServiceError> {
    let mut unreadable = None;
    let mut block = 0;
    // A relation without blocks has one empty file; a full last segment has no empty one behind it.
    let segment_count = file.blocks.div_ceil(relpath::SEGMENT_BLOCKS).max(1);
    for segment in 0..segment_count {
        let end = (segment + 1).saturating_mul(relpath::SEGMENT_BLOCKS).min(file.blocks);
        let path = relpath::path_of(major, file.name, segment);
        tar.header(&path, u64::from(end - block) * PAGE_SIZE as u64, FILE_MODE)?;
        while block < end {
            match pages.next() {
                Ok(mut page) => {
                    if checksums {
                        checksum::set_checksum(&mut page, block);
                    }
                    tar.bytes(&page[..])?;
                }
                Err(error) if pages::is_unhandled(&error) => {
                    tar.bytes(&pages::refused_page(&error.to_string())[..])?;
                    let known = unreadable
                        .get_or_insert_with(|| first_unreadable(major, file.name, &error));
                    known.blocks += 1;
                }
                Err(error) => return Err(error.into()),
            }
            block += 1;
        }
    }
    Ok(unreadable)
}

fn first_unreadable(major: PgMajor, relation: RelTag, error: &EngineError) -> UnreadableRelation {
    let path = relpath::path_of(major, relation, 0);
    UnreadableRelation { relation, path, blocks: 0, error: error.to_string() }
}

struct Tar<'a> {
    out: BytesMut,
    sink: &'a Sink,
    /// Unix seconds, the same for all files.
    time: i64,
}

impl Tar<'_> {
    fn directory(&mut self, path: &str) -> Result<(), ServiceError> {
        self.entry(path, tar::EntryType::Directory, 0, DIRECTORY_MODE)
    }

    /// A file whose bytes follow; their number must be a multiple of the tar block.
    fn header(&mut self, path: &str, size: u64, mode: u32) -> Result<(), ServiceError> {
        self.entry(path, tar::EntryType::Regular, size, mode)
    }

    fn file(&mut self, path: &str, bytes: &[u8]) -> Result<(), ServiceError> {
        self.header(path, bytes.len() as u64, FILE_MODE)?;
        self.bytes(bytes)?;
        let padding = bytes.len().next_multiple_of(TAR_BLOCK) - bytes.len();
        self.bytes(&ZEROS[..padding])
    }

    fn entry(
        &mut self,
        path: &str,
        kind: tar::EntryType,
        size: u64,
        mode: u32,
    ) -> Result<(), ServiceError> {
        let mut header = tar::Header::new_ustar();
        header.set_path(path)?;
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_mode(mode);
        header.set_mtime(self.time.max(0) as u64);
        header.set_uid(0);
        header.set_gid(0);
        header.set_cksum();
        self.bytes(header.as_bytes())
    }

    fn bytes(&mut self, bytes: &[u8]) -> Result<(), ServiceError> {
        self.out.extend_from_slice(bytes);
        if self.out.len() >= CHUNK_BYTES { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), ServiceError> {
        let chunk = self.out.split().freeze();
        self.out.reserve(2 * CHUNK_BYTES);
        self.sink.blocking_send(Ok(chunk)).map_err(|_| ServiceError::Shutdown)
    }

    /// Two zero blocks.
    fn end(&mut self) -> Result<(), ServiceError> {
        self.bytes(&ZEROS[..2 * TAR_BLOCK])?;
        self.flush()
    }
}
