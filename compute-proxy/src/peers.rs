//! The HTTP APIs the agent asks: names from control, facts from the pageserver, WAL bytes from the safekeeper.

use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use reqwest::StatusCode;
use serde::{Deserialize, Deserializer, de::DeserializeOwned};
use treering_consensus::{Generation, MemberEnd};
use treering_types::{ErrorKind, Lsn, TenantId, TimelineId};

use crate::{AgentOptions, error::AgentError};

/// The longest a peer may take to answer.
const CALL_LIMIT: Duration = Duration::from_secs(30);

#[derive(Clone)]
pub struct Peers {
    http: reqwest::Client,
    control: String,
    pageserver: String,
    safekeeper: String,
}

/// What control says of a branch name.
#[derive(Debug, Clone, Deserialize)]
pub struct Branch {
    pub tenant_id: TenantId,
    pub timeline_id: TimelineId,
    pub stopped: bool,
    pub role: String,
    pub password: String,
}

/// What the pageserver says of a timeline.
#[derive(Debug, Clone, Deserialize)]
pub struct Timeline {
    pub ancestor_timeline_id: Option<TimelineId>,
    pub pg_tli: u32,
    /// Earlier Postgres timelines, oldest first, each with the LSN where history leaves it.
    pub pg_ancestors: Vec<(u32, Lsn)>,
    pub pg_version: u32,
    /// 64 bits do not survive every JSON reader, so it travels as text.
    #[serde(deserialize_with = "number_in_text")]
    pub system_id: u64,
    /// Where its log begins.
    pub start_lsn: Lsn,
    /// How far it is ingested.
    pub last_record_lsn: Lsn,
}

/// What a safekeeper says of its copy of a log.
#[derive(Debug, Clone, Copy)]
pub enum LogEnd {
    At(MemberEnd),
    /// No compute was ever started on the timeline.
    NoLog,
    /// It cannot vouch for anything before it is opened again.
    Latched,
}

fn number_in_text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
}

#[derive(Deserialize)]
struct Problem {
    message: String,
}

impl Peers {
    pub fn new(options: &AgentOptions) -> anyhow::Result<Peers> {
        Ok(Peers {
            http: reqwest::Client::builder().timeout(CALL_LIMIT).build()?,
            control: options.control_http.clone(),
            pageserver: options.pageserver_http.clone(),
            safekeeper: options.safekeeper_http.clone(),
        })
    }

    async fn get(&self, url: &str, query: &[(&str, String)]) -> Result<Bytes, AgentError> {
        let unreachable = |error: reqwest::Error| {
            AgentError::new(ErrorKind::Unavailable, format!("{url}: {error}"))
        };
        let response = self.http.get(url).query(query).send().await.map_err(unreachable)?;
        let status = response.status();
        let body = response.bytes().await.map_err(unreachable)?;
        if status.is_success() {
            return Ok(body);
        }
        let kind = match status {
            StatusCode::NOT_FOUND => ErrorKind::NotFound,
            StatusCode::GONE => ErrorKind::Gone,
            _ => ErrorKind::Unavailable,
        };
        let said = serde_json::from_slice::<Problem>(&body).map(|p| p.message);
        Err(AgentError::new(kind, said.unwrap_or_else(|_| format!("{url}: {status}"))))
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        url: &str,
        query: &[(&str, String)],
    ) -> Result<T, AgentError> {
        let body = self.get(url, query).await?;
        Ok(serde_json::from_slice(&body).with_context(|| url.to_owned())?)
    }

    /// A branch by name; the default one when `name` is empty.
    pub async fn resolve(&self, name: &str) -> Result<Branch, AgentError> {
        self.ask(&format!("{}/v1/resolve", self.control), &[("branch", name.to_owned())]).await
    }

    /// The login that users of a timeline's project have.
    pub async fn credentials(&self, timeline: TimelineId) -> Result<Branch, AgentError> {
        self.ask(&format!("{}/v1/resolve", self.control), &[("timeline_id", timeline.to_string())])
            .await
    }

    pub async fn timeline(
        &self,
        tenant: TenantId,
        timeline: TimelineId,
    ) -> Result<Timeline, AgentError> {
        self.ask(&format!("{}/v1/tenant/{tenant}/timeline/{timeline}", self.pageserver), &[]).await
    }

    /// Where the safekeeper's copy of a timeline's log ends now.
    pub async fn log_end(
        &self,
        tenant: TenantId,
        timeline: TimelineId,
    ) -> Result<LogEnd, AgentError> {
        #[derive(Deserialize)]
        struct Log {
            flush_lsn: Lsn,
            commit_lsn: Lsn,
            configuration: Members,
            latched: Option<String>,
        }
        #[derive(Deserialize)]
        struct Members {
            generation: u64,
        }
        match self.ask(&self.log_url(tenant, timeline), &[]).await {
            Ok(Log { latched: Some(_), .. }) => Ok(LogEnd::Latched),
            Ok(Log { flush_lsn, commit_lsn, configuration, .. }) => {
                let generation = Generation(configuration.generation);
                Ok(LogEnd::At(MemberEnd { generation, flush_lsn, commit_lsn }))
            }
            Err(error) if error.kind == ErrorKind::NotFound => Ok(LogEnd::NoLog),
            Err(error) => Err(error),
        }
    }

    fn log_url(&self, tenant: TenantId, timeline: TimelineId) -> String {
        format!("{}/v1/tenant/{tenant}/timeline/{timeline}", self.safekeeper)
    }

    /// The WAL of `from..to`, or `None` when it is trimmed or was never there.
    pub async fn wal(
        &self,
        tenant: TenantId,
        timeline: TimelineId,
        from: Lsn,
        to: Lsn,
    ) -> Result<Option<Bytes>, AgentError> {
        let url = format!("{}/wal", self.log_url(tenant, timeline));
        match self.get(&url, &[("from", from.to_string()), ("to", to.to_string())]).await {
            Err(error) if matches!(error.kind, ErrorKind::NotFound | ErrorKind::Gone) => Ok(None),
            other => other.map(Some),
        }
    }
}
