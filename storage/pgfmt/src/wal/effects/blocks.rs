//! The pages that a record references.

use std::borrow::Cow;

use treering_types::{Lsn, RelTag};

use super::{Effect, EffectFault, Effects, Located};
use crate::{
    change::{PageChange, PartBlock, PartBlocks, RecordPart},
    redo::{self, rmgr, xlog},
    version::PgMajor,
    wal::{
        record::{Block, BlockImage, RawRecord, Record},
        state::ClusterState,
    },
};

const GIST_PAGE_UPDATE: u8 = 0x00;
const GIST_PAGE_SPLIT: u8 = 0x30;
const HASH_SPLIT_ALLOCATE_PAGE: u8 = 0x40;
const HASH_SPLIT_COMPLETE: u8 = 0x60;
const HASH_MOVE_PAGE_CONTENTS: u8 = 0x70;
const HASH_SQUEEZE_PAGE: u8 = 0x80;
const HASH_DELETE: u8 = 0x90;

/// One effect for every block that the record changes.
#[inline]
pub(super) fn page_effects<'a>(
    state: &ClusterState,
    record: &'a Record<'_>,
    out: &mut Effects<'a>,
) -> Result<(), Located> {
    for block in &record.blocks {
        let pushed = push_change(state, record, block, out);
        pushed.map_err(|fault| {
            let image = block.image.as_ref().map_or(block.data, |image| image.bytes.front());
            (record.offset_of(image), fault)
        })?;
    }
    Ok(())
}

/// A record of a resource manager that is not built in and references no page: kept, because nobody knows what
/// it does. Its pages have been kept as unhandled.
pub(super) fn foreign<'a>(record: &'a Record<'_>, out: &mut Effects<'a>) -> Option<()> {
    if record.blocks.is_empty() {
        let (rmid, info) = (record.rmid, record.info);
        out.push(Effect::Unhandled {
            rel: None,
            rmid,
            info,
            record: Cow::Borrowed(record.raw.whole()),
        });
    }
    Some(())
}

/// Each change is made where it is pushed: most are records, and long enough that moving them through a chain of results
/// would be a good part of the work.
#[inline]
fn push_change<'a>(
    state: &ClusterState,
    record: &'a Record<'_>,
    block: &'a Block<'_>,
    out: &mut Effects<'a>,
) -> Result<(), EffectFault> {
    let (rel, number) = (block.rel, block.block);
    if let Some(image) = applied_image(block) {
        let image = image.restore_at(record.end)?;
        let change = match changes_after_image(record, block.id) {
            true => PageChange::ImageThenRecord(Box::new((image, cut(state, record, block)))),
            false => PageChange::Image(image),
        };
        out.push(Effect::Page { rel, block: number, change });
    } else if record.rmid == rmgr::XLOG {
        // full_page_writes was off: a hint without its image is lost, as on any standby (`xlog_redo`).
        let is_hint = record.info & 0xf0 == xlog::FPI_FOR_HINT;
        return if is_hint { Ok(()) } else { Err(EffectFault::NoImage) };
    } else if only_registered(record, block.id) {
        // Nothing happens to it.
    } else if redo::is_native(record.rmid) {
        let change = PageChange::Record(cut(state, record, block));
        out.push(Effect::Page { rel, block: number, change });
    } else {
        out.push(Effect::Page { rel, block: number, change: unhandled(record) });
    }
    Ok(())
}

/// Calls `apply` with what a record that an earlier version kept whole, having no redo for it, does to one of its
/// blocks. `raw` is the record's bytes, `end` where it ended. `None` if it is no record, or does nothing to the block.
pub(crate) fn apply_kept<T>(
    major: PgMajor,
    raw: &[u8],
    end: Lsn,
    (rel, number): (RelTag, u32),
    apply: impl FnOnce(&PageChange<'_>) -> T,
) -> Option<T> {
    // Where it began matters to messages only. Hint logging matters to Heap2 only, which was never kept.
    let raw = RawRecord { start: end, end, bytes: raw.into() };
    let record = Record::decode(major, &raw).ok().filter(|record| redo::is_native(record.rmid))?;
    let block = record.blocks.iter().find(|block| (block.rel, block.block) == (rel, number))?;
    let mut out = Effects::new();
    push_change(&ClusterState::default(), &record, block, &mut out).ok()?;
    match out.first()? {
        Effect::Page { change, .. } => Some(apply(change)),
        _ => None,
    }
}

/// The image that redo restores; one without APPLY only serves `wal_consistency_checking`.
fn applied_image<'a, 'r>(block: &'a Block<'r>) -> Option<&'a BlockImage<'r>> {
    block.image.as_ref().filter(|image| image.apply)
}

/// Blocks that redo changes after restoring their image (WAL.md E8): the complete list.
fn changes_after_image(record: &Record<'_>, block_id: u8) -> bool {
    matches!(
        (record.rmid, record.info & 0xf0, block_id),
        (rmgr::GIST, GIST_PAGE_UPDATE, 1)
            | (rmgr::GIST, GIST_PAGE_SPLIT, 0)
            | (rmgr::HASH, HASH_SPLIT_ALLOCATE_PAGE, 0)
            | (rmgr::HASH, HASH_SPLIT_COMPLETE, 0 | 1)
    )
}

/// Blocks that are referenced for their lock only (WAL.md E9): neither bytes nor LSN change.
fn only_registered(record: &Record<'_>, block_id: u8) -> bool {
    let locking = matches!(
        (record.rmid, record.info & 0xf0),
        (rmgr::HASH, HASH_MOVE_PAGE_CONTENTS | HASH_SQUEEZE_PAGE | HASH_DELETE)
    );
    locking && block_id == 0
}

fn unhandled<'a>(record: &'a Record<'_>) -> PageChange<'a> {
    let (rmid, info) = (record.rmid, record.info);
    PageChange::Unhandled { rmid, info, record: Cow::Borrowed(record.raw.whole()) }
}

/// The part of the record that redo of one block needs.
#[inline(always)]
fn cut<'a>(state: &ClusterState, record: &'a Record<'_>, block: &'a Block<'_>) -> RecordPart<'a> {
    let mut blocks = PartBlocks::new();
    for other in &record.blocks {
        let has_data = other.image.is_some() || !other.data.is_empty();
        blocks.push(PartBlock { id: other.id, block: other.block, has_data });
    }
    RecordPart {
        rmid: record.rmid,
        info: record.info,
        xid: record.xid,
        block_id: block.id,
        will_init: block.will_init,
        hints_logged: state.parameters.hints_logged(),
        blocks,
        data: Cow::Borrowed(block.data),
        main: redo::main_for(record, block.id),
    }
}
