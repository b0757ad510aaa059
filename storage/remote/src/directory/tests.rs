use treering_fs::{Call, CrashFs, FaultyFs, RealFs};

use super::*;

fn open(fs: impl FileSystem, root: &str) -> Directory {
    Directory::open(Arc::new(fs), Path::new(root), [9; 16]).unwrap()
}

fn write(fs: &dyn FileSystem, path: &str, bytes: &[u8]) {
    let file = fs.open(Path::new(path), OpenMode::CreateNew).unwrap();
    file.write_all_at(bytes, 0).unwrap();
    file.sync_all().unwrap();
}

fn behaves_as_a_store(store: &dyn Store, fs: &dyn FileSystem, local: &Path) {
    assert!(store.list("").unwrap().is_empty() && store.list("t/none/").unwrap().is_empty());
    store.put_new("t/a", Bytes::from_static(b"1")).unwrap();
    let again = store.put_new("t/a", Bytes::from_static(b"2"));
    assert!(matches!(again, Err(RemoteError::Exists { .. })));
    assert_eq!(&store.get("t/a").unwrap()[..], b"1");
    assert!(matches!(store.get("t/b"), Err(RemoteError::Missing { .. })));
    assert!(store.exists("t/a").unwrap() && !store.exists("t/b").unwrap());
    let layer = local.join("layer");
    write(fs, layer.to_str().unwrap(), &[7; 5000]);
    store.upload("t/x/1.layer", fs, &layer).unwrap();
    store.upload("t/x/1.layer", fs, &layer).unwrap();
    let gone = store.upload("t/x/2.layer", fs, &local.join("none"));
    assert!(matches!(gone, Err(RemoteError::Local { source, .. })
        if source.kind() == io::ErrorKind::NotFound));
    fs.remove_file(&layer).unwrap();
    let back = local.join("back");
    store.download("t/x/1.layer", fs, &back).unwrap();
    assert_eq!(read_file(fs, &back).unwrap(), [7; 5000]);
    let none = store.download("t/x/2.layer", fs, &local.join("none"));
    assert!(matches!(none, Err(RemoteError::Missing { .. })));
    let mut listed = store.list("t/").unwrap();
    listed.sort();
    assert_eq!(listed, ["a", "x/"]);
    assert_eq!(store.list("").unwrap(), ["t/"]);
    store.delete("t/a").unwrap();
    store.delete("t/a").unwrap();
    assert!(!store.exists("t/a").unwrap());
}

#[test]
fn directories_and_memory_behave_alike() {
    let folder = tempfile::tempdir().unwrap();
    let (root, local) = (folder.path().join("store"), folder.path().join("local"));
    std::fs::create_dir(&local).unwrap();
    behaves_as_a_store(&open(RealFs, root.to_str().unwrap()), &RealFs, &local);
    let fs = CrashFs::new();
    behaves_as_a_store(&open(fs.clone(), "/store"), &fs, Path::new("/"));
    let fs = CrashFs::new();
    behaves_as_a_store(&crate::sim::SimStore::new(), &fs, Path::new("/"));
    // Another file system: a layer cannot be linked across, a temporary file of the store can.
    let disk = FaultyFs::new(CrashFs::new());
    let mut links = 0;
    disk.set_rule(move |call, path| {
        let across = match path {
            _ if call != Call::Link => false,
            path if path.ends_with("1.layer") => {
                links += 1;
                links % 2 == 1
            }
            path => !path.starts_with("/store"),
        };
        across.then(|| io::ErrorKind::CrossesDevices.into())
    });
    let store = open(disk.clone(), "/store");
    behaves_as_a_store(&store, &disk, Path::new("/"));
}

#[test]
fn a_link_costs_no_copy() {
    use std::os::unix::fs::MetadataExt;
    let folder = tempfile::tempdir().unwrap();
    let local = folder.path().join("layer");
    write(&RealFs, local.to_str().unwrap(), &[1; 100]);
    let store = open(RealFs, folder.path().join("store").to_str().unwrap());
    store.upload("t/1.layer", &RealFs, &local).unwrap();
    assert_eq!(std::fs::metadata(&local).unwrap().nlink(), 2);
    let back = folder.path().join("back");
    store.download("t/1.layer", &RealFs, &back).unwrap();
    assert_eq!(std::fs::metadata(&back).unwrap().ino(), std::fs::metadata(&local).unwrap().ino());
}

/// Whatever call a crash comes in: an object is there whole, or not at all; and once the call has returned it is there.
#[test]
fn an_object_is_whole_or_not_there_at_every_crash() {
    for upload in [false, true] {
        for n in 1.. {
            let fs = CrashFs::new();
            let store = open(fs.clone(), "/store");
            write(&fs, "/layer", &[5; 3000]);
            fs.sync_dir(Path::new("/")).unwrap();
            fs.crash_at(fs.calls() + n);
            let put = match upload {
                true => store.upload("t/x", &fs, Path::new("/layer")),
                false => store.put_new("t/x", vec![5; 3000].into()),
            };
            for seed in [0, 1, 2, 3, u64::MAX] {
                let after = open(fs.crash(seed), "/store");
                match after.get("t/x") {
                    Ok(bytes) => assert_eq!(&bytes[..], [5; 3000]),
                    Err(RemoteError::Missing { .. }) => assert!(put.is_err(), "call {n}"),
                    Err(error) => panic!("{error}"),
                }
                assert!(after.list(".tmp/").unwrap().is_empty(), "call {n}: rubbish is left");
            }
            if put.is_ok() {
                break;
            }
        }
    }
}

#[test]
fn after_a_failed_sync_of_a_name_nothing_is_written() {
    let fs = FaultyFs::new(CrashFs::new());
    let store = open(fs.clone(), "/store");
    store.put_new("t/a", Bytes::new()).unwrap();
    fs.set_rule(|call, _| (call == Call::SyncDir).then(|| io::Error::from_raw_os_error(5)));
    assert!(store.put_new("t/b", Bytes::new()).is_err());
    fs.clear();
    assert!(matches!(store.put_new("t/c", Bytes::new()), Err(RemoteError::Unavailable { .. })));
    assert!(store.get("t/a").is_ok());
    assert!(open(fs, "/store").put_new("t/c", Bytes::new()).is_ok());
}

#[test]
fn a_full_disk_leaves_nothing_behind() {
    let fs = FaultyFs::new(CrashFs::new());
    let store = open(fs.clone(), "/store");
    store.put_new("t/a", Bytes::new()).unwrap();
    fs.fill_disk();
    let full = store.put_new("t/b", Bytes::from_static(b"x"));
    assert!(matches!(full, Err(RemoteError::Local { source, .. })
        if source.kind() == io::ErrorKind::StorageFull));
    fs.clear();
    assert!(!store.exists("t/b").unwrap());
    assert!(store.list(".tmp/").unwrap().is_empty());
    store.put_new("t/b", Bytes::from_static(b"x")).unwrap();
}

/// A name is listed a moment before whoever made it has synced it.
#[test]
fn what_a_listing_has_shown_is_durable_once_settled() {
    let fs = CrashFs::new();
    let store = open(fs.clone(), "/store");
    let other = Directory::join(Arc::new(fs.clone()), Path::new("/store"), [8; 16]).unwrap();
    write(&fs, "/store/.tmp/half", b"1");
    fs.create_dir_all(Path::new("/store/t/wal")).unwrap();
    fs.hard_link(Path::new("/store/.tmp/half"), Path::new("/store/t/wal/x")).unwrap();
    assert_eq!(other.list("t/wal/").unwrap(), ["x"]);
    assert!(!open(fs.crash(0), "/store").exists("t/wal/x").unwrap());
    other.settle("t/none/").unwrap();
    other.settle("t/wal/").unwrap();
    assert_eq!(&open(fs.crash(0), "/store").get("t/wal/x").unwrap()[..], b"1");
    // Who joins leaves what others are writing alone.
    assert!(fs.exists(Path::new("/store/.tmp/half")).unwrap());
    drop(store);
}
