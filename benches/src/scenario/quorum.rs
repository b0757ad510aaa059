//! `commit-latency` and `quorum-tpcb`: one and three safekeepers beside vanilla Postgres, alone and with a stock
//! synchronous standby, all on this machine and its one disk, all durable, in turns.
//!
//! Who promises as much as three safekeepers do is vanilla with its standby: that one is the bar.

use std::time::{Duration, Instant};

use anyhow::Context;
use hdrhistogram::Histogram;
use treering_bench::memory::Ballast;
use treering_tests::Treering;

use super::{Size, halves, histogram, pgbench::number_after};
use crate::{
    report::{Bar, Report, Spread},
    versus::{Server, Vanilla},
};

const BAR: f64 = 1.0;
const CLIENTS: &str = "8";

pub fn run(size: Size) -> anyhow::Result<Vec<Report>> {
    let (rounds, time) = halves(size);
    let (scale, commits) = if size == Size::Full { (40, 1000) } else { (1, 20) };
    eprintln!("  loading scale {scale} four times");
    let (stage, ballast) = (Stage::load(scale)?, Ballast::new()?);
    let mut found: Vec<Found> = stage.servers().map(|(name, _)| Found::of(name)).into();
    for round in 0..=rounds {
        for (nth, (_, server)) in stage.servers().into_iter().enumerate() {
            let found = &mut found[nth];
            let (tps, latencies) = (tps(server, time, &ballast)?, latencies(server, commits)?);
            eprintln!(
                "    {:<22} {tps:>8.0} tps, a commit {:>7.0} us",
                found.name,
                latencies.value_at_quantile(0.5) as f64 / 1e3
            );
            // The first round warms up.
            if round > 0 {
                found.tps.push(tps);
                found.rounds.push(tps);
                found.latencies.add(latencies)?;
            }
        }
    }
    Ok(reports(&found, scale))
}

fn reports(found: &[Found], scale: u32) -> Vec<Report> {
    let standby = &found[Stage::STANDBY];
    let mut reports = Vec::new();
    for (nth, one) in found.iter().enumerate() {
        let size = one.name.to_owned();
        reports.push(Report::latency("commit-latency", size, "us", 1e3, &one.latencies));
        let mut ratios = Spread::default();
        one.rounds
            .iter()
            .zip(&standby.rounds)
            .for_each(|(ours, theirs)| ratios.push(ours / theirs));
        let size = format!("{}, scale {scale}, {CLIENTS} clients", one.name);
        reports.push(Report {
            ratio: Some(ratios.median()),
            vanilla: Some(standby.tps.median()),
            bar: (nth == Stage::THREE).then_some(Bar::Ratio(BAR)),
            ..Report::figure("quorum-tpcb", size, "tps", &one.tps)
        });
    }
    reports
}

/// What came of one of them.
struct Found {
    name: &'static str,
    tps: Spread,
    /// The same in the order of the rounds.
    rounds: Vec<f64>,
    latencies: Histogram<u64>,
}

impl Found {
    fn of(name: &'static str) -> Found {
        Found { name, tps: Spread::default(), rounds: Vec::new(), latencies: histogram() }
    }
}

struct Stage {
    vanilla: Vanilla,
    with_standby: Vanilla,
    one: (Treering, Server),
    three: (Treering, Server),
}

impl Stage {
    /// Places among the servers.
    const STANDBY: usize = 1;
    const THREE: usize = 3;

    fn load(scale: u32) -> anyhow::Result<Stage> {
        let ours = |safekeepers: &str| {
            let treering = Treering::start_with(&["--safekeepers", safekeepers]);
            let server = Server::ours(&treering, "main");
            (treering, server)
        };
        let stage = Stage {
            vanilla: Vanilla::start("vanilla")?,
            with_standby: Vanilla::start_with_standby("vanilla and standby")?,
            one: ours("1"),
            three: ours("3"),
        };
        for (_, server) in stage.servers() {
            server.pgbench("postgres", &["-i", "-q", "-s", &scale.to_string()])?;
            server.sql("CREATE TABLE commits (n int)")?;
        }
        Ok(stage)
    }

    fn servers(&self) -> [(&'static str, &Server); 4] {
        [
            ("vanilla", &self.vanilla.server),
            ("vanilla and standby", &self.with_standby.server),
            ("one safekeeper", &self.one.1),
            ("three safekeepers", &self.three.1),
        ]
    }
}

fn tps(server: &Server, time: Duration, ballast: &Ballast) -> anyhow::Result<f64> {
    server.sql("CHECKPOINT")?;
    rustix::fs::sync();
    ballast.fill()?;
    let seconds = time.as_secs().to_string();
    let arguments = ["-n", "-j", "2", "-c", CLIENTS, "-T", &seconds];
    number_after(&server.pgbench("postgres", &arguments)?, "tps = ")
}

/// Of one client that inserts a row at a time.
fn latencies(server: &Server, commits: u32) -> anyhow::Result<Histogram<u64>> {
    let (session, mut latencies) = (server.session()?, histogram());
    for n in 0..commits {
        let began = Instant::now();
        session.sql("INSERT INTO commits VALUES (1)").with_context(|| format!("commit {n}"))?;
        latencies.record(began.elapsed().as_nanos() as u64)?;
    }
    Ok(latencies)
}
