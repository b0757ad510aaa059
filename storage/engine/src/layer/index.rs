//! The block index of a layer file: where each block lies and where it begins in key order.

use treering_types::{KEY_SIZE, Key, Lsn};

use crate::binary::{Malformed, Put, Reader};

/// Bytes of one encoded entry.
const BLOCK_REF_SIZE: usize = KEY_SIZE + 8 + 8 + 4 + 4;

/// One block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BlockRef {
    /// Key and LSN of its first entry.
    pub first: (Key, Lsn),
    pub offset: u64,
    /// Bytes in the file, crc32 included.
    pub stored_len: u32,
    /// Bytes once unpacked.
    pub raw_len: u32,
}

/// All blocks of a file, in order, without gaps from the header on.
#[derive(Clone, Debug, Default)]
pub(crate) struct BlockIndex {
    pub blocks: Vec<BlockRef>,
}

impl BlockIndex {
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(4 + self.blocks.len() * BLOCK_REF_SIZE);
        out.put_count(self.blocks.len());
        for block in &self.blocks {
            out.extend_from_slice(&block.first.0.0);
            out.put_u64(block.first.1.0);
            out.put_u64(block.offset);
            out.put_u32(block.stored_len);
            out.put_u32(block.raw_len);
        }
        out
    }

    /// Reads an index whose blocks fill the file from `blocks_start` to `blocks_end`.
    pub fn decode(bytes: &[u8], blocks_start: u64, blocks_end: u64) -> Result<Self, Malformed> {
        let mut reader = Reader::new(bytes);
        let count = reader.count(BLOCK_REF_SIZE)?;
        let mut blocks: Vec<BlockRef> = Vec::with_capacity(count);
        let mut at = blocks_start;
        for _ in 0..count {
            let first = (Key(reader.array()?), Lsn(reader.u64()?));
            let offset = reader.u64()?;
            let (stored_len, raw_len) = (reader.u32()?, reader.u32()?);
            if offset != at || blocks.last().is_some_and(|last| last.first > first) {
                return Err(Malformed("blocks of the index are out of order"));
            }
            at = at.checked_add(u64::from(stored_len)).ok_or(Malformed("a block overflows"))?;
            blocks.push(BlockRef { first, offset, stored_len, raw_len });
        }
        reader.finish()?;
        if at != blocks_end || blocks.is_empty() {
            return Err(Malformed("blocks of the index do not fill the file"));
        }
        Ok(BlockIndex { blocks })
    }

    /// The last block that begins at or before (key, upto): where the newest such value of the key is, if anywhere.
    pub fn block_of(&self, key: &Key, upto: Lsn) -> Option<usize> {
        self.blocks.partition_point(|block| block.first <= (*key, upto)).checked_sub(1)
    }

    /// The first block that may hold a key at or above `key`.
    pub fn block_from(&self, key: &Key) -> usize {
        self.blocks.partition_point(|block| block.first.0 < *key).saturating_sub(1)
    }
}
