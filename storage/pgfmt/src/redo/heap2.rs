//! Redo of the Heap2 resource manager: pruning, freezing, visibility, multi-inserts (`access/heapam_xlog.h`).
//!
//! What differs between the majors is how pruning and freezing are written down; [`prune`] turns every format
//! into the same few steps.

#![deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::panic)]

mod prune;

use super::{
    Context, RedoReason,
    heap::{
        self,
        tuple::{StoredHeader, Tid},
    },
    visibility,
};
use crate::{
    change::RecordPart,
    fields::Fields,
    page::{Page, flag},
    version::PruneFormat,
};

mod operation {
    pub const PRUNE: u8 = 0x10;
    pub const VACUUM: u8 = 0x20;
    pub const FREEZE_PAGE: u8 = 0x30;
    pub const VISIBLE: u8 = 0x40;
    pub const MULTI_INSERT: u8 = 0x50;
    pub const LOCK_UPDATED: u8 = 0x60;
}

/// Applies a heap2 record to the page that `part.block_id` names.
pub(super) fn redo(
    ctx: &Context<'_>,
    part: &RecordPart<'_>,
    page: &mut Page<'_>,
) -> Result<(), RedoReason> {
    use operation::*;
    match part.info & heap::OPERATION {
        VISIBLE => return visible(ctx, part, page),
        operation @ (PRUNE | VACUUM | FREEZE_PAGE) => {
            match (ctx.major.layout().records.prune, operation) {
                (PruneFormat::Unified, _) => prune::unified(part, page)?,
                (_, PRUNE) => prune::prune(part, page)?,
                (_, VACUUM) => prune::vacuum(part, page)?,
                (PruneFormat::SharedPlans, _) => prune::freeze_plans(part, page)?,
                (PruneFormat::PlanPerTuple, _) => prune::freeze_tuples(part, page)?,
            }
        }
        MULTI_INSERT => multi_insert(part, page)?,
        LOCK_UPDATED => heap::lock_updated(part, page)?,
        _ => return Err(RedoReason::Malformed("heap2 record that has no pages")),
    }
    page.set_lsn(ctx.lsn);
    Ok(())
}

/// Block 0 is the visibility map page, block 1 the heap page.
///
/// The heap page's LSN moves only where hint bits are logged (WAL.md E10).
fn visible(
    ctx: &Context<'_>,
    part: &RecordPart<'_>,
    page: &mut Page<'_>,
) -> Result<(), RedoReason> {
    if part.block_id != 0 {
        page.set_flags(flag::ALL_VISIBLE);
        if part.hints_logged {
            page.set_lsn(ctx.lsn);
        }
        return Ok(());
    }
    let mut main = Fields::main(part);
    main.skip(4)?; // the conflict horizon
    let heap_block = part.block_number(1);
    let heap_block = heap_block.ok_or(RedoReason::Malformed("VISIBLE without a heap block"))?;
    visibility::set(heap_block, main.u8()?, ctx.lsn, page)
}

fn multi_insert(part: &RecordPart<'_>, page: &mut Page<'_>) -> Result<(), RedoReason> {
    let init = part.info & heap::INIT_PAGE != 0;
    if init {
        page.init(0);
    }
    let mut main = Fields::main(part);
    let flags = main.u8()?;
    main.skip(1)?;
    let count = main.u16()?;
    let block = heap::own_block(part)?;
    let mut data = Fields::data(part);
    for index in 0..count {
        let offset = if init { index.saturating_add(1) } else { main.u16()? };
        // Each tuple begins at an even position.
        data.skip((part.data.len() - data.rest().len()) % 2)?;
        let length = data.u16()?;
        let stored = StoredHeader::read(&mut data)?;
        let header = stored.complete(part.xid, 0, Tid { block, offset });
        heap::add_tuple(page, offset, &header, data.take(usize::from(length))?)?;
    }
    if !data.is_empty() {
        return Err(RedoReason::Malformed("bytes after the last tuple"));
    }
    if flags & heap::record_flag::INSERT_ALL_VISIBLE_CLEARED != 0 {
        page.clear_flags(flag::ALL_VISIBLE);
    }
    if flags & heap::record_flag::INSERT_ALL_FROZEN_SET != 0 {
        page.set_flags(flag::ALL_VISIBLE);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
