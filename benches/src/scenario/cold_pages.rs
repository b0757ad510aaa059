//! `seq-scan-cold` and `random-cold`: pages that the compute does not have yet.
//!
//! Every round is a new branch, so its compute begins with nothing. A compute that fetches all pages before it starts has
//! them all by then; of such a one these scenarios measure the page cache.

use std::time::Instant;

use anyhow::{Context, ensure};
use rand::seq::index::sample;
use treering_types::PAGE_SIZE;

use super::{Size, histogram, statement};
use crate::{
    report::{Bar, Report, Spread},
    versus::{Session, Stage},
};

/// The first scan of a table by a compute that has just started.
pub fn seq_scan(stage: &Stage) -> anyhow::Result<Vec<Report>> {
    let rounds = if stage.size == Size::Full { 7 } else { 2 };
    let mut rates = Spread::default();
    for round in 0..rounds {
        let branch = stage.branch(&format!("scan-{round}"));
        let session = branch.server.session()?;
        session.sql(statement::PLAIN_SCAN)?;
        let began = Instant::now();
        session.sql(statement::SCAN)?;
        let rate = stage.accounts_bytes as f64 / 1e6 / began.elapsed().as_secs_f64();
        eprintln!("    {rate:.0} MB/s");
        rates.push(rate);
    }
    let size = format!("{} MB, fresh starts", stage.accounts_bytes / 1_000_000);
    Ok(vec![Report {
        bar: Some(Bar::AtLeast(300.0)),
        ..Report::figure("seq-scan-cold", size, "MB/s", &rates)
    }])
}

/// One missing page: what a call takes that brings it into the buffers, less what the same call takes when it is there.
pub fn random(stage: &Stage) -> anyhow::Result<Vec<Report>> {
    let (rounds, reads) = if stage.size == Size::Full { (5, 2000) } else { (2, 100) };
    let (mut missing, mut present) = (histogram(), histogram());
    for round in 0..rounds {
        let branch = stage.branch(&format!("random-{round}"));
        let session = branch.server.session()?;
        let blocks = random_blocks(stage.accounts_bytes, reads)?;
        let (first, others) = blocks.split_at(1);
        // The function itself, the catalogs, the library.
        block_times(&session, first)?;
        for histogram in [&mut missing, &mut present] {
            for micros in block_times(&session, others)? {
                histogram.record((micros * 1e3) as u64)?;
            }
        }
    }
    let report = |what: &str, histogram| {
        let size = format!("{what}, {rounds} x {reads} random blocks");
        Report::latency("random-cold", size, "us", 1e3, histogram)
    };
    let (missing, present) = (report("missing", &missing), report("in the buffers", &present));
    let difference = Report {
        scenario: "random-cold",
        size: "missing less in the buffers".to_owned(),
        unit: "us",
        ours: missing.p50 - present.p50,
        p50: missing.p50 - present.p50,
        p99: missing.p99 - present.p50,
        samples: missing.samples,
        bar: Some(Bar::AtMost(150.0)),
        ..Report::default()
    };
    Ok(vec![difference, missing, present])
}

/// Distinct, in random order.
fn random_blocks(bytes: u64, count: usize) -> anyhow::Result<Vec<usize>> {
    let blocks = bytes as usize / PAGE_SIZE;
    ensure!(blocks > count, "{blocks} blocks are too few");
    Ok(sample(&mut rand::rng(), blocks, count + 1).into_vec())
}

/// Microseconds of each block's call, see the function in [`Stage`]. The server's clock has no finer unit.
fn block_times(session: &Session, blocks: &[usize]) -> anyhow::Result<Vec<f64>> {
    let list = blocks.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
    let times = session.sql(&format!("SELECT block_times(ARRAY[{list}])"))?;
    let inner = times.strip_prefix('{').and_then(|rest| rest.strip_suffix('}'));
    let inner = inner.with_context(|| format!("no array: {times}"))?;
    inner.split(',').map(|time| time.parse().context("a time")).collect()
}
