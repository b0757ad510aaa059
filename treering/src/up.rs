//! `treering up`: every service as a child process of ours, in the foreground.
//!
//! One process per service, so that any of them may die without the others: a service that ends unasked is started
//! again at the same address. Ctrl-C stops the agent first (which stops the computes while the log still
//! accepts their last WAL), then the rest; within [`STOP_LIMIT`] nothing is left, whatever state it was in.

use std::{
    fs::OpenOptions,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use clap::Args;
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    signal::unix::{SignalKind, signal},
};
use tokio_util::sync::CancellationToken;
use treering_control::model::Connection;

use crate::{
    client::Client,
    data_dir::{DataDir, Running},
    service::SUPERVISED,
};

/// From the signal to the end of the last process.
const STOP_LIMIT: Duration = Duration::from_millis(9_000);
/// How long computes may take for an orderly end before everything else is stopped.
const AGENT_STOP_LIMIT: Duration = Duration::from_millis(7_000);
/// A service that ends again sooner than this is started with growing pauses.
const HEALTHY_AFTER: Duration = Duration::from_secs(10);
const RESTART_PAUSE_MAX: Duration = Duration::from_secs(5);

#[derive(Debug, Args)]
pub struct UpArgs {
    /// Address and port for clients.
    #[arg(long, default_value = "127.0.0.1:54320", env = "TREERING_LISTEN")]
    listen: SocketAddr,
    /// Address of the REST API; port 0 lets the system choose.
    #[arg(long, default_value = "127.0.0.1:54380")]
    listen_http: SocketAddr,
    /// Directory of the Postgres programs [default: /usr/lib/postgresql/15/bin, then PATH].
    #[arg(long, env = "TREERING_PG_BIN_DIR")]
    pg_bin_dir: Option<PathBuf>,
}

/// Runs until Ctrl-C or SIGTERM.
pub fn run(data_dir: &DataDir, arguments: UpArgs) -> anyhow::Result<()> {
    let postgres = treering_compute_proxy::find_postgres(arguments.pg_bin_dir.as_deref())?;
    let _lock = data_dir.claim()?;
    let plan = Plan::new(data_dir, &arguments)?;
    eprintln!("Treering on {} with {}", data_dir.0.display(), postgres.display());
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = runtime.block_on(supervise(data_dir, plan));
    data_dir.withdraw();
    result
}

/// A service and the command line that starts it.
struct Service {
    name: &'static str,
    arguments: Vec<String>,
    log: PathBuf,
}

/// Addresses chosen once, so that a restarted service is found where it was.
struct Plan {
    services: Vec<Service>,
    running: Running,
}

impl Plan {
    fn new(data_dir: &DataDir, arguments: &UpArgs) -> anyhow::Result<Plan> {
        check_free(arguments.listen, "for clients")?;
        let control = match arguments.listen_http.port() {
            0 => free_port()?,
            _ => arguments.listen_http,
        };
        check_free(control, "for the REST API")?;
        let [wal, safekeeper_pg, safekeeper_http, pageserver_pg, pageserver_http, agent_http] =
            [free_port()?, free_port()?, free_port()?, free_port()?, free_port()?, free_port()?];
        let http = |at: SocketAddr| format!("http://{at}");
        let running = Running {
            pid: std::process::id(),
            control_http: http(control),
            pageserver_http: http(pageserver_http),
            safekeeper_http: http(safekeeper_http),
            agent_http: http(agent_http),
            pageserver_pg: pageserver_pg.to_string(),
            safekeeper_pg: safekeeper_pg.to_string(),
            client_address: arguments.listen.to_string(),
        };
        let mut plan = Plan { services: Vec::new(), running };
        let r = plan.running.clone();
        let bin = arguments.pg_bin_dir.as_ref().map(|dir| dir.display().to_string());
        let bin = bin.map(|dir| vec![("--pg-bin-dir", dir)]).unwrap_or_default();
        let text = |at: SocketAddr| at.to_string();
        plan.add(
            data_dir,
            "safekeeper",
            vec![
                ("--listen-wal", text(wal)),
                ("--listen-pg", text(safekeeper_pg)),
                ("--listen-http", text(safekeeper_http)),
            ],
        )?;
        let mut pageserver = vec![
            ("--listen-pg", text(pageserver_pg)),
            ("--listen-http", text(pageserver_http)),
            ("--safekeeper-http", r.safekeeper_http.clone()),
            ("--safekeeper-pg", r.safekeeper_pg.clone()),
        ];
        pageserver.extend(bin.clone());
        plan.add(data_dir, "pageserver", pageserver)?;
        let mut agent = vec![
            ("--listen-clients", r.client_address.clone()),
            ("--listen-http", text(agent_http)),
            ("--control-http", r.control_http.clone()),
            ("--pageserver-http", r.pageserver_http.clone()),
            ("--pageserver-pg", r.pageserver_pg.clone()),
            ("--safekeeper-http", r.safekeeper_http.clone()),
            ("--safekeeper-wal", text(wal)),
        ];
        agent.extend(bin);
        plan.add(data_dir, "agent", agent)?;
        plan.add(
            data_dir,
            "control",
            vec![
                ("--listen-http", text(control)),
                ("--pageserver-http", r.pageserver_http),
                ("--safekeeper-http", r.safekeeper_http),
                ("--agent-http", r.agent_http),
                ("--client-address", r.client_address),
            ],
        )?;
        Ok(plan)
    }

    fn add(
        &mut self,
        data_dir: &DataDir,
        name: &'static str,
        options: Vec<(&str, String)>,
    ) -> anyhow::Result<()> {
        let own = data_dir.0.join(name);
        std::fs::create_dir_all(&own).with_context(|| format!("create {}", own.display()))?;
        let mut arguments = vec!["service".to_owned(), name.to_owned()];
        arguments.extend(["--data-dir".to_owned(), own.display().to_string()]);
        for (option, value) in options {
            arguments.extend([option.to_owned(), value]);
        }
        self.services.push(Service {
            name,
            arguments,
            log: data_dir.0.join(format!("{name}.log")),
        });
        Ok(())
    }
}

fn check_free(at: SocketAddr, what: &str) -> anyhow::Result<()> {
    TcpListener::bind(at).map(drop).with_context(|| format!("{at} {what} cannot be used"))
}

pub fn free_port() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind(crate::cli::loopback())?.local_addr()?)
}

async fn supervise(data_dir: &DataDir, plan: Plan) -> anyhow::Result<()> {
    let (mut interrupt, mut terminate) =
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let asked = async move {
        tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
    };
    let stop = CancellationToken::new();
    let keepers: Vec<_> = plan
        .services
        .into_iter()
        .map(|service| {
            let stop = stop.child_token();
            (service.name, stop.clone(), tokio::spawn(keep(service, stop)))
        })
        .collect();
    let failure = tokio::select! {
        () = asked => None,
        done = serve_until_failure(data_dir, &plan.running) => done.err(),
    };
    eprintln!("stopping");
    let deadline = tokio::time::Instant::now() + STOP_LIMIT;
    // Agent first, and the others only when it is done: computes end while their WAL is still accepted.
    for order in ["agent", ""] {
        let limit = if order == "agent" {
            tokio::time::Instant::now() + AGENT_STOP_LIMIT
        } else {
            deadline
        };
        let chosen =
            || keepers.iter().filter(|(name, ..)| (*name == "agent") == (order == "agent"));
        chosen().for_each(|(_, stop, _)| stop.cancel());
        for (_, _, keeper) in chosen() {
            while !keeper.is_finished() && tokio::time::Instant::now() < limit {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }
    // Dropping a keeper's child kills it (`kill_on_drop`).
    keepers.iter().for_each(|(_, _, keeper)| keeper.abort());
    for (_, _, keeper) in keepers {
        let _ = keeper.await;
    }
    failure.map_or(Ok(()), Err)
}

/// Waits for the first `SELECT 1`, says so, and then waits for ever.
async fn serve_until_failure(data_dir: &DataDir, running: &Running) -> anyhow::Result<()> {
    let began = Instant::now();
    let control = running.control_http.clone();
    let connection = first_connection(control).await?;
    select_one(&connection).await?;
    data_dir.publish(running)?;
    eprintln!("ready after {:.1} s; Ctrl-C stops it", began.elapsed().as_secs_f64());
    eprintln!("  connect:  psql \"{}\"", connection.uri.replace(&connection.password, "********"));
    eprintln!("  branch:   treering branch create dev");
    std::future::pending().await
}

async fn first_connection(control: String) -> anyhow::Result<Connection> {
    loop {
        let control = control.clone();
        let asked = tokio::task::spawn_blocking(move || {
            Client::new(&control)?.get::<Connection>("/branches/main/connection")
        });
        if let Ok(connection) = asked.await? {
            return Ok(connection);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// `SELECT 1` on the default branch, which starts its compute. Retried: services may still be coming up.
async fn select_one(to: &Connection) -> anyhow::Result<()> {
    let mut config = tokio_postgres::Config::new();
    config.host(&to.host).port(to.port).user(&to.role).password(&to.password);
    config.dbname(&to.database).options(&to.options);
    let deadline = Instant::now() + Duration::from_secs(120);
    loop {
        let attempt = async {
            let (client, connection) = config.connect(tokio_postgres::NoTls).await?;
            let driver = tokio::spawn(connection);
            let answer = client.simple_query("SELECT 1").await;
            driver.abort();
            answer
        };
        match attempt.await {
            Ok(_) => return Ok(()),
            Err(error) if Instant::now() > deadline => {
                let why = error
                    .as_db_error()
                    .map_or_else(|| error.to_string(), |e| e.message().to_owned());
                bail!("the default branch does not answer: {why}");
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
        }
    }
}

/// Keeps one service running until `stop`.
async fn keep(service: Service, stop: CancellationToken) {
    let mut pause = Duration::from_millis(100);
    while !stop.is_cancelled() {
        let began = Instant::now();
        match run_once(&service, &stop).await {
            Ok(None) => return,
            Ok(Some(how)) => {
                eprintln!("{} ended ({how}); see {}", service.name, service.log.display())
            }
            Err(error) => eprintln!("{} cannot be started: {error:#}", service.name),
        }
        pause =
            if began.elapsed() > HEALTHY_AFTER { Duration::from_millis(100) } else { pause * 2 };
        tokio::select! {
            () = tokio::time::sleep(pause.min(RESTART_PAUSE_MAX)) => {}
            () = stop.cancelled() => {}
        }
    }
}

/// Runs a service once: `None` when we stopped it, else how it ended.
async fn run_once(service: &Service, stop: &CancellationToken) -> anyhow::Result<Option<String>> {
    let mut child = start(service)?;
    if let Some(stdout) = child.stdout.take() {
        // The announcement; whatever else comes is read so that the pipe never fills.
        tokio::spawn(async move {
            let mut lines = BufReader::new(stdout).lines();
            while let Ok(Some(_)) = lines.next_line().await {}
        });
    }
    tokio::select! {
        status = child.wait() => Ok(Some(status?.to_string())),
        () = stop.cancelled() => {
            terminate(&child);
            child.wait().await?;
            Ok(None)
        }
    }
}

fn start(service: &Service) -> anyhow::Result<Child> {
    let log = OpenOptions::new().create(true).append(true).open(&service.log)?;
    let program = own_program()?;
    Command::new(program)
        .args(&service.arguments)
        .env(SUPERVISED, "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .kill_on_drop(true)
        .spawn()
        .context("start a service process")
}

/// This very program, even when its file has been replaced meanwhile.
fn own_program() -> anyhow::Result<PathBuf> {
    Ok(Path::new("/proc/self/exe").to_owned())
}

fn terminate(child: &Child) {
    if let Some(pid) = child.id().and_then(|id| Pid::from_raw(id as i32)) {
        let _ = kill_process(pid, Signal::TERM);
    }
}
