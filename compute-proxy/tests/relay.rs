//! The client port in front of a stock Postgres 15: what clients do every day, and commits whose wait is cancelled.

mod stock;

use std::{process::Output, time::Duration};

use stock::{Port, Postgres};
use tokio::time::timeout;
use tokio_postgres::{NoTls, error::SqlState};

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim_end().to_owned()
}

fn answered(output: Output) -> String {
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout)
}

fn refused(output: Output) -> String {
    assert!(!output.status.success());
    text(&output.stderr)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn psql_cannot_tell_the_relay_from_the_server() {
    let postgres = Postgres::start(&[]).await;
    let port = Port::before(&postgres).await;
    let login = "user=postgres dbname=postgres";
    assert_eq!(answered(port.psql(login, "SELECT 1").await), "1");
    let named = "user=postgres@dev options='-c work_mem=12MB -c treering.branch=dev'";
    assert_eq!(
        answered(port.psql(named, "SELECT current_user, current_database(); SHOW work_mem").await),
        "postgres|postgres\n12MB"
    );
    assert!(
        refused(port.psql("user=postgres password=wrong", "SELECT 1").await)
            .contains("password authentication failed")
    );
    let unknown = refused(port.psql("user=postgres dbname=postgres@nowhere", "SELECT 1").await);
    assert!(unknown.ends_with("FATAL:  branch \"nowhere\" does not exist"), "{unknown}");
    let asleep = refused(port.psql("user=postgres@asleep", "SELECT 1").await);
    assert!(asleep.contains("is not available: it was stopped"), "{asleep}");
    let replication = refused(port.psql("user=postgres replication=true", "IDENTIFY_SYSTEM").await);
    assert!(replication.contains("replication connections are not served"), "{replication}");

    let rows: String = (0..200_000).map(|n| format!("{n}\trow {n}\n")).collect();
    let copy = format!(
        "CREATE TABLE t(n int, t text);\nCOPY t FROM stdin;\n{rows}\\.\nSELECT count(*), sum(n) FROM t;\n"
    );
    assert_eq!(answered(port.psql(login, &copy).await), "200000|19999900000");
    let back = answered(port.psql(login, "COPY (SELECT * FROM t ORDER BY n) TO stdout").await);
    assert_eq!(back, rows.trim_end());

    let large = "SELECT repeat('x', 999) FROM generate_series(1, 30000)";
    let result = answered(port.psql(login, large).await);
    assert_eq!((result.len(), result.lines().count()), (30_000 * 1000 - 1, 30_000));
    assert_eq!(port.gate.times_asked(), 0, "nothing was held");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cancel_requests_find_their_backend() {
    let postgres = Postgres::start(&[]).await;
    let port = Port::before(&postgres).await;
    let client = port.connect().await;
    let bystander = port.connect().await;
    let token = client.cancel_token();
    let began = std::time::Instant::now();
    let sleeping = tokio::spawn(async move { client.batch_execute("SELECT pg_sleep(30)").await });
    let undisturbed =
        tokio::spawn(async move { bystander.query_one("SELECT pg_sleep(1)", &[]).await });
    let admin = postgres.admin().await;
    let running = "SELECT 1 FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep(30)%' AND state = 'active' AND wait_event = 'PgSleep'";
    while admin.query_opt(running, &[]).await.unwrap().is_none() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    token.cancel_query(NoTls).await.unwrap();
    let error = sleeping.await.unwrap().unwrap_err();
    assert_eq!(error.code(), Some(&SqlState::QUERY_CANCELED));
    assert!(began.elapsed() < Duration::from_secs(20));
    undisturbed.await.unwrap().unwrap();
}

/// The server waits for a standby that never comes; each way to give the wait up must be held until the gate opens.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_cancelled_wait_is_reported_before_the_quorum_has_it() {
    let postgres = Postgres::start(&["synchronous_standby_names=nobody"]).await;
    let port = Port::before(&postgres).await;
    let admin = postgres.admin().await;
    admin
        .batch_execute(
            "SET synchronous_commit = off;
             CREATE TABLE t(how text);
             CREATE PROCEDURE committing(how text) LANGUAGE plpgsql AS
             $$ BEGIN INSERT INTO t VALUES (how); COMMIT; PERFORM count(*) FROM t; END $$;",
        )
        .await
        .unwrap();
    let hidden = "SET client_min_messages = error";
    let cases = [
        (
            "client cancel",
            "SET client_min_messages = notice",
            "INSERT INTO t VALUES ('client cancel')",
        ),
        ("client cancel", hidden, "INSERT INTO t VALUES ('hidden client cancel')"),
        ("pg_cancel_backend", "SELECT 1", "BEGIN; INSERT INTO t VALUES ('admin cancel'); COMMIT"),
        ("pg_cancel_backend", hidden, "INSERT INTO t VALUES ('hidden admin cancel')"),
        ("nobody", "SET statement_timeout = '3s'", "CALL committing('timeout')"),
        (
            "nobody",
            "SET statement_timeout = '3s'; SET client_min_messages = error",
            "CALL committing('hidden timeout')",
        ),
    ];
    let mut held = 0;
    for (cancelled_by, setting, sql) in cases {
        port.gate.shut();
        let client = port.connect().await;
        client.batch_execute(setting).await.unwrap();
        let pid: i32 = client.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);
        let token = client.cancel_token();
        let mut query = tokio::spawn(async move { client.batch_execute(sql).await });
        if cancelled_by != "nobody" {
            let waits = "SELECT 1 FROM pg_stat_activity WHERE pid = $1 AND wait_event = 'SyncRep'";
            while admin.query_opt(waits, &[&pid]).await.unwrap().is_none() {
                assert!(!query.is_finished(), "{sql} did not wait");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
        match cancelled_by {
            "client cancel" => token.cancel_query(NoTls).await.unwrap(),
            "pg_cancel_backend" => {
                admin.query_one("SELECT pg_cancel_backend($1)", &[&pid]).await.unwrap();
            }
            _ => {}
        }
        held += 1;
        port.gate.asked(held).await;
        assert!(timeout(Duration::from_millis(200), &mut query).await.is_err(), "{sql} is held");
        port.gate.open();
        let done = timeout(Duration::from_secs(20), query).await.expect(sql);
        done.unwrap().unwrap_or_else(|error| panic!("{sql}: {error}"));
        held = port.gate.times_asked();
    }
    let present: i64 = admin.query_one("SELECT count(*) FROM t", &[]).await.unwrap().get(0);
    assert_eq!(present, cases.len() as i64);
}
