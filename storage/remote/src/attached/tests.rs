use std::path::PathBuf;

use sha2::{Digest, Sha256};
use treering_fs::{CrashFs, OpenMode};
use treering_types::Lsn;

use super::*;
use crate::{
    attach::{self, Begin, LocalState},
    identity::Identity,
    retry::Patience,
    sim::{Call, Fault, SimStore},
};

const TENANT: TenantId = TenantId([7; 16]);
const TIMELINE: TimelineId = TimelineId([8; 16]);
const LIFE: TimelineLife = TimelineLife { timeline: TIMELINE, pg_tli: 1 };

/// A pageserver without an engine: files that look like layers, manifests that are words.
struct Node {
    fs: CrashFs,
    attached: Attached,
    found: Found,
    users: Vec<Arc<dyn Any + Send + Sync>>,
}

fn node(store: &SimStore, seed: u8) -> Node {
    let fs = CrashFs::new();
    let identity = Identity::begin(&fs, Path::new("/"), || [seed; 16]).unwrap();
    let asking = Asking::new(Patience::NONE);
    let claimed = generation::claim(store, TENANT, &identity).unwrap();
    let found = attach::find(store, &asking, TENANT, claimed).unwrap();
    let attached = Attached::new(Arc::new(store.clone()), asking, TENANT, &found);
    Node { fs, attached, found, users: Vec::new() }
}

impl Node {
    fn layer(&mut self, number: u64) -> LayerSnapshot {
        let path = PathBuf::from(format!("/{number}.layer"));
        let bytes = vec![number as u8; 100];
        if self.fs.open(&path, OpenMode::Read).is_err() {
            let file = self.fs.open(&path, OpenMode::CreateNew).unwrap();
            file.write_all_at(&bytes, 0).unwrap();
        }
        let digest = Sha256::digest(&bytes[..60]).into();
        let user: Arc<dyn Any + Send + Sync> = Arc::new(number);
        let in_use = Arc::downgrade(&user);
        self.users.push(user);
        LayerSnapshot { number, size: 100, digest, path, in_use }
    }

    fn snapshot(&mut self, sequence: u64, numbers: &[u64]) -> TenantSnapshot {
        let layers = numbers.iter().map(|number| self.layer(*number)).collect();
        let manifest = Bytes::from(format!("timeline {sequence}"));
        let timeline = TimelineSnapshot {
            timeline: TIMELINE,
            pg_tli: 1,
            is_root: true,
            sequence,
            disk_consistent_lsn: Lsn(sequence * 100),
            content: Some(Content { manifest, layers }),
        };
        let manifest = Bytes::from(format!("tenant {sequence}"));
        TenantSnapshot { sequence, manifest, timelines: vec![timeline] }
    }

    fn upload(&self, snapshot: &TenantSnapshot) -> Result<()> {
        let missing = self.attached.missing(snapshot);
        missing
            .into_iter()
            .try_for_each(|(life, layer)| self.attached.upload(&self.fs, life, layer))
    }

    fn all(&mut self, sequence: u64, numbers: &[u64]) -> Result<()> {
        let snapshot = self.snapshot(sequence, numbers);
        self.upload(&snapshot)?;
        self.attached.publish(&snapshot).map(|published| assert!(published))
    }
}

fn objects(store: &SimStore, word: &str) -> Vec<String> {
    let names = store.names().into_iter().filter(|name| name.contains(word));
    names.map(|name| name.rsplit('/').next().unwrap_or_default().to_owned()).collect()
}

const fn file(generation: u64, number: u64) -> (u64, u64) {
    (generation, number)
}

fn layers(store: &SimStore) -> Vec<(u64, u64)> {
    let parsed =
        objects(store, ".layer").into_iter().filter_map(|name| names::parse_numbered(&name));
    parsed.map(|(generation, number)| file(generation.0, number)).collect()
}

#[test]
fn what_is_published_is_found_and_what_it_replaced_goes() {
    let store = SimStore::new();
    let mut a = node(&store, 1);
    a.all(5, &[1, 2]).unwrap();
    assert!(a.attached.has(LIFE, 5) && !a.attached.has(LIFE, 4));
    a.all(6, &[2, 3]).unwrap();
    // Somebody still reads it.
    a.attached.clean().unwrap();
    assert_eq!(layers(&store), [(1, 1), (1, 2), (1, 3)]);
    assert_eq!(a.attached.garbage_count(), 1);
    a.users.clear();
    a.attached.clean().unwrap();
    assert_eq!(layers(&store), [(1, 2), (1, 3)]);
    assert_eq!(objects(&store, ".manifest").len(), 1);
    a.all(7, &[3]).unwrap();
    a.users.clear();
    a.attached.clean().unwrap();
    assert_eq!(
        objects(&store, "/indexes/"),
        [names::index_file(Generation(1), 2), names::index_file(Generation(1), 3)]
    );

    let b = node(&store, 2);
    let index = b.found.index.as_ref().unwrap();
    assert_eq!((index.sequence, index.manifest.as_deref()), (7, Some(&b"tenant 7"[..])));
    assert_eq!(&b.found.objects[&TIMELINE].manifest[..], b"timeline 7");
    let layer = LayerId { tenant: TENANT, life: LIFE, number: 3 };
    b.attached.fetch(layer, &b.fs, Path::new("/back")).unwrap();
    assert_eq!(treering_fs::read_file(&b.fs, Path::new("/back")).unwrap(), [3; 100]);
    let gone = b.attached.fetch(LayerId { number: 1, ..layer }, &b.fs, Path::new("/back"));
    assert!(matches!(gone, Err(RemoteError::Missing { .. })));
}

#[test]
fn a_timeline_waits_for_its_layers_and_others_do_not() {
    let store = SimStore::new();
    let mut a = node(&store, 1);
    let snapshot = a.snapshot(4, &[1]);
    assert!(!a.attached.publish(&snapshot).unwrap(), "a tenant without its root");
    assert!(objects(&store, "/indexes/").is_empty());
    a.all(5, &[1]).unwrap();
    let snapshot = a.snapshot(6, &[1, 2]);
    a.attached.publish(&snapshot).unwrap();
    assert!(a.attached.has(LIFE, 5), "layer 2 is not there yet");
    // Half of it is: that stays, whoever reads it, for it will be named.
    let half = a.snapshot(7, &[1, 3, 4]);
    let (life, layer) = a.attached.missing(&half)[0];
    a.attached.upload(&a.fs, life, layer).unwrap();
    a.attached.publish(&half).unwrap();
    a.users.clear();
    a.attached.clean().unwrap();
    assert_eq!(layers(&store), [(1, 1), (1, 3)]);
    let found = node(&store, 2).found;
    let index = found.index.unwrap();
    assert_eq!((index.sequence, index.timelines[&TIMELINE].sequence), (7, 5));
}

/// The stale pageserver in every moment: whatever it does after a newer one has claimed changes nothing for it, and it learns so before it
/// acknowledges anything.
#[test]
fn a_stale_pageserver_does_no_harm() {
    let store = SimStore::new();
    let mut old = node(&store, 1);
    old.all(5, &[1, 2]).unwrap();
    let snapshot = old.snapshot(6, &[2, 3]);
    old.upload(&snapshot).unwrap();

    let mut new = node(&store, 2);
    assert!(matches!(old.attached.publish(&snapshot), Err(RemoteError::Fenced { .. })));
    assert!(old.attached.is_fenced());
    old.users.clear();
    assert_eq!(old.attached.clean().unwrap(), 0, "it deletes nothing");
    let late = old.snapshot(7, &[3, 4]);
    assert!(matches!(old.attached.publish(&late), Err(RemoteError::Fenced { .. })));
    assert!(matches!(old.attached.delete_tenant(), Err(RemoteError::Fenced { .. })));

    // The new one goes on from what was acknowledged; its names are its own.
    assert_eq!(new.found.index.as_ref().unwrap().sequence, 5);
    new.all(6, &[1, 2, 3]).unwrap();
    assert_eq!(layers(&store), [(1, 1), (1, 2), (1, 3), (2, 3)]);
    new.users.clear();
    new.attached.clean().unwrap();
    assert_eq!(layers(&store), [(1, 1), (1, 2), (2, 3)], "what the old one left is swept");
    let third = node(&store, 3).found.index.unwrap();
    assert_eq!((third.generation, third.sequence), (Generation(2), 6));
}

#[test]
fn an_index_that_arrives_late_is_superseded() {
    let store = SimStore::new();
    let mut a = node(&store, 1);
    a.all(5, &[1]).unwrap();
    // An index that times out is settled before another is made: nobody puts other bytes under its name.
    let first = a.snapshot(6, &[1]);
    let mut left = 1;
    store.set_rule(move |call, name| {
        let hit = call == Call::Put && name.contains("/indexes/") && left > 0;
        left -= i32::from(hit);
        hit.then_some(Fault::Late)
    });
    assert!(a.attached.publish(&first).is_err());
    assert!(!a.attached.has(LIFE, 6));
    let second = a.snapshot(7, &[1]);
    a.attached.publish(&second).unwrap();
    store.deliver_late();
    let found = node(&store, 2).found.index.unwrap();
    assert_eq!((found.version, found.sequence), (3, 7));
    assert_eq!(
        &store.get(&names::index(TENANT, Generation(1), 2)).unwrap()[..],
        &{
            let at = TimelineAt {
                pg_tli: 1,
                generation: Generation(1),
                sequence: 6,
                disk_consistent_lsn: Lsn(600),
            };
            let index = Index {
                version: 2,
                sequence: 6,
                manifest: Some(Bytes::from_static(b"tenant 6")),
                timelines: BTreeMap::from([(TIMELINE, at)]),
                ..found.clone()
            };
            index.encode()
        }[..]
    );
}

/// An index that may be there counts as there: what it names stays.
#[test]
fn nothing_goes_that_an_unanswered_index_may_name() {
    let store = SimStore::new();
    let mut a = node(&store, 1);
    a.all(5, &[1]).unwrap();
    let snapshot = a.snapshot(6, &[2]);
    a.upload(&snapshot).unwrap();
    store.set_rule(|call, name| {
        (call == Call::Put && name.contains("/indexes/")).then_some(Fault::AnswerLost)
    });
    assert!(a.attached.publish(&snapshot).is_err());
    a.users.clear();
    a.attached.clean().unwrap();
    assert_eq!(layers(&store), [(1, 1), (1, 2)], "either index may be the one");
    store.clear_rule();
    let next = a.snapshot(6, &[2]);
    a.attached.publish(&next).unwrap();
    a.users.clear();
    a.attached.clean().unwrap();
    assert_eq!(layers(&store), [(1, 2)]);
}

#[test]
fn what_cannot_be_confirmed_is_not_acknowledged_and_nothing_goes() {
    let store = SimStore::new();
    let mut a = node(&store, 1);
    a.all(5, &[1]).unwrap();
    store.set_rule(|call, _| (call == Call::Exists).then_some(Fault::Refused));
    assert!(matches!(a.all(6, &[2]), Err(RemoteError::Unavailable { .. })));
    a.users.clear();
    a.attached.clean().unwrap();
    assert_eq!(layers(&store), [(1, 1), (1, 2)]);
    store.clear_rule();
    a.all(6, &[2]).unwrap();
    a.users.clear();
    a.attached.clean().unwrap();
    assert_eq!(layers(&store), [(1, 2)]);
}

#[test]
fn damaged_layers_do_not_leave_the_disk() {
    let store = SimStore::new();
    let mut a = node(&store, 1);
    let snapshot = a.snapshot(5, &[1]);
    let file = a.fs.open(Path::new("/1.layer"), OpenMode::ReadWrite).unwrap();
    file.write_all_at(b"x", 30).unwrap();
    assert!(matches!(a.upload(&snapshot), Err(RemoteError::Corrupt { .. })));
    file.set_len(99).unwrap();
    assert!(matches!(a.upload(&snapshot), Err(RemoteError::Corrupt { .. })));
    assert!(layers(&store).is_empty());
}

#[test]
fn a_deleted_tenant_stays_deleted() {
    let store = SimStore::new();
    let mut a = node(&store, 1);
    a.all(5, &[1]).unwrap();
    // Half of it is left behind.
    store.set_rule(|call, name| {
        (call == Call::Delete && name.contains(".layer")).then_some(Fault::Refused)
    });
    assert!(a.attached.delete_tenant().is_err());
    store.clear_rule();
    let b = node(&store, 2);
    assert_eq!(attach::begin(TENANT, &b.found, None).unwrap(), Begin::Deleted);
    let local = LocalState { sequence: 9, ..LocalState::default() };
    assert_eq!(attach::begin(TENANT, &b.found, Some(&local)).unwrap(), Begin::Deleted);
    b.attached.delete_tenant().unwrap();
    assert_eq!(objects(&store, "/indexes/").len(), 1);
    assert!(layers(&store).is_empty());
    let late = a.snapshot(6, &[1]);
    assert!(matches!(a.attached.publish(&late), Err(RemoteError::Deleted { .. })));
}
