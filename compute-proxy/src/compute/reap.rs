//! Proof that an old process tree is dead before a new one serves.
//!
//! Every Postgres process keeps its data directory as working directory, and the directory of a compute is used
//! by no other program. So the processes of a compute, also those a dead agent left behind, are the ones whose
//! `/proc/<pid>/cwd` lies in it; no pid file has to be believed.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

/// Processes whose working directory is `dir` or below it.
pub fn processes_in(dir: &Path) -> io::Result<Vec<Pid>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Ok(entry) = entry else { continue };
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        if working_directory(pid).is_some_and(|cwd| cwd.starts_with(dir)) && !is_zombie(pid) {
            found.extend(Pid::from_raw(pid));
        }
    }
    Ok(found)
}

fn working_directory(pid: i32) -> Option<PathBuf> {
    let link = fs::read_link(format!("/proc/{pid}/cwd")).ok()?;
    // A removed directory reads as "/path (deleted)".
    let text = link.to_str()?;
    Some(PathBuf::from(text.strip_suffix(" (deleted)").unwrap_or(text)))
}

fn is_zombie(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .ok()
        .and_then(|stat| stat.rsplit_once(") ").map(|(_, rest)| rest.starts_with('Z')))
        .unwrap_or(true)
}

/// Kills every process in `dir` and returns once none is left.
///
/// # Errors
/// `TimedOut` when a process survives SIGKILL for 10 s (stuck in the kernel): the directory must not be reused.
pub fn kill_all_in(dir: &Path) -> io::Result<usize> {
    let deadline = Instant::now() + Duration::from_secs(10);
    let mut killed = 0;
    loop {
        let alive = processes_in(dir)?;
        if alive.is_empty() {
            return Ok(killed);
        }
        if Instant::now() > deadline {
            let what = format!("{} processes in {} survive SIGKILL", alive.len(), dir.display());
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_process_in_the_directory_is_found_and_killed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().canonicalize().unwrap();
        let mut child = Command::new("sleep").arg("60").current_dir(&path).spawn().unwrap();
        assert_eq!(processes_in(&path).unwrap().len(), 1);
        assert_eq!(kill_all_in(&path).unwrap(), 1);
        assert!(!child.wait().unwrap().success());
        assert!(processes_in(&path).unwrap().is_empty());
    }
}
