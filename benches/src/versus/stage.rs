//! What the comparisons share, because loading it takes longer than measuring: a project and two vanilla clusters with
//! the same data.
//!
//! On our side every scenario has a branch of its own, which is deleted after it. The clusters are used as they are:
//! scenarios leave them as they found them, but for `pgbench-tpcb`, which therefore comes after all that use its tables.

use std::{
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use serde_json::Value;
use treering_bench::memory::Ballast;
use treering_tests::Treering;
use treering_types::Lsn;

use super::server::{Server, Vanilla};
use crate::scenario::Size;

/// Longest wait until the pageserver has all WAL.
const INGEST_LIMIT: Duration = Duration::from_secs(300);
/// And until what was put off is done.
const REST_LIMIT: Duration = Duration::from_secs(300);
/// What a client's first touch of a table would otherwise fetch in the middle of a measurement.
const WARM: &str = "SELECT sum(pg_prewarm(oid)) FROM pg_class
    WHERE relname LIKE 'pgbench%' AND relkind IN ('r', 'i')";
/// Microseconds of each call that brings one block into the buffers, measured where no network is in between.
const BLOCK_TIMES: &str = "
CREATE FUNCTION block_times(blocks int[]) RETURNS float8[] LANGUAGE plpgsql AS $$
DECLARE
    block int;
    began timestamptz;
    times float8[] := '{}';
BEGIN
    FOREACH block IN ARRAY blocks LOOP
        began := clock_timestamp();
        PERFORM pg_prewarm('pgbench_accounts', 'buffer', 'main', block, block);
        times := times || extract(epoch FROM clock_timestamp() - began)::float8 * 1e6;
    END LOOP;
    RETURN times;
END $$";

pub struct Stage {
    pub treering: Treering,
    vanilla: [Vanilla; 2],
    pub size: Size,
    pub scale: u32,
    pub accounts_bytes: u64,
    ballast: Ballast,
}

impl Stage {
    /// Loads all three. The default branch is stopped when that is done.
    pub fn load(size: Size) -> anyhow::Result<Stage> {
        let scale = if size == Size::Full { 40 } else { 1 };
        eprintln!("  loading scale {scale}: ours, then two vanilla clusters");
        let treering = Treering::start();
        let vanilla = [Vanilla::start("vanilla")?, Vanilla::start("vanilla 2")?];
        let main = Server::ours(&treering, "main");
        for server in [&main, &vanilla[0].server, &vanilla[1].server] {
            server.pgbench("postgres", &["-i", "-q", "-s", &scale.to_string()])?;
            server.sql("CREATE EXTENSION pg_prewarm")?;
            server.sql(BLOCK_TIMES)?;
        }
        let accounts_bytes = main.sql("SELECT pg_relation_size('pgbench_accounts')")?.parse()?;
        treering.ok(&["stop", "main"]);
        Ok(Stage { treering, vanilla, size, scale, accounts_bytes, ballast: Ballast::new()? })
    }

    /// A new branch, whose compute has not been started.
    pub fn branch(&self, name: &str) -> Branch<'_> {
        self.treering.ok(&["branch", "create", name]);
        let server = Server::ours(&self.treering, name);
        Branch { treering: &self.treering, name: name.to_owned(), server }
    }

    /// All three, with the tables in memory.
    pub fn warm<'a>(&'a self, branch: &'a Branch<'a>) -> anyhow::Result<Contest<'a>> {
        let [vanilla, noise] = [&self.vanilla[0].server, &self.vanilla[1].server];
        let contest = Contest { branch, vanilla, noise, ballast: &self.ballast };
        for server in contest.servers() {
            server.sql(WARM)?;
        }
        Ok(contest)
    }
}

fn lsn(view: &Value, name: &str) -> anyhow::Result<Lsn> {
    Ok(view[name].as_str().with_context(|| format!("no {name}"))?.parse()?)
}

/// A branch that is deleted when dropped.
pub struct Branch<'a> {
    treering: &'a Treering,
    pub name: String,
    pub server: Server,
}

impl Branch<'_> {
    /// Waits until the pageserver has everything that the compute has written; answers how long that took.
    fn wait_for_ingest(&self) -> anyhow::Result<Duration> {
        let written = self.written()?;
        self.wait_until("pageserver_http", INGEST_LIMIT, |view| {
            Ok(lsn(view, "last_record_lsn")? >= written)
        })
    }

    /// Waits until what was written is merged and archived: work that was put off is ours, not of who is measured next.
    fn wait_for_rest(&self) -> anyhow::Result<()> {
        let written = self.written()?.segment_start();
        self.wait_until("pageserver_http", REST_LIMIT, |view| {
            let due = view["compaction_due_bytes"].as_u64();
            Ok(due.context("no compaction_due_bytes")? == 0)
        })?;
        self.wait_until("safekeeper_http", REST_LIMIT, |view| {
            Ok(lsn(view, "archived_lsn")? >= written)
        })?;
        Ok(())
    }

    fn written(&self) -> anyhow::Result<Lsn> {
        Ok(self.server.sql("SELECT pg_current_wal_flush_lsn()")?.parse()?)
    }

    /// Until what a service shows of the branch is as wanted; answers how long that took.
    fn wait_until(
        &self,
        service: &str,
        limit: Duration,
        is_over: impl Fn(&Value) -> anyhow::Result<bool>,
    ) -> anyhow::Result<Duration> {
        let shown = self.treering.json(&["branch", "get", &self.name]);
        let id = |name: &str| shown[name].as_str().context("no id").map(str::to_owned);
        let (tenant, timeline) = (id("tenant_id")?, id("timeline_id")?);
        let service = self.treering.address(service);
        let url = format!("{service}/v1/tenant/{tenant}/timeline/{timeline}");
        let began = Instant::now();
        loop {
            let view: Value = reqwest::blocking::get(&url)?.error_for_status()?.json()?;
            if is_over(&view)? {
                return Ok(began.elapsed());
            }
            ensure!(began.elapsed() < limit, "not within {limit:?}: {view}");
            sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Branch<'_> {
    fn drop(&mut self) {
        self.treering.cli(&["branch", "delete", "--yes", &self.name]);
    }
}

/// The three that take turns.
pub struct Contest<'a> {
    branch: &'a Branch<'a>,
    pub vanilla: &'a Server,
    pub noise: &'a Server,
    ballast: &'a Ballast,
}

impl Contest<'_> {
    pub fn ours(&self) -> &Server {
        &self.branch.server
    }

    pub fn servers(&self) -> [&Server; 3] {
        [self.ours(), self.vanilla, self.noise]
    }

    /// Waits until the pageserver has all WAL of ours; answers how long that took.
    pub fn wait_for_ingest(&self) -> anyhow::Result<Duration> {
        self.branch.wait_for_ingest()
    }

    /// No work of what ran before is left for what runs next: every server has written a checkpoint, the
    /// pageserver has all WAL and merged it, it is archived, the disk has all files. And no memory is free but what has just been in use.
    pub fn settle(&self) -> anyhow::Result<()> {
        for server in self.servers() {
            server.sql("CHECKPOINT")?;
        }
        self.branch.wait_for_ingest()?;
        self.branch.wait_for_rest()?;
        rustix::fs::sync();
        Ok(self.ballast.fill()?)
    }
}
