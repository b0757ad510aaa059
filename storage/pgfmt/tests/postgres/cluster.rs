//! A throw-away Postgres 15 cluster in a temp folder, run as an unprivileged user.

use std::{
    fs,
    os::unix::fs::{MetadataExt, chown},
    path::{Path, PathBuf},
    process::Command,
};

use tempfile::TempDir;

const BIN_DIR_DEFAULT: &str = "/usr/lib/postgresql/15/bin";
/// Names the socket file only: each cluster has a folder of its own and no TCP port.
const PORT: &str = "5432";

pub struct Cluster {
    folder: TempDir,
    /// User and group that own the files, when we are root and the server must not be.
    owner: Option<(u32, u32)>,
    running: bool,
}

/// Runs to the end and answers with stdout; anything but success fails the test.
pub fn output_of(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{stderr}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

impl Cluster {
    /// initdb with checksums, then `settings` appended to its configuration.
    pub fn create(settings: &str) -> Cluster {
        let folder = tempfile::Builder::new().prefix("pgfmt-").tempdir().unwrap();
        let is_root = fs::metadata("/proc/self").unwrap().uid() == 0;
        let owner = is_root.then(|| {
            let id = |flag| output_of(Command::new("id").args([flag, "postgres"]));
            (id("-u").trim().parse().unwrap(), id("-g").trim().parse().unwrap())
        });
        let cluster = Cluster { folder, owner, running: false };
        cluster.give(cluster.folder.path());
        let args = ["--no-locale", "-E", "UTF8", "-U", "postgres", "-k", "--no-sync", "-D"];
        output_of(cluster.command("initdb").args(args).arg(cluster.data()));
        let settings = format!(
            "{settings}\nfsync=off\nlisten_addresses=''\nunix_socket_directories='{}'\n",
            cluster.folder.path().display()
        );
        let path = cluster.data().join("postgresql.conf");
        fs::write(&path, fs::read_to_string(&path).unwrap() + &settings).unwrap();
        cluster
    }

    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    pub fn wal_dir(&self) -> PathBuf {
        self.data().join("pg_wal")
    }

    /// One of the server's programs, as the unprivileged user, in plain English.
    pub fn command(&self, program: &str) -> Command {
        let dir = std::env::var("TREERING_PG15_BIN").unwrap_or(BIN_DIR_DEFAULT.to_owned());
        let program = Path::new(&dir).join(program);
        assert!(program.exists(), "PostgreSQL 15 is needed for this test: {program:?}");
        let mut command = match self.owner {
            Some((user, group)) => {
                let mut command = Command::new("setpriv");
                command.args([format!("--reuid={user}"), format!("--regid={group}")]);
                command.arg("--clear-groups").arg(program);
                command
            }
            None => Command::new(program),
        };
        command.env("LC_ALL", "C").current_dir(self.folder.path());
        command
    }

    pub fn client(&self, program: &str) -> Command {
        let mut command = self.command(program);
        command.arg("-h").arg(self.folder.path()).args(["-p", PORT, "-U", "postgres"]);
        command
    }

    /// Starts the server with an empty log.
    pub fn start(&mut self) {
        let log = self.folder.path().join("log");
        let _ = fs::remove_file(&log);
        let mut command = self.command("pg_ctl");
        command.args(["-w", "-t", "60", "start", "-D"]).arg(self.data()).arg("-l").arg(&log);
        let status = command.stdout(std::process::Stdio::null()).status().unwrap();
        assert!(status.success(), "start failed: {}", self.log());
        self.running = true;
    }

    /// Stops the server: `fast` or `immediate`.
    pub fn stop(&mut self, mode: &str) {
        let mut command = self.command("pg_ctl");
        output_of(command.args(["-w", "-m", mode, "stop", "-D"]).arg(self.data()));
        self.running = false;
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    pub fn sql(&self, sql: &str) -> String {
        let mut command = self.client("psql");
        command.args(["-X", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", sql]);
        output_of(&mut command).trim().to_owned()
    }

    pub fn pgbench(&self, args: &[&str]) {
        output_of(self.client("pgbench").args(args));
    }

    /// Writes a file below the data directory so that the server may use it.
    pub fn write(&self, name: &str, bytes: &[u8]) {
        let path = self.data().join(name);
        fs::write(&path, bytes).unwrap();
        self.give(&path);
    }

    fn give(&self, path: &Path) {
        if let Some((user, group)) = self.owner {
            chown(path, Some(user), Some(group)).unwrap();
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.running {
            let mut command = self.command("pg_ctl");
            let _ = command.args(["-m", "immediate", "stop", "-D"]).arg(self.data()).output();
        }
        if std::thread::panicking() {
            self.folder.disable_cleanup(true);
            eprintln!("kept: {}", self.folder.path().display());
        }
    }
}
