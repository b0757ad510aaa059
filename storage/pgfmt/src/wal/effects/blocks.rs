//! The pages that a record references.

use treering_types::Lsn;

use super::{Effect, EffectFault};
use crate::{
    change::{PageChange, PartBlock, RecordPart},
    redo::{rmgr, xlog},
    wal::{
        record::{Block, BlockImage, Record},
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
pub(super) fn page_effects(
    state: &ClusterState,
    record: &Record,
    out: &mut Vec<Effect>,
) -> Result<(), EffectFault> {
    for block in &record.blocks {
        if let Some(change) = change_of(state, record, block)? {
            out.push(Effect::Page { rel: block.rel, block: block.block, change });
        }
    }
    Ok(())
}

/// A record of a resource manager that is not built in and references no page: kept, because nobody knows what
/// it does. Its pages have been kept as unhandled.
pub(super) fn foreign(record: &Record, out: &mut Vec<Effect>) -> Option<()> {
    if record.blocks.is_empty() {
        let (rmid, info) = (record.rmid, record.info);
        out.push(Effect::Unhandled { rel: None, rmid, info, record: record.raw.clone() });
    }
    Some(())
}

fn change_of(
    state: &ClusterState,
    record: &Record,
    block: &Block,
) -> Result<Option<PageChange>, EffectFault> {
    if let Some(image) = applied_image(block) {
        if changes_after_image(record, block.id) {
            return Ok(Some(unhandled(record)));
        }
        return restore(image, record.end).map(Some);
    }
    if record.rmid == rmgr::XLOG {
        // full_page_writes was off: a hint without its image is lost, as on any standby (`xlog_redo`).
        let is_hint = record.info & 0xf0 == xlog::FPI_FOR_HINT;
        return if is_hint { Ok(None) } else { Err(EffectFault::NoImage) };
    }
    if handled(record.rmid) {
        return Ok(Some(PageChange::Record(cut(state, record, block))));
    }
    Ok((!only_registered(record, block.id)).then(|| unhandled(record)))
}

/// The image that redo restores; one without APPLY only serves `wal_consistency_checking`.
fn applied_image(block: &Block) -> Option<&BlockImage> {
    block.image.as_ref().filter(|image| image.apply)
}

fn restore(image: &BlockImage, end: Lsn) -> Result<PageChange, EffectFault> {
    Ok(PageChange::Image(image.restore_at(end)?))
}

/// Resource managers with redo of their own in this version.
fn handled(rmid: u8) -> bool {
    matches!(
        rmid,
        rmgr::HEAP2 | rmgr::HEAP | rmgr::BTREE | rmgr::GIN | rmgr::SEQUENCE | rmgr::GENERIC
    )
}

/// Blocks that redo changes after restoring their image (WAL.md E8): the complete list.
fn changes_after_image(record: &Record, block_id: u8) -> bool {
    matches!(
        (record.rmid, record.info & 0xf0, block_id),
        (rmgr::GIST, GIST_PAGE_UPDATE, 1)
            | (rmgr::GIST, GIST_PAGE_SPLIT, 0)
            | (rmgr::HASH, HASH_SPLIT_ALLOCATE_PAGE, 0)
            | (rmgr::HASH, HASH_SPLIT_COMPLETE, 0 | 1)
    )
}

/// Blocks that are referenced for their lock only (WAL.md E9): neither bytes nor LSN change.
fn only_registered(record: &Record, block_id: u8) -> bool {
    let locking = matches!(
        (record.rmid, record.info & 0xf0),
        (rmgr::HASH, HASH_MOVE_PAGE_CONTENTS | HASH_SQUEEZE_PAGE | HASH_DELETE)
    );
    locking && block_id == 0
}

fn unhandled(record: &Record) -> PageChange {
    let (rmid, info) = (record.rmid, record.info);
    PageChange::Unhandled { rmid, info, record: record.raw.clone() }
}

/// The part of the record that redo of one block needs.
fn cut(state: &ClusterState, record: &Record, block: &Block) -> RecordPart {
    let blocks = record.blocks.iter().map(|other| PartBlock {
        id: other.id,
        block: other.block,
        has_data: other.image.is_some() || !other.data.is_empty(),
    });
    RecordPart {
        rmid: record.rmid,
        info: record.info,
        xid: record.xid,
        block_id: block.id,
        will_init: block.will_init,
        hints_logged: state.parameters.hints_logged(),
        blocks: blocks.collect(),
        data: block.data.clone(),
        main: record.main.clone(),
    }
}
