//! A throw-away cluster in a temporary folder, with no TCP port.

use std::{
    fs::{self, File},
    io::Write,
    os::unix::fs::chown,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use crate::{Postgres, run};

/// Names the socket file only.
pub(crate) const PORT: &str = "5432";

/// Longest wait for a server that is to end by itself.
const RECOVERY_LIMIT: Duration = Duration::from_secs(1800);

/// A data directory and its server, gone when dropped. After a panic the folder is kept and its path printed.
pub struct Cluster {
    home: TempDir,
    postgres: Postgres,
    /// User and group that own the files, when we are root and the server must not be.
    owner: Option<(u32, u32)>,
    running: bool,
}

impl Cluster {
    /// `initdb` with checksums, then `settings` appended to its configuration.
    pub fn create(postgres: &Postgres, settings: &str) -> Result<Cluster> {
        Cluster::create_with(postgres, &["-k"], settings)
    }

    /// As [`Cluster::create`], with `initdb` options of the caller's (checksums are one).
    pub fn create_with(postgres: &Postgres, options: &[&str], settings: &str) -> Result<Cluster> {
        let cluster = Cluster::home(postgres)?;
        let args = ["--no-locale", "-E", "UTF8", "-U", "postgres", "--no-sync", "-D"];
        let mut initdb = cluster.command("initdb")?;
        // 18 has checksums on unless told otherwise.
        let off = postgres.major >= 18 && !options.contains(&"-k");
        initdb.args(options).args(off.then_some("--no-data-checksums"));
        run(initdb.args(args).arg(cluster.data()))?;
        cluster.configure(settings)?;
        Ok(cluster)
    }

    /// A cluster on a copy of the data directory `from`, whose server is not running.
    pub fn copy_of(postgres: &Postgres, from: &Path, settings: &str) -> Result<Cluster> {
        let cluster = Cluster::home(postgres)?;
        run(Command::new("cp").args(["-a", "-T"]).arg(from).arg(cluster.data()))?;
        if let Some((user, group)) = cluster.owner {
            run(Command::new("chown")
                .args(["-R", &format!("{user}:{group}")])
                .arg(cluster.data()))?;
        }
        run(Command::new("chmod").args(["-R", "u+rwX,go-rwx"]).arg(cluster.data()))?;
        cluster.configure(settings)?;
        Ok(cluster)
    }

    fn home(postgres: &Postgres) -> Result<Cluster> {
        let home = tempfile::Builder::new().prefix("stock-").tempdir()?;
        let id = |flag| -> Result<u32> {
            Ok(run(Command::new("id").args([flag, "postgres"]))?.trim().parse()?)
        };
        let is_root = rustix::process::geteuid().is_root();
        let owner = if is_root { Some((id("-u")?, id("-g")?)) } else { None };
        let cluster = Cluster { home, postgres: postgres.clone(), owner, running: false };
        cluster.give(cluster.home.path())?;
        Ok(cluster)
    }

    /// Appends `settings` to the configuration: the next start goes by them.
    pub fn configure(&self, settings: &str) -> Result<()> {
        let home = self.home.path().display();
        let ours = format!(
            "\n{settings}\nfsync=off\nlisten_addresses=''\nunix_socket_directories='{home}'\n"
        );
        // Copies bring a configuration of their own, whose later lines win.
        for name in ["postgresql.conf", "postgresql.auto.conf"] {
            let path = self.data().join(name);
            let mut text = fs::read_to_string(&path).unwrap_or_default();
            text.push_str(&ours);
            self.write(name, text.as_bytes())?;
        }
        Ok(())
    }

    /// The folder of the data directory, the log and the socket.
    pub fn folder(&self) -> &Path {
        self.home.path()
    }

    pub fn data(&self) -> PathBuf {
        self.home.path().join("data")
    }

    pub fn wal_dir(&self) -> PathBuf {
        self.data().join("pg_wal")
    }

    pub fn postgres(&self) -> &Postgres {
        &self.postgres
    }

    /// One of the server's programs, as the user that may run it, in plain English.
    pub fn command(&self, program: &str) -> Result<Command> {
        let program = self.postgres.program(program)?;
        let mut command = match self.owner {
            Some((user, group)) => {
                let mut command = Command::new("setpriv");
                command.args([format!("--reuid={user}"), format!("--regid={group}")]);
                command.arg("--clear-groups").arg(program);
                command
            }
            None => Command::new(program),
        };
        command.env("LC_ALL", "C").current_dir(self.home.path());
        Ok(command)
    }

    /// A client program, connected as the superuser.
    pub fn client(&self, program: &str) -> Result<Command> {
        let mut command = self.command(program)?;
        command.arg("-h").arg(self.home.path()).args(["-p", PORT, "-U", "postgres"]);
        Ok(command)
    }

    /// Starts the server with an empty log.
    pub fn start(&mut self) -> Result<()> {
        let log = self.home.path().join("log");
        let _ = fs::remove_file(&log);
        let mut command = self.command("pg_ctl")?;
        command.args(["-w", "-t", "60", "start", "-D"]).arg(self.data()).arg("-l").arg(&log);
        let status = command.stdout(Stdio::null()).status()?;
        ensure!(status.success(), "the server did not start: {}", self.log());
        self.running = true;
        Ok(())
    }

    /// Stops the server: `fast` or `immediate`.
    pub fn stop(&mut self, mode: &str) -> Result<()> {
        let mut command = self.command("pg_ctl")?;
        run(command.args(["-w", "-t", "300", "-m", mode, "stop", "-D"]).arg(self.data()))?;
        self.running = false;
        Ok(())
    }

    /// Runs the server until it ends by itself, as recovery with a target does. One that hangs is killed.
    ///
    /// # Errors
    /// It ends in any other way than by a clean shutdown.
    pub fn run_to_end(&mut self) -> Result<()> {
        let log = File::create(self.home.path().join("log"))?;
        let mut command = self.command("postgres")?;
        command.arg("-D").arg(self.data()).stdin(Stdio::null());
        let mut server = command.stdout(log.try_clone()?).stderr(log).spawn()?;
        let deadline = Instant::now() + RECOVERY_LIMIT;
        let status = loop {
            if let Some(status) = server.try_wait()? {
                break status;
            }
            if Instant::now() > deadline {
                // The postmaster's death ends its children.
                server.kill()?;
                server.wait()?;
                bail!("the server did not end within {RECOVERY_LIMIT:?}: {}", self.log());
            }
            thread::sleep(Duration::from_millis(20));
        };
        ensure!(status.success(), "the server ended with {status}: {}", self.log());
        Ok(())
    }

    /// What the server wrote to its log since the start.
    pub fn log(&self) -> String {
        fs::read_to_string(self.home.path().join("log")).unwrap_or_default()
    }

    /// One statement in the database `postgres`; answers with the bare values.
    pub fn sql(&self, sql: &str) -> Result<String> {
        self.sql_in("postgres", sql)
    }

    /// One statement in a database.
    pub fn sql_in(&self, database: &str, sql: &str) -> Result<String> {
        let mut command = self.client("psql")?;
        command.args(["-X", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d", database, "-c", sql]);
        Ok(run(&mut command)?.trim().to_owned())
    }

    /// A script, statement by statement; the first error ends it. A script that waits for itself fails instead of
    /// hanging.
    pub fn script(&self, database: &str, script: &str) -> Result<()> {
        let mut command = self.client("psql")?;
        command.args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", database]);
        command.env("PGOPTIONS", "-c statement_timeout=120s -c client_min_messages=warning");
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn()?;
        let mut stdin = child.stdin.take().context("no standard input")?;
        stdin.write_all(script.as_bytes())?;
        drop(stdin);
        let output = child.wait_with_output()?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "script in {database}: {stderr}");
        Ok(())
    }

    pub fn pgbench(&self, args: &[&str]) -> Result<String> {
        run(self.client("pgbench")?.args(args))
    }

    /// Writes a file below the data directory so that the server may use it.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let path = self.data().join(name);
        fs::write(&path, bytes).with_context(|| path.display().to_string())?;
        self.give(&path)
    }

    /// Hands a file or folder to the server's user.
    pub fn give(&self, path: &Path) -> Result<()> {
        if let Some((user, group)) = self.owner {
            chown(path, Some(user), Some(group))?;
        }
        Ok(())
    }

    /// Leaves the folder behind and tells where it is.
    pub fn keep(mut self) -> PathBuf {
        self.home.disable_cleanup(true);
        self.home.path().to_owned()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.running
            && let Ok(mut command) = self.command("pg_ctl")
        {
            let _ = command.args(["-w", "-m", "immediate", "stop", "-D"]).arg(self.data()).output();
        }
        if std::thread::panicking() {
            self.home.disable_cleanup(true);
            eprintln!("kept: {}", self.home.path().display());
        }
    }
}
