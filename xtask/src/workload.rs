//! WAL that reaches every record type: the scripts of `tests/workloads` on a cluster of stock Postgres.
//!
//! A workload `name` is `name.sql`, run in a database of that name, and up to three more files: `name.pgbench`, run
//! by four clients after it; `name.after.sql`, after a checkpoint with full-page writes off, so that every change is
//! redone from what redo made; and `name.end.sql`, after every database was frozen (which truncates what only the
//! oldest transactions needed), just before the server stops.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;
use treering_pgfmt::wal::record::Record;
use treering_stock::{Cluster, Postgres, run};

use crate::{
    replica::Replica,
    report::Report,
    verify::{Input, last_checkpoint, verify},
};

/// How the cluster is set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// Page checksums (so hint bits are logged), images uncompressed.
    Checksums,
    /// No checksums, hint bits not logged, compressed images, `wal_level = logical`, full-page writes off from the
    /// start.
    Plain,
}

/// A cluster that ran and was stopped, and the copy of its data directory from before.
pub struct Corpus {
    pub cluster: Cluster,
    base: TempDir,
}

impl Corpus {
    /// Copies the data directory of a new cluster, then starts its server.
    ///
    /// # Errors
    /// The copy fails, or the server does not start.
    pub fn begin(mut cluster: Cluster) -> Result<Corpus> {
        let base = tempfile::Builder::new().prefix("base-").tempdir()?;
        run(Command::new("cp").arg("-a").arg(cluster.data()).arg(base.path()))?;
        cluster.start()?;
        Ok(Corpus { cluster, base })
    }

    pub fn base(&self) -> PathBuf {
        self.base.path().join("data")
    }

    pub fn wal(&self) -> PathBuf {
        self.cluster.wal_dir()
    }

    /// Replays it all, up to the shutdown checkpoint of the stopped server.
    ///
    /// # Errors
    /// As [`verify`].
    pub fn verify(&self, watch: impl FnMut(&Replica, &Record)) -> Result<Report> {
        let (base, wal) = (self.base(), self.wal());
        let until = Some(last_checkpoint(&self.cluster.data())?);
        verify(&Input { base: &base, wal: &wal, standby: true, until }, watch)
    }

    /// Leaves both behind: the base and the cluster's folder.
    pub fn keep(self) -> (PathBuf, PathBuf) {
        (self.base.keep().join("data"), self.cluster.keep())
    }
}

/// The folder with the scripts.
pub fn scripts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/workloads")
}

/// The names of all workloads, sorted.
pub fn names() -> Result<Vec<String>> {
    let dir = scripts();
    let mut names = Vec::new();
    for entry in fs::read_dir(&dir).with_context(|| dir.display().to_string())? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        names.extend(
            name.strip_suffix(".sql").filter(|name| !name.contains('.')).map(str::to_owned),
        );
    }
    names.sort();
    Ok(names)
}

const SETTINGS: &str = "
wal_consistency_checking = 'all'
max_wal_size = 20GB
checkpoint_timeout = 1h
wal_keep_size = 16GB
max_prepared_transactions = 10
track_commit_timestamp = on
allow_in_place_tablespaces = on
autovacuum = off
shared_buffers = 256MB
synchronous_commit = off
";

/// Runs the named workloads on a new cluster and stops it.
///
/// # Errors
/// There is no such workload, or one of its statements fails.
pub fn run_workloads(postgres: &Postgres, variant: Variant, names: &[String]) -> Result<Corpus> {
    for name in names {
        let path = scripts().join(format!("{name}.sql"));
        ensure!(path.is_file(), "there is no workload {name}: {} is missing", path.display());
    }
    let cluster = match variant {
        Variant::Checksums => {
            Cluster::create(postgres, &format!("{SETTINGS}\nwal_level = replica"))?
        }
        Variant::Plain => {
            let settings = format!(
                "{SETTINGS}\nwal_level = logical\nwal_compression = pglz\nfull_page_writes = off\n"
            );
            Cluster::create_with(postgres, &[], &settings)?
        }
    };
    let mut corpus = Corpus::begin(cluster)?;
    drive(&corpus.cluster, names)?;
    corpus.cluster.stop("fast")?;
    Ok(corpus)
}

fn drive(cluster: &Cluster, names: &[String]) -> Result<()> {
    for name in names {
        cluster.sql(&format!("CREATE DATABASE {name}"))?;
        script(cluster, name, "")?;
        concurrently(cluster, name)?;
    }
    cluster.sql("ALTER SYSTEM SET full_page_writes = off")?;
    cluster.sql("SELECT pg_reload_conf()")?;
    cluster.sql("CHECKPOINT")?;
    names.iter().try_for_each(|name| script(cluster, name, ".after"))?;
    cluster.sql("ALTER DATABASE template0 ALLOW_CONNECTIONS true")?;
    run(cluster.client("vacuumdb")?.args(["--all", "--freeze", "--quiet"]))?;
    cluster.sql("CHECKPOINT")?;
    names.iter().try_for_each(|name| script(cluster, name, ".end"))
}

fn script(cluster: &Cluster, name: &str, stage: &str) -> Result<()> {
    match fs::read_to_string(scripts().join(format!("{name}{stage}.sql"))) {
        Ok(text) => cluster.script(name, &text).with_context(|| format!("{name}{stage}.sql")),
        Err(_) => Ok(()),
    }
}

fn concurrently(cluster: &Cluster, name: &str) -> Result<()> {
    let Ok(text) = fs::read(scripts().join(format!("{name}.pgbench"))) else {
        return Ok(());
    };
    // The server's user must be able to read it.
    cluster.write("workload.pgbench", &text)?;
    let file = cluster.data().join("workload.pgbench").display().to_string();
    cluster.pgbench(&["-n", "-c", "4", "-j", "2", "-T", "1", "-f", &file, name])?;
    Ok(())
}
