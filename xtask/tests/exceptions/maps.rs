//! Visibility maps and free space maps.

use std::{collections::BTreeSet, fs::File};

use treering_pgfmt::{
    page::{flag, lsn_of},
    redo::{rmgr, visibility::HEAP_BLOCKS_PER_PAGE},
    relpath,
    wal::record::Record,
};
use treering_stock::Postgres;
use treering_types::{Fork, Key, PAGE_SIZE, PageImage, RelTag};
use xtask::{
    replica::{Files, Replica},
    standby,
};

use super::{
    handmade::{DATABASE, Ref, Writer, rel, words},
    ordinary::{assert_all_clean, has_image, lives},
    scene::{Hints, Scene, base_copy, template},
};

const INSERT: u8 = 0x00;
const DELETE: u8 = 0x10;
const UPDATE: u8 = 0x20;
const HOT_UPDATE: u8 = 0x40;
const LOCK: u8 = 0x60;
const VISIBLE: u8 = 0x40;
const MULTI_INSERT: u8 = 0x50;
const LOCK_UPDATED: u8 = 0x60;
const INIT: u8 = 0x80;

/// Both bits of a heap block.
fn bits(replica: &Replica, heap: RelTag, block: u32) -> u8 {
    let map = Key::rel_block(heap.with_fork(Fork::VisibilityMap), block / HEAP_BLOCKS_PER_PAGE);
    replica.page(&map).map_or(0, |page| bits_in(&page, block))
}

fn bits_in(map: &PageImage, block: u32) -> u8 {
    let at = block % HEAP_BLOCKS_PER_PAGE;
    map[24 + (at / 4) as usize] >> (2 * (at % 4)) & 3
}

/// What happened to the bits of a heap block: resource manager, type, block reference, bits before and after.
type Change = (u8, u8, u8, u8, u8);

fn changes(scene: &Scene) -> BTreeSet<Change> {
    let mut seen = BTreeSet::new();
    let mut replica = scene.replica();
    for record in &scene.records {
        let heap = matches!(record.rmid, rmgr::HEAP | rmgr::HEAP2);
        let blocks: Vec<_> =
            record.blocks.iter().filter(|it| heap && it.rel.fork == Fork::Main).collect();
        let before: Vec<u8> =
            blocks.iter().map(|block| bits(&replica, block.rel, block.block)).collect();
        replica.apply(record);
        for (block, before) in blocks.iter().zip(before) {
            let after = bits(&replica, block.rel, block.block);
            if before != after {
                seen.insert((record.rmid, record.info & 0x70, block.id, before, after));
            }
        }
    }
    seen
}

#[test]
fn e01_heap_records_clear_bits_of_a_map_they_do_not_reference() {
    for life in lives() {
        let seen = changes(&life.scene);
        for kind in [
            (rmgr::HEAP, INSERT, 0, 3, 0),
            (rmgr::HEAP, DELETE, 0, 3, 0),
            (rmgr::HEAP, UPDATE, 0, 3, 0),
            // The row was locked first.
            (rmgr::HEAP, UPDATE, 1, 1, 0),
            (rmgr::HEAP, HOT_UPDATE, 0, 3, 0),
            (rmgr::HEAP, LOCK, 0, 3, 1),
            (rmgr::HEAP2, MULTI_INSERT, 0, 3, 0),
        ] {
            let (major, hints) = (life.scene.major, life.hints);
            assert!(seen.contains(&kind), "{major} {hints:?}: {kind:?} not in {seen:?}");
        }
    }
    assert_all_clean();
}

/// The first heap block of the second map page, and blocks around it.
const FAR: u32 = HEAP_BLOCKS_PER_PAGE;
/// Hand-made relations have this many blocks.
const BLOCKS: u32 = FAR + 24;

/// Makes a heap without rows, all of it all-frozen, in a data directory whose server is stopped.
fn make_heap(data: &std::path::Path, major: treering_pgfmt::version::PgMajor, relation: u32) {
    let path = |fork| data.join(relpath::path_of(major, rel(relation).with_fork(fork), 0));
    let heap = File::create(path(Fork::Main)).unwrap();
    heap.set_len(u64::from(BLOCKS) * PAGE_SIZE as u64).unwrap();
    let mut map = [0xff; PAGE_SIZE];
    treering_pgfmt::page::Page::new(&mut map).init(0);
    map[24..].fill(0xff);
    std::fs::write(path(Fork::VisibilityMap), [map, map].concat()).unwrap();
}

/// A heap tuple of one `int`, as INSERT has it in its block data.
fn tuple() -> Vec<u8> {
    [&1u16.to_le_bytes()[..], &0x0800u16.to_le_bytes(), &[24, 0, 7, 0, 0, 0]].concat()
}

/// A base with hand-made heaps, hints not logged.
fn hand_made(name: &str, major: u32, relations: &[u32]) -> Writer {
    let base = base_copy(&format!("{name}-{major}"), &template(major, Hints::Unlogged));
    let writer = Writer::new(&base);
    relations.iter().for_each(|relation| make_heap(&base, writer.major(), *relation));
    writer
}

/// Writes records of one transaction, each on a page of its own that has one tuple so far.
struct Changes<'a> {
    writer: &'a mut Writer,
    xid: u32,
    block: u32,
}

impl Changes<'_> {
    /// What begins with the transaction's id.
    fn by_xid(&self, rest: &[u8]) -> Vec<u8> {
        [&self.xid.to_le_bytes()[..], rest].concat()
    }

    fn one(&mut self, rmid: u8, info: u8, data: &[u8], main: &[u8]) {
        let init = Ref { will_init: true, ..Ref::new(90001, self.block) }.data(&tuple());
        self.writer.record(self.xid, rmgr::HEAP, INSERT | INIT, &[init], &[1, 0, 0]);
        let reference = Ref::new(90001, self.block).data(data);
        self.writer.record(self.xid, rmid, info, &[reference], main);
        self.block += 1;
    }

    /// A row goes to the next page: the flags say whose bits are cleared.
    fn moved(&mut self, flags: u8) {
        let hot = self.by_xid(&[1, 0, 0, 0, 0, 0, 0, 0, 2, 0]);
        self.one(rmgr::HEAP, HOT_UPDATE, &tuple(), &hot);
        let new = Ref { will_init: true, ..Ref::new(90001, self.block) }.data(&tuple());
        let main = self.by_xid(&[2, 0, 0, flags, 0, 0, 0, 0, 1, 0]);
        let refs = [new, Ref::new(90001, self.block - 1)];
        self.writer.record(self.xid, rmgr::HEAP, UPDATE | INIT, &refs, &main);
        self.block += 1;
    }

    fn all(&mut self) {
        self.one(rmgr::HEAP, INSERT, &tuple(), &[2, 0, 1]);
        self.one(rmgr::HEAP, DELETE, &[], &self.by_xid(&[1, 0, 0, 1]));
        self.one(rmgr::HEAP, HOT_UPDATE, &tuple(), &self.by_xid(&[1, 0, 0, 1, 0, 0, 0, 0, 2, 0]));
        self.one(rmgr::HEAP, LOCK, &[], &self.by_xid(&[1, 0, 6, 1]));
        self.one(rmgr::HEAP2, LOCK_UPDATED, &[], &self.by_xid(&[1, 0, 6, 1]));
        let several = [&(tuple().len() as u16 - 5).to_le_bytes()[..], &tuple()].concat();
        self.one(rmgr::HEAP2, MULTI_INSERT, &several, &[1, 0, 1, 0, 2, 0]);
        self.moved(1);
        self.moved(2);
    }
}

/// Every kind of record on blocks of the first and of the second map page; LOCK_UPDATED too, which needs a race to
/// come upon a frozen page.
#[test]
fn e01_bits_on_every_map_page_are_cleared() {
    for major in [15, 17] {
        let mut writer = hand_made("e01", major, &[90001]);
        let xid = writer.counters.next_xid as u32;
        writer.counters.next_xid += 1;
        Changes { writer: &mut writer, xid, block: 4 }.all();
        Changes { writer: &mut writer, xid, block: FAR }.all();
        let mut last_of_first = Changes { writer: &mut writer, xid, block: FAR - 1 };
        last_of_first.one(rmgr::HEAP, INSERT, &tuple(), &[2, 0, 1]);
        let scene = writer.judge();
        scene.assert_clean();
        let replica = scene.replayed();
        let of = |first: u32| -> Vec<u8> {
            (first..first + 12).map(|block| bits(&replica, rel(90001), block)).collect()
        };
        //  insert, delete, hot update, lock, lock updated, multi insert, (old), new, old, (new), untouched
        let cleared = [0, 0, 0, 1, 1, 0, 0, 3, 3, 0, 3, 3];
        assert_eq!(of(4), cleared);
        assert_eq!(of(FAR), cleared);
        assert_eq!(bits(&replica, rel(90001), FAR - 2), 3);
        assert_eq!(bits(&replica, rel(90001), FAR - 1), 0);
        assert_eq!(changes(&scene).len(), 8);
    }
}

#[test]
fn e02_truncation_clears_the_tail_of_the_last_map_page() {
    for life in lives().into_iter().filter(|life| life.hints == Hints::Unlogged) {
        let cut = rel(life.file("cut"));
        let mut before = Vec::new();
        let replica = life.scene.replay(|replica, record| {
            if let Some(blocks) = truncated(record, cut) {
                before.push((
                    blocks,
                    (0..4).map(|it| bits(replica, cut, blocks + it)).collect::<Vec<_>>(),
                ));
            }
        });
        // In the middle of a byte, and there were bits beyond it.
        assert!(
            matches!(&before[..], [(blocks, tail)] if blocks % 4 != 0 && tail[0] != 0),
            "{before:?}"
        );
        let blocks = before[0].0;
        assert_ne!(bits(&replica, cut, blocks - 1), 0);
        assert!((blocks..HEAP_BLOCKS_PER_PAGE).all(|block| bits(&replica, cut, block) == 0));
    }
    assert_all_clean();
}

/// The new size of a relation that the record truncates.
fn truncated(record: &Record, rel: RelTag) -> Option<u32> {
    let is_truncate = (record.rmid, record.info & 0xf0) == (rmgr::SMGR, 0x20);
    let words: Vec<u32> = record
        .main
        .chunks_exact(4)
        .map(|word| u32::from_le_bytes(word.try_into().unwrap()))
        .collect();
    (is_truncate && words[1..4] == [rel.tablespace, rel.database, rel.relation]).then(|| words[0])
}

/// On each side of the border between two map pages, and with each of the four places in a byte.
#[test]
fn e02_truncation_cuts_maps_at_every_place() {
    const ALL: u32 = 7;
    let sizes = [6, 7, 8, 9, FAR - 1, FAR, FAR + 1, FAR + 3];
    for major in [15, 17] {
        let relations: Vec<u32> = (90001..).take(sizes.len()).collect();
        let mut writer = hand_made("e02", major, &relations);
        for (relation, blocks) in relations.iter().zip(sizes) {
            let main = words(&[blocks, 1663, DATABASE, *relation, ALL]);
            writer.record(0, rmgr::SMGR, 0x20, &[], &main);
        }
        let scene = writer.judge();
        scene.assert_clean();
        let replica = scene.replayed();
        for (relation, blocks) in relations.iter().zip(sizes) {
            let map = rel(*relation).with_fork(Fork::VisibilityMap);
            assert_eq!(replica.inventory.rels[&rel(*relation)], blocks);
            assert_eq!(replica.inventory.rels[&map], blocks.div_ceil(FAR));
            assert_eq!(bits(&replica, rel(*relation), blocks - 1), 3);
            if !blocks.is_multiple_of(FAR) {
                let last = replica.page(&Key::rel_block(map, blocks / FAR)).unwrap();
                let left = (0..FAR).filter(|block| bits_in(&last, *block) == 3).count() as u32;
                assert_eq!((left, lsn_of(&last).0), (blocks % FAR, 0));
            }
        }
    }
}

/// Clearing a bit of a missing map page makes the page in stock redo, and nothing here: it has no bit either way.
#[test]
fn e03_a_missing_map_page_is_one_without_bits() {
    for major in [15, 17] {
        let mut writer = hand_made("e03", major, &[]);
        let xid = writer.counters.next_xid as u32;
        writer.counters.next_xid += 1;
        for relation in [90001, 90002] {
            writer.record(0, rmgr::SMGR, 0x10, &[], &words(&[1663, DATABASE, relation, 0]));
            let init = Ref { will_init: true, ..Ref::new(relation, 0) }.data(&tuple());
            writer.record(xid, rmgr::HEAP, INSERT | INIT, &[init], &[1, 0, 1]);
        }
        let map = Ref { fork: 2, ..Ref::new(90002, 0) };
        let visible = [&0u32.to_le_bytes()[..], &[1]].concat();
        let at = writer.record(0, rmgr::HEAP2, VISIBLE, &[map, Ref::new(90002, 0)], &visible);
        let scene = writer.judge();
        scene.assert_clean();
        let replica = scene.replayed();
        let last = scene.records.last().unwrap().start;
        let wal = scene.base.with_file_name("wal");
        let postgres = Postgres::find(major).unwrap();
        let standby = standby::recover(&postgres, &scene.base, &wal, last).unwrap();
        let files = Files::new(scene.major, &standby.data());
        let map = |relation| Key::rel_block(rel(relation).with_fork(Fork::VisibilityMap), 0);
        use treering_pgfmt::judge::Bases;
        // Only the standby has the page that was never set: new or empty, without bits.
        assert!(replica.page(&map(90001)).is_none());
        assert!(files.page(&map(90001)).unwrap()[24..].iter().all(|byte| *byte == 0));
        assert!(scene.report.files.as_ref().unwrap().empty_map_pages >= 1);
        let made = replica.page(&map(90002)).unwrap();
        assert_eq!((made[24], lsn_of(&made)), (1, at));
        assert_eq!(made[..8], files.page(&map(90002)).unwrap()[..8]);
        assert_eq!(made[10..], files.page(&map(90002)).unwrap()[10..]);
    }
}

#[test]
fn e04_redo_makes_no_free_space_map() {
    let life = lives()[1];
    let heap = rel(life.file("seen"));
    let map = heap.with_fork(Fork::Fsm);
    let replica = life.scene.replayed();
    assert!(!replica.inventory.rels.contains_key(&map));
    assert!(replica.judge.pages().all(|(key, _)| key.rel() != Some(map)));
    // The server that wrote the WAL had one, and its records are those whose stock redo notes free space.
    let primary = life.scene.primary.as_ref().unwrap();
    assert!(primary.inventory.rels[&map] > 0);
    let mut visible = life.scene.of_type(rmgr::HEAP2, VISIBLE);
    assert!(visible.any(|record| record.block(1).is_some_and(|block| block.rel == heap)));
    life.scene.assert_clean();
}

/// Block 1 of VISIBLE is the heap page: its LSN moves only where hint bits are logged.
#[test]
fn e10_the_heap_page_of_visible_moves_where_hints_are_logged() {
    for life in lives() {
        let mut replica = life.scene.replica();
        let mut moved = BTreeSet::new();
        for record in &life.scene.records {
            let is_visible = (record.rmid, record.info & 0x70) == (rmgr::HEAP2, VISIBLE);
            let heap = record.block(1).filter(|heap| is_visible && !has_image(heap));
            let before = heap.map(|heap| replica.page(&Key::rel_block(heap.rel, heap.block)));
            replica.apply(record);
            let Some((heap, Some(before))) = heap.zip(before) else { continue };
            let after = replica.page(&Key::rel_block(heap.rel, heap.block)).unwrap();
            assert_ne!(u16::from_le_bytes([after[10], after[11]]) & flag::ALL_VISIBLE, 0);
            let parameters = replica.judge.state.parameters;
            moved.insert((
                parameters.data_checksums,
                parameters.wal_log_hints,
                lsn_of(&after) == record.end,
                lsn_of(&after) == lsn_of(&before),
            ));
        }
        let expected = match life.hints {
            Hints::Logged => vec![(true, false, true, false), (true, true, true, false)],
            Hints::Unlogged => vec![(false, false, false, true), (false, true, true, false)],
        };
        assert_eq!(moved, BTreeSet::from_iter(expected));
    }
    assert_all_clean();
}

/// Every bit of every map is what the server itself had, but for databases whose maps the log leaves out.
#[test]
fn visibility_maps_are_those_of_the_server() {
    for life in lives() {
        let replica = life.scene.replayed();
        let primary = life.scene.primary.as_ref().unwrap();
        let copied_by_log: BTreeSet<u32> = life
            .scene
            .of_type(rmgr::DATABASE, 0x10)
            .map(|record| u32::from_le_bytes(record.main[..4].try_into().unwrap()))
            .collect();
        let compared = primary
            .pages
            .iter()
            .filter(|(key, _)| key.rel().is_some_and(|rel| !copied_by_log.contains(&rel.database)));
        let mut with_bits = 0;
        for (key, theirs) in compared {
            let ours = replica.page(key);
            let ours = ours.as_ref().map_or(&[0; PAGE_SIZE - 24][..], |page| &page[24..]);
            assert!(ours == &theirs[24..], "{key:?}");
            with_bits += usize::from(ours.iter().any(|byte| *byte != 0));
        }
        assert!(with_bits > 20 && copied_by_log.len() == 1, "{with_bits} {copied_by_log:?}");
    }
    assert_all_clean();
}
