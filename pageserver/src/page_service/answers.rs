//! Questions about pages, answered from the engine at one LSN. Blocking.

use std::fmt;

use bytes::BytesMut;
use treering_engine::{Direction, EngineError, RelMeta};
use treering_pgfmt::checksum;
use treering_types::{Fork, Key, KeyClass, Lsn, PAGE_SIZE, SlruKind};
use treering_wire::{
    backend::Writer,
    pagestream::{Answer, Header, Question, Request, Response, put_page},
};

use crate::live::LiveTimeline;

/// Pages in one SLRU segment file (`SLRU_PAGES_PER_SEGMENT`).
const SLRU_SEGMENT_PAGES: u32 = 32;

/// Answers every request, in order, and counts the errors among the answers. Pages are read in one engine batch.
pub(super) fn answer(
    live: &LiveTimeline,
    requests: &[Request],
    lsn: Lsn,
    out: &mut Writer,
) -> usize {
    let keys: Vec<Key> = requests.iter().filter_map(page_key).collect();
    let mut pages = live.timeline.get_pages(&keys, lsn).into_iter();
    let checksums = live.has_checksums();
    let mut failed = 0;
    for request in requests {
        let Request { header, question } = *request;
        let answered = match question {
            Question::Page { rel, block } => match (pages.next(), &checksums) {
                (Some(Ok(mut page)), Ok(checksums)) => {
                    if *checksums {
                        checksum::set_checksum(&mut page, block);
                    }
                    out.copy_data_with(|body| put_page(body, header, rel, block, &page[..]));
                    continue;
                }
                (Some(Ok(_)), Err(error)) => error_answer(error),
                (Some(Err(error)), _) => error_answer(&error),
                (None, _) => error_answer(&EngineError::Shutdown),
            },
            other => other_answer(live, other, lsn).unwrap_or_else(|error| error_answer(&error)),
        };
        failed += usize::from(matches!(answered, Answer::Error { .. }));
        put(out, header, answered);
    }
    failed
}

fn page_key(request: &Request) -> Option<Key> {
    match request.question {
        Question::Page { rel, block } => Some(Key::rel_block(rel, block)),
        Question::Exists(_)
        | Question::Blocks(_)
        | Question::DatabaseSize { .. }
        | Question::SlruSegment { .. } => None,
    }
}

fn put(out: &mut Writer, header: Header, answer: Answer) {
    out.copy_data_with(|body| Response { header, answer }.encode(body));
}

fn error_answer(error: &impl fmt::Display) -> Answer {
    Answer::Error { message: error.to_string() }
}

fn other_answer(live: &LiveTimeline, question: Question, lsn: Lsn) -> Result<Answer, EngineError> {
    let timeline = &live.timeline;
    Ok(match question {
        Question::Exists(rel) => {
            Answer::Exists { rel, exists: timeline.rel_meta(rel, lsn)?.is_some() }
        }
        Question::Blocks(rel) => {
            let meta = timeline.rel_meta(rel, lsn)?;
            let blocks = meta.ok_or(EngineError::NoRelation { rel, lsn })?.blocks;
            Answer::Blocks { rel, blocks }
        }
        Question::DatabaseSize { database } => {
            Answer::DatabaseSize { database, bytes: database_bytes(live, database, lsn)? }
        }
        Question::SlruSegment { kind, segment } => slru_segment(live, kind, segment, lsn)?,
        Question::Page { rel, block } => {
            let page = timeline.get_page(Key::rel_block(rel, block), lsn)?;
            Answer::Page { rel, block, page: page.to_vec().into() }
        }
    })
}

/// Main forks in all tablespaces.
fn database_bytes(live: &LiveTimeline, database: u32, lsn: Lsn) -> Result<i64, EngineError> {
    let range = Key::class_range(KeyClass::RelMeta);
    let mut bytes = 0;
    for (key, at, value) in live.timeline.scan(range, lsn, Direction::Forward, usize::MAX)? {
        if !key.rel().is_some_and(|rel| rel.database == database && rel.fork == Fork::Main) {
            continue;
        }
        let timeline = live.id();
        let meta = RelMeta::decode(&value).map_err(|what| EngineError::CorruptValue {
            timeline,
            key,
            lsn: at,
            what: what.to_owned(),
        })?;
        bytes += i64::from(meta.blocks) * PAGE_SIZE as i64;
    }
    Ok(bytes)
}

/// The number by which page requests name an SLRU: as published, and 3 for `pg_commit_ts`.
pub(crate) fn slru_number(kind: SlruKind) -> u8 {
    match kind {
        SlruKind::Xact => 0,
        SlruKind::MultiMembers => 1,
        SlruKind::MultiOffsets => 2,
        SlruKind::CommitTs => 3,
    }
}

/// The pages of a segment up to the first that does not exist. Of `pg_commit_ts` all: a page of it can come into being
/// without WAL, and a missing one is zeros.
fn slru_segment(
    live: &LiveTimeline,
    number: u8,
    segment: u32,
    lsn: Lsn,
) -> Result<Answer, EngineError> {
    let Some(kind) = SlruKind::ALL.into_iter().find(|kind| slru_number(*kind) == number) else {
        return Ok(error_answer(&format!("{number} names no SLRU")));
    };
    let Some(first) = segment.checked_mul(SLRU_SEGMENT_PAGES) else {
        return Ok(error_answer(&format!("SLRU segment {segment} cannot exist")));
    };
    let keys: Vec<Key> =
        (first..=first + (SLRU_SEGMENT_PAGES - 1)).map(|page| Key::slru(kind, page)).collect();
    let mut pages = BytesMut::new();
    for page in live.timeline.get_pages(&keys, lsn) {
        match page {
            Ok(page) => pages.extend_from_slice(&page[..]),
            Err(EngineError::NoPage { .. }) if kind == SlruKind::CommitTs => {
                pages.extend_from_slice(&[0; PAGE_SIZE]);
            }
            Err(EngineError::NoPage { .. }) => break,
            Err(error) => return Err(error),
        }
    }
    Ok(Answer::SlruSegment { kind: number, segment, pages: pages.freeze() })
}
