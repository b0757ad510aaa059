//! A layer file, open for reading: footer, index and bloom filter in memory, blocks on demand through the cache.
//!
//! A file that fails a check when it is opened stays in the layer map as *broken*: every read that would need it fails and
//! names it; nothing is silently read around it.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use bytes::Bytes;
use sha2::{Digest, Sha256};
use treering_fs::{File, FileSystem, OpenMode};
use treering_types::{Key, KeyRange, Lsn};

use super::{
    LAYER_FORMAT_VERSION, LayerDesc, LayerOwner,
    block::{Block, split_crc},
    bloom::{self, Bloom},
    footer::{self, FOOTER_SIZE, Footer, HEADER_SIZE, Refused, UNDIGESTED},
    index::BlockIndex,
};
use crate::{
    cache::Caches,
    error::{EngineError, Result},
    scrub::Span,
    value::Direction,
};

/// Files up to this size are read to learn their keys.
const FEW_KEYS_BYTES_MAX: u64 = 1 << 20;
/// Bytes read at once when a whole file is digested.
const DIGEST_CHUNK: u64 = 1 << 20;

/// One layer file of a timeline.
pub(crate) struct LayerFile {
    /// What the manifest says.
    pub desc: LayerDesc,
    pub path: PathBuf,
    /// Names the file in the block cache; unique in the process.
    pub serial: u64,
    contents: Result<Contents>,
    /// Hashes of its keys, if they were asked for: `None` when they are not few, or the file is damaged.
    few_keys: OnceLock<Option<Arc<[u64]>>>,
}

struct Contents {
    file: Arc<dyn File>,
    index: BlockIndex,
    bloom: Bloom,
}

impl LayerFile {
    /// Opens the file that `desc` describes. What is wrong with it comes up with the first use.
    pub fn open(
        fs: &dyn FileSystem,
        directory: &Path,
        owner: LayerOwner,
        desc: LayerDesc,
        serial: u64,
    ) -> LayerFile {
        let path = directory.join(desc.file_name());
        let contents = open_contents(fs, &path, owner, &desc);
        LayerFile { desc, path, serial, contents, few_keys: OnceLock::new() }
    }

    fn contents(&self) -> Result<&Contents> {
        self.contents.as_ref().map_err(Clone::clone)
    }

    /// The error that keeps the file from being read, if any.
    pub fn broken(&self) -> Option<EngineError> {
        self.contents.as_ref().err().cloned()
    }

    /// Hashes of its keys; `None` when there may be more than `keys_max`, when the file is large, or cannot be read.
    /// Always asked with the same bound.
    pub fn few_keys(&self, keys_max: usize) -> Option<Arc<[u64]>> {
        if self.desc.size > FEW_KEYS_BYTES_MAX || self.broken().is_some() {
            return None;
        }
        let known = self.few_keys.get_or_init(|| {
            let mut hashes = Vec::new();
            for number in 0..self.block_count() {
                let block = self.read_block(number).ok()?;
                hashes.extend(block.heads().iter().map(|head| bloom::hash(&head.key)));
                hashes.dedup();
                if hashes.len() > keys_max {
                    return None;
                }
            }
            Some(hashes.into())
        });
        known.clone()
    }

    pub fn block_count(&self) -> usize {
        self.contents.as_ref().map_or(0, |contents| contents.index.blocks.len())
    }

    /// Bytes of a block in the file.
    pub fn stored_len(&self, number: usize) -> u64 {
        let blocks = self.contents.as_ref().map(|contents| &contents.index.blocks);
        blocks.ok().and_then(|blocks| blocks.get(number)).map_or(0, |block| block.stored_len.into())
    }

    /// The smallest and largest key that block `number` may hold, and the lowest LSN of the file: what its loss would cost.
    pub fn block_span(&self, number: usize) -> Option<Span> {
        let blocks = &self.contents.as_ref().ok()?.index.blocks;
        let first = blocks.get(number)?.first.0;
        let last = blocks.get(number + 1).map_or(self.desc.key_last, |next| next.first.0);
        Some(Span { keys: (first, last), from: self.desc.lsns.start })
    }

    /// What the bloom filter says of a key; a file that cannot be read says yes.
    pub fn may_hold_key(&self, key: &Key) -> bool {
        let contents = self.contents.as_ref();
        contents.map_or(true, |contents| contents.bloom.may_contain(bloom::hash(key)))
    }

    /// The block with the newest value of `key` at or below `upto`, if the key may be here at all. No I/O; a broken
    /// file answers with block 0, so that the fetch fails.
    pub fn locate(&self, key: &Key, floor: Lsn, upto: Lsn) -> Option<usize> {
        if !self.desc.may_hold(key, floor, upto) {
            return None;
        }
        let Ok(contents) = &self.contents else { return Some(0) };
        if !contents.bloom.may_contain(bloom::hash(key)) {
            return None;
        }
        contents.index.block_of(key, upto)
    }

    /// Reads, checks and caches one block.
    pub fn block(&self, number: usize, caches: &Caches) -> Result<Arc<Block>> {
        if let Some(block) = caches.block(self.serial, number) {
            return Ok(block);
        }
        let block = Arc::new(self.read_block(number)?);
        caches.put_block(self.serial, number, &block);
        Ok(block)
    }

    /// Reads and checks one block, past the cache.
    pub fn read_block(&self, number: usize) -> Result<Block> {
        let contents = self.contents()?;
        let place = contents.index.blocks.get(number);
        let place = place.ok_or_else(|| self.corrupt(0, format!("has no block {number}")))?;
        let mut stored = vec![0; place.stored_len as usize];
        contents
            .file
            .read_exact_at(&mut stored, place.offset)
            .map_err(|error| read_error(&self.path, place.offset, error))?;
        let block = Block::decode(&stored, place.raw_len).map_err(|what| {
            self.corrupt(place.offset, format!("{what} (from {:?})", place.first))
        })?;
        let first = block.heads().first().map(|head| (head.key, head.lsn));
        if first != Some(place.first) {
            let what = format!("block begins with {first:?}, the index says {:?}", place.first);
            return Err(self.corrupt(place.offset, what));
        }
        Ok(block)
    }

    pub fn corrupt(&self, offset: u64, what: impl Into<String>) -> EngineError {
        EngineError::corrupt(&self.path, offset, what)
    }

    /// The first key of `range` in scan order.
    pub fn first_key(
        &self,
        range: &KeyRange,
        direction: Direction,
        caches: &Caches,
    ) -> Result<Option<Key>> {
        let outside = self.desc.key_last < range.start || range.end <= self.desc.key_first;
        if range.is_empty() || outside {
            return Ok(None);
        }
        match direction {
            Direction::Forward => self.first_key_from(range, caches),
            Direction::Backward => self.last_key_below(range, caches),
        }
    }

    fn first_key_from(&self, range: &KeyRange, caches: &Caches) -> Result<Option<Key>> {
        let from = self.contents()?.index.block_from(&range.start);
        for number in from..self.block_count() {
            let block = self.block(number, caches)?;
            if let Some(head) = block.heads().get(block.start_of(&range.start)) {
                return Ok(Some(head.key).filter(|key| range.contains(key)));
            }
        }
        Ok(None)
    }

    fn last_key_below(&self, range: &KeyRange, caches: &Caches) -> Result<Option<Key>> {
        let index = &self.contents()?.index;
        let below = index.blocks.partition_point(|block| block.first.0 < range.end);
        let Some(number) = below.checked_sub(1) else { return Ok(None) };
        let block = self.block(number, caches)?;
        let last = block.start_of(&range.end).checked_sub(1).and_then(|at| block.heads().get(at));
        Ok(last.map(|head| head.key).filter(|key| range.contains(key)))
    }

    /// Reads the whole file and compares its digest.
    pub fn verify_digest(&self) -> Result<()> {
        let contents = self.contents()?;
        let end = self.desc.size.saturating_sub(UNDIGESTED as u64);
        let mut hasher = Sha256::new();
        let mut at = 0;
        while at < end {
            let mut chunk = vec![0; (end - at).min(DIGEST_CHUNK) as usize];
            let read = contents.file.read_exact_at(&mut chunk, at);
            read.map_err(|error| read_error(&self.path, at, error))?;
            hasher.update(&chunk);
            at += chunk.len() as u64;
        }
        let digest: [u8; 32] = hasher.finalize().into();
        if digest == self.desc.digest {
            Ok(())
        } else {
            Err(self.corrupt(0, "digest of the whole file does not match"))
        }
    }
}

/// A file that is shorter than its manifest says is corrupt, not an I/O error.
fn read_error(path: &Path, offset: u64, error: std::io::Error) -> EngineError {
    if error.kind() == std::io::ErrorKind::UnexpectedEof {
        EngineError::corrupt(path, offset, "the file ends early")
    } else {
        EngineError::io("reading", path, error)
    }
}

fn refused(path: &Path, offset: u64, why: Refused) -> EngineError {
    match why {
        Refused::Newer(found) => {
            EngineError::NewerFormat { path: path.to_owned(), found, known: LAYER_FORMAT_VERSION }
        }
        Refused::Malformed(what) => EngineError::corrupt(path, offset, what),
    }
}

fn open_contents(
    fs: &dyn FileSystem,
    path: &Path,
    owner: LayerOwner,
    desc: &LayerDesc,
) -> Result<Contents> {
    let file = fs.open(path, OpenMode::Read).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => EngineError::corrupt(path, 0, "the file is missing"),
        _ => EngineError::io("opening", path, error),
    })?;
    let size = file.len().map_err(|error| EngineError::io("sizing", path, error))?;
    if size != desc.size || size < (HEADER_SIZE + FOOTER_SIZE) as u64 {
        let what = format!("the file has {size} bytes, the manifest says {}", desc.size);
        return Err(EngineError::corrupt(path, size, what));
    }
    let footer = read_ends(file.as_ref(), path, size)?;
    if footer.owner != owner || footer.desc != *desc {
        return Err(EngineError::corrupt(path, size, "the footer is not what the manifest says"));
    }
    let bloom = read_section(file.as_ref(), path, footer.bloom)?;
    let bloom = Bloom::from_bytes(bloom)
        .ok_or_else(|| EngineError::corrupt(path, footer.bloom.offset, "bloom filter is empty"))?;
    let index = read_section(file.as_ref(), path, footer.index)?;
    let index = BlockIndex::decode(&index, HEADER_SIZE as u64, footer.bloom.offset)
        .map_err(|malformed| EngineError::corrupt(path, footer.index.offset, malformed.0))?;
    Ok(Contents { file, index, bloom })
}

fn read_ends(file: &dyn File, path: &Path, size: u64) -> Result<Footer> {
    let mut header = [0; HEADER_SIZE];
    file.read_exact_at(&mut header, 0).map_err(|error| read_error(path, 0, error))?;
    footer::check_header(&header).map_err(|why| refused(path, 0, why))?;
    let at = size.saturating_sub(FOOTER_SIZE as u64);
    let mut bytes = [0; FOOTER_SIZE];
    file.read_exact_at(&mut bytes, at).map_err(|error| read_error(path, at, error))?;
    Footer::decode(&bytes, size).map_err(|why| refused(path, at, why))
}

fn read_section(file: &dyn File, path: &Path, section: footer::Section) -> Result<Bytes> {
    // The footer's checks keep the section inside the file.
    let mut bytes = vec![0; section.len as usize];
    let read = file.read_exact_at(&mut bytes, section.offset);
    read.map_err(|error| read_error(path, section.offset, error))?;
    let (content, crc) = split_crc(&bytes)
        .ok_or_else(|| EngineError::corrupt(path, section.offset, "section is too short"))?;
    if crc32fast::hash(content) != crc {
        return Err(EngineError::corrupt(path, section.offset, "section checksum mismatch"));
    }
    let len = content.len();
    let mut bytes = Bytes::from(bytes);
    bytes.truncate(len);
    Ok(bytes)
}
