//! The admin APIs of the pageserver and the agent, as control uses them. Those of the safekeepers: [`crate::safekeepers`].

use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use reqwest::{Method, StatusCode};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use treering_types::{Lsn, TenantId, TimelineId};

use crate::{ControlOptions, Safekeeper, error::ApiError};

/// The longest any call to a peer may take: starting a compute fetches its pages.
const CALL_LIMIT: Duration = Duration::from_secs(600);

/// The peers of control.
#[derive(Clone)]
pub struct Peers {
    http: reqwest::Client,
    pageserver: String,
    pub(crate) safekeepers: Vec<Safekeeper>,
    agent: String,
    pub client_address: String,
}

/// What the pageserver says of a timeline, as far as control looks.
#[derive(Debug, Clone, Deserialize)]
pub struct TimelineDetail {
    pub timeline_id: TimelineId,
    /// Where the timeline begins: its fork LSN, or the end of the import.
    pub start_lsn: Lsn,
    pub last_record_lsn: Lsn,
    /// Relations this version cannot read; told of a new timeline only.
    #[serde(default, rename = "unhandled")]
    pub unreadable_relations: Vec<Value>,
}

/// What the agent says of a compute.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ComputeStatus {
    pub timeline_id: TimelineId,
    pub state: String,
    pub reason: Option<String>,
    pub pid: Option<i32>,
}

impl Peers {
    pub fn new(options: &ControlOptions) -> anyhow::Result<Peers> {
        let http = reqwest::Client::builder().timeout(CALL_LIMIT).build().context("HTTP client")?;
        Ok(Peers {
            http,
            pageserver: options.pageserver_http.clone(),
            safekeepers: options.safekeepers.clone(),
            agent: options.agent_http.clone(),
            client_address: options.client_address.clone(),
        })
    }

    async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        url: String,
        body: Option<Value>,
    ) -> Result<T, ApiError> {
        self.call_within(CALL_LIMIT, method, url, body).await
    }

    pub(crate) async fn call_within<T: DeserializeOwned>(
        &self,
        limit: Duration,
        method: Method,
        url: String,
        body: Option<Value>,
    ) -> Result<T, ApiError> {
        let (status, bytes) = self.exchange(limit, method, &url, body).await?;
        if status.is_success() {
            let bytes: &[u8] = if bytes.is_empty() { b"null" } else { &bytes };
            return serde_json::from_slice(bytes)
                .map_err(|error| ApiError::internal(format!("{url}: {error}")));
        }
        Err(Peers::error_in(&url, status, &bytes))
    }

    /// One request; the answer as it comes.
    pub(crate) async fn exchange(
        &self,
        limit: Duration,
        method: Method,
        url: &str,
        body: Option<Value>,
    ) -> Result<(StatusCode, Bytes), ApiError> {
        let mut request = self.http.request(method, url).timeout(limit);
        if let Some(body) = body {
            request = request.json(&body);
        }
        let response = request.send().await.map_err(|error| no_answer(url, &error, limit))?;
        let status = response.status();
        let bytes = response.bytes().await.map_err(|error| no_answer(url, &error, limit))?;
        Ok((status, bytes))
    }

    pub(crate) fn error_in(url: &str, status: StatusCode, body: &[u8]) -> ApiError {
        serde_json::from_slice(body).unwrap_or_else(|_| plain_error(url, status, body))
    }

    pub(crate) fn agent_url(&self, tenant: TenantId, id: TimelineId, what: &str) -> String {
        format!("{}/v1/tenant/{tenant}/timeline/{id}/{what}", self.agent)
    }

    pub async fn create_tenant(&self, tenant: TenantId, pg_version: u32) -> Result<(), ApiError> {
        let body = json!({"tenant_id": tenant, "pg_version": pg_version});
        let made = self
            .call::<Value>(Method::POST, format!("{}/v1/tenant", self.pageserver), Some(body))
            .await;
        match made {
            Err(error) if error.code == "conflict" => Ok(()),
            other => other.map(drop),
        }
    }

    fn timelines(&self, tenant: TenantId) -> String {
        format!("{}/v1/tenant/{tenant}/timeline", self.pageserver)
    }

    /// Imports a freshly initialised cluster as the tenant's root timeline.
    pub async fn create_root(
        &self,
        tenant: TenantId,
        id: TimelineId,
    ) -> Result<TimelineDetail, ApiError> {
        self.call(Method::POST, self.timelines(tenant), Some(json!({"new_timeline_id": id}))).await
    }

    /// Forks `ancestor` at `lsn`, once the pageserver has got there. Durable when it returns.
    pub async fn fork(
        &self,
        tenant: TenantId,
        id: TimelineId,
        ancestor: TimelineId,
        lsn: Lsn,
    ) -> Result<TimelineDetail, ApiError> {
        let body = json!({"new_timeline_id": id, "ancestor_timeline_id": ancestor, "ancestor_start_lsn": lsn});
        self.call(Method::POST, self.timelines(tenant), Some(body)).await
    }

    pub async fn timeline_list(&self, tenant: TenantId) -> Result<Vec<TimelineDetail>, ApiError> {
        self.call(Method::GET, self.timelines(tenant), None).await
    }

    pub async fn timeline(
        &self,
        tenant: TenantId,
        id: TimelineId,
    ) -> Result<TimelineDetail, ApiError> {
        self.call(Method::GET, format!("{}/{id}", self.timelines(tenant)), None).await
    }

    /// The LSN of a moment, once the pageserver has ingested `ingested`.
    pub async fn lsn_by_time(
        &self,
        tenant: TenantId,
        id: TimelineId,
        time: jiff::Timestamp,
        ingested: Lsn,
    ) -> Result<Lsn, ApiError> {
        #[derive(Deserialize)]
        struct LsnByTime {
            lsn: Lsn,
        }
        let url = format!(
            "{}/{id}/lsn_by_timestamp?timestamp={time}&wait_lsn={ingested}",
            self.timelines(tenant)
        );
        Ok(self.call::<LsnByTime>(Method::GET, url, None).await?.lsn)
    }

    /// Deletes a timeline at the pageserver; one that is gone already is fine.
    pub async fn delete_pages(&self, tenant: TenantId, id: TimelineId) -> Result<(), ApiError> {
        let url = format!("{}/{id}", self.timelines(tenant));
        match self.call::<Value>(Method::DELETE, url, None).await {
            Err(error) if error.code != "not_found" => Err(error),
            _ => Ok(()),
        }
    }

    /// Archives a timeline once the pageserver has ingested `end`.
    pub async fn archive(
        &self,
        tenant: TenantId,
        id: TimelineId,
        end: Lsn,
    ) -> Result<(), ApiError> {
        let url = format!("{}/{id}/archive?wait_lsn={end}", self.timelines(tenant));
        self.call::<Value>(Method::POST, url, None).await.map(drop)
    }

    pub async fn unarchive(&self, tenant: TenantId, id: TimelineId) -> Result<(), ApiError> {
        let url = format!("{}/{id}/unarchive", self.timelines(tenant));
        self.call::<Value>(Method::POST, url, None).await.map(drop)
    }

    fn compute(&self, tenant: TenantId, id: TimelineId) -> String {
        format!("{}/v1/tenant/{tenant}/timeline/{id}/compute", self.agent)
    }

    /// The LSN up to which commits were acknowledged by the time of the call (the read barrier).
    pub async fn barrier(&self, tenant: TenantId, id: TimelineId) -> Result<Lsn, ApiError> {
        #[derive(Deserialize)]
        struct Barrier {
            commit_lsn: Lsn,
        }
        let url = self.agent_url(tenant, id, "barrier");
        Ok(self.call::<Barrier>(Method::POST, url, None).await?.commit_lsn)
    }

    pub async fn start_compute(
        &self,
        tenant: TenantId,
        id: TimelineId,
    ) -> Result<ComputeStatus, ApiError> {
        self.call(Method::POST, format!("{}/start", self.compute(tenant, id)), None).await
    }

    pub async fn stop_compute(
        &self,
        tenant: TenantId,
        id: TimelineId,
    ) -> Result<ComputeStatus, ApiError> {
        self.call(Method::POST, format!("{}/stop", self.compute(tenant, id)), None).await
    }

    /// Stops the compute and removes its files.
    pub async fn remove_compute(&self, tenant: TenantId, id: TimelineId) -> Result<(), ApiError> {
        self.call::<Value>(Method::DELETE, self.compute(tenant, id), None).await.map(drop)
    }

    pub async fn computes(&self) -> Result<Vec<ComputeStatus>, ApiError> {
        self.call(Method::GET, format!("{}/v1/computes", self.agent), None).await
    }
}

/// A peer that is down is told from one that is there and takes too long: only the first has lost what it was doing.
fn no_answer(url: &str, error: &reqwest::Error, limit: Duration) -> ApiError {
    match error.is_timeout() {
        true => ApiError::new("timeout", format!("{url}: no answer within {limit:?}")),
        false => ApiError::unreachable(format!("{url}: {}", root_cause(error))),
    }
}

fn plain_error(url: &str, status: StatusCode, body: &[u8]) -> ApiError {
    let code = match status {
        StatusCode::NOT_FOUND => "not_found",
        StatusCode::CONFLICT => "conflict",
        StatusCode::BAD_REQUEST => "invalid",
        StatusCode::SERVICE_UNAVAILABLE => "unavailable",
        _ => "internal",
    };
    ApiError::new(code, format!("{url}: {status} {}", String::from_utf8_lossy(body)))
}

fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}
