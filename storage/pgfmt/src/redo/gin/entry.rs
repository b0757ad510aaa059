//! The entry tree: ordinary index pages of keys.

#![deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::panic)]

use super::{
    RedoReason, index_tuple,
    page::{Special, flag},
};
use crate::{fields::Fields, item::Placement, page::Page};

/// Adds or replaces a tuple. `data` is `ginxlogInsertEntry`; on an inner page the tuple is the left half's
/// downlink, and the one already there becomes the right half's.
pub(super) fn insert(
    data: &[u8],
    right_child: Option<u32>,
    page: &mut Page<'_>,
) -> Result<(), RedoReason> {
    if Special::read(page)?.flags & flag::DATA != 0 {
        return Err(RedoReason::Malformed("entry for a posting tree page"));
    }
    let mut data = Fields::new(data);
    let (offset, replaces) = (data.u16()?, data.u8()? != 0);
    data.skip(1)?;
    if let Some(block) = right_child {
        index_tuple::set_tid(page.item_mut(offset)?, index_tuple::tid(block, 0))?;
    }
    if replaces {
        page.index_tuple_delete(offset)?;
    }
    let tuple = index_tuple::leading(data.rest())?;
    page.add_item(tuple, offset, Placement::Insert).map(|_| ())
}
