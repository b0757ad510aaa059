//! The log in the object store: what survives all safekeepers of a quorum, and where they read what they hold no more.
//!
//! [`piece`] decides, [`object`] has the bytes, [`keeper`] is the thread that puts and deletes. What this rests on, in one
//! line: committed log never changes, so pieces of it have one content for ever, and members need not agree on who
//! puts them. `docs/formats/wal-archive.md` has the argument.

pub mod keeper;
pub mod object;
pub mod piece;

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use treering_remote::{
    Location, RemoteError, Store,
    names::{self, TimelineLife},
    retry::Asking,
};
use treering_types::{Lsn, TenantId, TimelineId};

use self::{
    object::Stretch,
    piece::{Piece, Pieces},
};
use crate::{control_file::Identity, error::StoreError, wal_store::segment_start};

/// Segments that were read last, kept unpacked for a while: a receiver reads one in many steps.
const CACHED_SEGMENTS: usize = 4;
const CACHED_FOR: Duration = Duration::from_secs(10);
/// Segments fetched at once, each of which may take twice 16 MiB.
const FETCHES: usize = 2;
/// A piece that was listed may have given way to a longer one before it is read.
const LOOKS: u32 = 4;

/// Where the log goes, and how fast.
#[derive(Clone, Debug)]
pub struct ArchiveOptions {
    pub store: Location,
    /// How long committed log may wait for the store, as long as that answers.
    pub delay: Duration,
    /// Bytes of log that a timeline keeps in the store beyond what its pages are still to be made of.
    pub keep: u64,
}

/// Counts what was done.
#[derive(Debug, Default)]
pub struct Counters {
    pub put_objects: AtomicU64,
    pub put_bytes: AtomicU64,
    pub deleted_objects: AtomicU64,
    pub fetched_bytes: AtomicU64,
    /// Timelines that could not be brought up to date, each time.
    pub failures: AtomicU64,
}

pub(crate) fn add(counter: &AtomicU64, count: u64) {
    counter.fetch_add(count, Ordering::Relaxed);
}

struct Cached {
    life: TimelineLife,
    segment: u64,
    stretch: Stretch,
    used_at: Instant,
}

/// The archive of all timelines. Its calls wait for the store.
pub struct Archive {
    store: Arc<dyn Store>,
    asking: Asking,
    pub counters: Counters,
    cache: Mutex<VecDeque<Cached>>,
    /// Whoever fetches holds one of them: it bounds memory, and lets those who want the same wait for one fetch.
    fetching: [Mutex<()>; FETCHES],
}

fn life(identity: &Identity) -> TimelineLife {
    TimelineLife { timeline: identity.timeline, pg_tli: identity.pg_tli }
}

fn folder(identity: &Identity) -> String {
    names::log_folder(identity.tenant, life(identity))
}

impl Archive {
    pub fn new(store: Arc<dyn Store>, asking: Asking) -> Archive {
        let (counters, cache) = (Counters::default(), Mutex::default());
        Archive { store, asking, counters, cache, fetching: Default::default() }
    }

    pub fn describe(&self) -> String {
        self.store.describe()
    }

    /// Ends what waits; nothing is asked of the store any more.
    pub fn stop(&self) {
        self.asking.stop.stop();
    }

    /// What there is of a log, all of it durable.
    pub fn list(&self, identity: &Identity) -> Result<Pieces, RemoteError> {
        let folder = folder(identity);
        let names = self.asking.ask(|| self.store.list(&folder))?;
        let pieces = names.iter().filter_map(|name| Piece::parse(name)).collect();
        self.asking.ask(|| self.store.settle(&folder))?;
        Ok(pieces)
    }

    /// Puts a piece, durable on return; one that is there already must be the same.
    ///
    /// # Errors
    /// `Unavailable`, and it may be there, now or later. `Corrupt` when other bytes have its name.
    pub fn put(
        &self,
        identity: &Identity,
        piece: Piece,
        stretch: &Stretch,
    ) -> Result<(), StoreError> {
        assert_eq!(stretch.end(), piece.end());
        let name = format!("{}{piece}", folder(identity));
        let bytes = object::encode(identity, stretch)
            .map_err(StoreError::io("pack", std::path::Path::new(&name)))?;
        match self.asking.ask(|| self.store.put_new(&name, bytes.clone())) {
            Ok(()) => {
                add(&self.counters.put_objects, 1);
                add(&self.counters.put_bytes, bytes.len() as u64);
                Ok(())
            }
            Err(RemoteError::Exists { .. }) => {
                let there = self.asking.ask(|| self.store.get(&name))?;
                let there = object::decode(identity, piece, &name, &there)?;
                match there == *stretch {
                    true => Ok(()),
                    false => {
                        let what = "is not what the quorum has committed".to_owned();
                        Err(RemoteError::Corrupt { name, what }.into())
                    }
                }
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Removes pieces.
    pub fn delete(&self, identity: &Identity, pieces: &[Piece]) -> Result<(), RemoteError> {
        let folder = folder(identity);
        for piece in pieces {
            self.asking.ask(|| self.store.delete(&format!("{folder}{piece}")))?;
            add(&self.counters.deleted_objects, 1);
        }
        Ok(())
    }

    /// Removes all that there is of a timeline's log, in any of its lives.
    pub fn delete_log(&self, tenant: TenantId, timeline: TimelineId) -> Result<(), RemoteError> {
        let top = names::logs_folder(tenant);
        for folder in self.asking.ask(|| self.store.list(&top))? {
            if names::parse_life(&folder).is_none_or(|life| life.timeline != timeline) {
                continue;
            }
            let folder = format!("{top}{folder}");
            for name in self.asking.ask(|| self.store.list(&folder))? {
                self.asking.ask(|| self.store.delete(&format!("{folder}{name}")))?;
                add(&self.counters.deleted_objects, 1);
            }
        }
        Ok(())
    }

    /// Before which position each timeline's pages are in the store, whoever put them there.
    pub fn published(&self, tenant: TenantId) -> Result<Vec<(TimelineLife, Lsn)>, RemoteError> {
        let index = treering_remote::attach::published(&*self.store, &self.asking, tenant)?;
        let timelines = index.into_iter().flat_map(|index| index.timelines);
        Ok(timelines.map(|(id, at)| (at.life(id), at.disk_consistent_lsn)).collect())
    }

    /// Reads `from..to` of a log.
    ///
    /// # Errors
    /// `Trimmed` when the archive does not have all of it; those of the store.
    pub fn read(&self, identity: &Identity, from: Lsn, to: Lsn) -> Result<BytesMut, StoreError> {
        let mut out = BytesMut::with_capacity((to.0 - from.0) as usize);
        let mut at = from;
        while at < to {
            let end = to.min(segment_start(at.segment_number() + 1));
            out.extend_from_slice(&self.read_within_segment(identity, at, end)?);
            at = end;
        }
        Ok(out)
    }

    fn read_within_segment(
        &self,
        identity: &Identity,
        from: Lsn,
        to: Lsn,
    ) -> Result<Bytes, StoreError> {
        let (life, segment) = (life(identity), from.segment_number());
        if let Some(bytes) = self.cached(life, from, to) {
            return Ok(bytes);
        }
        let _turn = self.fetching[(segment % FETCHES as u64) as usize].lock();
        if let Some(bytes) = self.cached(life, from, to) {
            return Ok(bytes);
        }
        let stretch = self.fetch(identity, segment, to)?;
        let bytes = stretch.as_ref().and_then(|stretch| stretch.slice(from, to));
        if let Some(stretch) = stretch {
            let mut cache = self.cache.lock();
            cache.retain(|held| (held.life, held.segment) != (life, segment));
            cache.truncate(CACHED_SEGMENTS - 1);
            cache.push_front(Cached { life, segment, stretch, used_at: Instant::now() });
        }
        bytes.ok_or(StoreError::Trimmed { lsn: from, trim_lsn: to })
    }

    fn cached(&self, life: TimelineLife, from: Lsn, to: Lsn) -> Option<Bytes> {
        let segment = from.segment_number();
        let mut cache = self.cache.lock();
        let held = cache.iter_mut().find(|held| (held.life, held.segment) == (life, segment))?;
        held.used_at = Instant::now();
        held.stretch.slice(from, to)
    }

    /// Lets go of what nobody has read for a while.
    pub fn forget_unread(&self) {
        self.cache.lock().retain(|held| held.used_at.elapsed() < CACHED_FOR);
    }

    /// The piece that holds a segment up to `to`.
    fn fetch(
        &self,
        identity: &Identity,
        segment: u64,
        to: Lsn,
    ) -> Result<Option<Stretch>, StoreError> {
        let mut piece = Piece::Whole { segment };
        for _ in 0..LOOKS {
            let name = format!("{}{piece}", folder(identity));
            match self.asking.ask(|| self.store.get(&name)) {
                Ok(bytes) => {
                    add(&self.counters.fetched_bytes, bytes.len() as u64);
                    return Ok(Some(object::decode(identity, piece, &name, &bytes)?));
                }
                Err(RemoteError::Missing { .. }) => {}
                Err(error) => return Err(error.into()),
            }
            match piece::holder(&self.list(identity)?, segment, to) {
                Some(found) => piece = found,
                None => return Ok(None),
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests;
