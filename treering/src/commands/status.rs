//! `status`: one screen.

use std::{collections::BTreeMap, thread, time::Duration};

use bytesize::ByteSize;
use serde::Serialize;
use serde_json::Value;
use treering_control::model::{BranchView, SafekeeperView};
use treering_types::TimelineId;

use crate::{
    cli::Place,
    data_dir::Running,
    output::{Format, table},
};

/// How long a service may take to say that it is there.
const READY_LIMIT: Duration = Duration::from_secs(2);

#[derive(Serialize)]
struct Status {
    #[serde(flatten)]
    running: Running,
    services: Vec<Service>,
    branches: Vec<BranchView>,
    /// As control sees them: with their copies of all logs.
    quorum: Vec<SafekeeperView>,
}

#[derive(Serialize)]
struct Service {
    name: String,
    state: String,
    address: String,
}

pub fn run(place: &Place, output: Format) -> anyhow::Result<()> {
    let running = place.running()?;
    // Side by side: one that hangs costs its limit once.
    let asked = running.clone();
    let services = thread::spawn(move || services(&asked));
    let quorum = fetch(&format!("{}/v1/safekeepers", running.control_http))?;
    let quorum = serde_json::from_value(quorum)?;
    let branches = place.client()?.get("/branches")?;
    let services = services.join().map_err(|_| anyhow::anyhow!("a service cannot be asked"))??;
    output.show(&Status { running, services, branches, quorum }, text)
}

fn text(status: &Status) -> String {
    let services =
        status.services.iter().map(|s| vec![s.name.clone(), s.state.clone(), s.address.clone()]);
    let branches = status.branches.iter().map(|b| {
        let reason = b.reason.clone().unwrap_or_default();
        vec![b.name.clone(), b.state.clone(), b.branch_lsn.to_string(), reason]
    });
    let quorum = status.quorum.iter().map(|s| {
        let free = s.free_bytes.map_or_else(|| "-".to_owned(), |free| ByteSize(free).to_string());
        let reason = s.reason.clone().unwrap_or_default();
        vec![s.node_id.to_string(), s.state.clone(), free, s.logs.len().to_string(), reason]
    });
    let logs = ["LOG OF", "SAFEKEEPER", "TERM", "FLUSHED", "COMMITTED", "LAG", ""];
    format!(
        "clients connect to {}\n\n{}\n\n{}\n\n{}\n\n{}",
        status.running.client_address,
        table(&["SERVICE", "STATE", "ADDRESS"], services),
        table(&["BRANCH", "STATE", "LSN", ""], branches),
        table(&["SAFEKEEPER", "STATE", "DISK FREE", "LOGS", ""], quorum),
        table(&logs, log_rows(status)),
    )
}

/// The copies of the logs that somebody may look for: of branches that run, and of those where copies differ. All of
/// them are in the JSON.
fn log_rows(status: &Status) -> Vec<Vec<String>> {
    let mut copies: BTreeMap<TimelineId, Vec<_>> = BTreeMap::new();
    for safekeeper in &status.quorum {
        for log in &safekeeper.logs {
            copies.entry(log.timeline_id).or_default().push((safekeeper.node_id, log));
        }
    }
    let mut rows = Vec::new();
    for branch in &status.branches {
        let Some(copies) = copies.get(&branch.timeline_id) else { continue };
        let is_even = copies.iter().all(|(_, log)| log.lag_bytes == 0 && log.latched.is_none());
        if is_even && branch.state != "running" {
            continue;
        }
        for (node_id, log) in copies {
            rows.push(vec![
                branch.name.clone(),
                node_id.to_string(),
                log.term.to_string(),
                log.flush_lsn.to_string(),
                log.commit_lsn.to_string(),
                ByteSize(log.lag_bytes).to_string(),
                log.latched.clone().unwrap_or_default(),
            ]);
        }
    }
    rows
}

fn services(running: &Running) -> anyhow::Result<Vec<Service>> {
    let http = reqwest::blocking::Client::builder().timeout(READY_LIMIT).build()?;
    let state = |url: &str| match http.get(format!("{url}/readyz")).send() {
        Ok(answer) if answer.status().is_success() => "ready".to_owned(),
        Ok(answer) => format!("not ready ({})", answer.status()),
        Err(_) => "does not answer".to_owned(),
    };
    let shown =
        |(name, url): (String, &str)| Service { name, state: state(url), address: url.to_owned() };
    Ok(running.services().into_iter().map(shown).collect())
}

/// Asks one service for a JSON object.
pub fn fetch(url: &str) -> anyhow::Result<Value> {
    Ok(reqwest::blocking::get(url)?.error_for_status()?.json()?)
}
