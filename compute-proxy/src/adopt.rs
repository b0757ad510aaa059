//! Taking over after an agent that died: each of its computes goes on, or is proven dead, before anything is served.

use std::{fs, path::Path, sync::Arc};

use anyhow::{Context, ensure};

use crate::{
    agent::Agent,
    compute::{log::ComputeLog, reap, record::RunRecord, supervise::Postmaster},
    proposer::{Log, Session},
    standby,
};

impl Agent {
    /// Adopts the computes that may go on, and kills the rest.
    ///
    /// # Errors
    /// A process that cannot be killed: its branch must not be started a second time.
    pub async fn take_over(self: &Arc<Self>) -> anyhow::Result<()> {
        for entry in fs::read_dir(self.computes_dir())? {
            let dir = entry?.path();
            let looked_at = dir.clone();
            let alive =
                tokio::task::spawn_blocking(move || reap::processes_of(&looked_at)).await??;
            if alive.is_empty() {
                continue;
            }
            if let Err(error) = self.adopt(&dir).await {
                tracing::warn!(dir = %dir.display(), "a compute of an agent before us cannot go on: {error:#}");
                tokio::task::spawn_blocking(move || reap::kill_all_of(&dir)).await??;
            }
        }
        Ok(())
    }

    async fn adopt(self: &Arc<Self>, branch_dir: &Path) -> anyhow::Result<()> {
        let mut record = RunRecord::load(branch_dir)?;
        let data_dir = record.run_dir().join("pgdata");
        let postmaster =
            Postmaster::adopt(branch_dir, &data_dir)?.context("its postmaster is dead")?;
        let session = Session::elect(
            Log { identity: record.log(), pg_ancestors: Vec::new() },
            &self.safekeepers(),
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
        let log = ComputeLog::follow(&endpoint.dir.join("postgres.log"))?;
        let (from, pid) = (session.start_lsn, postmaster.pid());
        endpoint.show("starting", None, Some(pid));
        let socket_dir = record.socket_dir().to_owned();
        let compute = endpoint.supervise(
            postmaster,
            Arc::new(session),
            log,
            socket_dir,
            record.run_dir().to_owned(),
        );
        tokio::spawn(standby::run(compute.clone(), from));
        if let Err(error) = self.become_ready(&endpoint, &compute).await {
            compute.stop.cancel();
            compute.wait_ended().await;
            return Err(error.into());
        }
        tracing::info!(timeline = %endpoint.timeline, pid, "adopted a running compute");
        Ok(())
    }
}
