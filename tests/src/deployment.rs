//! A deployment of single services, as on many machines: three safekeepers, a pageserver, control and an agent, each a
//! process of its own that nobody starts again but the test, with a network between them that can be cut.

use std::{
    fs::{self, File},
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio_postgres::{Client, Config, NoTls};

use crate::{
    binary,
    cut::{Cut, Way},
    free_port, processes,
};

/// Longest wait for a service, and for the first answer of a branch.
const READY_LIMIT: Duration = Duration::from_secs(60);
const CALL_LIMIT: Duration = Duration::from_secs(90);
const CHANGE_LIMIT: Duration = Duration::from_secs(180);
const SAFEKEEPERS: [u64; 3] = [1, 2, 3];

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// A service's process.
pub struct Service {
    command: Vec<String>,
    log: PathBuf,
    child: Option<Child>,
}

impl Service {
    fn new(dir: &Path, name: &str, command: Vec<String>) -> Service {
        let log = dir.join(format!("{name}.log"));
        let mut service = Service { command, log, child: None };
        service.start();
        service
    }

    /// Starts it; one that runs is left alone.
    pub fn start(&mut self) {
        if self.child.is_some() {
            return;
        }
        let log = File::options().create(true).append(true).open(&self.log).expect("log");
        let mut command = Command::new(binary());
        command.args(&self.command).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.child = Some(command.spawn().expect("start a service"));
    }

    pub fn pid(&self) -> Option<i32> {
        self.child.as_ref().map(|child| child.id() as i32)
    }

    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    pub fn freeze(&self) {
        self.pid().into_iter().for_each(processes::freeze);
    }

    pub fn thaw(&self) {
        self.pid().into_iter().for_each(processes::thaw);
    }

    fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            if let Some(pid) = Pid::from_raw(child.id() as i32) {
                let _ = kill_process(pid, Signal::CONT);
                let _ = kill_process(pid, Signal::TERM);
            }
            let _ = child.wait();
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A safekeeper and the ways to it.
pub struct Safekeeper {
    pub id: u64,
    pub process: Service,
    dir: PathBuf,
    pub wal: Cut,
    pub pg: Cut,
    pub http: Cut,
}

impl Safekeeper {
    /// All ways to it.
    pub fn set(&self, way: Way) {
        for cut in [&self.wal, &self.pg, &self.http] {
            cut.set(way);
        }
    }
}

/// An agent with a data directory of its own.
pub struct Agent {
    pub process: Service,
    pub dir: PathBuf,
    clients: SocketAddr,
    /// Of its command line, all but the safekeepers.
    words: Vec<String>,
}

impl Agent {
    /// Its computes' processes.
    pub fn computes(&self) -> Vec<i32> {
        processes::in_directory(&self.dir)
    }
}

/// See the module's head. Fields are stopped in this order.
pub struct Deployment {
    pub agent: Agent,
    pub pageserver: Service,
    pub control: Service,
    pub safekeepers: Vec<Safekeeper>,
    /// Where clients connect, whichever agent there is.
    pub clients: Cut,
    /// How control reaches the agent.
    to_agent: Cut,
    http: reqwest::Client,
    control_http: String,
    pageserver_http: String,
    pageserver_pg: String,
    pg_bin_dir: PathBuf,
    /// Of the command lines, all but the safekeepers.
    pageserver_words: Vec<String>,
    control_words: Vec<String>,
    /// Who decides on logs that are begun.
    members: Vec<u64>,
    next_safekeeper: u64,
    agents: u32,
    root: tempfile::TempDir,
}

impl Deployment {
    /// All services, with the default branch answering.
    pub async fn start(pg_bin_dir: &Path, pg_version: u32) -> Deployment {
        let root = tempfile::Builder::new().prefix("treering-test-").tempdir().expect("directory");
        fs::set_permissions(root.path(), fs::Permissions::from_mode(0o711)).expect("chmod");
        let mut safekeepers = Vec::new();
        for id in SAFEKEEPERS {
            safekeepers.push(start_safekeeper(root.path(), id).await);
        }
        let [pg, page_http, control] = [free_port(), free_port(), free_port()].map(loopback);
        let to_agent = Cut::to(loopback(9)).await;
        let clients = Cut::to(loopback(9)).await;
        let mut pageserver_words = service_words(root.path(), "pageserver");
        pageserver_words.extend(pairs(&[("--listen-pg", pg), ("--listen-http", page_http)]));
        pageserver_words.extend(["--pg-bin-dir".to_owned(), pg_bin_dir.display().to_string()]);
        let mut control_words = service_words(root.path(), "control");
        let listen = [("--listen-http", control), ("--client-address", clients.address)];
        control_words.extend(pairs(&listen));
        control_words.extend([
            "--pageserver-http".to_owned(),
            format!("http://{page_http}"),
            "--agent-http".to_owned(),
            format!("http://{}", to_agent.address),
            "--pg-version".to_owned(),
            pg_version.to_string(),
        ]);
        let nobody = || Service { command: Vec::new(), log: PathBuf::new(), child: None };
        let agent = Agent {
            process: nobody(),
            dir: PathBuf::new(),
            clients: loopback(9),
            words: Vec::new(),
        };
        let mut deployment = Deployment {
            agent,
            pageserver: nobody(),
            control: nobody(),
            safekeepers,
            clients,
            to_agent,
            http: reqwest::Client::builder().timeout(CALL_LIMIT).build().expect("a client"),
            control_http: format!("http://{control}"),
            pageserver_http: format!("http://{page_http}"),
            pageserver_pg: pg.to_string(),
            pg_bin_dir: pg_bin_dir.to_owned(),
            pageserver_words,
            control_words,
            members: SAFEKEEPERS.to_vec(),
            next_safekeeper: SAFEKEEPERS.len() as u64 + 1,
            agents: 0,
            root,
        };
        deployment.start_core();
        deployment.replace_agent();
        deployment.connect("main").await;
        deployment
    }

    /// Pageserver and control, with the safekeepers that there are.
    fn start_core(&mut self) {
        let https = ways(&self.safekeepers, "--safekeeper-http", http_of);
        let pgs = ways(&self.safekeepers, "--safekeeper-pg", |one| one.pg.address.to_string());
        let words = [&self.pageserver_words[..], &https, &pgs].concat();
        self.pageserver = Service::new(self.root.path(), "pageserver", words);
        let words = [&self.control_words[..], &https].concat();
        self.control = Service::new(self.root.path(), "control", words);
    }

    /// An agent's command line, with the safekeepers that there are.
    fn agent_words(&self, own: &[String]) -> Vec<String> {
        let https = ways(&self.safekeepers, "--safekeeper-http", http_of);
        let wals = ways(&self.safekeepers, "--safekeeper-wal", |one| one.wal.address.to_string());
        let members: Vec<_> = self.members.iter().map(u64::to_string).collect();
        let members = ["--members".to_owned(), members.join(",")];
        [own, &https, &wals, &members].concat()
    }

    /// Another agent takes the place of the one there was, which is given back as it is.
    pub fn replace_agent(&mut self) -> Agent {
        self.agents += 1;
        let name = format!("agent-{}", self.agents);
        let [clients, http] = [free_port(), free_port()].map(loopback);
        let dir = self.root.path().join(&name);
        let mut words = vec!["service".to_owned(), "agent".to_owned()];
        words.extend(["--data-dir".to_owned(), dir.display().to_string()]);
        words.extend(pairs(&[("--listen-clients", clients), ("--listen-http", http)]));
        words.extend(["--control-http".to_owned(), self.control_http.clone()]);
        words.extend(["--pageserver-http".to_owned(), self.pageserver_http.clone()]);
        words.extend(["--pageserver-pg".to_owned(), self.pageserver_pg.clone()]);
        words.extend(["--pg-bin-dir".to_owned(), self.pg_bin_dir.display().to_string()]);
        let process = Service::new(self.root.path(), &name, self.agent_words(&words));
        let next = Agent { process, dir, clients, words };
        self.clients.lead_to(clients);
        self.to_agent.lead_to(http);
        std::mem::replace(&mut self.agent, next)
    }

    /// Starts everybody anew who has to know where the safekeepers are. Computes live on.
    fn tell_of_safekeepers(&mut self) {
        self.pageserver.kill();
        self.control.kill();
        self.agent.process.kill();
        self.start_core();
        let words = self.agent_words(&self.agent.words);
        self.agent.process.command = words;
        self.agent.process.start();
    }

    /// The directory of a safekeeper that is dead is gone for good; a new one, under another number, takes its place.
    pub async fn replace_safekeeper(&mut self, nth: usize) {
        let id = self.next_safekeeper;
        self.next_safekeeper += 1;
        fs::remove_dir_all(&self.safekeepers[nth].dir).expect("remove the directory");
        self.safekeepers[nth] = start_safekeeper(self.root.path(), id).await;
        // Who is to decide is not yet who decides.
        self.tell_of_safekeepers();
        self.change_members().await;
        self.members = self.safekeepers.iter().map(|one| one.id).collect();
        self.tell_of_safekeepers();
        // Logs that were begun meanwhile.
        self.change_members().await;
    }

    async fn change_members(&self) {
        let ids: Vec<_> = self.safekeepers.iter().map(|one| one.id).collect();
        let url = format!("{}/v1/safekeepers/members", self.control_http);
        let deadline = Instant::now() + CHANGE_LIMIT;
        loop {
            let asked = self.http.put(&url).json(&json!({"members": ids})).send().await;
            let failure = match asked {
                Ok(answer) => {
                    let rows: Value = answer.json().await.expect("JSON");
                    let rows = rows.as_array().cloned().unwrap_or_else(|| panic!("{rows}"));
                    match rows.into_iter().find(|row| row.get("error").is_some()) {
                        None => return,
                        Some(row) => row.to_string(),
                    }
                }
                Err(error) => error.to_string(),
            };
            assert!(Instant::now() < deadline, "members {ids:?}: {failure}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// How clients reach a branch: through whichever agent there is.
    pub async fn config(&self, branch: &str) -> Config {
        let path = format!("/branches/{branch}/connection");
        let connection = self.call(reqwest::Method::GET, &path, None).await;
        let uri =
            connection.expect("a connection string")["uri"].as_str().expect("text").to_owned();
        let mut config: Config = uri.parse().expect("a connection string");
        config.connect_timeout(Duration::from_secs(5));
        config
    }

    /// How clients reach a branch at this agent, while there is another.
    pub async fn config_at(&self, branch: &str) -> Config {
        let there = self.config(branch).await;
        let mut config = Config::new();
        config.host("127.0.0.1").port(self.agent.clients.port());
        config.user(there.get_user().expect("user"));
        config.password(there.get_password().expect("password"));
        config.dbname("postgres").options(format!("branch={branch}"));
        config.connect_timeout(Duration::from_secs(5));
        config
    }

    /// Connects again and again until it works.
    pub async fn connect(&self, branch: &str) -> Client {
        let deadline = Instant::now() + READY_LIMIT;
        loop {
            let failure =
                match self.call(reqwest::Method::GET, "/branches/main/connection", None).await {
                    Ok(_) => match self.config(branch).await.connect(NoTls).await {
                        Ok((client, connection)) => {
                            tokio::spawn(connection);
                            return client;
                        }
                        Err(error) => format!("{error:?}"),
                    },
                    Err(error) => error,
                };
            assert!(Instant::now() < deadline, "connect to {branch}: {failure}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// A request below the default project.
    pub async fn call(
        &self,
        method: reqwest::Method,
        path: &str,
        body: Option<Value>,
    ) -> Result<Value, String> {
        let url = format!("{}/v1/projects/default{path}", self.control_http);
        let mut request = self.http.request(method, &url);
        if let Some(body) = body {
            request = request.json(&body);
        }
        let answer = request.send().await.map_err(|error| error.to_string())?;
        let status = answer.status();
        let value: Value = answer.json().await.map_err(|error| error.to_string())?;
        if status.is_success() { Ok(value) } else { Err(format!("{status}: {value}")) }
    }

    /// Creates a branch of `main` as it is now. What a fault refuses is tried again.
    pub async fn branch(&self, name: &str) -> Value {
        let deadline = Instant::now() + READY_LIMIT;
        loop {
            let body = json!({"name": name, "if_not_exists": true});
            match self.call(reqwest::Method::POST, "/branches", Some(body)).await {
                Ok(created) => return created,
                Err(error) => assert!(Instant::now() < deadline, "branch {name}: {error}"),
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// The safekeepers as control sees them.
    pub async fn safekeeper_views(&self) -> Vec<Value> {
        let url = format!("{}/v1/safekeepers", self.control_http);
        let answer = self.http.get(&url).send().await.expect("an answer");
        answer.json().await.expect("safekeepers")
    }

    /// The base URL of a safekeeper's API.
    pub fn safekeeper_http(&self, nth: usize) -> String {
        format!("http://{}", self.safekeepers[nth].http.address)
    }

    /// Kept when a test fails.
    pub fn root(&self) -> &Path {
        self.root.path()
    }
}

impl Drop for Deployment {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.root.disable_cleanup(true);
            eprintln!("kept: {}", self.root.path().display());
        }
    }
}

async fn start_safekeeper(root: &Path, id: u64) -> Safekeeper {
    let [wal, pg, http] = [free_port(), free_port(), free_port()].map(loopback);
    let name = format!("safekeeper-{id}");
    let dir = root.join(&name);
    let mut words = vec!["safekeeper".to_owned(), "--id".to_owned(), id.to_string()];
    words.extend(["--data-dir".to_owned(), dir.display().to_string()]);
    words.extend(pairs(&[("--listen-wal", wal), ("--listen-pg", pg), ("--listen-http", http)]));
    Safekeeper {
        id,
        process: Service::new(root, &name, words),
        dir,
        wal: Cut::to(wal).await,
        pg: Cut::to(pg).await,
        http: Cut::to(http).await,
    }
}

fn http_of(safekeeper: &Safekeeper) -> String {
    format!("http://{}", safekeeper.http.address)
}

fn service_words(root: &Path, name: &str) -> Vec<String> {
    let dir = root.join(name);
    fs::create_dir_all(&dir).expect("a directory");
    vec!["service".to_owned(), name.to_owned(), "--data-dir".to_owned(), dir.display().to_string()]
}

fn pairs(options: &[(&str, SocketAddr)]) -> Vec<String> {
    let words = options.iter().map(|(option, at)| [(*option).to_owned(), at.to_string()]);
    words.flatten().collect()
}

fn ways(
    safekeepers: &[Safekeeper],
    option: &str,
    address: impl Fn(&Safekeeper) -> String,
) -> Vec<String> {
    let words =
        safekeepers.iter().map(|one| [option.to_owned(), format!("{}={}", one.id, address(one))]);
    words.flatten().collect()
}
