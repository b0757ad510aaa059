//! The data directory: its format mark, its lock, and where a running Treering can be reached.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use treering_fs::{RealFs, write_atomically};

/// The format this version writes. A directory of a higher one is refused.
const FORMAT: u32 = 1;
/// What each service owns, and who else may pass through: computes run as users of their own, below the agent.
const SERVICE_DIRS: [(&str, u32); 4] =
    [("control", 0o700), ("pageserver", 0o700), ("safekeeper", 0o700), ("agent", 0o711)];

/// How to reach a running `treering up`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Running {
    pub pid: u32,
    /// The default branch has answered. Before that the addresses are known, and some do not answer yet.
    pub ready: bool,
    pub control_http: String,
    pub pageserver_http: String,
    pub safekeeper_http: String,
    pub agent_http: String,
    pub pageserver_pg: String,
    pub safekeeper_pg: String,
    pub client_address: String,
}

/// What a first start that was cut short may have left.
fn is_of_a_first_start(entry: &fs::DirEntry) -> bool {
    entry.file_name() == "lock" || entry.file_name() == "format.tmp"
}

/// A directory that belongs to one `treering up`.
#[derive(Debug, Clone)]
pub struct DataDir(pub PathBuf);

impl DataDir {
    /// The directory used when none is named: below `/var/lib` for root, else below the user's data home.
    pub fn default_path() -> PathBuf {
        if rustix::process::geteuid().is_root() {
            return "/var/lib/treering".into();
        }
        let home = || std::env::var_os("HOME").map(|home| Path::new(&home).join(".local/share"));
        let base = std::env::var_os("XDG_DATA_HOME").map(PathBuf::from).or_else(home);
        base.unwrap_or_default().join("treering")
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// True questions only: what [`claim`](Self::claim) would refuse, refused before anything is written.
    ///
    /// # Errors
    /// A newer format; another `treering up` on it; a directory that holds something else.
    pub fn check(&self) -> anyhow::Result<()> {
        self.check_format()?;
        match File::open(self.file("lock")) {
            Ok(lock) => self.lock(&lock),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error).with_context(|| format!("open {}/lock", self.0.display())),
        }
    }

    /// True while a `treering up` owns the directory, also one that is starting or stopping.
    ///
    /// # Errors
    /// A directory that holds no Treering data, or data of a newer format.
    pub fn is_in_use(&self) -> anyhow::Result<bool> {
        self.check_format()?;
        if !self.file("format").exists() {
            bail!("{} holds no Treering data", self.0.display());
        }
        let lock = File::open(self.file("lock"));
        let lock = lock.with_context(|| format!("open {}/lock", self.0.display()))?;
        Ok(flock(&lock, FlockOperation::NonBlockingLockShared).is_err())
    }

    /// Creates the directory with all it needs and locks it for this process, for as long as the answer lives.
    ///
    /// # Errors
    /// Those of [`check`](Self::check); a directory that cannot be created.
    pub fn claim(&self) -> anyhow::Result<File> {
        self.check_format()?;
        let path = self.0.display();
        // Others may pass through (each compute runs as a user of its own) but not list.
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o711)
            .create(&self.0)
            .with_context(|| format!("create {path}"))?;
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(self.file("lock"))?;
        self.lock(&lock)?;
        if !self.file("format").exists() {
            // Durable before anything else is written: without it the rest would be taken for somebody else's.
            let mark = format!("treering {FORMAT}\n");
            write_atomically(&RealFs, &self.file("format"), mark.as_bytes())?;
        }
        for (name, mode) in SERVICE_DIRS {
            self.create_service_dir(name, mode).with_context(|| format!("create {path}/{name}"))?;
        }
        Ok(lock)
    }

    fn lock(&self, lock: &File) -> anyhow::Result<()> {
        if flock(lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            bail!("another `treering up` is running on {}", self.0.display());
        }
        Ok(())
    }

    fn create_service_dir(&self, name: &str, mode: u32) -> io::Result<()> {
        let dir = self.service_dir(name);
        match fs::DirBuilder::new().mode(mode).create(&dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        // Whatever the umask, and whoever created it.
        fs::set_permissions(dir, fs::Permissions::from_mode(mode))
    }

    /// What the service `name` owns.
    pub fn service_dir(&self, name: &str) -> PathBuf {
        self.file(name)
    }

    pub fn service_log(&self, name: &str) -> PathBuf {
        self.file(&format!("{name}.log"))
    }

    fn check_format(&self) -> anyhow::Result<()> {
        let path = self.0.display();
        let text = match fs::read_to_string(self.file("format")) {
            Ok(text) => text,
            Err(_) if !self.0.exists() => return Ok(()),
            Err(_) if fs::read_dir(&self.0)?.all(|e| e.is_ok_and(|e| is_of_a_first_start(&e))) => {
                return Ok(());
            }
            Err(_) => {
                bail!("{path} is not empty and holds no Treering data; choose another --data-dir")
            }
        };
        let found = text.trim().strip_prefix("treering ").and_then(|n| n.parse::<u32>().ok());
        match found {
            Some(found) if found > FORMAT => {
                bail!(
                    "{path} is of format {found}, newer than this version knows ({FORMAT}); nothing was changed"
                )
            }
            Some(_) => Ok(()),
            None => bail!("{path}/format is damaged: \"{}\"", text.trim()),
        }
    }

    /// Publishes where we can be reached.
    pub fn publish(&self, running: &Running) -> anyhow::Result<()> {
        let path = self.file("running.json");
        let fresh = self.file("running.json.new");
        let mut file =
            OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&fresh)?;
        file.write_all(&serde_json::to_vec_pretty(running)?)?;
        Ok(fs::rename(fresh, path)?)
    }

    /// Takes back what [`publish`](Self::publish) wrote.
    pub fn withdraw(&self) {
        let _ = fs::remove_file(self.file("running.json"));
    }

    /// Where the Treering of this directory can be reached.
    ///
    /// # Errors
    /// It is not running.
    pub fn running(&self) -> anyhow::Result<Running> {
        let not_running = || {
            format!("Treering is not running on {}; start it with `treering up`", self.0.display())
        };
        let text =
            fs::read(self.file("running.json")).map_err(|_| anyhow::anyhow!(not_running()))?;
        let running: Running = serde_json::from_slice(&text).with_context(not_running)?;
        if !Path::new(&format!("/proc/{}", running.pid)).exists() {
            bail!(not_running());
        }
        Ok(running)
    }
}
