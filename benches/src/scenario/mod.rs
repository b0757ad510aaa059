//! The scenarios, one a file.

mod branch_create;
mod branch_first_sql;
mod getpage;
mod redo_chain;
mod replay;
mod wal_decode;

use std::process::{Child, Stdio};

use hdrhistogram::Histogram;
use treering_tests::Treering;

use crate::report::Report;

/// How much to do.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Size {
    Full,
    Smoke,
}

type Scenario = fn(Size) -> anyhow::Result<Vec<Report>>;

/// Name, what it measures, the code.
pub const SCENARIOS: &[(&str, &str, Scenario)] = &[
    (
        "branch-create",
        "API answer of a branch creation while 8 clients run TPC-B (ms)",
        branch_create::run,
    ),
    (
        "branch-first-sql",
        "from the request for a branch to its first SQL answer, pages fetched eagerly (ms)",
        branch_first_sql::run,
    ),
    (
        "getpage",
        "one page over the wire after TPC-B, nothing compacted, one client (us)",
        getpage::run,
    ),
    (
        "redo-short",
        "a page out of an image and a record as stored (us); redos of two callers against one",
        redo_chain::short,
    ),
    (
        "redo-medium",
        "a page out of 227 stored changes (us); redos of two callers against one",
        redo_chain::medium,
    ),
    ("wal-decode", "pgbench's raw WAL to decoded records, one core (MB/s)", wal_decode::run),
    (
        "replay",
        "TPC-B's WAL applied to pages in memory against stock recovery, one core (s)",
        replay::run,
    ),
];

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
