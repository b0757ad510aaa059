//! Relations, databases, tablespaces, relation maps.

use std::collections::BTreeMap;

use bytes::Bytes;
use treering_pgfmt::{
    redo::rmgr,
    relmap::RelMap,
    wal::effects::{DatabaseDir, Effect, effects},
};
use treering_types::{Fork, Key, PAGE_SIZE, RelTag};

use super::{
    handmade::{DATABASE, Ref, Writer, rel, words},
    ordinary::{assert_all_clean, lives},
    scene::{Hints, Scene, base_copy, template},
};

const GLOBAL: DatabaseDir = DatabaseDir { tablespace: 1664, database: 0 };

/// The effects of every record, in order.
fn all_effects(scene: &Scene) -> Vec<Effect<'_>> {
    let mut state = scene.replica().judge.state;
    let each = |record| effects(&mut state, record, scene.major).unwrap();
    scene.records.iter().flat_map(each).collect()
}

/// The pages of every fork in a database directory but free space maps, by relation and block.
fn pages_of(
    replica: &xtask::replica::Replica,
    dir: DatabaseDir,
) -> BTreeMap<(u32, Fork, u32), Box<[u8; PAGE_SIZE]>> {
    let rels = replica.inventory.rels.iter().filter(|(rel, _)| {
        (rel.tablespace, rel.database) == (dir.tablespace, dir.database) && rel.fork != Fork::Fsm
    });
    let keys = rels.flat_map(|(rel, blocks)| (0..*blocks).map(|block| (*rel, block)));
    keys.map(|(rel, block)| {
        let page = replica.page(&Key::rel_block(rel, block));
        ((rel.relation, rel.fork, block), page.unwrap_or_else(|| Box::new([0; PAGE_SIZE])))
    })
    .collect()
}

#[test]
fn e05_file_copy_shows_the_source_as_it_was() {
    for life in lives() {
        let mut copies = Vec::new();
        let replica = life.scene.replay(|replica, record| {
            if (record.rmid, record.info & 0xf0) == (rmgr::DATABASE, 0x00) {
                let mut state = replica.judge.state.clone();
                let found = effects(&mut state, record, replica.major).unwrap();
                let [Effect::DatabaseCopy { from, to }] = found[..] else { panic!("{found:?}") };
                copies.push((from, to, pages_of(replica, from)));
            }
        });
        let changed = life.file("origin.changed");
        let (from, to, source) = copies
            .iter()
            .find(|(.., source)| source.contains_key(&(changed, Fork::Main, 0)))
            .unwrap();
        // All forks came along; what is not logged too, as far as it is in files.
        for fork in [Fork::Main, Fork::VisibilityMap, Fork::Init] {
            assert!(source.keys().any(|key| key.1 == fork), "{fork:?}");
        }
        let (now, copy) = (pages_of(&replica, *from), pages_of(&replica, *to));
        let differ = |a: &BTreeMap<_, Box<[u8; PAGE_SIZE]>>, b: &BTreeMap<_, _>| {
            let both =
                a.iter().filter(|(key, page)| b.get(*key).is_some_and(|other| other != *page));
            both.count()
        };
        // The source went on; the copy changed on the page of its one deleted row, and in its catalogs.
        assert!(differ(&now, source) > 20, "{} source pages changed", differ(&now, source));
        let of_changed = |key: &(u32, Fork, u32)| key.0 == changed && key.1 == Fork::Main;
        let strayed: Vec<_> = copy
            .iter()
            .filter(|(key, page)| of_changed(key) && source.get(*key) != Some(*page))
            .collect();
        assert_eq!(strayed.len(), 1);
        // A table dropped from the source afterwards is in the copy, one made afterwards is not.
        assert!(source.keys().all(|key| copy.contains_key(key)));
        assert!(source.keys().any(|key| !now.contains_key(key)));
        assert!(now.keys().any(|key| !copy.contains_key(key)));
        let map =
            |dir: &DatabaseDir| replica.inventory.maps[&(dir.tablespace, dir.database)].clone();
        assert_ne!(map(from), map(to));
        // ALTER DATABASE SET TABLESPACE copies within one database, then drops the old directory.
        let moved = copies.iter().find(|(from, to, _)| from.database == to.database).unwrap();
        assert!(replica.inventory.databases.contains(&(moved.1.tablespace, moved.1.database)));
        assert!(!replica.inventory.databases.contains(&(moved.0.tablespace, moved.0.database)));
    }
    assert_all_clean();
}

#[test]
fn e06_relations_come_and_go() {
    for life in lives() {
        let found = all_effects(&life.scene);
        let replica = life.scene.replayed();
        let dropped: Vec<RelTag> = found
            .iter()
            .filter_map(|effect| match effect {
                Effect::RelDrop(rel) => Some(*rel),
                _ => None,
            })
            .collect();
        // Dropped by a commit, by an abort, by the prepared forms of both.
        for info in [0x00, 0x20, 0x30, 0x40] {
            let with_files = life.scene.of_type(rmgr::XACT, info).filter(|record| {
                let mut state = replica.judge.state.clone();
                let found = effects(&mut state, record, life.scene.major).unwrap();
                found.iter().any(|effect| matches!(effect, Effect::RelDrop(_)))
            });
            assert!(with_files.count() > 0, "{info:#x}");
        }
        assert!(dropped.iter().all(|rel| !replica.inventory.rels.contains_key(rel)));
        let vanished = |rel: &&RelTag| life.scene.replica().inventory.rels.contains_key(rel);
        assert!(dropped.iter().find(vanished).is_some(), "none of the base's own was dropped");
        assert!(found.iter().any(|effect| matches!(effect, Effect::DatabaseDrop(_))));
    }
    assert_all_clean();
}

/// A file number that is used again after its drop, and blocks that come into being because a later one is written.
#[test]
fn e06_a_new_life_of_a_file_begins_with_zeros() {
    for major in [15, 17] {
        let base = base_copy(&format!("e06-{major}"), &template(major, Hints::Unlogged));
        let mut writer = Writer::new(&base);
        let xid = writer.counters.next_xid as u32;
        writer.counters.next_xid += 1;
        let tuple =
            [&1u16.to_le_bytes()[..], &0x0800u16.to_le_bytes(), &[24, 0, 7, 0, 0, 0]].concat();
        let insert = |writer: &mut Writer, block| {
            let init = Ref { will_init: true, ..Ref::new(90001, block) }.data(&tuple);
            writer.record(xid, rmgr::HEAP, 0x80, &[init], &[1, 0, 0]);
        };
        let create = words(&[1663, DATABASE, 90001, 0]);
        writer.record(0, rmgr::SMGR, 0x10, &[], &create);
        (0..6).for_each(|block| insert(&mut writer, block));
        let drop = [&[0; 8][..], &words(&[1 << 2, 1, 1663, DATABASE, 90001])].concat();
        writer.record(xid, rmgr::XACT, 0x80, &[], &drop);
        writer.record(0, rmgr::SMGR, 0x10, &[], &create);
        insert(&mut writer, 3);
        let scene = writer.judge();
        scene.assert_clean();
        let replica = scene.replayed();
        assert_eq!(replica.inventory.rels[&rel(90001)], 4);
        let page = |block| replica.page(&Key::rel_block(rel(90001), block));
        assert!(page(0).is_none_or(|page| page.iter().all(|byte| *byte == 0)));
        assert_ne!(page(3).unwrap()[14], 0);
    }
}

#[test]
fn e15_unlogged_relations_log_their_init_fork_only() {
    for life in lives() {
        let files = ["unlogged", "unlogged_k", "unlogged_s"].map(|name| rel(life.file(name)));
        let mut kinds = Vec::new();
        for record in &life.scene.records {
            for block in
                record.blocks.iter().filter(|it| files.contains(&it.rel.with_fork(Fork::Main)))
            {
                assert_eq!(block.rel.fork, Fork::Init, "{record:?}");
                kinds.push(record.rmid);
            }
        }
        for rmid in [rmgr::HASH, rmgr::SEQUENCE] {
            assert!(kinds.contains(&rmid), "{kinds:?}");
        }
        let replica = life.scene.replayed();
        let blocks =
            files.map(|file| replica.inventory.rels.get(&file.with_fork(Fork::Init)).copied());
        // An empty heap has an empty init fork.
        assert!(matches!(blocks, [Some(0), Some(4..), Some(1)]), "{blocks:?}");
    }
    assert_all_clean();
}

#[test]
fn relation_maps_are_those_of_the_server() {
    for life in lives() {
        let replica = life.scene.replayed();
        let updates: Vec<DatabaseDir> = all_effects(&life.scene)
            .into_iter()
            .filter_map(|effect| match effect {
                Effect::RelMap { dir, .. } => Some(dir),
                _ => None,
            })
            .collect();
        assert!(updates.contains(&GLOBAL) && updates.iter().any(|dir| *dir != GLOBAL));
        let before = life.scene.replica().inventory.maps;
        let ours = &replica.inventory.maps;
        assert_ne!(before[&(1664, 0)], ours[&(1664, 0)]);
        let parsed = |maps: &BTreeMap<(u32, u32), Bytes>| -> Vec<_> {
            maps.iter()
                .map(|(dir, file)| (*dir, RelMap::parse(life.scene.major, file).unwrap()))
                .collect()
        };
        let primary = life.scene.primary.as_ref().unwrap();
        assert_eq!(parsed(ours), parsed(&primary.inventory.maps));
        assert!(ours.len() >= 7);
    }
    assert_all_clean();
}

/// Every fork is as long as the standby has it; a server's own may be longer.
#[test]
fn relation_sizes_are_those_of_the_standby() {
    for life in lives() {
        let cut = all_effects(&life.scene).into_iter().filter_map(|effect| match effect {
            Effect::RelTruncate { rel, blocks } => Some((rel.fork, blocks)),
            _ => None,
        });
        let cut: Vec<_> = cut.collect();
        for fork in [Fork::Main, Fork::Fsm, Fork::VisibilityMap] {
            assert!(cut.iter().any(|(of, blocks)| *of == fork && *blocks > 0), "{fork:?}: {cut:?}");
        }
        let replica = life.scene.replayed();
        let primary = &life.scene.primary.as_ref().unwrap().inventory;
        let ours = &replica.inventory.rels;
        let main = |rels: &BTreeMap<RelTag, u32>| -> BTreeMap<RelTag, u32> {
            let main = rels.iter().filter(|(rel, _)| matches!(rel.fork, Fork::Main | Fork::Init));
            main.map(|(rel, blocks)| (*rel, *blocks)).collect()
        };
        let unlogged =
            |rel: &RelTag| ours.contains_key(&rel.with_fork(Fork::Init)) && rel.fork == Fork::Main;
        let mut ours = main(ours);
        ours.retain(|rel, _| !unlogged(rel));
        let theirs = main(&primary.rels);
        assert!(ours.keys().eq(theirs.keys()));
        // From 16 on a server adds several pages at once; those that are never written to are not logged.
        let longer: Vec<_> = theirs.iter().filter(|(rel, blocks)| ours[*rel] < **blocks).collect();
        let shorter = theirs.iter().filter(|(rel, blocks)| ours[*rel] > **blocks).count();
        let extends_at_once = life.scene.major.number() >= 16;
        assert!(shorter == 0 && longer.is_empty() != extends_at_once, "{longer:?}");
    }
    assert_all_clean();
}

#[test]
fn tablespaces_come_and_go_with_what_is_in_them() {
    for life in lives() {
        let found = all_effects(&life.scene);
        let made: Vec<u32> = found
            .iter()
            .filter_map(|effect| match effect {
                // In-place tablespaces, which tests need, have no path.
                Effect::TablespaceCreate { tablespace, path } => {
                    assert_eq!(path, "");
                    Some(*tablespace)
                }
                _ => None,
            })
            .collect();
        let gone = found.iter().find_map(|effect| match effect {
            Effect::TablespaceDrop { tablespace } => Some(*tablespace),
            _ => None,
        });
        let [place, emptied] = made[..] else { panic!("{made:?}") };
        assert_eq!(gone, Some(emptied));
        let replica = life.scene.replayed();
        assert_eq!(replica.inventory.tablespaces.iter().collect::<Vec<_>>(), [&place]);
        let in_place = replica.inventory.rels.keys().filter(|rel| rel.tablespace == place);
        let databases: std::collections::BTreeSet<u32> = in_place.map(|rel| rel.database).collect();
        assert_eq!(databases.len(), 2, "tables of one database, and another whole database");
        assert_eq!(
            replica.inventory.databases,
            life.scene.primary.as_ref().unwrap().inventory.databases
        );
    }
    assert_all_clean();
}
