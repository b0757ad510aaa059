//! A decoded WAL record (`access/xlogrecord.h`).
//!
//! ```text
//!  header, 24 bytes: tot_len u32 | xid u32 | prev u64 | info u8 | rmid u8 | 0 0 | crc u32
//!  block headers (ids ascending), origin, top-level xid, main data header (always last)
//!  for each block: image, data
//!  main data
//! ```
//!
//! All parts of a [`Record`] borrow the record's bytes: taking one apart copies and allocates nothing. A record whose
//! parts do not add up to its length exactly is refused.

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::panic))]

use std::iter;

use smallvec::SmallVec;
use treering_types::{Fork, Lsn, PAGE_SIZE, RelTag};

use super::{
    error::WalError,
    pieces::{Pieces, RecordBytes},
};
use crate::{
    crc::crc32c_of,
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
pub struct RawRecord<'a> {
    /// First byte of the record header.
    pub start: Lsn,
    /// Position after the record, rounded up to 8; for an XLOG SWITCH the start of the next segment.
    pub end: Lsn,
    /// `xl_tot_len` bytes, header included.
    pub bytes: RecordBytes<'a>,
}

impl RawRecord<'_> {
    /// The same with bytes of its own.
    pub fn into_owned(self) -> RawRecord<'static> {
        RawRecord { start: self.start, end: self.end, bytes: self.bytes.into_owned() }
    }
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
    pieces_crc(bytes, [].into_iter())
}

/// As [`record_crc`], of a record that goes on in `more`.
pub(super) fn pieces_crc<'a>(front: &'a [u8], more: impl Iterator<Item = &'a [u8]>) -> u32 {
    let body = front.get(RECORD_HEADER_SIZE..).unwrap_or(&[]);
    let head = front.get(..RECORD_HEADER_SIZE - 4).unwrap_or(&[]);
    crc32c_of(iter::once(body).chain(more).chain(iter::once(head)))
}

/// A record taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record<'a> {
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
    pub main: &'a [u8],
    /// Block references in record order (ids ascend).
    pub blocks: Blocks<'a>,
    /// The whole record as in [`RawRecord::bytes`]: kept for blocks this version cannot redo.
    pub raw: &'a RecordBytes<'a>,
}

/// Few records have more than two block references.
pub type Blocks<'a> = SmallVec<[Block<'a>; 2]>;

/// One block reference of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block<'a> {
    pub id: u8,
    pub rel: RelTag,
    pub block: u32,
    /// `BKPBLOCK_WILL_INIT`: redo builds the page from nothing.
    pub will_init: bool,
    /// Block data, possibly empty.
    pub data: &'a [u8],
    pub image: Option<BlockImage<'a>>,
}

/// A full-page image inside a record, still packed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockImage<'a> {
    /// The image is to be restored by redo; otherwise it only serves `wal_consistency_checking`.
    pub apply: bool,
    pub hole_offset: u16,
    pub hole_length: u16,
    pub compression: ImageCompression,
    pub bytes: Pieces<'a>,
}

/// How a full-page image is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageCompression {
    None,
    Pglz,
    Lz4,
    Zstd,
}

impl<'a> Record<'a> {
    /// Takes a record apart.
    ///
    /// # Errors
    /// [`WalError::Malformed`] when the parts contradict each other or the length.
    pub fn decode(major: PgMajor, raw: &'a RawRecord<'_>) -> Result<Record<'a>, WalError> {
        let mut record = Record::of(raw);
        record.take_apart(major)?;
        Ok(record)
    }

    /// A record of which only its place is known, for [`Record::take_apart`].
    #[inline]
    pub fn of(raw: &'a RawRecord<'_>) -> Record<'a> {
        Record {
            start: raw.start,
            end: raw.end,
            prev: Lsn::INVALID,
            xid: 0,
            rmid: 0,
            info: 0,
            toplevel_xid: None,
            origin: None,
            main: &[],
            blocks: Blocks::new(),
            raw: &raw.bytes,
        }
    }

    /// Fills a new [`Record::of`], where it is. A record is a few hundred bytes, some just written one by one: to move it is
    /// to wait until they are in the cache, behind whatever was written to memory before.
    ///
    /// # Errors
    /// As [`Record::decode`]. The record is then of no use.
    pub fn take_apart(&mut self, major: PgMajor) -> Result<(), WalError> {
        let mut rest = Fields { bytes: self.raw, front: self.raw.front(), at: 0 };
        // Where `rest` stands after an error is where the fault is.
        self.read(&mut rest, &major.layout().image_flags).map_err(|what| {
            let (at, rmid) = (self.start, self.rmid);
            WalError::Malformed { at, rmid, offset: rest.at, what }
        })
    }

    /// Reads all of `rest`, the record's bytes.
    fn read(&mut self, rest: &mut Fields<'a>, flags: &ImageFlags) -> Result<(), &'static str> {
        let header = rest.bytes.part(0, RECORD_HEADER_SIZE).and_then(RecordHeader::parse);
        let header = header.ok_or("shorter than its header")?;
        (self.prev, self.xid) = (header.prev, header.xid);
        (self.rmid, self.info) = (header.rmid, header.info);
        if header.total_len as usize != rest.bytes.len() {
            return Err("length differs from the header's");
        }
        rest.at = RECORD_HEADER_SIZE;
        let mut sizes = SmallVec::new();
        let main_len = self.read_heads(rest, &mut sizes, flags)?;
        for (block, sizes) in self.blocks.iter_mut().zip(sizes) {
            if let Some(image) = &mut block.image {
                image.bytes = rest.pieces(usize::from(sizes.image))?;
            }
            block.data = rest.part(usize::from(sizes.data))?;
        }
        self.main = rest.part(main_len)?;
        if rest.left() > 0 { Err("longer than its parts") } else { Ok(()) }
    }

    /// The headers after the first; answers with the length of the main data. The blocks are without their image's and
    /// their own data yet, whose sizes come into `sizes`.
    ///
    /// Headers end with the main data's, or, in a record without main data, where the announced data begins.
    fn read_heads(
        &mut self,
        rest: &mut Fields<'a>,
        sizes: &mut SmallVec<[Sizes; 2]>,
        flags: &ImageFlags,
    ) -> Result<usize, &'static str> {
        let mut announced = 0_usize;
        while rest.left() > announced {
            match rest.u8()? {
                ID_MAIN_SHORT => return Ok(usize::from(rest.u8()?)),
                ID_MAIN_LONG => return Ok(rest.u32()? as usize),
                ID_ORIGIN => self.origin = Some(rest.u16()?),
                ID_TOPLEVEL_XID => self.toplevel_xid = Some(rest.u32()?),
                id if id <= BLOCK_ID_MAX => {
                    let (block, size) = read_block(rest, id, self.blocks.last(), flags)?;
                    // Ids ascend: at most 33 blocks of at most 128 KiB, no overflow.
                    announced += usize::from(size.image) + usize::from(size.data);
                    self.blocks.push(block);
                    sizes.push(size);
                }
                _ => return Err("unknown fragment id"),
            }
        }
        Ok(0)
    }

    /// Where a part of the record begins in it; the record's end for a part without bytes.
    pub fn offset_of(&self, part: &[u8]) -> usize {
        self.raw.offset_of(part).unwrap_or(self.raw.len())
    }

    /// The block reference with this id.
    pub fn block(&self, id: u8) -> Option<&Block<'a>> {
        self.blocks.iter().find(|block| block.id == id)
    }

    /// The four info bits that belong to the resource manager.
    pub fn rmgr_info(&self) -> u8 {
        self.info & 0xF0
    }
}

/// Bytes that a block has in the record's tail, in this order.
#[derive(Clone, Copy)]
struct Sizes {
    image: u16,
    data: u16,
}

#[inline(always)]
fn read_block<'a>(
    rest: &mut Fields<'a>,
    id: u8,
    before: Option<&Block<'a>>,
    flags: &ImageFlags,
) -> Result<(Block<'a>, Sizes), &'static str> {
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
    let block = Block { id, rel, block: rest.u32()?, will_init, data: &[], image };
    Ok((block, Sizes { image: image_len, data: data_len }))
}

#[inline]
fn read_image<'a>(
    rest: &mut Fields<'a>,
    flags: &ImageFlags,
) -> Result<(BlockImage<'a>, u16), &'static str> {
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
    let image =
        BlockImage { apply, hole_offset, hole_length, compression, bytes: Pieces::default() };
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
    bytes: &'a RecordBytes<'a>,
    /// The bytes up to the first cut: nearly always all headers.
    front: &'a [u8],
    at: usize,
}

impl<'a> Fields<'a> {
    fn left(&self) -> usize {
        self.bytes.len().saturating_sub(self.at)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], &'static str> {
        let found = array_at(self.front, self.at)
            .or_else(|| self.bytes.part(self.at, N)?.first_chunk().copied());
        let found = found.ok_or("ends within a header")?;
        self.at += N;
        Ok(found)
    }

    /// The next `len` bytes, if they are not behind the first cut.
    fn in_front(&self, len: usize) -> Option<&'a [u8]> {
        self.front.get(self.at..)?.get(..len)
    }

    /// The next `len` bytes.
    fn part(&mut self, len: usize) -> Result<&'a [u8], &'static str> {
        let part = self.in_front(len).or_else(|| self.bytes.part(self.at, len));
        let part = part.ok_or("shorter than its parts")?;
        self.at += len;
        Ok(part)
    }

    /// The next `len` bytes, which may be cut.
    fn pieces(&mut self, len: usize) -> Result<Pieces<'a>, &'static str> {
        let pieces = self.in_front(len).map(Pieces::from);
        let pieces = pieces.or_else(|| self.bytes.pieces(self.at, len));
        let pieces = pieces.ok_or("shorter than its parts")?;
        self.at += len;
        Ok(pieces)
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
