//! Judges redo against Postgres itself: with `wal_consistency_checking` on, a record carries the image of each
//! page after the change next to the redo data.
//!
//! [`Judge`] keeps every page the WAL touches in memory, applies the effects of one record after the other and
//! compares each page with the image in the record, both masked ([`crate::mask`]). Pages that were there
//! before the WAL begins come from a [`Bases`]. After a difference the page is taken from the image, so that one
//! mistake is reported once. The judge does no I/O; tests and benches feed it.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    ops::Range,
};

use treering_types::{Fork, Key, KeyRange, Lsn, PAGE_SIZE, PageImage, RelTag};

use crate::{
    change::PageChange,
    mask,
    page::{HEADER_SIZE, lsn_of},
    redo::{self, RedoError, RedoReason, rmgr, rmgr_name},
    version::PgMajor,
    wal::{
        effects::{DatabaseDir, Effect, EffectError, Effects, effects},
        image::ImageError,
        record::{Block, Record},
        state::ClusterState,
    },
};

/// The pages as they were where the WAL begins.
pub trait Bases {
    /// The page of a relation block or SLRU key; `None` where there was none.
    fn page(&self, key: &Key) -> Option<PageImage>;
}

/// No page existed before.
impl Bases for () {
    fn page(&self, _key: &Key) -> Option<PageImage> {
        None
    }
}

/// What a page came to.
#[derive(Clone, Debug)]
pub struct Held {
    pub bytes: PageImage,
    /// Resource manager of the last record applied: it knows which bytes matter.
    pub rmid: u8,
    /// False from a record without redo on until an image.
    pub readable: bool,
}

/// What was seen of one kind of record.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct Tally {
    pub records: u64,
    /// Pages that redo changed.
    pub applied: u64,
    /// Of these, pages compared with the record's image.
    pub compared: u64,
    /// Pages restored from an image, which proves nothing.
    pub restored: u64,
    /// Pages of the base that were newer than the record already: a backup of a running server has such.
    pub skipped: u64,
    /// Pages that this version has no redo for.
    pub unhandled: u64,
}

/// One thing that is wrong.
#[derive(Debug, thiserror::Error)]
pub enum Finding {
    #[error(
        "{} info {info:#04x} at {start}..{end} block {block_id} {key:?}: bytes {range:?} are \
         {ours:02x?}, Postgres has {theirs:02x?} ({differing} differ)", rmgr_name(*rmid)
    )]
    Differs {
        rmid: u8,
        info: u8,
        start: Lsn,
        end: Lsn,
        block_id: u8,
        key: Key,
        /// The first run of differing bytes, cut to 32.
        range: Range<usize>,
        ours: Vec<u8>,
        theirs: Vec<u8>,
        /// How many bytes of the page differ.
        differing: usize,
    },
    #[error("record at {start}: {error}")]
    Redo { start: Lsn, error: RedoError },
    #[error(transparent)]
    Effect(#[from] EffectError),
    #[error("record at {start}, block {block_id}: {error}")]
    Image { start: Lsn, block_id: u8, error: ImageError },
}

/// Pages in memory and what was found about them.
pub struct Judge<B> {
    major: PgMajor,
    pub state: ClusterState,
    bases: B,
    pages: BTreeMap<Key, Held>,
    /// From which block on a fork's base pages are gone: dropped or truncated.
    gone: HashMap<RelTag, u32>,
    /// Databases that began as a copy, and where in the bases their pages are.
    copies: HashMap<DatabaseDir, DatabaseDir>,
    /// Databases made by CREATE DATABASE STRATEGY WAL_LOG. Their visibility maps are logged as standard pages, whose
    /// middle is left out: redo starts from empty maps where the primary has bits.
    logged: HashSet<DatabaseDir>,
    /// By resource manager and record type.
    pub tallies: BTreeMap<(u8, u8), Tally>,
    pub findings: Vec<Finding>,
}

impl<B: Bases> Judge<B> {
    /// A judge for WAL that begins where the cluster was as `state` and `bases` say.
    pub fn new(major: PgMajor, state: ClusterState, bases: B) -> Self {
        Judge {
            major,
            state,
            bases,
            pages: BTreeMap::new(),
            gone: HashMap::new(),
            copies: HashMap::new(),
            logged: HashSet::new(),
            tallies: BTreeMap::new(),
            findings: Vec::new(),
        }
    }

    /// Every page touched so far, in key order.
    pub fn pages(&self) -> impl Iterator<Item = (&Key, &Held)> {
        self.pages.iter()
    }

    /// The page as it is now; `None` if no record touched it.
    pub fn page(&self, key: &Key) -> Option<&Held> {
        self.pages.get(key)
    }

    /// Applies one record and compares the pages it carries images of. Returns what else the record does.
    pub fn judge<'a>(&mut self, record: &'a Record<'_>) -> Effects<'a> {
        self.tally(record).records += 1;
        let effects = effects(&mut self.state, record, self.major).unwrap_or_else(|error| {
            self.findings.push(error.into());
            Effects::new()
        });
        effects.iter().for_each(|effect| self.apply(record, effect));
        for block in &record.blocks {
            self.compare(record, block);
        }
        effects
    }

    fn tally(&mut self, record: &Record<'_>) -> &mut Tally {
        let mask = if record.rmid == rmgr::XACT { 0x70 } else { 0xf0 };
        self.tallies.entry((record.rmid, record.info & mask)).or_default()
    }

    fn apply(&mut self, record: &Record<'_>, effect: &Effect<'_>) {
        match effect {
            Effect::Page { rel, block, change } => {
                self.change(record, Key::rel_block(*rel, *block), change);
            }
            Effect::PageIfExists { rel, block, change } => {
                let key = Key::rel_block(*rel, *block);
                if self.pages.contains_key(&key) || self.base(&key).is_some() {
                    self.change(record, key, change);
                }
            }
            Effect::Slru { kind, page, change } => {
                self.change(record, Key::slru(*kind, *page), change);
            }
            Effect::RelTruncate { rel, blocks } => self.cut(*rel, *blocks),
            Effect::RelDrop(rel) => {
                Fork::ALL.into_iter().for_each(|fork| self.cut(rel.with_fork(fork), 0));
            }
            Effect::DatabaseCopy { from, to } => self.copy_database(*from, *to),
            Effect::DatabaseDrop(dir) => self.drop_database(*dir),
            Effect::DatabaseCreate(dir) => {
                self.logged.insert(*dir);
            }
            Effect::RelCreate(_)
            | Effect::TablespaceCreate { .. }
            | Effect::TablespaceDrop { .. }
            | Effect::RelMap { .. }
            | Effect::TwoPhasePrepared { .. }
            | Effect::TwoPhaseEnded { .. }
            | Effect::Ended { .. }
            | Effect::Control { .. }
            | Effect::Origin { .. }
            | Effect::Unhandled { .. } => {}
        }
    }

    fn change(&mut self, record: &Record<'_>, key: Key, change: &PageChange<'_>) {
        let held = match self.pages.remove(&key) {
            Some(held) => held,
            None => {
                let bytes = self.base(&key).unwrap_or_else(|| Box::new([0; PAGE_SIZE]));
                Held { bytes, rmid: record.rmid, readable: true }
            }
        };
        let held = self.changed(record, &key, change, held);
        self.pages.insert(key, held);
    }

    fn changed(&mut self, record: &Record<'_>, key: &Key, change: &PageChange, held: Held) -> Held {
        let mut bytes = held.bytes;
        let heals = change.is_base();
        let tally = self.tally(record);
        if matches!(change, PageChange::Unhandled { .. }) || !(held.readable || heals) {
            tally.unhandled += 1;
            return Held { bytes, rmid: record.rmid, readable: false };
        }
        if matches!(change, PageChange::Record(_)) && !heals && lsn_of(&bytes) >= record.end {
            tally.skipped += 1;
            return Held { bytes, ..held };
        }
        match change {
            PageChange::Image(_) => tally.restored += 1,
            _ => tally.applied += 1,
        }
        let applied = redo::apply(self.major, key, record.end, change, &mut bytes);
        if let Err(error) = applied {
            self.findings.push(Finding::Redo { start: record.start, error });
            return Held { bytes, rmid: record.rmid, readable: false };
        }
        Held { bytes, rmid: record.rmid, readable: true }
    }

    /// The page before the WAL began, unless it was cut off since; where no record touched it that is what it is.
    pub fn base(&self, key: &Key) -> Option<PageImage> {
        let Some(rel) = key.rel() else {
            return self.bases.page(key);
        };
        if self.gone.get(&rel).is_some_and(|from| key.block() >= *from) {
            return None;
        }
        let original = self.copies.get(&directory(rel)).copied();
        let Some(DatabaseDir { tablespace, database }) = original else {
            return self.bases.page(key);
        };
        let original = RelTag { tablespace, database, ..rel };
        self.bases.page(&Key::rel_block(original, key.block()))
    }

    fn cut(&mut self, rel: RelTag, blocks: u32) {
        let range = Key::rel_block(rel, blocks)..Key::rel_block(rel, u32::MAX).next();
        self.forget(range);
        let from = self.gone.entry(rel).or_insert(blocks);
        *from = blocks.min(*from);
    }

    /// Pages that go. One that was missing when a record wanted it is no fault then: the base was taken while the
    /// server ran, after the page was gone (`XLogForgetInvalidPages` in `access/transam/xlogutils.c`).
    fn forget(&mut self, range: KeyRange) {
        self.findings.retain(|finding| match finding {
            Finding::Redo { error, .. } => {
                error.reason != RedoReason::NoBase || !range.contains(&error.key)
            }
            Finding::Differs { .. } | Finding::Effect(_) | Finding::Image { .. } => true,
        });
        let keys: Vec<Key> = self.pages.range(range).map(|(key, _)| *key).collect();
        keys.iter().for_each(|key| drop(self.pages.remove(key)));
    }

    fn copy_database(&mut self, from: DatabaseDir, to: DatabaseDir) {
        let moved =
            |rel: RelTag| RelTag { tablespace: to.tablespace, database: to.database, ..rel };
        let copied: Vec<(Key, Held)> = self
            .pages
            .range(blocks_of(from))
            .filter_map(|(key, held)| {
                Some((Key::rel_block(moved(key.rel()?), key.block()), held.clone()))
            })
            .collect();
        self.pages.extend(copied);
        let of_source =
            |rel: &RelTag| (rel.tablespace, rel.database) == (from.tablespace, from.database);
        let gone: Vec<(RelTag, u32)> =
            self.gone.iter().map(|(rel, block)| (*rel, *block)).collect();
        let gone = gone.into_iter().filter(|(rel, _)| of_source(rel));
        self.gone.extend(gone.map(|(rel, block)| (moved(rel), block)));
        // Where the pages that no record touched stand in the base, however often they were copied.
        let original = self.copies.get(&from).copied().unwrap_or(from);
        self.copies.insert(to, original);
    }

    fn drop_database(&mut self, dir: DatabaseDir) {
        self.forget(blocks_of(dir));
        self.copies.remove(&dir);
        self.logged.remove(&dir);
    }

    fn compare(&mut self, record: &Record<'_>, block: &Block<'_>) {
        let Some(image) = block.image.as_ref().filter(|image| !image.apply) else {
            return;
        };
        let key = Key::rel_block(block.rel, block.block);
        let is_map = block.rel.fork == Fork::VisibilityMap;
        if is_map && self.logged.contains(&directory(block.rel)) {
            return;
        }
        let Some(held) = self.pages.get_mut(&key).filter(|held| held.readable) else {
            return;
        };
        let theirs = match image.restore_at(record.end) {
            Ok(theirs) => theirs.to_page(),
            Err(error) => {
                let (start, block_id) = (record.start, block.id);
                return self.findings.push(Finding::Image { start, block_id, error });
            }
        };
        let found = if is_map {
            missing_bits(&held.bytes, &theirs)
        } else {
            difference(record.rmid, block.block, &held.bytes, &theirs)
        };
        if let Some((range, differing)) = found {
            let cut = range.start..range.end.min(range.start + 32);
            let finding = Finding::Differs {
                rmid: record.rmid,
                info: record.info,
                start: record.start,
                end: record.end,
                block_id: block.id,
                key,
                ours: held.bytes[cut.clone()].to_vec(),
                theirs: theirs[cut.clone()].to_vec(),
                range: cut,
                differing,
            };
            held.bytes = theirs;
            self.findings.push(finding);
        }
        self.tally(record).compared += 1;
    }
}

/// Where the files of a relation are.
fn directory(rel: RelTag) -> DatabaseDir {
    DatabaseDir { tablespace: rel.tablespace, database: rel.database }
}

/// Every block of every fork in a database directory.
fn blocks_of(dir: DatabaseDir) -> KeyRange {
    let rel = |relation, fork| RelTag {
        tablespace: dir.tablespace,
        database: dir.database,
        relation,
        fork,
    };
    let first = Key::rel_block(rel(0, Fork::Main), 0);
    first..Key::rel_block(rel(u32::MAX, Fork::Init), u32::MAX).next()
}

/// Visibility-map bits that the image has and ours lacks.
///
/// The heap mask blanks a map entirely, so it is compared as it is. Bits that only we have are not wrong here: a
/// backend clears its bit before it writes the record that says so, and another's image may come in between. What
/// the map is in the end, the files tell.
fn missing_bits(ours: &[u8; PAGE_SIZE], theirs: &[u8; PAGE_SIZE]) -> Option<(Range<usize>, usize)> {
    let map = ours.iter().zip(theirs).enumerate().skip(HEADER_SIZE);
    let missing = map.filter(|(_, (ours, theirs))| **theirs & !**ours != 0);
    let places: Vec<usize> = missing.map(|(at, _)| at).collect();
    places.first().map(|first| (*first..*first + 1, places.len()))
}

/// The first run of bytes in which two pages differ under the mask of `rmid`, and how many bytes differ in all.
pub fn difference(
    rmid: u8,
    block: u32,
    ours: &[u8; PAGE_SIZE],
    theirs: &[u8; PAGE_SIZE],
) -> Option<(Range<usize>, usize)> {
    let (mut ours, mut theirs) = (*ours, *theirs);
    mask::mask_page(rmid, &mut ours, block);
    mask::mask_page(rmid, &mut theirs, block);
    if ours == theirs {
        return None;
    }
    let differs: Vec<bool> = ours.iter().zip(&theirs).map(|(a, b)| a != b).collect();
    let start = differs.iter().position(|differs| *differs)?;
    let run = differs[start..].iter().position(|differs| !differs);
    let end = run.map_or(PAGE_SIZE, |run| start + run);
    Some((start..end, differs.iter().filter(|differs| **differs).count()))
}
