//! `failover`: from SIGKILL of a compute's postmaster to the first answer of its successor, which runs in another directory
//! and on another port, to a client that simply tries to connect.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use treering_tests::{Treering, processes};

use super::{Size, histogram};
use crate::{
    report::{Bar, Report},
    versus::Server,
};

const BAR_MS: f64 = 1000.0;
const LIMIT: Duration = Duration::from_secs(30);

pub fn run(size: Size) -> anyhow::Result<Vec<Report>> {
    let (scale, rounds) = if size == Size::Full { (10, 20) } else { (1, 2) };
    let mut reports = Vec::new();
    for safekeepers in ["1", "3"] {
        let treering = Treering::start_with(&["--safekeepers", safekeepers]);
        let server = Server::ours(&treering, "main");
        server.pgbench("postgres", &["-i", "-q", "-s", &scale.to_string()])?;
        let mut latencies = histogram();
        for round in 0..rounds {
            let transactions = ["-n", "-c", "4", "-t", "50"];
            server.pgbench("postgres", &transactions)?;
            let before = postmaster(&treering)?;
            let began = Instant::now();
            processes::kill(before);
            let branches = loop {
                let answer = server
                    .session()
                    .and_then(|session| session.number("SELECT count(*) FROM pgbench_branches"));
                match answer {
                    Ok(count) => break count,
                    Err(error) if began.elapsed() > LIMIT => return Err(error),
                    Err(_) => std::thread::sleep(Duration::from_millis(1)),
                }
            };
            latencies.record(began.elapsed().as_nanos() as u64)?;
            ensure!(branches == f64::from(scale), "{branches} branches in round {round}");
            ensure!(postmaster(&treering)? != before, "the compute was not killed");
        }
        let size = format!("scale {scale}, {safekeepers} safekeepers");
        reports.push(Report {
            bar: Some(Bar::AtMost(BAR_MS)),
            ..Report::latency("failover", size, "ms", 1e6, &latencies)
        });
    }
    Ok(reports)
}

/// Of the default branch.
fn postmaster(treering: &Treering) -> anyhow::Result<i32> {
    let pid = treering.json(&["branch", "get", "main"])["pid"].as_i64();
    Ok(pid.context("main does not run")? as i32)
}
