//! Which timelines have new WAL: asked of the safekeeper at an interval and whenever someone waits.

use std::{sync::Arc, time::Duration};

use serde::Deserialize;
use tokio::time::sleep;
use treering_types::{Lsn, TenantId, TimelineId};

use super::receiver;
use crate::{live::LiveTimeline, service::Service};

/// A safekeeper that does not answer within this is not there.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// What we read of the safekeeper's list.
#[derive(Debug, Deserialize)]
struct Listed {
    tenant_id: TenantId,
    timeline_id: TimelineId,
    commit_lsn: Lsn,
}

/// Runs until the service stops.
pub async fn run(service: Arc<Service>) {
    let client = reqwest::Client::builder().timeout(ANSWER_TIMEOUT).build();
    let client = client.expect("a client without TLS or proxies needs nothing that can fail");
    let url = format!("{}/v1/timelines", service.options.safekeeper_http.trim_end_matches('/'));
    let mut was_reachable = true;
    loop {
        let answer = ask(&client, &url).await;
        match &answer {
            Ok(_) if !was_reachable => tracing::info!(url, "safekeeper answers again"),
            Err(error) if was_reachable => {
                tracing::warn!(url, %error, "safekeeper does not answer")
            }
            Ok(_) | Err(_) => {}
        }
        was_reachable = answer.is_ok();
        for listed in answer.unwrap_or_default() {
            consider(&service, &listed);
        }
        tokio::select! {
            () = sleep(service.options.poll_interval) => {}
            () = service.poked() => {}
            () = service.cancel.cancelled() => return,
        }
    }
}

async fn ask(client: &reqwest::Client, url: &str) -> Result<Vec<Listed>, reqwest::Error> {
    client.get(url).send().await?.error_for_status()?.json().await
}

/// Starts a receiver for a timeline that has WAL for us and none running.
fn consider(service: &Arc<Service>, listed: &Listed) {
    let Ok(live) = service.live(listed.tenant_id, listed.timeline_id) else {
        return;
    };
    live.note_commit_lsn(listed.commit_lsn);
    if live.timeline.is_archived() {
        return;
    }
    if listed.commit_lsn > live.timeline.last_record_lsn() && live.begin_ingest() {
        tokio::spawn(ingest(Arc::clone(service), live));
    }
}

async fn ingest(service: Arc<Service>, live: Arc<LiveTimeline>) {
    let tenant = live.tenant_id();
    let timeline = live.id();
    tracing::debug!(%tenant, %timeline, from = %live.timeline.last_record_lsn(), "ingest begins");
    let ended = receiver::receive(&service, &live).await;
    let is_stopping = live.stop.is_cancelled();
    let error = ended.err().filter(|_| !is_stopping);
    if let Some(error) = &error {
        service.metrics.ingest_failures.inc();
        tracing::warn!(%tenant, %timeline, %error, kind = ?error.kind(), "ingest failed");
    }
    if let Some(pause) = live.end_ingest(error.map(|error| error.to_string())) {
        tokio::select! {
            () = sleep(pause) => service.poke(),
            () = live.stop.cancelled() => {}
        }
    }
}
