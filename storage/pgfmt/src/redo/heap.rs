//! Redo of the Heap resource manager: tuples inserted, deleted, updated, locked (`access/heapam_xlog.h`).
//!
//! The visibility map that these records clear is not referenced by them; ingest derives a change of its own
//! for it (see [`super::visibility`]). Nothing allocates.

#![deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::panic)]

pub(crate) mod tuple;

use self::tuple::{HEADER, Header, StoredHeader, Tid};
use super::{Context, RedoReason};
use crate::{
    change::RecordPart,
    fields::Fields,
    item::Placement,
    page::{Page, flag},
};

/// The operation bits of heap and heap2 info bytes.
pub(super) const OPERATION: u8 = 0x70;
/// The page is built from nothing.
pub(super) const INIT_PAGE: u8 = 0x80;

mod operation {
    pub const INSERT: u8 = 0x00;
    pub const DELETE: u8 = 0x10;
    pub const UPDATE: u8 = 0x20;
    pub const HOT_UPDATE: u8 = 0x40;
    pub const CONFIRM: u8 = 0x50;
    pub const LOCK: u8 = 0x60;
    pub const INPLACE: u8 = 0x70;
}

/// `XLH_*` flags of insert, delete and update records.
pub(super) mod record_flag {
    pub const INSERT_ALL_VISIBLE_CLEARED: u8 = 1;
    pub const INSERT_ALL_FROZEN_SET: u8 = 1 << 5;
    pub const DELETE_ALL_VISIBLE_CLEARED: u8 = 1;
    pub const DELETE_IS_SUPER: u8 = 1 << 3;
    pub const DELETE_IS_PARTITION_MOVE: u8 = 1 << 4;
    pub const UPDATE_OLD_ALL_VISIBLE_CLEARED: u8 = 1;
    pub const UPDATE_NEW_ALL_VISIBLE_CLEARED: u8 = 1 << 1;
    pub const UPDATE_PREFIX_FROM_OLD: u8 = 1 << 5;
    pub const UPDATE_SUFFIX_FROM_OLD: u8 = 1 << 6;
}

/// Applies a heap record to the page that `part.block_id` names.
pub(super) fn redo(
    ctx: &Context<'_>,
    part: &RecordPart<'_>,
    page: &mut Page<'_>,
) -> Result<(), RedoReason> {
    if part.info & INIT_PAGE != 0 && part.block_id == 0 {
        page.init(0);
    }
    match part.info & OPERATION {
        operation::INSERT => insert(part, page)?,
        operation::DELETE => delete(part, page)?,
        operation::UPDATE => update(part, false, page)?,
        operation::HOT_UPDATE => update(part, true, page)?,
        operation::CONFIRM => confirm(part, page)?,
        operation::LOCK => lock(part, page)?,
        operation::INPLACE => inplace(part, page)?,
        _ => return Err(RedoReason::Malformed("heap record that has no pages")),
    }
    page.set_lsn(ctx.lsn);
    Ok(())
}

/// Block number of this part's own page.
pub(super) fn own_block(part: &RecordPart<'_>) -> Result<u32, RedoReason> {
    part.block_number(part.block_id).ok_or(RedoReason::Malformed("part of a block not listed"))
}

fn insert(part: &RecordPart<'_>, page: &mut Page<'_>) -> Result<(), RedoReason> {
    let mut main = Fields::main(part);
    let offset = main.u16()?;
    let flags = main.u8()?;
    let mut data = Fields::data(part);
    let stored = StoredHeader::read(&mut data)?;
    let ctid = Tid { block: own_block(part)?, offset };
    add_tuple(page, offset, &stored.complete(part.xid, 0, ctid), data.rest())?;
    if flags & record_flag::INSERT_ALL_VISIBLE_CLEARED != 0 {
        page.clear_flags(flag::ALL_VISIBLE);
    }
    Ok(())
}

/// Puts a tuple of header and body at a free or new offset.
pub(super) fn add_tuple(
    page: &mut Page<'_>,
    offset: u16,
    header: &[u8; HEADER],
    body: &[u8],
) -> Result<(), RedoReason> {
    let (_, at) = page.reserve_item(HEADER + body.len(), nonzero(offset)?, Placement::Heap)?;
    page.write(at, header)?;
    page.write(at + HEADER, body)
}

fn nonzero(offset: u16) -> Result<u16, RedoReason> {
    if offset == 0 { Err(RedoReason::Malformed("tuple offset 0")) } else { Ok(offset) }
}

fn delete(part: &RecordPart<'_>, page: &mut Page<'_>) -> Result<(), RedoReason> {
    let mut main = Fields::main(part);
    let xmax = main.u32()?;
    let offset = main.u16()?;
    let infobits = main.u8()?;
    let flags = main.u8()?;
    let block = own_block(part)?;
    let mut header = Header::of(page, offset)?;
    header.replace_xmax_bits(infobits);
    header.set_hot_updated(false);
    if flags & record_flag::DELETE_IS_SUPER != 0 {
        header.set_xmin(0);
    } else {
        header.set_xmax(xmax);
    }
    header.clear_command_id();
    let moved = flags & record_flag::DELETE_IS_PARTITION_MOVE != 0;
    header.set_ctid(if moved { Tid::MOVED_PARTITIONS } else { Tid { block, offset } });
    page.set_prunable(part.xid);
    if flags & record_flag::DELETE_ALL_VISIBLE_CLEARED != 0 {
        page.clear_flags(flag::ALL_VISIBLE);
    }
    Ok(())
}

/// Main data of UPDATE and HOT_UPDATE (`xl_heap_update`).
struct Update {
    old_xmax: u32,
    old_offset: u16,
    old_infobits: u8,
    flags: u8,
    new_xmax: u32,
    new_tid: Tid,
    hot: bool,
}

impl Update {
    fn read(part: &RecordPart<'_>, hot: bool) -> Result<Self, RedoReason> {
        let new_block = part.block_number(0);
        let new_block = new_block.ok_or(RedoReason::Malformed("update without its new page"))?;
        let mut main = Fields::main(part);
        Ok(Update {
            old_xmax: main.u32()?,
            old_offset: main.u16()?,
            old_infobits: main.u8()?,
            flags: main.u8()?,
            new_xmax: main.u32()?,
            new_tid: Tid { block: new_block, offset: main.u16()? },
            hot,
        })
    }
}

/// Block 0 is the page of the new tuple; block 1 that of the old one, absent when they are the same.
fn update(part: &RecordPart<'_>, hot: bool, page: &mut Page<'_>) -> Result<(), RedoReason> {
    let record = Update::read(part, hot)?;
    let same_page = part.block_number(1).is_none();
    match part.block_id {
        0 if same_page => {
            update_old(part, &record, page)?;
            update_new(part, &record, true, page)
        }
        0 => update_new(part, &record, false, page),
        _ => update_old(part, &record, page),
    }
}

fn update_old(
    part: &RecordPart<'_>,
    record: &Update,
    page: &mut Page<'_>,
) -> Result<(), RedoReason> {
    let mut header = Header::of(page, record.old_offset)?;
    header.replace_xmax_bits(record.old_infobits);
    header.set_hot_updated(record.hot);
    header.set_xmax(record.old_xmax);
    header.clear_command_id();
    header.set_ctid(record.new_tid);
    page.set_prunable(part.xid);
    if record.flags & record_flag::UPDATE_OLD_ALL_VISIBLE_CLEARED != 0 {
        page.clear_flags(flag::ALL_VISIBLE);
    }
    Ok(())
}

/// The new tuple may borrow the beginning and the end of the old one's data when both share a page.
fn update_new(
    part: &RecordPart<'_>,
    record: &Update,
    same_page: bool,
    page: &mut Page<'_>,
) -> Result<(), RedoReason> {
    let mut data = Fields::data(part);
    let borrow = |flag: u8, data: &mut Fields<'_>| {
        if record.flags & flag == 0 { Ok(0) } else { data.u16().map(usize::from) }
    };
    let prefix = borrow(record_flag::UPDATE_PREFIX_FROM_OLD, &mut data)?;
    let suffix = borrow(record_flag::UPDATE_SUFFIX_FROM_OLD, &mut data)?;
    if prefix + suffix > 0 && !same_page {
        return Err(RedoReason::Malformed("update borrows from another page"));
    }
    let stored = StoredHeader::read(&mut data)?;
    let header = stored.complete(part.xid, record.new_xmax, record.new_tid);
    let offset = nonzero(record.new_tid.offset)?;
    if prefix + suffix == 0 {
        add_tuple(page, offset, &header, data.rest())?;
    } else {
        let old = page.normal_pointer(record.old_offset)?;
        let old_hoff = Header::of(page, record.old_offset)?.hoff();
        let size = HEADER + data.rest().len() + prefix + suffix;
        let (_, at) = page.reserve_item(size, offset, Placement::Heap)?;
        page.write(at, &header)?;
        let bitmap = if prefix > 0 { usize::from(stored.hoff).saturating_sub(HEADER) } else { 0 };
        page.write(at + HEADER, data.take(bitmap)?)?;
        let body = at + HEADER + bitmap;
        page.move_within(old.offset() + old_hoff, body, prefix)?;
        page.write(body + prefix, data.rest())?;
        let from = (old.offset() + old.length()).checked_sub(suffix);
        let from = from.ok_or(RedoReason::Malformed("update suffix longer than the old tuple"))?;
        page.move_within(from, at + size - suffix, suffix)?;
    }
    if record.flags & record_flag::UPDATE_NEW_ALL_VISIBLE_CLEARED != 0 {
        page.clear_flags(flag::ALL_VISIBLE);
    }
    Ok(())
}

/// A speculative insertion became real.
fn confirm(part: &RecordPart<'_>, page: &mut Page<'_>) -> Result<(), RedoReason> {
    let offset = Fields::main(part).u16()?;
    let block = own_block(part)?;
    Header::of(page, offset)?.set_ctid(Tid { block, offset });
    Ok(())
}

/// Main data of LOCK and LOCK_UPDATED.
struct Lock {
    xmax: u32,
    offset: u16,
    infobits: u8,
}

impl Lock {
    fn read(part: &RecordPart<'_>) -> Result<Self, RedoReason> {
        let mut main = Fields::main(part);
        Ok(Lock { xmax: main.u32()?, offset: main.u16()?, infobits: main.u8()? })
    }
}

fn lock(part: &RecordPart<'_>, page: &mut Page<'_>) -> Result<(), RedoReason> {
    let Lock { xmax, offset, infobits } = Lock::read(part)?;
    let block = own_block(part)?;
    let mut header = Header::of(page, offset)?;
    header.replace_xmax_bits(infobits);
    if header.is_only_locked() {
        header.set_hot_updated(false);
        header.set_ctid(Tid { block, offset });
    }
    header.set_xmax(xmax);
    header.clear_command_id();
    Ok(())
}

/// LOCK_UPDATED, of Heap2: an already updated version is locked; its chain link stays.
pub(super) fn lock_updated(part: &RecordPart<'_>, page: &mut Page<'_>) -> Result<(), RedoReason> {
    let Lock { xmax, offset, infobits } = Lock::read(part)?;
    let mut header = Header::of(page, offset)?;
    header.replace_xmax_bits(infobits);
    header.set_xmax(xmax);
    Ok(())
}

/// A tuple's data is overwritten by as many bytes, outside any transaction.
fn inplace(part: &RecordPart<'_>, page: &mut Page<'_>) -> Result<(), RedoReason> {
    let offset = Fields::main(part).u16()?;
    let hoff = Header::of(page, offset)?.hoff();
    let data = page.item_mut(offset)?.get_mut(hoff..).unwrap_or_default();
    if data.len() != part.data.len() {
        return Err(RedoReason::Malformed("in-place update of another length"));
    }
    data.copy_from_slice(&part.data);
    Ok(())
}

#[cfg(test)]
mod tests;
