//! Taking over after an agent that died: each of its computes goes on, or is proven dead, before anything is served.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, ensure};
use tokio::task::JoinSet;
use treering_consensus::TimelineIdentity;

use crate::{
    agent::Agent,
    compute::{log::ComputeLog, owner::Owner, reap, record::RunRecord, supervise::Postmaster},
    endpoint::{Endpoint, Places},
    pages::{self, Pages, layout, lsn::Horizon},
    proposer::{Log, Session},
};

impl Agent {
    /// Adopts the computes that may go on, and kills the rest.
    ///
    /// # Errors
    /// A process that cannot be killed: its branch must not be started a second time.
    pub async fn take_over(self: &Arc<Self>) -> anyhow::Result<()> {
        // Side by side: backends of all of them wait for pages.
        let mut taking = JoinSet::new();
        for entry in fs::read_dir(self.computes_dir())? {
            let (agent, dir) = (self.clone(), entry?.path());
            taking.spawn(async move { agent.adopt_or_kill(dir).await });
        }
        while let Some(taken) = taking.join_next().await {
            taken??;
        }
        Ok(())
    }

    async fn adopt_or_kill(self: Arc<Self>, dir: PathBuf) -> anyhow::Result<()> {
        let looked_at = dir.clone();
        let alive = tokio::task::spawn_blocking(move || reap::processes_of(&looked_at)).await??;
        if !alive.is_empty() {
            let Err(error) = self.adopt(&dir).await else { return Ok(()) };
            tracing::warn!(dir = %dir.display(), "a compute of an agent before us cannot go on: {error:#}");
        }
        let forget = move || {
            reap::kill_all_of(&dir)?;
            pages::forget_starts(&dir);
            Ok(())
        };
        tokio::task::spawn_blocking(forget).await?
    }

    async fn adopt(self: &Arc<Self>, branch_dir: &Path) -> anyhow::Result<()> {
        let mut record = RunRecord::load(branch_dir)?;
        let data_dir = record.run_dir().join("pgdata");
        let postmaster =
            Postmaster::adopt(branch_dir, &data_dir)?.context("its postmaster is dead")?;
        let session = Session::elect(
            Log { identity: self.identity_now(record.log()).await, pg_ancestors: Vec::new() },
            self.members()?,
            &self.options.safekeepers,
        )
        .await?;
        let last = session.election.donor_last_log_term;
        ensure!(record.wrote_in(last), "term {last} of the log was written by another compute");
        record.add(session.election.term);
        record.save(branch_dir)?;
        session.set_wal_dir(data_dir.join("pg_wal"));
        let log = record.log();
        let endpoint = self.endpoint(log.tenant, log.timeline);
        let _changing = endpoint.change().await?;
        let session = Arc::new(session);
        let pages = self.adopt_pages(&endpoint, &record, &session).await?;
        // The agent before us may have died while it waited for this.
        let postmaster = match &pages {
            Some(pages) => self.with_library(&endpoint, postmaster, pages).await?,
            None => postmaster,
        };
        let log = ComputeLog::follow(&endpoint.dir.join("postgres.log"))?;
        let (from, pid) = (session.start_lsn, postmaster.pid());
        endpoint.show("starting", None, Some(pid));
        let socket_dir = record.socket_dir().to_owned();
        let compute = endpoint.supervise(
            postmaster,
            session,
            log,
            Places { socket_dir, run_dir: record.run_dir().to_owned() },
            pages,
        );
        self.attend(&compute, &endpoint, record.log(), from);
        if let Err(error) = self.become_ready(&endpoint, &compute).await {
            compute.stop.cancel();
            compute.wait_ended().await;
            return Err(error.into());
        }
        tracing::info!(timeline = %endpoint.timeline, pid, "adopted a running compute");
        Ok(())
    }

    /// Whose log it is. Where a new safekeeper's copy may begin has moved since the record was written; a pageserver that is
    /// not there yet is not waited for.
    async fn identity_now(&self, recorded: TimelineIdentity) -> TimelineIdentity {
        match self.peers.timeline_to_elect(recorded.tenant, recorded.timeline).await {
            Ok(facts) => {
                // What was kept then still is, whatever a pageserver says whose object store does not answer.
                let start_lsn = facts.log_start_lsn().max(recorded.start_lsn);
                TimelineIdentity { start_lsn, ..recorded }
            }
            Err(error) => {
                tracing::debug!("where a new log may begin is not known: {error}");
                recorded
            }
        }
    }

    /// Serves the pages of a start whose agent is dead: `up` and the operating system keep two agents from one data
    /// directory, and what this one held is taken back before anything is answered.
    async fn adopt_pages(
        &self,
        endpoint: &Endpoint,
        record: &RunRecord,
        session: &Arc<Session>,
    ) -> anyhow::Result<Option<Arc<Pages>>> {
        let (origin, options) = (self.page_origin(endpoint), self.options.pages.clone());
        let run_dir = record.run_dir().to_owned();
        let (session, branch_dir) = (session.clone(), endpoint.dir.clone());
        let adopted = tokio::task::spawn_blocking(move || {
            let Some(record) = layout::Record::load(&run_dir)? else { return Ok(None) };
            let horizon = Arc::new(Horizon::of_takeover(session, record.lsn));
            // The agent before us had it; not waited for, because commits wait for us.
            let lease = origin.lease(&run_dir, horizon.clone())?;
            let owner = Owner::for_branch(&branch_dir)?;
            let reads = (horizon, lease);
            Ok(Some(Arc::new(Pages::open(record, &origin, reads, &options, owner)?)))
        });
        adopted.await?
    }
}
