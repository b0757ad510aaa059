//! `doctor`: prerequisites, services, and what cannot be read.

use std::{path::Path, time::Duration};

use anyhow::bail;
use treering_control::model::BranchView;

use crate::{
    cli::Place,
    commands::{branch::unreadable, status::fetch},
    output::print_line,
};

/// Prints one line per check; fails when one does.
pub fn run(place: &Place, pg_bin_dir: Option<&Path>) -> anyhow::Result<()> {
    let mut failed = 0;
    let mut check = |name: &str, result: anyhow::Result<String>| {
        let (mark, text) = match result {
            Ok(text) => ("ok  ", text),
            Err(error) => {
                failed += 1;
                ("FAIL", format!("{error:#}"))
            }
        };
        print_line(&format!("{mark}  {name}: {text}"))
    };
    check(
        "postgres",
        treering_compute_proxy::find_postgres(pg_bin_dir).map(|p| p.display().to_string()),
    )?;
    check("data directory", free_space(place))?;
    let running = match place.running() {
        Ok(running) => running,
        Err(error) => {
            check("services", Err(error))?;
            bail!("{failed} of the checks failed");
        }
    };
    for (name, url) in running.services() {
        check(&name, ready(url))?;
    }
    match place.client()?.get::<Vec<BranchView>>("/branches") {
        Err(error) => check("branches", Err(error))?,
        Ok(branches) => {
            for branch in branches {
                let name = format!("branch {}", branch.name);
                check(&name, readable(&running.pageserver_http, &branch))?;
            }
        }
    }
    if failed > 0 {
        bail!("{failed} of the checks failed");
    }
    Ok(())
}

/// How long a service may take to say that it is there.
const READY_LIMIT: Duration = Duration::from_secs(5);

fn ready(url: &str) -> anyhow::Result<String> {
    let http = reqwest::blocking::Client::builder().timeout(READY_LIMIT).build()?;
    http.get(format!("{url}/readyz")).send()?.error_for_status()?;
    Ok(format!("ready at {url}"))
}

/// Space below which writes are about to fail.
const FREE_BYTES_MIN: u64 = 512 * 1024 * 1024;

fn free_space(place: &Place) -> anyhow::Result<String> {
    let dir = place.data_dir().0;
    let existing = dir.ancestors().find(|d| d.exists()).unwrap_or(&dir);
    let stat = rustix::fs::statvfs(existing)?;
    let free = stat.f_bavail * stat.f_frsize;
    let text = format!("{}, {} MiB free", dir.display(), free / (1024 * 1024));
    if free < FREE_BYTES_MIN {
        bail!("{text}: less than {} MiB", FREE_BYTES_MIN / (1024 * 1024));
    }
    Ok(text)
}

/// Relations with records this version cannot redo are named.
fn readable(pageserver: &str, branch: &BranchView) -> anyhow::Result<String> {
    if branch.state == "archived" {
        return Ok("archived".to_owned());
    }
    let (tenant, timeline) = (branch.tenant_id, branch.timeline_id);
    let found = fetch(&format!("{pageserver}/v1/tenant/{tenant}/timeline/{timeline}/unhandled"))?;
    match found.as_array() {
        Some(relations) if !relations.is_empty() => {
            let named: Vec<_> = relations.iter().map(unreadable).collect();
            bail!("{} relations cannot be read by this version: {}", named.len(), named.join(", "))
        }
        _ => Ok(format!("{}, every page readable", branch.state)),
    }
}
