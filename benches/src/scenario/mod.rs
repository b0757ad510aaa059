//! The scenarios, one a file.

mod append;
mod branch_create;
mod branch_first_sql;
mod branch_storm;
mod bulk_load;
mod cold_pages;
mod cold_start;
mod depth;
mod failover;
mod getpage;
mod getpage_engine;
mod ingest;
mod layer_format;
mod pgbench;
mod quorum;
mod redo_chain;
mod replay;
mod statement;
mod time_to_lsn;
mod wal_decode;

use std::{
    process::{Child, Stdio},
    time::Duration,
};

use hdrhistogram::Histogram;
use treering_stock::Cluster;
use treering_tests::Treering;
use treering_types::Lsn;

use crate::{
    report::{Bar, Report, Spread},
    versus::Stage,
};

/// How much to do.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Size {
    Full,
    Smoke,
}

/// What a scenario needs.
pub enum Scenario {
    /// Nothing: it brings everything along.
    Alone(fn(Size) -> anyhow::Result<Vec<Report>>),
    /// What all these share.
    OnStage(fn(&Stage) -> anyhow::Result<Vec<Report>>),
}

use Scenario::{Alone, OnStage};

/// Name, what it measures, the code; they run in this order.
pub const SCENARIOS: &[(&str, &str, Scenario)] = &[
    (
        "branch-create",
        "API answer of a branch creation while 8 clients run TPC-B (ms)",
        Alone(branch_create::run),
    ),
    (
        "branch-first-sql",
        "from the request for a branch to its first SQL answer (ms)",
        Alone(branch_first_sql::run),
    ),
    (
        "getpage",
        "one page over the wire after TPC-B, nothing compacted, one client (us)",
        Alone(getpage::run),
    ),
    (
        "layer-format",
        "zstd levels and block sizes on real layers: size (%), write (ms/MB), read (us), on the core",
        Alone(layer_format::run),
    ),
    (
        "redo-short",
        "a page out of an image and a record as stored (us); redos of two callers against one",
        Alone(redo_chain::short),
    ),
    (
        "redo-medium",
        "a page out of 227 stored changes (us); redos of two callers against one",
        Alone(redo_chain::medium),
    ),
    ("wal-decode", "pgbench's raw WAL to decoded records, one core (MB/s)", Alone(wal_decode::run)),
    (
        "replay",
        "TPC-B's WAL applied to pages in memory against stock recovery, one core (s)",
        Alone(replay::run),
    ),
    (
        "ingest",
        "TPC-B's log into layer files, all durable, compaction at rest (MB/s; records/s; bytes written)",
        Alone(ingest::run),
    ),
    (
        "ingest-bulk",
        "the log of VACUUM FULL and CREATE INDEX likewise (MB/s; bytes written)",
        Alone(ingest::bulk),
    ),
    (
        "getpage-random",
        "engine time of a page of a 10 GB timeline (us, layers), and getpage-scan: pages/s in batches of 128",
        Alone(getpage_engine::run),
    ),
    (
        "depth",
        "a page at the end of 1,024 nested branches against the end of one (us)",
        Alone(depth::run),
    ),
    (
        "branch-storm",
        "a thousand branches at the REST API (branches/s), and what they take on disk (KB)",
        Alone(branch_storm::run),
    ),
    ("time-to-lsn", "a time to its LSN in a million commits (ms)", Alone(time_to_lsn::run)),
    (
        "append",
        "WAL in messages of 128 KiB into one safekeeper, against a loop of write and fdatasync (MB/s)",
        Alone(append::run),
    ),
    (
        "commit-latency",
        "one and three safekeepers, vanilla, and vanilla with a synchronous standby: a commit (us), and TPC-B (tps)",
        Alone(quorum::run),
    ),
    (
        "failover",
        "from SIGKILL of a compute to the first answer of the next one (ms)",
        Alone(failover::run),
    ),
    (
        "cold-start",
        "from `treering start` of a stopped branch to its first row, at two scales (ms)",
        Alone(cold_start::run),
    ),
    ("pgbench-select", "pgbench -S, 4 clients, against vanilla (tps)", OnStage(pgbench::select)),
    (
        "seq-scan-warm",
        "a sequential scan in memory, against vanilla (ms)",
        OnStage(statement::seq_scan_warm),
    ),
    (
        "create-index",
        "CREATE INDEX on pgbench_accounts, against vanilla (ms)",
        OnStage(statement::create_index),
    ),
    (
        "vacuum-full",
        "VACUUM FULL pgbench_accounts, against vanilla (ms)",
        OnStage(statement::vacuum_full),
    ),
    ("bulk-load", "pgbench -i, against vanilla (s)", OnStage(bulk_load::run)),
    (
        "seq-scan-cold",
        "the first sequential scan of a compute that has just started (MB/s)",
        OnStage(cold_pages::seq_scan),
    ),
    (
        "random-cold",
        "a page that a compute does not have yet, as Postgres sees it (us)",
        OnStage(cold_pages::random),
    ),
    // The last one on stage: it changes the clusters' tables.
    ("pgbench-tpcb", "pgbench's TPC-B, 8 clients, against vanilla (tps)", OnStage(pgbench::tpcb)),
];

/// Names that stand for several scenarios.
pub const GROUPS: &[(&str, &[&str])] = &[
    ("quorum", &["append", "commit-latency", "failover"]),
    (
        "lazy",
        &[
            "cold-start",
            "pgbench-select",
            "seq-scan-warm",
            "create-index",
            "vacuum-full",
            "bulk-load",
            "seq-scan-cold",
            "random-cold",
            "pgbench-tpcb",
        ],
    ),
];

/// Of a comparison: how many pairs, and how long a half takes.
fn halves(size: Size) -> (usize, Duration) {
    match size {
        Size::Full => (5, Duration::from_secs(15)),
        Size::Smoke => (1, Duration::from_secs(1)),
    }
}

/// TPC-B on a stock cluster until there are `bytes` of new log, with a checkpoint half-way.
fn tpcb_until(cluster: &Cluster, bytes: u64) -> anyhow::Result<()> {
    let position = || -> anyhow::Result<Lsn> {
        Ok(cluster.sql("SELECT pg_current_wal_insert_lsn()")?.parse()?)
    };
    let from = position()?;
    for part in [bytes / 2, bytes] {
        while position()?.bytes_since(from).unwrap_or(0) < part {
            cluster.pgbench(&["-n", "-c", "4", "-j", "2", "-t", "2000", "postgres"])?;
        }
        if part < bytes {
            cluster.sql("CHECKPOINT")?;
        }
    }
    Ok(())
}

/// Peak memory in MiB, against the engine's bound.
fn memory_report(scenario: &'static str, size: String, peak: &Spread, limit: usize) -> Report {
    let bar = Some(Bar::AtMost(limit as f64 / f64::from(1 << 20)));
    Report { bar, ..Report::figure(scenario, size, "MiB of memory", peak) }
}

fn histogram() -> Histogram<u64> {
    Histogram::new(3).expect("three digits are allowed")
}

/// TPC-B in the background until dropped.
struct Load(Child);

impl Load {
    fn start(treering: &Treering, clients: u32) -> anyhow::Result<Load> {
        let mut pgbench = treering.program("pgbench", "main");
        pgbench.args(["-n", "-j", "2", "-T", "3600", "-c"]).arg(clients.to_string());
        Ok(Load(pgbench.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?))
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
