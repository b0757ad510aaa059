//! Stock Postgres over files that are all absent at its start and dropped at random while it works. Proof is what
//! Postgres says of its own pages (`amcheck`), and what they are in the end without the library.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rand::Rng;
use treering_stock::{Cluster, Postgres, run};

use crate::agent::{Memory, Pages};
use crate::pages::PAGE;
use crate::stage::{Setting, Stage, USUAL, library};

const SETTINGS: &str = "fsync=off\nshared_buffers=1MB\nautovacuum_naptime=1s\nmax_wal_size=64MB\n\
    restart_after_crash=off\nautovacuum_vacuum_threshold=10";

const LOAD: &str = "
    create extension amcheck;
    create table events(id int primary key, who text, what int);
    insert into events select i, md5(i::text), 0 from generate_series(1, 60000) i;
    create index on events(who);
    create table big as select i, repeat('x', 500) as filler from generate_series(1, 20000) i;
    create index on big(i);
    vacuum analyze;
    checkpoint;";

/// Ends of files go and come again, files are written anew, copied, thrown away.
const WORK: &str = "
    delete from big where i > 5000;
    vacuum (truncate) big;
    insert into big select i, repeat('y', 500) from generate_series(5001, 12000) i;
    update events set what = what + 1 where id % 7 = 0;
    vacuum full events;
    create index on events(what);
    create table gone as select * from events;
    truncate gone;
    drop table gone;
    cluster big using big_i_idx;
    checkpoint;";

const HEAPS: &str = "select count(*) from pg_class c, lateral verify_heapam(c.oid) v
    where c.relkind in ('r', 't', 'm') and c.relpersistence = 'p'";
const INDEXES: &str =
    "select bt_index_check(c.oid, true) from pg_class c join pg_am a on a.oid = c.relam
    where c.relkind = 'i' and a.amname = 'btree'";
const SUMS: &str = "select (select sum(abalance) from pgbench_accounts)
    - (select coalesce(sum(delta), 0) from pgbench_history), (select count(*) from events),
    (select sum(what) from events), (select count(*) || ' ' || sum(length(filler)) from big)";
/// 8571 events of a number that 7 divides.
const RIGHT: &str = "0|60000|8571|12000 6000000";

/// Files of relations and of SLRUs, by their names.
fn page_files(data: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![data.join("base"), data.join("global"), data.join("pg_xact")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
            let (path, status) = (entry.path(), entry.metadata().unwrap());
            let name = entry.file_name().into_string().unwrap();
            if status.is_dir() {
                folders.push(path);
            } else if name.starts_with(|first: char| first.is_ascii_digit())
                && status.len() > 0
                && status.len().is_multiple_of(PAGE as u64)
            {
                found.push(path);
            }
        }
    }
    found
}

/// Takes every page out of the files; what they were, by file and block.
fn hollow(files: &[PathBuf]) -> (Vec<(PathBuf, u32)>, Pages) {
    let mut pages = Pages::new();
    let mut counted = Vec::new();
    for (number, path) in files.iter().enumerate() {
        let (bytes, status) = (fs::read(path).unwrap(), fs::metadata(path).unwrap());
        for (block, page) in (0..).zip(bytes.chunks_exact(PAGE)) {
            pages.insert((number, block), page.to_vec());
        }
        fs::remove_file(path).unwrap();
        let file = File::create_new(path).unwrap();
        file.set_len(bytes.len() as u64).unwrap();
        file.set_permissions(status.permissions()).unwrap();
        chown(path, Some(status.uid()), Some(status.gid())).unwrap();
        counted.push((path.clone(), (bytes.len() / PAGE) as u32));
    }
    (counted, pages)
}

/// Every program that the database's user executes must be where that user can read.
fn readable_copy(folder: &Path) -> PathBuf {
    let path = folder.join("libtreering_pages.so");
    fs::copy(library(), &path).unwrap();
    fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    path
}

/// Not through another program, which the library would take for its own.
fn start(cluster: &Cluster, stage: &Stage, library: &Path) -> Child {
    let mut command = Command::new(cluster.postgres().program("postgres").unwrap());
    let owner = fs::metadata(cluster.data()).unwrap();
    let log = File::create(cluster.folder().join("log")).unwrap();
    command.arg("-D").arg(cluster.data()).current_dir(cluster.folder());
    command.stdout(log.try_clone().unwrap()).stderr(log);
    if owner.uid() != fs::metadata("/proc/self").unwrap().uid() {
        command.gid(owner.gid()).uid(owner.uid());
    }
    stage.preload(&mut command, library);
    let server = command.spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while cluster.sql("select 1").is_err() {
        assert!(Instant::now() < deadline, "{}", cluster.log());
        std::thread::sleep(Duration::from_millis(50));
    }
    server
}

fn stop(cluster: &Cluster, mut server: Child) {
    // SAFETY: a signal for our child.
    assert_eq!(unsafe { libc::kill(server.id() as i32, libc::SIGINT) }, 0);
    assert!(server.wait().unwrap().success(), "{}", cluster.log());
}

fn drop_at_random(memory: &Memory, ends: &AtomicBool) -> u64 {
    let mut random = rand::rng();
    let mut dropped = 0;
    while !ends.load(Ordering::Relaxed) {
        for _ in 0..200 {
            let number = random.random_range(0..memory.files.len());
            let blocks = memory.files[number].map().block_count();
            let first = random.random_range(0..blocks);
            for block in first..blocks.min(first + 8) {
                dropped += u64::from(memory.drop_block(number, block));
            }
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    dropped
}

fn client(cluster: &Cluster, program: &str, arguments: &[&str]) {
    run(cluster.client(program).unwrap().args(arguments)).unwrap();
}

fn work(cluster: &Cluster) {
    std::thread::scope(|scope| {
        scope.spawn(|| client(cluster, "pgbench", &["-n", "-c", "3", "-T", "4", "bank"]));
        scope.spawn(|| cluster.script("bank", WORK).unwrap());
    });
    cluster.sql("create database copy template bank strategy file_copy").unwrap();
    check(cluster);
    let read = "select count(*) from pg_class c where relkind = 'r' and relfilenode <> 0
        and length(pg_read_binary_file(pg_relation_filepath(c.oid))) <> pg_relation_size(c.oid)";
    assert_eq!(cluster.sql_in("copy", read).unwrap(), "0");
}

fn check(cluster: &Cluster) {
    for database in ["bank", "copy"] {
        assert_eq!(cluster.sql_in(database, HEAPS).unwrap(), "0", "{database}");
        cluster.sql_in(database, INDEXES).unwrap();
        assert_eq!(cluster.sql_in(database, SUMS).unwrap(), RIGHT, "{database}");
    }
}

fn lazily(major: u32) {
    let postgres = Postgres::find(major).unwrap();
    let mut settings = SETTINGS.to_owned();
    if major >= 18 {
        settings.push_str("\nio_method=sync");
    }
    let mut cluster = Cluster::create(&postgres, &settings).unwrap();
    cluster.start().unwrap();
    cluster.sql("create database bank").unwrap();
    cluster.script("bank", LOAD).unwrap();
    client(&cluster, "pgbench", &["-i", "-q", "-s", "1", "bank"]);
    cluster.stop("fast").unwrap();

    let (files, pages) = hollow(&page_files(&cluster.data()));
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let library = readable_copy(folder.path());
    let setting = Setting { files: &[], ..USUAL };
    let stage = Stage::over(folder, &files, pages, &setting, "");
    fs::set_permissions(stage.folder.path().join("s"), PermissionsExt::from_mode(0o777)).unwrap();
    let ends = AtomicBool::new(false);
    let dropped = std::thread::scope(|scope| {
        let dropping = scope.spawn(|| drop_at_random(&stage.memory, &ends));
        let worked = std::panic::catch_unwind(|| {
            let server = start(&cluster, &stage, &library);
            work(&cluster);
            stop(&cluster, server);
        });
        ends.store(true, Ordering::Relaxed);
        assert!(worked.is_ok(), "{}", cluster.log());
        dropping.join().unwrap()
    });
    assert!(!cluster.log().contains("treering pages"), "{}", cluster.log());
    println!("{major}: {dropped} drops, {} fetches", stage.memory.fetches().len());
    assert!(dropped > 1000);

    // With every page in its file, nobody needs the library any more.
    for (number, (_, blocks)) in files.iter().enumerate() {
        stage.memory.fetch(number, 0, *blocks);
    }
    cluster.start().unwrap();
    check(&cluster);
    cluster.stop("fast").unwrap();
}

#[test]
fn of_15() {
    lazily(15);
}

#[test]
#[ignore = "make test-all fetches 16 and runs this"]
fn of_16() {
    lazily(16);
}

#[test]
fn of_17() {
    lazily(17);
}

#[test]
#[ignore = "make test-all fetches 18 and runs this"]
fn of_18() {
    lazily(18);
}
