//! PAGE_UPDATE: tuples leave a page and others come, without a split (`gistRedoPageUpdateRecord`).

#![deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::panic)]

use super::{
    RedoReason, index_tuple,
    page::{self, Special, flag},
};
use crate::{change::RecordPart, fields::Fields, page::Page, version::RecordRules};

/// Block 0: the data is the offset numbers that go, then the tuples that come, up to its end.
pub(super) fn redo(
    part: &RecordPart<'_>,
    page: &mut Page<'_>,
    rules: &RecordRules,
) -> Result<(), RedoReason> {
    let mut main = Fields::main(part);
    let (deleted, inserted) = (main.u16()?, main.u16()?);
    let mut data = Fields::data(part);
    match (deleted, inserted) {
        (0, _) => {}
        (1, 1) => overwrite(&mut data, page)?,
        _ => delete(&mut data, deleted, page, rules)?,
    }
    let mut tuples = data.rest();
    while !tuples.is_empty() {
        tuples = page::append_leading(page, tuples)?;
    }
    Ok(())
}

/// One tuple for one: it keeps its place, as on the primary.
fn overwrite(data: &mut Fields<'_>, page: &mut Page<'_>) -> Result<(), RedoReason> {
    let offset = data.u16()?;
    let tuple = index_tuple::leading(data.rest())?;
    data.skip(tuple.len())?;
    page.index_tuple_overwrite(offset, tuple)
}

fn delete(
    data: &mut Fields<'_>,
    count: u16,
    page: &mut Page<'_>,
    rules: &RecordRules,
) -> Result<(), RedoReason> {
    page.index_multi_delete(data.u16s(usize::from(count))?.iter())?;
    Special::edit(page, |special| {
        if rules.gist_marks_deletions && special.flags & flag::LEAF != 0 {
            special.flags |= flag::TUPLES_DELETED;
        }
    })
}
