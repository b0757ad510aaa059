//! Branches of a database that is being written to: each is whole, and has what was committed before it.

use std::{
    process::Stdio,
    time::{Duration, Instant},
};

use rand::Rng;
use serde_json::{Value, json};
use treering_tests::{Treering, pages::Pages, verify};
use treering_types::{Fork, Lsn, RelTag};

fn lsn(value: &Value) -> Lsn {
    value.as_str().expect("an LSN").parse().expect("an LSN")
}

/// 50 branches at random LSNs of a running TPC-B: sums equal, amcheck clean, started a few at a time.
#[tokio::test(flavor = "multi_thread")]
async fn fifty_branches_of_a_busy_database() {
    let treering = Treering::start();
    treering.run("pgbench", "main", &["-i", "-q", "-s", "2"]);
    let first = lsn(&treering.json(&["branch", "create", "first"])["branch_lsn"]);
    let mut pgbench = treering.program("pgbench", "main");
    let mut pgbench = pgbench
        .args(["-n", "-c", "4", "-j", "2", "-T", "600"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("pgbench");
    tokio::time::sleep(Duration::from_secs(3)).await;
    for n in 0..50 {
        let name = format!("fork{n}");
        // Half of them now, half somewhere in the past, at a position that need not be a record end.
        let created = if n % 2 == 0 {
            treering.json(&["branch", "create", &name])
        } else {
            let newest =
                lsn(&treering.json(&["branch", "get", &format!("fork{}", n - 1)])["branch_lsn"]);
            let at = Lsn(rand::rng().random_range(first.0..=newest.0));
            let created = treering.json(&["branch", "create", &name, "--at", &at.to_string()]);
            assert!(lsn(&created["branch_lsn"]) <= at, "not rounded down: {created}");
            created
        };
        assert_eq!(created["state"], "suspended");
    }
    let _ = pgbench.kill();
    let _ = pgbench.wait();
    for group in (0..50).collect::<Vec<_>>().chunks(4) {
        let checks = group.iter().map(|n| {
            let name = format!("fork{n}");
            let treering = &treering;
            async move {
                let client = treering.connect(&name).await;
                verify::pgbench_sums(&client).await;
                verify::amcheck(&client).await;
                drop(client);
                tokio::task::block_in_place(|| treering.ok(&["stop", &name]));
            }
        });
        for check in checks {
            check.await;
        }
    }
}

/// S51: commit, branch at once; the row's page is there at the fork LSN each time, and by SQL on some of them, also
/// when the safekeeper is killed right after the commit.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_committed_before_the_branch_is_in_it() {
    let treering = Treering::start();
    treering.run("pgbench", "main", &["-i", "-q", "-s", "1"]);
    let client = treering.connect("main").await;
    client
        .batch_execute("CREATE TABLE marks (n int PRIMARY KEY, filler text)")
        .await
        .expect("create");
    let path: String =
        client.query_one("SELECT pg_relation_filepath('marks')", &[]).await.expect("path").get(0);
    let mut numbers = path.split('/').skip(1).map(|n| n.parse::<u32>().expect("a number"));
    let (database, relation) =
        (numbers.next().expect("database"), numbers.next().expect("relation"));
    let rel = RelTag { tablespace: 1663, database, relation, fork: Fork::Main };
    let mut pgbench = treering.program("pgbench", "main");
    let mut pgbench = pgbench
        .args(["-n", "-c", "4", "-T", "600"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("pgbench");
    for n in 0..200_i32 {
        let marker = format!("mark-{n}-{:016x}", rand::random::<u64>());
        let row = client
            .query_one("INSERT INTO marks VALUES ($1, $2) RETURNING ctid::text", &[&n, &marker])
            .await
            .expect("insert");
        let ctid: String = row.get(0);
        let block: u32 = ctid
            .trim_matches(['(', ')'])
            .split(',')
            .next()
            .and_then(|b| b.parse().ok())
            .expect("ctid");
        if n % 50 == 49 {
            tokio::task::block_in_place(|| treering.kill_service("safekeeper"));
        }
        let name = format!("mark{n}");
        let created = tokio::task::block_in_place(|| treering.json(&["branch", "create", &name]));
        let at = lsn(&created["branch_lsn"]);
        let (tenant, timeline) = (created["tenant_id"].as_str(), created["timeline_id"].as_str());
        let mut pages = Pages::connect(
            &treering.address("pageserver_pg"),
            tenant.expect("id"),
            timeline.expect("id"),
        );
        let page = pages
            .page(rel, block, at)
            .unwrap_or_else(|e| panic!("{name} block {block} at {at}: {e}"));
        let found = page.windows(marker.len()).any(|bytes| bytes == marker.as_bytes());
        assert!(found, "{name}: the row committed before the branch is not on its page at {at}");
        if n % 10 == 9 {
            let branch = treering.connect(&name).await;
            let row = branch
                .query_one("SELECT filler FROM marks WHERE n = $1", &[&n])
                .await
                .expect("the row");
            assert_eq!(row.get::<_, String>(0), marker);
            drop(branch);
            tokio::task::block_in_place(|| treering.ok(&["stop", &name]));
        }
    }
    let _ = pgbench.kill();
    let _ = pgbench.wait();
}

/// S105: moments between commits, as close as the clock tells them apart.
#[tokio::test(flavor = "multi_thread")]
async fn a_branch_at_a_time_has_the_commits_before_it_and_none_after() {
    let treering = Treering::start();
    let client = treering.connect("main").await;
    client.batch_execute("CREATE TABLE t (n int)").await.expect("create");
    let mut moments = Vec::new();
    let began = Instant::now();
    for n in 0..20_i32 {
        client.execute("INSERT INTO t VALUES ($1)", &[&n]).await.expect("insert");
        let stamp = "SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')";
        let row = client.query_one(stamp, &[]).await.expect("now");
        moments.push(row.get::<_, String>(0));
    }
    eprintln!("20 commits in {:?}", began.elapsed());
    for (n, moment) in moments.iter().enumerate().step_by(4) {
        let name = format!("at{n}");
        tokio::task::block_in_place(|| treering.json(&["branch", "create", &name, "--at", moment]));
        let branch = treering.connect(&name).await;
        let rows: i64 =
            branch.query_one("SELECT count(*) FROM t", &[]).await.expect("count").get(0);
        assert_eq!(rows, n as i64 + 1, "at {moment}");
        drop(branch);
        tokio::task::block_in_place(|| treering.ok(&["stop", &name]));
    }
}

/// The term of a branch's log.
async fn term(treering: &Treering, branch: &Value) -> u64 {
    let id = |name: &str| branch[name].as_str().expect("an id").to_owned();
    let path = format!("/v1/tenant/{}/timeline/{}", id("tenant_id"), id("timeline_id"));
    treering.get("safekeeper_http", &path).await["term"].as_u64().expect("a term")
}

/// Eight branches of `parent`, asked for at once.
async fn eight_of(treering: &Treering, parent: &str, prefix: &str) {
    let url = format!("{}/v1/projects/default/branches", treering.address("control_http"));
    let http = reqwest::Client::new();
    let asked: Vec<_> = (0..8)
        .map(|n| {
            let branch = json!({"name": format!("{prefix}{n}"), "source_branch": parent});
            tokio::spawn(http.post(&url).json(&branch).send())
        })
        .collect();
    for answer in asked {
        let answer = answer.await.expect("a task").expect("an answer");
        assert!(answer.status().is_success(), "{}", answer.text().await.expect("a body"));
    }
}

/// Each branch of a stopped one took an election once, one after the other, and left an entry in its parent's term history for good. The end of a
/// log that its writer left in order is read instead; what a killed writer left open takes one election for all who ask.
#[tokio::test(flavor = "multi_thread")]
async fn branches_of_a_stopped_branch_take_no_terms() {
    let mut treering = Treering::start();
    let parent = treering.json(&["branch", "create", "parent"]);
    // Before its first start it has no log.
    eight_of(&treering, "parent", "early").await;
    treering.sql("parent", "CREATE TABLE t AS SELECT 1 AS n");
    treering.ok(&["stop", "parent"]);
    let before = term(&treering, &parent).await;
    eight_of(&treering, "parent", "stopped").await;
    assert_eq!(term(&treering, &parent).await, before);
    assert_eq!(treering.sql("stopped7", "SELECT count(*) FROM t"), "1");

    treering.ok(&["start", "parent"]);
    treering.sql("parent", "INSERT INTO t VALUES (2)");
    let before = term(&treering, &parent).await;
    treering.kill_everything();
    treering.start_again();
    eight_of(&treering, "parent", "killed").await;
    let after = term(&treering, &parent).await;
    assert!(after <= before + 1, "{before} before, {after} after");
    for branch in ["killed0", "killed7", "parent"] {
        assert_eq!(treering.sql(branch, "SELECT count(*) FROM t"), "2", "{branch}");
    }
    assert_eq!(treering.sql("early0", "SELECT to_regclass('t') IS NULL"), "t");
}
