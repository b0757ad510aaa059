use std::{io, path::Path, sync::Arc};

use super::*;

fn write(fs: &dyn FileSystem, path: &str, bytes: &[u8]) -> Arc<dyn File> {
    let file = fs.open(Path::new(path), OpenMode::CreateOrOpen).unwrap();
    file.write_all_at(bytes, 0).unwrap();
    file
}

fn content(fs: &dyn FileSystem, path: &str) -> Option<Vec<u8>> {
    match read_file(fs, Path::new(path)) {
        Ok(bytes) => Some(bytes),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => panic!("{error}"),
    }
}

fn behaves_as_a_file_system(fs: &dyn FileSystem, root: &Path) {
    let dir = root.join("a/b");
    create_dir_durably(fs, &dir).unwrap();
    assert!(fs.open(&dir.join("x"), OpenMode::Read).is_err());
    let file = fs.open(&dir.join("x"), OpenMode::CreateNew).unwrap();
    assert!(fs.open(&dir.join("x"), OpenMode::CreateNew).is_err());
    file.write_all_at(b"abc", 5).unwrap();
    assert_eq!(file.len().unwrap(), 8);
    let mut all = [1; 8];
    file.read_exact_at(&mut all, 0).unwrap();
    assert_eq!(&all, b"\0\0\0\0\0abc");
    let past_end = file.read_exact_at(&mut all, 1).unwrap_err();
    assert_eq!(past_end.kind(), io::ErrorKind::UnexpectedEof);
    file.set_len(6).unwrap();
    file.set_len(8).unwrap();
    file.read_exact_at(&mut all, 0).unwrap();
    assert_eq!(&all, b"\0\0\0\0\0a\0\0");
    assert!(fs.open(&dir.join("x"), OpenMode::Read).unwrap().write_all_at(b"a", 0).is_err());
    write_atomically(fs, &dir.join("y"), b"1").unwrap();
    write_atomically(fs, &dir.join("y"), b"").unwrap();
    assert_eq!(fs.list(&dir).unwrap(), ["x", "y"]);
    assert_eq!(fs.file_len(&dir.join("y")).unwrap(), 0);
    fs.hard_link(&dir.join("x"), &dir.join("z")).unwrap();
    let taken = fs.hard_link(&dir.join("x"), &dir.join("y")).unwrap_err();
    assert_eq!(taken.kind(), io::ErrorKind::AlreadyExists);
    let missing = fs.hard_link(&dir.join("none"), &dir.join("w")).unwrap_err();
    assert_eq!(missing.kind(), io::ErrorKind::NotFound);
    fs.remove_file(&dir.join("z")).unwrap();
    assert_eq!(fs.file_len(&dir.join("x")).unwrap(), 8);
    fs.rename(&root.join("a"), &root.join("c")).unwrap();
    assert!(!fs.exists(&dir).unwrap());
    assert_eq!(fs.file_len(&root.join("c/b/x")).unwrap(), 8);
    fs.remove_file(&root.join("c/b/x")).unwrap();
    file.write_all_at(b"z", 0).unwrap();
    assert_eq!(fs.list(&root.join("c/b")).unwrap(), ["y"]);
    fs.remove_dir_all(&root.join("c")).unwrap();
    assert!(fs.list(&root.join("c")).is_err());
}

#[test]
fn real_and_simulated_behave_alike() {
    let temporary = tempfile::tempdir().unwrap();
    behaves_as_a_file_system(&RealFs, temporary.path());
    behaves_as_a_file_system(&CrashFs::new(), Path::new("/r"));
    behaves_as_a_file_system(&FaultyFs::new(CrashFs::new()), Path::new("/r"));
}

#[test]
fn synced_bytes_need_a_synced_name() {
    let fs = CrashFs::new();
    create_dir_durably(&fs, Path::new("/d")).unwrap();
    write(&fs, "/d/named", b"1").sync_data().unwrap();
    fs.sync_dir(Path::new("/d")).unwrap();
    write(&fs, "/d/unnamed", b"2").sync_data().unwrap();
    assert_eq!(content(&fs.crash(0), "/d/named"), Some(b"1".to_vec()));
    assert_eq!(content(&fs.crash(0), "/d/unnamed"), None);
    assert_eq!(content(&fs.crash(u64::MAX), "/d/unnamed"), Some(b"2".to_vec()));
}

#[test]
fn a_second_name_needs_its_own_sync() {
    let fs = CrashFs::new();
    write(&fs, "/x", b"1").sync_data().unwrap();
    fs.hard_link(Path::new("/x"), Path::new("/y")).unwrap();
    assert_eq!(content(&fs.crash(0), "/y"), None);
    fs.sync_dir(Path::new("/")).unwrap();
    fs.remove_file(Path::new("/x")).unwrap();
    fs.sync_dir(Path::new("/")).unwrap();
    assert_eq!(content(&fs.crash(0), "/x"), None);
    assert_eq!(content(&fs.crash(0), "/y"), Some(b"1".to_vec()));
}

#[test]
fn names_below_a_lost_directory_are_lost() {
    let fs = CrashFs::new();
    fs.create_dir_all(Path::new("/d")).unwrap();
    write(&fs, "/d/x", b"1").sync_data().unwrap();
    fs.sync_dir(Path::new("/d")).unwrap();
    assert_eq!(content(&fs.crash(0), "/d/x"), None);
    fs.sync_dir(Path::new("/")).unwrap();
    assert_eq!(content(&fs.crash(0), "/d/x"), Some(b"1".to_vec()));
}

#[test]
fn unsynced_sectors_survive_one_by_one() {
    let fs = CrashFs::new();
    let file = write(&fs, "/x", &[1; 4 * 512]);
    file.sync_data().unwrap();
    fs.sync_dir(Path::new("/")).unwrap();
    file.write_all_at(&[2; 2 * 512], 256).unwrap();
    let mut seen = std::collections::BTreeSet::new();
    for seed in 0..64 {
        let bytes = content(&fs.crash(seed), "/x").unwrap();
        assert_eq!(bytes, content(&fs.crash(seed), "/x").unwrap(), "same seed, same state");
        assert_eq!((bytes.len(), bytes[0], bytes[255], bytes[1280]), (2048, 1, 1, 1));
        assert!(bytes[256..512].iter().all(|b| *b == bytes[256]));
        assert!(bytes[512..1024].iter().all(|b| *b == bytes[512]));
        seen.insert((bytes[256], bytes[512], bytes[1024]));
    }
    assert_eq!(seen.len(), 8, "every mix of old and new sectors is possible");
}

#[test]
fn atomic_write_is_old_or_new_at_every_crash() {
    for n in 1..20 {
        for seed in [0, 1, 2, 3, 4, 5, 6, 7, u64::MAX] {
            let fs = CrashFs::new();
            write_atomically(&fs, Path::new("/x"), &[1; 3000]).unwrap();
            fs.crash_at(fs.calls() + n);
            let outcome = write_atomically(&fs, Path::new("/x"), &[2; 3000]);
            let after = content(&fs.crash(seed), "/x").unwrap();
            assert!(after == [1; 3000] || after == [2; 3000], "crash at call {n}, seed {seed}");
            assert!(outcome.is_err() || after == [2; 3000], "done must mean durable");
        }
    }
}

#[test]
fn crash_fails_the_call_and_all_later_ones() {
    let fs = CrashFs::new();
    let file = write(&fs, "/x", b"1");
    fs.crash_at(fs.calls() + 1);
    assert!(file.read_exact_at(&mut [0], 0).is_ok());
    assert!(file.sync_data().is_err());
    assert!(fs.has_crashed());
    assert!(file.read_exact_at(&mut [0], 0).is_err());
    assert!(fs.exists(Path::new("/x")).is_err());
}

#[test]
fn a_full_disk_refuses_writes_only() {
    let fs = FaultyFs::new(CrashFs::new());
    let file = write(&fs, "/x", b"1");
    fs.fill_disk();
    let error = file.write_all_at(b"2", 0).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    assert!(file.sync_data().is_ok());
    fs.clear();
    assert!(file.write_all_at(b"2", 0).is_ok());
}
