//! Index pages that an image does not finish, and pages that a record only locks.

use treering_pgfmt::{
    page::{Page, lsn_of},
    redo::rmgr,
    wal::record::Record,
};
use treering_stock::Cluster;
use treering_types::{Key, Lsn, PAGE_SIZE};

use super::{
    handmade::{DATABASE, Ref, Writer, rel, words},
    ordinary::{assert_all_clean, has_image, lives},
    scene::{Hints, Scene, base_copy, cluster, crashed_at, filenode, records, script, template},
};

const GIST_PAGE_UPDATE: u8 = 0x00;
const GIST_PAGE_SPLIT: u8 = 0x30;
const HASH_SPLIT_ALLOCATE: u8 = 0x40;
const HASH_SPLIT_COMPLETE: u8 = 0x60;

fn is(record: &Record, rmid: u8, info: u8) -> bool {
    (record.rmid, record.info & 0xf0) == (rmid, info)
}

/// Adds rows whose keys are so wide that a page holds few of them, and an inner page still fewer.
fn gist_rows(first: usize, last: usize) -> String {
    format!(
        "insert into g
         select cube(array(select ((n * 7919 + i * 104729) % 1009)::float8 from generate_series(1, 90) i))
         from generate_series({first}, {last}) n;"
    )
}

/// Blocks that redo changes after it restored their image. Three of the four are pages that their split has just
/// written: an image means that a checkpoint came in between, here the one at the end of a recovery that began when
/// the split was half done. The fifth case, the new bucket of SPLIT_COMPLETE, takes a checkpoint at the right moment:
/// the next test has it by hand.
#[test]
fn e08_pages_change_after_their_image() {
    let base = template(15, Hints::Logged);
    let mut first = cluster(15, &base, "");
    first.start().unwrap();
    script(
        &first,
        "create extension cube; create table g (c cube); create index g_c on g using gist (c);",
    );
    script(&first, &gist_rows(1, 150));
    let heap = filenode(&first, "g");
    first.stop("immediate").unwrap();

    // A leaf is split, and a full parent is not: it will be, with the leaf as its left child.
    let end = half_split(&base, &first, |next| is(next, rmgr::GIST, GIST_PAGE_SPLIT));
    let mut second = crashed_at(15, &base, &first.wal_dir(), end, "");
    second.start().unwrap();
    // The row for which the leaf was split comes to the same place.
    let is_row = |record: &&Record| {
        (record.rmid, record.info & 0x70) == (rmgr::HEAP, 0x00)
            && record.block(0).is_some_and(|block| block.rel == rel(heap))
    };
    let before = records(&base, &first.wal_dir());
    let row = before.iter().filter(|it| it.start < end).filter(is_row).count();
    script(&second, &gist_rows(row, row));
    script(&second, &gist_rows(1, 150));
    second.stop("immediate").unwrap();

    // Now a parent with room: the second time a leaf is split with an inner page above it.
    let end = half_split(&base, &second, |next| {
        next.start > end && is(next, rmgr::GIST, GIST_PAGE_UPDATE) && next.block(1).is_some()
    });
    let mut third = crashed_at(15, &base, &second.wal_dir(), end, "");
    third.start().unwrap();
    script(&third, &gist_rows(1, 150));
    script(
        &third,
        "
create table h (k int);
analyze h;
create index h_k on h using hash (k) with (fillfactor = 10);
insert into h select generate_series(1, 200);
checkpoint;
insert into h select generate_series(201, 400);
",
    );
    third.stop("immediate").unwrap();

    // A bucket's tuples are copied, and neither bucket says so.
    let before = records(&base, &third.wal_dir());
    let complete = before.iter().rposition(|it| is(it, rmgr::HASH, HASH_SPLIT_COMPLETE)).unwrap();
    let allocate = before[..complete].iter().rfind(|it| is(it, rmgr::HASH, HASH_SPLIT_ALLOCATE));
    let new = u32::from_le_bytes(allocate.unwrap().main[..4].try_into().unwrap());
    let mask = (new + 1).next_power_of_two() - 1;
    let old = new & (mask >> 1);
    let mut last = crashed_at(15, &base, &third.wal_dir(), before[complete].start, "");
    last.start().unwrap();
    // The first row finds the old bucket, which nothing has touched yet, and finishes its split.
    let rows = format!(
        "insert into h select g from generate_series(1, 400) g order by hashint4(g) & {mask} <> {old};"
    );
    script(&last, &rows);
    script(&last, "checkpoint; insert into h select -9 from generate_series(1, 300);");
    last.stop("fast").unwrap();

    let scene = Scene::of(&base, &last);
    scene.assert_clean();
    let cases = [
        (rmgr::GIST, GIST_PAGE_UPDATE, 1),
        (rmgr::GIST, GIST_PAGE_SPLIT, 0),
        (rmgr::HASH, HASH_SPLIT_ALLOCATE, 0),
        (rmgr::HASH, HASH_SPLIT_COMPLETE, 0),
    ];
    for (rmid, info, id) in cases {
        let (mut seen, mut changed) = (0, 0);
        let mut replica = scene.replica();
        for record in &scene.records {
            replica.apply(record);
            let block = record.block(id);
            let Some(block) = block.filter(|it| is(record, rmid, info) && has_image(it)) else {
                continue;
            };
            let image = block.image.as_ref().unwrap().restore_at(record.end).unwrap().to_page();
            let page = replica.page(&Key::rel_block(block.rel, block.block)).unwrap();
            seen += 1;
            changed += usize::from(page != image);
        }
        assert!(seen > 0, "{rmid} {info:#x} {id}");
        // A hash page's image has what redo then writes once more.
        assert_eq!(changed > 0, rmid == rmgr::GIST, "{rmid} {info:#x} {id}");
    }
}

/// Bucket flags of a split that is not in an image yet: servers write it to the page first, but redo does not count
/// on it.
#[test]
fn e08_hash_flags_come_after_the_image() {
    const META: u32 = 0;
    const OLD: u32 = 1;
    const NEW: u32 = 2;
    for major in [15, 17] {
        let base = base_copy(&format!("e08-{major}"), &template(major, Hints::Unlogged));
        let mut writer = Writer::new(&base);
        let bucket = |flags: u16| {
            let mut page = [0; PAGE_SIZE];
            Page::new(&mut page).init(16);
            let special = [&[0xff; 8][..], &OLD.to_le_bytes(), &flags.to_le_bytes(), &[0x80, 0xff]];
            page[PAGE_SIZE - 16..].copy_from_slice(&special.concat());
            page
        };
        let reference = |block| Ref::new(90001, block);
        writer.record(0, rmgr::SMGR, 0x10, &[], &words(&[1663, DATABASE, 90001, 0]));
        let new = Ref { will_init: true, ..reference(NEW) };
        let refs = [reference(OLD).image(&bucket(2)), new, reference(META).image(&bucket(8))];
        let main = [&words(&[7])[..], &[0x22, 0, 0x12, 0, 0]].concat();
        let allocated = writer.record(0, rmgr::HASH, HASH_SPLIT_ALLOCATE, &refs, &main);
        let refs = [reference(OLD).image(&bucket(0x22)), reference(NEW).image(&bucket(0x12))];
        let completed = writer.record(0, rmgr::HASH, HASH_SPLIT_COMPLETE, &refs, &[0x42, 0, 2, 0]);
        let scene = writer.judge();
        scene.assert_clean();
        let mut replica = scene.replica();
        for record in &scene.records {
            replica.apply(record);
            let page = |block| replica.page(&Key::rel_block(rel(90001), block)).unwrap();
            let flags = |block| page(block)[PAGE_SIZE - 4];
            if record.end == allocated {
                let split_to =
                    u32::from_le_bytes(page(OLD)[PAGE_SIZE - 16..][..4].try_into().unwrap());
                assert_eq!((flags(OLD), flags(NEW), split_to), (0x22, 0x12, 7));
            } else if record.end == completed {
                assert_eq!((flags(OLD), flags(NEW)), (0x42, 2));
            }
        }
    }
}

/// The end of a GiST leaf's split whose parent's record, the next one, is as `parent` says.
fn half_split(base: &std::path::Path, server: &Cluster, parent: impl Fn(&Record) -> bool) -> Lsn {
    let records = records(base, &server.wal_dir());
    let of_leaf = |record: &Record| {
        // The left child of an inner page's split is block 0; the root is split into its own block.
        is(record, rmgr::GIST, GIST_PAGE_SPLIT)
            && record.block(0).is_none()
            && record.block(1).is_some_and(|it| it.block != 0)
    };
    let found = records.windows(2).find(|pair| of_leaf(&pair[0]) && parent(&pair[1]));
    found.unwrap()[0].end
}

/// A page that a record references for its lock only keeps its bytes and its LSN.
#[test]
fn e09_locked_pages_stay_as_they_are() {
    for life in lives() {
        let mut replica = life.scene.replica();
        let mut seen = [0; 3];
        for record in &life.scene.records {
            let kind = [0x70, 0x80, 0x90].iter().position(|info| is(record, rmgr::HASH, *info));
            let locked = record
                .block(0)
                .zip(kind)
                .map(|(block, kind)| (Key::rel_block(block.rel, block.block), kind));
            let before = locked.and_then(|(key, _)| replica.page(&key));
            replica.apply(record);
            if let Some((key, kind)) = locked {
                let (before, after) = (before, replica.page(&key));
                let (before, after) = (before.unwrap(), after.unwrap());
                assert!(before == after && lsn_of(&after) < record.end);
                seen[kind] += 1;
            }
        }
        assert!(seen.iter().all(|count| *count > 0), "{seen:?}");
    }
    assert_all_clean();
}
