//! Stock Postgres for tests, tools and benches: finding the programs of a major, and throw-away clusters.
//!
//! 15 is Debian's; 16, 17 and 18 are the binaries that `scripts/postgres-binaries` fetches, which have no client
//! programs: those of 15 serve all. `TREERING_PG<major>_BIN` names another folder of server programs. Servers refuse
//! to run as root, so root runs them as the user `postgres`.

#![forbid(unsafe_code)]

mod cluster;
pub mod suite;

use std::{
    env, fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};

pub use cluster::Cluster;

/// Where Debian puts the programs of Postgres 15.
pub const DEBIAN_15: &str = "/usr/lib/postgresql/15/bin";

/// The programs of one major.
#[derive(Clone, Debug)]
pub struct Postgres {
    pub major: u32,
    bin: PathBuf,
    clients: PathBuf,
}

impl Postgres {
    /// The programs of `major`, 15 to 18.
    ///
    /// # Errors
    /// They are not installed; the message says how to get them.
    pub fn find(major: u32) -> Result<Postgres> {
        let clients = PathBuf::from(env::var("PG_BIN").unwrap_or(DEBIAN_15.to_owned()));
        let bin = match env::var(format!("TREERING_PG{major}_BIN")) {
            Ok(dir) => PathBuf::from(dir),
            Err(_) if major == 15 => clients.clone(),
            Err(_) => reachable(&fetched(major))?.join("bin"),
        };
        ensure!(
            bin.join("postgres").is_file(),
            "PostgreSQL {major} is not in {}: `make prerequisites` installs 15, \
             `scripts/postgres-binaries {major}` fetches a later one",
            bin.display()
        );
        Ok(Postgres { major, bin, clients })
    }

    /// The path of a program; clients come from 15 where this major has none.
    pub fn program(&self, name: &str) -> Result<PathBuf> {
        let found = [&self.bin, &self.clients].map(|dir| dir.join(name));
        match found.into_iter().find(|path| path.is_file()) {
            Some(path) => Ok(path),
            None => bail!("no program {name} of PostgreSQL {}", self.major),
        }
    }
}

/// Where `scripts/postgres-binaries` puts a major.
fn fetched(major: u32) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2);
    root.unwrap_or(Path::new(".")).join("target/postgres").join(major.to_string())
}

/// The folder, or a copy of it where every user may read it.
fn reachable(dir: &Path) -> Result<PathBuf> {
    let closed = |dir: &Path| {
        fs::metadata(dir).is_ok_and(|metadata| metadata.permissions().mode() & 0o001 == 0)
    };
    if !rustix::process::geteuid().is_root() || !dir.ancestors().any(closed) {
        return Ok(dir.to_owned());
    }
    let version = fs::read_to_string(dir.join("version")).unwrap_or_default();
    let copy = env::temp_dir().join(format!("treering-postgres-{}", version.trim()));
    if !copy.join("version").is_file() {
        run(Command::new("cp").arg("-a").arg("-T").arg(dir).arg(&copy))?;
    }
    Ok(copy)
}

/// Runs to the end and answers with what it printed.
///
/// # Errors
/// The program cannot be started or does not succeed; the message has what it said.
pub fn run(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {}\n{stderr}", output.status);
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
