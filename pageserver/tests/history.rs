//! Gc and compaction on the log of a real server: whatever is left to be read, stock Postgres finds whole.

mod support;

use std::{sync::Arc, time::Duration};

use support::{MAIN, Server, TENANT, backup, service_with};
use treering_engine::{EngineError, EngineOptions};
use treering_pageserver::{ingest::apply::Applier, live::LiveTimeline};
use treering_types::{Lsn, TimelineId};

/// Many small layers, no window, gc from the first second on.
fn options() -> EngineOptions {
    EngineOptions {
        open_layer_bytes_max: 1 << 20,
        layer_bytes_max: 1 << 20,
        pitr_window: Duration::ZERO,
        pitr_bytes: 0,
        gc_delay: Duration::ZERO,
        gc_interval: Duration::from_secs(3600),
        ..EngineOptions::default()
    }
}

fn ingest(live: &LiveTimeline, server: &Server) -> Lsn {
    let mut applier = Applier::open(Arc::clone(&live.timeline)).expect("applier");
    let (from, to) = (applier.fed_to(), server.insert_lsn());
    let wal = server.wal(live.timeline.identity().pg_tli, from, to);
    let mut at = from;
    for piece in wal.chunks(64 << 10) {
        applier.feed(at, piece.to_vec().into()).expect("feed");
        applier.apply().unwrap_or_else(|error| panic!("apply after {at}: {error}"));
        at = at + piece.len() as u64;
    }
    live.timeline.last_record_lsn()
}

/// Updates all over, indexes, a relation that is cut and grows again, one whose number goes.
fn round(n: usize) -> String {
    format!(
        "UPDATE accounts SET balance = balance + {n}, note = repeat('{n}', 10) WHERE id % 7 = {n} % 7;
         INSERT INTO accounts SELECT {n} * 100000 + g, g, 'new' FROM generate_series(1, 500) g;
         DELETE FROM accounts WHERE id % 97 = {n};
         TRUNCATE recent; INSERT INTO recent SELECT {n}, g FROM generate_series(1, 3000) g;
         DELETE FROM cut WHERE a > {n} * 100; VACUUM cut; INSERT INTO cut SELECT generate_series(1, 20000);
         DROP TABLE IF EXISTS short_lived; CREATE TABLE short_lived AS SELECT generate_series(1, 5000) a;
         VACUUM accounts;
         DO $$ BEGIN FOR i IN 1..3000 LOOP
             UPDATE accounts SET balance = balance + 1 WHERE id = (random() * 19000)::int; COMMIT;
         END LOOP; END $$;"
    )
}

const CHECKS: [&str; 6] = [
    "SELECT count(*), sum(id), sum(balance), md5(string_agg(note, ',' ORDER BY id)) FROM accounts",
    "SET enable_seqscan = off; SELECT count(*) FROM accounts WHERE balance > 100",
    "SELECT count(*), sum(a), sum(b) FROM recent",
    "SELECT count(*), sum(a) FROM cut",
    "SELECT count(*), sum(a) FROM short_lived",
    "SELECT datname FROM pg_database ORDER BY 1",
];

fn answers(server: &Server) -> Vec<String> {
    CHECKS.iter().map(|sql| server.sql("postgres", sql)).collect()
}

fn amcheck(server: &Server) {
    server.sql("postgres", "
        CREATE EXTENSION IF NOT EXISTS amcheck;
        SELECT bt_index_check(c.oid, true) FROM pg_class c JOIN pg_am a ON a.oid = c.relam WHERE a.amname = 'btree' AND c.relkind = 'i' AND c.relpersistence = 'p';
    ");
    let bad = server.sql("postgres", "
        SELECT c.oid::regclass, v.* FROM pg_class c, LATERAL verify_heapam(c.oid) v WHERE c.relkind IN ('r', 'm', 't') AND c.relpersistence = 'p';
    ");
    assert_eq!(bad, "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_gc_leaves_is_whole() {
    let folder = tempfile::tempdir().expect("folder");
    let (service, live) = service_with(folder.path(), options()).await;
    let root = &live.timeline;
    let begin = root.last_record_lsn();
    let (archive, start) = backup(&service, &live, begin).await;
    let parent = Server::start(&archive, &start, &["full_page_writes=off"]);
    parent.sql("postgres", "CREATE DATABASE source; \\c source\nCREATE TABLE mark AS SELECT generate_series(1, 777) a;");
    parent.sql("postgres", "CREATE DATABASE copied STRATEGY file_copy TEMPLATE source");
    parent.sql("postgres", "CREATE DATABASE copied_again STRATEGY file_copy TEMPLATE copied");
    parent.sql(
        "postgres",
        "
        CREATE TABLE accounts(id int PRIMARY KEY, balance bigint, note text);
        CREATE INDEX ON accounts(balance);
        CREATE TABLE recent(a int, b int); CREATE TABLE cut(a int);
        INSERT INTO accounts SELECT g, 0, repeat('x', g % 90) FROM generate_series(1, 20000) g;",
    );
    let mut branches = Vec::new();
    for n in 1..=6 {
        parent.sql("postgres", &round(n));
        if n == 3 {
            // What the copies show is needed long after their sources are gone.
            parent.sql("postgres", "DROP DATABASE source");
        }
        if n == 5 {
            parent.sql("postgres", "DROP DATABASE copied");
        }
        let lsn = ingest(&live, &parent);
        if n % 2 == 0 {
            let id = TimelineId([n as u8 + 10; 16]);
            let made = service.branch(TENANT, id, MAIN, Some(lsn), Duration::ZERO).await;
            branches.push((made.expect("branch").live, lsn, answers(&parent)));
            ingest(&live, &parent);
        }
        root.flush().expect("flush");
        root.gc_below(root.last_record_lsn()).expect("gc");
    }
    let before = root.info();
    root.compact(true).expect("compact");
    let after = root.info();
    let wal = after.last_record_lsn.bytes_since(begin).expect("WAL");
    let traffic = after.traffic;
    println!(
        "{} MB of WAL: {:.2} flushed, {:.2} written by merges, {:.2} on disk, {:.2} before the last merge, per byte",
        wal >> 20,
        traffic.flushed_bytes as f64 / wal as f64,
        traffic.merge_written_bytes as f64 / wal as f64,
        after.layer_bytes as f64 / wal as f64,
        before.layer_bytes as f64 / wal as f64,
    );
    assert_eq!((after.runs, after.earliest_lsn), (1, after.cut_off));
    let error = root.record_boundary(begin).expect_err("given up");
    assert!(matches!(error, EngineError::BelowCutOff { earliest_time: Some(_), .. }), "{error}");
    let findings = service.engine.scrub().findings;
    assert!(findings.is_empty(), "{findings:?}");
    // Asked with the first page that is read: once at the LSN that the timeline begins at, which gc has given up.
    live.has_checksums().expect("known whatever gc does");

    let last = root.last_record_lsn();
    let now = (Arc::clone(&live), last, answers(&parent));
    let now_lsn = ingest(&live, &parent);
    for (branch, lsn, wanted) in branches.iter().chain([&now]) {
        let at = if Arc::ptr_eq(branch, &live) { now_lsn } else { *lsn };
        let (archive, start) = backup(&service, branch, at).await;
        assert_eq!(start.unreadable, vec![]);
        let server = Server::start(&archive, &start, &[]);
        assert_eq!(&answers(&server), wanted, "at {at}");
        assert_eq!(server.sql("copied_again", "SELECT count(*), sum(a) FROM mark"), "777|302253");
        amcheck(&server);
    }

    // What only branches pinned goes with them.
    let pinned = root.info().layer_bytes;
    for (branch, _, _) in branches {
        service.delete_timeline(TENANT, branch.timeline.id()).await.expect("delete");
    }
    root.compact(true).expect("compact");
    let freed = pinned - root.info().layer_bytes;
    assert!(freed * 8 > pinned, "{freed} of {pinned} bytes freed");
}
