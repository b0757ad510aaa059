//! A pageserver without its network: an engine, a simulated disk, a store; and what others were told by it.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use treering_engine::{Engine, LayerSource};
use treering_fs::{CrashFs, FileSystem, create_dir_durably};
use treering_pageserver::remote::{Remote, TenantRemote};
use treering_remote::{
    Directory, Store,
    identity::Identity,
    retry::{Asking, Patience},
};
use treering_types::{Lsn, TimelineId};

use super::support::{World, *};

pub type Outcome<T = ()> = Result<T, Box<dyn std::error::Error>>;

const HOME: &str = "/pageserver";
pub const ENGINE: &str = "/engine";

/// A number nobody has drawn before.
fn fresh() -> [u8; 16] {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    u128::from(NEXT.fetch_add(1, Ordering::Relaxed)).to_be_bytes()
}

pub struct Node {
    pub world: World<CrashFs>,
    pub remote: Arc<Remote>,
    pub told: Told,
}

/// What callers rely on.
#[derive(Clone, Default)]
pub struct Told {
    pub tenant: bool,
    pub timelines: BTreeMap<TimelineId, Option<(TimelineId, Lsn)>>,
    pub deleted: BTreeSet<TimelineId>,
    /// What is archived, as far as was acknowledged, and as was asked for.
    pub archived: BTreeSet<TimelineId>,
    pub archiving: BTreeSet<TimelineId>,
    /// The safekeeper may have trimmed its log up to here.
    pub durable: BTreeMap<TimelineId, Lsn>,
}

/// A directory on the same disk as the engine: the default.
pub fn directory(fs: &CrashFs) -> Outcome<Arc<dyn Store>> {
    Ok(Arc::new(Directory::open(Arc::new(fs.clone()), Path::new("/store"), fresh())?))
}

/// Opens an engine on a disk, attached to a store.
pub fn open(fs: &CrashFs, store: Arc<dyn Store>) -> Outcome<(Arc<Engine>, Arc<Remote>)> {
    create_dir_durably(fs, Path::new(HOME))?;
    let identity = Identity::begin(fs, Path::new(HOME), fresh)?;
    let asking = Asking::new(Patience::NONE);
    let remote = Remote::new(Arc::new(fs.clone()), store, asking, identity, false);
    let source = Arc::clone(&remote) as Arc<dyn LayerSource>;
    let fs = Arc::new(fs.clone());
    let engine = Engine::open_with_source(fs, Path::new(ENGINE), tiny_options(), Some(source))?;
    remote.attach_all(&engine)?;
    remote.settle_identity(Path::new(HOME));
    Ok((engine, remote))
}

impl Node {
    /// A first start.
    pub fn begin(fs: &CrashFs, store: Arc<dyn Store>) -> Outcome<Node> {
        let (engine, remote) = open(fs, store)?;
        let world = World {
            fs: fs.clone(),
            options: tiny_options(),
            engine: Some(engine),
            timelines: Vec::new(),
        };
        Ok(Node { world, remote, told: Told::default() })
    }

    /// The next life, on this disk and this store, of what another node was told.
    pub fn take_over(
        fs: &CrashFs,
        store: Arc<dyn Store>,
        timelines: Vec<ModelTimeline>,
        told: Told,
    ) -> Outcome<Node> {
        let (engine, remote) = open(fs, store)?;
        let mut world =
            World { fs: fs.clone(), options: tiny_options(), engine: Some(engine), timelines };
        world.timelines.iter_mut().for_each(|timeline| timeline.leases.clear());
        Ok(Node { world, remote, told })
    }

    /// Ends without a word, and starts again on the same disk.
    pub fn restart(&mut self, store: Arc<dyn Store>) -> Outcome {
        self.world.engine = None;
        let (engine, remote) = open(&self.world.fs, store)?;
        self.world.engine = Some(engine);
        self.remote = remote;
        for index in self.world.live() {
            if !self.world.timeline(index).is_archived() {
                self.world.send_again(index)?;
            }
        }
        Ok(())
    }

    pub fn tenant_remote(&self) -> Arc<TenantRemote> {
        self.remote.tenant(TENANT).expect("the tenant is attached")
    }

    /// Carries everything to the store, and tells everybody who waits for it.
    pub fn turn(&mut self) -> Outcome {
        let remote = self.tenant_remote();
        let turned = remote.turn();
        // Also after an error: whoever waits is told as soon as it is so.
        self.tell(&remote);
        Ok(turned?)
    }

    fn tell(&mut self, remote: &TenantRemote) {
        let tenant = self.world.tenant();
        for timeline in tenant.timelines() {
            let told = self.told.durable.entry(timeline.id()).or_default();
            *told = timeline.durable_lsn().max(*told);
        }
        if remote.progress().sequence < tenant.sequence() || remote.progress().sequence == 0 {
            return;
        }
        self.told.tenant = true;
        self.told.archived = self.told.archiving.clone();
        for model in &self.world.timelines {
            if model.deleted {
                self.told.timelines.remove(&model.id);
                self.told.durable.remove(&model.id);
                self.told.deleted.insert(model.id);
            } else {
                self.told.timelines.insert(model.id, model.ancestor);
            }
        }
    }

    pub fn write(&mut self, index: usize, seed: u32) -> Outcome {
        let target = rel(5, seed % RELATIONS);
        let delta = |n: u32| vec![Act::Delta(target, n % 2, n % 3, seed * 1000 + n)];
        let mut records: Vec<Vec<Act>> = (0..10).map(delta).collect();
        records.push(vec![Act::Truncate(target, 1)]);
        records.push(vec![Act::Image(target, 2, seed as u8), Act::SlruDelta(0, seed, seed)]);
        records.push(vec![Act::Put(seed, seed as u8), Act::Remove(seed.saturating_sub(1))]);
        records.push(vec![Act::Copy(rel(6, seed % RELATIONS))]);
        Ok(self.world.write(index, &records)?)
    }

    pub fn flush(&self, index: usize) -> Outcome {
        Ok(self.world.timeline(index).flush()?)
    }

    pub fn branch(&mut self, from: usize, at: Lsn) -> Outcome<usize> {
        Ok(self.world.branch(from, at)?)
    }

    pub fn delete(&mut self, index: usize) -> Outcome {
        self.world.timelines[index].deleted = true;
        Ok(self.world.tenant().delete_timeline(self.world.timelines[index].id)?)
    }

    /// As the service does: everything is in the store before.
    pub fn archive(&mut self, index: usize) -> Outcome {
        self.flush(index)?;
        self.turn()?;
        let id = self.world.timelines[index].id;
        self.told.archiving.insert(id);
        self.world.tenant().archive_timeline(id)?;
        self.turn()?;
        self.world.timeline(index).evict_all()?;
        Ok(())
    }

    pub fn unarchive(&mut self, index: usize) -> Outcome {
        let id = self.world.timelines[index].id;
        self.told.archiving.remove(&id);
        let kept = self.world.timeline(index).durable_lsn();
        self.world.tenant().unarchive_timeline(id)?;
        assert_eq!(self.world.timeline(index).durable_lsn(), kept, "the store has what it had");
        self.turn()?;
        Ok(self.world.send_again(index)?)
    }

    /// Reads from files, so that what was evicted is fetched.
    pub fn read(&self, index: usize) -> Outcome {
        let timeline = self.world.timeline(index);
        timeline.relations(
            treering_types::Key::rel_meta_of_database(1663, 5),
            timeline.last_record_lsn(),
        )?;
        let report = timeline.verify();
        match report.findings.into_iter().next() {
            None => Ok(()),
            Some(finding) => Err(finding.error.into()),
        }
    }

    /// Everything that anybody was told is so, and everything that is served is right. Then the log is sent again from where the
    /// safekeeper has it, and all of that is right too, also for a node `elsewhere`, with a disk that knows nothing.
    pub fn check(&mut self, elsewhere: impl Fn() -> (CrashFs, Arc<dyn Store>), what: &str) {
        let Ok(tenant) = self.world.engine().tenant(TENANT) else {
            assert!(!self.told.tenant, "{what}: an acknowledged tenant is gone");
            return;
        };
        for (id, ancestor) in &self.told.timelines {
            let pending = self.world.timelines.iter().any(|t| t.id == *id && t.deleted);
            match tenant.timeline(*id) {
                Ok(timeline) => assert_eq!(timeline.info().ancestor, *ancestor, "{what}"),
                Err(error) => assert!(pending, "{what}: acknowledged timeline {id}: {error}"),
            }
        }
        for id in &self.told.deleted {
            assert!(tenant.timeline(*id).is_err(), "{what}: deleted timeline {id} is back");
        }
        for (id, lsn) in &self.told.durable {
            if let Ok(timeline) = tenant.timeline(*id) {
                let from = timeline.disk_consistent_lsn();
                assert!(
                    from >= *lsn,
                    "{what}: {id} needs its log from {from}, it is trimmed to {lsn}"
                );
            }
        }
        if self.told.archived == self.told.archiving {
            for timeline in tenant.timelines() {
                let archived = self.told.archived.contains(&timeline.id());
                assert_eq!(timeline.is_archived(), archived, "{what}: {}", timeline.id());
            }
        }
        self.world.timelines.retain(|model| tenant.timeline(model.id).is_ok());
        // In the order in which they were forked.
        for model in &self.world.timelines {
            tenant.unarchive_timeline(model.id).unwrap_or_else(|error| panic!("{what}: {error}"));
        }
        self.told.archiving.clear();
        self.world.timelines.iter_mut().for_each(|model| {
            model.deleted = false;
            // One that was not published is moved again, no harm done.
            model.cut_off = Lsn(0);
        });
        if self.world.timelines.is_empty() {
            return;
        }
        let findings = self.world.engine().scrub().findings;
        assert!(findings.is_empty(), "{what}: {findings:?}");
        for index in self.world.live() {
            self.world.send_again(index).unwrap_or_else(|error| panic!("{what}: {error}"));
        }
        self.world.check_all(2);
        self.world.engine().flush_all().unwrap_or_else(|error| panic!("{what}: {error}"));
        self.turn().unwrap_or_else(|error| panic!("{what}: {error}"));
        let (timelines, told) = (self.world.timelines.clone(), self.told.clone());
        let (disk, store) = elsewhere();
        let stranger = Node::take_over(&disk, store, timelines, told);
        let stranger = stranger.unwrap_or_else(|error| panic!("{what}, empty disk: {error}"));
        for index in stranger.world.live() {
            let (here, there) = (self.world.timeline(index), stranger.world.timeline(index));
            assert_eq!(there.disk_consistent_lsn(), here.disk_consistent_lsn(), "{what}");
        }
        stranger.world.check_all(1);
    }
}

/// Removes everything but the store.
pub fn lose_local_disk(fs: &CrashFs) {
    for place in [ENGINE, HOME] {
        if fs.exists(Path::new(place)).unwrap() {
            fs.remove_dir_all(Path::new(place)).unwrap();
        }
    }
    fs.sync_dir(Path::new("/")).unwrap();
}
