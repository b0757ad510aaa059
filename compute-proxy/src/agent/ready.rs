//! From a started postmaster to a compute that serves.

use std::{fs, sync::Arc, time::Duration};

use anyhow::Context;
use treering_consensus::TimelineIdentity;
use treering_types::{ErrorKind, Lsn};

use super::Agent;
use crate::{
    compute::{settings, supervise::Postmaster},
    endpoint::{Compute, Endpoint, sql_error},
    error::AgentError,
    flush,
    pages::{IngestView, Pages},
    standby,
};

/// How long a started compute may take until its commits wait for us.
const READY_LIMIT: Duration = Duration::from_secs(30);
/// How long a postmaster may take until the page library under it says hello.
const REPORT_LIMIT: Duration = Duration::from_secs(10);

impl Agent {
    /// The postmaster, once it has said that the library is under it; else nothing of it is left. The library speaks
    /// before the program does.
    pub async fn with_library(
        &self,
        endpoint: &Endpoint,
        postmaster: Postmaster,
        pages: &Pages,
    ) -> Result<Postmaster, AgentError> {
        let mut postmaster = Unsupervised(Some(postmaster));
        let Unsupervised(Some(started)) = &mut postmaster else { return Err(no_postmaster()) };
        let pid = started.pid();
        let reported = async {
            while !pages.has_reported(pid) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let what = tokio::select! {
            () = reported => return postmaster.0.take().ok_or_else(no_postmaster),
            how = started.wait() => format!("Postgres ended while starting ({how})"),
            () = tokio::time::sleep(REPORT_LIMIT) => {
                "Postgres runs without the page library and was stopped: a page that was not fetched could pass for \
                 an empty one".to_owned()
            }
        };
        started.kill().await.context("kill a postmaster without the page library")?;
        Err(AgentError::new(ErrorKind::Unavailable, self.tail(endpoint, &what)))
    }

    /// What runs beside a compute until it ends.
    pub fn attend(
        &self,
        compute: &Arc<Compute>,
        endpoint: &Endpoint,
        log: TimelineIdentity,
        stream_from: Lsn,
    ) {
        let Some(pages) = &compute.pages else {
            compute.session.spawn(standby::run(compute.clone(), stream_from));
            return;
        };
        compute.session.spawn(flush::run(compute.clone(), pages.clone(), log, stream_from));
        tokio::spawn(Arc::clone(pages).forget_unlinked(compute.clone()));
        if self.options.pages.cache_limit_bytes.is_some() {
            let ingest = IngestView {
                peers: self.peers.clone(),
                tenant: endpoint.tenant,
                timeline: endpoint.timeline,
            };
            let (pages, compute) = (Arc::clone(pages), compute.clone());
            tokio::spawn(async move { pages.keep_within_limit(compute, ingest).await });
        }
    }

    /// Waits until the compute's commits wait for us, and makes sure that the user's role has its password.
    pub async fn become_ready(
        &self,
        endpoint: &Endpoint,
        compute: &Compute,
    ) -> Result<(), AgentError> {
        let ready = async {
            loop {
                if let Ok(client) = compute.connect().await
                    && waits_for_the_quorum(compute, &client).await?
                {
                    return Ok::<_, AgentError>(client);
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let client = tokio::select! {
            ready = tokio::time::timeout(READY_LIMIT, ready) => {
                ready.map_err(|_| AgentError::new(ErrorKind::Unavailable, self.tail(endpoint, "Postgres does not become ready")))??
            }
            () = compute.wait_ended() => {
                return Err(AgentError::new(ErrorKind::Unavailable, self.tail(endpoint, "Postgres ended while starting")));
            }
        };
        let pid = endpoint.shown().pid;
        self.ensure_password(endpoint, &client).await?;
        endpoint.show("running", None, pid);
        compute.set_ready();
        Ok(())
    }

    /// A sentence with the last line of the compute's log.
    fn tail(&self, endpoint: &Endpoint, what: &str) -> String {
        let log = fs::read_to_string(endpoint.dir.join("postgres.log")).unwrap_or_default();
        format!("{what}: {}", log.lines().last().unwrap_or("its log is empty"))
    }

    /// A cluster we made is born with a role that has no password; the first start gives it the project's.
    async fn ensure_password(
        &self,
        endpoint: &Endpoint,
        client: &tokio_postgres::Client,
    ) -> Result<(), AgentError> {
        let missing =
            "SELECT rolname FROM pg_authid WHERE rolname = 'postgres' AND rolpassword IS NULL";
        let missing = client.query_opt(missing, &[]).await.map_err(|e| sql_error(&e))?;
        if missing.is_none() {
            return Ok(());
        }
        let branch = self.peers.credentials(endpoint.timeline).await?;
        let verifier = postgres_protocol::password::scram_sha_256(branch.password.as_bytes());
        let role = branch.role.replace('"', "\"\"");
        let change = format!("ALTER ROLE \"{role}\" PASSWORD '{verifier}'");
        client.batch_execute(&change).await.map_err(|e| sql_error(&e))
    }
}

/// A postmaster that nobody watches yet. If its start is given up, it does not go on unseen.
struct Unsupervised(Option<Postmaster>);

impl Drop for Unsupervised {
    fn drop(&mut self) {
        if let Some(postmaster) = &self.0 {
            postmaster.kill_soon();
        }
    }
}

fn no_postmaster() -> AgentError {
    AgentError::new(ErrorKind::Unavailable, "Postgres ended while starting")
}

/// Whether commits wait for us.
async fn waits_for_the_quorum(
    compute: &Compute,
    client: &tokio_postgres::Client,
) -> Result<bool, AgentError> {
    if compute.pages.is_some() {
        let row = client.query_opt(settings::FLUSHES_SHOWN, &[]).await;
        let row = row.map_err(|e| sql_error(&e))?.context("Postgres does not flush its log")?;
        return Ok(row.len() == 1);
    }
    let query =
        "SELECT 1 FROM pg_stat_replication WHERE application_name = $1 AND sync_state = 'sync'";
    let row = client.query_opt(query, &[&settings::AGENT_STANDBY]).await;
    Ok(row.map_err(|e| sql_error(&e))?.is_some())
}
