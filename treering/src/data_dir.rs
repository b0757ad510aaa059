//! The data directory: its format mark, its lock, and where a running Treering can be reached.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use treering_fs::{RealFs, write_atomically};

/// The formats this version knows. A directory of a higher one is refused. Format 2 says in a file of its own how many
/// safekeepers there are; 1 is what a directory with one is written as.
const FORMAT: u32 = 2;
const FORMAT_OF_ONE: u32 = 1;
/// Holds the number of safekeepers, where there are several.
const SAFEKEEPERS: &str = "safekeepers";
/// What each service owns, and who else may pass through: computes run as users of their own, below the agent.
const SERVICE_DIRS: [(&str, u32); 3] =
    [("control", 0o700), ("pageserver", 0o700), ("agent", 0o711)];
const SAFEKEEPER_DIR_MODE: u32 = 0o700;

/// How to reach a running `treering up`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Running {
    pub pid: u32,
    /// The default branch has answered. Before that the addresses are known, and some do not answer yet.
    pub ready: bool,
    pub control_http: String,
    pub pageserver_http: String,
    pub safekeeper_http: String,
    pub agent_http: String,
    pub pageserver_pg: String,
    pub safekeeper_pg: String,
    pub client_address: String,
    /// Those of the first safekeeper are above, too.
    pub safekeepers: Vec<RunningSafekeeper>,
}

impl Running {
    /// Every service by its name, with its base URL.
    pub fn services(&self) -> Vec<(String, &str)> {
        let count = self.safekeepers.len() as u64;
        let named = |name: &str, url| (name.to_owned(), url);
        let mut all = vec![
            named("control", &self.control_http[..]),
            named("pageserver", &self.pageserver_http),
            named("agent", &self.agent_http),
        ];
        let members = self.safekeepers.iter();
        all.extend(members.map(|member| (safekeeper_name(member.id, count), &member.http[..])));
        all
    }
}

/// How to reach a safekeeper of a running `treering up`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RunningSafekeeper {
    pub id: u64,
    pub wal: String,
    pub pg: String,
    pub http: String,
}

/// What a first start that was cut short may have left.
fn is_of_a_first_start(entry: &fs::DirEntry) -> bool {
    let names = ["lock", "format.tmp", "safekeepers", "safekeepers.tmp"];
    names.iter().any(|name| entry.file_name() == *name)
}

/// A directory that belongs to one `treering up`.
#[derive(Debug, Clone)]
pub struct DataDir(pub PathBuf);

impl DataDir {
    /// The directory used when none is named: below `/var/lib` for root, else below the user's data home.
    pub fn default_path() -> PathBuf {
        if rustix::process::geteuid().is_root() {
            return "/var/lib/treering".into();
        }
        let home = || std::env::var_os("HOME").map(|home| Path::new(&home).join(".local/share"));
        let base = std::env::var_os("XDG_DATA_HOME").map(PathBuf::from).or_else(home);
        base.unwrap_or_default().join("treering")
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// True questions only: what [`claim`](Self::claim) would refuse, refused before anything is written.
    ///
    /// # Errors
    /// A newer format; another `treering up` on it; a directory that holds something else.
    pub fn check(&self) -> anyhow::Result<()> {
        self.check_format()?;
        match File::open(self.file("lock")) {
            Ok(lock) => self.lock(&lock),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error).with_context(|| format!("open {}/lock", self.0.display())),
        }
    }

    /// True while a `treering up` owns the directory, also one that is starting or stopping.
    ///
    /// # Errors
    /// A directory that holds no Treering data, or data of a newer format.
    pub fn is_in_use(&self) -> anyhow::Result<bool> {
        self.check_format()?;
        if !self.file("format").exists() {
            bail!("{} holds no Treering data", self.0.display());
        }
        let lock = File::open(self.file("lock"));
        let lock = lock.with_context(|| format!("open {}/lock", self.0.display()))?;
        Ok(flock(&lock, FlockOperation::NonBlockingLockShared).is_err())
    }

    /// How many safekeepers there are, or are to be: `asked`, what the directory was made with, or one.
    ///
    /// # Errors
    /// It was made with another number than the one asked for.
    pub fn safekeepers(&self, asked: Option<u64>) -> anyhow::Result<u64> {
        let Some(made) = self.made_with()? else { return Ok(asked.unwrap_or(1)) };
        match asked {
            Some(asked) if asked != made => bail!(
                "{} was made with {made} safekeeper{}, and its commits are theirs: start it with --safekeepers {made} \
                 (or without the option), or use another --data-dir for {asked}",
                self.0.display(),
                if made == 1 { "" } else { "s" }
            ),
            Some(_) | None => Ok(made),
        }
    }

    /// The number of safekeepers that the directory was made with; `None` for one that is still to be made.
    fn made_with(&self) -> anyhow::Result<Option<u64>> {
        let Ok(text) = fs::read_to_string(self.file("format")) else { return Ok(None) };
        if format_in(&text) == Some(FORMAT_OF_ONE) {
            return Ok(Some(1));
        }
        let path = self.file(SAFEKEEPERS);
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let count = text.trim().parse();
        Ok(Some(
            count.with_context(|| format!("{} is damaged: \"{}\"", path.display(), text.trim()))?,
        ))
    }

    /// Creates the directory with all it needs and locks it for this process, for as long as the answer lives.
    ///
    /// # Errors
    /// Those of [`check`](Self::check) and [`safekeepers`](Self::safekeepers); a directory that cannot be created.
    pub fn claim(&self, safekeepers: u64) -> anyhow::Result<File> {
        self.check_format()?;
        let path = self.0.display();
        // Others may pass through (each compute runs as a user of its own) but not list.
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o711)
            .create(&self.0)
            .with_context(|| format!("create {path}"))?;
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(self.file("lock"))?;
        self.lock(&lock)?;
        if !self.file("format").exists() {
            let mut format = FORMAT_OF_ONE;
            if safekeepers > 1 {
                format = FORMAT;
                // Before the mark: a directory of this format has it.
                let text = format!("{safekeepers}\n");
                write_atomically(&RealFs, &self.file(SAFEKEEPERS), text.as_bytes())?;
            }
            // Durable before anything else is written: without it the rest would be taken for somebody else's.
            let mark = format!("treering {format}\n");
            write_atomically(&RealFs, &self.file("format"), mark.as_bytes())?;
        }
        // Under the lock, whoever was here a moment ago.
        self.safekeepers(Some(safekeepers))?;
        let names = (1..=safekeepers).map(|id| safekeeper_name(id, safekeepers));
        let all = names.map(|name| (name, SAFEKEEPER_DIR_MODE));
        let all = all.chain(SERVICE_DIRS.map(|(name, mode)| (name.to_owned(), mode)));
        for (name, mode) in all {
            self.create_service_dir(&name, mode)
                .with_context(|| format!("create {path}/{name}"))?;
        }
        Ok(lock)
    }

    fn lock(&self, lock: &File) -> anyhow::Result<()> {
        if flock(lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            bail!("another `treering up` is running on {}", self.0.display());
        }
        Ok(())
    }

    fn create_service_dir(&self, name: &str, mode: u32) -> io::Result<()> {
        let dir = self.service_dir(name);
        match fs::DirBuilder::new().mode(mode).create(&dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        // Whatever the umask, and whoever created it.
        fs::set_permissions(dir, fs::Permissions::from_mode(mode))
    }

    /// What the service `name` owns.
    pub fn service_dir(&self, name: &str) -> PathBuf {
        self.file(name)
    }

    pub fn service_log(&self, name: &str) -> PathBuf {
        self.file(&format!("{name}.log"))
    }

    fn check_format(&self) -> anyhow::Result<()> {
        let path = self.0.display();
        let text = match fs::read_to_string(self.file("format")) {
            Ok(text) => text,
            Err(_) if !self.0.exists() => return Ok(()),
            Err(_) if fs::read_dir(&self.0)?.all(|e| e.is_ok_and(|e| is_of_a_first_start(&e))) => {
                return Ok(());
            }
            Err(_) => {
                bail!("{path} is not empty and holds no Treering data; choose another --data-dir")
            }
        };
        match format_in(&text) {
            Some(found) if found > FORMAT => {
                bail!(
                    "{path} is of format {found}, newer than this version knows ({FORMAT}); nothing was changed"
                )
            }
            Some(_) => Ok(()),
            None => bail!("{path}/format is damaged: \"{}\"", text.trim()),
        }
    }

    /// Publishes where we can be reached.
    pub fn publish(&self, running: &Running) -> anyhow::Result<()> {
        let path = self.file("running.json");
        let fresh = self.file("running.json.new");
        let mut file =
            OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&fresh)?;
        file.write_all(&serde_json::to_vec_pretty(running)?)?;
        Ok(fs::rename(fresh, path)?)
    }

    /// Takes back what [`publish`](Self::publish) wrote.
    pub fn withdraw(&self) {
        let _ = fs::remove_file(self.file("running.json"));
    }

    /// The directories of the safekeepers, whether it runs or not.
    ///
    /// # Errors
    /// A damaged directory.
    pub fn safekeeper_dirs(&self) -> anyhow::Result<Vec<PathBuf>> {
        let count = self.safekeepers(None)?;
        Ok((1..=count).map(|id| self.service_dir(&safekeeper_name(id, count))).collect())
    }

    /// Where the Treering of this directory can be reached.
    ///
    /// # Errors
    /// It is not running.
    pub fn running(&self) -> anyhow::Result<Running> {
        let not_running = || {
            format!("Treering is not running on {}; start it with `treering up`", self.0.display())
        };
        let text =
            fs::read(self.file("running.json")).map_err(|_| anyhow::anyhow!(not_running()))?;
        let running: Running = serde_json::from_slice(&text).with_context(not_running)?;
        if !Path::new(&format!("/proc/{}", running.pid)).exists() {
            bail!(not_running());
        }
        Ok(running)
    }
}

/// What safekeeper `id` of so many is called: its directory, its log, its line in `status`.
pub fn safekeeper_name(id: u64, count: u64) -> String {
    match count {
        1 => "safekeeper".to_owned(),
        _ => format!("safekeeper-{id}"),
    }
}

fn format_in(text: &str) -> Option<u32> {
    text.trim().strip_prefix("treering ")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(dir: &DataDir) -> String {
        fs::read_to_string(dir.file("format")).unwrap()
    }

    #[test]
    fn a_directory_keeps_its_number_of_safekeepers() {
        let home =
            std::env::temp_dir().join(format!("treering-dir-{:016x}", rand::random::<u64>()));
        let of = |name: &str| DataDir(home.join(name));
        let one = of("one");
        assert_eq!(one.safekeepers(None).unwrap(), 1);
        drop(one.claim(1).unwrap());
        assert_eq!(mark(&one), "treering 1\n", "earlier versions can read it");
        let refused = one.safekeepers(Some(3)).unwrap_err().to_string();
        assert!(refused.contains("--safekeepers 1"), "{refused}");

        let three = of("three");
        assert_eq!(three.safekeepers(Some(3)).unwrap(), 3);
        drop(three.claim(3).unwrap());
        assert_eq!(mark(&three), "treering 2\n", "earlier versions refuse it");
        assert_eq!(three.safekeepers(None).unwrap(), 3);
        assert!(three.service_dir("safekeeper-3").is_dir());
        assert!(!three.service_dir("safekeeper").exists());
        let refused = three.claim(1).unwrap_err().to_string();
        assert!(refused.contains("--safekeepers 3"), "{refused}");

        // Cut short before the mark: nothing was promised to anybody.
        let cut = of("cut");
        fs::create_dir_all(&cut.0).unwrap();
        fs::write(cut.file(SAFEKEEPERS), "3\n").unwrap();
        cut.check().unwrap();
        drop(cut.claim(1).unwrap());
        assert_eq!(cut.safekeepers(None).unwrap(), 1);
        fs::remove_dir_all(home).unwrap();
    }
}
