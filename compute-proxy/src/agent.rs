//! The agent: which computes run here, and how one is brought up.

use std::{
    collections::HashMap,
    fs, io,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Context;
use parking_lot::Mutex;
use tokio::time::timeout;
use treering_consensus::{
    Configuration, Election, Generation, MemberEnd, PgAncestor, TimelineIdentity, settled_end,
};
use treering_pgfmt::version::PgMajor;
use treering_types::{ErrorKind, Lsn, TenantId, Term, TimelineId};

use crate::{
    AgentOptions, basebackup,
    compute::{
        log::ComputeLog,
        owner::{self, Owner},
        prepare::{self, StartFacts, write_private},
        reap::{self, RUN_PREFIX},
        record::RunRecord,
        settings::{self, SettingsPaths},
        supervise::{Launch, Postmaster, Preload},
    },
    endpoint::{
        Compute, Endpoint, FREE_BYTES_LOW, Places, Shown, disk_full, has_less_than, sql_error,
    },
    error::AgentError,
    gate,
    pages::{
        self, IngestView, Origin, PageMode, Pages,
        imports::Program,
        keep,
        layout::{self, LazyFiles},
        library,
        lsn::Horizon,
    },
    peers::{self, LogEnd, Peers},
    proposer::{Log, Session},
    standby,
    wake::BranchName,
};

/// How long a started compute may take until it waits for us as its synchronous standby.
const READY_LIMIT: Duration = Duration::from_secs(30);
/// How long a postmaster may take until the page library under it says hello.
const REPORT_LIMIT: Duration = Duration::from_secs(10);
/// How long the other safekeepers may take to say where a log ends once a majority has.
const LAST_ANSWER_LIMIT: Duration = Duration::from_secs(1);
/// How long another agent may hold our directory before we give up.
const LOCK_LIMIT: Duration = Duration::from_secs(5);
/// Longest socket path the kernel takes (`sun_path`), less the file name Postgres adds.
const SOCKET_DIR_BYTES_MAX: usize = 107 - "/.s.PGSQL.5432.lock".len();

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
        let facts = self.peers.timeline(tenant, timeline).await?;
        let log = self.log_of(&endpoint, &facts);
        let session = self.elect(log, self.members()?).await?;
        let sealed = session.start_lsn;
        // Whoever asks next is to find it settled.
        session.end().await;
        Ok(sealed)
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
        let facts = self.peers.timeline(tenant, timeline).await?;
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

    async fn start_now(&self, endpoint: &Arc<Endpoint>) -> Result<Arc<Compute>, AgentError> {
        let facts = self.peers.timeline(endpoint.tenant, endpoint.timeline).await?;
        let (run_dir, owner) = self.make_room(endpoint).await?;
        let data_dir = run_dir.join("pgdata");
        // From the election on, no older compute of this branch can commit.
        let log = self.log_of(endpoint, &facts);
        let session = Arc::new(self.elect(log, self.members()?).await?);
        let started =
            self.fetch_and_launch(endpoint, &facts, session.clone(), &data_dir, owner).await;
        let compute = match started {
            Ok(compute) => compute,
            Err(error) => {
                session.close();
                return Err(error);
            }
        };
        if let Err(error) = self.become_ready(endpoint, &compute).await {
            compute.stop.cancel();
            compute.wait_ended().await;
            return Err(error);
        }
        Ok(compute)
    }

    /// Kills what still runs of the branch and makes a fresh directory for this start: whatever an older start may
    /// still be writing, it does not write here.
    async fn make_room(&self, endpoint: &Endpoint) -> Result<(PathBuf, Option<Owner>), AgentError> {
        let dir = endpoint.dir.clone();
        let made = tokio::task::spawn_blocking(move || -> anyhow::Result<_> {
            fs::create_dir_all(&dir)?;
            fs::set_permissions(&dir, fs::Permissions::from_mode(0o711))?;
            reap::kill_all_of(&dir)?;
            if let Ok(old) = RunRecord::load(&dir) {
                // Left behind by an agent that was killed; the records are ours, so the paths are ones we made.
                let _ = fs::remove_dir_all(old.socket_dir());
            }
            pages::forget_starts(&dir);
            if has_less_than(&dir, FREE_BYTES_LOW) {
                anyhow::bail!(disk_full(&dir));
            }
            let run_dir = fresh_run_dir(&dir)?;
            let owner = Owner::for_branch(&dir)?;
            if let Some(parent) = owner::unsearchable_parent(&run_dir, owner) {
                anyhow::bail!(
                    "Postgres runs as a user of its own and cannot pass through {}; choose a data directory \
                     elsewhere, or allow it: chmod o+x {}",
                    parent.display(),
                    parent.display()
                );
            }
            Ok((run_dir, owner))
        });
        Ok(made.await.map_err(anyhow::Error::from)??)
    }

    /// What the program that is to be started can do.
    async fn abilities(&self, run_dir: &Path) -> Result<Abilities, AgentError> {
        let is_lazy = self.options.pages.mode == PageMode::Lazy;
        let (postgres, run_dir) = (self.postgres.clone(), run_dir.to_owned());
        let library_dir = self.options.data_dir.join("lib");
        let looked = tokio::task::spawn_blocking(move || {
            let program = Program::read(&postgres).map_err(|error| error.to_string());
            let has_lz4 = program.as_ref().is_ok_and(Program::has_lz4);
            let library = match is_lazy {
                true => program.and_then(|program| page_library(&program, &run_dir, &library_dir)),
                false => Err("pages are fetched before the start, as asked".to_owned()),
            };
            Abilities { library, has_lz4 }
        });
        Ok(looked.await.map_err(anyhow::Error::from)?)
    }

    async fn fetch_and_launch(
        &self,
        endpoint: &Arc<Endpoint>,
        timeline: &peers::Timeline,
        session: Arc<Session>,
        data_dir: &Path,
        owner: Option<Owner>,
    ) -> Result<Arc<Compute>, AgentError> {
        let from = session.start_lsn;
        let run_dir = data_dir.parent().context("the data directory has a parent")?.to_owned();
        let Abilities { library, has_lz4 } = self.abilities(&run_dir).await?;
        if let Err(why) = &library
            && self.options.pages.mode == PageMode::Lazy
        {
            tracing::warn!(timeline = %endpoint.timeline, "all pages are fetched before the start: {why}");
        }
        let source = basebackup::Source {
            pageserver: self.options.pageserver_pg.clone(),
            tenant: endpoint.tenant,
            timeline: endpoint.timeline,
            lsn: from,
            is_lazy: library.is_ok(),
        };
        let target = data_dir.to_owned();
        let fetched = tokio::task::spawn_blocking(move || {
            prepare::unpack(basebackup::open(&source)?, &target)
        });
        let (fetched, before_f) =
            tokio::join!(fetched, self.real_wal_before(endpoint, timeline, &session.election));
        let facts: StartFacts = fetched.map_err(anyhow::Error::from)??;
        let before_f = before_f?;
        let install = (data_dir.to_owned(), facts.clone());
        let synthetic = tokio::task::spawn_blocking(move || {
            prepare::install_wal(&install.0, &install.1, before_f.as_deref())
        });
        let synthetic = synthetic.await.map_err(anyhow::Error::from)??;
        // The same bytes are the first WAL of the term: the log stays one log.
        session.append(from, synthetic.bytes.clone().into()).await?;
        session.wait_for(synthetic.end).await?;
        session.set_wal_dir(data_dir.join("pg_wal"));
        let log = (self.log_of(endpoint, timeline).identity, session.election.term);
        let socket_dir = socket_dir(&run_dir).context("make the socket directory")?;
        let lazy = match (&library, facts.lazy.clone()) {
            (Ok(library), Some(files)) => {
                let pages =
                    self.lay_out(endpoint, &session, &facts, files, data_dir, owner).await?;
                Some(Lazy { pages: pages.0, shared_file: pages.1, page_library: library.as_path() })
            }
            _ => None,
        };
        let kept = (endpoint.dir.clone(), data_dir.to_owned());
        tokio::task::spawn_blocking(move || keep::restore(&kept.0, &kept.1, from))
            .await
            .map_err(anyhow::Error::from)?
            .context("restore statistics and free-space maps")?;
        let dirs = Dirs { data_dir, socket_dir: &socket_dir, owner };
        let launched = self.launch(endpoint, &facts, log, &dirs, has_lz4, lazy.as_ref());
        let pages = lazy.map(|lazy| lazy.pages);
        let (postmaster, log) = launched?;
        endpoint.show("starting", None, Some(postmaster.pid()));
        let postmaster = match &pages {
            Some(pages) => self.with_library(endpoint, postmaster, pages).await?,
            None => postmaster,
        };
        let compute =
            endpoint.supervise(postmaster, session, log, Places { socket_dir, run_dir }, pages);
        self.attend(&compute, endpoint, synthetic.end);
        Ok(compute)
    }

    /// The postmaster, once it has said that the library is under it; else nothing of it is left. The library speaks
    /// before the program does.
    async fn with_library(
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
    pub fn attend(&self, compute: &Arc<Compute>, endpoint: &Endpoint, stream_from: Lsn) {
        compute.session.spawn(standby::run(compute.clone(), stream_from));
        let Some(pages) = &compute.pages else { return };
        pages.set_gate(compute);
        compute.session.spawn(Arc::clone(pages).publish_commits(compute.clone()));
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

    /// Makes the sparse files of a start and begins to serve them.
    async fn lay_out(
        &self,
        endpoint: &Endpoint,
        session: &Arc<Session>,
        facts: &StartFacts,
        files: LazyFiles,
        data_dir: &Path,
        owner: Option<Owner>,
    ) -> Result<(Arc<Pages>, fs::File), AgentError> {
        let major = PgMajor::from_number(facts.pg_version).context("an unknown Postgres")?;
        let data_dir = data_dir.to_owned();
        let origin = self.page_origin(endpoint);
        let options = self.options.pages.clone();
        let lsn = facts.lsn;
        let horizon = Arc::new(Horizon::of_start(session.clone(), lsn));
        let run_dir = data_dir.parent().context("the data directory has a parent")?.to_owned();
        let lease = origin.lease(&run_dir, horizon.clone())?;
        lease.granted().await?;
        let made = tokio::task::spawn_blocking(move || {
            let run_dir = run_dir.as_path();
            let socket = pages::socket_path(run_dir)?;
            let start = layout::Start {
                run_dir,
                data_dir: &data_dir,
                socket: &socket,
                major,
                lsn,
                wait_limit_ms: options.wait_limit_ms(),
            };
            let (record, file) = layout::lay_out(&start, &files).context("lay out the files")?;
            let shared_file = record.shared_file.clone();
            let pages = Pages::open(record, &origin, (horizon, lease), &options, owner)
                .inspect_err(|_| {
                    let _ = fs::remove_file(&shared_file);
                })?;
            Ok::<_, anyhow::Error>((Arc::new(pages), file))
        });
        Ok(made.await.map_err(anyhow::Error::from)??)
    }

    pub fn page_origin(&self, endpoint: &Endpoint) -> Origin {
        Origin {
            pageserver: self.options.pageserver_pg.clone(),
            tenant: endpoint.tenant,
            timeline: endpoint.timeline,
        }
    }

    /// The bytes of F's segment before F: from this timeline's log, or its ancestor's; else there are none.
    async fn real_wal_before(
        &self,
        endpoint: &Endpoint,
        facts: &peers::Timeline,
        election: &Election,
    ) -> Result<Option<Vec<u8>>, AgentError> {
        let end = election.start_lsn;
        let range = (end.segment_start(), end);
        let sources = [Some(endpoint.timeline), facts.ancestor_timeline_id];
        for source in sources.into_iter().flatten() {
            match self.peers.committed_wal(endpoint.tenant, source, range, election.donor).await {
                Ok(Some(bytes)) => return Ok(Some(bytes.to_vec())),
                Ok(None) => {}
                // They may be in an object store that is away. Only a standby that reads across F would miss them.
                Err(error) if error.kind == ErrorKind::Unavailable => {
                    tracing::warn!(timeline = %source, "started without the log before {end}: {error}");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    fn launch(
        &self,
        endpoint: &Endpoint,
        facts: &StartFacts,
        (log, term): (TimelineIdentity, Term),
        dirs: &Dirs<'_>,
        has_lz4: bool,
        lazy: Option<&Lazy<'_>>,
    ) -> Result<(Postmaster, ComputeLog), AgentError> {
        let Dirs { data_dir, socket_dir, owner } = *dirs;
        let run_dir = data_dir.parent().context("the data directory has a parent")?;
        let (hba_file, ident_file) = (run_dir.join("pg_hba.conf"), run_dir.join("pg_ident.conf"));
        let write = |path: &Path, text: &str| {
            write_private(path, text.as_bytes()).with_context(|| path.display().to_string())
        };
        write(&hba_file, &settings::pg_hba_conf())?;
        write(&ident_file, &settings::pg_ident_conf(&self.os_user))?;
        write(&data_dir.join("postgresql.conf"), &settings::postgresql_conf(has_lz4))?;
        // What decides who may connect, and what we will believe later, stays ours.
        if let Some(owner) = owner {
            for path in [data_dir, socket_dir] {
                owner.take(path).context("hand the directory to the compute's user")?;
            }
            for path in [&hba_file, &ident_file] {
                owner.let_read(path).context("let the compute's user read its files")?;
            }
        }
        RunRecord::new(&log, run_dir, socket_dir, term).save(&endpoint.dir)?;
        let paths = SettingsPaths { socket_dir, hba_file: &hba_file, ident_file: &ident_file };
        let mut settings = settings::forced(&paths, facts.max_prepared_transactions_needed);
        if lazy.is_some() {
            let major = PgMajor::from_number(facts.pg_version).context("an unknown Postgres")?;
            settings.extend(settings::forced_when_lazy(major));
        }
        let (log, writer) =
            ComputeLog::begin(&endpoint.dir.join("postgres.log")).context("open the log")?;
        let launch = Launch {
            postgres: &self.postgres,
            branch_dir: &endpoint.dir,
            data_dir,
            owner,
            settings: &settings,
            log: writer,
            preload: lazy
                .map(|lazy| Preload { path: lazy.page_library, shared_file: &lazy.shared_file }),
        };
        let postmaster = Postmaster::start(launch).context("start postgres")?;
        Ok((postmaster, log))
    }

    /// Waits until the compute waits for us, and makes sure that the user's role has its password.
    pub async fn become_ready(
        &self,
        endpoint: &Endpoint,
        compute: &Compute,
    ) -> Result<(), AgentError> {
        let ready = async {
            loop {
                if let Ok(client) = compute.connect().await
                    && is_synchronous(&client).await?
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

/// Directories of a start, and who gets them.
struct Dirs<'a> {
    data_dir: &'a Path,
    socket_dir: &'a Path,
    owner: Option<Owner>,
}

/// What is known of the program before a start.
struct Abilities {
    /// The library that lets it fetch pages on first touch, or the sentence why that cannot be.
    library: Result<PathBuf, String>,
    has_lz4: bool,
}

fn page_library(program: &Program, run_dir: &Path, library_dir: &Path) -> Result<PathBuf, String> {
    program.check().map_err(|error| error.to_string())?;
    layout::probe(run_dir)?;
    library::install(library_dir).map_err(|error| format!("the page library: {error}"))
}

/// A start whose pages are fetched on first touch.
struct Lazy<'a> {
    pages: Arc<Pages>,
    shared_file: fs::File,
    page_library: &'a Path,
}

async fn is_synchronous(client: &tokio_postgres::Client) -> Result<bool, AgentError> {
    let query =
        "SELECT 1 FROM pg_stat_replication WHERE application_name = $1 AND sync_state = 'sync'";
    let row = client.query_opt(query, &[&settings::AGENT_STANDBY]).await;
    Ok(row.map_err(|e| sql_error(&e))?.is_some())
}

/// A directory for one start, with a name that no earlier one had; the earlier ones are removed.
fn fresh_run_dir(branch_dir: &Path) -> io::Result<PathBuf> {
    for entry in fs::read_dir(branch_dir)? {
        let path = entry?.path();
        let is_old =
            path.file_name().and_then(|n| n.to_str()).is_some_and(|n| n.starts_with(RUN_PREFIX));
        if is_old && let Err(error) = fs::remove_dir_all(&path) {
            tracing::warn!(path = %path.display(), %error, "an old run directory cannot be removed");
        }
    }
    lie_apart(branch_dir);
    let run_dir = branch_dir.join(format!("{RUN_PREFIX}{:08x}", rand::random::<u32>()));
    fs::create_dir(&run_dir)?;
    fs::set_permissions(&run_dir, fs::Permissions::from_mode(0o711))?;
    Ok(run_dir)
}

/// Asks the file system not to lay directories in this one side by side (`FS_TOPDIR_FL`, as of `chattr +T`).
///
/// ext4 does not give an inode away for a minute after its file was removed, and looks at each of them again for every file made
/// near by: a start soon after a stop, which removed a thousand files, took 0.15 s longer for it. Where it is not
/// understood it is not needed.
fn lie_apart(dir: &Path) {
    use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};
    let set = fs::File::open(dir).and_then(|dir| {
        let flags = ioctl_getflags(&dir)?;
        Ok(ioctl_setflags(&dir, flags | IFlags::TOPDIR)?)
    });
    if let Err(error) = set {
        tracing::debug!(dir = %dir.display(), %error, "directories of starts may lie side by side");
    }
}

/// A directory for the compute's socket, short enough for the kernel.
fn socket_dir(run_dir: &Path) -> io::Result<PathBuf> {
    let own = run_dir.join("s");
    let fits =
        own.as_os_str().len() <= SOCKET_DIR_BYTES_MAX && !own.to_string_lossy().contains(',');
    let dir = match fits {
        true => own,
        false => std::env::temp_dir().join(format!("treering-{:016x}", rand::random::<u64>())),
    };
    fs::DirBuilder::new().mode(0o700).create(&dir)?;
    Ok(dir)
}
