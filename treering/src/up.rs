//! `treering up`: every service as a child process of ours, in the foreground.
//!
//! One process per service, so that any of them may die without the others: a service that ends unasked is started
//! again at the same address. Ctrl-C, SIGTERM and a closed terminal stop the agent first (which stops the computes
//! while the log still accepts their last WAL), then the rest, then whatever Postgres a killed agent left behind;
//! within ten seconds nothing is left, whatever state it was in.

mod keeper;
mod plan;

use std::{
    fmt::Display,
    future::Future,
    io::Write,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use clap::Args;
use tokio::{
    signal::unix::{SignalKind, signal},
    time::{Instant as Deadline, timeout},
};
use treering_compute_proxy::compute::reap;
use treering_control::model::{BranchView, Connection, ROOT_BRANCH};

use crate::{
    client::Client,
    data_dir::{DataDir, Running},
    history::HistoryArgs,
    leases::LeaseArgs,
    pages::PageArgs,
    store::StoreArgs,
    wal::WalArgs,
};
use keeper::Keeper;
use plan::Plan;

/// From the signal: how long the agent may take, and with it the computes for an orderly end.
const AGENT_STOP_LIMIT: Duration = Duration::from_millis(6_500);
/// From the signal: how long the other services may take.
const STOP_LIMIT: Duration = Duration::from_millis(8_000);
/// For computes that a killed agent left behind. They lose nothing: what was acknowledged is in the log.
const REAP_LIMIT: Duration = Duration::from_millis(1_000);
/// From the start to the first `SELECT 1`, the making of the cluster included.
const READY_LIMIT: Duration = Duration::from_secs(120);
const RETRY_PAUSE: Duration = Duration::from_millis(100);

#[derive(Debug, Args)]
pub struct UpArgs {
    /// Address for clients; port 0 lets the system choose.
    #[arg(long, default_value = "127.0.0.1:54320", env = "TREERING_LISTEN")]
    listen: SocketAddr,
    /// Address of the REST API; port 0 lets the system choose.
    #[arg(long, default_value = "127.0.0.1:54380")]
    listen_http: SocketAddr,
    /// Directory of the Postgres programs [default: /usr/lib/postgresql/15/bin, then PATH].
    #[arg(long, env = "TREERING_PG_BIN_DIR")]
    pg_bin_dir: Option<PathBuf>,
    /// How many safekeepers keep the log, each a process of its own: 1, 3 or 5. A majority of them acknowledges commits.
    /// A data directory keeps the number that it was made with [default: 1].
    #[arg(long, value_name = "N", value_parser = safekeeper_count)]
    safekeepers: Option<u64>,
    #[command(flatten)]
    pages: PageArgs,
    #[command(flatten)]
    leases: LeaseArgs,
    #[command(flatten)]
    history: HistoryArgs,
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    wal: WalArgs,
}

/// Runs until Ctrl-C, SIGTERM or SIGHUP. Whatever it refuses is refused before anything is written.
pub fn run(data_dir: &DataDir, arguments: UpArgs) -> anyhow::Result<()> {
    let postgres = treering_compute_proxy::find_postgres(arguments.pg_bin_dir.as_deref())?;
    data_dir.check()?;
    let safekeepers = data_dir.safekeepers(arguments.safekeepers)?;
    let plan = Plan::new(data_dir, &arguments, safekeepers, major_of(&postgres)?)?;
    let _lock = data_dir.claim(safekeepers)?;
    say(format_args!("Treering on {} with {}", data_dir.0.display(), postgres.display()));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = runtime.block_on(supervise(data_dir, plan));
    data_dir.withdraw();
    // A request that nobody answers any more does not hold us.
    runtime.shutdown_background();
    result
}

/// An even number survives no more than the odd one below it.
fn safekeeper_count(text: &str) -> Result<u64, String> {
    match text.parse() {
        Ok(count @ (1 | 3 | 5)) => Ok(count),
        Ok(_) | Err(_) => Err("1, 3 or 5".to_owned()),
    }
}

/// 17 of a program that says `postgres (PostgreSQL) 17.10 (Debian 17.10-1)`.
fn major_of(postgres: &Path) -> anyhow::Result<u32> {
    let said = Command::new(postgres).arg("--version").output();
    let said = said.with_context(|| postgres.display().to_string())?;
    let text = String::from_utf8_lossy(&said.stdout);
    let version = text.split_once("(PostgreSQL) ").map(|(_, version)| version).unwrap_or_default();
    let digits = version.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
    digits.parse().with_context(|| format!("{} --version says `{text}`", postgres.display()))
}

/// To the terminal, which may be gone: that is no reason to leave services behind.
fn say(what: impl Display) {
    let _ = writeln!(std::io::stderr(), "{what}");
}

async fn supervise(data_dir: &DataDir, plan: Plan) -> anyhow::Result<()> {
    let asked = asked_to_stop()?;
    let keepers: Vec<_> = plan.services.into_iter().map(Keeper::begin).collect();
    let result = tokio::select! {
        () = asked => Ok(()),
        failed = serve(data_dir, plan.running) => failed,
    };
    say("stopping");
    let began = Deadline::now();
    let (agent, others): (Vec<_>, _) = keepers.into_iter().partition(|k| k.name == "agent");
    keeper::end(agent, began + AGENT_STOP_LIMIT).await;
    keeper::end(others, began + STOP_LIMIT).await;
    reap_computes(data_dir).await;
    result
}

fn asked_to_stop() -> anyhow::Result<impl Future<Output = ()>> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    })
}

/// An agent that ended in order left none.
async fn reap_computes(data_dir: &DataDir) {
    let computes = data_dir.service_dir("agent").join("computes");
    let reaped = tokio::task::spawn_blocking(move || reap::kill_all_below(&computes));
    match timeout(REAP_LIMIT, reaped).await {
        Ok(Ok(Ok(_))) => {}
        Ok(Ok(Err(error))) => say(format_args!("a Postgres process may be left: {error}")),
        Ok(Err(_)) | Err(_) => say("a Postgres process may be left: killing it takes too long"),
    }
}

/// Waits for the first `SELECT 1`, says so, and then waits for ever: returns only failures.
async fn serve(data_dir: &DataDir, mut running: Running) -> anyhow::Result<()> {
    let began = Instant::now();
    data_dir.publish(&running)?;
    let connection = first_answer(&running.control_http).await?;
    running.ready = true;
    data_dir.publish(&running)?;
    say(format_args!("ready after {:.1} s; Ctrl-C stops it", began.elapsed().as_secs_f64()));
    let uri = connection.uri.replace(&connection.password, "********");
    say(format_args!("  connect:  psql \"{uri}\""));
    say("  branch:   treering branch create dev");
    std::future::pending().await
}

/// Brings the default branch up, whether it was stopped or not, and asks it `SELECT 1`. Tries again while services
/// come up.
async fn first_answer(control: &str) -> anyhow::Result<Connection> {
    let mut last_failure = None;
    let tries = async {
        loop {
            match try_once(control).await {
                Ok(connection) => return connection,
                Err(error) => last_failure = Some(error),
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    };
    if let Ok(connection) = timeout(READY_LIMIT, tries).await {
        return Ok(connection);
    }
    let why = last_failure.map_or_else(|| "no answer".to_owned(), |error| format!("{error:#}"));
    bail!("the default branch does not answer within {READY_LIMIT:?}: {why}")
}

async fn try_once(control: &str) -> anyhow::Result<Connection> {
    let control = control.to_owned();
    let connection = tokio::task::spawn_blocking(move || {
        let client = Client::new(&control)?;
        client.post::<BranchView>(&format!("/branches/{ROOT_BRANCH}/start"))?;
        client.get::<Connection>(&format!("/branches/{ROOT_BRANCH}/connection"))
    });
    let connection = connection.await??;
    select_one(&connection).await?;
    Ok(connection)
}

async fn select_one(to: &Connection) -> anyhow::Result<()> {
    let mut config = tokio_postgres::Config::new();
    config.host(&to.host).port(to.port).user(&to.role).password(&to.password);
    config.dbname(&to.database).options(&to.options);
    let (client, connection) = config.connect(tokio_postgres::NoTls).await?;
    let driver = tokio::spawn(connection);
    let answer = client.simple_query("SELECT 1").await;
    driver.abort();
    answer.map(drop).context("SELECT 1")
}
