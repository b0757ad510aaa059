//! Blocks: the unit of compression, checking and caching of a layer file.
//!
//! Uncompressed, a block is its entries back to back, then the offset of each entry, then their count. On disk it is one zstd
//! frame of that, followed by the frame's crc32. Entries are in (key, LSN) order; equal ones in the order they were written.

use std::cell::RefCell;

use bytes::Bytes;
use treering_types::{KEY_SIZE, Key, Lsn};

use super::Entry;
use crate::binary::{Malformed, Put, Reader};

/// Bytes of an entry before its value: key, LSN, flags, chain, value length.
pub(crate) const ENTRY_HEADER: usize = KEY_SIZE + 8 + 1 + 2 + 4;
const FLAG_BASE: u8 = 1;
/// Measured: `docs/decisions/0007-layer-blocks.md`.
const ZSTD_LEVEL: i32 = 1;
/// Bytes of the crc32 behind every section of a file.
pub(crate) const CRC_SIZE: usize = 4;

/// Collects entries until the block is large enough.
pub(crate) struct BlockBuilder {
    raw: Vec<u8>,
    offsets: Vec<u32>,
    first: Option<(Key, Lsn)>,
    compressor: zstd::bulk::Compressor<'static>,
}

/// A finished block.
pub(crate) struct BuiltBlock {
    pub first: (Key, Lsn),
    /// zstd frame and crc32.
    pub stored: Vec<u8>,
    pub raw_len: u32,
}

impl BlockBuilder {
    pub fn new() -> std::io::Result<BlockBuilder> {
        let compressor = zstd::bulk::Compressor::new(ZSTD_LEVEL)?;
        Ok(BlockBuilder { raw: Vec::new(), offsets: Vec::new(), first: None, compressor })
    }

    /// Bytes collected so far.
    pub fn len(&self) -> usize {
        self.raw.len()
    }

    /// # Panics
    /// When a block would pass 4 GiB: values are bounded by `VALUE_BYTES_MAX`, so that is a bug.
    pub fn push(&mut self, entry: &Entry) {
        self.first.get_or_insert((entry.key, entry.lsn));
        self.offsets.push(u32::try_from(self.raw.len()).expect("a block is below 4 GiB"));
        self.raw.extend_from_slice(&entry.key.0);
        self.raw.put_u64(entry.lsn.0);
        self.raw.put_u8(if entry.base { FLAG_BASE } else { 0 });
        self.raw.put_u16(entry.chain);
        self.raw.put_count(entry.bytes.len());
        self.raw.extend_from_slice(&entry.bytes);
    }

    /// The block of everything pushed since the last call; `None` when that was nothing.
    pub fn finish(&mut self) -> std::io::Result<Option<BuiltBlock>> {
        let Some(first) = self.first.take() else { return Ok(None) };
        for offset in &self.offsets {
            self.raw.put_u32(*offset);
        }
        self.raw.put_count(self.offsets.len());
        let mut stored = self.compressor.compress(&self.raw)?;
        stored.put_u32(crc32fast::hash(&stored));
        let raw_len = u32::try_from(self.raw.len()).expect("a block is below 4 GiB");
        self.raw.clear();
        self.offsets.clear();
        Ok(Some(BuiltBlock { first, stored, raw_len }))
    }
}

/// A block in memory, checked.
#[derive(Debug)]
pub(crate) struct Block {
    raw: Bytes,
    heads: Vec<Head>,
}

/// Everything of an entry but its value.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Head {
    pub key: Key,
    pub lsn: Lsn,
    pub base: bool,
    pub chain: u16,
    value_start: u32,
    value_len: u32,
}

impl Head {
    fn position(&self) -> (Key, Lsn) {
        (self.key, self.lsn)
    }
}

impl Block {
    /// Checks and unpacks a stored block that the index says unpacks to `raw_len` bytes.
    pub fn decode(stored: &[u8], raw_len: u32) -> Result<Block, String> {
        let (frame, crc) = split_crc(stored).ok_or("block is too short")?;
        if crc32fast::hash(frame) != crc {
            return Err("block checksum mismatch".to_owned());
        }
        let raw = decompress(frame, raw_len as usize).map_err(|error| error.to_string())?;
        if raw.len() != raw_len as usize {
            return Err(format!("block unpacks to {} bytes, not {raw_len}", raw.len()));
        }
        let raw = Bytes::from(raw);
        let heads = parse(&raw).map_err(|Malformed(what)| what)?;
        Ok(Block { raw, heads })
    }

    /// Memory in use, roughly.
    pub fn memory(&self) -> usize {
        self.raw.len() + self.heads.len() * size_of::<Head>() + 64
    }

    /// All entries' heads, in order.
    pub fn heads(&self) -> &[Head] {
        &self.heads
    }

    /// The value of an entry of this block.
    pub fn value(&self, head: &Head) -> Bytes {
        let start = head.value_start as usize;
        self.raw.slice(start..start + head.value_len as usize)
    }

    /// Index just past the last entry at or below (key, upto).
    pub fn end_of(&self, key: &Key, upto: Lsn) -> usize {
        self.heads.partition_point(|head| head.position() <= (*key, upto))
    }

    /// Index of the first entry with a key at or above `key`.
    pub fn start_of(&self, key: &Key) -> usize {
        self.heads.partition_point(|head| head.key < *key)
    }
}

/// Splits a section into its bytes and the crc32 behind them.
pub(crate) fn split_crc(section: &[u8]) -> Option<(&[u8], u32)> {
    let (bytes, crc) = section.split_last_chunk::<CRC_SIZE>()?;
    Some((bytes, u32::from_le_bytes(*crc)))
}

fn decompress(frame: &[u8], capacity: usize) -> std::io::Result<Vec<u8>> {
    thread_local! {
        static CONTEXT: RefCell<Option<zstd::bulk::Decompressor<'static>>> = const { RefCell::new(None) };
    }
    CONTEXT.with_borrow_mut(|context| {
        let context = match context {
            Some(context) => context,
            None => context.insert(zstd::bulk::Decompressor::new()?),
        };
        context.decompress(frame, capacity)
    })
}

fn parse(raw: &[u8]) -> Result<Vec<Head>, Malformed> {
    let (rest, count) = split_crc(raw).ok_or(Malformed("block has no entry count"))?;
    let table = (count as usize).checked_mul(4).and_then(|len| rest.len().checked_sub(len));
    let entries_len = table.ok_or(Malformed("block is too short for its entries"))?;
    let (entries, offsets) = rest.split_at(entries_len);
    let mut offsets = Reader::new(offsets);
    let mut reader = Reader::new(entries);
    let mut heads: Vec<Head> = Vec::with_capacity(count as usize);
    let mut at = 0u32;
    for _ in 0..count {
        if offsets.u32()? != at {
            return Err(Malformed("entry offsets of a block do not match its entries"));
        }
        let head = parse_head(&mut reader, at)?;
        if heads.last().is_some_and(|last| last.position() > head.position()) {
            return Err(Malformed("entries of a block are out of order"));
        }
        at = head.value_start + head.value_len;
        heads.push(head);
    }
    reader.finish()?;
    if heads.is_empty() { Err(Malformed("block is empty")) } else { Ok(heads) }
}

/// `at` plus what is read stays below the raw length, which is a `u32`.
fn parse_head(reader: &mut Reader<'_>, at: u32) -> Result<Head, Malformed> {
    let key = Key(reader.array()?);
    let lsn = Lsn(reader.u64()?);
    let flags = reader.u8()?;
    let chain = reader.u16()?;
    let value_len = reader.u32()?;
    reader.bytes(value_len as usize)?;
    if flags & !FLAG_BASE != 0 {
        return Err(Malformed("unknown entry flags"));
    }
    let value_start = at + ENTRY_HEADER as u32;
    Ok(Head { key, lsn, base: flags & FLAG_BASE != 0, chain, value_start, value_len })
}

#[cfg(test)]
mod tests {
    use treering_types::SlruKind;

    use super::*;

    fn entry(page: u32, lsn: u64, text: &'static str) -> Entry {
        let key = Key::slru(SlruKind::Xact, page);
        let bytes = Bytes::from_static(text.as_bytes());
        Entry { key, lsn: Lsn(lsn), base: lsn == 1, chain: lsn as u16, bytes }
    }

    fn sample() -> (Vec<Entry>, BuiltBlock) {
        let entries =
            vec![entry(1, 1, "a"), entry(1, 5, ""), entry(1, 5, "bb"), entry(3, 2, "ccc")];
        let mut builder = BlockBuilder::new().unwrap();
        entries.iter().for_each(|entry| builder.push(entry));
        (entries, builder.finish().unwrap().unwrap())
    }

    #[test]
    fn round_trip_and_lookup() {
        let (entries, built) = sample();
        let block = Block::decode(&built.stored, built.raw_len).unwrap();
        for (head, entry) in block.heads().iter().zip(&entries) {
            assert_eq!((head.key, head.lsn, head.base), (entry.key, entry.lsn, entry.base));
            assert_eq!((head.chain, block.value(head)), (entry.chain, entry.bytes.clone()));
        }
        assert_eq!(block.end_of(&entries[0].key, Lsn(4)), 1);
        assert_eq!(block.end_of(&entries[0].key, Lsn(5)), 3);
        assert_eq!(block.start_of(&entries[3].key), 3);
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let (_, built) = sample();
        for bit in 0..built.stored.len() * 8 {
            let mut stored = built.stored.clone();
            stored[bit / 8] ^= 1 << (bit % 8);
            assert!(Block::decode(&stored, built.raw_len).is_err(), "bit {bit}");
        }
        assert!(Block::decode(&built.stored, built.raw_len + 1).is_err());
        assert!(Block::decode(&built.stored[..3], built.raw_len).is_err());
    }

    #[test]
    fn hostile_contents_behind_a_good_checksum() {
        for raw in [&[][..], &[0; 4], &[255; 4], &[1, 0, 0, 0], &[0; 64]] {
            assert!(parse(raw).is_err(), "{raw:?}");
        }
    }
}
