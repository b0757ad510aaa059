//! Three safekeepers, as an operator and a fault see them.

use std::{fs::File, time::Duration};

use serde_json::Value;
use treering_types::Lsn;

use crate::{Treering, processes, storage, wait_for};

/// Longest wait until a safekeeper that is back has all that is committed.
const CATCH_UP_LIMIT: Duration = Duration::from_secs(60);
/// Log compared at once.
const PIECE_BYTES: u64 = 8 << 20;

/// What `treering up` is told.
pub const THREE: [&str; 2] = ["--safekeepers", "3"];

/// A safekeeper that is dead, and cannot be started before this is dropped.
pub struct HeldDown {
    _lock: File,
}

/// Kills a safekeeper and keeps it dead: its directory is in use.
pub fn hold_down(treering: &Treering, id: u64) -> HeldDown {
    let path = treering.data_dir().join(format!("safekeeper-{id}/lock"));
    let lock = File::options().write(true).open(path).expect("the safekeeper's lock");
    wait_for("the lock of a dead safekeeper", Duration::from_secs(30), || {
        if let Some(pid) = safekeeper(treering, id) {
            processes::kill(pid);
        }
        lock.try_lock().ok()
    });
    HeldDown { _lock: lock }
}

/// The process of a safekeeper, if there is one.
pub fn safekeeper(treering: &Treering, id: u64) -> Option<i32> {
    processes::safekeeper(treering.pid(), id)
}

/// What `treering status` says of a safekeeper.
pub fn shown(treering: &Treering, id: u64) -> Value {
    let status = treering.json(&["status"]);
    let all = status["quorum"].as_array().expect("safekeepers").clone();
    all.into_iter().find(|view| view["node_id"] == id).expect("the safekeeper")
}

/// The safekeepers as control sees them now.
fn views(treering: &Treering) -> Vec<Value> {
    let url = format!("{}/v1/safekeepers", treering.address("control_http"));
    let answer = reqwest::blocking::get(&url).expect("an answer");
    answer.json().expect("safekeepers")
}

fn timeline_of(treering: &Treering, branch: &str) -> Value {
    treering.json(&["branch", "get", branch])["timeline_id"].clone()
}

/// The three copies of a timeline's log, by safekeeper; without those that are not there.
fn copies(treering: &Treering, timeline: &Value) -> Vec<Value> {
    let views = views(treering);
    let logs = views.iter().flat_map(|view| view["logs"].as_array().expect("logs"));
    logs.filter(|log| log["timeline_id"] == *timeline).cloned().collect()
}

/// Where the copies of a branch's log begin.
pub fn trim_lsns(treering: &Treering, branch: &str) -> Vec<Lsn> {
    let timeline = timeline_of(treering, branch);
    copies(treering, &timeline).iter().map(|copy| lsn(&copy["trim_lsn"])).collect()
}

pub fn lsn(value: &Value) -> Lsn {
    value.as_str().expect("an LSN").parse().expect("an LSN")
}

/// Waits until all three have all of a branch's log that is committed now, which is answered.
pub fn caught_up(treering: &Treering, branch: &str) -> Lsn {
    let timeline = timeline_of(treering, branch);
    let written = treering.sql(branch, "SELECT pg_current_wal_flush_lsn()");
    let written: Lsn = written.parse().expect("an LSN");
    wait_for("all three to have the log", CATCH_UP_LIMIT, || {
        let copies = copies(treering, &timeline);
        let has_all = |copy: &Value| lsn(&copy["commit_lsn"]) >= written;
        (copies.len() == 3 && copies.iter().all(has_all)).then_some(())
    });
    written
}

/// The three copies of a branch's log are one, byte for byte, as far as all of them know it to be committed.
pub fn logs_agree(treering: &Treering, branch: &str) {
    let copies = copies(treering, &timeline_of(treering, branch));
    assert_eq!(copies.len(), 3, "{copies:?}");
    let end = copies.iter().map(|copy| lsn(&copy["commit_lsn"])).min().expect("three");
    let mut at = copies.iter().map(|copy| lsn(&copy["trim_lsn"])).max().expect("three");
    let path = storage::timeline_path(treering, branch);
    let members = treering.running["safekeepers"].as_array().expect("safekeepers");
    while at < end {
        let to = end.min(Lsn(at.0 + PIECE_BYTES));
        let pieces: Vec<_> = members
            .iter()
            .map(|member| {
                let base = member["http"].as_str().expect("an address");
                let url = format!("{base}{path}/wal?from={at}&to={to}&committed=true");
                let answer = reqwest::blocking::get(&url).expect("an answer");
                assert!(answer.status().is_success(), "{url}: {}", answer.status());
                answer.bytes().expect("bytes")
            })
            .collect();
        assert_eq!(pieces[0].len() as u64, to.0 - at.0);
        assert!(pieces.iter().all(|piece| *piece == pieces[0]), "the logs part in {at}..{to}");
        at = to;
    }
}
