//! How a compute is brought up: elected, its files laid out, its log begun, its postmaster started.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::Context;
use bytes::Bytes;
use treering_consensus::{Election, TimelineIdentity};
use treering_pgfmt::version::PgMajor;
use treering_types::{ErrorKind, Term};

use super::{Agent, room::socket_dir};
use crate::{
    basebackup,
    compute::{
        log::ComputeLog,
        owner::Owner,
        prepare::{self, StartFacts, write_private},
        record::RunRecord,
        settings::{self, SettingsPaths},
        supervise::{Launch, Postmaster, Preload},
    },
    endpoint::{Compute, Endpoint, Places},
    error::AgentError,
    pages::{
        self, Origin, PageMode, Pages,
        imports::Program,
        keep,
        layout::{self, LazyFiles},
        library,
        lsn::Horizon,
    },
    peers,
    proposer::Session,
};

impl Agent {
    pub(super) async fn start_now(
        &self,
        endpoint: &Arc<Endpoint>,
    ) -> Result<Arc<Compute>, AgentError> {
        let facts = self.peers.timeline_to_elect(endpoint.tenant, endpoint.timeline).await?;
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
        let identity = self.log_of(endpoint, timeline).identity;
        let log = (identity.clone(), session.election.term);
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
        self.attend(&compute, endpoint, identity, synthetic.end);
        Ok(compute)
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
    ) -> Result<Option<Bytes>, AgentError> {
        let end = election.start_lsn;
        let range = (end.segment_start(), end);
        let sources = [Some(endpoint.timeline), facts.ancestor_timeline_id];
        for source in sources.into_iter().flatten() {
            match self.peers.committed_wal(endpoint.tenant, source, range, election.donor).await {
                Ok(Some(bytes)) => return Ok(Some(bytes)),
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
        let major = PgMajor::from_number(facts.pg_version).context("an unknown Postgres")?;
        let prepared = facts.max_prepared_transactions_needed;
        let settings = settings::forced(&paths, prepared, lazy.is_some().then_some(major));
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
