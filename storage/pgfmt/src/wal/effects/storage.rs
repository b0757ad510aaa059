//! Relation forks, databases, tablespaces and relation maps (`catalog/storage_xlog.h`, `commands/dbcommands_xlog.h`,
//! `commands/tablespace.h`, `utils/relmapper.h`).

use bytes::Bytes;
use treering_types::{Fork, PAGE_SIZE, RelTag};

use super::{DatabaseDir, Effect, EffectFault, Effects, heap::HEAP_BLOCKS_PER_MAP_PAGE};
use crate::{change::PageChange, cursor::Cursor, relmap, version::PgMajor, wal::record::Record};

pub(super) fn smgr(
    record: &Record<'_>,
    fields: &mut Cursor<'_>,
    out: &mut Effects<'_>,
) -> Option<()> {
    const CREATE: u8 = 0x10;
    const TRUNCATE: u8 = 0x20;
    match record.rmgr_info() {
        CREATE => {
            let rel = main_fork(fields)?;
            let fork = Fork::try_from(u8::try_from(fields.u32()?).ok()?).ok()?;
            out.push(Effect::RelCreate(rel.with_fork(fork)));
        }
        TRUNCATE => {
            let blocks = fields.u32()?;
            let rel = main_fork(fields)?;
            truncate(rel, blocks, fields.u32()?, out);
        }
        _ => return None,
    }
    Some(())
}

/// `smgr_redo`: the relation is created first if it is missing; the sizes of the maps follow from the heap's, and
/// the tail of the last visibility-map page is cleared (WAL.md E2).
fn truncate(rel: RelTag, blocks: u32, flags: u32, out: &mut Effects<'_>) {
    const HEAP: u32 = 1;
    const VISIBILITY_MAP: u32 = 2;
    const FREE_SPACE_MAP: u32 = 4;
    out.push(Effect::RelCreate(rel));
    if flags & HEAP != 0 {
        out.push(Effect::RelTruncate { rel, blocks });
    }
    if flags & FREE_SPACE_MAP != 0 {
        let rel = rel.with_fork(Fork::Fsm);
        out.push(Effect::RelTruncate { rel, blocks: free_space_map_blocks(blocks) });
    }
    if flags & VISIBILITY_MAP != 0 {
        let rel = rel.with_fork(Fork::VisibilityMap);
        let map_blocks = blocks.div_ceil(HEAP_BLOCKS_PER_MAP_PAGE);
        out.push(Effect::RelTruncate { rel, blocks: map_blocks });
        if !blocks.is_multiple_of(HEAP_BLOCKS_PER_MAP_PAGE) {
            out.push(Effect::PageIfExists {
                rel,
                block: map_blocks - 1,
                change: PageChange::VisibilityTruncate { heap_blocks: blocks },
            });
        }
    }
}

/// Blocks of the free space map of a heap of `heap_blocks` (`fsm_logical_to_physical`): leaf pages in order, and
/// before the first leaf of every 4069 and 4069² the pages of the two levels above.
fn free_space_map_blocks(heap_blocks: u32) -> u32 {
    const NODES: u32 = PAGE_SIZE as u32 - 24 - 4;
    const SLOTS: u32 = NODES - (PAGE_SIZE as u32 / 2 - 1);
    let leaf = heap_blocks / SLOTS;
    let pages_up_to_leaf = (leaf + 1) + (leaf / SLOTS + 1) + (leaf / SLOTS / SLOTS + 1);
    // A leaf page that would hold nothing goes too.
    if heap_blocks.is_multiple_of(SLOTS) { pages_up_to_leaf - 1 } else { pages_up_to_leaf }
}

pub(super) fn database(
    record: &Record<'_>,
    fields: &mut Cursor<'_>,
    out: &mut Effects<'_>,
) -> Option<()> {
    const CREATE_FILE_COPY: u8 = 0x00;
    const CREATE_WAL_LOG: u8 = 0x10;
    const DROP: u8 = 0x20;
    let mut dir = || Some(DatabaseDir { database: fields.u32()?, tablespace: fields.u32()? });
    match record.rmgr_info() {
        CREATE_FILE_COPY => {
            let (to, from) = (dir()?, dir()?);
            out.push(Effect::DatabaseCopy { from, to });
        }
        CREATE_WAL_LOG => out.push(Effect::DatabaseCreate(dir()?)),
        DROP => {
            let (database, count) = (fields.u32()?, fields.count()?);
            let tablespaces = fields.u32s(count)?;
            out.extend(
                tablespaces
                    .into_iter()
                    .map(|tablespace| Effect::DatabaseDrop(DatabaseDir { tablespace, database })),
            );
        }
        _ => return None,
    }
    Some(())
}

pub(super) fn tablespace(
    record: &Record<'_>,
    fields: &mut Cursor<'_>,
    out: &mut Effects<'_>,
) -> Option<()> {
    const CREATE: u8 = 0x00;
    const DROP: u8 = 0x10;
    let tablespace = fields.u32()?;
    match record.rmgr_info() {
        CREATE => {
            let path = String::from_utf8(fields.c_string()?.to_vec()).ok()?;
            out.push(Effect::TablespaceCreate { tablespace, path });
        }
        DROP => out.push(Effect::TablespaceDrop { tablespace }),
        _ => return None,
    }
    Some(())
}

pub(super) fn rel_map(
    record: &Record<'_>,
    fields: &mut Cursor<'_>,
    major: PgMajor,
    out: &mut Effects<'_>,
) -> Result<(), EffectFault> {
    const UPDATE: u8 = 0x00;
    let (dir, map) = rel_map_update(fields)
        .filter(|_| record.rmgr_info() == UPDATE)
        .ok_or(EffectFault::Malformed)?;
    let file = Bytes::from(relmap::file_from_record(major, map)?);
    out.push(Effect::RelMap { dir, file });
    Ok(())
}

fn rel_map_update<'a>(fields: &mut Cursor<'a>) -> Option<(DatabaseDir, &'a [u8])> {
    let dir = DatabaseDir { database: fields.u32()?, tablespace: fields.u32()? };
    let size = fields.count()?;
    Some((dir, fields.slice(size)?))
}

/// A `RelFileNode` / `RelFileLocator`.
fn main_fork(fields: &mut Cursor<'_>) -> Option<RelTag> {
    Some(RelTag {
        tablespace: fields.u32()?,
        database: fields.u32()?,
        relation: fields.u32()?,
        fork: Fork::Main,
    })
}
