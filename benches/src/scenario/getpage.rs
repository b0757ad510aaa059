//! `getpage`: one client asks for one page at a time over TCP, after TPC-B has run with nothing compacted.
//!
//! `all` draws from every block of pgbench's tables; `hot` from the branches and tellers tables, whose pages changed in
//! every transaction.

use std::{
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow};
use rand::Rng;
use treering_tests::{Treering, pages::Pages};
use treering_types::{Fork, Lsn, RelTag};

use super::{Load, Size, histogram};
use crate::report::Report;

pub fn run(size: Size) -> anyhow::Result<Vec<Report>> {
    let (scale, seconds, reads) = if size == Size::Full { (10, 300, 20_000) } else { (1, 3, 500) };
    let treering = Treering::start();
    treering.run("pgbench", "main", &["-i", "-q", "-s", &scale.to_string()]);
    let load = Load::start(&treering, 4)?;
    eprintln!("  TPC-B for {seconds} s");
    sleep(Duration::from_secs(seconds));
    drop(load);
    let lsn: Lsn = treering.sql("main", "SELECT pg_current_wal_flush_lsn()").parse()?;
    let branch = treering.json(&["branch", "get", "main"]);
    let id = |name: &str| branch[name].as_str().map(str::to_owned).with_context(|| name.to_owned());
    let mut pages =
        Pages::connect(&treering.address("pageserver_pg"), &id("tenant_id")?, &id("timeline_id")?);
    let hot = blocks(&treering, &mut pages, lsn, &["pgbench_branches", "pgbench_tellers"])?;
    let all = blocks(
        &treering,
        &mut pages,
        lsn,
        &[
            "pgbench_accounts",
            "pgbench_accounts_pkey",
            "pgbench_history",
            "pgbench_branches",
            "pgbench_tellers",
        ],
    )?;
    let mut reports = Vec::new();
    for (name, from) in [("all", all), ("hot", hot)] {
        let mut latencies = histogram();
        for _ in 0..reads {
            let (rel, block) = from[rand::rng().random_range(0..from.len())];
            let began = Instant::now();
            pages.page(rel, block, lsn).map_err(|message| anyhow!(message))?;
            latencies.record(began.elapsed().as_nanos() as u64)?;
        }
        let size = format!("{name}, {} blocks, 1 client", from.len());
        reports.push(Report::latency("getpage", size, "us", 1e3, &latencies));
    }
    Ok(reports)
}

fn blocks(
    treering: &Treering,
    pages: &mut Pages,
    lsn: Lsn,
    tables: &[&str],
) -> anyhow::Result<Vec<(RelTag, u32)>> {
    let mut found = Vec::new();
    for table in tables {
        let path = treering.sql("main", &format!("SELECT pg_relation_filepath('{table}')"));
        let mut numbers = path.split('/').skip(1).map(str::parse);
        let (Some(Ok(database)), Some(Ok(relation))) = (numbers.next(), numbers.next()) else {
            anyhow::bail!("\"{path}\" is no relation path");
        };
        let rel = RelTag { tablespace: 1663, database, relation, fork: Fork::Main };
        found.extend((0..pages.blocks(rel, lsn)).map(|block| (rel, block)));
    }
    Ok(found)
}
