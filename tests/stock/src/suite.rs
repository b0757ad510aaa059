//! Postgres 15's own test suites, as `scripts/regression-source` fetches them, against any server.
//!
//! They are run for the WAL they write, so a test whose output is not the expected one is counted and no more: where
//! Debian has no source of the server's own minor release, a few outputs differ. Only when many do is it an error.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use crate::{Cluster, Postgres, run};

/// More failing tests than one in so many, and one more, are not the fault of a minor release.
const FAILING_SHARE: usize = 10;
/// Sessions at once where a schedule allows it.
const SESSIONS: u32 = 4;

/// How a server is reached: variables of libpq.
pub type Connection<'a> = &'a [(&'a str, &'a str)];

/// What one suite did.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub suite: String,
    pub tests: u32,
    /// Tests whose output is not the expected one.
    pub failed: Vec<String>,
    pub took: Duration,
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Outcome { suite, tests, failed, took } = self;
        let passed = *tests as usize - failed.len();
        write!(f, "{suite}: {passed} of {tests} tests pass ({took:.1?})")?;
        match failed[..] {
            [] => Ok(()),
            _ => write!(f, "; not: {}", failed.join(" ")),
        }
    }
}

/// A copy of the suites in a temporary folder that servers of any user may read.
pub struct Suites {
    home: TempDir,
    postgres: Postgres,
}

impl Suites {
    /// # Errors
    /// They were not fetched; the message says how.
    pub fn unpack(postgres: &Postgres) -> Result<Suites> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2);
        let fetched = root.unwrap_or(Path::new(".")).join("target/postgres-source");
        ensure!(
            fetched.join("version").is_file(),
            "there is no regression suite in {}: `scripts/regression-source` fetches it",
            fetched.display()
        );
        let home = tempfile::Builder::new().prefix("suites-").tempdir()?;
        for part in ["src", "contrib", "lib"] {
            run(Command::new("cp").arg("-a").arg(fetched.join(part)).arg(home.path()))?;
        }
        run(Command::new("chmod").args(["-R", "a+rX"]).arg(home.path()))?;
        // The driver would make it for itself alone, and servers write there too.
        let results = home.path().join("src/test/regress/results");
        fs::create_dir(&results)?;
        fs::set_permissions(&results, Permissions::from_mode(0o777))?;
        Ok(Suites { home, postgres: postgres.clone() })
    }

    /// The core suite, in a database `regression`.
    ///
    /// # Errors
    /// It did not run to its end.
    pub fn core(&self, connection: Connection<'_>) -> Result<Outcome> {
        let tests = self.home.path().join("src/test/regress");
        let mut command = Command::new(self.driver("regress/pg_regress")?);
        command.arg(format!("--dlpath={}", self.home.path().join("lib").display()));
        command.arg(format!("--max-connections={SESSIONS}"));
        command.arg(format!("--schedule={}", tests.join("parallel_schedule").display()));
        self.drive("core", command, &tests, connection)
    }

    /// What a test of the core suite printed in its last run, without the name of this folder.
    pub fn core_output(&self, test: &str) -> String {
        let path = self.home.path().join("src/test/regress/results").join(test);
        let text = fs::read_to_string(path.with_extension("out")).unwrap_or_default();
        text.replace(&self.home.path().display().to_string(), "(suites)")
    }

    /// The isolation suite, in a database `isolation_regression`.
    ///
    /// # Errors
    /// As [`Suites::core`].
    pub fn isolation(&self, connection: Connection<'_>) -> Result<Outcome> {
        let tests = self.home.path().join("src/test/isolation");
        let mut command = Command::new(self.driver("isolation/pg_isolation_regress")?);
        command.arg(format!("--schedule={}", tests.join("isolation_schedule").display()));
        self.drive("isolation", command, &tests, connection)
    }

    /// The suite of a contrib module, in a database `contrib_<module>`.
    ///
    /// # Errors
    /// As [`Suites::core`].
    pub fn contrib(&self, module: &str, connection: Connection<'_>) -> Result<Outcome> {
        let mut command = Command::new("make");
        command.arg("-C").arg(self.home.path().join("contrib").join(module));
        command.args(["-s", "USE_PGXS=1", "NO_INSTALLCHECK=", "with_llvm=no", "installcheck"]);
        command.arg(format!("PG_CONFIG={}", self.postgres.program("pg_config")?.display()));
        command.arg(format!("CONTRIB_TESTDB=contrib_{module}"));
        outcome(module, &mut command, connection)
    }

    fn drive(
        &self,
        suite: &str,
        mut command: Command,
        tests: &Path,
        connection: Connection<'_>,
    ) -> Result<Outcome> {
        let psql = self.postgres.program("psql")?;
        let programs = psql.parent().context("psql is in a folder")?;
        command.arg(format!("--bindir={}", programs.display()));
        command.arg(format!("--inputdir={}", tests.display()));
        command.arg(format!("--outputdir={}", tests.display()));
        outcome(suite, command.current_dir(tests), connection)
    }

    /// A test driver, which Debian keeps beside the files for building extensions.
    fn driver(&self, name: &str) -> Result<PathBuf> {
        let makefile = run(Command::new(self.postgres.program("pg_config")?).arg("--pgxs"))?;
        let folder = Path::new(makefile.trim()).ancestors().nth(2).context("pgxs")?;
        let driver = folder.join("test").join(name);
        ensure!(driver.is_file(), "{} is missing: it is in postgresql-client-15", driver.display());
        Ok(driver)
    }
}

impl Cluster {
    /// How suites reach this server as the superuser.
    pub fn connection(&self) -> Result<[(&'static str, String); 3]> {
        let folder = self.folder().to_str().context("a path that is text")?;
        Ok([
            ("PGHOST", folder.to_owned()),
            ("PGPORT", crate::cluster::PORT.to_owned()),
            ("PGUSER", "postgres".to_owned()),
        ])
    }
}

/// Runs a driver to its last word, which counts the tests.
fn outcome(suite: &str, command: &mut Command, connection: Connection<'_>) -> Result<Outcome> {
    let began = Instant::now();
    let command = command.env("LC_ALL", "C").envs(connection.iter().copied());
    let output = command.stdin(Stdio::null()).output().with_context(|| suite.to_owned())?;
    let text = String::from_utf8_lossy(&output.stdout);
    let failed = text.lines().filter(|line| line.contains("... FAILED")).filter_map(name_of);
    let failed: Vec<String> = failed.map(str::to_owned).collect();
    let Some(tests) = text.lines().find_map(total_of) else {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("{suite} did not run to its end: {}\n{text}{stderr}", output.status)
    };
    let outcome = Outcome { suite: suite.to_owned(), tests, failed, took: began.elapsed() };
    let failing = outcome.failed.len();
    ensure!(failing <= tests as usize / FAILING_SHARE + 1, "too much fails: {outcome}\n{text}");
    Ok(outcome)
}

/// `test name ... FAILED` and, in a parallel group, `     name ... FAILED`.
fn name_of(line: &str) -> Option<&str> {
    line.split("...").next()?.split_whitespace().last()
}

/// `All n tests passed`, `m of n tests failed` and their longer forms.
fn total_of(line: &str) -> Option<u32> {
    let words: Vec<&str> = line.split_whitespace().collect();
    match words[..] {
        ["All", tests, "tests", ..] | [_, "of", tests, "tests", ..] => tests.parse().ok(),
        _ => None,
    }
}
