//! What the engine stores for one page at one LSN: the page itself, or how to get it from the version before.
//!
//! The encoding (tag byte first) is a disk format: see `docs/formats/page-change.md`.

use std::borrow::Cow;

use bytes::{BufMut, Bytes};
use smallvec::SmallVec;
use treering_types::{ErrorKind, PAGE_SIZE};

use crate::{cursor::Cursor, redo::rmgr, wal::image::Image};

/// A change to one page. `encode`/`decode` are total on well-formed values; decoding hostile bytes is an error.
///
/// Whatever is long is borrowed, from a record or from the stored form: a change is made, applied or encoded, and gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PageChange<'a> {
    /// The whole page; its LSN already set. No older version is needed.
    Image(Image<'a>),
    /// All zeros. No older version is needed.
    Zero,
    /// The part of a WAL record that concerns this page.
    Record(RecordPart<'a>),
    /// Visibility-map bits of one heap block cleared by a heap record without a block reference
    /// (`visibilitymap_clear`): `bits` is 1 (all-visible), 2 (all-frozen) or 3. The page LSN stays.
    VisibilityClear { heap_block: u32, bits: u8 },
    /// Visibility-map bits at and after `heap_blocks` zeroed by a truncation (`visibilitymap_prepare_truncate`).
    VisibilityTruncate { heap_blocks: u32 },
    /// `pg_xact`: the two status bits of each listed xid of this page (1 committed, 2 aborted).
    XactStatus { status: u8, xids: Xids },
    /// `pg_commit_ts`: time and origin for each listed xid of this page.
    CommitTime { time: i64, origin: u16, xids: Xids },
    /// `pg_multixact/offsets`: multi -> first member, for entries of this page.
    MultiOffsets(Vec<(u32, u32)>),
    /// `pg_multixact/members`: (member offset, xid, status) for entries of this page.
    MultiMembers(Vec<(u32, u32, u8)>),
    /// ZERO_OFF_PAGE: zeros, but entry 0 survives if the version before was made by a spill only (WAL.md E13).
    ZeroMultiOffsets,
    /// The image of a record whose redo goes on after restoring it: what it changes then is not in the image
    /// (WAL.md E8). No older version is needed.
    ///
    /// Boxed because it is rare and long.
    ImageThenRecord(Box<(Image<'a>, RecordPart<'a>)>),
    /// A record that the version which stored it could not redo, whole: the page is unreadable from here on until an
    /// image, or until a version that has redo for the resource manager reads it.
    Unhandled { rmid: u8, info: u8, record: Cow<'a, [u8]> },
}

/// Few transactions have subtransactions.
pub type Xids = SmallVec<[u32; 4]>;

/// What redo of one page needs of a WAL record: not the data of the other blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordPart<'a> {
    pub rmid: u8,
    pub info: u8,
    pub xid: u32,
    /// Which of `blocks` this page is.
    pub block_id: u8,
    pub will_init: bool,
    /// The cluster logged hint bits (data checksums or `wal_log_hints`) when the record was written: then Heap2
    /// VISIBLE also moves the heap page's LSN (WAL.md E10). State of the WAL, kept here so that redo stays pure.
    pub hints_logged: bool,
    /// Every block reference of the record: id and block number (redo uses the *numbers* of the others).
    pub blocks: PartBlocks,
    /// Block data of this page.
    pub data: Cow<'a, [u8]>,
    /// Main data of the record; for SP-GiST, whose records keep every page's tuples there, only what this page
    /// needs (`redo::main_for`).
    pub main: Cow<'a, [u8]>,
}

impl RecordPart<'_> {
    /// The number of block `id` of the record, if it has such a block.
    pub fn block_number(&self, id: u8) -> Option<u32> {
        self.blocks.iter().find(|block| block.id == id).map(|block| block.block)
    }
}

/// Few records have more block references than are kept in place.
pub type PartBlocks = SmallVec<[PartBlock; 4]>;

/// A block reference of the record that a [`RecordPart`] was cut from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartBlock {
    pub id: u8,
    pub block: u32,
    /// The record also carries block data or an image for it.
    pub has_data: bool,
}

/// Bytes that are no encoded [`PageChange`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// The first byte names no kind of change this version knows.
    #[error("page change tag {0} is unknown")]
    UnknownTag(u8),
    /// The bytes end early, go on too long, or hold a value that is never written.
    #[error("page change with tag {0} is malformed")]
    Malformed(u8),
    #[error("page change without bytes")]
    Empty,
}

impl ChangeError {
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::Corrupt
    }
}

/// First byte of an encoded change. Part of the disk format: numbers are never reused.
mod tag {
    pub const IMAGE: u8 = 1;
    pub const ZERO: u8 = 2;
    pub const RECORD: u8 = 3;
    pub const VISIBILITY_CLEAR: u8 = 4;
    pub const VISIBILITY_TRUNCATE: u8 = 5;
    pub const XACT_STATUS: u8 = 6;
    pub const COMMIT_TIME: u8 = 7;
    pub const MULTI_OFFSETS: u8 = 8;
    pub const MULTI_MEMBERS: u8 = 9;
    pub const ZERO_MULTI_OFFSETS: u8 = 10;
    pub const UNHANDLED: u8 = 11;
    pub const IMAGE_THEN_RECORD: u8 = 12;
}

const FLAG_WILL_INIT: u8 = 0x01;
const FLAG_HINTS_LOGGED: u8 = 0x02;
/// In a block id byte: ids end at 32 (`XLR_MAX_BLOCK_ID`), so the high bit is free.
const BLOCK_HAS_DATA: u8 = 0x80;

impl<'a> PageChange<'a> {
    /// No older version of the page is needed to apply this.
    pub fn is_base(&self) -> bool {
        match self {
            PageChange::Image(_) | PageChange::Zero | PageChange::ImageThenRecord(_) => true,
            PageChange::Record(part) => part.will_init,
            PageChange::VisibilityClear { .. }
            | PageChange::VisibilityTruncate { .. }
            | PageChange::XactStatus { .. }
            | PageChange::CommitTime { .. }
            | PageChange::MultiOffsets(_)
            | PageChange::MultiMembers(_)
            | PageChange::ZeroMultiOffsets
            | PageChange::Unhandled { .. } => false,
        }
    }

    /// Resource manager and info byte of the record behind the change, for messages.
    pub fn resource_manager(&self) -> (u8, u8) {
        match self {
            PageChange::Image(_) | PageChange::Zero => (rmgr::XLOG, 0xb0),
            PageChange::Record(part) => (part.rmid, part.info),
            PageChange::ImageThenRecord(both) => (both.1.rmid, both.1.info),
            PageChange::VisibilityClear { .. } => (rmgr::HEAP, 0),
            PageChange::VisibilityTruncate { .. } => (rmgr::SMGR, 0x20),
            PageChange::XactStatus { .. } | PageChange::CommitTime { .. } => (rmgr::XACT, 0),
            PageChange::MultiOffsets(_) | PageChange::MultiMembers(_) => (rmgr::MULTIXACT, 0x20),
            PageChange::ZeroMultiOffsets => (rmgr::MULTIXACT, 0),
            PageChange::Unhandled { rmid, info, .. } => (*rmid, *info),
        }
    }

    /// The disk form.
    pub fn encode(&self) -> Bytes {
        let image = matches!(self, PageChange::Image(_) | PageChange::ImageThenRecord(_));
        let mut out = Vec::with_capacity(if image { PAGE_SIZE + 1 } else { 64 });
        self.encode_into(&mut out);
        Bytes::from(out)
    }

    /// Appends the disk form to `out`.
    pub fn encode_into(&self, out: &mut Vec<u8>) {
        match self {
            PageChange::Image(image) => {
                out.put_u8(tag::IMAGE);
                put_image(image, out);
            }
            PageChange::Zero => out.put_u8(tag::ZERO),
            PageChange::Record(part) => {
                out.put_u8(tag::RECORD);
                encode_part(part, out);
            }
            PageChange::VisibilityClear { heap_block, bits } => {
                out.put_u8(tag::VISIBILITY_CLEAR);
                out.put_u32_le(*heap_block);
                out.put_u8(*bits);
            }
            PageChange::VisibilityTruncate { heap_blocks } => {
                out.put_u8(tag::VISIBILITY_TRUNCATE);
                out.put_u32_le(*heap_blocks);
            }
            PageChange::XactStatus { status, xids } => {
                out.put_u8(tag::XACT_STATUS);
                out.put_u8(*status);
                xids.iter().for_each(|xid| out.put_u32_le(*xid));
            }
            PageChange::CommitTime { time, origin, xids } => {
                out.put_u8(tag::COMMIT_TIME);
                out.put_i64_le(*time);
                out.put_u16_le(*origin);
                xids.iter().for_each(|xid| out.put_u32_le(*xid));
            }
            PageChange::MultiOffsets(entries) => {
                out.put_u8(tag::MULTI_OFFSETS);
                for (multi, offset) in entries {
                    out.put_u32_le(*multi);
                    out.put_u32_le(*offset);
                }
            }
            PageChange::MultiMembers(members) => {
                out.put_u8(tag::MULTI_MEMBERS);
                for (offset, xid, status) in members {
                    out.put_u32_le(*offset);
                    out.put_u32_le(*xid);
                    out.put_u8(*status);
                }
            }
            PageChange::ZeroMultiOffsets => out.put_u8(tag::ZERO_MULTI_OFFSETS),
            PageChange::ImageThenRecord(both) => {
                let (image, part) = &**both;
                out.put_u8(tag::IMAGE_THEN_RECORD);
                put_image(image, out);
                encode_part(part, out);
            }
            PageChange::Unhandled { rmid, info, record } => {
                out.put_slice(&[tag::UNHANDLED, *rmid, *info]);
                out.put_slice(record);
            }
        }
    }

    /// Reads the disk form; variable parts borrow `bytes`.
    ///
    /// # Errors
    /// [`ChangeError`] for anything `encode` does not write.
    pub fn decode(bytes: &'a [u8]) -> Result<PageChange<'a>, ChangeError> {
        let mut fields = Cursor::new(bytes);
        let tag = fields.u8().ok_or(ChangeError::Empty)?;
        if !(tag::IMAGE..=tag::IMAGE_THEN_RECORD).contains(&tag) {
            return Err(ChangeError::UnknownTag(tag));
        }
        let change = decode_tagged(tag, &mut fields).ok_or(ChangeError::Malformed(tag))?;
        if !fields.is_at_end() {
            return Err(ChangeError::Malformed(tag));
        }
        Ok(change)
    }
}

fn decode_tagged<'a>(tag: u8, fields: &mut Cursor<'a>) -> Option<PageChange<'a>> {
    Some(match tag {
        tag::IMAGE => PageChange::Image(page_image(fields)?),
        tag::ZERO => PageChange::Zero,
        tag::RECORD => PageChange::Record(decode_part(fields)?),
        tag::VISIBILITY_CLEAR => {
            let heap_block = fields.u32()?;
            let bits = fields.u8().filter(|bits| (1..=3).contains(bits))?;
            PageChange::VisibilityClear { heap_block, bits }
        }
        tag::VISIBILITY_TRUNCATE => PageChange::VisibilityTruncate { heap_blocks: fields.u32()? },
        tag::XACT_STATUS => {
            let status = fields.u8().filter(|status| *status <= 3)?;
            PageChange::XactStatus { status, xids: remaining_words(fields)? }
        }
        tag::COMMIT_TIME => {
            let (time, origin) = (fields.i64()?, fields.u16()?);
            PageChange::CommitTime { time, origin, xids: remaining_words(fields)? }
        }
        tag::MULTI_OFFSETS => {
            let mut entries = Vec::new();
            while !fields.is_at_end() {
                entries.push((fields.u32()?, fields.u32()?));
            }
            PageChange::MultiOffsets(entries)
        }
        tag::MULTI_MEMBERS => {
            let mut members = Vec::new();
            while !fields.is_at_end() {
                members.push((fields.u32()?, fields.u32()?, fields.u8()?));
            }
            PageChange::MultiMembers(members)
        }
        tag::ZERO_MULTI_OFFSETS => PageChange::ZeroMultiOffsets,
        tag::IMAGE_THEN_RECORD => {
            PageChange::ImageThenRecord(Box::new((page_image(fields)?, decode_part(fields)?)))
        }
        tag::UNHANDLED => {
            let (rmid, info) = (fields.u8()?, fields.u8()?);
            PageChange::Unhandled { rmid, info, record: Cow::Borrowed(fields.rest()) }
        }
        _ => return None,
    })
}

fn put_image(image: &Image<'_>, out: &mut Vec<u8>) {
    let begin = out.len();
    out.resize(begin + PAGE_SIZE, 0);
    if let Some(page) = out.last_chunk_mut::<PAGE_SIZE>() {
        image.copy_to(page);
    }
}

fn page_image<'a>(fields: &mut Cursor<'a>) -> Option<Image<'a>> {
    fields.slice(PAGE_SIZE)?.first_chunk().map(Image::whole)
}

fn remaining_words(fields: &mut Cursor<'_>) -> Option<Xids> {
    let mut words = Xids::new();
    while !fields.is_at_end() {
        words.push(fields.u32()?);
    }
    Some(words)
}

fn encode_part(part: &RecordPart<'_>, out: &mut Vec<u8>) {
    let will_init = if part.will_init { FLAG_WILL_INIT } else { 0 };
    let hints_logged = if part.hints_logged { FLAG_HINTS_LOGGED } else { 0 };
    out.put_slice(&[part.rmid, part.info, will_init | hints_logged, part.block_id]);
    out.put_u32_le(part.xid);
    // A record has at most 33 blocks and 65,535 bytes of data for each: both fit their fields.
    out.put_u8(part.blocks.len() as u8);
    for block in &part.blocks {
        out.put_u8(block.id | if block.has_data { BLOCK_HAS_DATA } else { 0 });
        out.put_u32_le(block.block);
    }
    out.put_u16_le(part.data.len() as u16);
    out.put_slice(&part.data);
    out.put_slice(&part.main);
}

fn decode_part<'a>(fields: &mut Cursor<'a>) -> Option<RecordPart<'a>> {
    let (rmid, info, flags, block_id) = (fields.u8()?, fields.u8()?, fields.u8()?, fields.u8()?);
    if flags & !(FLAG_WILL_INIT | FLAG_HINTS_LOGGED) != 0 {
        return None;
    }
    let xid = fields.u32()?;
    let mut blocks = PartBlocks::new();
    for _ in 0..fields.u8()? {
        let (id, block) = (fields.u8()?, fields.u32()?);
        blocks.push(PartBlock {
            id: id & !BLOCK_HAS_DATA,
            block,
            has_data: id & BLOCK_HAS_DATA != 0,
        });
    }
    let data_len = fields.u16()?;
    Some(RecordPart {
        rmid,
        info,
        xid,
        block_id,
        will_init: flags & FLAG_WILL_INIT != 0,
        hints_logged: flags & FLAG_HINTS_LOGGED != 0,
        blocks,
        data: Cow::Borrowed(fields.slice(usize::from(data_len))?),
        main: Cow::Borrowed(fields.rest()),
    })
}

#[cfg(test)]
mod tests;
