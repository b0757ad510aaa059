//! Which timelines have new WAL: asked of each safekeeper at an interval and whenever someone waits.
//!
//! Each has a poll of its own: one that hangs keeps nobody from the others. With its answer a safekeeper is told how
//! much of its log is not needed here any more: only one of them hears it in the stream.

use std::{io, sync::Arc, thread, time::Duration};

use reqwest::Client;
use serde::Deserialize;
use serde_json::json;
use tokio::{
    runtime::Builder,
    task::JoinSet,
    time::{Instant, sleep},
};
use treering_types::{Lsn, TenantId, TimelineId};

use super::receiver;
use crate::{live::LiveTimeline, options::Safekeeper, service::Service};

/// A safekeeper that does not answer within this is not there.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// What we read of a safekeeper's list.
#[derive(Debug, Deserialize)]
struct Listed {
    tenant_id: TenantId,
    timeline_id: TimelineId,
    commit_lsn: Lsn,
    /// The oldest position that it holds.
    #[serde(default)]
    trim_lsn: Option<Lsn>,
}

/// Runs until the service stops.
pub async fn run(service: Arc<Service>) {
    let client = Client::builder().timeout(ANSWER_TIMEOUT).build();
    let client = client.expect("a client without TLS or proxies needs nothing that can fail");
    let mut polls = JoinSet::new();
    for nth in 0..service.options.safekeepers.len() {
        polls.spawn(poll(Arc::clone(&service), client.clone(), nth));
    }
    while polls.join_next().await.is_some() {}
}

async fn poll(service: Arc<Service>, client: Client, nth: usize) {
    let Some(safekeeper) = service.options.safekeepers.get(nth).cloned() else { return };
    let url = format!("{}/v1/timelines", safekeeper.http.trim_end_matches('/'));
    let mut was_reachable = true;
    loop {
        let answer = tokio::select! {
            answer = ask(&client, &url) => answer,
            () = service.cancel.cancelled() => return,
        };
        match &answer {
            Ok(_) if !was_reachable => tracing::info!(url, "safekeeper answers again"),
            Err(error) if was_reachable => {
                tracing::warn!(url, %error, "safekeeper does not answer")
            }
            Ok(_) | Err(_) => {}
        }
        was_reachable = answer.is_ok();
        for listed in answer.unwrap_or_default() {
            let Ok(live) = service.live(listed.tenant_id, listed.timeline_id) else { continue };
            consider(&service, &live, &safekeeper, &listed);
            let needed = service.needed_from(&live);
            tell_horizon(&client, &live, &safekeeper, &listed, needed).await;
        }
        tokio::select! {
            () = sleep(service.options.poll_interval) => {}
            () = service.poked(nth) => {}
            () = service.cancel.cancelled() => return,
        }
    }
}

async fn ask(client: &Client, url: &str) -> Result<Vec<Listed>, reqwest::Error> {
    client.get(url).send().await?.error_for_status()?.json().await
}

/// Starts a receiver for a timeline that has WAL for us and none running.
fn consider(
    service: &Arc<Service>,
    live: &Arc<LiveTimeline>,
    safekeeper: &Safekeeper,
    listed: &Listed,
) {
    live.note_commit_lsn(listed.commit_lsn);
    let now = Instant::now();
    live.sources.note(safekeeper.node, listed.commit_lsn, now);
    if live.timeline.is_archived() {
        return;
    }
    let have = live.timeline.last_record_lsn();
    let Some(chosen) = live.sources.choose(have, now) else { return };
    let chosen = service.options.safekeepers.iter().find(|known| known.node == chosen);
    if let Some(chosen) = chosen
        && live.begin_ingest()
    {
        let ingest = ingest(Arc::clone(service), Arc::clone(live), chosen.clone());
        if let Err(error) = on_a_thread(ingest) {
            live.end_ingest(Some(format!("no thread to read the log: {error}")));
        }
    }
}

/// A batch is applied, which may take its time, where it has arrived: around blocking work among others' the runtime wakes more
/// threads than a small batch is worth.
fn on_a_thread(ingest: impl Future<Output = ()> + Send + 'static) -> io::Result<()> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let run = move || runtime.block_on(ingest);
    thread::Builder::new().name("treering-ingest".to_owned()).spawn(run).map(drop)
}

async fn ingest(service: Arc<Service>, live: Arc<LiveTimeline>, from: Safekeeper) {
    let tenant = live.tenant_id();
    let timeline = live.id();
    let (safekeeper, start) = (from.node, live.timeline.last_record_lsn());
    tracing::debug!(%tenant, %timeline, %safekeeper, from = %start, "ingest begins");
    let ended = receiver::receive(&service, &live, from).await;
    let is_stopping = live.stop.is_cancelled();
    let error = ended.err().filter(|_| !is_stopping);
    if let Some(error) = &error {
        live.sources.avoid(safekeeper);
        service.metrics.ingest_failures.inc();
        tracing::warn!(%tenant, %timeline, %safekeeper, %error, kind = ?error.kind(), "ingest failed");
    }
    if let Some(pause) = live.end_ingest(error.map(|error| error.to_string())) {
        tokio::select! {
            () = sleep(pause) => service.poke(),
            () = live.stop.cancelled() => {}
        }
    }
}

/// Tells a safekeeper from where on its log is needed, if that lets it remove something.
async fn tell_horizon(
    client: &Client,
    live: &LiveTimeline,
    safekeeper: &Safekeeper,
    listed: &Listed,
    needed: Lsn,
) {
    let horizon = needed.min(listed.commit_lsn);
    // Whole segments go, and all of a log that nobody writes to.
    let until = if horizon == listed.commit_lsn { horizon } else { horizon.segment_start() };
    let lets_remove = listed.trim_lsn.is_some_and(|trim_lsn| until > trim_lsn);
    let is_archived = live.timeline.is_archived();
    if is_archived
        || !lets_remove
        || !live.sources.shall_tell(safekeeper.node, horizon, Instant::now())
    {
        return;
    }
    let base = safekeeper.http.trim_end_matches('/');
    let (tenant, timeline) = (listed.tenant_id, listed.timeline_id);
    let url = format!("{base}/v1/tenant/{tenant}/timeline/{timeline}/horizon");
    let told = client.put(&url).json(&json!({"lsn": horizon})).send().await;
    if let Err(error) = told.and_then(reqwest::Response::error_for_status) {
        tracing::debug!(url, %error, "a safekeeper was not told what it may remove");
    }
}
