//! Writing a layer file: entries in, one durable immutable file out.
//!
//! Order: bytes to `<name>.tmp` → sync → rename → sync of the directory. Only after all of that may a manifest name the file.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use sha2::{Digest, Sha256};
use treering_fs::{File, FileSystem, OpenMode};
use treering_types::{Key, KeyClass, Lsn, LsnRange};

use super::{
    Entry, LayerDesc, LayerOwner,
    block::BlockBuilder,
    bloom::{self, Bloom},
    footer::{self, DIGEST_SIZE, Footer, Section},
    index::{BlockIndex, BlockRef},
    layer_file_name,
};

/// Blocks of a relation between two keys at which a block of the layer may end early.
const NEIGHBOURHOOD: u32 = 64;

/// Bytes gathered before a write call.
const WRITE_BUFFER: usize = 1 << 20;

/// Why a layer could not be made.
#[derive(Debug)]
pub(crate) enum WriteFailure {
    /// Before anything was promised: the temporary file is worthless, and a later try may succeed.
    Retry(PathBuf, io::Error),
    /// A sync, or a rename after it: what is on disk is unknown.
    Latch(PathBuf, io::Error),
}

/// A layer file being written. Entries come in (key, LSN) order.
pub(crate) struct LayerWriter<'a> {
    fs: &'a dyn FileSystem,
    directory: &'a Path,
    temporary: PathBuf,
    file: Arc<dyn File>,
    written: u64,
    buffer: Vec<u8>,
    digest: Sha256,
    block: BlockBuilder,
    block_bytes: usize,
    index: BlockIndex,
    hashes: Vec<u64>,
    summary: Option<Summary>,
    owner: LayerOwner,
    number: u64,
}

/// Ranges of the entries so far.
struct Summary {
    key_first: Key,
    key_last: Key,
    lsn_first: Lsn,
    lsn_last: Lsn,
    entries: u64,
}

impl<'a> LayerWriter<'a> {
    /// Begins layer `number` in `directory`.
    pub fn create(
        fs: &'a dyn FileSystem,
        directory: &'a Path,
        owner: LayerOwner,
        number: u64,
        block_bytes: usize,
    ) -> Result<LayerWriter<'a>, WriteFailure> {
        let temporary = directory.join(format!("{}.tmp", layer_file_name(number)));
        let open = || {
            let file = fs.open(&temporary, OpenMode::CreateOrOpen)?;
            file.set_len(0)?;
            Ok((file, BlockBuilder::new()?))
        };
        let (file, block) =
            open().map_err(|error| WriteFailure::Retry(temporary.clone(), error))?;
        let mut writer = LayerWriter {
            fs,
            directory,
            temporary,
            file,
            written: 0,
            buffer: Vec::with_capacity(WRITE_BUFFER),
            digest: Sha256::new(),
            block,
            block_bytes,
            index: BlockIndex::default(),
            hashes: Vec::new(),
            summary: None,
            owner,
            number,
        };
        writer.append(&footer::header())?;
        Ok(writer)
    }

    /// Adds one entry.
    ///
    /// # Panics
    /// When entries come out of order.
    pub fn push(&mut self, entry: &Entry) -> Result<(), WriteFailure> {
        let last = self.summary.as_ref().map(|summary| summary.key_last);
        if self.block.len() >= self.block_bytes / 2
            && last.is_some_and(|last| begins_neighbourhood(&last, &entry.key))
        {
            self.finish_block()?;
        }
        self.summarise(entry);
        self.block.push(entry);
        if self.block.len() >= self.block_bytes { self.finish_block() } else { Ok(()) }
    }

    fn summarise(&mut self, entry: &Entry) {
        let Entry { key, lsn, .. } = *entry;
        let summary = self.summary.get_or_insert_with(|| {
            self.hashes.push(bloom::hash(&key));
            Summary { key_first: key, key_last: key, lsn_first: lsn, lsn_last: lsn, entries: 0 }
        });
        assert!(summary.key_last <= key, "layer entries come in key order");
        if summary.key_last != key {
            self.hashes.push(bloom::hash(&key));
        }
        summary.key_last = key;
        summary.lsn_first = summary.lsn_first.min(lsn);
        summary.lsn_last = summary.lsn_last.max(lsn);
        summary.entries += 1;
    }

    fn finish_block(&mut self) -> Result<(), WriteFailure> {
        let built = self.block.finish().map_err(|error| self.retry(error))?;
        let Some(built) = built else { return Ok(()) };
        let offset = self.position();
        let stored_len = u32::try_from(built.stored.len()).expect("a block is below 4 GiB");
        let first = built.first;
        self.index.blocks.push(BlockRef { first, offset, stored_len, raw_len: built.raw_len });
        self.append(&built.stored)
    }

    /// Bytes of the file so far; entries of the block under construction are not among them.
    pub fn position(&self) -> u64 {
        self.written + self.buffer.len() as u64
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), WriteFailure> {
        self.digest.update(bytes);
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= WRITE_BUFFER { self.drain() } else { Ok(()) }
    }

    fn drain(&mut self) -> Result<(), WriteFailure> {
        let wrote = self.file.write_all_at(&self.buffer, self.written);
        wrote.map_err(|error| self.retry(error))?;
        self.written += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    fn append_section(&mut self, bytes: &[u8]) -> Result<Section, WriteFailure> {
        let offset = self.position();
        self.append(bytes)?;
        self.append(&crc32fast::hash(bytes).to_le_bytes())?;
        Ok(Section { offset, len: self.position() - offset })
    }

    fn retry(&self, error: io::Error) -> WriteFailure {
        let _ = self.fs.remove_file(&self.temporary);
        WriteFailure::Retry(self.temporary.clone(), error)
    }

    /// Gives the file up.
    pub fn abandon(self) {
        let _ = self.fs.remove_file(&self.temporary);
    }

    /// Ends the file and makes it durable under its name. `None`, and no file, when no entry came. `complete`: as
    /// [`LayerDesc::complete`].
    pub fn finish(mut self, complete: bool) -> Result<Option<LayerDesc>, WriteFailure> {
        self.finish_block()?;
        let Some(summary) = self.summary.take() else {
            let _ = self.fs.remove_file(&self.temporary);
            return Ok(None);
        };
        let bloom = Bloom::build(&self.hashes);
        let bloom = self.append_section(bloom.as_bytes())?;
        let index = self.index.encode();
        let index = self.append_section(&index)?;
        let desc = LayerDesc {
            number: self.number,
            size: 0,
            digest: [0; DIGEST_SIZE],
            key_first: summary.key_first,
            key_last: summary.key_last,
            lsns: LsnRange { start: summary.lsn_first, end: summary.lsn_last + 1 },
            entries: summary.entries,
            complete,
        };
        let mut footer = Footer { owner: self.owner, desc, bloom, index };
        self.append(&footer.encode_fields())?;
        let digest: [u8; DIGEST_SIZE] = self.digest.clone().finalize().into();
        self.append(&Footer::encode_tail(&digest))?;
        self.drain()?;
        footer.desc.size = self.written;
        footer.desc.digest = digest;
        self.publish()?;
        Ok(Some(footer.desc))
    }

    fn publish(&self) -> Result<(), WriteFailure> {
        let latch = |error| WriteFailure::Latch(self.temporary.clone(), error);
        self.file.sync_all().map_err(latch)?;
        let path = self.directory.join(layer_file_name(self.number));
        self.fs.rename(&self.temporary, &path).map_err(latch)?;
        self.fs.sync_dir(self.directory).map_err(latch)
    }
}

/// Whether a block of the layer that is half full ends in front of `key`.
///
/// How well entries pack depends on which of them share a block: by some per cent, where a table's pages are alike. Were blocks
/// ended by their size alone, that would depend on where the file begins, and the same entries would weigh more or less whenever a
/// merge puts the border between two files elsewhere. From such a key on two files soon have the same blocks.
fn begins_neighbourhood(last: &Key, key: &Key) -> bool {
    let place = |key: &Key| (key.rel(), key.block() / NEIGHBOURHOOD);
    key.class() == Ok(KeyClass::RelBlock) && place(last) != place(key)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use treering_fs::DryFs;
    use treering_types::{Fork, RelTag, TenantId, TimelineId};

    use super::*;

    fn entry(block: u32, lsn: u64) -> Entry {
        let rel = RelTag { tablespace: 1663, database: 5, relation: 16384, fork: Fork::Main };
        let bytes = Bytes::from(vec![block as u8; 1000 + block as usize % 777]);
        Entry { key: Key::rel_block(rel, block), lsn: Lsn(lsn), base: false, chain: 1, bytes }
    }

    /// The first keys of the blocks of a layer that begins with the relation's block `from`.
    fn blocks_from(from: u32) -> Vec<(Key, Lsn)> {
        let fs = DryFs::over(Arc::new(treering_fs::RealFs));
        let owner = LayerOwner { tenant: TenantId([1; 16]), timeline: TimelineId([2; 16]) };
        let at = Path::new("nowhere");
        let mut writer = LayerWriter::create(&fs, at, owner, 1, 32 << 10).unwrap();
        for block in from..1000 {
            for lsn in 1..10 {
                writer.push(&entry(block, lsn)).unwrap();
            }
        }
        writer.index.blocks.iter().map(|block| block.first).collect()
    }

    #[test]
    fn blocks_do_not_depend_on_where_a_file_begins() {
        let all = blocks_from(0);
        for from in [1, 2, 3, 5, 8, 63, 64, 65, 200] {
            let some = blocks_from(from);
            let same = some.iter().rev().zip(all.iter().rev()).take_while(|(a, b)| a == b).count();
            let (first, _) = some[some.len() - same];
            assert!(
                first.block() <= from + 4 * NEIGHBOURHOOD,
                "from {from}: the same from {first:?}"
            );
        }
    }
}
