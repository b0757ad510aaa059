//! A Postgres to be measured over TCP: a branch's compute behind the client port, or a vanilla cluster.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, ensure};
use tokio_postgres::{Client, Config, NoTls, SimpleQueryMessage};
use treering_stock::{Cluster, Postgres};
use treering_tests::{PG_BIN, Treering, free_port, processes, wait_for};

/// Nothing but what a compute has too, and what makes it reachable as one. It replaces the settings of a throw-away cluster
/// (`fsync=off`, no TCP).
const VANILLA: &str = "fsync=on\nshared_buffers=128MB\nlisten_addresses='127.0.0.1'\n";

/// How to reach one of them.
#[derive(Clone)]
pub struct Server {
    pub name: &'static str,
    config: Config,
    port: u16,
    options: String,
    /// Ancestor of all its processes.
    pid: i32,
}

/// A running vanilla Postgres 15 with its defaults, durable, on a port of 127.0.0.1.
pub struct Vanilla {
    _cluster: Cluster,
    _standby: Option<Cluster>,
    pub server: Server,
}

impl Vanilla {
    pub fn start(name: &'static str) -> anyhow::Result<Vanilla> {
        let (cluster, port) = durable_cluster()?;
        Vanilla::serve(name, cluster, port)
    }

    /// The same with a stock synchronous standby, as durable as itself, on this machine.
    pub fn start_with_standby(name: &'static str) -> anyhow::Result<Vanilla> {
        let (cluster, port) = durable_cluster()?;
        let mut standby = Cluster::copy_of(cluster.postgres(), &cluster.data(), "")?;
        let upstream = format!("host=127.0.0.1 port={port} user=postgres application_name=standby");
        let settings = format!("port={}\nprimary_conninfo='{upstream}'\n", free_port());
        standby.write("postgresql.auto.conf", format!("{VANILLA}{settings}").as_bytes())?;
        standby.write("standby.signal", b"")?;
        let mut vanilla = Vanilla::serve(name, cluster, port)?;
        standby.start()?;
        vanilla._standby = Some(standby);
        let server = &vanilla.server;
        server.sql("ALTER SYSTEM SET synchronous_standby_names = 'standby'")?;
        server.sql("SELECT pg_reload_conf()")?;
        let state = "SELECT sync_state FROM pg_stat_replication";
        wait_for("a synchronous standby", Duration::from_secs(30), || {
            server.sql(state).ok().filter(|state| state == "sync")
        });
        Ok(vanilla)
    }

    fn serve(name: &'static str, mut cluster: Cluster, port: u16) -> anyhow::Result<Vanilla> {
        cluster.start()?;
        let mut config = Config::new();
        config.host("127.0.0.1").port(port).user("postgres").dbname("postgres");
        let lock = fs::read_to_string(cluster.data().join("postmaster.pid"))?;
        let pid = lock.lines().next().context("an empty postmaster.pid")?.parse()?;
        let server = Server { name, config, port, options: String::new(), pid };
        Ok(Vanilla { _cluster: cluster, _standby: None, server })
    }
}

/// With the defaults, and the port it will have.
fn durable_cluster() -> anyhow::Result<(Cluster, u16)> {
    let (cluster, port) = (Cluster::create(&Postgres::find(15)?, "")?, free_port());
    cluster.write("postgresql.auto.conf", format!("{VANILLA}port={port}\n").as_bytes())?;
    Ok((cluster, port))
}

impl Server {
    /// A branch's compute, started on first connect.
    pub fn ours(treering: &Treering, branch: &str) -> Server {
        Server {
            name: "ours",
            config: treering.config(branch),
            port: treering.port,
            options: format!("branch={branch}"),
            pid: treering.pid(),
        }
    }

    /// Seconds on a core so far: of the agent, the safekeeper, the pageserver and all computes, if it is ours.
    pub fn cpu_seconds(&self) -> f64 {
        processes::cpu_time(self.pid).as_secs_f64()
    }

    /// A client program that connects to `database`.
    fn program(&self, name: &str, database: &str) -> Command {
        let mut command = Command::new(Path::new(PG_BIN).join(name));
        command
            .env("PGHOST", "127.0.0.1")
            .env("PGPORT", self.port.to_string())
            .env("PGUSER", self.config.get_user().unwrap_or("postgres"))
            .env("PGDATABASE", database)
            .env("PGOPTIONS", &self.options)
            .stdin(Stdio::null());
        if let Some(password) = self.config.get_password() {
            command.env("PGPASSWORD", String::from_utf8_lossy(password).as_ref());
        }
        command
    }

    /// Runs pgbench; answers with what it printed.
    pub fn pgbench(&self, database: &str, arguments: &[&str]) -> anyhow::Result<String> {
        treering_stock::run(self.program("pgbench", database).args(arguments))
            .with_context(|| self.name)
    }

    pub fn session(&self) -> anyhow::Result<Session> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let client = runtime.block_on(async {
            let (client, connection) = self.config.connect(NoTls).await?;
            tokio::spawn(connection);
            anyhow::Ok(client)
        });
        Ok(Session { client: client.with_context(|| self.name)?, runtime })
    }

    /// One statement on a connection of its own.
    pub fn sql(&self, statement: &str) -> anyhow::Result<String> {
        self.session()?.sql(statement)
    }
}

/// A connection, simple protocol, one statement after the other.
pub struct Session {
    client: Client,
    runtime: tokio::runtime::Runtime,
}

impl Session {
    /// Answers with the first value of the first row, empty when there is none.
    pub fn sql(&self, statement: &str) -> anyhow::Result<String> {
        let answer = self.runtime.block_on(self.client.simple_query(statement));
        let answer = answer.with_context(|| statement.chars().take(80).collect::<String>())?;
        let first = answer.iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.get(0),
            _ => None,
        });
        Ok(first.unwrap_or_default().to_owned())
    }

    /// As [`Session::sql`], where there must be a value that is a number.
    pub fn number(&self, statement: &str) -> anyhow::Result<f64> {
        let value = self.sql(statement)?;
        ensure!(!value.is_empty(), "{statement}: no value");
        value.parse().with_context(|| value)
    }
}
