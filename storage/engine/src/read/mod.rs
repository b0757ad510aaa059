//! Reads: plan over an immutable snapshot (pure) → fetch values (the one place that reads files) → reconstruct (redo).
//!
//! A [`View`] is everything a read can see: the timeline's layers and its ancestors', each up to its fork LSN. It is built
//! once per request and never changes under it.

pub(crate) mod ancestry;
pub(crate) mod fetch;
pub(crate) mod plan;
pub(crate) mod reconstruct;
pub(crate) mod scan;

use std::{collections::HashMap, sync::Arc};

use treering_pgfmt::version::PgMajor;
use treering_types::{Key, KeyClass, Lsn, PageImage, RelTag, TimelineId};

use crate::{
    cache::Caches,
    error::{EngineError, Result},
    layer_map::LayerSet,
    relation::RelMeta,
};
use ancestry::Ancestry;
use fetch::Chain;

/// One timeline of a view.
pub(crate) struct Level {
    pub timeline: TimelineId,
    /// Names the timeline in the page cache.
    pub serial: u64,
    pub layers: Arc<LayerSet>,
    /// Nothing above this LSN belongs to the view: `MAX` for the timeline itself, the least fork LSN for ancestors.
    pub clip: Lsn,
    /// Nothing below this LSN is here.
    pub start_lsn: Lsn,
}

/// See the module.
pub(crate) struct View<'a> {
    /// The timeline itself.
    pub own: Level,
    /// None of a root.
    pub ancestry: Option<Arc<Ancestry>>,
    pub caches: &'a Caches,
    pub pg_major: PgMajor,
}

impl View<'_> {
    /// The timeline itself, then its ancestors.
    pub fn levels(&self) -> impl Iterator<Item = &Level> {
        let ancestors = self.ancestry.iter().flat_map(|ancestry| &ancestry.levels);
        std::iter::once(&self.own).chain(ancestors)
    }

    /// The same without ancestors that do not hold `key` for certain.
    pub fn levels_of(&self, key: &Key) -> impl Iterator<Item = &Level> + use<'_> {
        let key = *key;
        let ancestors = self.ancestry.iter().flat_map(move |ancestry| ancestry.levels_of(&key));
        std::iter::once(&self.own).chain(ancestors)
    }

    /// The newest value of a key at or before `lsn`, with the place it came from; tombstones included.
    pub fn newest(&self, key: &Key, lsn: Lsn) -> Result<Option<fetch::Found>> {
        for step in plan::steps(self, *key, Lsn::INVALID, lsn) {
            if let Some(found) = fetch::newest_of(&step, key, self.caches)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// A relation fork's metadata at `lsn`; `None` when it does not exist.
    pub fn rel_meta(&self, rel: RelTag, lsn: Lsn) -> Result<Option<RelMeta>> {
        let key = Key::rel_meta(rel);
        let Some(found) = self.newest(&key, lsn)? else { return Ok(None) };
        if found.bytes.is_empty() {
            return Ok(None);
        }
        let meta = RelMeta::decode(&found.bytes);
        meta.map(Some).map_err(|what| found.corrupt(key, what))
    }

    /// One page.
    pub fn page(&self, key: &Key, lsn: Lsn) -> Result<PageImage> {
        self.page_known(key, lsn, &mut HashMap::new())
    }

    /// Pages in the order asked for; work is done in key order, so that neighbours share blocks and metadata.
    pub fn pages(&self, keys: &[Key], lsn: Lsn) -> Vec<Result<PageImage>> {
        let mut order: Vec<(Key, usize)> =
            keys.iter().enumerate().map(|(index, key)| (*key, index)).collect();
        order.sort_unstable();
        let mut metas = HashMap::new();
        let mut pages: Vec<Option<Result<PageImage>>> = keys.iter().map(|_| None).collect();
        for (key, index) in order {
            if let Some(slot) = pages.get_mut(index) {
                *slot = Some(self.page_known(&key, lsn, &mut metas));
            }
        }
        pages.into_iter().flatten().collect()
    }

    /// `metas`: what this request has learned so far, all at the same `lsn`.
    fn page_known(&self, key: &Key, lsn: Lsn, metas: &mut Metas) -> Result<PageImage> {
        match key.class() {
            Ok(KeyClass::RelBlock) => self.rel_block(key, lsn, metas),
            Ok(KeyClass::Slru) => self.slru_page(key, lsn),
            _ => Err(EngineError::NotAPage(*key)),
        }
    }

    fn rel_block(&self, key: &Key, lsn: Lsn, metas: &mut Metas) -> Result<PageImage> {
        let rel = key.rel().ok_or(EngineError::NotAPage(*key))?;
        let meta = match metas.get(&rel) {
            Some(known) => known,
            None => metas.entry(rel).or_insert(self.rel_meta(rel, lsn)?),
        };
        let meta = meta.as_ref().ok_or(EngineError::NoRelation { rel, lsn })?;
        let (block, blocks) = (key.block(), meta.blocks);
        if block >= blocks {
            return Err(EngineError::NoBlock { rel, block, blocks, lsn });
        }
        let chain = fetch::rel_block_chain(self, *key, rel, lsn, meta)?;
        reconstruct::page(self, chain)
    }

    /// Values of a page at or below the LSN given back are not part of what a read at `lsn` sees.
    ///
    /// # Errors
    /// As reads of the page: none where it does not exist.
    pub fn floor_of_page(&self, key: &Key, lsn: Lsn) -> Result<Lsn> {
        if key.class() != Ok(KeyClass::RelBlock) {
            return Ok(Lsn::INVALID);
        }
        let rel = key.rel().ok_or(EngineError::NotAPage(*key))?;
        let meta = self.rel_meta(rel, lsn)?.ok_or(EngineError::NoRelation { rel, lsn })?;
        let (block, blocks) = (key.block(), meta.blocks);
        match block < blocks {
            true => Ok(meta.floor(block)),
            false => Err(EngineError::NoBlock { rel, block, blocks, lsn }),
        }
    }

    /// One page from its changes up to `lsn`, whatever a relation's size: `meta` says what of them counts (none for SLRU pages).
    pub fn page_of(
        &self,
        key: &Key,
        lsn: Lsn,
        meta: Option<&(RelTag, RelMeta)>,
    ) -> Result<PageImage> {
        match meta {
            None => self.slru_page(key, lsn),
            Some((rel, meta)) => {
                let chain = fetch::rel_block_chain(self, *key, *rel, lsn, meta)?;
                reconstruct::page(self, chain)
            }
        }
    }

    fn slru_page(&self, key: &Key, lsn: Lsn) -> Result<PageImage> {
        let mut chain = Chain::default();
        fetch::collect(self, *key, Lsn::INVALID, lsn, &mut chain)?;
        if chain.is_empty() || chain.ends_in_tombstone() {
            return Err(EngineError::NoPage { key: *key, lsn });
        }
        reconstruct::page(self, chain)
    }
}

type Metas = HashMap<RelTag, Option<RelMeta>>;

#[cfg(test)]
mod tests;
