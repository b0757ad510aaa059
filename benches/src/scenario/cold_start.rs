//! `cold-start`: from `treering start` of a stopped branch to the first row over TCP, the command line's own start included.
//!
//! The ratio is the larger scale's against the smaller's: a start must not depend on how much there is.

use std::time::Instant;

use treering_tests::Treering;

use super::{Size, histogram};
use crate::{
    report::{Bar, Report},
    versus::Server,
};

const BAR_MS: f64 = 350.0;
const BAR_RATIO: f64 = 1.3;

pub fn run(size: Size) -> anyhow::Result<Vec<Report>> {
    let (scales, starts): ([u32; 2], u32) =
        if size == Size::Full { ([1, 100], 20) } else { ([1, 2], 2) };
    let mut small = at_scale(scales[0], starts)?;
    let mut large = at_scale(scales[1], starts)?;
    small.bar = Some(Bar::AtMost(BAR_MS));
    large.bar = Some(Bar::AtMostAndRatio(BAR_MS, BAR_RATIO));
    large.ratio = Some(large.p50 / small.p50);
    Ok(vec![small, large])
}

fn at_scale(scale: u32, starts: u32) -> anyhow::Result<Report> {
    let treering = Treering::start();
    eprintln!("  loading scale {scale}");
    let server = Server::ours(&treering, "main");
    server.pgbench("postgres", &["-i", "-q", "-s", &scale.to_string()])?;
    let mut latencies = histogram();
    for _ in 0..starts {
        treering.ok(&["stop", "main"]);
        let began = Instant::now();
        treering.ok(&["start", "main"]);
        server.session()?.number("SELECT bid FROM pgbench_branches LIMIT 1")?;
        latencies.record(began.elapsed().as_nanos() as u64)?;
    }
    Ok(Report::latency("cold-start", format!("scale {scale}"), "ms", 1e6, &latencies))
}
