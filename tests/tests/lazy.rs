//! Proof from an empty cache: a branch of which nothing is local does everything that a database does.
//!
//! One workload (`sql/lazy.sql`: each step asserts what it can know) runs beside pgbench and writers that count, on a
//! compute that fetches its pages on first touch: undisturbed, with less room than its data takes, and with its agent
//! killed and frozen. Then amcheck looks at every table and btree of every database, and every block of every file is
//! compared, as Postgres reads it, with a compute that fetched all before it started; so is a new lazy compute. A
//! fetch that was missed, a page that was dropped too early, a write that was lost would show there.

use std::{
    fs,
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use rand::Rng;
use tokio::sync::Mutex;
use treering_pgfmt::version::PgMajor;
use treering_stock::Postgres;
use treering_tests::{
    Treering,
    lazy::{self, Snapshot, disk_bytes, is_lazy},
    ledger::Ledger,
    processes, verify,
};

const BASE: &str = include_str!("sql/lazy_base.sql");
const WORKLOAD: &str = include_str!("sql/lazy.sql");
/// For how long a step may be broken off: an agent that is killed often comes back after a pause of seconds.
const TRIES_LIMIT: Duration = Duration::from_secs(60);
/// After each, `up` waits longer with the next agent.
const TROUBLES_MAX: usize = 9;
/// A compute outlives its agent, and with it what a client without a connection had begun.
const END_OF_LAST_TRY: &str = "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity
    WHERE application_name = 'psql' AND pid <> pg_backend_pid();\n";
/// What clients may be told when an agent is killed or frozen under them.
const TRANSIENT: [&str; 12] = [
    "Input/output error",
    "connection to server",
    "server closed the connection",
    "could not receive data",
    "terminating connection",
    "the database system is",
    "being accessed by other users",
    "did not come within",
    "57P0",
    "SSL connection has been closed",
    "agent",
    "compute",
];

// The machine is small: one trial at a time, so that limits of seconds mean something.
static ALONE: Mutex<()> = Mutex::const_new(());

#[derive(Clone, Copy, PartialEq, Eq)]
enum Trouble {
    Nothing,
    Agent,
}

/// Kills and freezes the agent at random moments until it is told to stop.
struct Saboteur {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<(usize, usize)>>,
}

impl Saboteur {
    fn begin(up: i32) -> Saboteur {
        let stop = Arc::<AtomicBool>::default();
        let until = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let (mut killed, mut frozen) = (0, 0);
            while !until.load(Ordering::Relaxed) && killed + frozen < TROUBLES_MAX {
                thread::sleep(Duration::from_millis(rand::rng().random_range(50..500)));
                let Some(agent) = processes::service(up, "agent") else { continue };
                if rand::rng().random_bool(0.5) {
                    processes::kill(agent);
                    killed += 1;
                } else {
                    // Sometimes longer than a read waits.
                    processes::freeze(agent);
                    thread::sleep(Duration::from_millis(rand::rng().random_range(50..4000)));
                    processes::thaw(agent);
                    frozen += 1;
                }
            }
            (killed, frozen)
        });
        Saboteur { stop, thread: Some(thread) }
    }

    fn end(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().expect("ended once");
        let (killed, frozen) = thread.join().expect("the saboteur");
        eprintln!("the agent was killed {killed} times and frozen {frozen} times");
        assert!(killed + frozen >= 3, "too little trouble");
    }
}

/// pgbench again and again: its clients end with their connections.
struct Bench {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Bench {
    fn begin(treering: &Treering, branch: &str) -> Bench {
        let stop = Arc::<AtomicBool>::default();
        let until = Arc::clone(&stop);
        let mut command = treering.program("pgbench", branch);
        command.args(["-n", "-c", "2", "-T", "600"]).stdout(Stdio::null()).stderr(Stdio::null());
        let thread = thread::spawn(move || {
            while !until.load(Ordering::Relaxed) {
                let mut child = command.spawn().expect("pgbench");
                while !until.load(Ordering::Relaxed) && child.try_wait().expect("wait").is_none() {
                    thread::sleep(Duration::from_millis(50));
                }
                let _ = child.kill();
                let _ = child.wait();
            }
        });
        Bench { stop, thread: Some(thread) }
    }

    fn end(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().expect("ended once").join().expect("pgbench");
    }
}

/// Runs a script; the answer is what psql complained of.
fn script(treering: &Treering, branch: &str, text: &str) -> Result<(), String> {
    let file = tempfile::NamedTempFile::new().expect("temporary file");
    fs::write(file.path(), text).expect("write");
    let mut command = treering.program("psql", branch);
    command.args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-v", "VERBOSITY=verbose", "-f"]);
    let output = command.arg(file.path()).stdout(Stdio::null()).output().expect("psql");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() { Ok(()) } else { Err(said) }
}

/// Runs a step until it succeeds; only trouble that was made may break it off.
fn step(treering: &Treering, branch: &str, text: &str, trouble: Trouble) {
    let name = text.lines().next().unwrap_or_default().to_owned();
    let began = Instant::now();
    for attempt in 1.. {
        let again = format!("{END_OF_LAST_TRY}{text}");
        let Err(said) = script(treering, branch, if attempt == 1 { text } else { &again }) else {
            eprintln!("{:>6.1?} {attempt} {name}", began.elapsed());
            return;
        };
        let is_transient = TRANSIENT.iter().any(|part| said.contains(part));
        let may_fail = trouble == Trouble::Agent && is_transient && began.elapsed() < TRIES_LIMIT;
        assert!(may_fail, "{name}, try {attempt}: {said}");
        let first = said.lines().find(|line| line.contains("ERROR") || line.contains("FATAL"));
        eprintln!("       {name}: {}", first.or(said.lines().next()).unwrap_or_default());
        thread::sleep(Duration::from_millis(300));
    }
}

fn blocking<T>(work: impl FnOnce() -> T) -> T {
    tokio::task::block_in_place(work)
}

/// A branch `work` of a `main` that has everything; nothing of it is on this machine but pages in the store.
fn prepare(treering: &Treering) {
    script(treering, "main", BASE).expect("the base");
    treering.run("pgbench", "main", &["-i", "-q", "-s", "2"]);
    treering.ok(&["stop", "main"]);
    treering.ok(&["branch", "create", "work"]);
    treering.ok(&["start", "work"]);
}

async fn trial(major: PgMajor, options: &[&str], trouble: Trouble) {
    let _alone = ALONE.lock().await;
    let postgres = Postgres::find(major.number()).expect("Postgres").program("postgres");
    let programs = postgres.expect("postgres").parent().expect("a folder").display().to_string();
    let also = |more: &[&str]| -> Vec<String> {
        let fixed = ["--pg-bin-dir", programs.as_str()];
        fixed.iter().chain(more).map(|option| (*option).to_owned()).collect()
    };
    let mut treering = Treering::start_with(&also(options));
    let began = Instant::now();
    let clock = |what: &str| eprintln!("[{:>5.1?}] {what}", began.elapsed());
    blocking(|| prepare(&treering));
    let version = blocking(|| treering.sql("work", "SHOW server_version_num"));
    assert!(version.starts_with(&major.number().to_string()), "this is {version}");
    assert!(is_lazy(&treering, "work"), "the compute is not lazy");
    // The programs of later majors come without LZ4: there images are in the log as they are.
    let packed = blocking(|| treering.sql("work", "SHOW wal_compression"));
    assert_eq!(packed, if major == PgMajor::V15 { "lz4" } else { "off" });
    let fetched_mib = disk_bytes(&treering, "work") >> 20;
    clock(&format!("prepared, {fetched_mib} MiB fetched"));
    assert!(fetched_mib < 20, "the cache is not empty");
    let mut ledger = Ledger::begin(&treering.config("work"), 2).await;
    let bench = Bench::begin(&treering, "work");
    let saboteur = (trouble == Trouble::Agent).then(|| Saboteur::begin(treering.pid()));
    blocking(|| {
        for text in WORKLOAD.split("-- step: ").skip(1) {
            step(&treering, "work", &format!("-- {text}"), trouble);
        }
    });
    saboteur.into_iter().for_each(Saboteur::end);
    clock("workload");
    bench.end();
    ledger.end().await;
    assert!(ledger.acknowledged() > 20, "nothing was written beside the workload");

    // Prepared transactions lie in files that the next start does not have either.
    blocking(|| {
        let stopped = || treering.cli(&["stop", "work"]).status.success().then_some(());
        treering_tests::wait_for("an agent to stop the branch", Duration::from_secs(30), stopped);
        treering.ok(&["start", "work"]);
    });
    assert!(is_lazy(&treering, "work"), "the second start is not lazy");
    let client = treering.connect_in_time("work").await;
    client.batch_execute("ALTER SYSTEM SET autovacuum = off").await.expect("autovacuum off");
    client.batch_execute("SELECT pg_reload_conf()").await.expect("reload");
    client.batch_execute("COMMIT PREPARED 'one'").await.expect("commit prepared");
    client.batch_execute("ROLLBACK PREPARED 'two'").await.expect("rollback prepared");
    let query = "SELECT string_agg(n::text, ' ') FROM many WHERE n > 50000";
    let row = client.query_one(query, &[]).await.expect("many");
    assert_eq!(row.get::<_, String>(0), "50001");
    ledger.check(&client).await;
    verify::pgbench_sums(&client).await;
    // The programs of later majors come without extensions: there the bytes alone are judges.
    let has = "SELECT EXISTS (SELECT FROM pg_extension WHERE extname = 'amcheck')";
    if client.query_one(has, &[]).await.expect("extensions").get(0) {
        verify::amcheck(&client).await;
        blocking(|| amcheck_everywhere(&treering, "work"));
        clock("amcheck");
    } else {
        assert_ne!(major, PgMajor::V15, "amcheck is missing");
    }

    let vacuums = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'autovacuum worker'";
    blocking(|| {
        treering_tests::wait_for("autovacuum to end", Duration::from_secs(30), || {
            (treering.sql("work", vacuums) == "0").then_some(())
        });
    });
    client.batch_execute("CHECKPOINT").await.expect("checkpoint");
    let worked = Snapshot::through_postgres(&treering, "work", major).await;
    drop(client);
    blocking(|| {
        treering.ok(&["stop", "work"]);
        treering.ok(&["branch", "create", "again", "--from", "work"]);
        treering.ok(&["branch", "create", "twin", "--from", "work"]);
        treering.ok(&["start", "again"]);
    });
    assert!(is_lazy(&treering, "again"));
    let fetched = Snapshot::through_postgres(&treering, "again", major).await;
    blocking(|| {
        treering.ok(&["stop", "again"]);
        treering.interrupt();
        treering.start_again_with(&also(&["--pages", "eager"]));
        treering.ok(&["start", "twin"]);
    });
    assert!(!is_lazy(&treering, "twin"), "the twin is to have fetched everything");
    worked.compare_with_files("worked on", &treering, "twin", &["by_wal"]);
    fetched.compare_with_files("fetched", &treering, "twin", &[]);
    clock("compared");
}

fn amcheck_everywhere(treering: &Treering, branch: &str) {
    let mut command = treering.program("pg_amcheck", branch);
    command.args(["--all", "--install-missing", "--heapallindexed", "--parent-check"]);
    let output = command.output().expect("pg_amcheck");
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "pg_amcheck: {said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workload_on_an_empty_cache() {
    trial(PgMajor::V15, &[], Trouble::Nothing).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workload_on_an_empty_cache_of_postgres_17() {
    trial(PgMajor::V17, &["--page-cache-limit", "32MiB"], Trouble::Nothing).await;
}

/// The other majors, whose programs `make test-all` fetches.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "make test-all fetches 16 and runs this"]
async fn a_workload_on_an_empty_cache_of_postgres_16() {
    trial(PgMajor::V16, &["--page-cache-limit", "32MiB"], Trouble::Nothing).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "make test-all fetches 18 and runs this"]
async fn a_workload_on_an_empty_cache_of_postgres_18() {
    trial(PgMajor::V18, &["--page-cache-limit", "32MiB"], Trouble::Nothing).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workload_in_less_room_than_its_pages_take() {
    trial(PgMajor::V15, &["--page-cache-limit", "16MiB"], Trouble::Nothing).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workload_whose_agent_is_killed_and_frozen() {
    let options = ["--page-wait-limit", "3s", "--page-cache-limit", "32MiB"];
    trial(PgMajor::V15, &options, Trouble::Agent).await;
}

/// Blocks of a table, and what statistics and free-space map say of it.
fn hints(treering: &Treering) -> (i64, i64, i64, i64) {
    let query = "SELECT pg_relation_size('kept_hints') / 8192, n_live_tup, n_dead_tup,
                        (SELECT coalesce(sum(avail), 0) FROM pg_freespace('kept_hints'))
                 FROM pg_stat_user_tables WHERE relname = 'kept_hints'";
    let line = treering.sql("work", query);
    let fields: Vec<i64> = line.split('|').map(|n| n.parse().expect("a number")).collect();
    let [blocks, live, dead, free] = fields[..] else { panic!("{line}") };
    (blocks, live, dead, free)
}

#[test]
fn statistics_and_free_space_outlive_a_clean_stop_and_nothing_else() {
    let _alone = ALONE.blocking_lock();
    let treering = Treering::start();
    prepare(&treering);
    treering.sql("work", "ALTER TABLE kept_hints SET (autovacuum_enabled = off)");
    treering.sql("work", "DELETE FROM kept_hints WHERE n % 2 = 0");
    treering.sql("work", "VACUUM ANALYZE kept_hints");
    treering.sql("work", "DELETE FROM kept_hints WHERE n % 20 = 1");
    let before = treering_tests::wait_for("statistics", Duration::from_secs(10), || {
        let hints = hints(&treering);
        (hints.2 == 200).then_some(hints)
    });
    assert!(before.3 > 500_000, "VACUUM found no room: {before:?}");
    treering.ok(&["stop", "work"]);
    treering.ok(&["start", "work"]);
    assert!(is_lazy(&treering, "work"));
    assert_eq!(hints(&treering), before, "a clean stop forgot something");
    // Half of the room is taken again, and the file does not grow for it.
    let insert =
        "INSERT INTO kept_hints SELECT n, repeat('i', 400) FROM generate_series(1, 1000) n";
    treering.sql("work", insert);
    assert_eq!(hints(&treering).0, before.0, "the table grew where there was room");

    let compute = lazy::postmaster(&treering, "work");
    processes::kill(compute);
    treering_tests::wait_for("the compute to end", Duration::from_secs(30), || {
        (treering.json(&["branch", "get", "work"])["pid"].as_i64() != Some(i64::from(compute)))
            .then_some(())
    });
    let count = treering_tests::wait_for("a new compute", Duration::from_secs(60), || {
        let query = ["-X", "-A", "-t", "-c", "SELECT count(*) FROM kept_hints"];
        let output = treering.program("psql", "work").args(query).output().expect("psql");
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    });
    assert_eq!(count, "2800");
    let after = hints(&treering);
    assert_eq!((after.0, after.1, after.3), (before.0, 0, 0), "kept over a kill: {after:?}");
    treering.sql("work", insert);
    treering.sql("work", "VACUUM kept_hints");
    assert_eq!(treering.sql("work", "SELECT count(*) FROM kept_hints"), "3800");
    assert!(hints(&treering).3 > 0, "VACUUM does not make a new free-space map");
}
