//! Visibility-map bits that heap records clear without referencing the map (WAL.md E1).
//!
//! Stock redo does this unconditionally and before it looks at the heap page, so it is derived also when the heap
//! block carries an image. The map page's LSN stays. Record layouts: `access/heapam_xlog.h`, alike in 15 to 18.

use treering_types::{Fork, PAGE_SIZE};

use super::{Effect, Effects};
use crate::{
    change::PageChange,
    cursor::Cursor,
    wal::{record::Record, state::ClusterState},
};

/// Heap blocks that one visibility-map page covers: two bits each, in the page behind its header.
pub(super) const HEAP_BLOCKS_PER_MAP_PAGE: u32 = (PAGE_SIZE as u32 - 24) * 4;

const ALL_FROZEN: u8 = 2;
const BOTH_BITS: u8 = 3;
/// Operation bits of the info byte; 0x80 says that the page is initialised.
const OPERATION: u8 = 0x70;

pub(super) fn heap(
    record: &Record<'_>,
    fields: &mut Cursor<'_>,
    out: &mut Effects<'_>,
) -> Option<()> {
    const INSERT: u8 = 0x00;
    const DELETE: u8 = 0x10;
    const UPDATE: u8 = 0x20;
    const HOT_UPDATE: u8 = 0x40;
    const LOCK: u8 = 0x60;
    match record.info & OPERATION {
        INSERT => clear_if(byte_at(fields, 2)? & 1 != 0, record, 0, BOTH_BITS, out),
        DELETE => clear_if(byte_at(fields, 7)? & 1 != 0, record, 0, BOTH_BITS, out),
        UPDATE | HOT_UPDATE => {
            let flags = byte_at(fields, 7)?;
            // Block 1 is the old page, present only if it is another one.
            let old_id = if record.block(1).is_some() { 1 } else { 0 };
            clear_if(flags & 1 != 0, record, old_id, BOTH_BITS, out);
            clear_if(flags & 2 != 0, record, 0, BOTH_BITS, out);
        }
        LOCK => clear_if(byte_at(fields, 7)? & 1 != 0, record, 0, ALL_FROZEN, out),
        _ => {}
    }
    Some(())
}

pub(super) fn heap2(
    state: &mut ClusterState,
    record: &Record<'_>,
    fields: &mut Cursor<'_>,
    out: &mut Effects<'_>,
) -> Option<()> {
    const MULTI_INSERT: u8 = 0x50;
    const LOCK_UPDATED: u8 = 0x60;
    const NEW_CID: u8 = 0x70;
    match record.info & OPERATION {
        MULTI_INSERT => clear_if(byte_at(fields, 0)? & 1 != 0, record, 0, BOTH_BITS, out),
        LOCK_UPDATED => clear_if(byte_at(fields, 7)? & 1 != 0, record, 0, ALL_FROZEN, out),
        NEW_CID => state.note_xid(fields.u32()?),
        _ => {}
    }
    Some(())
}

/// The byte behind the next `skipped` ones: the flags of a record.
fn byte_at(fields: &mut Cursor<'_>, skipped: usize) -> Option<u8> {
    fields.skip(skipped)?;
    fields.u8()
}

fn clear_if(cleared: bool, record: &Record<'_>, block_id: u8, bits: u8, out: &mut Effects<'_>) {
    let Some(heap) = record.block(block_id).filter(|_| cleared) else { return };
    out.push(Effect::PageIfExists {
        rel: heap.rel.with_fork(Fork::VisibilityMap),
        block: heap.block / HEAP_BLOCKS_PER_MAP_PAGE,
        change: PageChange::VisibilityClear { heap_block: heap.block, bits },
    });
}
