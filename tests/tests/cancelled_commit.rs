//! A commit that somebody cancels is not reported as done before the quorum has it.
//!
//! With the page library a commit waits in a flush of the log, which nothing ends. Without it the wait is for a synchronous standby: stock
//! Postgres answers a cancelled one with success and a warning. The safekeeper is frozen, so nothing can become durable; whatever is
//! cancelled, no answer may reach the client until it is thawed.

use std::{process::Stdio, time::Duration};

use tokio::time::timeout;
use tokio_postgres::{Client, error::SqlState};
use treering_tests::{Treering, is_committing, processes, until_committing};

/// How long a client is watched for an answer that must not come.
const SILENCE: Duration = Duration::from_secs(3);

struct Frozen(i32);

impl Frozen {
    fn now(treering: &Treering) -> Frozen {
        let pid = treering.service("safekeeper");
        processes::freeze(pid);
        Frozen(pid)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        processes::thaw(self.0);
    }
}

async fn backend(client: &Client) -> i32 {
    client.query_one("SELECT pg_backend_pid()", &[]).await.expect("pid").get(0)
}

/// Runs `statement` against a frozen safekeeper, lets `cancel` end its wait, and expects silence until the thaw.
async fn held<F: Future<Output = ()>>(
    treering: &Treering,
    other: &Client,
    setting: &str,
    statement: &str,
    cancel: impl FnOnce(i32) -> F,
) {
    let client = treering.connect("main").await;
    let pid = backend(&client).await;
    client.batch_execute(setting).await.expect("set");
    assert!(!is_committing(other, pid).await);
    let frozen = Frozen::now(treering);
    let statement = statement.to_owned();
    let mut answer = tokio::spawn(async move { client.batch_execute(&statement).await });
    until_committing(other, pid).await;
    cancel(pid).await;
    let early = timeout(SILENCE, &mut answer).await;
    assert!(early.is_err(), "reported before it was durable: {early:?}");
    drop(frozen);
    let answer = timeout(Duration::from_secs(30), answer).await.expect("an answer after the thaw");
    match answer.expect("task") {
        Ok(()) => {}
        // What comes behind a commit can still be cancelled.
        Err(error) if setting.contains("timeout") => {
            assert_eq!(error.code(), Some(&SqlState::QUERY_CANCELED));
        }
        Err(error) => panic!("the commit is done now: {error}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_is_cancelled_waits_on() {
    waits_on(Treering::start()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_wait_is_held_back() {
    waits_on(Treering::start_with(&["--pages", "eager"])).await;
}

async fn waits_on(treering: Treering) {
    let setup = treering.connect("main").await;
    setup
        .batch_execute(
            "CREATE TABLE t (n int); CREATE PROCEDURE put(v int) LANGUAGE plpgsql AS $$
             BEGIN INSERT INTO t VALUES (v); COMMIT; END $$",
        )
        .await
        .expect("set up");
    // A session from before the freeze, to cancel from: its own reads need no quorum.
    let other = treering.connect("main").await;

    held(&treering, &other, "", "INSERT INTO t VALUES (1)", |pid| {
        let other = &other;
        async move {
            let done =
                other.query_one("SELECT pg_cancel_backend($1)", &[&pid]).await.expect("cancel");
            assert!(done.get::<_, bool>(0));
        }
    })
    .await;

    // The client hides the warning from itself; the relay must not be fooled.
    held(&treering, &other, "SET client_min_messages = error", "INSERT INTO t VALUES (2)", |pid| {
        let other = &other;
        async move {
            other.query_one("SELECT pg_cancel_backend($1)", &[&pid]).await.expect("cancel");
        }
    })
    .await;

    held(&treering, &other, "SET statement_timeout = 2000", "CALL put(3)", |_| async {}).await;

    // A cancel request of the client itself, on the client port.
    let client = treering.connect("main").await;
    let (pid, token) = (backend(&client).await, client.cancel_token());
    let frozen = Frozen::now(&treering);
    let mut answer =
        tokio::spawn(async move { client.batch_execute("INSERT INTO t VALUES (4)").await });
    until_committing(&other, pid).await;
    token.cancel_query(tokio_postgres::NoTls).await.expect("cancel request");
    assert!(timeout(SILENCE, &mut answer).await.is_err(), "reported before it was durable");
    drop(frozen);
    timeout(Duration::from_secs(30), answer)
        .await
        .expect("an answer")
        .expect("task")
        .expect("done");

    let rows: i64 = setup.query_one("SELECT count(*) FROM t", &[]).await.expect("count").get(0);
    assert_eq!(rows, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_cannot_release_a_commit() {
    let treering = Treering::start_with(&["--pages", "eager"]);
    treering.sql("main", "CREATE TABLE t (n int)");
    let dir = tempfile::tempdir().expect("temporary directory");
    let mut receiver = treering.program("pg_receivewal", "main");
    receiver
        .env("PGAPPNAME", "treering_agent")
        .args(["--synchronous", "--no-loop", "-D"])
        .arg(dir.path());
    let output =
        receiver.stdout(Stdio::piped()).stderr(Stdio::piped()).output().expect("pg_receivewal");
    assert!(!output.status.success(), "a stranger's receiver was let in through the client port");

    // Nor on the compute's own socket, where SCRAM would let the user in otherwise.
    let sockets: Vec<_> = find_sockets(&treering.data_dir());
    assert!(!sockets.is_empty(), "no socket of a compute found");
    for dir_of_socket in sockets {
        let mut receiver = treering.program("pg_receivewal", "main");
        receiver.env("PGHOST", &dir_of_socket).env("PGPORT", "5432").env_remove("PGOPTIONS");
        receiver.env("PGAPPNAME", "treering_agent").args(["--no-loop", "-D"]).arg(dir.path());
        let output = receiver.output().expect("pg_receivewal");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && stderr.contains("reject"), "{stderr}");
    }
}

/// Socket directories, as the agent recorded them.
fn find_sockets(data_dir: &std::path::Path) -> Vec<std::path::PathBuf> {
    let computes = std::fs::read_dir(data_dir.join("agent/computes")).expect("computes").flatten();
    let records = computes.filter_map(|entry| std::fs::read(entry.path().join("agent.json")).ok());
    let of = |text: Vec<u8>| {
        let record: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
        std::path::PathBuf::from(record["socket_dir"].as_str().expect("a path"))
    };
    records.map(of).filter(|dir| dir.join(".s.PGSQL.5432").exists()).collect()
}
