//! Every single flipped bit of every file of the engine: each read answers as before or with an error, and the scrub names the file.
//!
//! The files are small, but hold a block of every kind: page images and page changes, every class of key, tombstones; written by a
//! flush, by a merge, of a root and of a branch. All bits of all sections are tried, so header, blocks, bloom filter, block index and
//! footer are, and both kinds of manifest.

mod support;

use std::path::{Path, PathBuf};

use bytes::Bytes;
use support::*;
use treering_engine::{
    Direction, Engine, RecordEnds, RelMeta, Result, TimeEntry, Timeline, Unhandled, Value,
    WriteBatch, inspect, scrub_directory,
};
use treering_fs::{CrashFs, FileSystem, OpenMode, read_file};
use treering_pgfmt::change::PageChange;
use treering_types::{ControlField, ErrorKind, Key, KeyClass, Lsn, SlruKind};

const ROOT: &str = "/engine";

/// Writes one value of every class at `lsn`.
fn write_all_classes(timeline: &Timeline, lsn: Lsn, number: u32) {
    let rel = rel(5, 0);
    let mut meta = RelMeta::created(Lsn(lsn.0 - 8));
    meta.grow(2);
    let mut batch = WriteBatch::new(lsn);
    let mut put = |key, value| batch.put(key, lsn, value);
    put(Key::rel_meta(rel), Value::whole(meta.encode()));
    put(Key::rel_block(rel, 0), Value::whole(PageChange::Image(filled(0x21).into()).encode()));
    let delta = PageChange::MultiOffsets(vec![(number, number)]);
    put(Key::rel_block(rel, 1), Value::whole(PageChange::Zero.encode()));
    put(Key::rel_block(rel, 1), Value::change(delta.encode()));
    put(
        Key::slru(SlruKind::MultiOffsets, number % 2),
        Value::whole(PageChange::Image(filled(3).into()).encode()),
    );
    put(Key::rel_map(1663, 5), Value::whole(vec![7; 12]));
    put(Key::two_phase(u64::from(number)), Value::whole(vec![number as u8; 9]));
    if number > 0 {
        put(Key::two_phase(u64::from(number - 1)), Value::tombstone());
    }
    put(
        Key::control(ControlField::NextXid),
        Value::whole(u64::from(number).to_le_bytes().to_vec()),
    );
    let (key, value) = TimeEntry::put(i64::from(number) * 100, Lsn(lsn.0 - 8));
    put(key, value);
    let ends = RecordEnds { before: Lsn(lsn.0 - 8), ends: vec![lsn] };
    put(Key::record_ends(lsn), Value::whole(ends.encode()));
    let unhandled = Unhandled { rmid: 130, info: 0, count: number };
    put(Key::unhandled(rel), Value::whole(unhandled.encode()));
    put(Key::origin(1), Value::whole(lsn.0.to_le_bytes().to_vec()));
    timeline.write(batch).unwrap();
}

fn small_world() -> (World<CrashFs>, Vec<Lsn>) {
    let mut world = World::begin(CrashFs::new()).unwrap();
    let root = world.timeline(0);
    let mut lsns = vec![START];
    for number in 0..4 {
        let lsn = START + 64 * u64::from(number + 1);
        write_all_classes(&root, lsn, number);
        root.flush().unwrap();
        if number == 1 {
            root.compact(true).unwrap();
        }
        lsns.push(lsn);
    }
    world.timelines[0].last = lsns[4];
    let branch = world.branch(0, lsns[3]).unwrap();
    let lsn = START + 1024;
    write_all_classes(&world.timeline(branch), lsn, 9);
    world.timeline(branch).flush().unwrap();
    lsns.push(lsn);
    drop(root);
    world.engine = None;
    (world, lsns)
}

/// Everything that can be asked, with the answers.
fn answers(engine: &Engine, lsns: &[Lsn]) -> Vec<Result<Vec<u8>, ErrorKind>> {
    let mut all = Vec::new();
    for number in [1, 2] {
        let timeline = engine.timeline(TENANT, timeline_id(number)).unwrap();
        for lsn in lsns {
            let pages = (0..2).map(|block| Key::rel_block(rel(5, 0), block));
            let slrus = (0..2).map(|page| Key::slru(SlruKind::MultiOffsets, page));
            let keys: Vec<Key> = pages.chain(slrus).collect();
            let pages = timeline.get_pages(&keys, *lsn);
            all.extend(pages.into_iter().map(|page| page.map(|page| page.to_vec())));
            let classes = [
                KeyClass::RelMeta,
                KeyClass::RelMap,
                KeyClass::TwoPhase,
                KeyClass::Control,
                KeyClass::TimeIndex,
                KeyClass::RecordEnds,
                KeyClass::Unhandled,
                KeyClass::Origin,
            ];
            for class in classes {
                let range = Key::class_range(class);
                let found = timeline.scan(range, *lsn, Direction::Forward, usize::MAX);
                let flat = |found: Vec<(Key, Lsn, Bytes)>| {
                    found
                        .iter()
                        .flat_map(|(key, lsn, bytes)| {
                            [&key.0[..], &lsn.0.to_le_bytes(), bytes].concat()
                        })
                        .collect()
                };
                all.push(found.map(flat));
            }
        }
    }
    all.into_iter().map(|answer| answer.map_err(|error| error.kind())).collect()
}

fn files(fs: &CrashFs, directory: &Path) -> Vec<PathBuf> {
    let paths = fs.list(directory).unwrap().into_iter().map(|name| directory.join(name));
    let below = |path: PathBuf| match fs.file_len(&path) {
        Ok(_) => vec![path],
        Err(_) => files(fs, &path),
    };
    paths.flat_map(below).collect()
}

/// Damage must be the answer, and not what a read takes for an empty place.
fn check_reads(fs: &CrashFs, lsns: &[Lsn], right: &[Result<Vec<u8>, ErrorKind>], what: &str) {
    let engine = match open(fs) {
        Ok(engine) => engine,
        Err(error) => {
            let kind = error.kind();
            assert!(matches!(kind, ErrorKind::Corrupt | ErrorKind::Conflict), "{what}: {error}");
            return;
        }
    };
    for (number, (answer, right)) in answers(&engine, lsns).iter().zip(right).enumerate() {
        let noticed = matches!(answer, Err(ErrorKind::Corrupt | ErrorKind::Conflict));
        assert!(noticed || answer == right, "{what}: answer {number} is {answer:?}");
    }
}

#[test]
fn every_flipped_bit_is_noticed_and_named() {
    let (mut world, lsns) = small_world();
    let fs = world.fs.crash(u64::MAX);
    world.reopen(fs.clone()).unwrap();
    let right = answers(world.engine(), &lsns);
    assert!(right.iter().filter(|answer| answer.is_ok()).count() > 100);
    world.engine = None;
    let clean = scrub_directory(&fs, Path::new(ROOT), false, false).unwrap();
    assert!(clean.findings.is_empty() && clean.leftovers.is_empty(), "{clean:?}");
    assert_eq!((clean.tenants, clean.timelines), (1, 2));
    assert!(clean.layers >= 4, "{clean:?}");

    let mut flips = 0;
    for path in files(&fs, Path::new(ROOT)) {
        let bytes = read_file(&fs, &path).unwrap();
        let file = fs.open(&path, OpenMode::ReadWrite).unwrap();
        for bit in 0..bytes.len() * 8 {
            let at = bit / 8;
            let what = format!("{} bit {bit}", path.display());
            file.write_all_at(&[bytes[at] ^ 1 << (bit % 8)], at as u64).unwrap();
            let report = scrub_directory(&fs, Path::new(ROOT), false, false).unwrap();
            assert!(report.findings.iter().any(|f| f.path == path), "{what}: not named");
            let alone = inspect::inspect(&fs, &path, &mut |_| ()).unwrap();
            assert!(!alone.damage().is_empty(), "{what}: not seen in the file alone");
            check_reads(&fs, &lsns, &right, &what);
            file.write_all_at(&bytes[at..=at], at as u64).unwrap();
            flips += 1;
        }
    }
    assert!(flips > 30_000, "only {flips} flips");
    check_reads(&fs, &lsns, &right, "as it was");
}
