//! PAGE_SPLIT: the pages a page became, and the end of an earlier split one level below
//! (`gistRedoPageSplitRecord`, `gistRedoClearFollowRight`).

#![deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::panic)]

use treering_types::Lsn;

use super::{
    RedoReason,
    index_tuple::NO_BLOCK,
    page::{self, ROOT, Special, flag},
};
use crate::{change::RecordPart, fields::Fields, page::Page};

/// `gistxlogPageSplit`.
struct Split {
    /// Right link and NSN of the page before it was split.
    right: u32,
    nsn: Lsn,
    is_leaf: bool,
    /// Number of pages: blocks 1 to this.
    pages: u16,
    /// The downlinks are still missing from the parent.
    follow_right: bool,
}

impl Split {
    fn read(part: &RecordPart<'_>) -> Result<Self, RedoReason> {
        let mut main = Fields::main(part);
        let right = main.u32()?;
        main.skip(4)?;
        let nsn = Lsn(main.u64()?);
        let is_leaf = main.u8()? != 0;
        main.skip(1)?;
        Ok(Split { right, nsn, is_leaf, pages: main.u16()?, follow_right: main.u8()? != 0 })
    }
}

/// Blocks 1 and up: a page rebuilt from its tuples. A root that is split stays where it is and gets all others as
/// children, so its downlinks are complete at once.
pub(super) fn page(part: &RecordPart<'_>, page: &mut Page<'_>) -> Result<(), RedoReason> {
    const NO_PAGE: RedoReason = RedoReason::Malformed("split names no such page");
    let split = Split::read(part)?;
    let is_last = match u16::from(part.block_id).cmp(&split.pages) {
        std::cmp::Ordering::Less => false,
        std::cmp::Ordering::Equal => true,
        std::cmp::Ordering::Greater => return Err(NO_PAGE),
    };
    let is_root = part.block_number(part.block_id).ok_or(NO_PAGE)? == ROOT;
    let of_root = part.block_number(1).ok_or(NO_PAGE)? == ROOT;
    let leaf = if split.is_leaf && !is_root { flag::LEAF } else { 0 };
    let follow_right = split.follow_right && !is_last && !of_root && !is_root;
    page::init(page, leaf)?;
    fill(page, &part.data)?;
    let right = if is_root {
        NO_BLOCK
    } else if is_last {
        split.right
    } else {
        part.block_number(part.block_id.saturating_add(1)).ok_or(NO_PAGE)?
    };
    let flags = leaf | if follow_right { flag::FOLLOW_RIGHT } else { 0 };
    Special { nsn: split.nsn, right, flags }.write(page)
}

/// Adds the tuples of block data: their number, then one after another.
fn fill(page: &mut Page<'_>, data: &[u8]) -> Result<(), RedoReason> {
    let mut data = Fields::new(data);
    let count = data.u32()?;
    let mut tuples = data.rest();
    for _ in 0..count {
        tuples = page::append_leading(page, tuples)?;
    }
    Ok(())
}

/// The left half of a split whose downlinks the record inserts: searches that saw the parent before must follow
/// its right link, later ones need not.
pub(super) fn finish(page: &mut Page<'_>, lsn: Lsn) -> Result<(), RedoReason> {
    Special::edit(page, |special| {
        special.nsn = lsn;
        special.flags &= !flag::FOLLOW_RIGHT;
    })
}
