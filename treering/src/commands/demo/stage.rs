//! The throw-away Treering a demo plays on.

use std::{
    fs::{self, File},
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use reqwest::Method;
use rustix::process::{Pid, Signal, kill_process};
use tokio_postgres::{Client as Sql, NoTls};
use treering_control::{
    branches::CreateBranch,
    model::{BranchView, Connection, Created},
};

use crate::{client::Client, commands::connect::client_program, data_dir::DataDir};

/// Longest wait for `treering up` to be ready, and for it to be gone.
const UP_LIMIT: Duration = Duration::from_secs(90);

pub struct Stage {
    dir: PathBuf,
    up: Child,
    client: Client,
    bin_dir: PathBuf,
    step: u32,
}

impl Stage {
    /// Starts `treering up` in a new directory below `below` and waits until it is ready.
    pub fn set(below: &Path, pg_bin_dir: Option<&Path>) -> anyhow::Result<Stage> {
        let postgres = treering_compute_proxy::find_postgres(pg_bin_dir)?;
        let bin_dir = postgres.parent().context("the directory of postgres")?.to_owned();
        let dir = below.join(format!("treering-demo-{}", std::process::id()));
        fs::create_dir(&dir).with_context(|| format!("create {}", dir.display()))?;
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o711))?;
        let data = dir.join("data");
        let log = File::create(dir.join("up.log"))?;
        let mut command = Command::new("/proc/self/exe");
        command.arg("--data-dir").arg(&data).args([
            "up",
            "--listen-http",
            "127.0.0.1:0",
            "--listen",
            "127.0.0.1:0",
        ]);
        command.arg("--pg-bin-dir").arg(&bin_dir);
        // A process group of its own: Ctrl-C is ours to handle.
        let up = command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .spawn()?;
        // From here on `strike` cleans up, whatever happens.
        let mut stage =
            Stage { dir, up, client: Client::new("http://127.0.0.1:9")?, bin_dir, step: 0 };
        match stage.wait_until_up(&data) {
            Ok(client) => {
                stage.client = client;
                Ok(stage)
            }
            Err(error) => {
                let _ = stage.strike();
                Err(error)
            }
        }
    }

    fn wait_until_up(&mut self, data: &Path) -> anyhow::Result<Client> {
        let deadline = Instant::now() + UP_LIMIT;
        loop {
            if let Ok(running) = DataDir(data.to_owned()).running()
                && running.ready
            {
                return Client::new(&running.control_http);
            }
            let log = || fs::read_to_string(self.dir.join("up.log")).unwrap_or_default();
            if let Some(status) = self.up.try_wait()? {
                bail!("`treering up` ended ({status}):\n{}", log());
            }
            if Instant::now() > deadline {
                bail!("`treering up` is not ready after {UP_LIMIT:?}:\n{}", log());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Stops everything and removes every file.
    pub fn strike(mut self) -> anyhow::Result<()> {
        if let Some(pid) = Pid::from_raw(self.up.id() as i32) {
            let _ = kill_process(pid, Signal::TERM);
        }
        self.up.wait()?;
        fs::remove_dir_all(&self.dir).with_context(|| format!("remove {}", self.dir.display()))
    }

    /// Says what a step is about; the answer of [`Step::done`] says what happened and how long it took.
    pub fn step(&mut self, title: &str) -> Step {
        self.step += 1;
        println!("\n{}. {title}", self.step);
        Step(Instant::now())
    }

    pub async fn create_branch(
        &self,
        name: &str,
        from: Option<&str>,
        at: Option<String>,
    ) -> anyhow::Result<Created> {
        let request = CreateBranch {
            name: name.to_owned(),
            source_branch: from.map(str::to_owned),
            at,
            if_not_exists: false,
        };
        tokio::task::block_in_place(|| self.client.call(Method::POST, "/branches", Some(&request)))
    }

    pub fn branch(&self, name: &str) -> anyhow::Result<BranchView> {
        tokio::task::block_in_place(|| self.client.get(&format!("/branches/{name}")))
    }

    fn connection(&self, branch: &str) -> anyhow::Result<Connection> {
        tokio::task::block_in_place(|| self.client.get(&format!("/branches/{branch}/connection")))
    }

    /// A SQL connection to a branch through the client port.
    pub async fn connect(&self, branch: &str) -> anyhow::Result<Sql> {
        let to = self.connection(branch)?;
        let mut config = tokio_postgres::Config::new();
        config.host(&to.host).port(to.port).user(&to.role).password(&to.password);
        config.dbname(&to.database).options(&to.options);
        let (client, connection) =
            config.connect(NoTls).await.with_context(|| format!("connect to branch {branch}"))?;
        tokio::spawn(connection);
        Ok(client)
    }

    /// Runs pgbench on a branch; answers what it printed.
    pub fn pgbench(&self, branch: &str, arguments: &[&str]) -> anyhow::Result<String> {
        let to = self.connection(branch)?;
        let mut run = client_program(self.bin_dir.join("pgbench"), &to);
        run.args(arguments);
        let output = tokio::task::block_in_place(|| run.output()).context("run pgbench")?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(output.status.success(), "pgbench: {}", String::from_utf8_lossy(&output.stderr));
        Ok(text)
    }

    /// SIGKILL to a branch's postmaster and every backend of it.
    pub fn kill_compute(&self, branch: &str) -> anyhow::Result<()> {
        let pid =
            self.branch(branch)?.pid.with_context(|| format!("branch {branch} is not running"))?;
        let mut family = vec![pid];
        for entry in fs::read_dir("/proc")?.flatten() {
            let Some(child) = entry.file_name().to_str().and_then(|n| n.parse::<i32>().ok()) else {
                continue;
            };
            let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
            let parent =
                stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(1)?.parse().ok());
            if parent == Some(pid) {
                family.push(child);
            }
        }
        for pid in family.into_iter().filter_map(Pid::from_raw) {
            let _ = kill_process(pid, Signal::KILL);
        }
        Ok(())
    }
}

/// A step under way.
pub struct Step(Instant);

impl Step {
    /// Says what happened.
    pub fn done(&self, what: impl std::fmt::Display) {
        println!("   {what}  [{:.0} ms]", self.0.elapsed().as_secs_f64() * 1000.0);
    }
}
