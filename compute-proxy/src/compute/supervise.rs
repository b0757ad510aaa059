//! One running `postgres`: started, watched, stopped.

use std::{
    fs::File,
    io,
    os::{fd::AsRawFd, unix::process::CommandExt},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use parking_lot::Mutex;
use rustix::process::{Pid, Signal, kill_process};

use super::{beneath::Beneath, owner::Owner, reap};

/// How often an adopted postmaster (not our child) is looked at.
const ADOPTED_POLL: Duration = Duration::from_millis(100);

/// Whom a libpq connection made inside a compute logs in as when it names nobody: where a distribution starts Postgres, that is
/// its system user of this name.
const SUPERUSER: &str = "postgres";
/// More than a `postmaster.pid` ever holds.
const PID_FILE_BYTES_MAX: u64 = 4096;

/// What to start.
pub struct Launch<'a> {
    pub postgres: &'a Path,
    pub branch_dir: &'a Path,
    pub data_dir: &'a Path,
    pub owner: Option<Owner>,
    pub settings: &'a [(&'static str, String)],
    pub log: File,
    pub preload: Option<Preload<'a>>,
}

/// The page library and the shared file that it is to map.
pub struct Preload<'a> {
    pub path: &'a Path,
    pub shared_file: &'a File,
}

/// Held while a descriptor of ours can be inherited: only the postmaster that it is for is started meanwhile.
static SPAWNING: Mutex<()> = Mutex::new(());

/// How a stop went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// By itself, after its shutdown checkpoint.
    Clean,
    Forced,
}

/// A postmaster: our child, or one that an agent before us started.
pub struct Postmaster {
    pid: Pid,
    branch_dir: PathBuf,
    child: Option<tokio::process::Child>,
}

impl Postmaster {
    /// Starts the unmodified binary, in a process group of its own so that a Ctrl-C at the terminal reaches it only
    /// through us.
    pub fn start(launch: Launch<'_>) -> io::Result<Postmaster> {
        let mut command = std::process::Command::new(launch.postgres);
        command.arg("-D").arg(launch.data_dir);
        for (name, value) in launch.settings {
            command.arg("-c").arg(format!("{name}={value}"));
        }
        command
            .current_dir(launch.data_dir)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("LC_ALL", "C")
            // The compute's user id may have no name, and libpq in a backend (subscriptions, dblink) would look for one.
            .env("PGUSER", SUPERUSER)
            .stdin(Stdio::null())
            .stdout(launch.log.try_clone()?)
            .stderr(launch.log)
            .process_group(0);
        if let Some(owner) = launch.owner {
            command.uid(owner.uid).gid(owner.gid);
        }
        let _spawning = SPAWNING.lock();
        let shared_file = match &launch.preload {
            Some(preload) => {
                let fd = rustix::io::dup(preload.shared_file)?;
                command.env("LD_PRELOAD", preload.path);
                command.env("TREERING_PAGES", fd.as_raw_fd().to_string());
                Some(fd)
            }
            None => None,
        };
        let child = tokio::process::Command::from(command).spawn()?;
        drop(shared_file);
        let pid = child.id().and_then(|id| Pid::from_raw(id as i32));
        let pid = pid.ok_or_else(|| io::Error::other("the process ended before it had a pid"))?;
        Ok(Postmaster { pid, branch_dir: launch.branch_dir.to_owned(), child: Some(child) })
    }

    /// The postmaster that runs on `data_dir`, if one does (`postmaster.pid`, checked against its working directory).
    pub fn adopt(branch_dir: &Path, data_dir: &Path) -> io::Result<Option<Postmaster>> {
        let read =
            || Beneath::open(data_dir)?.read(Path::new("postmaster.pid"), PID_FILE_BYTES_MAX);
        let Ok(text) = read() else { return Ok(None) };
        let pid =
            text.lines().next().and_then(|line| line.trim().parse().ok()).and_then(Pid::from_raw);
        let Some(pid) = pid else { return Ok(None) };
        let alive = reap::processes_of(branch_dir)?.contains(&pid);
        Ok(alive.then(|| Postmaster { pid, branch_dir: branch_dir.to_owned(), child: None }))
    }

    /// The postmaster's process id.
    pub fn pid(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// Waits until the postmaster has ended; says how. Cancel-safe.
    pub async fn wait(&mut self) -> String {
        match &mut self.child {
            Some(child) => match child.wait().await {
                Ok(status) => status.to_string(),
                Err(error) => format!("wait failed: {error}"),
            },
            None => {
                while reap::is_alive(self.pid()) {
                    tokio::time::sleep(ADOPTED_POLL).await;
                }
                "ended".to_owned()
            }
        }
    }

    /// Fast shutdown; after `patience` an immediate one; in the end SIGKILL. Returns with every process gone.
    pub async fn stop(&mut self, patience: Duration) -> io::Result<End> {
        let mut end = End::Forced;
        let steps = [
            (Signal::INT, patience, End::Clean),
            (Signal::QUIT, Duration::from_secs(2), End::Forced),
        ];
        for (signal, limit, means) in steps {
            let _ = kill_process(self.pid, signal);
            if tokio::time::timeout(limit, self.wait()).await.is_ok() {
                end = means;
                break;
            }
        }
        self.kill().await.map(|()| end)
    }

    /// SIGKILL to the postmaster, without waiting. Its children notice and end.
    pub fn kill_soon(&self) {
        let _ = kill_process(self.pid, Signal::KILL);
    }

    /// SIGKILL to the whole tree; returns with every process gone.
    pub async fn kill(&mut self) -> io::Result<()> {
        let dir = self.branch_dir.clone();
        let reaped = tokio::task::spawn_blocking(move || reap::kill_all_of(&dir));
        let reaped = reaped.await.map_err(io::Error::other)?;
        if let Some(child) = &mut self.child {
            let _ = child.wait().await;
        }
        reaped.map(drop)
    }
}
