//! The agent: which computes run here, who may start one, and where a branch's log ends.

mod ready;
mod room;
mod start;

use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Context;
use parking_lot::Mutex;
use tokio::time::{sleep, timeout};
use treering_consensus::{
    Configuration, Generation, MemberEnd, PgAncestor, TimelineIdentity, settled_end,
};
use treering_types::{ErrorKind, Lsn, TenantId, TimelineId};

use crate::{
    AgentOptions,
    compute::{owner, reap},
    endpoint::{Compute, Endpoint, Shown},
    error::AgentError,
    gate, pages,
    peers::{self, LogEnd, Peers},
    proposer::{Log, Session},
    wake::BranchName,
};

/// How long the other safekeepers may take to say where a log ends once a majority has.
const LAST_ANSWER_LIMIT: Duration = Duration::from_secs(1);
/// How long another agent may hold our directory before we give up.
const LOCK_LIMIT: Duration = Duration::from_secs(5);
/// How long the members of a log that was just sealed may take to hear of it, and how often they are asked.
const SETTLED_LIMIT: Duration = Duration::from_secs(5);
const SETTLED_PAUSE: Duration = Duration::from_millis(5);

/// The computes of this machine.
pub struct Agent {
    pub options: AgentOptions,
    pub peers: Peers,
    postgres: PathBuf,
    /// Our user name, as peer authentication in the computes sees it.
    os_user: String,
    computes_dir: PathBuf,
    endpoints: Mutex<HashMap<TimelineId, Arc<Endpoint>>>,
    stopping: AtomicBool,
    /// Held for the agent's life. The kernel lets go of it when the last call of a killed agent has ended, and no process
    /// that we start inherits it: who holds it may take back what the last agent held.
    _lock: fs::File,
}

impl Agent {
    pub fn new(mut options: AgentOptions) -> anyhow::Result<Arc<Agent>> {
        fs::create_dir_all(&options.data_dir)?;
        options.data_dir = options.data_dir.canonicalize()?;
        let lock = lock(&options.data_dir)?;
        let computes_dir = options.data_dir.join("computes");
        fs::create_dir_all(&computes_dir)?;
        Ok(Arc::new(Agent {
            peers: Peers::new(&options)?,
            postgres: crate::find_postgres(options.pg_bin_dir.as_deref())?,
            os_user: owner::own_user_name()?,
            computes_dir,
            endpoints: Mutex::default(),
            stopping: AtomicBool::new(false),
            _lock: lock,
            options,
        }))
    }

    /// Where computes live, a directory each.
    pub fn computes_dir(&self) -> &Path {
        &self.computes_dir
    }

    pub fn endpoint(&self, tenant: TenantId, timeline: TimelineId) -> Arc<Endpoint> {
        let mut endpoints = self.endpoints.lock();
        let make = || Arc::new(Endpoint::new(tenant, timeline, &self.computes_dir));
        endpoints.entry(timeline).or_insert_with(make).clone()
    }

    /// The branch whose compute a process belongs to.
    pub fn endpoint_of_process(&self, pid: i32) -> Option<Arc<Endpoint>> {
        let endpoints = self.endpoints.lock();
        endpoints.values().find(|endpoint| reap::works_in(&endpoint.dir, pid)).cloned()
    }

    pub fn list(&self) -> Vec<Shown> {
        self.endpoints.lock().values().map(|endpoint| endpoint.shown()).collect()
    }

    /// Stops all computes for good, side by side: none is started after.
    pub async fn stop_all(&self) {
        self.stopping.store(true, Ordering::Release);
        let endpoints: Vec<_> = self.endpoints.lock().values().cloned().collect();
        let stops: Vec<_> = endpoints
            .into_iter()
            .map(|e| tokio::spawn(async move { e.retire().await.map(drop) }))
            .collect();
        for stop in stops {
            let _ = stop.await;
        }
    }

    /// Stops a compute and removes what this node holds of the branch.
    pub async fn remove(&self, tenant: TenantId, timeline: TimelineId) -> Result<(), AgentError> {
        let endpoint = self.endpoint(tenant, timeline);
        let _over = endpoint.retire().await?;
        pages::forget_starts(&endpoint.dir);
        match fs::remove_dir_all(&endpoint.dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(anyhow::Error::from(error)
                    .context("remove the compute directory")
                    .into());
            }
            _ => {}
        }
        self.endpoints.lock().remove(&timeline);
        Ok(())
    }

    /// The LSN that covers every commit acknowledged before the call; the log is committed up to there.
    ///
    /// A live proposer knows it. Without one the quorum is asked where the log ends: no term, no sync, and calls wait neither for each other nor
    /// for a start under way. Only what a writer left uncommitted takes an election, which seals the log and commits it; it takes one, not one a call.
    pub async fn barrier(&self, tenant: TenantId, timeline: TimelineId) -> Result<Lsn, AgentError> {
        let endpoint = self.endpoint(tenant, timeline);
        if let Some(compute) = endpoint.current() {
            return Ok(compute.session.commit_lsn());
        }
        if let Some(end) = self.settled_end(&endpoint).await? {
            return Ok(end);
        }
        let _changing = endpoint.change().await?;
        if let Some(compute) = endpoint.current() {
            return Ok(compute.session.commit_lsn());
        }
        // Whoever had the endpoint before us may have settled it.
        if let Some(end) = self.settled_end(&endpoint).await? {
            return Ok(end);
        }
        let facts = self.peers.timeline_to_elect(tenant, timeline).await?;
        let log = self.log_of(&endpoint, &facts);
        let session = self.elect(log, self.members()?).await?;
        let sealed = session.start_lsn;
        self.see_settled(&endpoint).await;
        session.end().await;
        Ok(sealed)
    }

    /// Waits until the members show that they have heard of a commit which the session that is still open tells them of: whoever asks next is to
    /// find the log settled. A member may be slow to hear, or its connection break and be made again; it is not waited for without end.
    async fn see_settled(&self, endpoint: &Endpoint) {
        let settled = async {
            while !matches!(self.settled_end(endpoint).await, Ok(Some(_))) {
                sleep(SETTLED_PAUSE).await;
            }
        };
        if timeout(SETTLED_LIMIT, settled).await.is_err() {
            tracing::info!(timeline = %endpoint.timeline, "the safekeepers have not all heard where the log ends");
        }
    }

    /// Where the log ends, if a majority of the members can tell without an election.
    async fn settled_end(&self, endpoint: &Endpoint) -> Result<Option<Lsn>, AgentError> {
        let (tenant, timeline) = (endpoint.tenant, endpoint.timeline);
        // The newest that anybody tells of: a change that was decided after it would be known to a majority of its members.
        let mut configuration = self.members()?;
        let mut asked = self.peers.log_ends(tenant, timeline);
        let (mut answers, mut begin) = (Vec::new(), None);
        // Any majority will do, and where it has not settled it, nobody waits long for a member that hangs.
        let mut patience = Duration::MAX;
        while let Ok(Some(answer)) = timeout(patience, asked.join_next()).await {
            let (node, answer) = answer.map_err(anyhow::Error::from)?;
            match answer {
                Ok(LogEnd::At(end, followed)) => {
                    answers.push((node, end));
                    if followed.generation() > configuration.generation() {
                        configuration = followed;
                    }
                }
                Ok(LogEnd::NoLog) => {
                    let start_lsn = match begin {
                        Some(known) => known,
                        None => self.peers.timeline(tenant, timeline).await?.start_lsn,
                    };
                    begin = Some(start_lsn);
                    let (generation, flush_lsn, commit_lsn) = (Generation(0), start_lsn, start_lsn);
                    answers.push((node, MemberEnd { generation, flush_lsn, commit_lsn }));
                }
                Ok(LogEnd::Latched) => {}
                Err(error) => {
                    tracing::debug!(%timeline, "a safekeeper does not say where a log ends: {error}")
                }
            }
            let of_members = answers.iter().filter(|(node, _)| configuration.contains(*node));
            let of_members: Vec<_> = of_members.map(|(_, end)| *end).collect();
            if let Some(end) = settled_end(&of_members, &configuration) {
                return Ok(Some(end));
            }
            if of_members.len() > configuration.members().len() / 2 {
                patience = LAST_ANSWER_LIMIT;
            }
        }
        Ok(None)
    }

    /// Who decides on a log that is begun here. Where that has changed since, its members say so.
    ///
    /// # Errors
    /// `Invalid` for a list that names nobody, or somebody twice.
    pub fn members(&self) -> Result<Configuration, AgentError> {
        Configuration::first(self.options.members.clone())
            .map_err(|error| AgentError::new(ErrorKind::Invalid, error.to_string()))
    }

    async fn elect(&self, log: Log, configuration: Configuration) -> Result<Session, AgentError> {
        Session::elect(log, configuration, &self.options.safekeepers).await
    }

    /// Sees to it that somebody has been elected under `configuration`, which is being changed: a compute that runs follows
    /// it by itself, else an election seals the log under it. That fills its members.
    pub async fn elect_under(
        &self,
        tenant: TenantId,
        timeline: TimelineId,
        configuration: Configuration,
    ) -> Result<(), AgentError> {
        let endpoint = self.endpoint(tenant, timeline);
        let _changing = endpoint.change().await?;
        if endpoint.current().is_some() {
            return Ok(());
        }
        let facts = self.peers.timeline_to_elect(tenant, timeline).await?;
        let session = self.elect(self.log_of(&endpoint, &facts), configuration).await?;
        session.end().await;
        Ok(())
    }

    fn log_of(&self, endpoint: &Endpoint, facts: &peers::Timeline) -> Log {
        let ancestor = |&(pg_tli, switch_lsn): &(u32, Lsn)| PgAncestor { pg_tli, switch_lsn };
        Log {
            identity: TimelineIdentity {
                tenant: endpoint.tenant,
                timeline: endpoint.timeline,
                system_id: facts.system_id,
                pg_major: facts.pg_version,
                pg_tli: facts.pg_tli,
                start_lsn: facts.log_start_lsn(),
            },
            pg_ancestors: facts.pg_ancestors.iter().map(ancestor).collect(),
        }
    }

    /// Starts the compute of an endpoint unless it runs; whoever comes meanwhile waits for the same start. `woken_by`
    /// is the branch whose client asks: a branch stopped by its user is not woken.
    pub async fn start(
        &self,
        endpoint: &Arc<Endpoint>,
        woken_by: Option<&BranchName>,
    ) -> Result<Arc<Compute>, AgentError> {
        if let Some(compute) = endpoint.current() {
            return Ok(compute);
        }
        let give_up = endpoint.start_token();
        let _changing = endpoint.change().await?;
        if let Some(compute) = endpoint.current() {
            return Ok(compute);
        }
        if self.stopping.load(Ordering::Acquire) {
            return Err(AgentError::new(ErrorKind::Shutdown, "the agent is stopping"));
        }
        // Asked again under the lock: a stop that came in between has recorded itself before it came here.
        if let Some(branch) = woken_by
            && self.peers.resolve(branch.as_str()).await?.stopped
        {
            return Err(AgentError::new(ErrorKind::Conflict, gate::stopped(branch)));
        }
        endpoint.show("starting", None, None);
        let began = Instant::now();
        let started = tokio::select! {
            started = self.start_now(endpoint) => started,
            () = give_up.cancelled() => {
                Err(AgentError::new(ErrorKind::Shutdown, "it was stopped while it started"))
            }
        };
        match started {
            Ok(compute) => {
                tracing::info!(timeline = %endpoint.timeline, ms = began.elapsed().as_millis(), "compute is up");
                Ok(compute)
            }
            Err(error) => {
                endpoint.show("failed", Some(error.message.clone()), None);
                Err(error)
            }
        }
    }
}

/// Takes the agent's directory; waits a little for an agent that is just dying.
fn lock(data_dir: &Path) -> anyhow::Result<fs::File> {
    let path = data_dir.join("lock");
    let open = fs::OpenOptions::new().create(true).write(true).truncate(false).open(&path);
    let file = open.with_context(|| path.display().to_string())?;
    let deadline = Instant::now() + LOCK_LIMIT;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(fs::TryLockError::WouldBlock) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(fs::TryLockError::WouldBlock) => {
                anyhow::bail!("{} is in use by another agent", data_dir.display())
            }
            Err(fs::TryLockError::Error(error)) => {
                return Err(error).with_context(|| path.display().to_string());
            }
        }
    }
}
