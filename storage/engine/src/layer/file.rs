//! A layer file, open for reading: footer, index and bloom filter in memory, blocks on demand through the cache.
//!
//! A file that fails a check when it is opened stays in the layer map as *broken*: every read that would need it fails and
//! names it; nothing is silently read around it. A file that is not here but can be fetched (`residence`) is fetched when it is needed; index and
//! filter stay in memory when it is evicted.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use treering_fs::{File, FileSystem, OpenMode};
use treering_types::{Key, KeyRange, Lsn};

use super::{
    LAYER_FORMAT_VERSION, LayerDesc, LayerOwner,
    block::{Block, split_crc},
    bloom::{self, Bloom},
    footer::{self, FOOTER_SIZE, Footer, HEADER_SIZE, Refused, UNDIGESTED},
    index::{BlockIndex, BlockRef},
};
use crate::{
    cache::Caches,
    error::{EngineError, Result},
    residence::{Residence, StoredLayer},
    scrub::Span,
    value::Direction,
};

/// Files up to this size are read to learn their keys.
const FEW_KEYS_BYTES_MAX: u64 = 1 << 20;
/// Bytes read at once when a whole file is digested.
const DIGEST_CHUNK: u64 = 1 << 20;

/// The block that a layer names of which nothing is known: reading it fails.
const UNKNOWN_BLOCK: usize = usize::MAX;

/// One layer file of a timeline.
pub(crate) struct LayerFile {
    /// What the manifest says.
    pub desc: LayerDesc,
    pub path: PathBuf,
    /// Names the file in the block cache; unique in the process.
    pub serial: u64,
    owner: LayerOwner,
    /// `None` before a file that is to be fetched was needed.
    contents: ArcSwapOption<Contents>,
    /// What keeps the file from being read, for good.
    broken: OnceLock<EngineError>,
    home: Option<Home>,
    /// Hashes of its keys, if they were asked for: `None` when they are not few, or the file is damaged.
    few_keys: OnceLock<Option<Arc<[u64]>>>,
}

struct Contents {
    /// `None` while it is evicted.
    file: Option<Arc<dyn File>>,
    index: Arc<BlockIndex>,
    bloom: Arc<Bloom>,
}

/// How a layer comes and goes.
struct Home {
    residence: Arc<Residence>,
    pg_tli: u32,
    /// Held while the file is fetched, evicted or removed. How often it was fetched, and how the last time ended.
    changing: Mutex<Option<EngineError>>,
    attempts: AtomicU64,
    /// The source holds it for as long as a manifest names it.
    is_stored: AtomicBool,
    /// No manifest names it any more: its file is not to come back.
    is_retired: AtomicBool,
    last_use: AtomicU64,
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
        let opened = open_contents(fs, &path, owner, &desc);
        LayerFile::with(desc, path, serial, owner, opened.map(Some))
    }

    /// The same for a layer that may be elsewhere: then it is fetched when it is needed.
    pub fn open_at_home(
        residence: &Arc<Residence>,
        directory: &Path,
        owner: LayerOwner,
        pg_tli: u32,
        (desc, serial): (LayerDesc, u64),
    ) -> LayerFile {
        let path = directory.join(desc.file_name());
        let opened = residence.has_file(&path).and_then(|is_here| match is_here {
            true => open_contents(residence.fs(), &path, owner, &desc).map(Some),
            false => Ok(None),
        });
        let mut layer = LayerFile::with(desc, path, serial, owner, opened);
        layer.home = Some(Home {
            residence: Arc::clone(residence),
            pg_tli,
            changing: Mutex::new(None),
            attempts: AtomicU64::new(0),
            is_stored: AtomicBool::new(false),
            is_retired: AtomicBool::new(false),
            last_use: AtomicU64::new(residence.next_use()),
        });
        layer
    }

    fn with(
        desc: LayerDesc,
        path: PathBuf,
        serial: u64,
        owner: LayerOwner,
        opened: Result<Option<Contents>>,
    ) -> LayerFile {
        let (contents, broken) = (ArcSwapOption::empty(), OnceLock::new());
        match opened {
            Ok(opened) => contents.store(opened.map(Arc::new)),
            Err(error) => drop(broken.set(error)),
        }
        LayerFile {
            desc,
            path,
            serial,
            owner,
            contents,
            broken,
            home: None,
            few_keys: OnceLock::new(),
        }
    }

    /// Index and filter; fetched if need be.
    fn contents(&self) -> Result<Arc<Contents>> {
        match self.contents.load_full() {
            Some(contents) => Ok(contents),
            None => self.bring(),
        }
    }

    /// The same, and the file is open.
    fn opened(&self) -> Result<(Arc<Contents>, Arc<dyn File>)> {
        let mut contents = self.contents()?;
        if contents.file.is_none() {
            contents = self.bring()?;
        }
        let file = contents.file.clone();
        let file = file.ok_or_else(|| self.corrupt(0, "the file is missing"))?;
        if let Some(home) = &self.home {
            home.last_use.store(home.residence.next_use(), Ordering::Relaxed);
        }
        Ok((contents, file))
    }

    /// Fetches the file. Of those who want it at once one does; the others share what came of it.
    fn bring(&self) -> Result<Arc<Contents>> {
        if let Some(error) = self.broken.get() {
            return Err(error.clone());
        }
        let home = self.home.as_ref().ok_or_else(|| self.corrupt(0, "the file is missing"))?;
        let seen = home.attempts.load(Ordering::Acquire);
        let mut failure = home.changing.lock();
        let present = self.contents.load_full().filter(|contents| contents.file.is_some());
        if let Some(contents) = present {
            return Ok(contents);
        }
        if home.attempts.load(Ordering::Acquire) != seen
            && let Some(error) = &*failure
        {
            return Err(error.clone());
        }
        let brought = self.bring_alone(home);
        home.attempts.fetch_add(1, Ordering::AcqRel);
        *failure = brought.as_ref().err().cloned();
        brought
    }

    fn bring_alone(&self, home: &Home) -> Result<Arc<Contents>> {
        let LayerOwner { tenant, timeline } = self.owner;
        let (pg_tli, number, size) = (home.pg_tli, self.desc.number, self.desc.size);
        let layer = StoredLayer { tenant, timeline, pg_tli, number, size };
        home.residence.fetch(&layer, &self.path, &self.desc)?;
        let contents = open_contents(home.residence.fs(), &self.path, self.owner, &self.desc)?;
        let contents = Arc::new(contents);
        self.contents.store(Some(Arc::clone(&contents)));
        // It came from there.
        home.is_stored.store(true, Ordering::Release);
        if home.is_retired.load(Ordering::Acquire) {
            let _ = home.residence.fs().remove_file(&self.path);
        }
        Ok(contents)
    }

    /// The source holds the layer: its file may go.
    pub fn note_stored(&self) {
        if let Some(home) = &self.home {
            home.is_stored.store(true, Ordering::Release);
        }
    }

    /// Bytes that the file takes on the local disk.
    pub fn local_bytes(&self) -> u64 {
        let is_here = self.contents.load().as_ref().is_some_and(|contents| contents.file.is_some());
        if is_here { self.desc.size } else { 0 }
    }

    /// When it was last used, in uses of any layer; `None` when its file cannot be evicted.
    pub fn evictable_since(&self) -> Option<u64> {
        let home = self.home.as_ref().filter(|home| home.is_stored.load(Ordering::Acquire))?;
        (self.local_bytes() > 0).then(|| home.last_use.load(Ordering::Relaxed))
    }

    /// Removes the file, if the source holds the layer. Reads that are under way go on.
    ///
    /// # Errors
    /// `Io`.
    pub fn evict(&self) -> Result<u64> {
        let Some(home) = &self.home else { return Ok(0) };
        let _changing = home.changing.lock();
        let held = self.contents.load_full().filter(|contents| contents.file.is_some());
        let Some(held) = held.filter(|_| home.is_stored.load(Ordering::Acquire)) else {
            return Ok(0);
        };
        if home.is_retired.load(Ordering::Acquire) {
            return Ok(0);
        }
        home.residence.evict(&self.path, self.desc.size)?;
        let (index, bloom) = (Arc::clone(&held.index), Arc::clone(&held.bloom));
        self.contents.store(Some(Arc::new(Contents { file: None, index, bloom })));
        Ok(self.desc.size)
    }

    /// No manifest names the layer any more: removes its file, if it is here. Readers of older snapshots may fetch it still, and leave
    /// nothing behind.
    ///
    /// # Errors
    /// `Io`.
    pub fn retire(&self, fs: &dyn FileSystem) -> Result<()> {
        let _changing = self.home.as_ref().map(|home| home.changing.lock());
        if let Some(home) = &self.home {
            home.is_retired.store(true, Ordering::Release);
            if self.local_bytes() == 0 && self.broken.get().is_none() {
                return Ok(());
            }
        }
        fs.remove_file(&self.path)
            .map_err(|error| EngineError::io("removing", self.path.clone(), error))
    }

    /// The error that keeps the file from being read for good, if any. A file that is elsewhere is not broken.
    pub fn broken(&self) -> Option<EngineError> {
        self.broken.get().cloned()
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

    /// Blocks of the file. Of one that cannot be had now at least one, so that whoever goes through them fails at it.
    pub fn block_count(&self) -> usize {
        match self.contents() {
            Ok(contents) => contents.index.blocks.len(),
            Err(_) if self.broken.get().is_some() => 0,
            Err(_) => 1,
        }
    }

    /// Bytes of a block in the file.
    pub fn stored_len(&self, number: usize) -> u64 {
        let contents = self.contents.load();
        let block = contents.as_ref().and_then(|contents| contents.index.blocks.get(number));
        block.map_or(0, |block| block.stored_len.into())
    }

    /// The first block that may hold a key at or above `key`.
    ///
    /// # Errors
    /// What keeps the file from being read.
    pub fn block_from(&self, key: &Key) -> Result<usize> {
        Ok(self.contents()?.index.block_from(key))
    }

    /// Where in key order the file's bytes lie: of each `stride` blocks the first key, and their bytes in the file. Nothing of a file
    /// that cannot be had.
    pub fn weights(&self, stride: usize) -> Vec<(Key, u64)> {
        let Ok(contents) = self.contents() else { return Vec::new() };
        let weight = |blocks: &[BlockRef]| {
            let bytes = blocks.iter().map(|block| u64::from(block.stored_len)).sum();
            blocks.first().map(|block| (block.first.0, bytes))
        };
        contents.index.blocks.chunks(stride.max(1)).filter_map(weight).collect()
    }

    /// The smallest and largest key that block `number` may hold, and the lowest LSN of the file: what its loss would cost.
    pub fn block_span(&self, number: usize) -> Option<Span> {
        let contents = self.contents().ok()?;
        let blocks = &contents.index.blocks;
        let first = blocks.get(number)?.first.0;
        let last = blocks.get(number + 1).map_or(self.desc.key_last, |next| next.first.0);
        Some(Span { keys: (first, last), from: self.desc.lsns.start })
    }

    /// What the bloom filter says of a key; a file that cannot be read says yes.
    pub fn may_hold_key(&self, key: &Key) -> bool {
        let contents = self.contents();
        contents.map_or(true, |contents| contents.bloom.may_contain(bloom::hash(key)))
    }

    /// The block with the newest value of `key` at or below `upto`, if the key may be here at all. No I/O, unless the layer is fetched
    /// for the first time; one that cannot be had answers with a block that there is not, so that the read fails.
    pub fn locate(&self, key: &Key, floor: Lsn, upto: Lsn) -> Option<usize> {
        if !self.desc.may_hold(key, floor, upto) {
            return None;
        }
        let held = self.contents.load();
        let Some(contents) = held.as_ref() else {
            return match self.contents() {
                Ok(contents) => contents.block_of(key, upto),
                Err(_) => Some(UNKNOWN_BLOCK),
            };
        };
        contents.block_of(key, upto)
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
        let (contents, file) = self.opened()?;
        if number == UNKNOWN_BLOCK {
            // It could not be had when the read was planned, and now it can.
            let cause = "it was not there a moment ago; ask again".to_owned();
            return Err(EngineError::NotFetched { path: self.path.clone(), cause });
        }
        let place = contents.index.blocks.get(number);
        let place = place.ok_or_else(|| self.corrupt(0, format!("has no block {number}")))?;
        let mut stored = vec![0; place.stored_len as usize];
        file.read_exact_at(&mut stored, place.offset)
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
        let (_, file) = self.opened()?;
        check_digest(file.as_ref(), &self.path, &self.desc)
    }
}

impl Contents {
    fn block_of(&self, key: &Key, upto: Lsn) -> Option<usize> {
        if !self.bloom.may_contain(bloom::hash(key)) {
            return None;
        }
        self.index.block_of(key, upto)
    }
}

/// Reads a whole layer file and compares its length and digest with what a manifest says.
pub(crate) fn check_digest(file: &dyn File, path: &Path, desc: &LayerDesc) -> Result<()> {
    let size = file.len().map_err(|error| EngineError::io("sizing", path, error))?;
    if size != desc.size {
        let what = format!("the file has {size} bytes, the manifest says {}", desc.size);
        return Err(EngineError::corrupt(path, size, what));
    }
    let end = desc.size.saturating_sub(UNDIGESTED as u64);
    let mut hasher = Sha256::new();
    let mut at = 0;
    while at < end {
        let mut chunk = vec![0; (end - at).min(DIGEST_CHUNK) as usize];
        let read = file.read_exact_at(&mut chunk, at);
        read.map_err(|error| read_error(path, at, error))?;
        hasher.update(&chunk);
        at += chunk.len() as u64;
    }
    let digest: [u8; 32] = hasher.finalize().into();
    match digest == desc.digest {
        true => Ok(()),
        false => Err(EngineError::corrupt(path, 0, "digest of the whole file does not match")),
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
    Ok(Contents { file: Some(file), index: Arc::new(index), bloom: Arc::new(bloom) })
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
