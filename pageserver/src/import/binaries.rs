//! Where stock Postgres's programs are, and as whom they may run.

use std::{
    env, fs,
    os::unix::{fs::chown, process::CommandExt},
    path::{Path, PathBuf},
    process::Command,
};

use treering_pgfmt::version::PgMajor;

use super::ImportError;

/// Accounts that stock Postgres may run as when we are root, in order of preference.
const ACCOUNTS: [&str; 2] = ["postgres", "nobody"];

/// One installation of stock Postgres.
#[derive(Clone, Debug)]
pub(super) struct Binaries {
    pub(super) directory: PathBuf,
    /// What `postgres --version` says.
    pub(super) version: String,
}

impl Binaries {
    /// The first installation of `major`: in `configured`, in Debian's place, on `PATH`.
    ///
    /// # Errors
    /// [`ImportError::NoPostgres`] with the places looked at.
    pub(super) fn find(major: PgMajor, configured: &[PathBuf]) -> Result<Binaries, ImportError> {
        let debian = PathBuf::from(format!("/usr/lib/postgresql/{major}/bin"));
        let path = env::var_os("PATH").unwrap_or_default();
        let places: Vec<PathBuf> =
            configured.iter().cloned().chain([debian]).chain(env::split_paths(&path)).collect();
        for directory in &places {
            if !directory.join("initdb").is_file() {
                continue;
            }
            if let Some(version) = version_of(&directory.join("postgres"))
                && major_in(&version) == Some(major.number())
            {
                return Ok(Binaries { directory: directory.clone(), version });
            }
        }
        Err(ImportError::NoPostgres { major, looked_in: places })
    }

    pub(super) fn program(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }
}

fn version_of(postgres: &Path) -> Option<String> {
    let output = Command::new(postgres).arg("--version").output().ok()?;
    Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// 15 in `postgres (PostgreSQL) 15.20 (Debian 15.20-0+deb12u1)`, 18 in `... 18beta1`.
fn major_in(version: &str) -> Option<u32> {
    let (_, rest) = version.split_once("(PostgreSQL) ")?;
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

/// An account that is not root: Postgres's programs refuse to run as root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Account {
    uid: u32,
    gid: u32,
}

impl Account {
    /// Whom to become before running Postgres's programs; `None` when we are not root, and stay who we are.
    ///
    /// # Errors
    /// Root on a machine without any of the accounts.
    pub(super) fn to_become() -> Result<Option<Account>, ImportError> {
        if !rustix::process::geteuid().is_root() {
            return Ok(None);
        }
        let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
        let found = ACCOUNTS.iter().find_map(|name| account_in(&passwd, name));
        found.map(Some).ok_or(ImportError::NoAccount { tried: &ACCOUNTS })
    }

    pub(super) fn own(self, path: &Path) -> std::io::Result<()> {
        chown(path, Some(self.uid), Some(self.gid))
    }

    /// Supplementary groups are dropped too: `std` does so when root sets a uid.
    pub(super) fn run_as(self, command: &mut Command) -> &mut Command {
        command.uid(self.uid).gid(self.gid)
    }
}

fn account_in(passwd: &str, name: &str) -> Option<Account> {
    let line = passwd.lines().find(|line| line.split(':').next() == Some(name))?;
    let mut numbers = line.split(':').skip(2).map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(uid)), Some(Ok(gid))) if uid != 0 => Some(Account { uid, gid }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        assert_eq!(major_in("postgres (PostgreSQL) 15.20 (Debian 15.20-0+deb12u1)"), Some(15));
        assert_eq!(major_in("postgres (PostgreSQL) 18beta1"), Some(18));
        assert_eq!(major_in("initdb 15"), None);
    }

    #[test]
    fn accounts() {
        let passwd = "root:x:0:0::/root:/bin/sh\npostgres:x:101:104:PG:/:/bin/sh\nodd:x:0:0::/:\n";
        assert_eq!(account_in(passwd, "postgres"), Some(Account { uid: 101, gid: 104 }));
        assert_eq!(account_in(passwd, "odd"), None);
        assert_eq!(account_in(passwd, "nobody"), None);
    }
}
