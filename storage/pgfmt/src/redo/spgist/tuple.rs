//! Tuples of SP-GiST pages (`access/spgist_private.h`).
//!
//! ```text
//!  0                    4       6            12
//!  +--------------------+-------+------------+-----
//!  | state:2 | size:30  | t_info| heap tid   | value          leaf   t_info: 14 bits next offset, 2 flags
//!  | state:2 | size:30  | 0     | target tid | xid u32        dead   16 bytes, whatever the state
//!  +--------------------+-------+------------+-----
//!  | state:2 | same:1 | nodes:13 | prefix:16 | size u16 | 0 0 | prefix | nodes     inner
//!  +------------------------------------------+----------+-----+--------+------
//! ```
//!
//! A node is an index tuple whose item pointer is the downlink.

#![deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::panic)]

use super::{
    RedoReason,
    index_tuple::{self, NO_BLOCK, Tid},
};

/// Bytes of a tuple that only holds an offset number (`SGDTSIZE`); no leaf tuple is smaller.
pub(super) const DEAD_SIZE: usize = 16;
/// Bytes before an inner tuple's prefix (`SGITHDRSZ`).
pub(super) const INNER_HEADER_SIZE: usize = 8;
/// Bytes before a leaf tuple's value (`sizeof(SpGistLeafTupleData)`).
const LEAF_HEADER_SIZE: usize = 12;
/// The shortest bytes that [`leading_inner`] takes for an inner tuple: no prefix, no nodes.
pub(super) const EMPTY_INNER: [u8; INNER_HEADER_SIZE] =
    [0, 0, 0, 0, INNER_HEADER_SIZE as u8, 0, 0, 0];
/// Where leaf tuples and dead tuples have their item pointer.
const TID_AT: usize = 6;
const STATE_MASK: u8 = 3;
/// The bits of `t_info` that link to the next tuple of a chain.
const NEXT_MASK: u16 = 0x3fff;

const SHORT: RedoReason = RedoReason::Malformed("SP-GiST tuple shorter than its header");
const BAD_SIZE: RedoReason = RedoReason::Malformed("SP-GiST tuple larger than its place");

/// What a tuple is there for: its lowest two bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(super) enum State {
    Live = 0,
    /// The chain or inner tuple went elsewhere; scans under way follow it.
    Redirect = 1,
    /// An empty chain that a downlink still points to.
    Dead = 2,
    /// Keeps the numbers after it as they are; may be replaced.
    Placeholder = 3,
}

/// What to make of tuples that go: `spgxlogState` and where they went.
#[derive(Clone, Copy, Debug)]
pub(super) struct Grave {
    pub xid: u32,
    /// Where a redirect leads.
    pub target: Tid,
}

impl Grave {
    /// For tuples that no scan needs to follow.
    pub fn unmarked() -> Self {
        Grave { xid: 0, target: no_target() }
    }

    /// The tuple that keeps a number (`spgFormDeadTuple`).
    pub fn tuple(self, state: State) -> [u8; DEAD_SIZE] {
        let (target, xid) = match state {
            State::Redirect => (self.target, self.xid),
            State::Live | State::Dead | State::Placeholder => (no_target(), 0),
        };
        let [s0, s1, s2, s3] = ((DEAD_SIZE as u32) << 2 | state as u32).to_le_bytes();
        let [t0, t1, t2, t3, t4, t5] = target;
        let [x0, x1, x2, x3] = xid.to_le_bytes();
        [s0, s1, s2, s3, 0, 0, t0, t1, t2, t3, t4, t5, x0, x1, x2, x3]
    }
}

/// `ItemPointerSetInvalid`.
fn no_target() -> Tid {
    index_tuple::tid(NO_BLOCK, 0)
}

/// The state of a tuple of any kind.
pub(super) fn state(tuple: &[u8]) -> Result<State, RedoReason> {
    Ok(match tuple.first().ok_or(SHORT)? & STATE_MASK {
        0 => State::Live,
        1 => State::Redirect,
        2 => State::Dead,
        _ => State::Placeholder,
    })
}

/// Makes a redirect a placeholder: the xid stays (`spgRedoVacuumRedirect`).
pub(super) fn forget_target(tuple: &mut [u8]) -> Result<(), RedoReason> {
    let [first, ..] = tuple else { return Err(SHORT) };
    *first = *first & !STATE_MASK | State::Placeholder as u8;
    index_tuple::set_tid(tuple.get_mut(TID_AT..).ok_or(SHORT)?, no_target())
}

/// Links a leaf tuple to the next of its chain; 0: it is the last (`SGLT_SET_NEXTOFFSET`).
pub(super) fn set_next(tuple: &mut [u8], next: u16) -> Result<(), RedoReason> {
    let [_, _, _, _, low, high, ..] = tuple else { return Err(SHORT) };
    let flags = u16::from_le_bytes([*low, *high]) & !NEXT_MASK;
    [*low, *high] = (flags | next & NEXT_MASK).to_le_bytes();
    Ok(())
}

/// The leaf tuple at the start of `bytes`, cut to the size it states.
pub(super) fn leading_leaf(bytes: &[u8]) -> Result<&[u8], RedoReason> {
    let word = bytes.first_chunk().ok_or(SHORT)?;
    let size = (u32::from_le_bytes(*word) >> 2) as usize;
    if size < LEAF_HEADER_SIZE {
        return Err(SHORT);
    }
    bytes.get(..size).ok_or(BAD_SIZE)
}

/// The inner tuple at the start of `bytes`, cut to the size it states.
pub(super) fn leading_inner(bytes: &[u8]) -> Result<&[u8], RedoReason> {
    let [_, _, _, _, low, high, ..] = bytes else { return Err(SHORT) };
    let size = usize::from(u16::from_le_bytes([*low, *high]));
    if size < INNER_HEADER_SIZE {
        return Err(SHORT);
    }
    bytes.get(..size).ok_or(BAD_SIZE)
}

/// Points a node of an inner tuple, counted from 0, elsewhere (`spgUpdateNodeLink`).
pub(super) fn set_downlink(tuple: &mut [u8], node: u16, target: Tid) -> Result<(), RedoReason> {
    let word = u32::from_le_bytes(*tuple.first_chunk().ok_or(SHORT)?);
    let (nodes, prefix_size) = ((word >> 3) as u16 & 0x1fff, (word >> 16) as usize);
    if node >= nodes {
        return Err(RedoReason::Malformed("no such node in the inner tuple"));
    }
    let mut rest = tuple.get_mut(INNER_HEADER_SIZE + prefix_size..).ok_or(BAD_SIZE)?;
    for _ in 0..node {
        let size = index_tuple::leading(rest)?.len();
        rest = rest.get_mut(size..).ok_or(BAD_SIZE)?;
    }
    index_tuple::set_tid(rest, target)
}
