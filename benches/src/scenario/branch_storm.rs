//! `branch-storm`: a thousand branches of one that is stopped, and a thousand of the same while it runs, asked for at the REST API by a few
//! clients at once, each answered when it is durable; and what they take on disk, in everything that `treering up` stores: branches that
//! were never started, and such as wrote a page and have then been suspended for a minute. (Nothing runs while bytes are counted: a
//! compute's own files come and go.)

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU32, Ordering},
    thread::{scope, sleep},
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::json;
use treering_bench::store::disk_bytes;
use treering_engine::EngineOptions;
use treering_tests::Treering;

use super::{Size, histogram, memory_report};
use crate::report::{Bar, Report, Spread};

const BRANCHES_PER_SECOND: f64 = 100.0;
const IDLE_KB: f64 = 10.0;
const SUSPENDED_KB: f64 = 100.0;
const CLIENTS: u32 = 4;

pub fn run(size: Size) -> anyhow::Result<Vec<Report>> {
    let (branches, written, suspended_for) = match size {
        Size::Full => (1000, 5, Duration::from_secs(60)),
        Size::Smoke => (20, 1, Duration::from_secs(1)),
    };
    let treering = Treering::start();
    treering.run("pgbench", "main", &["-i", "-q", "-s", "10"]);
    treering.ok(&["stop", "main"]);
    let label = format!("{branches} branches, {CLIENTS} clients");
    let before = settled_bytes(&treering, size)?;
    let mut reports = storm(&treering, "s", branches, &format!("{label}, parent stopped"))?;
    let idle =
        (settled_bytes(&treering, size)?.saturating_sub(before)) as f64 / f64::from(branches);
    let idle = one(format!("{label}, never started"), "KB stored", idle / 1e3);
    let suspended = suspended_bytes(&treering, size, written, suspended_for)? / 1e3;
    let suspended =
        one(format!("{written} suspended after writing a page"), "KB stored", suspended);
    treering.ok(&["start", "main"]);
    reports.extend(storm(&treering, "r", branches, &format!("{label}, parent running"))?);
    let mut peak = Spread::default();
    peak.push(peak_bytes(treering.service("pageserver"))? / f64::from(1 << 20));
    let limit = EngineOptions::default().memory_bytes_max();
    reports.extend([
        Report { bar: Some(Bar::AtMost(IDLE_KB)), ..idle },
        Report { bar: Some(Bar::AtMost(SUSPENDED_KB)), ..suspended },
        memory_report("branch-storm", format!("{label}, pageserver"), &peak, limit),
    ]);
    Ok(reports)
}

fn one(size: String, unit: &'static str, value: f64) -> Report {
    let mut spread = Spread::default();
    spread.push(value);
    Report::figure("branch-storm", size, unit, &spread)
}

/// Branches of `main` with this prefix to their names: how many a second, and how long each took.
fn storm(
    treering: &Treering,
    prefix: &str,
    branches: u32,
    label: &str,
) -> anyhow::Result<Vec<Report>> {
    let url = format!("{}/v1/projects/default/branches", treering.address("control_http"));
    let (next, latencies) = (AtomicU32::new(0), Mutex::new(histogram()));
    let phases = Mutex::new(BTreeMap::<String, f64>::new());
    let client = || -> anyhow::Result<()> {
        let http = reqwest::blocking::Client::new();
        loop {
            let n = next.fetch_add(1, Ordering::Relaxed);
            if n >= branches {
                return Ok(());
            }
            let began = Instant::now();
            let answer = http.post(&url).json(&json!({"name": format!("{prefix}{n}")})).send()?;
            ensure!(answer.status().is_success(), "{}", answer.text()?);
            latencies.lock().record(began.elapsed().as_nanos() as u64)?;
            let created: Created = answer.json()?;
            let mut phases = phases.lock();
            for phase in created.phases {
                *phases.entry(phase.name).or_default() += phase.ms;
            }
        }
    };
    let began = Instant::now();
    scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(client)).collect();
        clients.into_iter().try_for_each(|client| {
            client.join().map_err(|_| anyhow::anyhow!("a client panicked"))?
        })
    })?;
    let took = began.elapsed().as_secs_f64();
    for (phase, ms) in phases.into_inner() {
        eprintln!("  {label}: {:.1} ms of each creation in \"{phase}\"", ms / f64::from(branches));
    }
    let speed = one(label.to_owned(), "branches/s", f64::from(branches) / took);
    let latencies = latencies.into_inner();
    Ok(vec![
        Report { bar: Some(Bar::AtLeast(BRANCHES_PER_SECOND)), ..speed },
        Report::latency("branch-storm", label.to_owned(), "ms", 1e6, &latencies),
    ])
}

/// What control answers, as far as it is looked at.
#[derive(Deserialize)]
struct Created {
    phases: Vec<Phase>,
}

#[derive(Deserialize)]
struct Phase {
    name: String,
    ms: f64,
}

/// Bytes on disk for each branch that ran, wrote a page and was stopped.
fn suspended_bytes(
    treering: &Treering,
    size: Size,
    count: u32,
    wait: Duration,
) -> anyhow::Result<f64> {
    let before = settled_bytes(treering, size)?;
    for n in 0..count {
        let name = format!("s{n}");
        treering.sql(&name, "UPDATE pgbench_branches SET bbalance = bbalance + 1 WHERE bid = 1");
        treering.ok(&["stop", &name]);
    }
    sleep(wait);
    Ok(disk_bytes(&treering.data_dir())?.saturating_sub(before) as f64 / f64::from(count))
}

/// Bytes on disk once they have not changed for longer than open layers wait for their flush, and logs for their trimming after it.
fn settled_bytes(treering: &Treering, size: Size) -> anyhow::Result<u64> {
    let quiet = Duration::from_secs(if size == Size::Full { 70 } else { 2 });
    let deadline = Instant::now() + 5 * quiet;
    let (mut last, mut since) = (disk_bytes(&treering.data_dir())?, Instant::now());
    while since.elapsed() < quiet && Instant::now() < deadline {
        sleep(Duration::from_secs(1));
        let now = disk_bytes(&treering.data_dir())?;
        if now != last {
            (last, since) = (now, Instant::now());
        }
    }
    Ok(last)
}

/// The most memory that a process had, in bytes.
fn peak_bytes(pid: i32) -> anyhow::Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    let kib: f64 = line.split_whitespace().next().context("no number")?.parse()?;
    Ok(kib * 1024.0)
}
