//! DELETE takes dead tuples off a leaf; PAGE_DELETE takes an empty leaf out of the tree.

#![deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::panic)]

use super::{
    RedoReason,
    page::{Special, flag},
};
use crate::{
    change::RecordPart,
    fields::Fields,
    page::{HEADER_SIZE, Page},
    version::RecordRules,
};

/// DELETE block 0 (`gistxlogDelete`): tuples known dead go while a page is full.
pub(super) fn tuples(
    part: &RecordPart<'_>,
    page: &mut Page<'_>,
    rules: &RecordRules,
) -> Result<(), RedoReason> {
    let mut main = Fields::main(part);
    main.skip(4)?;
    let count = main.u16()?;
    if rules.has_catalog_flag {
        // The flag and its padding.
        main.skip(2)?;
    }
    page.index_multi_delete(main.u16s(usize::from(count))?.iter())?;
    Special::edit(page, |special| {
        special.flags &= !flag::HAS_GARBAGE;
        if rules.gist_marks_deletions {
            special.flags |= flag::TUPLES_DELETED;
        }
    })
}

/// PAGE_DELETE block 0: the empty leaf says since when it is gone (`GistPageSetDeleted`).
pub(super) fn page(part: &RecordPart<'_>, page: &mut Page<'_>) -> Result<(), RedoReason> {
    let delete_xid = Fields::main(part).u64()?;
    Special::edit(page, |special| special.flags |= flag::DELETED)?;
    page.set_lower(HEADER_SIZE + 8);
    page.put_u64(HEADER_SIZE, delete_xid)
}

/// PAGE_DELETE block 1: the parent loses its downlink.
pub(super) fn downlink(part: &RecordPart<'_>, page: &mut Page<'_>) -> Result<(), RedoReason> {
    let mut main = Fields::main(part);
    main.skip(8)?;
    page.index_tuple_delete(main.u16()?)
}
