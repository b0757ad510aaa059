//! What makes a page an SP-GiST page: its special area, and tuples that keep their numbers.
//!
//! ```text
//!  8184    8186        8188           8190    8192
//!  +-------+-----------+--------------+-------+
//!  | flags | redirects | placeholders | ff82  |
//!  +-------+-----------+--------------+-------+
//! ```

#![deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::panic)]

use treering_types::PAGE_SIZE;

use super::{
    RedoReason,
    index_tuple::Tid,
    tuple::{self, Grave, State},
};
use crate::{
    fields::U16s,
    item::Placement,
    page::{INDEX_TUPLES_MAX, Page},
};

/// Bytes of the special area (`sizeof(SpGistPageOpaqueData)`).
const SPECIAL_SIZE: usize = 8;
const SPECIAL: usize = PAGE_SIZE - SPECIAL_SIZE;
/// `SPGIST_PAGE_ID`, the last two bytes.
const PAGE_ID: u16 = 0xff82;

/// `flags` bits.
pub(super) mod flag {
    pub const LEAF: u16 = 1 << 2;
    pub const NULLS: u16 = 1 << 3;
}

/// The special area of an SP-GiST page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Special {
    /// See [`flag`].
    pub flags: u16,
    /// Tuples in state [`State::Redirect`].
    pub redirects: u16,
    /// Tuples in state [`State::Placeholder`]. Both counts wrap as in Postgres, where they are advisory.
    pub placeholders: u16,
}

impl Special {
    /// Reads the special area.
    ///
    /// # Errors
    /// `Malformed` when the page is no SP-GiST page.
    pub fn read(page: &Page<'_>) -> Result<Self, RedoReason> {
        if page.special() != SPECIAL {
            return Err(RedoReason::Malformed("not an SP-GiST page"));
        }
        Ok(Special {
            flags: page.u16_at(SPECIAL)?,
            redirects: page.u16_at(SPECIAL + 2)?,
            placeholders: page.u16_at(SPECIAL + 4)?,
        })
    }

    /// Writes the special area but for the page id.
    pub fn write(self, page: &mut Page<'_>) -> Result<(), RedoReason> {
        page.put_u16(SPECIAL, self.flags)?;
        page.put_u16(SPECIAL + 2, self.redirects)?;
        page.put_u16(SPECIAL + 4, self.placeholders)
    }

    /// Changes the special area.
    pub fn edit(page: &mut Page<'_>, change: impl FnOnce(&mut Self)) -> Result<(), RedoReason> {
        let mut special = Special::read(page)?;
        change(&mut special);
        special.write(page)
    }

    /// Counts a tuple that came to be in this state.
    fn count(&mut self, state: State) {
        match state {
            State::Redirect => self.redirects = self.redirects.wrapping_add(1),
            State::Placeholder => self.placeholders = self.placeholders.wrapping_add(1),
            State::Live | State::Dead => {}
        }
    }
}

/// Empties the page (`SpGistInitPage`).
pub(super) fn init(page: &mut Page<'_>, flags: u16) -> Result<(), RedoReason> {
    page.init(SPECIAL_SIZE);
    page.put_u16(SPECIAL + 6, PAGE_ID)?;
    Special { flags, redirects: 0, placeholders: 0 }.write(page)
}

/// As [`init`] for a leaf page.
pub(super) fn init_leaf(page: &mut Page<'_>, stores_nulls: bool) -> Result<(), RedoReason> {
    init(page, flag::LEAF | nulls_flag(stores_nulls))
}

/// The flag of pages that hold null values.
pub(super) fn nulls_flag(stores_nulls: bool) -> u16 {
    if stores_nulls { flag::NULLS } else { 0 }
}

/// Adds a tuple at a number that is the next one or a placeholder's (`addOrReplaceTuple`).
pub(super) fn add_or_replace(
    page: &mut Page<'_>,
    tuple: &[u8],
    offset: u16,
) -> Result<(), RedoReason> {
    if offset <= page.max_offset() {
        if tuple::state(page.item(offset)?)? != State::Placeholder {
            return Err(RedoReason::Malformed("tuple to be replaced is no placeholder"));
        }
        Special::edit(page, |special| {
            special.placeholders = special.placeholders.wrapping_sub(1);
        })?;
        page.index_tuple_delete(offset)?;
    }
    insert(page, tuple, offset)
}

/// Puts a tuple in the place of another, whatever that is.
pub(super) fn replace(page: &mut Page<'_>, tuple: &[u8], offset: u16) -> Result<(), RedoReason> {
    page.index_tuple_delete(offset)?;
    insert(page, tuple, offset)
}

/// Inserts a tuple so that it gets this number.
fn insert(page: &mut Page<'_>, tuple: &[u8], offset: u16) -> Result<(), RedoReason> {
    if offset == 0 {
        return Err(RedoReason::Malformed("tuple without an offset number"));
    }
    page.add_item(tuple, offset, Placement::Insert).map(|_| ())
}

/// Replaces one tuple by one of 16 bytes in `state` and counts it.
pub(super) fn bury(
    page: &mut Page<'_>,
    offset: u16,
    grave: Grave,
    state: State,
) -> Result<(), RedoReason> {
    replace(page, &grave.tuple(state), offset)?;
    Special::edit(page, |special| special.count(state))
}

/// Replaces tuples, named in any order, by ones of 16 bytes: the first named in state `first`, the others in
/// `rest` (`spgPageIndexMultiDelete`).
pub(super) fn bury_all(
    page: &mut Page<'_>,
    offsets: U16s<'_>,
    grave: Grave,
    (first, rest): (State, State),
) -> Result<(), RedoReason> {
    let Some(first_named) = offsets.iter().next() else { return Ok(()) };
    let mut room = [0; INDEX_TUPLES_MAX];
    let sorted = room.get_mut(..offsets.len());
    let sorted = sorted.ok_or(RedoReason::Malformed("more tuples than a page can hold"))?;
    sorted.iter_mut().zip(offsets.iter()).for_each(|(slot, offset)| *slot = offset);
    sorted.sort_unstable();
    page.index_multi_delete(sorted.iter().copied())?;
    let mut special = Special::read(page)?;
    for offset in sorted.iter().copied() {
        let state = if offset == first_named { first } else { rest };
        insert(page, &grave.tuple(state), offset)?;
        special.count(state);
    }
    special.write(page)
}

/// Where a parent's downlink is: a node of an inner tuple.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Downlink {
    /// Offset number of the inner tuple.
    pub offset: u16,
    /// Node in it, from 0.
    pub node: u16,
}

impl Downlink {
    /// Points the downlink elsewhere.
    pub fn set(self, page: &mut Page<'_>, target: Tid) -> Result<(), RedoReason> {
        tuple::set_downlink(page.item_mut(self.offset)?, self.node, target)
    }
}
