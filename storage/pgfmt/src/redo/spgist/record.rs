//! Main data of SP-GiST records (`access/spgxlog.h`): a fixed header, offset arrays, then tuples without padding.
//!
//! Readers take only what every block of the record has in its (possibly cut) main data; tuples are read by
//! whoever needs them.

#![deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::panic)]

use super::{RedoReason, page::Downlink, tuple};
use crate::fields::{Fields, U16s};

/// `spgxlogState`, 8 bytes with its padding.
#[derive(Clone, Copy, Debug)]
pub(super) struct Origin {
    /// Goes into redirects.
    pub xid: u32,
    /// No scans to redirect: the index is being built.
    pub is_build: bool,
}

fn flag(fields: &mut Fields<'_>) -> Result<bool, RedoReason> {
    fields.u8().map(|byte| byte != 0)
}

fn origin(fields: &mut Fields<'_>) -> Result<Origin, RedoReason> {
    let origin = Origin { xid: fields.u32()?, is_build: flag(fields)? };
    fields.skip(3)?;
    Ok(origin)
}

fn downlink(fields: &mut Fields<'_>) -> Result<Downlink, RedoReason> {
    Ok(Downlink { offset: fields.u16()?, node: fields.u16()? })
}

/// `spgxlogAddLeaf`.
pub(super) struct AddLeaf<'a> {
    pub is_new_page: bool,
    pub stores_nulls: bool,
    pub offset: u16,
    /// First tuple of the chain, 0 if the new one starts it, `offset` if it takes a dead one's place.
    pub head: u16,
    pub parent: Downlink,
    tail: &'a [u8],
}

impl<'a> AddLeaf<'a> {
    pub const HEADER_SIZE: usize = 10;

    pub fn read(main: &'a [u8]) -> Result<Self, RedoReason> {
        let mut fields = Fields::new(main);
        Ok(AddLeaf {
            is_new_page: flag(&mut fields)?,
            stores_nulls: flag(&mut fields)?,
            offset: fields.u16()?,
            head: fields.u16()?,
            parent: downlink(&mut fields)?,
            tail: fields.rest(),
        })
    }

    pub fn tuple(&self) -> Result<&'a [u8], RedoReason> {
        tuple::leading_leaf(self.tail)
    }
}

/// `spgxlogMoveLeafs` and its offsets.
pub(super) struct MoveLeafs<'a> {
    pub is_new_page: bool,
    pub stores_nulls: bool,
    pub parent: Downlink,
    pub origin: Origin,
    /// Moved tuples, on the source page.
    pub deleted: U16s<'a>,
    /// Their places and that of the new tuple, on the destination page.
    pub inserted: U16s<'a>,
    tail: &'a [u8],
}

impl<'a> MoveLeafs<'a> {
    pub const HEADER_SIZE: usize = 20;
    /// Where `nMoves` is, 2 bytes.
    pub const MOVES_AT: usize = 0;
    /// Where `replaceDead` is, 1 byte: one tuple is inserted, however many are deleted.
    pub const REPLACE_DEAD_AT: usize = 3;

    pub fn read(main: &'a [u8]) -> Result<Self, RedoReason> {
        let mut fields = Fields::new(main);
        let moves = usize::from(fields.u16()?);
        let is_new_page = flag(&mut fields)?;
        let replaces_dead = flag(&mut fields)?;
        let stores_nulls = flag(&mut fields)?;
        fields.skip(1)?;
        let parent = downlink(&mut fields)?;
        fields.skip(2)?;
        let origin = origin(&mut fields)?;
        let deleted = fields.u16s(moves)?;
        let inserted = fields.u16s(if replaces_dead { 1 } else { moves + 1 })?;
        let tail = fields.rest();
        Ok(MoveLeafs { is_new_page, stores_nulls, parent, origin, deleted, inserted, tail })
    }

    /// Where the chain begins on the destination page: the tuple inserted last.
    pub fn new_head(&self) -> Result<u16, RedoReason> {
        self.inserted.iter().next_back().ok_or(RedoReason::Malformed("no tuple is moved"))
    }

    /// The inserted tuples and their places.
    pub fn tuples(&self) -> impl Iterator<Item = Result<(u16, &'a [u8]), RedoReason>> + use<'a> {
        let mut tail = Fields::new(self.tail);
        self.inserted.iter().map(move |offset| Ok((offset, next_leaf(&mut tail)?)))
    }
}

/// The next of several leaf tuples.
pub(super) fn next_leaf<'a>(fields: &mut Fields<'a>) -> Result<&'a [u8], RedoReason> {
    fields.take(tuple::leading_leaf(fields.rest())?.len())
}

/// The next of several inner tuples.
fn next_inner<'a>(fields: &mut Fields<'a>) -> Result<&'a [u8], RedoReason> {
    fields.take(tuple::leading_inner(fields.rest())?.len())
}

/// `spgxlogAddNode`.
pub(super) struct AddNode<'a> {
    /// The tuple that was too small, on block 0.
    pub old: u16,
    /// Its enlarged copy, on block 1 if the record has one.
    pub new: u16,
    pub is_new_page: bool,
    /// Which block the parent is on; anything else: its downlink stays.
    pub parent_block: u8,
    pub parent: Downlink,
    pub origin: Origin,
    tail: &'a [u8],
}

impl<'a> AddNode<'a> {
    pub const HEADER_SIZE: usize = 20;

    pub fn read(main: &'a [u8]) -> Result<Self, RedoReason> {
        let mut fields = Fields::new(main);
        let (old, new) = (fields.u16()?, fields.u16()?);
        let (is_new_page, parent_block) = (flag(&mut fields)?, fields.u8()?);
        let parent = downlink(&mut fields)?;
        fields.skip(2)?;
        let origin = origin(&mut fields)?;
        let tail = fields.rest();
        Ok(AddNode { old, new, is_new_page, parent_block, parent, origin, tail })
    }

    pub fn tuple(&self) -> Result<&'a [u8], RedoReason> {
        tuple::leading_inner(self.tail)
    }
}

/// `spgxlogSplitTuple`.
pub(super) struct SplitTuple<'a> {
    pub prefix_offset: u16,
    pub postfix_offset: u16,
    pub is_new_page: bool,
    pub same_page: bool,
    tail: &'a [u8],
}

impl<'a> SplitTuple<'a> {
    pub const HEADER_SIZE: usize = 6;

    pub fn read(main: &'a [u8]) -> Result<Self, RedoReason> {
        let mut fields = Fields::new(main);
        Ok(SplitTuple {
            prefix_offset: fields.u16()?,
            postfix_offset: fields.u16()?,
            is_new_page: flag(&mut fields)?,
            same_page: flag(&mut fields)?,
            tail: fields.rest(),
        })
    }

    pub fn prefix(&self) -> Result<&'a [u8], RedoReason> {
        tuple::leading_inner(self.tail)
    }

    /// The tuple after the prefix, which in a cut record may be an empty one.
    pub fn postfix(&self) -> Result<&'a [u8], RedoReason> {
        let mut tail = Fields::new(self.tail);
        next_inner(&mut tail)?;
        next_inner(&mut tail)
    }
}

/// `spgxlogPickSplit`.
pub(super) struct PickSplit<'a> {
    pub is_root_split: bool,
    delete_count: u16,
    insert_count: u16,
    pub source_is_new: bool,
    pub destination_is_new: bool,
    pub inner_offset: u16,
    pub inner_is_new: bool,
    pub stores_nulls: bool,
    /// The parent is on the page of the new inner tuple.
    pub inner_is_parent: bool,
    pub parent: Downlink,
    pub origin: Origin,
    tail: &'a [u8],
}

/// What comes after the header of [`PickSplit`].
pub(super) struct PickSplitBody<'a> {
    /// Tuples that leave their places on the source page.
    pub deleted: U16s<'a>,
    inserted: U16s<'a>,
    selected: &'a [u8],
    pub inner: &'a [u8],
    leaves: &'a [u8],
}

/// The two leaf pages that tuples of a split chain go to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Side {
    Source,
    Destination,
}

impl<'a> PickSplit<'a> {
    pub const HEADER_SIZE: usize = 28;
    /// Where `nDelete` and `nInsert` are, 2 bytes each.
    pub const COUNTS_AT: usize = 2;

    pub fn read(main: &'a [u8]) -> Result<Self, RedoReason> {
        let mut fields = Fields::new(main);
        let is_root_split = flag(&mut fields)?;
        fields.skip(1)?;
        let (delete_count, insert_count) = (fields.u16()?, fields.u16()?);
        let (source_is_new, destination_is_new) = (flag(&mut fields)?, flag(&mut fields)?);
        let inner_offset = fields.u16()?;
        let (inner_is_new, stores_nulls) = (flag(&mut fields)?, flag(&mut fields)?);
        let inner_is_parent = flag(&mut fields)?;
        fields.skip(1)?;
        let parent = downlink(&mut fields)?;
        fields.skip(2)?;
        let origin = origin(&mut fields)?;
        Ok(PickSplit {
            is_root_split,
            delete_count,
            insert_count,
            source_is_new,
            destination_is_new,
            inner_offset,
            inner_is_new,
            stores_nulls,
            inner_is_parent,
            parent,
            origin,
            tail: fields.rest(),
        })
    }

    pub fn body(&self) -> Result<PickSplitBody<'a>, RedoReason> {
        let mut fields = Fields::new(self.tail);
        let inserts = usize::from(self.insert_count);
        Ok(PickSplitBody {
            deleted: fields.u16s(usize::from(self.delete_count))?,
            inserted: fields.u16s(inserts)?,
            selected: fields.take(inserts)?,
            inner: next_inner(&mut fields)?,
            leaves: fields.rest(),
        })
    }
}

impl<'a> PickSplitBody<'a> {
    /// The leaf tuples that go to one page and their places there.
    pub fn leaves(
        &self,
        side: Side,
    ) -> impl Iterator<Item = Result<(u16, &'a [u8]), RedoReason>> + use<'a> {
        let mut leaves = Fields::new(self.leaves);
        let places = self.inserted.iter().zip(self.selected);
        places.filter_map(move |(offset, selected)| {
            let goes_to = if *selected == 0 { Side::Source } else { Side::Destination };
            match next_leaf(&mut leaves) {
                Ok(tuple) => (goes_to == side).then_some(Ok((offset, tuple))),
                Err(reason) => Some(Err(reason)),
            }
        })
    }
}
