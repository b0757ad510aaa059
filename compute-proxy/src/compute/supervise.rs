//! One running `postgres`: started, watched, stopped.

use std::{
    fs::File,
    io,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};

use super::{owner::Owner, reap};

/// How often an adopted postmaster (not our child) is looked at.
const ADOPTED_POLL: Duration = Duration::from_millis(100);

/// What to start.
pub struct Launch<'a> {
    pub postgres: &'a Path,
    pub branch_dir: &'a Path,
    pub data_dir: &'a Path,
    pub owner: Option<Owner>,
    pub settings: &'a [(&'static str, String)],
    pub log: File,
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
            .stdin(Stdio::null())
            .stdout(launch.log.try_clone()?)
            .stderr(launch.log)
            .process_group(0);
        if let Some(owner) = launch.owner {
            command.uid(owner.uid).gid(owner.gid);
        }
        let child = tokio::process::Command::from(command).spawn()?;
        let pid = child.id().and_then(|id| Pid::from_raw(id as i32));
        let pid = pid.ok_or_else(|| io::Error::other("the process ended before it had a pid"))?;
        Ok(Postmaster { pid, branch_dir: launch.branch_dir.to_owned(), child: Some(child) })
    }

    /// The postmaster that runs on `data_dir`, if one does (`postmaster.pid`, checked against its working directory).
    pub fn adopt(branch_dir: &Path, data_dir: &Path) -> io::Result<Option<Postmaster>> {
        let Ok(text) = std::fs::read_to_string(data_dir.join("postmaster.pid")) else {
            return Ok(None);
        };
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
    pub async fn stop(&mut self, patience: Duration) -> io::Result<()> {
        for (signal, limit) in [(Signal::INT, patience), (Signal::QUIT, Duration::from_secs(2))] {
            let _ = kill_process(self.pid, signal);
            if tokio::time::timeout(limit, self.wait()).await.is_ok() {
                break;
            }
        }
        self.kill().await
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
