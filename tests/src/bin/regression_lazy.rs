//! Postgres 15's regression suite on a compute that fetches its pages on first touch and has little room for them.
//!
//! The core suite on a stock server, then, with the same settings, on a branch of which nothing was local. What passes
//! there and fails here is a finding, and there may be none; what fails there, because Debian's psql and the suite are
//! not of one minor release, must print the same here. (`regression` asks another question: what the store made of
//! the suite's log.)
//!
//! Takes four minutes, so `make test-all` runs it and `make test` does not. It needs `scripts/regression-source`.

use std::process::ExitCode;

use treering_stock::{
    Cluster, Postgres,
    suite::{Outcome, Suites},
};
use treering_tests::{
    Treering,
    lazy::{disk_bytes, is_lazy},
};

/// What computes have, so that plans are the same.
const SETTINGS: &str = "
full_page_writes = off
wal_level = replica
max_prepared_transactions = 64
max_logical_replication_workers = 0
max_wal_senders = 10
max_replication_slots = 10
shared_buffers = 128MB
max_connections = 100
timezone = 'UTC'
max_wal_size = 1GB
log_min_messages = warning
";
const ROOM: &str = "64MiB";
fn main() -> ExitCode {
    let postgres = Postgres::find(15).expect("PostgreSQL 15");
    let (stock_suites, stock) = on_stock(&postgres);
    println!("stock: {stock}");
    let (lazy_suites, lazy) = on_a_lazy_branch(&postgres);
    println!("lazy, in {ROOM}: {lazy}");
    let mut is_clean = lazy.tests == stock.tests;
    for test in &lazy.failed {
        let lines = [&stock_suites, &lazy_suites].map(|suites| suites.core_output(test));
        let [there, here] = lines.each_ref().map(|text| text.lines().collect::<Vec<_>>());
        let differing: Vec<(&str, &str)> = there
            .iter()
            .zip(&here)
            .map(|(there, here)| (*there, *here))
            .filter(|(there, here)| there != here)
            .collect();
        if differing.is_empty() && there.len() == here.len() {
            continue;
        }
        is_clean = false;
        println!("{test}: {} lines on the stock server, {} here", there.len(), here.len());
        for (there, here) in differing.iter().take(10) {
            println!("  - {there}\n  + {here}");
        }
    }
    if is_clean {
        println!("clean: each test prints what it prints on the stock server, or what is expected");
        return ExitCode::SUCCESS;
    }
    ExitCode::FAILURE
}

fn on_stock(postgres: &Postgres) -> (Suites, Outcome) {
    let suites = Suites::unpack(postgres).expect("suites");
    let mut cluster = Cluster::create(postgres, SETTINGS).expect("a cluster");
    cluster.start().expect("start");
    let connection = cluster.connection().expect("a connection");
    let connection = connection.each_ref().map(|(name, value)| (*name, value.as_str()));
    let outcome = suites.core(&connection).expect("the core suite");
    cluster.stop("fast").expect("stop");
    (suites, outcome)
}

fn on_a_lazy_branch(postgres: &Postgres) -> (Suites, Outcome) {
    let suites = Suites::unpack(postgres).expect("suites");
    let treering = Treering::start_with(&["--page-cache-limit", ROOM]);
    treering.sql("main", "SELECT 1");
    treering.ok(&["stop", "main"]);
    treering.ok(&["branch", "create", "lazy"]);
    treering.ok(&["start", "lazy"]);
    assert!(is_lazy(&treering, "lazy"), "the compute is not lazy");
    println!("{} KiB fetched before the suite", disk_bytes(&treering, "lazy") >> 10);
    let config = treering.config("lazy");
    let password = String::from_utf8_lossy(config.get_password().expect("password")).into_owned();
    let port = treering.port.to_string();
    let connection = [
        ("PGHOST", "127.0.0.1"),
        ("PGPORT", port.as_str()),
        ("PGUSER", config.get_user().expect("user")),
        ("PGPASSWORD", password.as_str()),
        ("PGOPTIONS", "-c treering.branch=lazy"),
    ];
    let outcome = suites.core(&connection).expect("the core suite");
    assert!(is_lazy(&treering, "lazy"), "another compute ended the suite");
    (suites, outcome)
}
