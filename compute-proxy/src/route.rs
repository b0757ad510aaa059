//! The client port: who is let in, and to which branch's compute.
//!
//! A connection names its branch in one of these ways, or gets the default one:
//!
//! | where | example |
//! |---|---|
//! | start-up option | `options='branch=dev'`, `options='-c treering.branch=dev'` |
//! | user suffix | `alice@dev` |
//! | database suffix | `shop@dev` |
//!
//! What stands behind the **last** `@` is the suffix; an empty one names nothing, so a role really called `a@b` connects as
//! `a@b@`. Options and suffixes are cut before the compute sees them. Two names that differ are an error, never a guess.
//! Authentication is the compute's: SCRAM passes through, end to end.

use std::{io, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UnixStream},
    task::JoinSet,
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use treering_types::ErrorKind;
use treering_wire::{
    WireError,
    backend::{Report, Writer, sqlstate},
    startup::{self, ReplicationMode, StartupMessage, StartupPacket},
};

use crate::{
    cancel,
    compute::settings,
    relay::{self, hand},
    wake::{BranchName, BranchNameError, Target, Wake, WakeError},
};

/// How long a client may take for its start-up packet: Postgres's own default (`authentication_timeout`).
const STARTUP_LIMIT: Duration = Duration::from_secs(60);
/// Connections at the same time, cancel requests included.
const CONNECTIONS_MAX: usize = 4096;
/// SSLRequest and GSSENCRequest, each once.
const NEGOTIATIONS_MAX: usize = 2;
/// A compute that died is noticed a moment later; until then its socket refuses. Two seconds are many times that moment.
const CONNECT_ATTEMPTS_MAX: usize = 80;
const CONNECT_PAUSE: Duration = Duration::from_millis(25);
/// Pause after a failed accept (out of file descriptors), so that it does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// The names of the start-up option.
const BRANCH_OPTIONS: [&str; 2] = ["branch", "treering.branch"];

/// Serves the client port until `stop` is cancelled and every session has ended; dropping the future ends them at once.
pub async fn serve(listener: TcpListener, wake: Arc<dyn Wake>, stop: CancellationToken) {
    let mut sessions = JoinSet::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = sessions.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((client, peer)) => {
                    let wake = wake.clone();
                    let full = sessions.len() >= CONNECTIONS_MAX;
                    sessions.spawn(async move {
                        if let Err(error) = serve_client(client, wake, full).await {
                            tracing::debug!(%peer, "client connection ended: {error:#}");
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!("accept a client: {error}");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
    drop(listener);
    while sessions.join_next().await.is_some() {}
}

async fn serve_client(
    mut client: TcpStream,
    wake: Arc<dyn Wake>,
    full: bool,
) -> anyhow::Result<()> {
    client.set_nodelay(true)?;
    rustix::net::sockopt::set_socket_keepalive(&client, true)?;
    let mut input = BytesMut::new();
    let opened = timeout(STARTUP_LIMIT, open(&mut client, &mut input)).await;
    let startup = match opened? {
        Ok(None) => return Ok(()),
        Ok(Some(StartupPacket::Cancel(key))) => {
            if let Some(socket) = wake.socket_of_backend(key.pid) {
                cancel::forward(&key, &socket).await?;
            }
            return Ok(());
        }
        Ok(Some(StartupPacket::Startup(startup))) => startup,
        Ok(Some(StartupPacket::SslRequest | StartupPacket::GssEncRequest)) => {
            let report =
                Report::fatal(sqlstate::PROTOCOL_VIOLATION, "encryption was refused before");
            return refuse(client, &report).await;
        }
        Err(OpenError::Io(error)) => return Err(error.into()),
        Err(OpenError::Wire(error)) => {
            let report = Report::fatal(sqlstate::PROTOCOL_VIOLATION, error.to_string());
            return refuse(client, &report).await;
        }
    };
    if full {
        let report = Report::fatal(sqlstate::TOO_MANY_CONNECTIONS, "too many clients already");
        return refuse(client, &report).await;
    }
    let routed = match route(startup, wake.default_branch()) {
        Ok(routed) => routed,
        Err(error) => return refuse(client, &error.report()).await,
    };
    let reached = tokio::select! {
        reached = reach(wake, routed.branch) => reached,
        () = gone(&client) => return Ok(()),
    };
    let (target, mut compute) = match reached {
        Ok(reached) => reached,
        Err(error) => return refuse(client, &error.report()).await,
    };
    let mut first = BytesMut::new();
    routed.startup.encode(&mut first)?;
    first.extend_from_slice(&input);
    drop(input);
    if target.takes_clients {
        let Some(handed) = hand::over(client, compute, &first).await? else { return Ok(()) };
        tracing::debug!(backend = handed.backend_pid, "a backend has its client");
        handed.ended().await;
        return Ok(());
    }
    compute.write_all(&first).await?;
    Ok(relay::run(&mut client, &mut compute, &*target.gate).await?)
}

#[derive(Debug, thiserror::Error)]
enum OpenError {
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Reads up to the first packet that is more than a question about encryption; `None`: the client left.
async fn open(
    client: &mut TcpStream,
    input: &mut BytesMut,
) -> Result<Option<StartupPacket>, OpenError> {
    let mut negotiations = 0;
    loop {
        match startup::parse(input)? {
            Some(StartupPacket::SslRequest | StartupPacket::GssEncRequest)
                if negotiations < NEGOTIATIONS_MAX =>
            {
                negotiations += 1;
                client.write_all(b"N").await?;
            }
            Some(packet) => return Ok(Some(packet)),
            None if client.read_buf(input).await? == 0 => return Ok(None),
            None => {}
        }
    }
}

async fn refuse(mut client: TcpStream, report: &Report) -> anyhow::Result<()> {
    let mut out = Writer::new();
    out.error(report);
    client.write_all(&out.take()).await?;
    client.shutdown().await?;
    Ok(())
}

/// Returns when the client has closed; never when it has sent something instead.
async fn gone(client: &TcpStream) {
    if let Ok(1..) = client.peek(&mut [0; 1]).await {
        std::future::pending().await
    }
}

/// Starts the branch's compute if need be and connects to it. The start goes on when this future is dropped.
async fn reach(wake: Arc<dyn Wake>, branch: BranchName) -> Result<(Target, UnixStream), WakeError> {
    let mut attempt = 1;
    loop {
        let (starter, name) = (wake.clone(), branch.clone());
        let started = tokio::spawn(async move { starter.ensure_running(&name).await });
        let lost = |reason: String| WakeError::Lost { branch: branch.clone(), reason };
        let target = started.await.map_err(|error| lost(error.to_string()))??;
        match UnixStream::connect(&target.socket).await {
            Ok(compute) => return Ok((target, compute)),
            Err(error) if attempt == CONNECT_ATTEMPTS_MAX => return Err(lost(error.to_string())),
            Err(_) => {
                attempt += 1;
                tokio::time::sleep(CONNECT_PAUSE).await;
            }
        }
    }
}

/// Where a connection goes, and the start-up message to send there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Routed {
    pub branch: BranchName,
    pub startup: StartupMessage,
}

/// Why a start-up message goes nowhere.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RouteError {
    #[error(
        "replication connections are not served on the client port; stream a branch's WAL from a safekeeper"
    )]
    Replication,
    /// The compute would take the relay's own operating-system user as proof for it (`peer`).
    #[error(
        "role \"{}\" is the agent's own and cannot be used through the client port",
        settings::AGENT_ROLE
    )]
    ReservedRole,
    #[error("{0}")]
    Name(#[from] BranchNameError),
    #[error(
        "the connection names two branches: \"{first}\" by {first_by} and \"{second}\" by {second_by}"
    )]
    Ambiguous {
        first: BranchName,
        first_by: &'static str,
        second: BranchName,
        second_by: &'static str,
    },
}

impl RouteError {
    pub fn kind(&self) -> ErrorKind {
        match self {
            RouteError::Replication | RouteError::Ambiguous { .. } => ErrorKind::Invalid,
            RouteError::ReservedRole => ErrorKind::Conflict,
            RouteError::Name(_) => ErrorKind::NotFound,
        }
    }

    /// What the client is told.
    pub fn report(&self) -> Report {
        let message = self.to_string();
        match self {
            RouteError::Replication => Report::fatal(sqlstate::FEATURE_NOT_SUPPORTED, message),
            RouteError::ReservedRole => Report::fatal("28000", message),
            RouteError::Name(_) => Report::fatal(sqlstate::INVALID_CATALOG_NAME, message).hint(
                "What follows the last @ of a user or database is a branch. To use a name with an @ in it, add another at its end.",
            ),
            RouteError::Ambiguous { .. } => {
                Report::fatal(sqlstate::INVALID_CATALOG_NAME, message).hint("Name one branch only.")
            }
        }
    }
}

/// Finds the branch a start-up message names and cuts the name out of it. Pure.
///
/// # Errors
/// Replication connections, names that cannot be, two names.
pub fn route(mut startup: StartupMessage, default_branch: &str) -> Result<Routed, RouteError> {
    if startup.replication() != Ok(ReplicationMode::None) {
        return Err(RouteError::Replication);
    }
    // Postgres looks at every repetition, we at the last: leave none.
    startup.remove("replication");
    let mut named: Vec<(String, &'static str)> = Vec::new();
    let mut options = startup.options();
    let by_option = BRANCH_OPTIONS.iter().flat_map(|name| options.take(name)).collect::<Vec<_>>();
    if !by_option.is_empty() {
        match options.is_empty() {
            true => startup.remove("options"),
            false => startup.set("options", options.to_bytes()),
        }
        named.extend(by_option.into_iter().map(|name| (name, "option")));
    }
    for (parameter, by) in [("user", "user suffix"), ("database", "database suffix")] {
        let Some((plain, suffix)) = startup.get(parameter).and_then(split_suffix) else { continue };
        startup.set(parameter, plain);
        if !suffix.is_empty() {
            named.push((suffix, by));
        }
    }
    // Repetitions of the name are cut with it: Postgres and we must mean the same role.
    let role = startup.get("user").cloned().unwrap_or_default();
    startup.set("user", role.clone());
    if role == settings::AGENT_ROLE.as_bytes() {
        return Err(RouteError::ReservedRole);
    }
    let branch = the_one(named)?;
    let default = || default_branch.parse::<BranchName>();
    Ok(Routed { branch: branch.map_or_else(default, Ok)?, startup })
}

/// `name@suffix`, split at the last `@`.
fn split_suffix(value: &Bytes) -> Option<(Bytes, String)> {
    let at = value.iter().rposition(|byte| *byte == b'@')?;
    let suffix = String::from_utf8_lossy(&value[at + 1..]).into_owned();
    Some((value.slice(..at), suffix))
}

fn the_one(named: Vec<(String, &'static str)>) -> Result<Option<BranchName>, RouteError> {
    let mut found: Option<(BranchName, &'static str)> = None;
    for (text, second_by) in named {
        let second: BranchName = text.parse()?;
        match &found {
            Some((first, first_by)) if *first != second => {
                let (first, first_by) = (first.clone(), *first_by);
                return Err(RouteError::Ambiguous { first, first_by, second, second_by });
            }
            Some(_) => {}
            None => found = Some((second, second_by)),
        }
    }
    Ok(found.map(|(branch, _)| branch))
}

#[cfg(test)]
#[path = "route_tests.rs"]
mod tests;
