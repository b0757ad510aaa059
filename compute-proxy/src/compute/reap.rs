//! Proof that an old process tree is dead before a new one serves.
//!
//! Every Postgres process keeps its data directory as working directory, and the directory of a compute is used by
//! no other program. So the processes of a compute, also those a dead agent left behind, are the ones whose
//! `/proc/<pid>/cwd` lies in one of its run directories; no pid file has to be believed. Where the branch has a user id
//! of its own, every process of that user counts as well: it need not stay in the directory, and reading another
//! user's working directory takes a capability that root may lack in a container.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

use super::owner;

/// What the names of run directories begin with: one for each start of a branch.
pub const RUN_PREFIX: &str = "run-";
/// How long a killed process may take to be gone.
const DEATH_LIMIT: Duration = Duration::from_secs(5);

/// Living processes of the branch whose directory is `branch_dir`.
pub fn processes_of(branch_dir: &Path) -> io::Result<Vec<Pid>> {
    let own_uid = owner::recorded_uid(branch_dir);
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Ok(entry) = entry else { continue };
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        let by_user =
            || own_uid.is_some() && entry.metadata().is_ok_and(|meta| Some(meta.uid()) == own_uid);
        let by_place = || works_in(branch_dir, pid);
        if (by_user() || by_place()) && is_alive(pid) && pid != std::process::id() as i32 {
            found.extend(Pid::from_raw(pid));
        }
    }
    Ok(found)
}

/// Whether a process works in one of the branch's run directories.
pub fn works_in(branch_dir: &Path, pid: i32) -> bool {
    working_directory(pid).is_some_and(|cwd| is_run_directory(branch_dir, &cwd))
}

fn is_run_directory(branch_dir: &Path, cwd: &Path) -> bool {
    let below = cwd.strip_prefix(branch_dir).ok().and_then(|rest| rest.iter().next()?.to_str());
    below.is_some_and(|name| name.starts_with(RUN_PREFIX))
}

fn working_directory(pid: i32) -> Option<PathBuf> {
    let link = fs::read_link(format!("/proc/{pid}/cwd")).ok()?;
    // A removed directory reads as "/path (deleted)".
    let text = link.to_str()?;
    Some(PathBuf::from(text.strip_suffix(" (deleted)").unwrap_or(text)))
}

/// False for a process that has ended, reaped by its parent or not.
pub fn is_alive(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .ok()
        .and_then(|stat| stat.rsplit_once(") ").map(|(_, rest)| !rest.starts_with(['Z', 'X'])))
        .unwrap_or(false)
}

/// Kills every process of a branch and returns once none is left; answers how many there were.
///
/// # Errors
/// `TimedOut` when a process survives SIGKILL (stuck in the kernel): the branch must not be started again.
pub fn kill_all_of(branch_dir: &Path) -> io::Result<usize> {
    let deadline = Instant::now() + DEATH_LIMIT;
    let mut killed = 0;
    loop {
        let alive = processes_of(branch_dir)?;
        if alive.is_empty() {
            sweep_shared_memory(branch_dir);
            return Ok(killed);
        }
        if Instant::now() > deadline {
            let what =
                format!("{} processes in {} survive SIGKILL", alive.len(), branch_dir.display());
            return Err(io::Error::new(io::ErrorKind::TimedOut, what));
        }
        killed = killed.max(alive.len());
        for pid in alive {
            // A process that ended meanwhile is what we want.
            let _ = kill_process(pid, Signal::KILL);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Removes the shared memory that a killed Postgres leaves (`PostgreSQL.<number>`, dsm_impl.c): a new one would do it by a file
/// in its data directory, which is new as well. Only where the branch has a user id of its own.
fn sweep_shared_memory(branch_dir: &Path) {
    let Some(uid) = owner::recorded_uid(branch_dir) else { return };
    for entry in fs::read_dir("/dev/shm").into_iter().flatten().flatten() {
        let is_postgres = entry.file_name().to_string_lossy().starts_with("PostgreSQL.");
        if is_postgres && entry.metadata().is_ok_and(|meta| meta.uid() == uid) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// [`kill_all_of`] for every branch directory below `computes_dir`.
///
/// # Errors
/// Those of [`kill_all_of`]. A directory that is not there holds no processes.
pub fn kill_all_below(computes_dir: &Path) -> io::Result<usize> {
    let entries = match fs::read_dir(computes_dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        entries => entries?,
    };
    let mut killed = 0;
    for entry in entries {
        killed += kill_all_of(&entry?.path())?;
    }
    Ok(killed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_process_in_a_run_directory_is_found_and_killed_and_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let branch = dir.path().canonicalize().unwrap();
        let run = branch.join("run-1/pgdata");
        fs::create_dir_all(&run).unwrap();
        let mut bystander = Command::new("sleep").arg("60").current_dir(&branch).spawn().unwrap();
        let mut child = Command::new("sleep").arg("60").current_dir(&run).spawn().unwrap();
        assert_eq!(processes_of(&branch).unwrap().len(), 1);
        assert_eq!(kill_all_of(&branch).unwrap(), 1);
        assert!(!child.wait().unwrap().success());
        assert!(processes_of(&branch).unwrap().is_empty());
        assert!(is_alive(bystander.id() as i32));
        bystander.kill().unwrap();
        assert!(!is_alive(child.id() as i32));
        bystander.wait().unwrap();
    }
}
