//! The log on disk: what a branch that sleeps leaves there, and that it is all there when it wakes up; and a disk that is full.

use std::{
    collections::{BTreeMap, HashSet},
    fs,
    os::unix::fs::MetadataExt,
    path::Path,
    time::Duration,
};

use serde_json::{Value, json};
use treering_tests::{Treering, storage, wait_for};

const LIMIT: Duration = Duration::from_secs(60);
/// What a suspended branch that wrote a page may take, everywhere.
const BYTES_MAX: u64 = 100_000;

fn id(treering: &Treering, branch: &str, name: &str) -> String {
    let view = treering.json(&["branch", "get", branch]);
    view[name].as_str().expect("an id").to_owned()
}

/// Bytes of a file or a directory with all that is in it, as the disk counts them; a file with two names counts once.
fn disk_bytes(path: &Path, seen: &mut HashSet<u64>) -> u64 {
    let Ok(meta) = fs::symlink_metadata(path) else { return 0 };
    let own = if seen.insert(meta.ino()) { meta.blocks() * 512 } else { 0 };
    let below = fs::read_dir(path).into_iter().flatten().flatten();
    own + below.map(|entry| disk_bytes(&entry.path(), seen)).sum::<u64>()
}

/// Everything below the data directory that bears a timeline's id, and what it takes.
fn belongings(at: &Path, timeline: &str, seen: &mut HashSet<u64>) -> BTreeMap<String, u64> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(at).into_iter().flatten().flatten() {
        let path = entry.path();
        match entry.file_name().to_string_lossy().starts_with(timeline) {
            true => {
                found.insert(path.display().to_string(), disk_bytes(&path, seen));
            }
            false if path.is_dir() => found.extend(belongings(&path, timeline, seen)),
            false => {}
        }
    }
    found
}

fn segments(treering: &Treering, tenant: &str, timeline: &str) -> usize {
    let own = treering.data_dir().join("safekeeper").join(tenant).join(timeline);
    let names = fs::read_dir(own).expect("the log's directory").flatten();
    names.filter(|entry| entry.file_name().len() == 24).count()
}

#[test]
fn a_branch_that_sleeps_keeps_no_log_and_wakes_up_with_all_of_it() {
    let mut treering = Treering::start_with(&["--wal-archive-delay", "1s"]);
    treering.run("pgbench", "main", &["-i", "-q", "-s", "2"]);
    treering.ok(&["branch", "create", "dev"]);
    let (tenant, timeline) =
        (id(&treering, "dev", "tenant_id"), id(&treering, "dev", "timeline_id"));
    for round in 1..=3 {
        let query = format!("UPDATE pgbench_branches SET bbalance = {round} WHERE bid = 1");
        treering.sql("dev", &query);
        assert!(segments(&treering, &tenant, &timeline) > 0);
        treering.ok(&["stop", "dev"]);
        storage::settle(&treering, "dev");
        wait_for("no log of its own", LIMIT, || {
            (segments(&treering, &tenant, &timeline) == 0).then_some(())
        });
        let found = belongings(&treering.data_dir(), &timeline, &mut HashSet::new());
        let bytes: u64 = found.values().sum();
        eprintln!("round {round}: {bytes} bytes in {found:#?}");
        assert!(bytes < BYTES_MAX, "{bytes} bytes in {found:#?}");
        if round == 2 {
            treering.kill_everything();
            treering.start_again();
        }
        treering.ok(&["start", "dev"]);
        let balance = treering.sql("dev", "SELECT bbalance FROM pgbench_branches WHERE bid = 1");
        assert_eq!(balance, round.to_string());
    }
    let rest = treering.sql("dev", "SELECT count(*) FROM pgbench_accounts");
    assert_eq!(rest, "200000");
    treering.ok(&["branch", "delete", "dev", "--yes"]);
    // Nothing of it stays but the safekeeper's mark, and folders.
    wait_for("the objects are gone", LIMIT, || {
        let left = belongings(&treering.data_dir().join("objects"), &timeline, &mut HashSet::new());
        let is_folder = |path: &String| {
            Path::new(path).is_dir()
                && fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none())
        };
        left.keys().all(is_folder).then_some(())
    });
}

/// Why the safekeeper refuses log of some timeline, if it does.
fn refusing(treering: &Treering) -> Option<String> {
    let url = format!("{}/v1/timelines", treering.address("safekeeper_http"));
    let timelines: Value = reqwest::blocking::get(url).ok()?.json().ok()?;
    let reason = |timeline: &Value| timeline["refusing"].as_str().map(str::to_owned);
    timelines.as_array()?.iter().find_map(reason)
}

/// A load writes more than the safekeeper may hold: it waits, with a reason, and goes on once the pageserver has made files of it.
#[test]
fn a_log_without_room_waits_and_goes_on_by_itself() {
    let treering =
        Treering::start_with(&["--wal-disk-limit", "48MiB", "--wal-archive-delay", "1s"]);
    let flush = format!("{}/flush", storage::timeline_path(&treering, "main"));
    let load = "CREATE TABLE big AS SELECT g, repeat(md5(g::text), 30) AS t FROM generate_series(1, 100000) g";
    let mut psql = treering.program("psql", "main");
    let mut psql = psql.args(["-X", "-c", load]).spawn().expect("psql");
    let reason = wait_for("a refusal", LIMIT, || refusing(&treering));
    assert!(reason.contains("disk limit"), "{reason}");
    let status = wait_for("the end of the load", 4 * LIMIT, || {
        // The pageserver would do so of its own, after a minute.
        storage::post(&treering, &flush, &json!({}));
        psql.try_wait().expect("psql")
    });
    assert!(status.success(), "{status}");
    assert_eq!(treering.sql("main", "SELECT count(*), sum(length(t)) FROM big"), "100000|96000000");
    assert_eq!(refusing(&treering), None);
}
