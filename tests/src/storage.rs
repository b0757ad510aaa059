//! The pageserver's admin API and the disk below it, as an operator uses them.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use reqwest::StatusCode;
use serde_json::{Value, json};
use treering_types::Lsn;

use crate::{Treering, wait_for};

/// What `du` says of a directory, in bytes.
pub fn du(path: &Path) -> u64 {
    let output = Command::new("du").args(["-s", "-B1"]).arg(path).stderr(Stdio::null()).output();
    let text = String::from_utf8(output.expect("du").stdout).expect("text");
    text.split_whitespace().next().and_then(|bytes| bytes.parse().ok()).expect("a number")
}

/// The engine's files.
pub fn tenants(treering: &Treering) -> PathBuf {
    treering.data_dir().join("pageserver/tenants")
}

/// The path of the admin API for a branch's timeline.
pub fn timeline_path(treering: &Treering, branch: &str) -> String {
    let view = treering.json(&["branch", "get", branch]);
    let id = |name: &str| view[name].as_str().expect("an id").to_owned();
    format!("/v1/tenant/{}/timeline/{}", id("tenant_id"), id("timeline_id"))
}

fn url(treering: &Treering, path: &str) -> String {
    format!("{}{path}", treering.address("pageserver_http"))
}

/// A request to the pageserver, which must succeed. Waits as long as that takes.
pub fn post(treering: &Treering, path: &str, body: &Value) {
    let url = url(treering, path);
    let client = reqwest::blocking::Client::builder().timeout(None).build().expect("a client");
    let answer = client.post(&url).json(body).send().expect("an answer");
    let status = answer.status();
    assert!(status.is_success(), "{url}: {status} {}", answer.text().unwrap_or_default());
}

/// Waits until all that is committed on a branch is ingested, by the word of a safekeeper: what the pageserver has not heard
/// of it does not miss. A branch that never ran has no log.
pub fn ingested(treering: &Treering, branch: &str) {
    let path = timeline_path(treering, branch);
    let log = format!("{}{path}", treering.address("safekeeper_http"));
    let lsn = |view: &Value, name: &str| view[name].as_str()?.parse::<Lsn>().ok();
    wait_for("ingest", Duration::from_secs(600), || {
        let written = reqwest::blocking::get(&log).ok()?;
        let written: Value = match written.status() {
            StatusCode::NOT_FOUND | StatusCode::GONE => Value::Null,
            _ => written.json().ok()?,
        };
        let view: Value = reqwest::blocking::get(url(treering, &path)).ok()?.json().ok()?;
        let ingested = lsn(&view, "last_record_lsn")?;
        if written.is_null() {
            return Some(());
        }
        let (flushed, committed) = (lsn(&written, "flush_lsn")?, lsn(&written, "commit_lsn")?);
        (flushed == committed && ingested >= committed).then_some(())
    });
}

/// All that is committed on a branch is in layers, gc has been there, and what was due is merged.
pub fn settle(treering: &Treering, branch: &str) {
    ingested(treering, branch);
    let path = timeline_path(treering, branch);
    post(treering, &format!("{path}/flush"), &json!({}));
    post(treering, &format!("{path}/gc"), &json!({}));
}

/// Everything of a branch into one run.
pub fn merge_all(treering: &Treering, branch: &str) {
    post(
        treering,
        &format!("{}/compact", timeline_path(treering, branch)),
        &json!({"force": true}),
    );
}
