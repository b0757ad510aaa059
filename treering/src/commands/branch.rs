//! `branch create|list|get|delete`, `start`, `stop`.

use std::io::{IsTerminal, Write};

use anyhow::bail;
use jiff::Timestamp;
use reqwest::Method;
use serde_json::Value;
use treering_control::{
    branches::CreateBranch,
    error::ApiError,
    model::{BranchView, Created},
};

use crate::{
    cli::{BranchCommand, Place},
    output::table,
};

pub fn run(place: &Place, command: BranchCommand) -> anyhow::Result<()> {
    match command {
        BranchCommand::Create { name, from, at, if_not_exists, show } => {
            let request = CreateBranch { name, source_branch: from, at, if_not_exists };
            let created: Created =
                place.client()?.call(Method::POST, "/branches", Some(&request))?;
            for relation in &created.unreadable_relations {
                let relation = unreadable(relation);
                eprintln!("treering: warning: this version cannot read {relation}");
            }
            show.output.show(&created, created_text)
        }
        BranchCommand::List { show } => {
            let branches: Vec<BranchView> = place.client()?.get("/branches")?;
            show.output.show(&branches, |branches| branch_table(branches))
        }
        BranchCommand::Get { name, show } => {
            let branch: BranchView =
                place.client()?.get(&format!("/branches/{}", segment(&name)?))?;
            show.output.show(&branch, detail)
        }
        BranchCommand::Archive { name } => act(place, &name, "archive"),
        BranchCommand::Unarchive { name } => act(place, &name, "unarchive"),
        BranchCommand::Delete { name, yes, if_exists } => delete(place, &name, yes, if_exists),
    }
}

pub fn start(place: &Place, branch: &str) -> anyhow::Result<()> {
    act(place, branch, "start")
}

pub fn stop(place: &Place, branch: &str) -> anyhow::Result<()> {
    act(place, branch, "stop")
}

fn act(place: &Place, branch: &str, action: &str) -> anyhow::Result<()> {
    let view: BranchView =
        place.client()?.post(&format!("/branches/{}/{action}", segment(branch)?))?;
    eprintln!("branch {} is {}", view.name, view.state);
    Ok(())
}

fn delete(place: &Place, name: &str, yes: bool, if_exists: bool) -> anyhow::Result<()> {
    let path = format!("/branches/{}", segment(name)?);
    let client = place.client()?;
    if !yes {
        let _exists: Option<BranchView> = match client.get(&path) {
            Err(error) if if_exists && is_not_found(&error) => return Ok(()),
            other => Some(other?),
        };
        confirm(name)?;
    }
    match client.call::<Value>(Method::DELETE, &path, None::<&()>) {
        Err(error) if if_exists && is_not_found(&error) => Ok(()),
        other => other.map(|_| eprintln!("branch {name} is deleted")),
    }
}

fn confirm(name: &str) -> anyhow::Result<()> {
    if !std::io::stdin().is_terminal() {
        return Err(ApiError::refused(format!("deleting branch \"{name}\" cannot be undone"))
            .hint("add --yes to do it without being asked")
            .into());
    }
    eprint!("Delete branch \"{name}\" and everything only it holds? [y/N] ");
    std::io::stderr().flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    if !matches!(answer.trim(), "y" | "Y" | "yes") {
        bail!("not deleted");
    }
    Ok(())
}

fn is_not_found(error: &anyhow::Error) -> bool {
    error.downcast_ref::<ApiError>().is_some_and(|e| e.code == "not_found")
}

/// A relation as the pageserver names it, with the record that made it unreadable.
pub fn unreadable(found: &Value) -> String {
    let text = |name: &str| found[name].as_str().unwrap_or("?");
    let info = found["info"].as_u64().unwrap_or_default();
    let (relation, rmgr, lsn) = (text("relation"), text("resource_manager"), text("last_lsn"));
    format!("relation {relation} (resource manager {rmgr}, info {info:#04x}, at {lsn})")
}

/// A branch name as part of a path: what cannot be a name is said to be none before anything is asked.
pub fn segment(name: &str) -> Result<&str, ApiError> {
    treering_control::model::check_branch_name(name)?;
    Ok(name)
}

fn branch_table(branches: &[BranchView]) -> String {
    table(
        &["NAME", "STATE", "PARENT", "LSN", "CREATED"],
        branches.iter().map(|b| {
            let name = if b.is_default { format!("{} *", b.name) } else { b.name.clone() };
            let parent = b.parent.clone().unwrap_or_else(|| "-".to_owned());
            vec![name, b.state.clone(), parent, b.branch_lsn.to_string(), short(b.created_at)]
        }),
    )
}

/// A time to the second.
fn short(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn detail(b: &BranchView) -> String {
    let mut lines = vec![
        format!("name      {}{}", b.name, if b.is_default { " (default)" } else { "" }),
        format!("state     {}", b.state),
        format!("parent    {}", b.parent.as_deref().unwrap_or("-")),
        format!("lsn       {}", b.branch_lsn),
        format!("created   {}", b.created_at),
        format!("timeline  {}", b.timeline_id),
    ];
    lines.extend(b.pid.map(|pid| format!("pid       {pid}")));
    lines.extend(b.reason.as_ref().map(|reason| format!("reason    {reason}")));
    lines.join("\n")
}

fn created_text(created: &Created) -> String {
    let b = &created.branch;
    let parent = b.parent.as_deref().unwrap_or("-");
    let total: f64 = created.phases.iter().map(|p| p.ms).sum();
    let when =
        created.requested_time.map(|t| format!(", the last moment before {t}")).unwrap_or_default();
    format!("branch {} of {parent} at {}{when} ({total:.1} ms)", b.name, b.branch_lsn)
}
