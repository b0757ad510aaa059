//! The HTTP APIs the agent asks: names from control, facts from the pageserver, WAL bytes from the safekeepers.

use std::time::{Duration, Instant};

use anyhow::Context;
use bytes::Bytes;
use reqwest::StatusCode;
use serde::{Deserialize, Deserializer, de::DeserializeOwned};
use tokio::{task::JoinSet, time::sleep};
use treering_consensus::{Configuration, Generation, MemberEnd};
use treering_types::{ErrorKind, Lsn, NodeId, TenantId, TimelineId};

use crate::{AgentOptions, Safekeeper, error::AgentError};

/// The longest a peer may take to answer.
const CALL_LIMIT: Duration = Duration::from_secs(30);
/// The longest a safekeeper may take to say where a log ends.
const LOG_END_LIMIT: Duration = Duration::from_secs(5);
/// The longest a safekeeper may take to give a segment of its log, before another one is asked.
const WAL_LIMIT: Duration = Duration::from_secs(3);
/// How long safekeepers are asked, one after the other, for WAL that they are to have: the news that it is committed may
/// still be on its way to them.
const WAL_PATIENCE: Duration = Duration::from_secs(10);
const WAL_PAUSE: Duration = Duration::from_millis(5);
/// How long a pageserver that has just started may take to hear from its object store before an election goes on without that.
const KEPT_LIMIT: Duration = Duration::from_secs(2);
const KEPT_PAUSE: Duration = Duration::from_millis(20);

#[derive(Clone)]
pub struct Peers {
    http: reqwest::Client,
    control: String,
    pageserver: String,
    safekeepers: Vec<Safekeeper>,
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
    disk_consistent_lsn: Lsn,
    /// Absent without an object store.
    #[serde(default)]
    remote_consistent_lsn: Option<Lsn>,
}

impl Timeline {
    /// Where a safekeeper's log may begin that has none of this timeline: what lies before is committed, and kept for good
    /// elsewhere; the other safekeepers may have removed it.
    pub fn log_start_lsn(&self) -> Lsn {
        let durable = self.remote_consistent_lsn.unwrap_or(self.disk_consistent_lsn);
        durable.min(self.last_record_lsn).max(self.start_lsn)
    }

    /// A pageserver that has just started has not heard from its object store yet, and says that nothing is there.
    fn has_heard_what_is_kept(&self) -> bool {
        self.remote_consistent_lsn.is_none_or(|lsn| lsn >= self.start_lsn)
    }
}

/// What a safekeeper says of its copy of a log.
#[derive(Debug, Clone)]
pub enum LogEnd {
    /// With the configuration that it follows.
    At(MemberEnd, Configuration),
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
            safekeepers: options.safekeepers.clone(),
        })
    }

    async fn get(
        &self,
        url: &str,
        query: &[(&str, String)],
        limit: Duration,
    ) -> Result<Bytes, AgentError> {
        let unreachable = |error: reqwest::Error| {
            AgentError::new(ErrorKind::Unavailable, format!("{url}: {error}"))
        };
        let request = self.http.get(url).query(query).timeout(limit);
        let response = request.send().await.map_err(unreachable)?;
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
        let body = self.get(url, query, CALL_LIMIT).await?;
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

    /// The same before an election, which may have a safekeeper begin a copy of the log: once the pageserver knows what is kept for good.
    /// A copy that begins where the timeline does lacks what the others have removed, and could not be filled. Without an object store that answers it is not waited for
    /// long: most elections begin no copy.
    pub async fn timeline_to_elect(
        &self,
        tenant: TenantId,
        timeline: TimelineId,
    ) -> Result<Timeline, AgentError> {
        let deadline = Instant::now() + KEPT_LIMIT;
        loop {
            let facts = self.timeline(tenant, timeline).await?;
            if facts.has_heard_what_is_kept() || Instant::now() >= deadline {
                return Ok(facts);
            }
            sleep(KEPT_PAUSE).await;
        }
    }

    /// Asks every safekeeper where its copy of a timeline's log ends now. The answers come as they are given.
    pub fn log_ends(
        &self,
        tenant: TenantId,
        timeline: TimelineId,
    ) -> JoinSet<(NodeId, Result<LogEnd, AgentError>)> {
        let mut asked = JoinSet::new();
        for safekeeper in &self.safekeepers {
            let (peers, node) = (self.clone(), safekeeper.node);
            let url = log_url(safekeeper, tenant, timeline);
            asked.spawn(async move { (node, peers.log_end(&url).await) });
        }
        asked
    }

    async fn log_end(&self, url: &str) -> Result<LogEnd, AgentError> {
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
            members: Vec<NodeId>,
            #[serde(default)]
            new_members: Option<Vec<NodeId>>,
        }
        let body = match self.get(url, &[], LOG_END_LIMIT).await {
            Err(error) if error.kind == ErrorKind::NotFound => return Ok(LogEnd::NoLog),
            other => other?,
        };
        let log: Log = serde_json::from_slice(&body).with_context(|| url.to_owned())?;
        let Log { flush_lsn, commit_lsn, configuration, latched } = log;
        if latched.is_some() {
            return Ok(LogEnd::Latched);
        }
        let Members { generation, members, new_members } = configuration;
        let generation = Generation(generation);
        let followed = Configuration::new(generation, members, new_members)
            .map_err(|error| AgentError::new(ErrorKind::Unavailable, format!("{url}: {error}")))?;
        Ok(LogEnd::At(MemberEnd { generation, flush_lsn, commit_lsn }, followed))
    }

    /// The committed WAL of `range`, or `None` when it is trimmed or was never there. `first` is asked first.
    ///
    /// # Errors
    /// Fewer than a majority can tell.
    pub async fn committed_wal(
        &self,
        tenant: TenantId,
        timeline: TimelineId,
        range: (Lsn, Lsn),
        first: NodeId,
    ) -> Result<Option<Bytes>, AgentError> {
        let deadline = Instant::now() + WAL_PATIENCE;
        let mut safekeepers: Vec<_> = self.safekeepers.iter().collect();
        safekeepers.sort_by_key(|safekeeper| safekeeper.node != first);
        let query = [
            ("from", range.0.to_string()),
            ("to", range.1.to_string()),
            ("committed", "true".to_owned()),
        ];
        loop {
            let mut failure = None;
            for safekeeper in &safekeepers {
                let url = format!("{}/wal", log_url(safekeeper, tenant, timeline));
                match self.get(&url, &query, WAL_LIMIT).await {
                    Ok(bytes) => return Ok(Some(bytes)),
                    Err(error) if matches!(error.kind, ErrorKind::NotFound | ErrorKind::Gone) => {}
                    Err(error) => {
                        failure.get_or_insert((0, error)).0 += 1;
                    }
                }
            }
            match failure {
                Some((failed, error)) if failed * 2 >= safekeepers.len() => {
                    if Instant::now() > deadline {
                        return Err(error);
                    }
                }
                // A majority has not got it.
                Some(_) | None => return Ok(None),
            }
            sleep(WAL_PAUSE).await;
        }
    }
}

fn log_url(safekeeper: &Safekeeper, tenant: TenantId, timeline: TimelineId) -> String {
    let base = safekeeper.http.trim_end_matches('/');
    format!("{base}/v1/tenant/{tenant}/timeline/{timeline}")
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn facts(more: &[(&str, Value)]) -> Timeline {
        let mut view = json!({
            "timeline_id": TimelineId([1; 16]), "pg_tli": 1, "pg_ancestors": [], "pg_version": 17, "system_id": "7",
            "start_lsn": "0/1722760", "last_record_lsn": "0/3E00000", "disk_consistent_lsn": "0/3800000",
        });
        for (name, value) in more {
            view[name] = value.clone();
        }
        serde_json::from_value(view).unwrap()
    }

    #[test]
    fn a_copy_of_the_log_begins_behind_what_is_kept_for_good() {
        let kept = |lsn: &str| facts(&[("remote_consistent_lsn", json!(lsn))]);
        assert_eq!(kept("0/32A6CA0").log_start_lsn(), Lsn(0x32a_6ca0));
        assert!(kept("0/32A6CA0").has_heard_what_is_kept());
        // Only the local disk there is to keep it.
        assert_eq!(facts(&[]).log_start_lsn(), Lsn(0x380_0000));
        assert!(facts(&[]).has_heard_what_is_kept());
        // Nothing was flushed yet: the store has where it begins.
        assert!(kept("0/1722760").has_heard_what_is_kept());
        // What a pageserver says that has just started.
        assert!(!kept("0/0").has_heard_what_is_kept());
    }
}
