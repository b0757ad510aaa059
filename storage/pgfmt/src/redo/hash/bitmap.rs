//! Bitmap pages: one bit for each overflow page, set while it is in use.
//!
//! The bits are 32-bit words after the page header; `pd_lower` is their end (`_hash_initbitmapbuffer`).

#![deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::panic)]

use super::{
    RedoReason,
    page::{self, Special, flag},
};
use crate::{
    change::RecordPart,
    fields::Fields,
    page::{HEADER_SIZE, Page},
};

const BITS_PER_WORD: u32 = 32;
const BYTES_PER_WORD: usize = 4;

/// A new bitmap page: every overflow page counts as in use until it is freed. Main data begins with the size.
pub(super) fn init(part: &RecordPart<'_>, page: &mut Page<'_>) -> Result<(), RedoReason> {
    let size = usize::from(Fields::main(part).u16()?);
    if HEADER_SIZE + size > page::SPECIAL {
        return Err(RedoReason::Malformed("bitmap larger than its page"));
    }
    page::init(page, Special { flags: flag::BITMAP, ..Special::default() })?;
    page.slice_mut(HEADER_SIZE, size)?.fill(0xff);
    page.set_lower(HEADER_SIZE + size);
    Ok(())
}

/// ADD_OVFL_PAGE: a freed overflow page is taken again.
pub(super) fn set(part: &RecordPart<'_>, page: &mut Page<'_>) -> Result<(), RedoReason> {
    edit(part, page, |word, bit| word | bit)
}

/// SQUEEZE_PAGE: an overflow page is free.
pub(super) fn clear(part: &RecordPart<'_>, page: &mut Page<'_>) -> Result<(), RedoReason> {
    edit(part, page, |word, bit| word & !bit)
}

/// Changes the word that holds the bit named in the block data.
fn edit(
    part: &RecordPart<'_>,
    page: &mut Page<'_>,
    change: impl FnOnce(u32, u32) -> u32,
) -> Result<(), RedoReason> {
    Special::read(page)?;
    let number = Fields::data(part).u32()?;
    let at = HEADER_SIZE + (number / BITS_PER_WORD) as usize * BYTES_PER_WORD;
    if at + BYTES_PER_WORD > page::SPECIAL {
        return Err(RedoReason::Malformed("bit outside the bitmap"));
    }
    let word = change(page.u32_at(at)?, 1 << (number % BITS_PER_WORD));
    page.put_u32(at, word)
}
