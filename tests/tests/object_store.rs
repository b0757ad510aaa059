//! The object store under stock Postgres: a real S3-compatible server, the local cache wiped, the store away and back.

use std::{fs, time::Duration};

use serde_json::Value;
use treering_tests::{Treering, ledger::Ledger, s3::S3, verify, wait_for};

const S3_SERVER: &str = env!("CARGO_BIN_EXE_s3_server");
const LIMIT: Duration = Duration::from_secs(60);

/// The pageserver's path of a branch.
fn timeline(treering: &Treering, branch: &str) -> String {
    let found = treering.json(&["branch", "get", branch]);
    let id = |name: &str| found[name].as_str().expect("an id").to_owned();
    let (tenant, timeline) = (id("tenant_id"), id("timeline_id"));
    format!("{}/v1/tenant/{tenant}/timeline/{timeline}", treering.address("pageserver_http"))
}

fn detail(treering: &Treering, branch: &str) -> Option<Value> {
    reqwest::blocking::get(timeline(treering, branch)).ok()?.json().ok()
}

fn post(url: &str) -> Value {
    let answer = reqwest::blocking::Client::new().post(url).send().expect(url);
    let status = answer.status();
    let text = answer.text().expect("a body");
    assert!(status.is_success(), "{url}: {status} {text}");
    serde_json::from_str(&text).unwrap_or(Value::Null)
}

/// Everything that is committed is in layers, and these in the store.
fn settle(treering: &Treering, branch: &str) {
    let url = timeline(treering, branch);
    let written = treering.sql(branch, "SELECT pg_current_wal_flush_lsn()");
    let written: treering_types::Lsn = written.parse().expect("an LSN");
    wait_for("ingest, flush and upload", LIMIT, || {
        let now = detail(treering, branch)?;
        let lsn = |name: &str| now[name].as_str()?.parse::<treering_types::Lsn>().ok();
        // Postgres may stand a page header past the last record.
        if lsn("last_record_lsn")?.0 + 64 < written.0 {
            return None;
        }
        if lsn("disk_consistent_lsn") != lsn("last_record_lsn") {
            post(&format!("{url}/flush"));
        }
        (lsn("remote_consistent_lsn") == lsn("last_record_lsn")).then_some(())
    });
}

/// The pageserver's own disk is gone, as with a new machine. What the safekeeper has trimmed is in the store, and nowhere else.
fn wipe(treering: &mut Treering) {
    treering.interrupt();
    let pageserver = treering.data_dir().join("pageserver");
    for name in ["tenants", "identity"] {
        let path = pageserver.join(name);
        match path.is_dir() {
            true => fs::remove_dir_all(path).expect("remove"),
            false => fs::remove_file(path).expect("remove"),
        }
    }
    treering.start_again();
}

fn pgbench(treering: &Treering, branch: &str, seconds: &str) {
    treering.run("pgbench", branch, &["-n", "-c", "4", "-j", "2", "-T", seconds]);
}

async fn whole(treering: &Treering, branch: &str) {
    let client = treering.connect_in_time(branch).await;
    verify::pgbench_sums(&client).await;
    verify::amcheck(&client).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_is_the_truth_and_the_disk_a_cache() {
    let s3 = S3::start(S3_SERVER);
    let options = ["--object-store", "s3://treering/some/prefix", "--layer-cache-bytes", "2MiB"];
    let mut treering = Treering::start_in(&options, s3.environment());
    tokio::task::block_in_place(|| {
        treering.run("pgbench", "main", &["-i", "-q", "-s", "3"]);
        pgbench(&treering, "main", "3");
        treering.ok(&["branch", "create", "dev"]);
        treering.ok(&["branch", "create", "gone"]);
        treering.ok(&["branch", "delete", "gone", "--yes"]);
        pgbench(&treering, "dev", "2");
        settle(&treering, "main");
        settle(&treering, "dev");
        let (objects, bytes) = s3.contents();
        assert!(objects > 5 && bytes > 1 << 20, "{objects} objects, {bytes} bytes");
        // The local disk keeps what it may.
        wait_for("eviction", LIMIT, || {
            let local = |branch| detail(&treering, branch)?["local_layer_bytes"].as_u64();
            (local("main")? + local("dev")? <= 2 << 20).then_some(())
        });
        let layer_bytes = detail(&treering, "main").expect("main")["layer_bytes"].as_u64();
        assert!(layer_bytes.expect("bytes") > 2 << 20, "there was nothing to evict");
    });
    whole(&treering, "main").await;

    let history = |treering: &Treering, branch| {
        treering.sql(branch, "SELECT count(*), sum(delta) FROM pgbench_history")
    };
    let before = ["main", "dev"].map(|branch| history(&treering, branch));
    tokio::task::block_in_place(|| wipe(&mut treering));
    assert_eq!(["main", "dev"].map(|branch| history(&treering, branch)), before);
    let branches = treering.json(&["branch", "list"]);
    let names: Vec<_> = branches.as_array().expect("a list").iter().map(|b| &b["name"]).collect();
    assert_eq!(names, ["main", "dev"], "nothing deleted is back");
    whole(&treering, "main").await;
    whole(&treering, "dev").await;
    tokio::task::block_in_place(|| archived(&mut treering, &s3));
    assert_eq!(["main", "dev"].map(|branch| history(&treering, branch)), before);
    tokio::task::block_in_place(|| {
        pgbench(&treering, "main", "2");
        treering.ok(&["branch", "create", "late"]);
        let late = timeline(&treering, "main");
        post(&format!("{late}/flush"));
        let answer = reqwest::blocking::Client::new()
            .post(format!("{late}/compact"))
            .json(&serde_json::json!({"force": true}))
            .send()
            .expect("compact");
        assert!(answer.status().is_success(), "{}", answer.text().unwrap_or_default());
        settle(&treering, "main");
    });
    whole(&treering, "late").await;
}

/// A branch is archived, survives a new machine in that state, and is what it was once it is unarchived.
fn archived(treering: &mut Treering, s3: &S3) {
    treering.ok(&["branch", "create", "twig", "--from", "dev"]);
    let refused = treering.cli(&["branch", "archive", "dev"]);
    assert_eq!(refused.status.code(), Some(5), "{}", String::from_utf8_lossy(&refused.stderr));
    treering.ok(&["branch", "delete", "twig", "--yes"]);
    treering.ok(&["branch", "archive", "dev"]);
    treering.ok(&["branch", "archive", "dev"]);
    let state = |treering: &Treering| treering.json(&["branch", "get", "dev"])["state"].clone();
    assert_eq!(state(treering), "archived");
    let there = detail(treering, "dev").expect("dev");
    assert_eq!((&there["archived"], &there["local_layer_bytes"]), (&true.into(), &0.into()));
    let start = treering.cli(&["start", "dev"]);
    assert_eq!(start.status.code(), Some(5), "{}", String::from_utf8_lossy(&start.stderr));
    treering.ok(&["doctor"]);
    wipe(treering);
    assert_eq!(state(treering), "archived");
    assert!(s3.contents().0 > 0);
    treering.ok(&["branch", "unarchive", "dev"]);
    treering.ok(&["start", "dev"]);
}

/// The bucket goes away under load: commits and reads of what is here go on, branches wait, and nothing is lost; then all is as before.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_away_delays_and_loses_nothing() {
    let mut s3 = S3::start(S3_SERVER);
    let options = ["--object-store", "s3://treering"];
    let mut treering = Treering::start_in(&options, s3.environment());
    let mut ledger = Ledger::begin(&treering.config("main"), 2).await;
    let grow = |ledger: &Ledger| {
        let before = ledger.acknowledged();
        wait_for("commits", LIMIT, || (ledger.acknowledged() > before + 100).then_some(()));
    };
    tokio::task::block_in_place(|| grow(&ledger));
    s3.kill();
    tokio::task::block_in_place(|| {
        grow(&ledger);
        post(&format!("{}/flush", timeline(&treering, "main")));
        grow(&ledger);
    });
    s3.resume();
    tokio::task::block_in_place(|| {
        treering.ok(&["branch", "create", "after"]);
        grow(&ledger);
    });
    ledger.end().await;
    tokio::task::block_in_place(|| {
        settle(&treering, "main");
        wipe(&mut treering);
    });
    let client = treering.connect_in_time("main").await;
    ledger.check(&client).await;
    verify::amcheck(&client).await;
    let branch = treering.connect_in_time("after").await;
    branch.query("SELECT count(*) FROM ledger", &[]).await.expect("the branch is there");
}

/// The default: a directory beside the data, by links, and as good as a bucket.
#[tokio::test(flavor = "multi_thread")]
async fn a_directory_costs_nothing_and_is_enough() {
    let mut treering = Treering::start();
    tokio::task::block_in_place(|| {
        treering.run("pgbench", "main", &["-i", "-q", "-s", "2"]);
        pgbench(&treering, "main", "2");
        settle(&treering, "main");
    });
    let objects = treering.data_dir().join("objects");
    let mut linked = 0;
    for tenant in fs::read_dir(&objects).expect("objects").flatten() {
        for folder in fs::read_dir(tenant.path()).into_iter().flatten().flatten() {
            for object in fs::read_dir(folder.path()).into_iter().flatten().flatten() {
                use std::os::unix::fs::MetadataExt;
                let is_layer = object.file_name().to_string_lossy().ends_with(".layer");
                let links = object.metadata().expect("an object").nlink();
                assert!(!is_layer || links == 2, "{:?} has {links} names", object.path());
                linked += usize::from(is_layer);
            }
        }
    }
    assert!(linked > 0, "no layers in {}", objects.display());
    tokio::task::block_in_place(|| wipe(&mut treering));
    whole(&treering, "main").await;
}
