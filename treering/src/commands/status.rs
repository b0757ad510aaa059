//! `status`: one screen.

use serde::Serialize;
use serde_json::Value;
use treering_control::model::BranchView;

use crate::{
    cli::Place,
    data_dir::Running,
    output::{Format, table},
};

#[derive(Serialize)]
struct Status {
    #[serde(flatten)]
    running: Running,
    services: Vec<Service>,
    branches: Vec<BranchView>,
}

#[derive(Serialize)]
struct Service {
    name: &'static str,
    state: String,
    address: String,
}

pub fn run(place: &Place, output: Format) -> anyhow::Result<()> {
    let running = place.running()?;
    let services = services(&running)?;
    let branches = place.client()?.get("/branches")?;
    let status = Status { running, services, branches };
    output.show(&status, |status| {
        let services =
            status.services.iter().map(|s| vec![s.name.into(), s.state.clone(), s.address.clone()]);
        let branches = status.branches.iter().map(|b| {
            let reason = b.reason.clone().unwrap_or_default();
            vec![b.name.clone(), b.state.clone(), b.branch_lsn.to_string(), reason]
        });
        format!(
            "clients connect to {}\n\n{}\n\n{}",
            status.running.client_address,
            table(&["SERVICE", "STATE", "ADDRESS"], services),
            table(&["BRANCH", "STATE", "LSN", ""], branches),
        )
    })
}

fn services(running: &Running) -> anyhow::Result<Vec<Service>> {
    let http =
        reqwest::blocking::Client::builder().timeout(std::time::Duration::from_secs(2)).build()?;
    let all = [
        ("control", &running.control_http),
        ("pageserver", &running.pageserver_http),
        ("safekeeper", &running.safekeeper_http),
        ("agent", &running.agent_http),
    ];
    let state = |url: &str| match http.get(format!("{url}/readyz")).send() {
        Ok(answer) if answer.status().is_success() => "ready".to_owned(),
        Ok(answer) => format!("not ready ({})", answer.status()),
        Err(_) => "does not answer".to_owned(),
    };
    Ok(all.map(|(name, url)| Service { name, state: state(url), address: url.clone() }).into())
}

/// Asks one service for a JSON object.
pub fn fetch(url: &str) -> anyhow::Result<Value> {
    Ok(reqwest::blocking::get(url)?.error_for_status()?.json()?)
}
