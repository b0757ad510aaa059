//! What the demo shows, step by step. Every claim is checked before it is printed.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, ensure};
use tokio_postgres::Client as Sql;

use super::stage::Stage;

/// A small shop: serial keys, foreign keys, a unique column, decimals, timestamps.
const SHOP: &str = "
    CREATE TABLE customers (id serial PRIMARY KEY, email text NOT NULL UNIQUE,
        created_at timestamptz NOT NULL DEFAULT now());
    CREATE TABLE products (id serial PRIMARY KEY, name text NOT NULL, price numeric(10,2) NOT NULL);
    CREATE TABLE orders (id serial PRIMARY KEY, customer_id int NOT NULL REFERENCES customers,
        status text NOT NULL, ordered_at timestamptz NOT NULL DEFAULT now());
    CREATE TABLE order_items (id serial PRIMARY KEY, order_id int NOT NULL REFERENCES orders,
        product_id int NOT NULL REFERENCES products, quantity int NOT NULL, price numeric(10,2) NOT NULL);
    INSERT INTO customers (email) SELECT 'customer' || n || '@example.com' FROM generate_series(1, 1000) n;
    INSERT INTO products (name, price) SELECT 'product ' || n, n * 1.25 FROM generate_series(1, 200) n;
    INSERT INTO orders (customer_id, status) SELECT 1 + n % 1000,
        CASE WHEN n % 10 < 5 THEN 'shipped' WHEN n % 10 < 8 THEN 'paid' ELSE 'open' END
        FROM generate_series(1, 5000) n;
    INSERT INTO order_items (order_id, product_id, quantity, price)
        SELECT 1 + n % 5000, 1 + n % 200, 1 + n % 3, (1 + n % 200) * 1.25 FROM generate_series(1, 12000) n;";

/// One row of text that differs when any row of the shop or of pgbench's tables does.
const FINGERPRINT: &str = "
    SELECT (SELECT md5(string_agg(t::text, '|' ORDER BY id)) FROM customers t)
        || (SELECT md5(string_agg(t::text, '|' ORDER BY id)) FROM products t)
        || (SELECT md5(string_agg(t::text, '|' ORDER BY id)) FROM orders t)
        || (SELECT md5(string_agg(t::text, '|' ORDER BY id)) FROM order_items t)
        || (SELECT count(*) || ':' || sum(abalance) || ':' || sum(hashtext(t::text)::bigint)
            FROM pgbench_accounts t)";

const STATUSES: &str = "SELECT string_agg(status || ' ' || n, ', ' ORDER BY status)
    FROM (SELECT status, count(*) AS n FROM orders GROUP BY status) s";

async fn text(sql: &Sql, query: &str) -> anyhow::Result<String> {
    Ok(sql.query_one(query, &[]).await?.try_get::<_, Option<String>>(0)?.unwrap_or_default())
}

async fn number(sql: &Sql, query: &str) -> anyhow::Result<i64> {
    Ok(sql.query_one(query, &[]).await?.try_get(0)?)
}

/// The whole story.
pub async fn play(stage: &mut Stage, scale: u32) -> anyhow::Result<()> {
    load(stage, scale).await?;
    let (main, dev) = branch(stage).await?;
    diverge(stage, &main, &dev).await?;
    travel_back(stage, &main).await?;
    branch_of_a_branch(stage, &dev).await?;
    drop((main, dev));
    survive_a_kill(stage).await?;
    println!("\nAll of it held.");
    Ok(())
}

async fn load(stage: &mut Stage, scale: u32) -> anyhow::Result<()> {
    let step = stage.step("Load data into stock Postgres");
    let main = stage.connect("main").await?;
    let version = text(&main, "SELECT version()").await?;
    step.done(version.split(" on ").next().unwrap_or_default());
    main.batch_execute(SHOP).await.context("load the shop")?;
    step.done("a shop: customers 1000, products 200, orders 5000, order_items 12000");
    stage.pgbench("main", &["-i", "-q", "-s", &scale.to_string()])?;
    let accounts = number(&main, "SELECT count(*) FROM pgbench_accounts").await?;
    ensure!(accounts == i64::from(scale) * 100_000, "pgbench loaded {accounts} accounts");
    step.done(format_args!("pgbench scale {scale}: {accounts} accounts"));
    Ok(())
}

async fn branch(stage: &mut Stage) -> anyhow::Result<(Sql, Sql)> {
    let step = stage.step("Branch it");
    let created = stage.create_branch("dev", None, None).await?;
    step.done(format_args!("branch dev of main at {}", created.branch.branch_lsn));
    let step = stage.step("First query on the branch: its own Postgres starts");
    let dev = stage.connect("dev").await?;
    let main = stage.connect("main").await?;
    step.done("connected");
    let (on_main, on_dev) = (text(&main, FINGERPRINT).await?, text(&dev, FINGERPRINT).await?);
    ensure!(on_main == on_dev, "rows differ at the fork: {on_main} / {on_dev}");
    step.done("every row of every table is the same on both");
    Ok((main, dev))
}

async fn diverge(stage: &mut Stage, main: &Sql, dev: &Sql) -> anyhow::Result<()> {
    let step = stage.step("Write on both sides");
    main.batch_execute("INSERT INTO customers (email) VALUES ('only-on-main@example.com')").await?;
    dev.batch_execute(
        "ALTER TABLE products ADD COLUMN discontinued boolean NOT NULL DEFAULT false;
         DELETE FROM order_items WHERE id % 2 = 0",
    )
    .await?;
    let seen = "SELECT count(*) FROM customers WHERE email = 'only-on-main@example.com'";
    let column =
        "SELECT count(*) FROM information_schema.columns WHERE column_name = 'discontinued'";
    let items = "SELECT count(*) FROM order_items";
    ensure!(number(dev, seen).await? == 0, "a row written on main shows on dev");
    ensure!(number(main, seen).await? == 1, "a row written on main is missing there");
    ensure!(number(main, column).await? == 0, "a column added on dev shows on main");
    ensure!(number(main, items).await? == 12_000, "rows deleted on dev are gone from main");
    ensure!(number(dev, items).await? == 6_000, "rows deleted on dev are still there");
    step.done("a row on main, a column and a deletion on dev: neither sees the other's");
    Ok(())
}

async fn travel_back(stage: &mut Stage, main: &Sql) -> anyhow::Result<()> {
    let step = stage.step("Make a mistake, and travel back to before it");
    let before = text(main, STATUSES).await?;
    let moment = text(
        main,
        "SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')",
    )
    .await?;
    let hit = main.execute("UPDATE orders SET status = 'cancelled'", &[]).await?;
    let after = text(main, STATUSES).await?;
    ensure!(after == "cancelled 5000", "the mistake did not happen: {after}");
    step.done(format_args!("UPDATE without WHERE hit {hit} orders: {after}"));
    let step = stage.step("Branch main at the moment before");
    let created = stage.create_branch("before", None, Some(moment.clone())).await?;
    step.done(format_args!("branch before at {moment} is {}", created.branch.branch_lsn));
    let old = stage.connect("before").await?;
    let found = text(&old, STATUSES).await?;
    ensure!(found == before, "the old values are not there: {found}, not {before}");
    step.done(format_args!("the old values are there: {found}"));
    Ok(())
}

async fn branch_of_a_branch(stage: &mut Stage, dev: &Sql) -> anyhow::Result<()> {
    let step = stage.step("Branch the branch");
    stage.create_branch("dev-of-dev", Some("dev"), None).await?;
    let grandchild = stage.connect("dev-of-dev").await?;
    ensure!(
        text(dev, FINGERPRINT).await? == text(&grandchild, FINGERPRINT).await?,
        "the branch of the branch differs from its parent"
    );
    grandchild.batch_execute("TRUNCATE order_items").await?;
    ensure!(
        number(dev, "SELECT count(*) FROM order_items").await? == 6_000,
        "its parent changed with it"
    );
    step.done("main > dev > dev-of-dev: same rows, and a TRUNCATE below leaves dev alone");
    Ok(())
}

async fn survive_a_kill(stage: &mut Stage) -> anyhow::Result<()> {
    let step = stage.step("kill -9 Postgres in mid-load");
    let setup = stage.connect("main").await?;
    setup
        .batch_execute("CREATE TABLE ledger (writer int, n bigint, PRIMARY KEY (writer, n))")
        .await?;
    let stop = Arc::new(AtomicBool::new(false));
    let mut writers = Vec::new();
    for writer in 0..4_i32 {
        let sql = stage.connect("main").await?;
        let stop = stop.clone();
        writers.push(tokio::spawn(async move {
            let mut acknowledged = 0_i64;
            while !stop.load(Ordering::Relaxed) {
                let next = acknowledged + 1;
                if sql
                    .execute("INSERT INTO ledger VALUES ($1, $2)", &[&writer, &next])
                    .await
                    .is_err()
                {
                    break;
                }
                acknowledged = next;
            }
            acknowledged
        }));
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    stage.kill_compute("main")?;
    stop.store(true, Ordering::Relaxed);
    let mut acknowledged = Vec::new();
    for writer in writers {
        acknowledged.push(writer.await?);
    }
    let total: i64 = acknowledged.iter().sum();
    ensure!(acknowledged.iter().all(|n| *n > 0), "the load never ran: {acknowledged:?}");
    step.done(format_args!("{total} commits were acknowledged before the kill"));
    let step = stage.step("Connect again: a new Postgres starts from storage");
    let main = stage.connect("main").await?;
    for (writer, acknowledged) in acknowledged.iter().enumerate() {
        let query =
            format!("SELECT count(*) FROM ledger WHERE writer = {writer} AND n <= {acknowledged}");
        let present = number(&main, &query).await?;
        ensure!(
            present == *acknowledged,
            "writer {writer}: {acknowledged} acknowledged, {present} present"
        );
    }
    step.done(format_args!("all {total} are there"));
    Ok(())
}
