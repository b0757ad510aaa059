//! `cold-start`: from `treering start` of a stopped branch to the first row over TCP, the command line's own start included.
//!
//! The ratio is the larger scale's against the smaller's: a start must not depend on how much there is.

use std::time::Instant;

use hdrhistogram::Histogram;
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
    let mut branches = [Branch::load(scales[0])?, Branch::load(scales[1])?];
    // In turns: what the machine does meanwhile, the merges of what was loaded too, it does to both.
    for _ in 0..starts {
        for branch in &mut branches {
            branch.start()?;
        }
    }
    let [mut small, mut large] = branches.map(|branch| branch.report());
    small.bar = Some(Bar::AtMost(BAR_MS));
    large.bar = Some(Bar::AtMostAndRatio(BAR_MS, BAR_RATIO));
    large.ratio = Some(large.p50 / small.p50);
    Ok(vec![small, large])
}

/// One that is started again and again.
struct Branch {
    treering: Treering,
    server: Server,
    scale: u32,
    latencies: Histogram<u64>,
}

impl Branch {
    fn load(scale: u32) -> anyhow::Result<Branch> {
        let treering = Treering::start();
        eprintln!("  loading scale {scale}");
        let server = Server::ours(&treering, "main");
        server.pgbench("postgres", &["-i", "-q", "-s", &scale.to_string()])?;
        Ok(Branch { treering, server, scale, latencies: histogram() })
    }

    fn start(&mut self) -> anyhow::Result<()> {
        self.treering.ok(&["stop", "main"]);
        let began = Instant::now();
        self.treering.ok(&["start", "main"]);
        self.server.session()?.number("SELECT bid FROM pgbench_branches LIMIT 1")?;
        self.latencies.record(began.elapsed().as_nanos() as u64)?;
        Ok(())
    }

    fn report(&self) -> Report {
        Report::latency("cold-start", format!("scale {}", self.scale), "ms", 1e6, &self.latencies)
    }
}
