//! Posting lists: one key with many item pointers (`access/nbtree/nbtdedup.c`).
//!
//! ```text
//!  0                  6        8           key size              key size + 6 * count
//!  +------------------+--------+-----------+---------------------+---------+
//!  | key size | count | t_info | key       | item pointers, asc. | zeros   |   rounded up to 8
//!  +------------------+--------+-----------+---------------------+---------+
//! ```
//!
//! The header's item pointer holds the key size as block number and the count (12 bits) as offset number.

#![deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::panic)]

use super::{
    RedoReason,
    index_tuple::{self, SIZE_MASK, TID_SIZE, Tid},
};
use crate::page::max_align;

/// Largest tuple of a btree page (`BTMaxItemSizeNoHeapTid`).
pub(super) const TUPLE_SIZE_MAX: usize = 2712;
/// Largest tuple that leaves room for an item pointer (`BTMaxItemSize`): the limit for merging.
pub(super) const MERGED_SIZE_MAX: usize = 2704;

/// `t_info`: the item pointer is not one (`INDEX_ALT_TID_MASK`).
pub(super) const ALTERNATIVE_TID: u16 = 0x2000;
/// In the offset number beside the count (`BT_IS_POSTING`).
const IS_POSTING: u16 = 0x2000;
const COUNT_MASK: u16 = 0x0fff;

const TOO_LARGE: RedoReason = RedoReason::Malformed("posting list too large");
const BAD_LIST: RedoReason = RedoReason::Malformed("posting list outside its tuple");

/// A leaf tuple seen as a key with item pointers.
#[derive(Clone, Copy, Debug)]
pub(super) struct LeafTuple<'a> {
    /// Header and key, without the posting list.
    pub key: &'a [u8],
    /// Packed item pointers, one for a plain tuple.
    pub tids: &'a [u8],
}

impl<'a> LeafTuple<'a> {
    /// Takes a tuple apart; `tuple` may be longer than the tuple is.
    pub fn read(tuple: &'a [u8]) -> Result<Self, RedoReason> {
        let tuple = index_tuple::leading(tuple)?;
        let Some(list) = list_range(tuple)? else {
            let tids = tuple.get(..TID_SIZE).ok_or(BAD_LIST)?;
            return Ok(LeafTuple { key: tuple, tids });
        };
        let key = tuple.get(..list.start).ok_or(BAD_LIST)?;
        let tids = tuple.get(list).ok_or(BAD_LIST)?;
        Ok(LeafTuple { key, tids })
    }
}

/// Where the posting list lies in a tuple; `None` for a plain tuple.
fn list_range(tuple: &[u8]) -> Result<Option<std::ops::Range<usize>>, RedoReason> {
    let tid = index_tuple::tid_of(tuple)?;
    let posid = index_tuple::tid_posid(tid);
    if index_tuple::info(tuple)? & ALTERNATIVE_TID == 0 || posid & IS_POSTING == 0 {
        return Ok(None);
    }
    let start = index_tuple::tid_block(tid) as usize;
    let count = usize::from(posid & COUNT_MASK);
    let aligned = start >= index_tuple::HEADER_SIZE && start.is_multiple_of(8);
    let end = start.checked_add(count * TID_SIZE).filter(|end| aligned && *end <= tuple.len());
    end.map(|end| Some(start..end)).ok_or(BAD_LIST)
}

/// Puts `new` into the posting list at `place` and returns the last item pointer, which leaves it.
pub(super) fn swap(posting: &mut [u8], new: Tid, place: u16) -> Result<Tid, RedoReason> {
    let range = list_range(index_tuple::leading(posting)?)?;
    let range = range.ok_or(RedoReason::Malformed("split of a tuple without posting list"))?;
    let list = posting.get_mut(range).ok_or(BAD_LIST)?;
    let tail = list.get_mut(usize::from(place) * TID_SIZE..);
    let tail = tail.filter(|tail| place > 0 && !tail.is_empty());
    let tail = tail.ok_or(RedoReason::Malformed("posting list split outside the list"))?;
    tail.rotate_right(TID_SIZE);
    let first = tail.first_chunk_mut::<TID_SIZE>().ok_or(BAD_LIST)?;
    Ok(std::mem::replace(first, new))
}

/// Size of the tuple that [`form`] builds.
pub(super) fn formed_size(key: &[u8], tids: &[u8]) -> usize {
    if tids.len() > TID_SIZE { max_align(key.len() + tids.len()) } else { key.len() }
}

/// Builds a tuple of `key` with `tids`: plain if there is one item pointer, else with a posting list
/// (`_bt_form_posting`). `out` must be [`formed_size`] long.
pub(super) fn form(out: &mut [u8], key: &[u8], tids: &[u8]) -> Result<(), RedoReason> {
    let size = u16::try_from(out.len()).ok().filter(|size| *size <= SIZE_MASK).ok_or(TOO_LARGE)?;
    let (head, list) = out.split_at_mut_checked(key.len()).ok_or(TOO_LARGE)?;
    head.copy_from_slice(key);
    let flags = index_tuple::info(key)? & !SIZE_MASK;
    if let Ok(single) = Tid::try_from(tids) {
        index_tuple::set_info(head, flags & !ALTERNATIVE_TID | size)?;
        return index_tuple::set_tid(head, single);
    }
    let count = (tids.len() / TID_SIZE) as u16;
    if count == 0 || count > COUNT_MASK {
        return Err(RedoReason::Malformed("posting list of an impossible length"));
    }
    index_tuple::set_info(head, flags | ALTERNATIVE_TID | size)?;
    index_tuple::set_tid(head, index_tuple::tid(key.len() as u32, count | IS_POSTING))?;
    list.fill(0);
    list.get_mut(..tids.len()).ok_or(TOO_LARGE)?.copy_from_slice(tids);
    Ok(())
}
