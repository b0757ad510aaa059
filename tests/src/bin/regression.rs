//! Postgres 15's regression suite through the product, and then computes whose every page comes from the store.
//!
//! `treering up`; the core suite and contrib modules with access methods or operator classes of their own, through
//! the relay's port as a user's superuser; the compute is stopped. Then a new one on the same timeline and one on a
//! branch of it are held against what the first said before it stopped: a dump of everything, every index against
//! a sequential scan, every page read, amcheck of every table and btree, VACUUM of every index.
//!
//! Takes minutes, so `make verify-redo` runs it and `make test` does not. It needs `scripts/regression-source`.

use std::time::Instant;

use treering_stock::{
    Postgres,
    suite::{Outcome, Suites},
};
use treering_tests::Treering;

const PROBES: &str = include_str!("../probes.sql");
/// Of stock Postgres: the suite has a circle of radius NaN, which equals itself and lies in no bounding box.
const STOCK_DISAGREES: (&str, &str) = ("gcircleind", "~=");
/// Modules with index support; each leaves a database of its own behind.
const MODULES: [&str; 9] =
    ["bloom", "btree_gin", "btree_gist", "cube", "hstore", "intarray", "ltree", "pg_trgm", "seg"];

fn main() {
    let clock = Clock(Instant::now());
    let treering = Treering::start();
    // Kept to the end: functions and foreign tables in the databases name files of the suites.
    let _suites = run_suites(&treering);
    clock.says("suites");
    let first = Look::at(&treering, "main");
    clock.says("what the compute that ran them has");
    treering.ok(&["stop", "main"]);
    treering.ok(&["branch", "create", "branch"]);
    treering.ok(&["start", "main"]);
    for branch in ["main", "branch"] {
        Look::at(&treering, branch).compare(&first, branch);
        clock.says(&format!("{branch}: the same"));
        read_every_page(&treering, branch);
        amcheck(&treering, branch);
        clock.says(&format!("{branch}: amcheck"));
        treering.run("vacuumdb", branch, &["--all", "--quiet", "--freeze"]);
        amcheck(&treering, branch);
        clock.says(&format!("{branch}: vacuum, amcheck"));
    }
    treering.ok(&["doctor"]);
    println!("clean");
}

struct Clock(Instant);

impl Clock {
    fn says(&self, what: &str) {
        println!("[{:>6.1} s] {what}", self.0.elapsed().as_secs_f64());
    }
}

fn run_suites(treering: &Treering) -> Suites {
    let postgres = Postgres::find(15).expect("PostgreSQL 15");
    let suites = Suites::unpack(&postgres).expect("suites");
    let config = treering.config("main");
    let password = String::from_utf8_lossy(config.get_password().expect("password")).into_owned();
    let port = treering.port.to_string();
    let connection = [
        ("PGHOST", "127.0.0.1"),
        ("PGPORT", port.as_str()),
        ("PGUSER", config.get_user().expect("user")),
        ("PGPASSWORD", password.as_str()),
    ];
    let finish = |outcome: anyhow::Result<Outcome>| println!("{}", outcome.expect("a suite"));
    finish(suites.core(&connection));
    MODULES.iter().for_each(|module| finish(suites.contrib(module, &connection)));
    suites
}

fn databases(treering: &Treering, branch: &str) -> Vec<String> {
    let names = "SELECT datname FROM pg_database WHERE datallowconn ORDER BY 1";
    treering.sql(branch, names).lines().map(str::to_owned).collect()
}

fn psql(treering: &Treering, branch: &str, database: &str, arguments: &[&str]) -> String {
    let options = ["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d", database];
    treering.run("psql", branch, &[&options, arguments].concat())
}

/// What a compute says of its databases, without writing to them.
struct Look {
    dump: String,
    probes: Vec<Probe>,
}

/// One index and one operator of it, as `probes.sql` prints them.
#[derive(Clone, Debug, PartialEq)]
struct Probe {
    index: String,
    operator: String,
    tried: u64,
    refused: u64,
    rows: u64,
    /// Plans that had the index; statistics decide.
    used: u64,
}

impl Look {
    fn at(treering: &Treering, branch: &str) -> Look {
        let dump = treering.run("pg_dumpall", branch, &["--no-unlogged-table-data"]);
        let dump: Vec<&str> = dump.lines().filter(|line| is_kept(line)).collect();
        let probes: Vec<Probe> = databases(treering, branch)
            .iter()
            .flat_map(|database| Probe::all(treering, branch, database))
            .collect();
        let sum = |of: fn(&Probe) -> u64| probes.iter().map(of).sum::<u64>();
        let used = sum(|probe| probe.used);
        println!(
            "{branch}: {} lines of dump; {} indexes and operators, {} probes ({used} planned with the index, {} \
             refused by the operator), {} rows",
            dump.len(),
            probes.len(),
            sum(|probe| probe.tried),
            sum(|probe| probe.refused),
            sum(|probe| probe.rows)
        );
        assert!(probes.len() > 200 && used > 800, "too little was probed");
        Look { dump: dump.join("\n"), probes }
    }

    fn compare(&self, first: &Look, branch: &str) {
        for (now, then) in self.dump.lines().zip(first.dump.lines()) {
            assert_eq!(now, then, "{branch}: the dump differs");
        }
        assert_eq!(self.dump.len(), first.dump.len(), "{branch}: the dump ends early");
        for (now, then) in self.probes.iter().zip(&first.probes) {
            let same = Probe { used: then.used, ..now.clone() };
            assert_eq!(same, *then, "{branch}: an index differs");
        }
        assert_eq!(self.probes.len(), first.probes.len(), "{branch}: indexes differ");
    }
}

/// A sequence's position is logged ahead of its use; each dump has a random key against injected commands. (Unlogged
/// tables, which the dump leaves out, are empty after a start.)
fn is_kept(line: &str) -> bool {
    let key = line.starts_with(r"\restrict ") || line.starts_with(r"\unrestrict ");
    !key && !line.contains("pg_catalog.setval(")
}

impl Probe {
    fn all(treering: &Treering, branch: &str, database: &str) -> Vec<Probe> {
        let script = tempfile::NamedTempFile::new().expect("temporary file");
        std::fs::write(script.path(), PROBES).expect("write");
        let path = script.path().display().to_string();
        let lines = psql(treering, branch, database, &["-F", "\t", "-f", &path]);
        lines.lines().map(|line| Probe::parse(database, line)).collect()
    }

    fn parse(database: &str, line: &str) -> Probe {
        let fields: Vec<&str> = line.split('\t').collect();
        let [index, _, operator, tried, refused, rows, used, differ] = fields[..] else {
            panic!("{database}: {line}");
        };
        let agree = differ == "0" || (index, operator) == STOCK_DISAGREES;
        assert!(agree, "{database}: index and table disagree: {line}");
        let number = |text: &str| text.parse::<u64>().unwrap_or_else(|_| panic!("{line}"));
        Probe {
            index: format!("{database}: {index}"),
            operator: operator.to_owned(),
            tried: number(tried),
            refused: number(refused),
            rows: number(rows),
            used: number(used),
        }
    }
}

/// Every page of everything into memory; those with a wrong header or checksum are errors.
fn read_every_page(treering: &Treering, branch: &str) {
    let mut pages = 0;
    for database in databases(treering, branch) {
        psql(treering, branch, &database, &["-c", "CREATE EXTENSION IF NOT EXISTS pg_prewarm"]);
        let read = "SELECT coalesce(sum(pg_prewarm(c.oid, 'buffer', f)), 0)
                    FROM pg_class c, unnest(ARRAY['main', 'vm']) f
                    WHERE pg_relation_filepath(c.oid) IS NOT NULL AND c.relpersistence <> 't'
                      AND pg_relation_size(c.oid, f) > 0";
        let count = psql(treering, branch, &database, &["-c", read]);
        pages += count.trim().parse::<u64>().expect("a number");
    }
    println!("{branch}: {pages} pages read");
    assert!(pages > 10_000, "too little was read");
}

/// Every table, TOAST table and btree of every database; heap tuples must be in the btrees, and parents must fit
/// their children.
fn amcheck(treering: &Treering, branch: &str) {
    let mut command = treering.program("pg_amcheck", branch);
    command.args(["--all", "--install-missing", "--heapallindexed", "--parent-check", "--jobs=2"]);
    let output = command.arg("--verbose").output().expect("pg_amcheck");
    let said = String::from_utf8_lossy(&output.stderr);
    let complaints = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && complaints.is_empty(), "{branch}: {complaints}{said}");
    let count = |what: &str| said.lines().filter(|line| line.contains(what)).count();
    let (tables, btrees) = (count("checking heap table"), count("checking btree index"));
    println!("{branch}: amcheck of {tables} tables and {btrees} btrees: no complaints");
    assert!(tables > 500 && btrees > 1000, "too little was checked: {said}");
}
