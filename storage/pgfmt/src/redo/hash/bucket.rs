//! Bucket and overflow pages: their tuples and the chain they form.
//!
//! Tuples are sorted by hash value within a page; where one goes is in the record. A bucket's chain is doubly
//! linked, except that its primary page keeps a bucket number in place of the link back.

#![deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::panic)]

use super::{
    RedoReason, index_tuple,
    page::{self, Special, flag},
};
use crate::{
    change::RecordPart,
    fields::{Fields, U16s},
    item::Placement,
    page::{Page, max_align},
    version::RecordRules,
};

/// INSERT: main data is the offset number, block data the tuple.
pub(super) fn insert(part: &RecordPart<'_>, page: &mut Page<'_>) -> Result<(), RedoReason> {
    let offset = Fields::main(part).u16()?;
    page.add_item(&part.data, offset, Placement::Insert).map(|_| ())
}

/// ADD_OVFL_PAGE block 0: a new last page of the chain; block data is the bucket.
pub(super) fn init_overflow(part: &RecordPart<'_>, page: &mut Page<'_>) -> Result<(), RedoReason> {
    let bucket = Fields::data(part).u32()?;
    let prev = other_block(part, 1)?;
    page::init(page, Special { prev, bucket, flags: flag::OVERFLOW, ..Special::default() })
}

/// ADD_OVFL_PAGE block 1: the page that was last in the chain.
pub(super) fn link_overflow(part: &RecordPart<'_>, page: &mut Page<'_>) -> Result<(), RedoReason> {
    let next = other_block(part, 0)?;
    Special::edit(page, |special| special.next = next)
}

fn other_block(part: &RecordPart<'_>, id: u8) -> Result<u32, RedoReason> {
    part.block_number(id).ok_or(RedoReason::Malformed("record without its neighbour page"))
}

/// SPLIT_ALLOCATE_PAGE block 0: the bucket that is split, also after its image was restored.
pub(super) fn start_split(part: &RecordPart<'_>, page: &mut Page<'_>) -> Result<(), RedoReason> {
    let mut main = Fields::main(part);
    let (new_bucket, flags) = (main.u32()?, main.u16()?);
    Special::edit(page, |special| {
        special.flags = flags;
        special.prev = new_bucket;
    })
}

/// SPLIT_ALLOCATE_PAGE block 1: the bucket that a split fills.
pub(super) fn init_split(part: &RecordPart<'_>, page: &mut Page<'_>) -> Result<(), RedoReason> {
    let mut main = Fields::main(part);
    let (bucket, _old_flags, flags) = (main.u32()?, main.u16()?, main.u16()?);
    page::init(page, Special { prev: bucket, bucket, flags, ..Special::default() })
}

/// SPLIT_COMPLETE: main data is the flags of block 0, then those of block 1; also after an image.
pub(super) fn finish_split(part: &RecordPart<'_>, page: &mut Page<'_>) -> Result<(), RedoReason> {
    let mut main = Fields::main(part);
    main.skip(2 * usize::from(part.block_id))?;
    let flags = main.u16()?;
    Special::edit(page, |special| special.flags = flags)
}

/// MOVE_PAGE_CONTENTS block 1: tuples from the end of the chain. Main data begins with their number.
pub(super) fn receive(part: &RecordPart<'_>, page: &mut Page<'_>) -> Result<(), RedoReason> {
    add_tuples(Fields::main(part).u16()?, &part.data, page)
}

/// MOVE_PAGE_CONTENTS block 2: the tuples are gone from where they were.
pub(super) fn delete_tuples(part: &RecordPart<'_>, page: &mut Page<'_>) -> Result<(), RedoReason> {
    page.index_multi_delete(offsets(&part.data)?.iter())
}

/// SQUEEZE_PAGE block 1: the last tuples of a page that is freed, and the link past it if it came next.
pub(super) fn receive_last(part: &RecordPart<'_>, page: &mut Page<'_>) -> Result<(), RedoReason> {
    let squeeze = Squeeze::read(part)?;
    add_tuples(squeeze.tuples, &part.data, page)?;
    match squeeze.write_page_is_previous {
        true => Special::edit(page, |special| special.next = squeeze.next),
        false => Ok(()),
    }
}

/// SQUEEZE_PAGE block 3: the page before the freed one.
pub(super) fn link_past_freed(
    part: &RecordPart<'_>,
    page: &mut Page<'_>,
) -> Result<(), RedoReason> {
    let next = Squeeze::read(part)?.next;
    Special::edit(page, |special| special.next = next)
}

/// SQUEEZE_PAGE block 4: the page after the freed one.
pub(super) fn link_before_freed(
    part: &RecordPart<'_>,
    page: &mut Page<'_>,
) -> Result<(), RedoReason> {
    let prev = Squeeze::read(part)?.prev;
    Special::edit(page, |special| special.prev = prev)
}

/// DELETE: block data is the offset numbers, main data begins with whether no dead tuples are left.
pub(super) fn delete(part: &RecordPart<'_>, page: &mut Page<'_>) -> Result<(), RedoReason> {
    let clears_dead_hint = Fields::main(part).u8()? != 0;
    delete_tuples(part, page)?;
    match clears_dead_hint {
        true => page::clear_flag(page, flag::HAS_DEAD_TUPLES),
        false => Ok(()),
    }
}

/// VACUUM_ONE_PAGE block 0: tuples known dead make room for an insertion.
pub(super) fn vacuum(
    rules: &RecordRules,
    part: &RecordPart<'_>,
    page: &mut Page<'_>,
) -> Result<(), RedoReason> {
    let mut main = Fields::main(part);
    let count = vacuumed(rules, &mut main)?;
    page.index_multi_delete(main.u16s(count as usize)?.iter())?;
    page::clear_flag(page, flag::HAS_DEAD_TUPLES)
}

/// How many tuples VACUUM_ONE_PAGE removes; leaves `main` at their offset numbers, 8 bytes into the record.
pub(super) fn vacuumed(rules: &RecordRules, main: &mut Fields<'_>) -> Result<u32, RedoReason> {
    let _horizon = main.u32()?;
    if !rules.has_catalog_flag {
        return main.u32();
    }
    let count = main.u16()?;
    // The catalog flag and a byte of padding.
    main.skip(2)?;
    Ok(u32::from(count))
}

/// Main data of SQUEEZE_PAGE (`xl_hash_squeeze_page`).
pub(super) struct Squeeze {
    /// The page before the freed one.
    pub prev: u32,
    /// The page after the freed one.
    pub next: u32,
    /// Tuples for the write page.
    pub tuples: u16,
    /// The write page is the page before the freed one.
    pub write_page_is_previous: bool,
}

impl Squeeze {
    pub fn read(part: &RecordPart<'_>) -> Result<Self, RedoReason> {
        let mut main = Fields::main(part);
        let (prev, next, tuples) = (main.u32()?, main.u32()?, main.u16()?);
        let _write_page_is_primary = main.u8()?;
        Ok(Squeeze { prev, next, tuples, write_page_is_previous: main.u8()? != 0 })
    }
}

/// Adds `count` tuples: first their offset numbers, then the tuples, each rounded up to 8 bytes.
fn add_tuples(count: u16, data: &[u8], page: &mut Page<'_>) -> Result<(), RedoReason> {
    const SHORT: RedoReason = RedoReason::Malformed("moved tuple is cut off");
    let mut data = Fields::new(data);
    for offset in data.u16s(usize::from(count))?.iter() {
        let size = max_align(index_tuple::leading(data.rest())?.len());
        let tuple = data.take(size).map_err(|_| SHORT)?;
        page.add_item(tuple, offset, Placement::Insert)?;
    }
    if data.is_empty() { Ok(()) } else { Err(RedoReason::Malformed("more tuples than offsets")) }
}

/// Block data that is nothing but offset numbers.
fn offsets(data: &[u8]) -> Result<U16s<'_>, RedoReason> {
    Fields::new(data).u16s(data.len() / 2)
}
