//! `branch-first-sql`: from asking for a branch to the first answer of its own Postgres.

use std::time::Instant;

use treering_tests::Treering;

use super::{Size, histogram};
use crate::report::{Bar, Report};

pub fn run(size: Size) -> anyhow::Result<Vec<Report>> {
    let (scale, rounds) = if size == Size::Full { (10, 10) } else { (1, 2) };
    let treering = Treering::start();
    treering.run("pgbench", "main", &["-i", "-q", "-s", &scale.to_string()]);
    let runtime = tokio::runtime::Runtime::new()?;
    let mut latencies = histogram();
    for n in 0..rounds {
        let name = format!("b{n}");
        let began = Instant::now();
        treering.ok(&["branch", "create", &name]);
        runtime.block_on(async {
            let client = treering.connect(&name).await;
            client.query_one("SELECT count(*) FROM pgbench_branches", &[]).await
        })?;
        latencies.record(began.elapsed().as_nanos() as u64)?;
        treering.ok(&["stop", &name]);
    }
    let size = format!("scale {scale}");
    Ok(vec![Report {
        bar: Some(Bar::AtMost(500.0)),
        ..Report::latency("branch-first-sql", size, "ms", 1e6, &latencies)
    }])
}
