//! The template: a stock, empty cluster per Postgres major, made once and cached.
//!
//! `<data_dir>/templates/<major>/` holds the files of a cleanly shut down data directory. It comes into being by a
//! rename of a synced directory, so what is there is whole; a crash before leaves only a `*.making` directory, removed
//! by the next attempt. The cluster is built in a scratch directory of the system's temporary folder, because the
//! account that Postgres runs as need not be able to reach our data directory.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use parking_lot::Mutex;
use treering_pgfmt::version::PgMajor;

use super::{
    ImportError,
    binaries::{Account, Binaries},
};

/// The role that the node agent uses: streams WAL, sets passwords, asks for positions.
pub const AGENT_ROLE: &str = "treering_agent";

/// Makes and finds templates. One at a time: `initdb` twice at once helps nobody.
pub struct Templates {
    directory: PathBuf,
    bin_dirs: Vec<PathBuf>,
    making: Mutex<()>,
}

impl Templates {
    pub fn new(data_dir: &Path, bin_dirs: Vec<PathBuf>) -> Templates {
        Templates { directory: data_dir.join("templates"), bin_dirs, making: Mutex::new(()) }
    }

    /// The data directory of `major`'s template, made now if there is none. Blocking; a few seconds the first time.
    ///
    /// # Errors
    /// No Postgres of that major, no account to run it as, a step that failed (with its output).
    pub fn of(&self, major: PgMajor) -> Result<PathBuf, ImportError> {
        let place = self.directory.join(major.number().to_string());
        let _one = self.making.lock();
        if !place.is_dir() {
            let binaries = Binaries::find(major, &self.bin_dirs)?;
            self.make(&binaries, &place)?;
        }
        Ok(place)
    }

    fn make(&self, binaries: &Binaries, place: &Path) -> Result<(), ImportError> {
        tracing::info!(version = %binaries.version, "making a template with initdb");
        let account = Account::to_become()?;
        let scratch = Scratch::new(account)?;
        let data = scratch.0.join("data");
        initdb(binaries, account, &data)?;
        first_statements(binaries, account, &data)?;
        let making = place.with_extension("making");
        remove_if_there(&making)?;
        copy_tree(&data, &making)?;
        publish(&making, place)?;
        Ok(())
    }
}

/// A directory of the account's own, gone when dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn new(account: Option<Account>) -> io::Result<Scratch> {
        let name = format!("treering-initdb-{:016x}", rand::random::<u64>());
        let scratch = Scratch(std::env::temp_dir().join(name));
        fs::DirBuilder::new().mode(0o700).create(&scratch.0)?;
        account.map_or(Ok(()), |account| account.own(&scratch.0))?;
        Ok(scratch)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = remove_if_there(&self.0) {
            tracing::warn!(path = %self.0.display(), %error, "scratch directory stays behind");
        }
    }
}

/// Checksums on; the C locale, so that indexes never depend on a machine's libc; no `trust` anywhere.
fn initdb(binaries: &Binaries, account: Option<Account>, data: &Path) -> Result<(), ImportError> {
    let mut command = Command::new(binaries.program("initdb"));
    command.arg("-D").arg(data).args([
        "--data-checksums",
        "--no-locale",
        "--encoding=UTF8",
        "--username=postgres",
        "--auth-local=peer",
        "--auth-host=scram-sha-256",
        "--no-sync",
        "--no-instructions",
    ]);
    run("initdb", &mut command, account, data, b"")
}

/// Single-user mode: the agent's role, then a clean shutdown with its checkpoint.
fn first_statements(
    binaries: &Binaries,
    account: Option<Account>,
    data: &Path,
) -> Result<(), ImportError> {
    let mut command = Command::new(binaries.program("postgres"));
    command.args(["--single", "-F", "-c", "wal_level=replica", "-c", "exit_on_error=true", "-D"]);
    command.arg(data).arg("postgres");
    let statements = format!("CREATE ROLE {AGENT_ROLE} SUPERUSER LOGIN REPLICATION\nCHECKPOINT\n");
    run("postgres --single", &mut command, account, data, statements.as_bytes())
}

fn run(
    step: &'static str,
    command: &mut Command,
    account: Option<Account>,
    data: &Path,
    input: &[u8],
) -> Result<(), ImportError> {
    if let Some(account) = account {
        account.run_as(command);
    }
    let here = data.parent().unwrap_or(Path::new("/"));
    command.current_dir(here).env_clear().env("LC_ALL", "C").env("TZ", "UTC");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let failed = |error| ImportError::Step { step, output: format!("cannot run: {error}") };
    let mut child = command.spawn().map_err(failed)?;
    // A child that ends early breaks the pipe; its own message is the better error.
    if let Some(mut stdin) = child.stdin.take() {
        let _ = stdin.write_all(input);
    }
    let output = child.wait_with_output().map_err(failed)?;
    match output.status.success() {
        true => Ok(()),
        false => Err(ImportError::Step { step, output: text_of(&output) }),
    }
}

fn text_of(output: &Output) -> String {
    let both = [&output.stderr[..], &output.stdout[..]].concat();
    let text = String::from_utf8_lossy(&both);
    format!("{}: {}", output.status, text.trim())
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Copies directories and plain files. A data directory fresh from `initdb` has nothing else.
fn copy_tree(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        let kind = entry.file_type()?;
        if kind.is_dir() {
            copy_tree(&entry.path(), &target)?;
        } else if kind.is_file() {
            fs::copy(entry.path(), &target)?;
        }
    }
    Ok(())
}

/// Everything below `making` durable, then named `place`, then the name durable.
fn publish(making: &Path, place: &Path) -> io::Result<()> {
    rustix::fs::syncfs(File::open(making)?)?;
    fs::rename(making, place)?;
    let parent = place.parent().unwrap_or(Path::new("/"));
    File::open(parent)?.sync_all()
}
