//! What stock Postgres leaves for the engine to take in: a cluster that was stopped cleanly, and the log that it wrote after
//! it was started again.
//!
//! Making such inputs takes minutes at full size. With `TREERING_BENCH_INPUTS=DIR` in the environment they are kept there by
//! name, and found there by later runs.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Context;
use tempfile::TempDir;
use treering_pgfmt::version::PgMajor;
use treering_stock::{Cluster, Postgres, run};
use treering_types::Lsn;

use crate::log::{Log, control_file};

/// The only major that scenarios use.
pub const MAJOR: PgMajor = PgMajor::V15;

/// Nothing in the background, no checkpoint but those asked for, no log file used twice.
const SETTINGS: &str = "
autovacuum=off
checkpoint_timeout=1d
max_wal_size=100GB
wal_keep_size=100GB
shared_buffers=1GB
synchronous_commit=off
max_logical_replication_workers=0
";

/// A cold copy of a cluster, and the log after it.
pub struct Source {
    /// The data directory as it was after the clean stop.
    pub base: PathBuf,
    pub log: Written,
    _folder: Option<TempDir>,
}

/// The log after a clean stop.
pub struct Written {
    /// Its files; the first records are the base's.
    pub dir: PathBuf,
    /// Where it ends.
    pub end: Lsn,
    /// Records after the shutdown checkpoint.
    pub records: u64,
}

impl Source {
    /// The source of this name: `load` fills a new cluster before it is stopped, `work` writes the log. Clusters have data
    /// checksums, as Treering's own do, and full-page writes as told.
    pub fn get(
        name: &str,
        full_page_writes: bool,
        load: impl FnOnce(&Cluster) -> anyhow::Result<()>,
        work: impl FnOnce(&Cluster) -> anyhow::Result<()>,
    ) -> anyhow::Result<Source> {
        let (place, folder) = place(name, |place| {
            let mut cluster = loaded(full_page_writes, load)?;
            let base = place.join("base");
            run(Command::new("cp").args(["-a", "-T"]).arg(cluster.data()).arg(base))?;
            write_log(&mut cluster, work)?;
            run(Command::new("mv").arg("-T").arg(cluster.wal_dir()).arg(place.join("wal")))?;
            Ok(())
        })?;
        let base = place.join("base");
        let log = Written::after(&base, &place.join("wal"))?;
        Ok(Source { base, log, _folder: folder })
    }
}

impl Written {
    /// The log in `dir` after the clean stop of the cluster in `base`.
    pub fn after(base: &Path, dir: &Path) -> anyhow::Result<Written> {
        Written::from(control_file(base)?.checkpoint_start(), dir)
    }

    /// The log in `dir` after the shutdown checkpoint that starts at `checkpoint`.
    pub fn from(checkpoint: Lsn, dir: &Path) -> anyhow::Result<Written> {
        let mut records = 0;
        let mut log = Log::open(MAJOR, dir, checkpoint);
        log.for_each_record(|_| {
            records += 1;
            Ok(())
        })?;
        let records = u64::checked_sub(records, 1).context("the log is empty")?;
        Ok(Written { dir: dir.to_owned(), end: log.position(), records })
    }
}

/// The folder of this name, filled by `make` unless it is there from an earlier run. The second value removes it.
pub fn place(
    name: &str,
    make: impl FnOnce(&Path) -> anyhow::Result<()>,
) -> anyhow::Result<(PathBuf, Option<TempDir>)> {
    let Some(kept) = env::var_os("TREERING_BENCH_INPUTS").map(PathBuf::from) else {
        let folder = tempfile::Builder::new().prefix("bench-input-").tempdir()?;
        make(folder.path())?;
        return Ok((folder.path().to_owned(), Some(folder)));
    };
    let place = kept.join(name);
    if !place.exists() {
        let making = kept.join(format!("{name}.making"));
        let _ = fs::remove_dir_all(&making);
        fs::create_dir_all(&making)?;
        make(&making)?;
        fs::rename(&making, &place)?;
    }
    Ok((place, None))
}

/// A cluster that `load` filled without writing a log, and that was then started and stopped with `wal_level=replica`.
pub fn loaded(
    full_page_writes: bool,
    load: impl FnOnce(&Cluster) -> anyhow::Result<()>,
) -> anyhow::Result<Cluster> {
    let images = if full_page_writes { "on" } else { "off" };
    let settings = format!(
        "{SETTINGS}full_page_writes={images}\nwal_level=minimal\nmax_wal_senders=0\nmaintenance_work_mem=1GB\n"
    );
    let mut cluster = Cluster::create(&Postgres::find(15)?, &settings)?;
    cluster.start()?;
    load(&cluster)?;
    cluster.stop("fast")?;
    cluster.configure("wal_level=replica\nmax_wal_senders=10\n")?;
    // The control file says what the server was last started with.
    cluster.start()?;
    cluster.stop("fast")?;
    Ok(cluster)
}

/// Has a stopped cluster write its log, and stops it again.
pub fn write_log(
    cluster: &mut Cluster,
    work: impl FnOnce(&Cluster) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    cluster.start()?;
    work(cluster)?;
    cluster.stop("fast")
}
