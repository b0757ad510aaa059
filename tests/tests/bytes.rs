//! Pages of the store against the files of the compute that wrote them, byte for byte under Postgres's own masks.
//!
//! A mixed workload, a clean stop, and then every permanent relation of every database is fetched at the end LSN and
//! compared with the files the stop left (through hard links made before it: the agent removes the directory). What may
//! differ is listed, and counted: free space maps (never logged), visibility maps of databases made by the WAL_LOG
//! strategy (their maps are logged as empty pages), trailing zero pages (extension is not logged), sequence positions (logged ahead), and the SP-GiST metapage's cache of last-used pages (never logged).

use std::{fs, path::Path, process::Command};

use treering_pgfmt::version::PgMajor;
use treering_tests::{
    Treering,
    blocks::{Relation, Tally, compare, local_blocks, relations},
    pages::Pages,
};
use treering_types::{Fork, Lsn, PAGE_SIZE, RelTag};

const WORKLOAD: &str = include_str!("sql/mixed.sql");
/// `pg_default`.
const PG_DEFAULT: u32 = 1663;

#[test]
fn every_page_equals_the_compute_s_own() {
    // Every page has to be in the files.
    let treering = Treering::start_with(&["--pages", "eager"]);
    treering.sql("main", "ALTER SYSTEM SET autovacuum = off");
    treering.sql("main", "SELECT pg_reload_conf()");
    let script = tempfile::NamedTempFile::new().expect("temporary file");
    fs::write(script.path(), WORKLOAD).expect("write");
    let path = script.path().display().to_string();
    treering.run("psql", "main", &["-X", "-q", "-v", "ON_ERROR_STOP=1", "-f", &path]);
    treering.run("pgbench", "main", &["-i", "-q", "-s", "2"]);
    treering.run("pgbench", "main", &["-n", "-c", "4", "-j", "2", "-t", "500"]);
    treering.sql("main", "VACUUM");
    let databases = ["postgres", "template1", "made_by_copy", "made_by_wal"];
    let listed = databases.map(|name| (name, relations(&treering, "main", PgMajor::V15, name)));

    let branch = treering.json(&["branch", "get", "main"]);
    let id = |name: &str| branch[name].as_str().expect("an id").to_owned();
    let mut pages =
        Pages::connect(&treering.address("pageserver_pg"), &id("tenant_id"), &id("timeline_id"));
    let computes = treering.data_dir().join("agent/computes").join(id("timeline_id"));
    let runs = fs::read_dir(computes)
        .expect("a compute")
        .flatten()
        .map(|entry| entry.path().join("pgdata"));
    let live = runs.into_iter().find(|path| path.is_dir()).expect("a data directory");
    let links = tempfile::tempdir_in(treering.data_dir()).expect("temporary directory");
    let pgdata = links.path().join("pgdata");
    let linked = Command::new("cp").arg("-al").args([&live, &pgdata]).status().expect("cp");
    assert!(linked.success());
    treering.ok(&["stop", "main"]);
    assert!(!live.exists(), "the stopped compute left its directory");
    let end = treering.json(&["branch", "create", "end"]);
    let lsn: Lsn = end["branch_lsn"].as_str().and_then(|lsn| lsn.parse().ok()).expect("an LSN");
    let mut tally = Tally::default();
    let mut wrong = Vec::new();
    for (database, relations) in listed {
        for relation in relations {
            for fork in [Fork::Main, Fork::VisibilityMap] {
                let tag = relation.tag.with_fork(fork);
                compare_fork(
                    &pgdata, &mut pages, &relation, tag, lsn, database, &mut tally, &mut wrong,
                );
            }
        }
    }
    eprintln!("{tally:#?}");
    assert!(
        wrong.is_empty(),
        "{} pages differ:\n{}",
        wrong.len(),
        wrong[..wrong.len().min(20)].join("\n")
    );
    assert!(tally.0.get("equal under masks").is_some_and(|n| *n > 3000), "too little was compared");
    assert!(
        tally.0.get("visibility map, equal").is_some_and(|n| *n > 10),
        "no visibility map was compared"
    );
}

#[allow(clippy::too_many_arguments)]
fn compare_fork(
    pgdata: &Path,
    pages: &mut Pages,
    relation: &Relation,
    tag: RelTag,
    lsn: Lsn,
    database: &str,
    tally: &mut Tally,
    wrong: &mut Vec<String>,
) {
    let Some(local) = local_blocks(pgdata, PgMajor::V15, tag) else { return };
    let stored_blocks = pages.blocks(tag, lsn);
    for (block, local) in local.chunks_exact(PAGE_SIZE).enumerate() {
        let block = block as u32;
        if block >= stored_blocks {
            match local.iter().all(|b| *b == 0) {
                true => tally.count("trailing zero page"),
                false if tag.fork == Fork::VisibilityMap && database == "made_by_wal" => {
                    tally.count("visibility map of a WAL_LOG database");
                }
                false => wrong.push(format!("{} {tag} block {block} is missing", relation.name)),
            }
            continue;
        }
        let outcome = match pages.page(tag, block, lsn) {
            Ok(stored) => compare(relation.rmid, tag.fork, block, local, &stored),
            Err(message) => Err(message),
        };
        match outcome {
            Ok(what) => tally.count(what),
            Err(_)
                if tag.fork == Fork::VisibilityMap
                    && database == "made_by_wal"
                    && tag.tablespace == PG_DEFAULT =>
            {
                tally.count("visibility map of a WAL_LOG database");
            }
            Err(why) => wrong.push(format!("{} {tag} block {block}: {why}", relation.name)),
        }
    }
}
