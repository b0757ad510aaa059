//! A compute's log: a file Postgres appends to, and the two facts the agent must learn from it.
//!
//! The file outlives the agent, so a compute goes on logging while its agent is restarted. A line that reports a
//! *cancelled wait for the quorum* (SQLSTATE 01000) is written before the backend sends CommandComplete, so
//! whoever reads the file after seeing CommandComplete sees the line: clients can hide the warning from
//! themselves, not from here. A line with SQLSTATE 53100 says that the disk is full.

use std::{
    collections::HashSet,
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use parking_lot::Mutex;

/// SQLSTATE `warning`, which `SyncRepWaitForLSN` reports a cancelled wait under (`replication/syncrep.c`).
const SQLSTATE_WARNING: &[u8] = b"01000";
/// SQLSTATE `disk_full`.
const SQLSTATE_DISK_FULL: &[u8] = b"53100";
/// Longest line looked at; the rest of a longer one is skipped.
const LINE_BYTES_MAX: usize = 8192;

/// A reader that follows one compute's log.
pub struct ComputeLog {
    path: PathBuf,
    tail: Mutex<Tail>,
    disk_full: AtomicBool,
}

struct Tail {
    file: File,
    offset: u64,
    line: Vec<u8>,
    warned: HashSet<i32>,
}

impl ComputeLog {
    /// Begins a new log at `path`, keeping the one before as `<path>.1`; also answers the file to give to Postgres.
    pub fn begin(path: &Path) -> io::Result<(ComputeLog, File)> {
        match std::fs::rename(path, path.with_extension("log.1")) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let writer = OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
        Ok((Self::follow(path)?, writer))
    }

    /// Follows the log of a compute that is running already, from its end.
    pub fn follow(path: &Path) -> io::Result<ComputeLog> {
        let file = File::open(path)?;
        let offset = file.metadata()?.len();
        let tail = Tail { file, offset, line: Vec::new(), warned: HashSet::new() };
        Ok(ComputeLog {
            path: path.to_owned(),
            tail: Mutex::new(tail),
            disk_full: AtomicBool::new(false),
        })
    }

    /// Where the log is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// True when `backend_pid` has logged a warning since the last call. One `pread` when there is nothing new.
    /// A log that cannot be read counts as a warning: a commit is rather held back than reported too early.
    pub fn take_warning(&self, backend_pid: i32) -> bool {
        let mut tail = self.tail.lock();
        match self.read_on(&mut tail) {
            Ok(()) => tail.warned.remove(&backend_pid),
            Err(_) => true,
        }
    }

    /// True once Postgres has reported a full disk.
    pub fn disk_is_full(&self) -> bool {
        let mut tail = self.tail.lock();
        let _ = self.read_on(&mut tail);
        self.disk_full.load(Ordering::Relaxed)
    }

    fn read_on(&self, tail: &mut Tail) -> io::Result<()> {
        let mut buffer = [0; 4096];
        loop {
            let read = tail.file.read_at(&mut buffer, tail.offset)?;
            if read == 0 {
                return Ok(());
            }
            tail.offset += read as u64;
            for &byte in &buffer[..read] {
                if byte == b'\n' {
                    self.note(&tail.line, &mut tail.warned);
                    tail.line.clear();
                } else if tail.line.len() < LINE_BYTES_MAX {
                    tail.line.push(byte);
                }
            }
        }
    }

    fn note(&self, line: &[u8], warned: &mut HashSet<i32>) {
        let Some((pid, sqlstate)) = pid_and_sqlstate(line) else { return };
        if sqlstate == SQLSTATE_WARNING {
            warned.insert(pid);
        } else if sqlstate == SQLSTATE_DISK_FULL {
            self.disk_full.store(true, Ordering::Relaxed);
        }
    }
}

/// Takes `2026-11-21 04:38:54.123 UTC [123] 01000 WARNING:  ...` apart (see `settings::LOG_LINE_PREFIX`). Lines that go
/// on with a message begin with a tab (`append_with_tabs`, `elog.c`), so nobody's text passes for a prefix.
fn pid_and_sqlstate(line: &[u8]) -> Option<(i32, &[u8])> {
    line.first().filter(|byte| byte.is_ascii_digit())?;
    let open = line.iter().position(|&b| b == b'[')?;
    let rest = line.get(open + 1..)?;
    let close = rest.iter().position(|&b| b == b']')?;
    let pid = std::str::from_utf8(rest.get(..close)?).ok()?.parse().ok()?;
    Some((pid, rest.get(close + 2..close + 7)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn warnings_are_seen_once_and_per_backend() {
        let dir = tempfile::tempdir().unwrap();
        let (log, mut writer) = ComputeLog::begin(&dir.path().join("postgres.log")).unwrap();
        assert!(!log.take_warning(7));
        writer
            .write_all(
                b"2026-11-21 04:38:54.123 UTC [7] 01000 WARNING:  canceling wait\nDETAIL: x\n2026-",
            )
            .unwrap();
        assert!(!log.take_warning(8));
        assert!(log.take_warning(7));
        assert!(!log.take_warning(7));
        writer.write_all(b"11-21 04:38:54.123 UTC [8] 53100 PANIC:  no space\n").unwrap();
        assert!(log.disk_is_full());
        assert!(!log.take_warning(8));
    }
}
