//! What one block needs of a SP-GiST record's main data, cut at ingest.
//!
//! The result has the layout of the record: the fixed header stays, arrays and tuples of other pages are dropped
//! with their counts, and an empty inner tuple stands in where one must be passed over. So redo reads cut and whole
//! main data alike, and gives the same page. Where nothing is gained, or the bytes contradict themselves, the main
//! data stays whole: then redo says what is wrong with it.

#![deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::panic)]

use std::borrow::Cow;

use super::{
    RedoReason, kind,
    record::{AddLeaf, AddNode, MoveLeafs, PickSplit, Side, SplitTuple},
    tuple,
};
use crate::{fields::Fields, wal::record::Record};

/// The main data that block `block_id` needs, cut from the record's; never longer.
pub(in crate::redo) fn main_for<'a>(record: &'a Record<'_>, block_id: u8) -> Cow<'a, [u8]> {
    let main = record.main;
    match cut(record, block_id) {
        Ok(Cut::Head(size)) => Cow::Borrowed(main.get(..size).unwrap_or(main)),
        Ok(Cut::Built(bytes)) if bytes.len() < main.len() => Cow::Owned(bytes),
        _ => Cow::Borrowed(main),
    }
}

/// What to keep.
enum Cut {
    Whole,
    /// So many bytes.
    Head(usize),
    Built(Vec<u8>),
}

fn cut(record: &Record<'_>, block_id: u8) -> Result<Cut, RedoReason> {
    use kind::*;
    let main = record.main;
    match (record.info & 0xf0, block_id) {
        (ADD_LEAF, 1) => Ok(Cut::Head(AddLeaf::HEADER_SIZE)),
        (MOVE_LEAFS, 0) => moved_away(main),
        (MOVE_LEAFS, 2) => new_head_only(main),
        // The enlarged tuple is on block 1, if there is one.
        (ADD_NODE, 0) if record.blocks.iter().any(|block| block.id == 1) => {
            Ok(Cut::Head(AddNode::HEADER_SIZE))
        }
        (ADD_NODE, 2) => Ok(Cut::Head(AddNode::HEADER_SIZE)),
        (SPLIT_TUPLE, 0) => prefix_only(main),
        (SPLIT_TUPLE, 1) => postfix_only(main),
        (PICKSPLIT, 0) => leaves_of(main, Side::Source),
        (PICKSPLIT, 1) => leaves_of(main, Side::Destination),
        (PICKSPLIT, 2) => inner_only(main),
        (PICKSPLIT, 3) => Ok(Cut::Head(PickSplit::HEADER_SIZE)),
        _ => Ok(Cut::Whole),
    }
}

fn header(main: &[u8], size: usize) -> Result<Vec<u8>, RedoReason> {
    let mut out = Vec::with_capacity(main.len());
    out.extend_from_slice(Fields::new(main).take(size)?);
    Ok(out)
}

fn put(out: &mut [u8], at: usize, bytes: &[u8]) {
    let field = out.get_mut(at..).and_then(|tail| tail.get_mut(..bytes.len()));
    // Always inside: `at` lies in the fixed header.
    if let Some(field) = field {
        field.copy_from_slice(bytes);
    }
}

fn put_all(out: &mut Vec<u8>, numbers: impl Iterator<Item = u16>) {
    numbers.for_each(|number| out.extend(number.to_le_bytes()));
}

/// MOVE_LEAFS as the source sees it: which tuples left, and where the chain begins now.
fn moved_away(main: &[u8]) -> Result<Cut, RedoReason> {
    let moved = MoveLeafs::read(main)?;
    let mut out = header(main, MoveLeafs::HEADER_SIZE)?;
    put(&mut out, MoveLeafs::REPLACE_DEAD_AT, &[1]);
    put_all(&mut out, moved.deleted.iter().chain([moved.new_head()?]));
    Ok(Cut::Built(out))
}

/// MOVE_LEAFS as the parent sees it: where the chain begins now.
fn new_head_only(main: &[u8]) -> Result<Cut, RedoReason> {
    let moved = MoveLeafs::read(main)?;
    let mut out = header(main, MoveLeafs::HEADER_SIZE)?;
    put(&mut out, MoveLeafs::MOVES_AT, &[0, 0]);
    put_all(&mut out, [moved.new_head()?].into_iter());
    Ok(Cut::Built(out))
}

/// SPLIT_TUPLE as the page of the prefix sees it.
fn prefix_only(main: &[u8]) -> Result<Cut, RedoReason> {
    let split = SplitTuple::read(main)?;
    if split.same_page {
        return Ok(Cut::Whole);
    }
    Ok(Cut::Head(SplitTuple::HEADER_SIZE + split.prefix()?.len()))
}

/// SPLIT_TUPLE as the page of the postfix sees it.
fn postfix_only(main: &[u8]) -> Result<Cut, RedoReason> {
    let postfix = SplitTuple::read(main)?.postfix()?;
    let mut out = header(main, SplitTuple::HEADER_SIZE)?;
    out.extend(tuple::EMPTY_INNER);
    out.extend_from_slice(postfix);
    Ok(Cut::Built(out))
}

/// PICKSPLIT as one of the leaf pages sees it: its own tuples. Only the source loses any, unless it is new.
fn leaves_of(main: &[u8], side: Side) -> Result<Cut, RedoReason> {
    let split = PickSplit::read(main)?;
    let body = split.body()?;
    let deletes = side == Side::Source && !split.source_is_new;
    let delete_count = if deletes { body.deleted.len() as u16 } else { 0 };
    let placed = body.leaves(side).collect::<Result<Vec<_>, _>>()?;
    let mut out = pick_split_header(main, delete_count, placed.len() as u16)?;
    put_all(&mut out, body.deleted.iter().take(usize::from(delete_count)));
    put_all(&mut out, placed.iter().map(|(offset, _)| *offset));
    out.extend(placed.iter().map(|_| u8::from(side == Side::Destination)));
    out.extend(tuple::EMPTY_INNER);
    placed.iter().for_each(|(_, tuple)| out.extend_from_slice(tuple));
    Ok(Cut::Built(out))
}

/// PICKSPLIT as the page of the new inner tuple sees it.
fn inner_only(main: &[u8]) -> Result<Cut, RedoReason> {
    let inner = PickSplit::read(main)?.body()?.inner;
    let mut out = pick_split_header(main, 0, 0)?;
    out.extend_from_slice(inner);
    Ok(Cut::Built(out))
}

fn pick_split_header(main: &[u8], deletes: u16, inserts: u16) -> Result<Vec<u8>, RedoReason> {
    let mut out = header(main, PickSplit::HEADER_SIZE)?;
    put(&mut out, PickSplit::COUNTS_AT, &deletes.to_le_bytes());
    put(&mut out, PickSplit::COUNTS_AT + 2, &inserts.to_le_bytes());
    Ok(out)
}
