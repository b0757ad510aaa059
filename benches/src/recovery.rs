//! A cold copy, the WAL after it, and stock Postgres's own recovery of both.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, ensure};
use treering_stock::{Cluster, Postgres, run};
use treering_types::Lsn;

use crate::{
    log::control_file,
    memory::{self, FreeMemory},
};

/// Nothing in the background, nothing thrown out of memory, no checkpoint but those asked for.
const SETTINGS: &str = "
autovacuum=off
checkpoint_timeout=1d
max_wal_size=100GB
wal_keep_size=100GB
shared_buffers=4GB
bgwriter_lru_maxpages=0
synchronous_commit=off
full_page_writes=on
max_logical_replication_workers=0
";

/// What stock recovery said of itself ("redo done at ...").
#[derive(Clone, Copy, Debug)]
pub struct Recovered {
    /// Start of the last record applied.
    pub last_record: Lsn,
    pub elapsed: Duration,
    /// Of the process that recovers, user and system.
    pub cpu: Duration,
    /// Of that, the kernel's part.
    pub system: Duration,
}

/// More than either side of a comparison touches.
const WARM_BYTES: usize = 3 << 30;

/// The machine as each side of a comparison must find it: nothing left to be written to disk, memory there in the pages
/// that it takes ([`memory::leave_free`]), and what it will read, below `inputs`, in it: what the kernel keeps of files that nobody
/// read for a while, a virtual machine may have given back as well.
///
/// # Errors
/// Whatever the kernel says to a mapping of 3 GiB, or to reading.
pub fn settle(free: FreeMemory, inputs: &[PathBuf]) -> io::Result<()> {
    rustix::fs::sync();
    memory::leave_free(free, WARM_BYTES)?;
    inputs.iter().try_for_each(|input| read_all(input))
}

/// Reads every file below a directory.
fn read_all(directory: &Path) -> io::Result<()> {
    let mut buffer = vec![0; 1 << 20];
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            read_all(&path)?;
        } else {
            let mut file = File::open(path)?;
            while file.read(&mut buffer)? > 0 {}
        }
    }
    Ok(())
}

/// A TPC-B cluster: as it was after loading, and the WAL that a load wrote since.
pub struct Course {
    postgres: Postgres,
    base: Cluster,
    source: Cluster,
    /// Where recovery of the copy begins.
    pub from: Lsn,
}

impl Course {
    /// Loads `scale`, copies the stopped cluster, then runs TPC-B until `bytes` of WAL are there, with a checkpoint
    /// half-way.
    pub fn run(scale: u32, bytes: u64) -> anyhow::Result<Course> {
        let postgres = Postgres::find(15)?;
        let mut source = Cluster::create_with(&postgres, &[], SETTINGS)?;
        source.start()?;
        source.pgbench(&["-i", "-q", "-I", "dtGvp", "-s", &scale.to_string(), "postgres"])?;
        source.sql("CHECKPOINT")?;
        // Not a clean stop: after one there would be nothing to recover.
        source.stop("immediate")?;
        let base = Cluster::copy_of(&postgres, &source.data(), "")?;
        let from = control_file(&base.data())?.checkpoint().redo;
        source.start()?;
        for part in [bytes / 2, bytes] {
            while written(&source, from)? < part {
                source.pgbench(&["-n", "-c", "4", "-j", "2", "-t", "1000", "postgres"])?;
            }
            if part < bytes {
                source.sql("CHECKPOINT")?;
            }
        }
        source.stop("immediate")?;
        Ok(Course { postgres, base, source, from })
    }

    /// The cold copy.
    pub fn base(&self) -> PathBuf {
        self.base.data()
    }

    /// The WAL after it.
    pub fn wal_dir(&self) -> PathBuf {
        self.source.wal_dir()
    }

    /// Stock Postgres recovers a copy of the copy; the cluster that comes of it is stopped. It runs on the cores that
    /// the calling thread may use.
    pub fn recover(&self) -> anyhow::Result<(Recovered, Cluster)> {
        let mut cluster = Cluster::copy_of(&self.postgres, &self.base.data(), "")?;
        let from = self.source.wal_dir().join(".");
        run(Command::new("cp").arg("-a").arg(from).arg(cluster.wal_dir()))?;
        settle(FreeMemory::Pages, &[cluster.data()])?;
        cluster.start()?;
        let recovered = parse(&cluster.log()).context("the server did not recover")?;
        cluster.stop("fast")?;
        Ok((recovered, cluster))
    }
}

/// Bytes of WAL since `from`.
fn written(cluster: &Cluster, from: Lsn) -> anyhow::Result<u64> {
    let now: Lsn = cluster.sql("SELECT pg_current_wal_insert_lsn()")?.parse()?;
    now.bytes_since(from).context("the WAL went back")
}

/// `redo done at 0/1 system usage: CPU: user: 0.00 s, system: 0.00 s, elapsed: 0.00 s`.
fn parse(log: &str) -> anyhow::Result<Recovered> {
    let line = log.lines().find_map(|line| line.split_once("redo done at "));
    let (_, line) = line.with_context(|| log.to_owned())?;
    let seconds = |name: &str| -> anyhow::Result<Duration> {
        let (_, rest) = line.split_once(name).context("no such time")?;
        let number = rest.trim().split(' ').next().context("no number")?;
        Ok(Duration::from_secs_f64(number.parse()?))
    };
    let last_record = line.split(' ').next().context("no position")?.parse()?;
    let recovered = Recovered {
        last_record,
        elapsed: seconds("elapsed:")?,
        cpu: seconds("user:")? + seconds("system:")?,
        system: seconds("system:")?,
    };
    ensure!(!recovered.elapsed.is_zero(), "recovery took no time: {line}");
    Ok(recovered)
}
