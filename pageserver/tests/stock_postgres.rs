//! Import, ingest and base backup against stock Postgres 15, without a safekeeper in between: WAL comes from the server's own
//! `pg_wal`.

mod support;

use std::sync::Arc;

use support::{MAIN, Server, TENANT, backup, service};
use treering_pageserver::{ingest::apply::Applier, live::LiveTimeline};
use treering_types::{Lsn, TimelineId};

const BRANCH: TimelineId = TimelineId([2; 16]);

fn assert_no_recovery(server: &Server) {
    let log = server.log();
    assert!(log.contains("database system was shut down at"), "{log}");
    for word in ["redo", "recovery", "not properly shut down", "PANIC", "invalid"] {
        assert!(!log.contains(word), "{word} in the log:\n{log}");
    }
}

/// Feeds what the server wrote so far, in pieces of odd sizes.
fn ingest(live: &LiveTimeline, server: &Server) -> Lsn {
    let mut applier = Applier::open(Arc::clone(&live.timeline)).expect("applier");
    let (from, to) = (applier.fed_to(), server.insert_lsn());
    let wal = server.wal(live.timeline.identity().pg_tli, from, to);
    let mut at = from;
    for piece in wal.chunks(100_003) {
        applier.feed(at, piece.to_vec().into()).expect("feed");
        applier.apply().unwrap_or_else(|error| panic!("apply after {at}: {error}"));
        at = at + piece.len() as u64;
    }
    live.timeline.last_record_lsn()
}

/// An imported cluster starts at the LSN of its import without recovery, and is the one that initdb made.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_imported_cluster_starts() {
    let folder = tempfile::tempdir().expect("folder");
    let (service, live) = service(folder.path()).await;
    let lsn = live.timeline.last_record_lsn();
    let (archive, start) = backup(&service, &live, lsn).await;
    assert_eq!((start.pg_tli, start.history.len(), start.unreadable.len()), (1, 0, 0));
    let mut server = Server::start(&archive, &start, &[]);
    assert_no_recovery(&server);
    let found = server.sql(
        "postgres",
        "SELECT rolsuper, rolreplication FROM pg_roles WHERE rolname = 'treering_agent'",
    );
    assert_eq!(found, "t|t");
    assert_eq!(server.sql("postgres", "SHOW data_checksums"), "on");
    let system_id = server.sql("postgres", "SELECT system_identifier FROM pg_control_system()");
    assert_eq!(system_id, live.timeline.identity().system_id.to_string());
    for database in ["postgres", "template1"] {
        server.sql(database, "SELECT count(*) FROM pg_class; CREATE TABLE t(a int primary key); INSERT INTO t SELECT generate_series(1, 1000); VACUUM t;");
    }
    server.stop();
    // Asked again, the same root answers.
    let again = service.create_root(TENANT, MAIN).await.expect("again");
    assert_eq!(again.timeline.last_record_lsn(), lsn);
}

const WORKLOAD: &str = "
    CREATE TABLE items(id int PRIMARY KEY, name text, tags int[], at timestamptz DEFAULT now());
    CREATE INDEX ON items USING gin(tags);
    CREATE SEQUENCE numbers;
    INSERT INTO items(id, name, tags) SELECT g, repeat('x', g % 500), ARRAY[g, g % 7] FROM generate_series(1, 20000) g;
    CREATE UNLOGGED TABLE fleeting(a int PRIMARY KEY);
    INSERT INTO fleeting SELECT generate_series(1, 100);
    UPDATE items SET name = 'changed' WHERE id % 3 = 0;
    DELETE FROM items WHERE id % 5 = 0;
    VACUUM items;
    SELECT nextval('numbers') FROM generate_series(1, 50);
    CREATE TABLE gone(a int); INSERT INTO gone SELECT generate_series(1, 5000); DROP TABLE gone;
    CREATE TABLE cut(a int); INSERT INTO cut SELECT generate_series(1, 50000); DELETE FROM cut WHERE a > 100; VACUUM cut;
    BEGIN; INSERT INTO items(id, name) VALUES (1000000, 'prepared'); PREPARE TRANSACTION 'kept';
    BEGIN; INSERT INTO items(id, name) VALUES (1000001, 'prepared'); PREPARE TRANSACTION 'done';
    COMMIT PREPARED 'done';
    CREATE DATABASE logged STRATEGY wal_log;
    CREATE DATABASE copied STRATEGY file_copy TEMPLATE postgres_copy;
    CREATE DATABASE dropped; DROP DATABASE dropped;
    SET allow_in_place_tablespaces = on;
    CREATE TABLESPACE place LOCATION '';
    CREATE TABLESPACE empty LOCATION '';
    CREATE TABLE elsewhere(a int) TABLESPACE place; INSERT INTO elsewhere SELECT generate_series(1, 3000);
    VACUUM FULL pg_class;
    BEGIN; SELECT id FROM items WHERE id = 1 FOR KEY SHARE; SAVEPOINT s;
    UPDATE items SET name = 'shared' WHERE id = 1; RELEASE s; COMMIT;
    DO $$ BEGIN FOR i IN 1..35000 LOOP PERFORM txid_current(); COMMIT; END LOOP; END $$;
    INSERT INTO items(id, name) VALUES (1000002, 'on the second page of pg_xact');
";

const CHECKS: [&str; 11] = [
    "SELECT count(*), sum(id), md5(string_agg(name, ',' ORDER BY id)) FROM items",
    "SELECT count(*) FROM items WHERE tags @> ARRAY[3]",
    "SELECT count(*), max(a) FROM cut",
    "SELECT count(*) FROM elsewhere",
    "SELECT gid FROM pg_prepared_xacts",
    "SELECT datname FROM pg_database ORDER BY 1",
    "SELECT spcname FROM pg_tablespace ORDER BY 1",
    "SET enable_seqscan = off; SET enable_bitmapscan = off; SELECT count(id) FROM items WHERE id > 0",
    "SELECT count(*) FROM pg_class WHERE relname = 'gone'",
    "SELECT count(*), count(pg_xact_commit_timestamp(xmin)) FROM items",
    "SELECT name, xmax::text::bigint FROM items WHERE id = 1",
];

/// A workload of everything beside plain rows, ingested from WAL, is there on a branch; the branch and its parent go
/// their own ways.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_branch_holds_what_the_parent_wrote() {
    let folder = tempfile::tempdir().expect("folder");
    let (service, live) = service(folder.path()).await;
    let (archive, start) = backup(&service, &live, live.timeline.last_record_lsn()).await;
    let stamped = ["track_commit_timestamp=on"];
    let parent = Server::start(&archive, &start, &stamped);
    parent.sql("postgres", "CREATE DATABASE postgres_copy; \\c postgres_copy\nCREATE TABLE mark AS SELECT generate_series(1, 777) a;");
    parent.sql("postgres", WORKLOAD);
    let before: Vec<String> = CHECKS.iter().map(|sql| parent.sql("postgres", sql)).collect();
    // A transaction in flight at the branch point: aborted there.
    parent.sql("postgres", "CREATE TABLE late(a int)");
    let lsn = ingest(&live, &parent);
    let made =
        service.branch(TENANT, BRANCH, MAIN, Some(lsn), Default::default()).await.expect("branch");
    parent.sql("postgres", "INSERT INTO items(id) VALUES (-1); INSERT INTO late VALUES (1);");
    ingest(&live, &parent);

    let (archive, start) = backup(&service, &made.live, lsn).await;
    assert_eq!((start.pg_tli, start.history.clone()), (2, vec![(1, lsn)]));
    assert_eq!(start.max_prepared_transactions_needed, 1);
    assert_eq!(start.unreadable, vec![]);
    let mut branch = Server::start(&archive, &start, &stamped);
    let after: Vec<String> = CHECKS.iter().map(|sql| branch.sql("postgres", sql)).collect();
    assert_eq!(after, before);
    assert_eq!(branch.sql("postgres", "SELECT count(*) FROM late"), "0");
    assert_eq!(branch.sql("postgres", "SELECT count(*) FROM fleeting"), "0");
    branch.sql("postgres", "INSERT INTO fleeting VALUES (1); CREATE TABLE in_empty(a int) TABLESPACE empty; COMMIT PREPARED 'kept'");
    for database in ["postgres_copy", "copied"] {
        assert_eq!(branch.sql(database, "SELECT count(*), sum(a) FROM mark"), "777|302253");
    }
    branch.sql("logged", "SELECT count(*) FROM pg_class; CREATE TABLE works(a int)");
    let sequence: i64 =
        branch.sql("postgres", "SELECT nextval('numbers')").parse().expect("number");
    assert!((51..=100).contains(&sequence), "{sequence}");
    amcheck(&branch);
    branch.sql(
        "postgres",
        "INSERT INTO items(id) VALUES (-2); UPDATE items SET name = 'after' WHERE id = 1",
    );

    // The branch's own log is ingested onto its own timeline, and it starts again from there.
    branch.sql("postgres", "CHECKPOINT");
    let again = ingest(&made.live, &branch);
    branch.stop();
    let (archive, start) = backup(&service, &made.live, again).await;
    let restarted = Server::start(&archive, &start, &[]);
    assert_eq!(restarted.sql("postgres", "SELECT count(*) FROM items WHERE id < 0"), "1");
    assert_eq!(restarted.sql("postgres", "SELECT count(*) FROM items WHERE id = 1000000"), "1");
    assert_eq!(restarted.sql("postgres", "SELECT count(*) FROM pg_prepared_xacts"), "0");
    amcheck(&restarted);
    assert_eq!(parent.sql("postgres", "SELECT count(*) FROM items WHERE id < 0"), "1");
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

/// A relation whose records this version cannot redo is named, and refused by Postgres; the rest of the branch works.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_redone_is_named_and_refused() {
    let folder = tempfile::tempdir().expect("folder");
    let (service, live) = service(folder.path()).await;
    let (archive, start) = backup(&service, &live, live.timeline.last_record_lsn()).await;
    let parent = Server::start(&archive, &start, &[]);
    parent.sql(
        "postgres",
        "CREATE TABLE points(a int, p point); CREATE INDEX by_place ON points USING gist(p);",
    );
    parent.sql(
        "postgres",
        "INSERT INTO points SELECT g, point(g, g) FROM generate_series(1, 2000) g;",
    );
    let lsn = ingest(&live, &parent);
    let named = live.timeline.unreadable(lsn).expect("unreadable");
    if named.is_empty() {
        // A version that can redo GiST has nothing to name here.
        return;
    }
    let (archive, start) = backup(&service, &live, lsn).await;
    assert_eq!(start.unreadable.len(), 1);
    assert_eq!(start.unreadable[0].relation, named[0].rel);
    let server = Server::start(&archive, &start, &[]);
    assert_eq!(server.sql("postgres", "SELECT count(*) FROM points"), "2000");
    let lookup =
        "SET enable_seqscan = off; SELECT count(*) FROM points WHERE p <@ box '(0,0),(10,10)'";
    assert!(server.sql_error("postgres", lookup).contains("invalid page in block"));
    server.sql("postgres", "REINDEX INDEX by_place");
    assert_eq!(server.sql("postgres", lookup), "10");
}
