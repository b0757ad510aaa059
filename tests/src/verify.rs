//! Is a database whole? Asked of Postgres itself.

use tokio_postgres::Client;

/// Every btree through `bt_index_check` with `heapallindexed`, every table through `verify_heapam`.
pub async fn amcheck(client: &Client) {
    client
        .batch_execute("CREATE EXTENSION IF NOT EXISTS amcheck")
        .await
        .expect("amcheck is installed");
    let indexes = client
        .query(
            "SELECT c.oid::regclass::text, bt_index_check(c.oid, true) FROM pg_class c JOIN pg_am a ON a.oid = c.relam
             WHERE a.amname = 'btree' AND c.relkind = 'i' AND c.relpersistence = 'p'",
            &[],
        )
        .await
        .expect("bt_index_check");
    assert!(indexes.len() > 50, "only {} btrees were checked", indexes.len());
    let broken = client
        .query(
            "SELECT c.oid::regclass::text, v.blkno, v.offnum, v.msg FROM pg_class c
             CROSS JOIN LATERAL verify_heapam(c.oid) v WHERE c.relkind IN ('r', 't', 'm') AND c.relpersistence = 'p'",
            &[],
        )
        .await
        .expect("verify_heapam");
    for row in &broken {
        let (table, block, message): (String, i64, String) = (row.get(0), row.get(1), row.get(3));
        eprintln!("{table} block {block}: {message}");
    }
    assert!(broken.is_empty(), "{} broken tuples", broken.len());
}

/// The four sums that every TPC-B transaction keeps equal.
pub async fn pgbench_sums(client: &Client) {
    let row = client
        .query_one(
            "SELECT (SELECT coalesce(sum(abalance), 0) FROM pgbench_accounts),
                    (SELECT coalesce(sum(tbalance), 0) FROM pgbench_tellers),
                    (SELECT coalesce(sum(bbalance), 0) FROM pgbench_branches),
                    (SELECT coalesce(sum(delta), 0) FROM pgbench_history)",
            &[],
        )
        .await
        .expect("sums");
    let sums: [i64; 4] = [row.get(0), row.get(1), row.get(2), row.get(3)];
    assert!(
        sums.iter().all(|sum| *sum == sums[0]),
        "accounts, tellers, branches, history: {sums:?}"
    );
}
