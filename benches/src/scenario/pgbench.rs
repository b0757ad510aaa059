//! `pgbench-select` and `pgbench-tpcb`: transactions a second of pgbench's own scripts, everything warm.
//!
//! The simple protocol, as pgbench has it by default; two pgbench threads, so that the program that measures is not the
//! one that is measured.

use anyhow::Context;

use super::halves;
use crate::{
    report::Report,
    versus::{Better, Half, Judged, Stage, compare},
};

pub fn select(stage: &Stage) -> anyhow::Result<Vec<Report>> {
    run(stage, "pgbench-select", &["-S", "-c", "4"], 0.93)
}

pub fn tpcb(stage: &Stage) -> anyhow::Result<Vec<Report>> {
    run(stage, "pgbench-tpcb", &["-c", "8"], 0.7)
}

fn run(
    stage: &Stage,
    scenario: &'static str,
    script: &[&str],
    bar: f64,
) -> anyhow::Result<Vec<Report>> {
    let (pairs, seconds) = halves(stage.size);
    let branch = stage.branch(scenario);
    let contest = stage.warm(&branch)?;
    let seconds = seconds.as_secs().to_string();
    let arguments = [&["-n", "-j", "2", "-T", &seconds], script].concat();
    let size = format!("scale {}, {} clients", stage.scale, script.last().unwrap_or(&"?"));
    let judged = Judged { scenario, size, unit: "tps", better: Better::More, bar };
    compare(&contest, judged, pairs, |server| {
        let printed = server.pgbench("postgres", &arguments)?;
        let figure = number_after(&printed, "tps = ")?;
        let work = number_after(&printed, "number of transactions actually processed: ")?;
        Ok(Half { figure, work })
    })
}

/// As in `tps = 1234.5 (without initial connection time)`.
pub fn number_after(printed: &str, label: &str) -> anyhow::Result<f64> {
    let line = printed.lines().find_map(|line| line.strip_prefix(label));
    let number = line.and_then(|line| line.split([' ', '/']).next()?.parse().ok());
    number.with_context(|| format!("no \"{label}\": {printed}"))
}
