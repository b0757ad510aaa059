//! Damage is noticed and named, never served: every flipped byte of a layer file and of both kinds of manifests.

mod support;

use std::path::{Path, PathBuf};

use support::*;
use treering_engine::{Engine, EngineError};
use treering_fs::{CrashFs, FileSystem, OpenMode, read_file};
use treering_types::{ErrorKind, Key, Lsn};

fn small_world() -> World<CrashFs> {
    let mut world = World::begin(CrashFs::new()).unwrap();
    let records: Vec<Vec<Act>> = (0..40u32)
        .map(|n| vec![Act::Delta(rel(5, n % 3), n % 2, n, n * 7), Act::Put(n % 8, n as u8)])
        .collect();
    world.write(0, &records).unwrap();
    world.timeline(0).flush().unwrap();
    world.branch(0, world.timelines[0].last).unwrap();
    world.engine = None;
    world
}

fn files_below(fs: &CrashFs, directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for name in fs.list(directory).unwrap() {
        let path = directory.join(name);
        match fs.file_len(&path) {
            Ok(_) => found.push(path),
            Err(_) => found.extend(files_below(fs, &path)),
        }
    }
    found
}

fn overwrite(fs: &CrashFs, path: &Path, at: u64, bytes: &[u8]) {
    fs.open(path, OpenMode::ReadWrite).unwrap().write_all_at(bytes, at).unwrap();
}

/// Opens what is there and reads all of it. `Err`: what was noticed. A page that differs from the model panics.
fn read_everything(world: &mut World<CrashFs>) -> Result<(), Vec<EngineError>> {
    let fs = world.fs.clone();
    world.reopen(fs).map_err(|error| vec![error])?;
    let engine = world.engine().clone();
    let errors: Vec<EngineError> =
        engine.scrub().findings.into_iter().map(|finding| finding.error).collect();
    if !errors.is_empty() {
        // What cannot be trusted is not served either: each page is right or an error.
        check_served(world, &engine);
        return Err(errors);
    }
    world.check(0, world.timelines[0].last);
    world.check(1, world.timelines[1].last);
    Ok(())
}

fn check_served(world: &World<CrashFs>, engine: &Engine) {
    let timeline = engine.timeline(TENANT, timeline_id(2)).unwrap();
    let lsn = world.timelines[1].last;
    for relation in 0..RELATIONS {
        for block in 0..2 {
            let key = Key::rel_block(rel(5, relation), block);
            if let Ok(page) = timeline.get_page(key, lsn) {
                let mut expected = filled(0x11);
                for n in (0..40u32).filter(|n| n % 3 == relation && n % 2 == block) {
                    let at = n as usize * 4;
                    expected[at..at + 4].copy_from_slice(&(n * 7).to_le_bytes());
                }
                assert!(page == expected, "{key:?} was served damaged");
            }
        }
    }
}

#[test]
fn every_flipped_byte_is_noticed() {
    let mut world = small_world();
    let pristine = world.fs.crash(u64::MAX);
    let mut flips = 0;
    for path in files_below(&pristine, Path::new("/engine")) {
        let bytes = read_file(&pristine, &path).unwrap();
        for at in 0..bytes.len() {
            world.fs = pristine.clone();
            overwrite(&world.fs, &path, at as u64, &[bytes[at] ^ (1 << (at % 8))]);
            let noticed = read_everything(&mut world).expect_err("a flipped byte went unnoticed");
            for error in noticed {
                assert!(
                    matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Conflict),
                    "{} byte {at}: {error}",
                    path.display()
                );
            }
            overwrite(&world.fs, &path, at as u64, &bytes[at..=at]);
            flips += 1;
        }
    }
    assert!(flips > 1000, "only {flips} flips");
    world.fs = pristine;
    read_everything(&mut world).unwrap();
}

#[test]
fn truncated_and_missing_files_are_noticed() {
    let mut world = small_world();
    let pristine = world.fs.crash(u64::MAX);
    for path in files_below(&pristine, Path::new("/engine")) {
        for keep in [0, 1, 8, 20, 100] {
            world.fs = pristine.crash(u64::MAX);
            let file = world.fs.open(&path, OpenMode::ReadWrite).unwrap();
            file.set_len(file.len().unwrap().saturating_sub(1).min(keep)).unwrap();
            let errors = read_everything(&mut world).unwrap_err();
            assert_eq!(errors[0].kind(), ErrorKind::Corrupt, "{}: {}", path.display(), errors[0]);
        }
        world.fs = pristine.crash(u64::MAX);
        world.fs.remove_file(&path).unwrap();
        let errors = read_everything(&mut world).unwrap_err();
        assert_eq!(errors[0].kind(), ErrorKind::Corrupt, "{}: {}", path.display(), errors[0]);
    }
}

#[test]
fn a_damaged_block_is_named_by_file_and_offset() {
    let mut world = small_world();
    let layers = files_below(&world.fs, Path::new("/engine"));
    let layer = layers.iter().rfind(|path| path.extension().is_some_and(|e| e == "layer")).unwrap();
    overwrite(&world.fs, layer, 40, &[0xEE]);
    let fs = world.fs.clone();
    world.reopen(fs).unwrap();
    let findings = world.engine().scrub().findings;
    let names = |error: &EngineError| match error {
        EngineError::Corrupt { path, offset, .. } => path == layer && *offset == 16,
        _ => false,
    };
    assert!(findings.iter().any(|finding| names(&finding.error)), "{findings:?}");
}

#[test]
fn newer_formats_are_refused_by_name() {
    for file in ["manifest", "00000000000000000000000000000000/manifest"] {
        let mut world = small_world();
        let timeline = timeline_id(1).to_string();
        let name = file.replace("00000000000000000000000000000000", &timeline);
        let path = Path::new("/engine").join(TENANT.to_string()).join(name);
        let mut bytes = read_file(&world.fs, &path).unwrap();
        let known = bytes[8];
        bytes[8] += 1;
        let covered = bytes.len() - 4;
        let crc = crc32fast::hash(&bytes[..covered]);
        bytes[covered..].copy_from_slice(&crc.to_le_bytes());
        overwrite(&world.fs, &path, 0, &bytes);
        let fs = world.fs.clone();
        let error = world.reopen(fs).unwrap_err();
        assert!(
            matches!(&error, EngineError::NewerFormat { found, known: ours, path: named }
                if *named == path && *ours == u32::from(known) && *found == ours + 1),
            "{error}"
        );
    }
}

/// A change of what is written on disk shows up here: raise the format version, keep this file and add another.
#[test]
fn golden_files_are_read_forever() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    if std::env::var_os("TREERING_GOLDEN").is_some() {
        let golden = golden.join("v2");
        let mut world = small_world();
        compacted(&mut world);
        for path in files_below(&world.fs, Path::new("/engine")) {
            let target = golden.join(path.strip_prefix("/engine").unwrap());
            std::fs::create_dir_all(target.parent().unwrap()).unwrap();
            std::fs::write(target, read_file(&world.fs, &path).unwrap()).unwrap();
        }
    }
    for version in ["v1", "v2"] {
        let mut world = small_world();
        world.fs = load(&golden.join(version));
        read_everything(&mut world).unwrap();
        let branch = world.timeline(1);
        assert_eq!(branch.info().ancestor, Some((timeline_id(1), Lsn(START.0 + 320))));
        let root = world.timeline(0);
        let (cut_off, leased) =
            if version == "v1" { (START, None) } else { (START + 200, Some(START + 80)) };
        assert_eq!(root.cut_off(), cut_off);
        assert_eq!(root.retained().lsns().first().copied().filter(|lsn| *lsn < cut_off), leased);
    }
}

/// Gc and a merge, so that the manifest has something to say.
fn compacted(world: &mut World<CrashFs>) {
    let fs = world.fs.clone();
    world.reopen(fs).unwrap();
    let root = world.timeline(0);
    root.set_leases([START + 80]).unwrap();
    root.gc_below(START + 200).unwrap();
    root.compact(true).unwrap();
    world.engine = None;
}

/// A directory of the real file system, as a simulated one.
fn load(directory: &Path) -> CrashFs {
    fn copy(fs: &CrashFs, from: &Path, to: &Path) {
        fs.create_dir_all(to).unwrap();
        for entry in std::fs::read_dir(from).expect("golden files are committed") {
            let entry = entry.unwrap();
            let target = to.join(entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                copy(fs, &entry.path(), &target);
            } else {
                let file = fs.open(&target, OpenMode::CreateNew).unwrap();
                file.write_all_at(&std::fs::read(entry.path()).unwrap(), 0).unwrap();
            }
        }
    }
    let fs = CrashFs::new();
    copy(&fs, directory, Path::new("/engine"));
    fs
}
