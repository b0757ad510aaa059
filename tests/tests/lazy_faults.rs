//! Lazy pages when something is missing, broken or full: an error and a sentence, never a page of zeros.

use std::{
    fs::{self, File, OpenOptions},
    os::unix::fs::{FileExt, PermissionsExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;
use tokio::sync::Mutex;
use tokio_postgres::{Client, error::SqlState};
use treering_tests::{
    PG_BIN, Treering,
    lazy::{is_lazy, postgres_log, run_dir},
    processes, wait_for,
};

/// Tables of a few hundred pages, a row a page or more; every row says what it is.
const TABLES: &str = "
CREATE TABLE near AS SELECT n, repeat('n', 2000) AS filler FROM generate_series(1, 1000) n;
CREATE TABLE far AS SELECT n, repeat('f', 2000) AS filler FROM generate_series(1, 1000) n;
CREATE TABLE farther AS SELECT n, repeat('g', 2000) AS filler FROM generate_series(1, 1000) n;
VACUUM ANALYZE near, far, farther;
CREATE EXTENSION pg_prewarm;
";
/// What everything in a table adds up to.
const WHOLE: &str = "count(*) || ' ' || sum(n) || ' ' || min(length(filler))";
const SUM: &str = "1000 500500 2000";

// The machine is small: one trial at a time, so that limits of seconds mean something.
static ALONE: Mutex<()> = Mutex::const_new(());

fn blocking<T>(work: impl FnOnce() -> T) -> T {
    tokio::task::block_in_place(work)
}

/// A branch `work` of which nothing is local.
fn lazy_branch(options: &[&str]) -> Treering {
    let treering = Treering::start_with(options);
    treering.run("psql", "main", &["-X", "-q", "-v", "ON_ERROR_STOP=1", "-c", "SELECT 1"]);
    for statement in TABLES.split_inclusive(";\n") {
        treering.sql("main", statement);
    }
    treering.ok(&["stop", "main"]);
    treering.ok(&["branch", "create", "work"]);
    treering.ok(&["start", "work"]);
    assert!(is_lazy(&treering, "work"), "the compute is not lazy");
    treering
}

async fn whole(client: &Client, table: &str) -> Result<String, tokio_postgres::Error> {
    Ok(client.query_one(&format!("SELECT {WHOLE} FROM {table}"), &[]).await?.get(0))
}

/// Everything but a table's own pages is there.
async fn know(client: &Client, table: &str) {
    let explain = format!("EXPLAIN SELECT {WHOLE} FROM {table}");
    client.query(&explain, &[]).await.expect("explain");
}

fn assert_io_error(outcome: Result<String, tokio_postgres::Error>) {
    let error = outcome.expect_err("a page that is nowhere was read");
    let error = error.as_db_error().unwrap_or_else(|| panic!("{error:?}"));
    assert_eq!(*error.code(), SqlState::IO_ERROR, "{error}");
    assert!(error.message().contains("Input/output error"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pageserver_that_does_not_answer() {
    let _alone = ALONE.lock().await;
    let treering = blocking(|| lazy_branch(&["--page-wait-limit", "3s"]));
    let client = treering.connect("work").await;
    assert_eq!(whole(&client, "near").await.expect("near"), SUM);
    know(&client, "far").await;
    // What else these statements need is here as well.
    let prewarm = "SELECT pg_prewarm('near', 'read')";
    let update = "UPDATE near SET n = n WHERE n <= 10";
    client.query_one(prewarm, &[]).await.expect("prewarm");
    client.execute(update, &[]).await.expect("update");

    let pageserver = treering.service("pageserver");
    processes::freeze(pageserver);
    let began = Instant::now();
    let outcome = whole(&client, "far").await;
    let waited = began.elapsed();
    assert_io_error(outcome);
    eprintln!("failed after {waited:?}");
    assert!((2.0..6.0).contains(&waited.as_secs_f64()), "waited {waited:?}");
    let log = blocking(|| postgres_log(&treering, "work"));
    assert!(log.contains("treering pages: "), "no sentence in Postgres's log: {log}");
    eprintln!("{}", log.lines().find(|line| line.contains("treering pages: ")).unwrap_or_default());
    // What is here goes on: reading past the buffers, writing, committing.
    let began = Instant::now();
    assert_eq!(whole(&client, "near").await.expect("near"), SUM);
    client.query_one(prewarm, &[]).await.expect("files that are here");
    client.execute(update, &[]).await.expect("update");
    assert!(
        began.elapsed() < Duration::from_secs(20),
        "what is here waited: {:?}",
        began.elapsed()
    );
    processes::thaw(pageserver);
    let far = whole(&client, "far").await.expect("far");
    assert_eq!(far, SUM);
}

/// To the compute's own socket, not through the relay, which the agent is.
async fn connect_directly(treering: &Treering) -> tokio_postgres::Client {
    let socket = blocking(|| treering.sql("work", "SHOW unix_socket_directories"));
    let config = treering.config("work");
    let mut direct = tokio_postgres::Config::new();
    direct
        .host_path(&socket)
        .port(5432)
        .user(config.get_user().expect("user"))
        .password(config.get_password().expect("password"))
        .dbname("postgres");
    let (client, connection) =
        direct.connect(tokio_postgres::NoTls).await.expect("connect to the socket");
    tokio::spawn(connection);
    client
}

/// The same agent, frozen: the library gives up by itself.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_does_not_answer() {
    let _alone = ALONE.lock().await;
    let treering = blocking(|| lazy_branch(&["--page-wait-limit", "2s"]));
    let client = connect_directly(&treering).await;
    assert_eq!(whole(&client, "near").await.expect("near"), SUM);
    know(&client, "far").await;
    let agent = treering.service("agent");
    processes::freeze(agent);
    let began = Instant::now();
    assert_io_error(whole(&client, "far").await);
    let waited = began.elapsed();
    assert!((1.5..5.0).contains(&waited.as_secs_f64()), "waited {waited:?}");
    assert_eq!(whole(&client, "near").await.expect("near"), SUM);
    processes::thaw(agent);
    let log = blocking(|| postgres_log(&treering, "work"));
    assert!(log.contains("treering pages: "), "no sentence in Postgres's log: {log}");
    assert_eq!(whole(&client, "far").await.expect("far"), SUM);
}

/// A dead one comes back sooner than a read gives up, and serves the same process.
#[tokio::test(flavor = "multi_thread")]
async fn a_pageserver_and_an_agent_that_die() {
    let _alone = ALONE.lock().await;
    let treering = blocking(|| lazy_branch(&[]));
    let client = connect_directly(&treering).await;
    know(&client, "far").await;
    know(&client, "farther").await;
    processes::kill(treering.service("pageserver"));
    assert_eq!(whole(&client, "far").await.expect("far"), SUM);
    processes::kill(treering.service("agent"));
    assert_eq!(whole(&client, "farther").await.expect("farther"), SUM);
}

/// A directory of Postgres programs with a `postgres` of our own making in it.
fn programs_with(change: impl FnOnce(&mut Vec<u8>)) -> tempfile::TempDir {
    let dir = tempfile::Builder::new().prefix("treering-bin-").tempdir().expect("temporary");
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
    for entry in fs::read_dir(PG_BIN).expect(PG_BIN).flatten() {
        let to = dir.path().join(entry.file_name());
        if entry.file_name() != "postgres" {
            std::os::unix::fs::symlink(entry.path(), to).expect("link");
        }
    }
    let mut bytes = fs::read(Path::new(PG_BIN).join("postgres")).expect("postgres");
    change(&mut bytes);
    let postgres = dir.path().join("postgres");
    fs::write(&postgres, bytes).expect("write");
    fs::set_permissions(postgres, fs::Permissions::from_mode(0o755)).expect("chmod");
    dir
}

/// What the agent wrote to its log.
fn agent_log(treering: &Treering) -> String {
    let path = treering.data_dir().join("agent.log");
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The loader does not put libraries under a program that the system gives privileges to: to the agent it looks like
/// any other, and it starts. Served lazily, each page would be a hole.
#[test]
fn a_postmaster_without_the_library_is_not_left_running() {
    let _alone = ALONE.blocking_lock();
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can give a program capabilities");
        return;
    }
    let programs = programs_with(|_| {});
    let path = programs.path().display().to_string();
    let treering = Treering::start_with(&["--pg-bin-dir", &path]);
    assert!(is_lazy(&treering, "main"));
    treering.ok(&["stop", "main"]);
    // VFS_CAP_REVISION_2 with the effective bit, CAP_NET_RAW permitted.
    let mut capability = [0_u8; 20];
    capability[..4].copy_from_slice(&0x0200_0001_u32.to_le_bytes());
    capability[4..8].copy_from_slice(&(1_u32 << 13).to_le_bytes());
    let postgres = programs.path().join("postgres");
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(&postgres, "security.capability", &capability, flags).expect("setxattr");
    let output = treering.cli(&["start", "main"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    eprintln!("{said}");
    if output.status.success() {
        // Or the agent sees it coming.
        assert!(!is_lazy(&treering, "main"));
        assert!(agent_log(&treering).contains("all pages are fetched before the start"));
        return;
    }
    assert!(said.contains("without the page library"), "{said}");
    let left = processes::in_directory(&treering.data_dir().join("agent/computes"));
    assert!(left.is_empty(), "still running: {left:?}");
}

#[test]
fn a_binary_with_a_file_call_nobody_knows_starts_eagerly() {
    let _alone = ALONE.blocking_lock();
    let programs = programs_with(|bytes| {
        // Called for syslog, and by nothing else; the other reads a file.
        let (from, to) = (b"\0openlog\0", b"\0getline\0");
        let mut places: Vec<usize> = Vec::new();
        for (at, window) in bytes.windows(from.len()).enumerate() {
            if window == from {
                places.push(at);
            }
        }
        assert_eq!(places.len(), 1, "the name of one import");
        bytes[places[0]..places[0] + to.len()].copy_from_slice(to);
    });
    let path = programs.path().display().to_string();
    let treering = Treering::start_with(&["--pg-bin-dir", &path]);
    assert_eq!(treering.sql("main", "SELECT 1"), "1");
    assert!(!is_lazy(&treering, "main"), "a lazy start of a program that is not known");
    let log = agent_log(&treering);
    let sentence = log.lines().find(|line| line.contains("all pages are fetched before the start"));
    let sentence = sentence.unwrap_or_else(|| panic!("no sentence: {log}"));
    eprintln!("{sentence}");
    assert!(sentence.contains("getline"), "{sentence}");
}

/// The word of a block in a compute's shared file: the file, and where the word is.
fn word_of(treering: &Treering, path: &str, block: u64) -> (File, u64) {
    let text = fs::read(run_dir(treering, "work").join("pages.json")).expect("pages.json");
    let record: Value = serde_json::from_slice(&text).expect("JSON");
    let files = record["files"].as_array().expect("files");
    let file = files.iter().find(|file| file["path"] == path).expect("a lazy file");
    let inode = file["inode"].as_u64().expect("an inode");
    let shared = PathBuf::from(record["shared_file"].as_str().expect("a path"));
    let shared = OpenOptions::new().read(true).write(true).open(shared).expect("the shared file");
    let word = |at: u64| {
        let mut bytes = [0; 4];
        shared.read_exact_at(&mut bytes, at * 4).expect("a word");
        u64::from(u32::from_le_bytes(bytes))
    };
    // docs/formats/pages-door.md: word 9 is the number of slots, which begin at word 64.
    let slot = (0..word(9)).map(|slot| 64 + slot * 4);
    let mut slot = slot.filter(|slot| word(*slot) | word(slot + 1) << 32 == inode);
    let map = word(slot.next().expect("a slot") + 2) * 64;
    (shared, map + 64 + block * 4)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_map_is_an_error_and_no_page() {
    let _alone = ALONE.lock().await;
    let treering = blocking(|| lazy_branch(&["--page-wait-limit", "3s"]));
    let client = treering.connect("work").await;
    for table in ["near", "far", "farther"] {
        know(&client, table).await;
    }
    let path = async |table: &str| -> String {
        let query = format!("SELECT pg_relation_filepath('{table}')");
        client.query_one(&query, &[]).await.expect("path").get(0)
    };
    let (near, far) = (path("near").await, path("far").await);
    // One that was never fetched, and one that is there; the pages of both are good, and nobody may guess that.
    let (shared, word) = blocking(|| word_of(&treering, &far, 7));
    shared.write_all_at(&7_u32.to_le_bytes(), word).expect("scribble");
    // What comes after a block is fetched with it, and is no reason to refuse it.
    let before = "SELECT count(*) FROM far WHERE ctid < '(7,0)'";
    let rows: i64 = client.query_one(before, &[]).await.expect("the blocks before").get(0);
    assert!(rows > 0);
    assert_io_error(whole(&client, "far").await);
    client.query_one("SELECT pg_prewarm('near', 'read')", &[]).await.expect("near is there");
    let (shared, word) = blocking(|| word_of(&treering, &near, 3));
    shared.write_all_at(&0xFFFF_FFFF_u32.to_le_bytes(), word).expect("scribble");
    assert_io_error(whole(&client, "near").await);
    let log = blocking(|| postgres_log(&treering, "work"));
    let sentences = log.lines().filter(|line| line.contains("presence map")).count();
    assert!(sentences >= 2, "{log}");
    assert_eq!(whole(&client, "farther").await.expect("another file"), SUM);
    // The store has everything: a new start is whole.
    drop(client);
    blocking(|| {
        treering.ok(&["stop", "work"]);
        treering.ok(&["start", "work"]);
    });
    let client = treering.connect("work").await;
    for table in ["near", "far", "farther"] {
        assert_eq!(whole(&client, table).await.expect(table), SUM);
    }
}

fn wal_bytes(run_dir: &Path) -> u64 {
    let entries = fs::read_dir(run_dir.join("pgdata/pg_wal")).expect("pg_wal").flatten();
    // What is in them: segments that were not written yet are holes.
    let blocks = |entry: fs::DirEntry| {
        entry.metadata().map_or(0, |meta| std::os::unix::fs::MetadataExt::blocks(&meta) * 512)
    };
    entries.map(blocks).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_load_waits_for_the_quorum_and_not_for_the_disk() {
    let _alone = ALONE.lock().await;
    let treering = blocking(|| lazy_branch(&[""; 0]));
    let run_dir = blocking(|| run_dir(&treering, "work"));
    treering
        .connect("work")
        .await
        .batch_execute("CREATE TABLE loaded (n int, v text)")
        .await
        .expect("create");
    let safekeeper = treering.service("safekeeper");
    processes::freeze(safekeeper);
    let mut load = treering.program("psql", "work");
    let insert = "BEGIN; INSERT INTO loaded SELECT n, repeat('x', 900) FROM generate_series(1, 160000) n; \
                  SELECT count(*) FROM loaded; COMMIT";
    load.args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-c", insert]);
    let mut load = load.stdout(Stdio::null()).spawn().expect("psql");
    let mut largest = 0;
    blocking(|| {
        // Until it has stood still for three seconds.
        let mut since = Instant::now();
        wait_for("the load to wait", Duration::from_secs(40), || {
            let bytes = wal_bytes(&run_dir);
            if bytes > largest {
                (largest, since) = (bytes, Instant::now());
            }
            (since.elapsed() > Duration::from_secs(3)).then_some(())
        });
    });
    eprintln!("{} MiB of WAL while nobody took it", largest >> 20);
    // A segment of which some is older, and the next one: at the end of each Postgres flushes.
    assert!(largest < 40 << 20, "{largest} bytes of WAL");
    assert!(load.try_wait().expect("wait").is_none(), "the load ended without a quorum");
    processes::thaw(safekeeper);
    let status = blocking(|| {
        wait_for("the load to go on", Duration::from_secs(60), || load.try_wait().expect("wait"))
    });
    assert!(status.success());
    assert_eq!(blocking(|| treering.sql("work", "SELECT count(*) FROM loaded")), "160000");
}

/// A memory file system, while this lives.
struct Mount(PathBuf);

impl Mount {
    fn new(at: &Path, mib: u32) -> Option<Mount> {
        fs::create_dir_all(at).expect("a directory");
        let size = format!("size={mib}m,mode=755");
        let mut mount = Command::new("mount");
        let done = mount.args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(at).status();
        done.is_ok_and(|status| status.success()).then(|| Mount(at.to_owned()))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_is_an_error_and_nothing_is_lost() {
    let _alone = ALONE.blocking_lock();
    let mut treering = Treering::start();
    treering.sql("main", "CREATE TABLE big AS SELECT n, repeat('b', 900) AS filler FROM generate_series(1, 120000) n");
    treering.sql("main", "CREATE TABLE small (n int)");
    treering.sql("main", "VACUUM ANALYZE big");
    treering.ok(&["stop", "main"]);
    treering.interrupt();
    let computes = treering.data_dir().join("agent/computes");
    let Some(mount) = Mount::new(&computes, 230) else {
        eprintln!("skipped: nothing can be mounted here");
        return;
    };
    treering.start_again();
    treering.ok(&["branch", "create", "work"]);
    treering.ok(&["start", "work"]);
    assert!(is_lazy(&treering, "work"), "the compute is not lazy");
    treering.sql("work", "INSERT INTO small SELECT generate_series(1, 100)");
    // What is left is taken by somebody else but for a few pages, while the table is read.
    let read = "SELECT count(*) || ' ' || sum(n) || ' ' || min(length(filler)) FROM big";
    let whole = "120000 7200060000 900";
    let mut acknowledged = 100;
    let mut failures = Vec::new();
    let filler = computes.join("somebody");
    let free = rustix::fs::statvfs(&computes).expect("statvfs");
    let free = free.f_bavail * free.f_frsize;
    fs::write(&filler, vec![1_u8; usize::try_from(free.saturating_sub(24 << 20)).expect("size")])
        .expect("fill");
    for _ in 0..6 {
        let query = ["-X", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c"];
        let output = treering.program("psql", "work").args(query).arg(read).output().expect("psql");
        match output.status.success() {
            true => assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), whole),
            false => failures.push(String::from_utf8_lossy(&output.stderr).into_owned()),
        }
        let insert = "INSERT INTO small SELECT generate_series(1, 10)";
        let output =
            treering.program("psql", "work").args(query).arg(insert).output().expect("psql");
        acknowledged += if output.status.success() { 10 } else { 0 };
        thread::sleep(Duration::from_millis(300));
    }
    eprintln!("{failures:#?}");
    assert!(!failures.is_empty(), "the disk was not full");
    eprintln!("{}", postgres_log(&treering, "work"));
    fs::remove_file(&filler).expect("make room");
    treering.interrupt();
    drop(mount);
    treering.start_again();
    assert_eq!(treering.sql("work", read), whole);
    let small: i64 = treering.sql("work", "SELECT count(*) FROM small").parse().expect("a number");
    assert!(small >= acknowledged, "acknowledged {acknowledged}, there are {small}");
}
