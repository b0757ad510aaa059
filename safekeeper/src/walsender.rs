//! The Postgres port: stock physical replication, for standbys, `pg_receivewal` and the pageserver alike.
//!
//! The timeline is chosen by the start-up options `treering.tenant_id` and `treering.timeline_id`. Nothing behind
//! `commit_lsn` is ever sent. Slots are accepted and not kept: what is trimmed is decided by the pageserver alone
//! (`application_name=treering_pageserver`), whose reports say what its layers hold.

mod commands;
mod connection;
mod stream;

use std::{io, sync::Arc, time::Duration};

use tokio::{net::TcpStream, time::timeout};
use treering_types::{TenantId, TimelineId};
use treering_wire::{
    WireError,
    backend::{Report, sqlstate},
    frontend,
    replication::Command,
    startup::{CancelKey, ReplicationMode, StartupMessage},
};

use self::connection::Connection;
use crate::{error::StoreError, metrics::Metrics, timeline::Timeline, timelines::Timelines};

/// How long a client may take to say what it wants.
const STARTUP_TIMEOUT: Duration = Duration::from_secs(10);
/// Who moves the trim horizon.
const PAGESERVER_NAME: &str = "treering_pageserver";

/// Why a receiver's connection ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SenderError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error("no startup packet in time")]
    Silent,
    #[error("receiver does not answer")]
    Timeout,
    #[error("refused: {0}")]
    Refused(String),
}

/// One client, past its start-up.
struct Session {
    connection: Connection,
    timeline: Arc<Timeline>,
    is_pageserver: bool,
    metrics: Arc<Metrics>,
}

/// Serves one connection to its end.
pub(crate) async fn serve(
    stream: TcpStream,
    timelines: Arc<Timelines>,
    metrics: Arc<Metrics>,
) -> Result<(), SenderError> {
    stream.set_nodelay(true)?;
    let mut connection = Connection::new(stream);
    let startup = timeout(STARTUP_TIMEOUT, connection.startup());
    let Some(startup) = startup.await.map_err(|_| SenderError::Silent)?? else { return Ok(()) };
    let timeline = match choose_timeline(&startup, &timelines) {
        Ok(timeline) => timeline,
        Err(report) => {
            let text = report.to_string();
            connection.fatal(report).await?;
            return Err(SenderError::Refused(text));
        }
    };
    let version = format!("{}.0", timeline.identity().pg_major);
    let key = CancelKey { pid: 0, secret: [0; 4].to_vec().into() };
    connection.out.session_start(&version, &key);
    connection.flush().await?;
    let is_pageserver = startup.text("application_name") == Some(PAGESERVER_NAME);
    Session { connection, timeline, is_pageserver, metrics }.run().await
}

fn choose_timeline(
    startup: &StartupMessage,
    timelines: &Timelines,
) -> Result<Arc<Timeline>, Report> {
    match startup.replication() {
        Ok(ReplicationMode::Physical) => {}
        Ok(ReplicationMode::None | ReplicationMode::Database) | Err(_) => {
            let text = "a safekeeper serves physical replication only";
            return Err(Report::fatal(sqlstate::FEATURE_NOT_SUPPORTED, text)
                .hint("Connect with replication=true."));
        }
    }
    let options = startup.options();
    let missing = |name: &str| {
        let text = format!("option {name} is missing or no id of 32 hexadecimal digits");
        Report::fatal(sqlstate::INVALID_PARAMETER_VALUE, text)
            .hint(format!("Connect with options='-c {name}=...'."))
    };
    let id = |name: &str| options.get(name).map(str::to_owned).ok_or_else(|| missing(name));
    let tenant: TenantId =
        id("treering.tenant_id")?.parse().map_err(|_| missing("treering.tenant_id"))?;
    let timeline: TimelineId =
        id("treering.timeline_id")?.parse().map_err(|_| missing("treering.timeline_id"))?;
    timelines.get(tenant, timeline).map_err(|error| {
        let code = match error {
            StoreError::NotFound | StoreError::Deleted => sqlstate::INVALID_CATALOG_NAME,
            _ => sqlstate::IO_ERROR,
        };
        Report::fatal(code, format!("timeline {timeline}: {error}"))
    })
}

impl Session {
    async fn run(mut self) -> Result<(), SenderError> {
        let stop = self.timeline.stopping().clone();
        loop {
            let message = tokio::select! {
                message = self.connection.next() => message?,
                () = stop.cancelled() => return self.connection.stopping().await,
            };
            match message {
                None | Some(frontend::Message::Terminate) => return Ok(()),
                Some(frontend::Message::Query(text)) => self.query(&text).await?,
                // A client that gave up a stream may have sent more before it knew.
                Some(
                    frontend::Message::CopyData(_)
                    | frontend::Message::CopyDone
                    | frontend::Message::CopyFail(_)
                    | frontend::Message::Sync
                    | frontend::Message::Flush,
                ) => {}
                Some(frontend::Message::Password(_) | frontend::Message::Other(_)) => {
                    let text = "a safekeeper speaks the simple query protocol only";
                    let report = Report::fatal(sqlstate::PROTOCOL_VIOLATION, text);
                    self.connection.fatal(report).await?;
                    return Err(SenderError::Refused(text.to_owned()));
                }
            }
        }
    }

    async fn query(&mut self, text: &str) -> Result<(), SenderError> {
        if text.trim().trim_end_matches(';').is_empty() {
            self.connection.out.empty_query_response();
            return self.connection.ready().await;
        }
        match Command::parse(text) {
            Ok(Command::StartReplication { start, timeline, slot: _ }) => {
                match self.check_start(start, timeline) {
                    Ok(()) => self.stream(start).await,
                    Err(report) => self.connection.error(report).await,
                }
            }
            Ok(command) => match commands::answer(&self.timeline, command) {
                Ok(answer) => {
                    answer.write(&mut self.connection.out);
                    self.connection.ready().await
                }
                Err(report) => self.connection.error(report).await,
            },
            Err(error) => {
                let report = Report::error(sqlstate::SYNTAX_ERROR, error.to_string());
                self.connection.error(report).await
            }
        }
    }
}
