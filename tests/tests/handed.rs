//! A client's own socket in its backend's hands: nobody stands between, the agent may die, promises stay.

use std::{fs, time::Duration};

use tokio::time::timeout;
use tokio_postgres::{Client, error::SqlState};
use treering_tests::{Treering, is_committing, processes, until_committing, wait_for};

async fn number(client: &Client, sql: &str) -> i32 {
    client.query_one(sql, &[]).await.expect(sql).get(0)
}

/// The inode numbers of a process's sockets.
fn sockets_of(pid: i32) -> Vec<String> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).expect("descriptors").flatten();
    let links = entries.filter_map(|entry| fs::read_link(entry.path()).ok());
    let inode = |link: std::path::PathBuf| {
        let text = link.to_string_lossy().into_owned();
        Some(text.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned())
    };
    links.filter_map(inode).collect()
}

/// The inode numbers of the established TCP connections whose local port this is.
fn tcp_of(port: u16) -> Vec<String> {
    let table = fs::read_to_string("/proc/net/tcp").expect("connections");
    let here = format!(":{port:04X}");
    let rows = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    rows.filter(|row| row.len() > 9 && row[1].ends_with(&here) && row[3] == "01")
        .map(|row| row[9].to_owned())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_its_backends_own() {
    let treering = Treering::start();
    let client = treering.connect("main").await;
    let pid = number(&client, "SELECT pg_backend_pid()").await;
    let connections = tcp_of(treering.port);
    assert!(
        sockets_of(pid).iter().any(|socket| connections.contains(socket)),
        "the backend has no connection of the client port"
    );
    // It closes its own when it has heard that the backend has it.
    let agent = treering.service("agent");
    wait_for("the agent to let go of the connection", Duration::from_secs(10), || {
        (!sockets_of(agent).iter().any(|socket| connections.contains(socket))).then_some(())
    });
    // More than any buffer holds, both ways.
    let long = "x".repeat(3_000_000);
    let row = client.query_one("SELECT length($1), repeat($1, 3)", &[&long]).await.expect("long");
    assert_eq!(row.get::<_, i32>(0), 3_000_000);
    assert_eq!(row.get::<_, &str>(1).len(), 9_000_000);
    // What the start-up packet said has arrived, without the branch.
    let row = client.query_one("SELECT current_user::text, current_database()::text", &[]);
    let row = row.await.expect("who");
    assert_eq!((row.get::<_, &str>(0), row.get::<_, &str>(1)), ("postgres", "postgres"));

    let token = client.cancel_token();
    let sleeping = tokio::spawn(async move { client.batch_execute("SELECT pg_sleep(60)").await });
    tokio::time::sleep(Duration::from_millis(300)).await;
    token.cancel_query(tokio_postgres::NoTls).await.expect("cancel");
    let cancelled = sleeping.await.expect("task").expect_err("cancelled");
    assert_eq!(cancelled.code(), Some(&SqlState::QUERY_CANCELED));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_outlives_its_agent() {
    let treering = Treering::start();
    let client = treering.connect("main").await;
    client.batch_execute("CREATE TABLE t (n int)").await.expect("create");
    let pid = number(&client, "SELECT pg_backend_pid()").await;
    let other = treering.connect("main").await;
    // So that no page is missing for it when there is nobody who could bring one: a page may wait for log that only the quorum has.
    other.query_one("SELECT pg_cancel_backend(NULL)", &[]).await.expect("nobody is cancelled");
    assert!(!is_committing(&other, pid).await);
    tokio::task::block_in_place(|| treering.kill_service("agent"));
    client
        .batch_execute("INSERT INTO t VALUES (1)")
        .await
        .expect("a commit, once an agent is there");
    assert_eq!(number(&client, "SELECT pg_backend_pid()").await, pid);

    // A cancelled wait while there is neither a quorum nor an agent: nothing is said before both are back. An agent that
    // finds no quorum may also end the compute.
    let safekeeper = treering.service("safekeeper");
    processes::freeze(safekeeper);
    let mut answer =
        tokio::spawn(async move { client.batch_execute("INSERT INTO t VALUES (2)").await });
    until_committing(&other, pid).await;
    other.query_one("SELECT pg_cancel_backend($1)", &[&pid]).await.expect("cancel");
    tokio::time::sleep(Duration::from_millis(500)).await;
    processes::kill(treering.service("agent"));
    let early = timeout(Duration::from_secs(3), &mut answer).await;
    processes::thaw(safekeeper);
    assert!(!matches!(early, Ok(Ok(Ok(())))), "reported before it was durable");
    let late = match early {
        Ok(early) => Ok(early),
        Err(_) => timeout(Duration::from_secs(60), answer).await,
    };
    let answer = late.expect("an answer, or an end").expect("task");
    let rows = number(&treering.connect_in_time("main").await, "SELECT count(*)::int FROM t").await;
    match answer {
        Ok(()) => assert_eq!(rows, 2),
        Err(error) => assert!(error.is_closed() || error.code().is_none(), "{error}"),
    }
}
