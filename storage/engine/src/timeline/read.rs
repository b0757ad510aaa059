//! Reading: every answer is about one LSN, at or below `last_record_lsn`, ancestors included.

use std::sync::Arc;

use bytes::Bytes;
use treering_pgfmt::redo;
use treering_types::{Key, KeyClass, KeyRange, Lsn, PageImage, RelTag};

use super::{Phase, Timeline};
use crate::{
    cache::Caches,
    error::{EngineError, Result},
    read::{
        Level, View,
        ancestry::{Ancestry, Group},
        scan,
    },
    relation::RelMeta,
    unhandled::{Unhandled, Unreadable},
    value::Direction,
};

impl Timeline {
    /// The newest value of a key at or before `lsn`, and its LSN; `None` when there is none or it is gone.
    ///
    /// # Errors
    /// NotYet above `last_record_lsn` (also of an ancestor that is still catching up), Gone below the root's start and where gc has
    /// been, Corrupt.
    pub fn get_value(&self, key: Key, lsn: Lsn) -> Result<Option<(Lsn, Bytes)>> {
        let found = self.view(lsn)?.newest(&key, lsn)?;
        Ok(found.filter(|found| !found.bytes.is_empty()).map(|found| (found.lsn, found.bytes)))
    }

    /// One page at `lsn`: a relation block within the relation's size, or an SLRU page.
    ///
    /// Checksums are not set: the page is as redo leaves it.
    ///
    /// # Errors
    /// NotFound for what does not exist at `lsn`; Redo when a record cannot be applied; else as [`Timeline::get_value`].
    pub fn get_page(&self, key: Key, lsn: Lsn) -> Result<PageImage> {
        self.view(lsn)?.page(&key, lsn)
    }

    /// Pages at `lsn`, in the order asked for, each with its own result.
    pub fn get_pages(&self, keys: &[Key], lsn: Lsn) -> Vec<Result<PageImage>> {
        match self.view(lsn) {
            Ok(view) => view.pages(keys, lsn),
            Err(error) => keys.iter().map(|_| Err(error.clone())).collect(),
        }
    }

    /// A relation fork's metadata at `lsn`; `None` when it does not exist then.
    ///
    /// # Errors
    /// As [`Timeline::get_value`].
    pub fn rel_meta(&self, rel: RelTag, lsn: Lsn) -> Result<Option<RelMeta>> {
        self.view(lsn)?.rel_meta(rel, lsn)
    }

    /// The relation forks whose `RelMeta` keys lie in `range`, as they are at `lsn`, in key order.
    ///
    /// # Errors
    /// As [`Timeline::get_value`].
    pub fn relations(&self, range: KeyRange, lsn: Lsn) -> Result<Vec<(RelTag, RelMeta)>> {
        let values = self.scan(range, lsn, Direction::Forward, usize::MAX)?;
        let decode = |(key, lsn, bytes): (Key, Lsn, Bytes)| {
            let corrupt = |what: &str| self.corrupt_value(key, lsn, what);
            let rel = key.rel().ok_or_else(|| corrupt("no relation's key"))?;
            Ok((rel, RelMeta::decode(&bytes).map_err(corrupt)?))
        };
        values.into_iter().map(decode).collect()
    }

    /// The newest value at or before `lsn` of up to `limit` keys of `range`; keys that are gone are skipped.
    ///
    /// # Errors
    /// As [`Timeline::get_value`].
    pub fn scan(
        &self,
        range: KeyRange,
        lsn: Lsn,
        direction: Direction,
        limit: usize,
    ) -> Result<Vec<(Key, Lsn, Bytes)>> {
        scan::scan(&self.view(lsn)?, range, lsn, direction, limit)
    }

    /// Relations that exist at `lsn` and have records that this version cannot redo: some of their pages cannot be read.
    ///
    /// # Errors
    /// As [`Timeline::get_value`].
    pub fn unreadable(&self, lsn: Lsn) -> Result<Vec<Unreadable>> {
        let range = Key::class_range(KeyClass::Unhandled);
        let view = self.view(lsn)?;
        let mut out = Vec::new();
        for (key, at, bytes) in scan::scan(&view, range, lsn, Direction::Forward, usize::MAX)? {
            let corrupt = |what: &str| self.corrupt_value(key, at, what);
            let rel = key.rel().ok_or_else(|| corrupt("no relation's key"))?;
            let what = Unhandled::decode(&bytes).map_err(corrupt)?;
            // Kept by an earlier version, redone by this one.
            if redo::is_native(what.rmid) {
                continue;
            }
            if view.rel_meta(rel, lsn)?.is_some_and(|meta| meta.floor(0) < at) {
                out.push(Unreadable { rel, lsn: at, what });
            }
        }
        Ok(out)
    }

    pub(crate) fn corrupt_value(&self, key: Key, lsn: Lsn, what: &str) -> EngineError {
        EngineError::CorruptValue { timeline: self.id(), key, lsn, what: what.to_owned() }
    }

    /// What a read at `lsn` can see. Whether gc allows it is asked once the layers are held: see [`super::retention`].
    pub(super) fn view(&self, lsn: Lsn) -> Result<View<'_>> {
        if self.check_not_deleted()? == Phase::Importing {
            return Err(EngineError::Importing { timeline: self.id(), importing: true });
        }
        self.check_reached(lsn)?;
        let view = self.view_unchecked(lsn)?;
        self.check_kept(lsn)?;
        // What a deleted branch needed is dropped from its ancestors.
        self.check_not_deleted()?;
        Ok(view)
    }

    fn check_reached(&self, wanted: Lsn) -> Result<()> {
        let last_record_lsn = self.last_record_lsn();
        if wanted <= last_record_lsn {
            return Ok(());
        }
        Err(EngineError::NotYet { timeline: self.id(), wanted, last_record_lsn })
    }

    /// As [`Timeline::view`], for the writer and the flush, which may look at their own timeline in any state. Ancestors must have
    /// reached `lsn` or the fork: after a crash one may stand below it until it has ingested again.
    pub(crate) fn view_unchecked(&self, lsn: Lsn) -> Result<View<'_>> {
        self.view_through(lsn, &self.context.caches)
    }

    /// The same, through other caches: a merge leaves the engine's alone.
    pub(crate) fn view_through<'v>(&'v self, lsn: Lsn, caches: &'v Caches) -> Result<View<'v>> {
        let own = self.level(Lsn::MAX);
        let ancestry = match self.ancestor() {
            None => None,
            Some(_) => Some(self.ancestry_at(lsn)?),
        };
        let root = ancestry.as_ref().and_then(|ancestry| ancestry.levels.last()).unwrap_or(&own);
        let (timeline, start_lsn) = (root.timeline, root.start_lsn);
        if lsn < start_lsn {
            return Err(EngineError::BeforeHistory { timeline, wanted: lsn, start_lsn });
        }
        Ok(View { own, ancestry, caches, pg_major: self.identity.pg_major })
    }

    /// The ancestors' layers. Kept for the next read once every ancestor has reached its fork; before, a read sees what it may.
    fn ancestry_at(&self, lsn: Lsn) -> Result<Arc<Ancestry>> {
        let epoch = match self.lineages.get(self.serial) {
            Ok(ancestry) => return Ok(ancestry),
            Err(epoch) => epoch,
        };
        let (mut levels, mut line) = (Vec::new(), Vec::new());
        let (mut at, mut clip, mut has_all) = (self, Lsn::MAX, true);
        while let Some((ancestor, fork)) = at.ancestor() {
            clip = clip.min(fork);
            ancestor.check_reached(clip.min(lsn))?;
            let reached = ancestor.last_record_lsn();
            has_all &= reached >= clip;
            levels.push(ancestor.level(clip));
            line.push((ancestor, reached));
            at = ancestor;
        }
        if !has_all {
            return Ok(Arc::new(Ancestry::unindexed(levels)));
        }
        let ancestry = Arc::new(Ancestry::new(levels, |number, members| {
            let (owner, reached) = line[number];
            owner.group_of(members, reached)
        }));
        self.lineages.keep(self.serial, epoch, &ancestry);
        Ok(ancestry)
    }

    /// The group that this timeline is the nearest member of.
    fn group_of(&self, members: &[Level], reached: Lsn) -> Arc<Group> {
        let mut group = self.group.lock();
        match group.as_ref().filter(|group| group.fits(members)) {
            Some(group) => Arc::clone(group),
            None => Arc::clone(group.insert(Arc::new(Group::of(members, reached)))),
        }
    }

    fn level(&self, clip: Lsn) -> Level {
        Level {
            timeline: self.id(),
            serial: self.serial,
            layers: self.layers(),
            clip,
            start_lsn: self.start_lsn(),
        }
    }
}
