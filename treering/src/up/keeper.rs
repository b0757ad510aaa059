//! Keeps one service running: started again whenever it ends unasked, ended in order when asked, killed when it must.

use std::{
    fs::OpenOptions,
    os::unix::fs::OpenOptionsExt,
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::Context;
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    task::JoinHandle,
    time::{Instant as Deadline, timeout, timeout_at},
};
use tokio_util::sync::CancellationToken;

use super::{plan::Service, say};
use crate::service::SUPERVISED;

/// A service that ends again sooner than this is started with growing pauses.
const HEALTHY_AFTER: Duration = Duration::from_secs(10);
const RESTART_PAUSE_MIN: Duration = Duration::from_millis(100);
const RESTART_PAUSE_MAX: Duration = Duration::from_secs(5);
/// A killed process is gone at once, unless the kernel holds it.
const DEATH_LIMIT: Duration = Duration::from_millis(200);

/// A service being kept.
pub struct Keeper {
    pub name: String,
    orders: Orders,
    done: JoinHandle<()>,
}

#[derive(Clone, Default)]
struct Orders {
    /// End in order (SIGTERM).
    stop: CancellationToken,
    /// End now (SIGKILL).
    kill: CancellationToken,
}

impl Keeper {
    pub fn begin(service: Service) -> Keeper {
        let orders = Orders::default();
        let name = service.name.clone();
        Keeper { name, orders: orders.clone(), done: tokio::spawn(keep(service, orders)) }
    }
}

/// Ends services side by side; those that have not ended by `deadline` are killed.
pub async fn end(keepers: Vec<Keeper>, deadline: Deadline) {
    keepers.iter().for_each(|keeper| keeper.orders.stop.cancel());
    for Keeper { orders, mut done, .. } in keepers {
        if timeout_at(deadline, &mut done).await.is_err() {
            orders.kill.cancel();
            let _ = timeout(DEATH_LIMIT, done).await;
        }
    }
}

async fn keep(service: Service, orders: Orders) {
    let mut pause = RESTART_PAUSE_MIN;
    while !orders.stop.is_cancelled() {
        let began = Instant::now();
        match run_once(&service, &orders).await {
            Ok(None) => return,
            Ok(Some(how)) => {
                say(format_args!("{} ended ({how}); see {}", service.name, service.log.display()));
            }
            Err(error) => say(format_args!("{} cannot be started: {error:#}", service.name)),
        }
        pause = if began.elapsed() > HEALTHY_AFTER { RESTART_PAUSE_MIN } else { pause * 2 };
        pause = pause.min(RESTART_PAUSE_MAX);
        let _ = timeout(pause, orders.stop.cancelled()).await;
    }
}

/// Runs a service once: `None` when we ended it, else how it ended.
async fn run_once(service: &Service, orders: &Orders) -> anyhow::Result<Option<String>> {
    let mut child = start(service)?;
    if let Some(stdout) = child.stdout.take() {
        // The announcement; whatever else comes is read so that the pipe never fills.
        tokio::spawn(async move {
            let mut lines = BufReader::new(stdout).lines();
            while let Ok(Some(_)) = lines.next_line().await {}
        });
    }
    tokio::select! {
        status = child.wait() => return Ok(Some(status?.to_string())),
        () = orders.stop.cancelled() => terminate(&child),
    }
    tokio::select! {
        status = child.wait() => drop(status?),
        () = orders.kill.cancelled() => child.kill().await?,
    }
    Ok(None)
}

fn start(service: &Service) -> anyhow::Result<Child> {
    let log = OpenOptions::new().create(true).append(true).mode(0o600).open(&service.log)?;
    // This very program, even when its file has been replaced meanwhile.
    Command::new("/proc/self/exe")
        .args(&service.arguments)
        .env(SUPERVISED, std::process::id().to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .kill_on_drop(true)
        .spawn()
        .context("start a service process")
}

fn terminate(child: &Child) {
    if let Some(pid) = child.id().and_then(|id| Pid::from_raw(id as i32)) {
        let _ = kill_process(pid, Signal::TERM);
    }
}
