//! `branch-create`: the API answer, waiting for ingest included, under an 8-client TPC-B. The ratio is against the first
//! scale: creation must not depend on size.

use std::{
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::ensure;
use serde_json::json;
use treering_tests::Treering;

use super::{Load, Size, histogram};
use crate::report::Report;

pub fn run(size: Size) -> anyhow::Result<Vec<Report>> {
    let (scales, creations): (&[u32], u32) = match size {
        Size::Full => (&[10, 100], 100),
        Size::Smoke => (&[1], 5),
    };
    let mut reports: Vec<Report> = Vec::new();
    for scale in scales {
        let mut report = at_scale(*scale, creations)?;
        report.ratio = reports.first().map(|first| report.p50 / first.p50);
        reports.push(report);
    }
    Ok(reports)
}

fn at_scale(scale: u32, creations: u32) -> anyhow::Result<Report> {
    let treering = Treering::start();
    eprintln!("  loading scale {scale}");
    treering.run("pgbench", "main", &["-i", "-q", "-s", &scale.to_string()]);
    let _load = Load::start(&treering, 8)?;
    sleep(Duration::from_secs(5));
    let http = reqwest::blocking::Client::new();
    let url = format!("{}/v1/projects/default/branches", treering.address("control_http"));
    let mut latencies = histogram();
    for n in 0..creations {
        let began = Instant::now();
        let answer = http.post(&url).json(&json!({"name": format!("b{n}")})).send()?;
        latencies.record(began.elapsed().as_nanos() as u64)?;
        ensure!(answer.status().is_success(), "{}", answer.text()?);
        sleep(Duration::from_millis(20));
    }
    Ok(Report::latency("branch-create", format!("scale {scale}"), "ms", 1e6, &latencies))
}
