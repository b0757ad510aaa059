//! Existence, size and cuts of one relation fork: the value at a `RelMeta` key.
//!
//! Page history of a relation is never rewritten: a truncation, a drop or a reuse of the relfilenumber leaves a *cut*
//! here, and page reads ignore what lies below it (`WAL.md` E6). The encoding is described in `docs/formats/layer.md`.

use treering_types::{Lsn, RelTag};

use crate::binary::{Malformed, Put, Reader};

/// Version byte of the encoding.
const VERSION: u8 = 1;
const HAS_COPY: u8 = 1;
const COPIED_OUT: u8 = 2;
const HAS_COPIED_BLOCKS: u8 = 4;

/// One relation fork at one LSN. A dropped one has a tombstone at its key instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelMeta {
    /// Size in blocks.
    pub blocks: u32,
    /// Monotone stack, LSNs and blocks both rising: values of a page at block `>= cut.1` with an LSN `<= cut.0`
    /// are not part of the relation any more.
    pub cuts: Vec<(Lsn, u32)>,
    /// Pages without a value above `copy_of.lsn` are those of another relation (CREATE DATABASE STRATEGY FILE_COPY).
    pub copy_of: Option<CopyOf>,
    /// How many blocks were copied: later ones never were the source's. Not known of copies that an early version took.
    pub copied_blocks: Option<u32>,
    /// Compaction has written the copied pages out, as values at `copy_of.lsn`: the source is not needed.
    pub copied_out: bool,
}

/// Where the pages of a copied relation come from: the same relation and fork in another database directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopyOf {
    pub tablespace: u32,
    pub database: u32,
    /// The copy shows the source as of this LSN.
    pub lsn: Lsn,
}

impl CopyOf {
    /// The source of `rel`.
    pub const fn source(&self, rel: RelTag) -> RelTag {
        RelTag { tablespace: self.tablespace, database: self.database, ..rel }
    }
}

impl RelMeta {
    /// A fork that a record ending at `lsn` created, empty: page values at or before `lsn` are not its own.
    pub fn created(lsn: Lsn) -> RelMeta {
        let cuts = vec![(lsn, 0)];
        RelMeta { blocks: 0, cuts, copy_of: None, copied_blocks: None, copied_out: false }
    }

    /// A fork that came into being by its first write (no creation record), or by import: page values *at* `lsn`
    /// are its own, older ones are not.
    pub fn created_by_write(lsn: Lsn) -> RelMeta {
        RelMeta::created(Lsn(lsn.0.saturating_sub(1)))
    }

    /// A fork copied by a record ending at `copy_of.lsn`, as large as its source was then.
    pub fn copied(copy_of: CopyOf, blocks: u32) -> RelMeta {
        let (cuts, copy_of) = (vec![(copy_of.lsn, 0)], Some(copy_of));
        RelMeta { blocks, cuts, copy_of, copied_blocks: Some(blocks), copied_out: false }
    }

    /// Makes it at least `blocks` long. True when that changed anything.
    pub fn grow(&mut self, blocks: u32) -> bool {
        let grows = blocks > self.blocks;
        self.blocks = self.blocks.max(blocks);
        grows
    }

    /// Cuts it to `blocks` by a record ending at `lsn`: what grows there later begins as zeros.
    pub fn truncate(&mut self, lsn: Lsn, blocks: u32) {
        while self.cuts.last().is_some_and(|cut| cut.1 >= blocks) {
            self.cuts.pop();
        }
        self.cuts.push((lsn, blocks));
        self.blocks = self.blocks.min(blocks);
    }

    /// Values of this block at or below the LSN given back are ignored; [`Lsn::INVALID`] when none are.
    ///
    /// Values of a copy *at* the copy's LSN are its own: pages that were copied out. The copying record itself writes none.
    pub fn floor(&self, block: u32) -> Lsn {
        match self.cut_of(block) {
            Some(cut) if self.copy_of.is_some_and(|copy| copy.lsn == cut) => {
                Lsn(cut.0.saturating_sub(1))
            }
            Some(cut) => cut,
            None => Lsn::INVALID,
        }
    }

    fn cut_of(&self, block: u32) -> Option<Lsn> {
        let covering = self.cuts.partition_point(|cut| cut.1 <= block);
        covering.checked_sub(1).and_then(|index| self.cuts.get(index)).map(|cut| cut.0)
    }

    /// Where the base of `block` is to be found when the relation itself has none.
    pub fn copied_from(&self, block: u32) -> Option<CopyOf> {
        let was_copied = self.copied_blocks.is_none_or(|blocks| block < blocks);
        let copy = self.copy_of.filter(|_| was_copied && !self.copied_out);
        copy.filter(|copy| Some(copy.lsn) == self.cut_of(block))
    }

    /// The stored form.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(10 + 12 * self.cuts.len() + 16);
        out.put_u8(VERSION);
        let has_copy = if self.copy_of.is_some() { HAS_COPY } else { 0 };
        let copied_out = if self.copied_out { COPIED_OUT } else { 0 };
        let has_blocks = if self.copied_blocks.is_some() { HAS_COPIED_BLOCKS } else { 0 };
        out.put_u8(has_copy | copied_out | has_blocks);
        out.put_u32(self.blocks);
        out.put_count(self.cuts.len());
        for (lsn, block) in &self.cuts {
            out.put_u64(lsn.0);
            out.put_u32(*block);
        }
        if let Some(copy) = self.copy_of {
            out.put_u32(copy.tablespace);
            out.put_u32(copy.database);
            out.put_u64(copy.lsn.0);
        }
        if let Some(blocks) = self.copied_blocks {
            out.put_u32(blocks);
        }
        out
    }

    /// Reads the stored form.
    ///
    /// # Errors
    /// What is wrong with the bytes.
    pub fn decode(bytes: &[u8]) -> Result<RelMeta, &'static str> {
        decode(bytes).map_err(|Malformed(what)| what)
    }
}

fn decode(bytes: &[u8]) -> Result<RelMeta, Malformed> {
    let mut reader = Reader::new(bytes);
    if reader.u8()? != VERSION {
        return Err(Malformed("unknown version of a relation's metadata"));
    }
    let flags = reader.u8()?;
    let without_copy = flags & HAS_COPY == 0 && flags != 0;
    if flags & !(HAS_COPY | COPIED_OUT | HAS_COPIED_BLOCKS) != 0 || without_copy {
        return Err(Malformed("unknown flags in a relation's metadata"));
    }
    let blocks = reader.u32()?;
    let count = reader.count(12)?;
    let mut cuts = Vec::with_capacity(count);
    for _ in 0..count {
        cuts.push((Lsn(reader.u64()?), reader.u32()?));
    }
    if !cuts.is_sorted_by(|a, b| a.0 <= b.0 && a.1 < b.1) {
        return Err(Malformed("cuts of a relation are out of order"));
    }
    let copy_of = match flags & HAS_COPY {
        0 => None,
        _ => Some(CopyOf {
            tablespace: reader.u32()?,
            database: reader.u32()?,
            lsn: Lsn(reader.u64()?),
        }),
    };
    let copied_blocks = match flags & HAS_COPIED_BLOCKS {
        0 => None,
        _ => Some(reader.u32()?),
    };
    reader.finish()?;
    Ok(RelMeta { blocks, cuts, copy_of, copied_blocks, copied_out: flags & COPIED_OUT != 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floors_follow_cuts() {
        let mut meta = RelMeta::created(Lsn(100));
        meta.grow(10);
        assert_eq!(meta.floor(0), Lsn(100));
        meta.truncate(Lsn(200), 4);
        assert_eq!((meta.blocks, meta.floor(3), meta.floor(4)), (4, Lsn(100), Lsn(200)));
        meta.grow(9);
        meta.truncate(Lsn(300), 6);
        assert_eq!((meta.floor(3), meta.floor(5), meta.floor(6)), (Lsn(100), Lsn(200), Lsn(300)));
        meta.truncate(Lsn(400), 2);
        assert_eq!(meta.cuts, vec![(Lsn(100), 0), (Lsn(400), 2)]);
        meta.truncate(Lsn(500), 0);
        assert_eq!(meta.cuts, vec![(Lsn(500), 0)]);
    }

    #[test]
    fn truncating_beyond_the_end_still_cuts() {
        let mut meta = RelMeta::created(Lsn(100));
        meta.truncate(Lsn(200), 7);
        assert_eq!((meta.blocks, meta.floor(6), meta.floor(7)), (0, Lsn(100), Lsn(200)));
    }

    #[test]
    fn a_cut_ends_the_copy() {
        let copy = CopyOf { tablespace: 1663, database: 1, lsn: Lsn(100) };
        let mut meta = RelMeta::copied(copy, 8);
        assert_eq!(meta.copied_from(7), Some(copy));
        meta.truncate(Lsn(200), 4);
        assert_eq!((meta.copied_from(3), meta.copied_from(4)), (Some(copy), None));
        // Pages at the copy's own LSN belong to it.
        assert_eq!((meta.floor(3), meta.floor(4)), (Lsn(99), Lsn(200)));
        meta.copied_out = true;
        assert_eq!((meta.copied_from(3), meta.floor(3)), (None, Lsn(99)));
    }

    #[test]
    fn round_trip_and_hostile_bytes() {
        let mut meta = RelMeta::copied(CopyOf { tablespace: 1663, database: 1, lsn: Lsn(100) }, 8);
        meta.truncate(Lsn(200), 4);
        meta.copied_out = true;
        let bytes = meta.encode();
        assert_eq!(RelMeta::decode(&bytes), Ok(meta));
        for end in 0..bytes.len() {
            assert!(RelMeta::decode(&bytes[..end]).is_err(), "{end}");
        }
        let mut longer = bytes.clone();
        longer.push(0);
        assert!(RelMeta::decode(&longer).is_err());
        let mut hostile = bytes;
        hostile[6..10].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(RelMeta::decode(&hostile).is_err());
    }
}
