//! The harness of the end-to-end tests: the real binary, real Postgres, real kills.
//!
//! A [`Treering`] is `treering up` on a temporary directory. Everything in it is found the way an operator would find
//! it: addresses in `running.json`, processes in `/proc`. The directory is kept when a test fails, and its path
//! printed. Nothing here sleeps for a fixed time; it waits for a condition with a deadline.

#![forbid(unsafe_code)]

pub mod blocks;
pub mod cut;
pub mod deployment;
pub mod lazy;
pub mod ledger;
pub mod pages;
pub mod processes;
pub mod quorum;
pub mod s3;
pub mod storage;
pub mod verify;

use std::{
    fs::{self, File},
    net::TcpListener,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio_postgres::{Client, Config, NoTls};

/// Where Debian puts the programs of Postgres 15.
pub const PG_BIN: &str = "/usr/lib/postgresql/15/bin";

/// Longest wait for `treering up`.
const UP_LIMIT: Duration = Duration::from_secs(120);

/// A running `treering up`.
pub struct Treering {
    dir: Option<tempfile::TempDir>,
    up: Child,
    /// Of `treering up`, beside the addresses.
    options: Vec<String>,
    environment: Vec<(&'static str, String)>,
    pub port: u16,
    pub running: Value,
}

/// The binary under test, built beside the tests.
pub fn binary() -> PathBuf {
    let own = std::env::current_exe().expect("own path");
    // target/<profile>/deps/<test>, or target/<profile>/<program>.
    let beside = own.ancestors().skip(1).take(2).map(|dir| dir.join("treering"));
    beside.into_iter().find(|path| path.is_file()).expect("`cargo build -p treering` first")
}

/// A port nobody listens on, and none that the kernel gives to connections: it stays free while its owner is down for a moment.
pub fn free_port() -> u16 {
    let is_free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
    let mut ports = std::iter::repeat_with(|| rand::random_range(10_000..30_000));
    ports.by_ref().take(1000).find(is_free).expect("a free port")
}

/// Waits until `condition` gives something; panics with `what` after `limit`.
pub fn wait_for<T>(what: &str, limit: Duration, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(found) = condition() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what}: not within {limit:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

impl Treering {
    /// `treering up` on a new directory, ready.
    pub fn start() -> Treering {
        Treering::start_with(&[""; 0])
    }

    /// The same with options of `treering up`.
    pub fn start_with(options: &[impl AsRef<str>]) -> Treering {
        Treering::start_in(options, Vec::new())
    }

    /// The same with more in its environment.
    pub fn start_in(
        options: &[impl AsRef<str>],
        environment: Vec<(&'static str, String)>,
    ) -> Treering {
        let dir = tempfile::Builder::new()
            .prefix("treering-test-")
            .tempdir()
            .expect("temporary directory");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o711)).expect("chmod");
        let port = free_port();
        let options: Vec<String> =
            options.iter().map(|option| option.as_ref().to_owned()).collect();
        let up = spawn_up(dir.path(), port, &options, &environment);
        let running = Value::Null;
        let mut treering = Treering { dir: Some(dir), up, options, environment, port, running };
        treering.wait_until_ready();
        treering
    }

    fn root(&self) -> &Path {
        self.dir.as_ref().expect("present until drop").path()
    }

    pub fn data_dir(&self) -> PathBuf {
        self.root().join("data")
    }

    fn wait_until_ready(&mut self) {
        let path = self.data_dir().join("running.json");
        let up = &mut self.up;
        let log = self.dir.as_ref().expect("present until drop").path().join("up.log");
        self.running = wait_for("treering up", UP_LIMIT, || {
            if let Some(status) = up.try_wait().expect("wait") {
                panic!(
                    "treering up ended: {status}\n{}",
                    fs::read_to_string(&log).unwrap_or_default()
                );
            }
            let running: Value = serde_json::from_slice(&fs::read(&path).ok()?).ok()?;
            (running["ready"] == true).then_some(running)
        });
    }

    /// Stops it with SIGINT as Ctrl-C does; answers how long that took.
    pub fn interrupt(&mut self) -> Duration {
        let began = Instant::now();
        signal(self.up.id(), Signal::INT);
        self.up.wait().expect("wait");
        began.elapsed()
    }

    /// Starts it again on the same directory and port.
    pub fn start_again(&mut self) {
        let _ = fs::remove_file(self.data_dir().join("running.json"));
        self.up = spawn_up(self.root(), self.port, &self.options, &self.environment);
        self.wait_until_ready();
    }

    /// The same with other options than before.
    pub fn start_again_with(&mut self, options: &[impl AsRef<str>]) {
        self.options = options.iter().map(|option| option.as_ref().to_owned()).collect();
        self.start_again();
    }

    /// SIGKILL to `up` and to every process it started.
    pub fn kill_everything(&mut self) {
        let mut family = vec![self.up.id() as i32];
        family.extend(processes::descendants(self.up.id() as i32));
        family.extend(processes::in_directory(&self.data_dir()));
        family.iter().for_each(|pid| processes::kill(*pid));
        self.up.wait().expect("wait");
        // A killed process keeps its ports until it has been taken down.
        wait_for("an end to what was killed", Duration::from_secs(30), || {
            family.iter().all(|pid| !processes::is_alive(*pid)).then_some(())
        });
    }

    /// The pid of `up`, the ancestor of all that runs.
    pub fn pid(&self) -> i32 {
        self.up.id() as i32
    }

    /// The pid of a service.
    pub fn service(&self, name: &str) -> i32 {
        wait_for(name, Duration::from_secs(30), || processes::service(self.up.id() as i32, name))
    }

    /// SIGKILL to a service, which `up` starts again.
    pub fn kill_service(&self, name: &str) {
        let old = self.service(name);
        processes::kill(old);
        wait_for("the service to come back", Duration::from_secs(30), || {
            processes::service(self.up.id() as i32, name).filter(|new| *new != old)
        });
    }

    /// Runs the command line.
    pub fn cli(&self, arguments: &[&str]) -> Output {
        Command::new(binary())
            .arg("--data-dir")
            .arg(self.data_dir())
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .expect("run treering")
    }

    /// Runs the command line, which must succeed; answers its stdout.
    pub fn ok(&self, arguments: &[&str]) -> String {
        let output = self.cli(arguments);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "treering {arguments:?}: {}\n{stderr}", output.status);
        String::from_utf8(output.stdout).expect("text")
    }

    /// Runs the command line with `-o json`.
    pub fn json(&self, arguments: &[&str]) -> Value {
        let mut all = arguments.to_vec();
        all.extend(["-o", "json"]);
        serde_json::from_str(&self.ok(&all)).expect("JSON")
    }

    /// How drivers connect to a branch.
    pub fn config(&self, branch: &str) -> Config {
        self.ok(&["connection-string", branch]).trim().parse().expect("a connection string")
    }

    pub async fn connect(&self, branch: &str) -> Client {
        self.try_connect(branch).await.unwrap_or_else(|e| panic!("connect to {branch}: {e:?}"))
    }

    pub async fn try_connect(&self, branch: &str) -> Result<Client, tokio_postgres::Error> {
        let (client, connection) = self.config(branch).connect(NoTls).await?;
        tokio::spawn(connection);
        Ok(client)
    }

    /// Connects again and again until it works: after a kill, services need a moment.
    pub async fn connect_in_time(&self, branch: &str) -> Client {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            match self.try_connect(branch).await {
                Ok(client) => return client,
                Err(error) if Instant::now() > deadline => panic!("connect to {branch}: {error:?}"),
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }

    /// A Postgres client program, with the environment that leads it to `branch`.
    pub fn program(&self, name: &str, branch: &str) -> Command {
        let config = self.config(branch);
        let mut command = Command::new(Path::new(PG_BIN).join(name));
        command
            .env("PGHOST", "127.0.0.1")
            .env("PGPORT", self.port.to_string())
            .env("PGUSER", config.get_user().expect("user"))
            .env(
                "PGPASSWORD",
                String::from_utf8_lossy(config.get_password().expect("password")).as_ref(),
            )
            .env("PGDATABASE", "postgres")
            .env("PGOPTIONS", format!("branch={branch}"))
            .stdin(Stdio::null());
        command
    }

    /// Runs a client program, which must succeed.
    pub fn run(&self, name: &str, branch: &str, arguments: &[&str]) -> String {
        let output = self.program(name, branch).args(arguments).output().expect(name);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{name} {arguments:?}: {stderr}");
        String::from_utf8(output.stdout).expect("text")
    }

    /// One value of SQL, through psql.
    pub fn sql(&self, branch: &str, query: &str) -> String {
        self.run("psql", branch, &["-X", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", query])
            .trim()
            .to_owned()
    }

    /// An address out of `running.json`.
    pub fn address(&self, name: &str) -> String {
        self.running[name].as_str().unwrap_or_else(|| panic!("no {name}")).to_owned()
    }

    /// GET of JSON from one of the services.
    pub async fn get(&self, service: &str, path: &str) -> Value {
        let url = format!("{}{path}", self.address(service));
        let answer = reqwest::get(&url).await.unwrap_or_else(|e| panic!("{url}: {e}"));
        let text = answer.text().await.expect("a body");
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{url}: {e}: {text}"))
    }
}

/// Whether a backend waits for its commit to be durable: from then on nothing cancels it.
pub async fn is_committing(client: &Client, pid: i32) -> bool {
    let waits = "SELECT 1 FROM pg_stat_activity
        WHERE pid = $1 AND wait_event IN ('WALSync', 'WALWrite', 'SyncRep')";
    client.query_opt(waits, &[&pid]).await.expect("activity").is_some()
}

/// Returns when it does. What the question itself reads must be there: ask [`is_committing`] before anything is frozen.
pub async fn until_committing(client: &Client, pid: i32) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !is_committing(client, pid).await {
        assert!(Instant::now() < deadline, "{pid} does not wait for its commit");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn spawn_up(
    root: &Path,
    port: u16,
    options: &[String],
    environment: &[(&'static str, String)],
) -> Child {
    let log = File::options().create(true).append(true).open(root.join("up.log")).expect("log");
    Command::new(binary())
        .arg("--data-dir")
        .arg(root.join("data"))
        .args(["up", "--listen-http", "127.0.0.1:0", "--listen", &format!("127.0.0.1:{port}")])
        .args(options)
        .envs(environment.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("log"))
        .stderr(log)
        .process_group(0)
        .spawn()
        .expect("start treering up")
}

fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid as i32) {
        let _ = kill_process(pid, signal);
    }
}

impl Drop for Treering {
    fn drop(&mut self) {
        if std::thread::panicking()
            && let Some(dir) = self.dir.take()
        {
            eprintln!("kept: {}", dir.keep().display());
        }
        if matches!(self.up.try_wait(), Ok(None)) {
            signal(self.up.id(), Signal::TERM);
            let _ = self.up.wait();
        }
    }
}
