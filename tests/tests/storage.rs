//! `storage scrub|inspect|size` on real data: what they say is so, beside a running Treering and on a stopped directory, and
//! they leave no trace.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::{Value, json};
use treering_tests::{
    Treering,
    storage::{self, du, merge_all, post, timeline_path},
    wait_for,
};

fn bytes(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} is no number of bytes"))
}

fn branch<'v>(size: &'v Value, name: &str) -> &'v Value {
    let branches = size["branches"].as_array().expect("branches");
    branches.iter().find(|branch| branch["name"] == name).unwrap_or_else(|| panic!("{size}"))
}

/// Within one per cent of the second.
fn assert_near(what: &str, said: u64, is: u64) {
    assert!(said.abs_diff(is) <= is / 100, "{what}: {said} was said, {is} it is");
}

/// All that is committed is in layers, history has left the window, and nothing is left to merge.
fn settle(treering: &Treering, branches: &[&str]) {
    for branch in branches {
        storage::settle(treering, branch);
        storage::merge_all(treering, branch);
    }
}

/// Every file below a directory, with what would show that somebody wrote to it.
fn snapshot(directory: &Path) -> BTreeMap<PathBuf, (u64, i64, i64)> {
    let mut found = BTreeMap::new();
    let mut open = vec![directory.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(&directory).expect("list") {
            let entry = entry.expect("an entry");
            let meta = entry.metadata().expect("metadata");
            found.insert(entry.path(), (meta.len(), meta.mtime(), meta.mtime_nsec()));
            if meta.is_dir() {
                open.push(entry.path());
            }
        }
    }
    found
}

fn start() -> Treering {
    // Without an object store, whose directory would be among the files that are weighed.
    let options = ["--pitr-window", "1s", "--lsn-lease-length", "1s", "--object-store", "none"];
    let treering = Treering::start_with(&options);
    // More than 64 MiB of log, which are kept whatever the window, before a branch is old.
    treering.run("pgbench", "main", &["-i", "-q", "-s", "3"]);
    let branch = |name: &str| {
        storage::ingested(&treering, "main");
        treering.ok(&["branch", "create", name]);
    };
    branch("old");
    treering.sql("main", "UPDATE pgbench_accounts SET filler = md5(aid::text || 'first')");
    branch("older-twin");
    // At the same LSN: nobody writes.
    let at = treering.json(&["branch", "get", "older-twin"])["branch_lsn"].to_string();
    treering.ok(&["branch", "create", "twin", "--at", at.trim_matches('"')]);
    treering.sql("main", "UPDATE pgbench_accounts SET filler = md5(aid::text || 'second')");
    treering.sql("main", "VACUUM FULL pgbench_accounts");
    treering.sql("main", "UPDATE pgbench_accounts SET filler = md5(aid::text || 'third')");
    branch("young");
    treering.sql("old", "UPDATE pgbench_accounts SET bid = bid WHERE aid % 7 = 0");
    treering
        .sql("young", "CREATE TABLE own AS SELECT md5(n::text) FROM generate_series(1, 20000) n");
    for branch in ["old", "young", "main"] {
        treering.ok(&["stop", branch]);
    }
    settle(&treering, &["old", "young", "main"]);
    treering
}

#[test]
fn sizes_are_what_du_says_and_what_a_deletion_frees() {
    let mut treering = start();
    let data = treering.data_dir();
    let size = treering.json(&["storage", "size"]);
    assert_near("the whole", bytes(&size["disk_bytes"]), du(&data));
    let parts = ["pages_bytes", "log_bytes", "compute_bytes", "other_bytes"];
    let sum: u64 = parts.iter().map(|part| bytes(&size[part])).sum();
    assert_eq!(sum, bytes(&size["disk_bytes"]));
    let tenant = size["tenant_id"].as_str().expect("an id");
    let pages = du(&data.join("pageserver/tenants").join(tenant));
    assert_near("pages", bytes(&size["pages_bytes"]), pages);
    let main = branch(&size, "main");
    assert_eq!(main["freed_if_deleted_bytes"], Value::Null);
    let (own, history) = (bytes(&main["pages_bytes"]), &main["history"]);
    let used =
        bytes(&main["live_bytes"]) + bytes(&history["bytes"]) + bytes(&main["garbage_bytes"]);
    assert_near("main's parts", used, own);
    assert!(bytes(&history["pinned_bytes"]) > 1 << 20, "nothing is pinned: {size}");

    // The twins see the same: neither alone pins it, the last of them does.
    let pinned = |size: &Value, name: &str| bytes(&branch(size, name)["freed_by_merges_bytes"]);
    assert!(pinned(&size, "old") > 1 << 20, "{size}");
    assert_eq!((pinned(&size, "young"), pinned(&size, "twin")), (0, 0), "{size}");
    assert!(bytes(&history["pinned_together_bytes"]) > 1 << 20, "{size}");
    assert!(bytes(&branch(&size, "young")["shared_bytes"]) > 1 << 20, "{size}");

    // The same from the files alone.
    treering.interrupt();
    let stopped = treering.json(&["storage", "size"]);
    for name in ["main", "old", "young", "twin", "older-twin"] {
        for part in ["pages_bytes", "live_bytes", "history", "freed_by_merges_bytes"] {
            assert_eq!(branch(&stopped, name)[part], branch(&size, name)[part], "{name} {part}");
        }
    }
    // A restart after gc once left every page of the branch unreadable: whether pages carry checksums was asked at the LSN at which
    // the branch begins, which gc had given up.
    treering.start_again();
    treering.ok(&["stop", "main"]);
    settle(&treering, &["main"]);

    for name in ["old", "twin", "older-twin", "young"] {
        let size = treering.json(&["storage", "size"]);
        let foretold = bytes(&branch(&size, name)["freed_if_deleted_bytes"]);
        // Without the store of names, a database of its own that grows and shrinks by a megabyte.
        let on_disk = || ["pageserver", "safekeeper", "agent"].map(|part| du(&data.join(part)));
        let before = on_disk();
        treering.ok(&["branch", "delete", name, "--yes"]);
        settle(&treering, &["main"]);
        let after = on_disk();
        let sum = |parts: &[u64]| parts.iter().sum::<u64>();
        let freed = sum(&before).cast_signed() - sum(&after).cast_signed();
        // A deleted branch leaves a mark with the safekeeper.
        let tolerance = (freed / 100).max(16 << 10).cast_unsigned();
        assert!(
            freed.abs_diff(foretold.cast_signed()) <= tolerance,
            "{name}: {foretold} foretold, {freed} freed; {before:?} became {after:?}: {size:#}"
        );
    }
    let refused = treering.cli(&["storage", "size", "nobody"]);
    assert_eq!(refused.status.code(), Some(3));
}

/// Objects in the data directory are further names of layer files: they are counted once, and belong to their branch.
#[test]
fn a_layer_and_its_object_count_once() {
    let treering = Treering::start();
    treering.run("pgbench", "main", &["-i", "-q", "-s", "2"]);
    treering.ok(&["stop", "main"]);
    settle(&treering, &["main"]);
    let data = treering.data_dir();
    let linked = || {
        let files = snapshot(&data.join("objects"));
        files
            .keys()
            .any(|path| fs::metadata(path).is_ok_and(|file| file.is_file() && file.nlink() > 1))
    };
    wait_for("a layer in the store", Duration::from_secs(60), || linked().then_some(()));
    let size = treering.json(&["storage", "size"]);
    assert_near("the whole", bytes(&size["disk_bytes"]), du(&data));
    let tenant = size["tenant_id"].as_str().expect("an id");
    let pages = du(&data.join("pageserver/tenants").join(tenant));
    let said = bytes(&size["pages_bytes"]);
    assert!(
        said >= pages - pages / 100 && said < pages + pages / 4,
        "{said} said, {pages}: {size}"
    );
}

#[test]
fn a_scrub_names_what_is_damaged_and_whom_it_harms() {
    let mut treering = start();
    let data = treering.data_dir();
    let scrubbed = treering.json(&["storage", "scrub"]);
    assert_eq!((&scrubbed["clean"], &scrubbed["leftovers"]), (&json!(true), &Value::Null));
    assert_eq!(scrubbed["branches"], 5);
    // Beside merges, flushes and a writer it finds nothing either.
    treering.ok(&["start", "main"]);
    let mut pgbench = treering.program("pgbench", "main");
    let mut pgbench = pgbench.args(["-n", "-c", "2", "-T", "600"]).spawn().expect("pgbench");
    let path = timeline_path(&treering, "main");
    for _ in 0..5 {
        post(&treering, &format!("{path}/flush"), &json!({}));
        merge_all(&treering, "main");
        assert_eq!(treering.json(&["storage", "scrub"])["clean"], true);
    }
    let _ = pgbench.kill();
    let _ = pgbench.wait();
    treering.interrupt();

    let before = snapshot(&data);
    let clean = treering.json(&["storage", "scrub"]);
    assert_eq!((&clean["clean"], &clean["leftovers"]), (&json!(true), &json!([])), "{clean}");
    let layers: Vec<&PathBuf> =
        before.keys().filter(|path| path.extension().is_some_and(|e| e == "layer")).collect();
    assert_eq!(clean["layers"], layers.len());
    for layer in &layers {
        let report = treering.json(&["storage", "inspect", &layer.display().to_string()]);
        assert_eq!(report["damage"], json!([]));
        assert_eq!(report["values"], report["footer"]["entries"]);
    }
    treering.json(&["storage", "size"]);
    assert_eq!(snapshot(&data), before, "something was written");

    // A flipped bit in main's largest layer: old branches go through it, at their LSNs.
    let main = &clean_timeline(&treering, "main");
    let own = |path: &&&PathBuf| path.display().to_string().contains(main.as_str());
    let layer = layers.iter().filter(own).max_by_key(|path| before[**path].0).expect("a layer");
    let pristine = fs::read(layer).expect("read");
    let mut damaged = pristine.clone();
    damaged[pristine.len() / 2] ^= 1;
    fs::write(layer, &damaged).expect("write");
    let damage = found(&treering, 1);
    assert_eq!(damage[0]["branch"], "main");
    assert_eq!(damage[0]["path"], layer.display().to_string());
    for name in ["main", "old", "young"] {
        let harmed = damage[0]["harmed"].as_array().expect("names");
        assert!(harmed.contains(&json!(name)), "{damage:?}");
    }
    let inspected = treering.cli(&["storage", "inspect", &layer.display().to_string()]);
    assert_eq!(inspected.status.code(), Some(1));
    let text = String::from_utf8_lossy(&inspected.stdout);
    assert!(text.contains("checksum mismatch") && text.contains("sha-256"), "{text}");
    // Cut in half: no footer, no index, and yet its blocks.
    fs::write(layer, &pristine[..pristine.len() / 2]).expect("write");
    let cut = treering.cli(&["storage", "inspect", "--json", &layer.display().to_string()]);
    let report: Value = serde_json::from_slice(&cut.stdout).expect("JSON");
    assert!(report["values"].as_u64() > Some(100), "{report}");
    found(&treering, 1);
    fs::remove_file(layer).expect("remove");
    let missing = found(&treering, 1);
    assert!(missing[0]["error"].as_str().is_some_and(|error| error.contains("missing")));
    fs::write(layer, &pristine).expect("write");

    // What no manifest names is left over, and no damage.
    let orphan = layer.with_file_name("00000000000000ff.layer");
    fs::write(&orphan, b"anything").expect("write");
    let left = treering.json(&["storage", "scrub"]);
    assert_eq!(left["clean"], true);
    assert_eq!(left["leftovers"][0]["path"], orphan.display().to_string());

    // A manifest: named too, and the branch it is about.
    let manifest = layer.with_file_name("manifest");
    let pristine = fs::read(&manifest).expect("read");
    fs::write(&manifest, &pristine[..pristine.len() - 1]).expect("write");
    let damage = found(&treering, 1);
    assert_eq!(damage[0]["path"], manifest.display().to_string());
    assert!(damage[0]["consequence"].as_str().is_some_and(|what| what.contains("does not start")));
    fs::write(&manifest, &pristine).expect("write");
    treering.start_again();
    assert!(!orphan.exists(), "the orphan was left");
    treering.ok(&["start", "old"]);
    assert_eq!(treering.sql("old", "SELECT count(*) FROM pgbench_accounts"), "300000");
}

/// The timeline of a branch, while nothing runs.
fn clean_timeline(treering: &Treering, name: &str) -> String {
    let size = treering.json(&["storage", "size"]);
    branch(&size, name)["timeline_id"].as_str().expect("an id").to_owned()
}

/// What a scrub that must fail has found.
fn found(treering: &Treering, count: usize) -> Vec<Value> {
    let output = treering.cli(&["storage", "scrub", "-o", "json"]);
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(report["clean"], false);
    let damage = report["damage"].as_array().expect("a list").clone();
    assert_eq!(damage.len(), count, "{report}");
    // The table says it too.
    let text = String::from_utf8_lossy(&treering.cli(&["storage", "scrub"]).stdout).into_owned();
    assert!(text.contains("damaged  branch main: "), "{text}");
    damage
}
