//! A decoded WAL record (`access/xlogrecord.h`).
//!
//! ```text
//!  header, 24 bytes: tot_len u32 | xid u32 | prev u64 | info u8 | rmid u8 | 0 0 | crc u32
//!  block headers (ids ascending), origin, top-level xid, main data header (always last)
//!  for each block: image, data
//!  main data
//! ```
//!
//! All parts of a [`Record`] share the record's own buffer: taking one apart copies nothing. A record whose
//! parts do not add up to its length exactly is refused.

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::panic))]

use bytes::Bytes;
use treering_types::{Fork, Lsn, PAGE_SIZE, RelTag};

use super::error::WalError;
use crate::{
    le::{array_at, u8_at, u32_at, u64_at},
    version::{ImageFlags, PgMajor},
};

/// Bytes of a record header (`SizeOfXLogRecord`).
pub const RECORD_HEADER_SIZE: usize = 24;
/// No record is longer: Postgres cannot allocate more at once (`XLogRecordMaxSize` of 16 and later is below).
pub const RECORD_SIZE_MAX: u32 = 0x3fff_ffff;

/// `XLR_BLOCK_ID_*`: what a header fragment is, when it is no block reference.
pub const ID_MAIN_SHORT: u8 = 255;
pub const ID_MAIN_LONG: u8 = 254;
const ID_ORIGIN: u8 = 253;
const ID_TOPLEVEL_XID: u8 = 252;
/// `XLR_MAX_BLOCK_ID`.
const BLOCK_ID_MAX: u8 = 32;

/// `BKPBLOCK_*`: the flags beside the fork number.
const BLOCK_FORK_MASK: u8 = 0x0F;
const BLOCK_HAS_IMAGE: u8 = 0x10;
const BLOCK_HAS_DATA: u8 = 0x20;
const BLOCK_WILL_INIT: u8 = 0x40;
const BLOCK_SAME_REL: u8 = 0x80;

/// One WAL record without page headers, its CRC verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawRecord {
    /// First byte of the record header.
    pub start: Lsn,
    /// Position after the record, rounded up to 8; for an XLOG SWITCH the start of the next segment.
    pub end: Lsn,
    /// `xl_tot_len` bytes, header included.
    pub bytes: Bytes,
}

/// The fields of a record's first 24 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordHeader {
    pub total_len: u32,
    pub xid: u32,
    pub prev: Lsn,
    pub info: u8,
    pub rmid: u8,
    pub crc: u32,
}

impl RecordHeader {
    /// Reads the first 24 bytes; `None` if there are fewer.
    pub fn parse(bytes: &[u8]) -> Option<RecordHeader> {
        let head: [u8; RECORD_HEADER_SIZE] = array_at(bytes, 0)?;
        Some(RecordHeader {
            total_len: u32_at(&head, 0)?,
            xid: u32_at(&head, 4)?,
            prev: Lsn(u64_at(&head, 8)?),
            info: u8_at(&head, 16)?,
            rmid: u8_at(&head, 17)?,
            crc: u32_at(&head, 20)?,
        })
    }

    /// True for the record after which the rest of the segment is filler (`XLOG_SWITCH`).
    pub fn is_switch(&self) -> bool {
        self.rmid == 0 && self.info & 0xF0 == 0x40
    }
}

/// The CRC-32C of a whole record: everything after the header, then the header up to the CRC field.
/// `bytes` has at least 24 bytes; shorter input counts as empty.
pub fn record_crc(bytes: &[u8]) -> u32 {
    let body = bytes.get(RECORD_HEADER_SIZE..).unwrap_or(&[]);
    let head = bytes.get(..RECORD_HEADER_SIZE - 4).unwrap_or(&[]);
    crc32c::crc32c_append(crc32c::crc32c(body), head)
}

/// A record taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub start: Lsn,
    pub end: Lsn,
    /// Start of the record before (`xl_prev`).
    pub prev: Lsn,
    pub xid: u32,
    pub rmid: u8,
    /// The whole info byte: the high four bits belong to the resource manager, 0x02 is the consistency check.
    pub info: u8,
    pub toplevel_xid: Option<u32>,
    pub origin: Option<u16>,
    /// The main data, possibly empty.
    pub main: Bytes,
    /// Block references in record order (ids ascend).
    pub blocks: Vec<Block>,
    /// The whole record as in [`RawRecord::bytes`]: kept for blocks this version cannot redo.
    pub raw: Bytes,
}

/// One block reference of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    pub id: u8,
    pub rel: RelTag,
    pub block: u32,
    /// `BKPBLOCK_WILL_INIT`: redo builds the page from nothing.
    pub will_init: bool,
    /// Block data, possibly empty.
    pub data: Bytes,
    pub image: Option<BlockImage>,
}

/// A full-page image inside a record, still packed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockImage {
    /// The image is to be restored by redo; otherwise it only serves `wal_consistency_checking`.
    pub apply: bool,
    pub hole_offset: u16,
    pub hole_length: u16,
    pub compression: ImageCompression,
    pub bytes: Bytes,
}

/// How a full-page image is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageCompression {
    None,
    Pglz,
    Lz4,
    Zstd,
}

impl Record {
    /// Takes a record apart.
    ///
    /// # Errors
    /// [`WalError::Malformed`] when the parts contradict each other or the length.
    pub fn decode(major: PgMajor, raw: &RawRecord) -> Result<Record, WalError> {
        let mut rest = Fields { bytes: &raw.bytes, at: 0 };
        decode(major, raw, &mut rest).map_err(|what| {
            let rmid = RecordHeader::parse(&raw.bytes).map_or(0, |header| header.rmid);
            WalError::Malformed { at: raw.start, rmid, offset: rest.at, what }
        })
    }

    /// Where a part of the record begins in it; the record's end for a part without bytes.
    pub fn offset_of(&self, part: &Bytes) -> usize {
        let offset = (part.as_ptr() as usize).checked_sub(self.raw.as_ptr() as usize);
        let offset = offset.filter(|offset| *offset < self.raw.len() && !part.is_empty());
        offset.unwrap_or(self.raw.len())
    }

    /// The block reference with this id.
    pub fn block(&self, id: u8) -> Option<&Block> {
        self.blocks.iter().find(|block| block.id == id)
    }

    /// The four info bits that belong to the resource manager.
    pub fn rmgr_info(&self) -> u8 {
        self.info & 0xF0
    }
}

/// Bytes that a block has in the record's tail, in this order.
#[derive(Clone, Copy, Default)]
struct Sizes {
    image: u16,
    data: u16,
}

/// All headers of a record. The blocks are without their image's and their own data yet.
struct Heads {
    blocks: Vec<Block>,
    /// As many as there are blocks, then zeros.
    sizes: [Sizes; BLOCK_ID_MAX as usize + 1],
    toplevel_xid: Option<u32>,
    origin: Option<u16>,
    main_len: usize,
}

/// `rest` is moved along; where it stands after an error is where the fault is.
fn decode(major: PgMajor, raw: &RawRecord, rest: &mut Fields<'_>) -> Result<Record, &'static str> {
    let header = RecordHeader::parse(&raw.bytes).ok_or("shorter than its header")?;
    if header.total_len as usize != raw.bytes.len() {
        return Err("length differs from the header's");
    }
    rest.at = RECORD_HEADER_SIZE;
    let mut heads = read_heads(rest, &major.layout().image_flags)?;
    for (block, sizes) in heads.blocks.iter_mut().zip(heads.sizes) {
        if let Some(image) = &mut block.image {
            image.bytes = rest.part(&raw.bytes, usize::from(sizes.image))?;
        }
        block.data = rest.part(&raw.bytes, usize::from(sizes.data))?;
    }
    let main = rest.part(&raw.bytes, heads.main_len)?;
    if rest.left() > 0 {
        return Err("longer than its parts");
    }
    Ok(Record {
        start: raw.start,
        end: raw.end,
        raw: raw.bytes.clone(),
        prev: header.prev,
        xid: header.xid,
        rmid: header.rmid,
        info: header.info,
        toplevel_xid: heads.toplevel_xid,
        origin: heads.origin,
        main,
        blocks: heads.blocks,
    })
}

/// Headers end with the main data's, or, in a record without main data, where the announced data begins.
fn read_heads(rest: &mut Fields<'_>, flags: &ImageFlags) -> Result<Heads, &'static str> {
    let mut heads = Heads {
        blocks: Vec::new(),
        sizes: [Sizes::default(); BLOCK_ID_MAX as usize + 1],
        toplevel_xid: None,
        origin: None,
        main_len: 0,
    };
    let mut announced = 0_usize;
    while rest.left() > announced {
        match rest.u8()? {
            ID_MAIN_SHORT => {
                heads.main_len = usize::from(rest.u8()?);
                break;
            }
            ID_MAIN_LONG => {
                heads.main_len = rest.u32()? as usize;
                break;
            }
            ID_ORIGIN => heads.origin = Some(rest.u16()?),
            ID_TOPLEVEL_XID => heads.toplevel_xid = Some(rest.u32()?),
            id if id <= BLOCK_ID_MAX => {
                let (block, sizes) = read_block(rest, id, heads.blocks.last(), flags)?;
                // At most 33 blocks of at most 128 KiB: no overflow.
                announced += usize::from(sizes.image) + usize::from(sizes.data);
                let place = heads.sizes.get_mut(heads.blocks.len());
                *place.ok_or("too many blocks")? = sizes;
                heads.blocks.push(block);
            }
            _ => return Err("unknown fragment id"),
        }
    }
    Ok(heads)
}

fn read_block(
    rest: &mut Fields<'_>,
    id: u8,
    before: Option<&Block>,
    flags: &ImageFlags,
) -> Result<(Block, Sizes), &'static str> {
    if before.is_some_and(|before| before.id >= id) {
        return Err("block ids do not ascend");
    }
    let fork_flags = rest.u8()?;
    let fork = Fork::try_from(fork_flags & BLOCK_FORK_MASK).map_err(|_| "unknown fork")?;
    let data_len = rest.u16()?;
    if (fork_flags & BLOCK_HAS_DATA != 0) != (data_len > 0) {
        return Err("block data flag and length differ");
    }
    let (image, image_len) = if fork_flags & BLOCK_HAS_IMAGE != 0 {
        let (image, len) = read_image(rest, flags)?;
        (Some(image), len)
    } else {
        (None, 0)
    };
    let rel = if fork_flags & BLOCK_SAME_REL != 0 {
        before.ok_or("same relation as nothing")?.rel.with_fork(fork)
    } else {
        RelTag { tablespace: rest.u32()?, database: rest.u32()?, relation: rest.u32()?, fork }
    };
    let will_init = fork_flags & BLOCK_WILL_INIT != 0;
    let block = Block { id, rel, block: rest.u32()?, will_init, data: Bytes::new(), image };
    Ok((block, Sizes { image: image_len, data: data_len }))
}

fn read_image(
    rest: &mut Fields<'_>,
    flags: &ImageFlags,
) -> Result<(BlockImage, u16), &'static str> {
    let len = rest.u16()?;
    let hole_offset = rest.u16()?;
    let info = rest.u8()?;
    let has_hole = info & flags.has_hole != 0;
    let compression = compression_of(info, flags)?;
    let hole_length = match compression {
        ImageCompression::None => (PAGE_SIZE as u16).checked_sub(len).ok_or("image too long")?,
        _ if has_hole => rest.u16()?,
        _ => 0,
    };
    let hole_end = usize::from(hole_offset) + usize::from(hole_length);
    if has_hole && (hole_offset == 0 || hole_length == 0 || hole_end > PAGE_SIZE) {
        return Err("impossible hole in an image");
    }
    if !has_hole && (hole_offset != 0 || hole_length != 0) {
        return Err("image has an unannounced hole");
    }
    if compression != ImageCompression::None && usize::from(len) >= PAGE_SIZE {
        return Err("compressed image is not smaller than a page");
    }
    let apply = info & flags.apply != 0;
    let image = BlockImage { apply, hole_offset, hole_length, compression, bytes: Bytes::new() };
    Ok((image, len))
}

fn compression_of(info: u8, flags: &ImageFlags) -> Result<ImageCompression, &'static str> {
    let methods = [
        (0, ImageCompression::None),
        (flags.pglz, ImageCompression::Pglz),
        (flags.lz4, ImageCompression::Lz4),
        (flags.zstd, ImageCompression::Zstd),
    ];
    let method = info & !(flags.has_hole | flags.apply);
    let found = methods.into_iter().find(|(bits, _)| *bits == method);
    found.map(|(_, compression)| compression).ok_or("unknown image compression")
}

/// A checked cursor over a record.
struct Fields<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Fields<'_> {
    fn left(&self) -> usize {
        self.bytes.len().saturating_sub(self.at)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], &'static str> {
        let found = array_at(self.bytes, self.at).ok_or("ends within a header")?;
        self.at += N;
        Ok(found)
    }

    /// The next `len` bytes of `whole`, which are the ones the cursor is over, shared.
    fn part(&mut self, whole: &Bytes, len: usize) -> Result<Bytes, &'static str> {
        if len > self.left() {
            return Err("shorter than its parts");
        }
        let begin = self.at;
        self.at += len;
        Ok(if len == 0 { Bytes::new() } else { whole.slice(begin..self.at) })
    }

    fn u8(&mut self) -> Result<u8, &'static str> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn u16(&mut self) -> Result<u16, &'static str> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32, &'static str> {
        self.array().map(u32::from_le_bytes)
    }
}
