//! What control asks of the safekeepers. A majority of them is enough, and none that hangs is waited for.

use std::{collections::BTreeMap, time::Duration};

use reqwest::Method;
use serde::Deserialize;
use serde_json::Value;
use tokio::{task::JoinSet, time::timeout};
use treering_types::{Lsn, NodeId, TenantId, TimelineId};

use crate::{
    Safekeeper,
    error::ApiError,
    model::{LeftLog, MemberView, SafekeeperView},
    peers::Peers,
};

/// How long a safekeeper may take to delete a log.
const DELETE_LIMIT: Duration = Duration::from_secs(10);
/// How long those are waited for that have not deleted a log yet when a majority has.
const DELETE_GRACE: Duration = Duration::from_secs(1);
/// How long a safekeeper may take to say where it stands.
const STATUS_LIMIT: Duration = Duration::from_secs(2);

impl Peers {
    /// Deletes a timeline's log: on return a majority has done so, and nobody can write it any more. Answers with those
    /// that have not said so.
    ///
    /// # Errors
    /// Fewer than a majority has deleted it; it can be tried again.
    pub async fn delete_log(
        &self,
        tenant: TenantId,
        id: TimelineId,
    ) -> Result<Vec<NodeId>, ApiError> {
        let mut asked = JoinSet::new();
        for safekeeper in &self.safekeepers {
            let (peers, node) = (self.clone(), safekeeper.node);
            let url = log_url(safekeeper, tenant, id);
            asked.spawn(async move { (node, peers.delete_at(url).await) });
        }
        let mut missing: Vec<_> = self.safekeepers.iter().map(|known| known.node).collect();
        let mut failure = None;
        loop {
            let is_decided = missing.len() * 2 < self.safekeepers.len();
            let patience = if is_decided { DELETE_GRACE } else { DELETE_LIMIT * 2 };
            match timeout(patience, asked.join_next()).await {
                Ok(Some(Ok((node, Ok(()))))) => missing.retain(|known| *known != node),
                Ok(Some(Ok((_, Err(error))))) => failure = Some(error),
                Ok(Some(Err(error))) => failure = Some(ApiError::internal(error)),
                Ok(None) | Err(_) if is_decided => {
                    // They are told to the end all the same: what was begun may as well succeed.
                    asked.detach_all();
                    return Ok(missing);
                }
                Ok(None) | Err(_) => {
                    let silent = || ApiError::unreachable("the safekeepers do not answer");
                    return Err(failure.unwrap_or_else(silent));
                }
            }
        }
    }

    /// Deletes what a safekeeper could not be told to delete before.
    ///
    /// # Errors
    /// It does not answer, or cannot.
    pub async fn delete_left_log(&self, left: &LeftLog) -> Result<(), ApiError> {
        let found = self.safekeepers.iter().find(|known| known.node == left.node_id);
        match found {
            Some(safekeeper) => {
                self.delete_at(log_url(safekeeper, left.tenant_id, left.timeline_id)).await
            }
            None => Err(ApiError::unreachable(format!("safekeeper {} is not known", left.node_id))),
        }
    }

    async fn delete_at(&self, url: String) -> Result<(), ApiError> {
        match self.call_within::<Value>(DELETE_LIMIT, Method::DELETE, url, None).await {
            Err(error) if error.code != "not_found" => Err(error),
            _ => Ok(()),
        }
    }

    /// Where each safekeeper stands, those that do not answer as such.
    pub async fn safekeeper_views(&self) -> Vec<SafekeeperView> {
        let mut asked = JoinSet::new();
        for safekeeper in self.safekeepers.clone() {
            let peers = self.clone();
            asked.spawn(async move { peers.view(&safekeeper).await });
        }
        let mut views: Vec<_> = asked.join_all().await;
        views.sort_by_key(|view| view.node_id);
        note_lags(&mut views);
        views
    }

    async fn view(&self, of: &Safekeeper) -> SafekeeperView {
        let mut view = SafekeeperView {
            node_id: of.node,
            address: of.http.clone(),
            state: "ready".to_owned(),
            reason: None,
            free_bytes: None,
            logs: Vec::new(),
        };
        match self.ask_where_it_stands(of).await {
            Ok((free_bytes, logs)) => (view.free_bytes, view.logs) = (free_bytes, logs),
            Err(error) => (view.state, view.reason) = ("down".to_owned(), Some(error.message)),
        }
        view
    }

    async fn ask_where_it_stands(
        &self,
        of: &Safekeeper,
    ) -> Result<(Option<u64>, Vec<MemberView>), ApiError> {
        #[derive(Deserialize)]
        struct Node {
            node_id: NodeId,
            disk: Disk,
        }
        #[derive(Deserialize)]
        struct Disk {
            free_bytes: Option<u64>,
        }
        let base = of.http.trim_end_matches('/');
        let node = format!("{base}/v1/status");
        let node: Node = self.call_within(STATUS_LIMIT, Method::GET, node, None).await?;
        if node.node_id != of.node {
            let why = format!("safekeeper {} answers at {base}", node.node_id);
            return Err(ApiError::conflict(why));
        }
        let logs = format!("{base}/v1/timelines");
        Ok((node.disk.free_bytes, self.call_within(STATUS_LIMIT, Method::GET, logs, None).await?))
    }
}

fn log_url(safekeeper: &Safekeeper, tenant: TenantId, id: TimelineId) -> String {
    let base = safekeeper.http.trim_end_matches('/');
    format!("{base}/v1/tenant/{tenant}/timeline/{id}")
}

/// What each lacks of what anybody knows to be committed.
fn note_lags(views: &mut [SafekeeperView]) {
    let mut committed: BTreeMap<TimelineId, Lsn> = BTreeMap::new();
    for log in views.iter().flat_map(|view| &view.logs) {
        let known = committed.entry(log.timeline_id).or_default();
        *known = log.commit_lsn.max(*known);
    }
    for log in views.iter_mut().flat_map(|view| &mut view.logs) {
        let commit_lsn = committed.get(&log.timeline_id).copied().unwrap_or_default();
        log.lag_bytes = commit_lsn.bytes_since(log.flush_lsn).unwrap_or(0);
    }
}
