//! VACUUM_LEAF, VACUUM_ROOT and VACUUM_REDIRECT: one page each.

#![deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::panic)]

use super::{
    RedoReason,
    page::{self, Special},
    tuple::{self, Grave, State},
};
use crate::{change::RecordPart, fields::Fields, page::Page};

/// Bytes of `spgxlogState`, which vacuuming has no use for: it makes no redirects.
const ORIGIN_SIZE: usize = 8;

/// VACUUM_LEAF: empties chains, shortens them, and moves later tuples into the place of a removed first one.
pub(super) fn leaf(part: &RecordPart<'_>, page: &mut Page<'_>) -> Result<(), RedoReason> {
    let mut main = Fields::main(part);
    let mut count = || main.u16().map(usize::from);
    let (dead, placeholders, moves, chains) = (count()?, count()?, count()?, count()?);
    main.skip(ORIGIN_SIZE)?;
    let (dead, placeholders) = (main.u16s(dead)?, main.u16s(placeholders)?);
    let (moved_from, moved_to) = (main.u16s(moves)?, main.u16s(moves)?);
    let (chained, next) = (main.u16s(chains)?, main.u16s(chains)?);

    const PLACEHOLDERS: (State, State) = (State::Placeholder, State::Placeholder);
    let grave = Grave::unmarked();
    page::bury_all(page, dead, grave, (State::Dead, State::Dead))?;
    page::bury_all(page, placeholders, grave, PLACEHOLDERS)?;
    for (from, to) in moved_from.iter().zip(moved_to.iter()) {
        let (tuple, gone) = (page.line_pointer(from)?, page.line_pointer(to)?);
        page.set_line_pointer(to, tuple)?;
        page.set_line_pointer(from, gone)?;
    }
    page::bury_all(page, moved_from, grave, PLACEHOLDERS)?;
    for (offset, next) in chained.iter().zip(next.iter()) {
        tuple::set_next(page.item_mut(offset)?, next)?;
    }
    Ok(())
}

/// VACUUM_ROOT: a root that is still a leaf has no chains, so its tuples just go.
pub(super) fn root(part: &RecordPart<'_>, page: &mut Page<'_>) -> Result<(), RedoReason> {
    let mut main = Fields::main(part);
    let count = usize::from(main.u16()?);
    main.skip(2 + ORIGIN_SIZE)?;
    page.index_multi_delete(main.u16s(count)?.iter())
}

/// VACUUM_REDIRECT: redirects nobody follows any more become placeholders, and placeholders at the end go.
pub(super) fn redirects(
    part: &RecordPart<'_>,
    page: &mut Page<'_>,
    has_catalog_flag: bool,
) -> Result<(), RedoReason> {
    let mut main = Fields::main(part);
    let (count, first_gone) = (main.u16()?, main.u16()?);
    // The conflict horizon, then the flag and a byte of padding.
    main.skip(if has_catalog_flag { 6 } else { 4 })?;
    for offset in main.u16s(usize::from(count))?.iter() {
        tuple::forget_target(page.item_mut(offset)?)?;
    }
    Special::edit(page, |special| {
        special.redirects = special.redirects.wrapping_sub(count);
        special.placeholders = special.placeholders.wrapping_add(count);
    })?;
    match first_gone {
        0 => Ok(()),
        first => remove_from(page, first),
    }
}

/// Removes the placeholders from `first` to the last tuple of the page.
fn remove_from(page: &mut Page<'_>, first: u16) -> Result<(), RedoReason> {
    let gone = first..page.max_offset().saturating_add(1);
    let count = gone.len() as u16;
    Special::edit(page, |special| special.placeholders = special.placeholders.wrapping_sub(count))?;
    page.index_multi_delete(gone)
}
