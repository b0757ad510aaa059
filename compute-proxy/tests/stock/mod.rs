//! A stock Postgres of this machine in a directory of its own, and the client port in front of it.

use std::{
    fs::{self, File},
    os::unix::{
        fs::{MetadataExt, chown},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tempfile::TempDir;
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};
use tokio_postgres::{Client, NoTls};
use tokio_util::sync::CancellationToken;
use treering_compute_proxy::{
    route,
    wake::{BoxFuture, BranchName, CommitGate, GateError, Target, Wake, WakeError},
};
use treering_types::Lsn;

const BIN: &str = "/usr/lib/postgresql/15/bin";
pub const PASSWORD: &str = "correct horse";
const SOCKET: &str = ".s.PGSQL.5432";

/// A running server; it ends with this value.
pub struct Postgres {
    dir: TempDir,
    server: Child,
}

impl Postgres {
    /// Clean cluster with SCRAM on the socket, no TCP, and these settings.
    pub async fn start(settings: &[&str]) -> Postgres {
        let dir = tempfile::Builder::new().prefix("treering-relay").tempdir_in("/tmp").unwrap();
        let owner = unprivileged();
        if let Some((uid, gid)) = owner {
            chown(dir.path(), Some(uid), Some(gid)).unwrap();
        }
        let password = dir.path().join("password");
        fs::write(&password, PASSWORD).unwrap();
        let data = dir.path().join("data");
        let made = command("initdb", owner)
            .args([
                "-U",
                "postgres",
                "-A",
                "scram-sha-256",
                "--no-sync",
                "-E",
                "UTF8",
                "--no-locale",
            ])
            .arg("--pwfile")
            .arg(&password)
            .arg("-D")
            .arg(&data)
            .stdout(Stdio::null())
            .status();
        assert!(made.expect("Debian's postgresql-15 is installed").success(), "initdb");
        let log = File::create(dir.path().join("log")).unwrap();
        let mut server = command("postgres", owner);
        server.arg("-D").arg(&data).arg("-k").arg(dir.path());
        for setting in ["fsync=off", "listen_addresses=", "log_line_prefix=%m [%p] %e "] {
            server.args(["-c", setting]);
        }
        for setting in settings {
            server.args(["-c", setting]);
        }
        let server = server.stdout(Stdio::null()).stderr(log).spawn().unwrap();
        let postgres = Postgres { dir, server };
        postgres.admin().await;
        postgres
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join(SOCKET)
    }

    pub fn log(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    /// A superuser's connection that does not pass the relay.
    pub async fn admin(&self) -> Client {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            match admin(self.dir.path()).await {
                Ok(client) => return client,
                Err(error) if Instant::now() > deadline => panic!("no connection: {error:?}"),
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if let Some(pid) = rustix::process::Pid::from_raw(self.server.id() as i32) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::QUIT);
        }
        let _ = self.server.wait();
        if std::thread::panicking() {
            eprintln!("log of the server:\n{}", fs::read_to_string(self.log()).unwrap_or_default());
        }
    }
}

async fn admin(dir: &Path) -> Result<Client, tokio_postgres::Error> {
    let mut config = tokio_postgres::Config::new();
    config.host_path(dir).user("postgres").password(PASSWORD).dbname("postgres");
    let (client, connection) = config.connect(NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

/// initdb refuses root: then everything runs as the user Debian made for it.
fn unprivileged() -> Option<(u32, u32)> {
    let own = fs::metadata("/proc/self").unwrap().uid();
    if own != 0 {
        return None;
    }
    let passwd = fs::read_to_string("/etc/passwd").unwrap();
    let entry = passwd.lines().find_map(|line| line.strip_prefix("postgres:"));
    let mut ids = entry.expect("a user postgres").split(':').skip(1).map(|id| id.parse().unwrap());
    Some((ids.next().unwrap(), ids.next().unwrap()))
}

fn command(program: &str, owner: Option<(u32, u32)>) -> Command {
    let mut command = Command::new(Path::new(BIN).join(program));
    command.current_dir("/").env_clear();
    if let Some((uid, gid)) = owner {
        command.uid(uid).gid(gid);
    }
    command
}

/// A gate the test opens: the quorum has nothing until then.
pub struct TestGate {
    dir: PathBuf,
    commit: watch::Sender<Lsn>,
    asked: AtomicUsize,
    log_offset: AtomicU64,
    warned: Mutex<Vec<i32>>,
}

impl TestGate {
    fn new(postgres: &Postgres) -> Arc<TestGate> {
        Arc::new(TestGate {
            dir: postgres.dir.path().to_owned(),
            commit: watch::channel(Lsn::INVALID).0,
            asked: AtomicUsize::new(0),
            log_offset: AtomicU64::new(0),
            warned: Mutex::default(),
        })
    }

    /// From now on the quorum has everything.
    pub fn open(&self) {
        self.commit.send_replace(Lsn::MAX);
    }

    pub fn shut(&self) {
        self.commit.send_replace(Lsn::INVALID);
    }

    /// Waits until the relay has asked `times` times what there is to wait for.
    pub async fn asked(&self, times: usize) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while self.asked.load(Ordering::SeqCst) < times {
            assert!(Instant::now() < deadline, "the relay did not hold");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub fn times_asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

impl CommitGate for TestGate {
    fn commit_lsn(&self) -> Lsn {
        *self.commit.borrow()
    }

    fn flush_lsn(&self) -> BoxFuture<'_, Result<Lsn, GateError>> {
        Box::pin(async {
            self.asked.fetch_add(1, Ordering::SeqCst);
            let failed = |error: tokio_postgres::Error| GateError(error.to_string());
            let client = admin(&self.dir).await.map_err(failed)?;
            let row = client.query_one("SELECT pg_current_wal_flush_lsn()::text", &[]).await;
            Ok(row.map_err(failed)?.get::<_, String>(0).parse().unwrap())
        })
    }

    fn wait_for(&self, lsn: Lsn) -> BoxFuture<'_, Result<(), GateError>> {
        let mut commit = self.commit.subscribe();
        Box::pin(async move {
            let covered = commit.wait_for(|commit| *commit >= lsn).await;
            covered.map(|_| ()).map_err(|error| GateError(error.to_string()))
        })
    }

    fn drained_cancelled_waits(&self, pid: i32) -> bool {
        let log = fs::read_to_string(self.dir.join("log")).unwrap();
        let seen = self.log_offset.swap(log.len() as u64, Ordering::SeqCst) as usize;
        let mut warned = self.warned.lock();
        for line in log[seen..].lines().filter(|line| line.contains("] 01000 WARNING")) {
            let pid = line.split(['[', ']']).nth(1).unwrap();
            warned.push(pid.parse().unwrap());
        }
        let before = warned.len();
        warned.retain(|one| *one != pid);
        warned.len() < before
    }
}

/// Knows two branches, which are the same server.
struct OneServer(Target);

impl Wake for OneServer {
    fn ensure_running<'a>(
        &'a self,
        branch: &'a BranchName,
    ) -> BoxFuture<'a, Result<Target, WakeError>> {
        let branch = branch.clone();
        Box::pin(async move {
            match branch.as_str() {
                "main" | "dev" => Ok(self.0.clone()),
                "asleep" => Err(WakeError::NotNow { branch, reason: "it was stopped".into() }),
                _ => Err(WakeError::UnknownBranch { branch }),
            }
        })
    }

    fn socket_of_backend(&self, _: i32) -> Option<PathBuf> {
        Some(self.0.socket.clone())
    }
}

/// The client port in front of one server.
pub struct Port {
    pub number: u16,
    pub gate: Arc<TestGate>,
    serving: JoinHandle<()>,
}

impl Port {
    pub async fn before(postgres: &Postgres) -> Port {
        let gate = TestGate::new(postgres);
        let target = Target { socket: postgres.socket(), takes_clients: false, gate: gate.clone() };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let number = listener.local_addr().unwrap().port();
        let wake = Arc::new(OneServer(target));
        let serving = tokio::spawn(route::serve(listener, wake, CancellationToken::new()));
        Port { number, gate, serving }
    }

    pub async fn connect(&self) -> Client {
        let mut config = tokio_postgres::Config::new();
        config.host("127.0.0.1").port(self.number).user("postgres@dev").password(PASSWORD);
        let (client, connection) = config.dbname("postgres").connect(NoTls).await.unwrap();
        tokio::spawn(connection);
        client
    }

    /// Runs psql with this connection string (host and port are added) and input.
    pub async fn psql(&self, conninfo: &str, input: &str) -> Output {
        let conninfo = format!("host=127.0.0.1 port={} {conninfo}", self.number);
        let input = input.to_owned();
        tokio::task::spawn_blocking(move || {
            use std::io::Write;
            let mut psql = Command::new(Path::new(BIN).join("psql"))
                .env("PGPASSWORD", PASSWORD)
                .args([
                    "-X",
                    "-q",
                    "-A",
                    "-t",
                    "-w",
                    "-v",
                    "ON_ERROR_STOP=1",
                    "-v",
                    "VERBOSITY=verbose",
                    &conninfo,
                ])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            let mut stdin = psql.stdin.take().unwrap();
            let writer = std::thread::spawn(move || {
                let _ = stdin.write_all(input.as_bytes());
            });
            let output = psql.wait_with_output().unwrap();
            writer.join().unwrap();
            output
        })
        .await
        .unwrap()
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        self.serving.abort();
    }
}
