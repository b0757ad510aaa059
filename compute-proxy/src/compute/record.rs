//! What an agent must know of a compute that an agent before it started: whose log it writes, and in which terms.
//!
//! **Terms, not LSNs, decide** whether a live Postgres may go on after its agent died: it may only if the last term in
//! the adopted log is one that this data directory recorded as its own. Only then is every byte of that log a byte
//! that this Postgres wrote. A term is recorded before any WAL of it is appended.

use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
};

use anyhow::Context;
use serde::{Deserialize, Serialize};
use treering_consensus::TimelineIdentity;
use treering_types::{Lsn, TenantId, Term, TimelineId};

/// The record of one compute directory.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunRecord {
    tenant: TenantId,
    timeline: TimelineId,
    system_id: u64,
    pg_major: u32,
    pg_tli: u32,
    start_lsn: Lsn,
    run_dir: PathBuf,
    socket_dir: PathBuf,
    terms: Vec<Term>,
}

impl RunRecord {
    /// A compute that has written in `term` only.
    pub fn new(log: &TimelineIdentity, run_dir: &Path, socket_dir: &Path, term: Term) -> RunRecord {
        RunRecord {
            tenant: log.tenant,
            timeline: log.timeline,
            system_id: log.system_id,
            pg_major: log.pg_major,
            pg_tli: log.pg_tli,
            start_lsn: log.start_lsn,
            run_dir: run_dir.to_owned(),
            socket_dir: socket_dir.to_owned(),
            terms: vec![term],
        }
    }

    /// Whose log the compute writes.
    pub fn log(&self) -> TimelineIdentity {
        TimelineIdentity {
            tenant: self.tenant,
            timeline: self.timeline,
            system_id: self.system_id,
            pg_major: self.pg_major,
            pg_tli: self.pg_tli,
            start_lsn: self.start_lsn,
        }
    }

    pub fn run_dir(&self) -> &Path {
        &self.run_dir
    }

    pub fn socket_dir(&self) -> &Path {
        &self.socket_dir
    }

    /// True when this data directory wrote in `term`.
    pub fn wrote_in(&self, term: Term) -> bool {
        self.terms.contains(&term)
    }

    pub fn add(&mut self, term: Term) {
        self.terms.push(term);
    }

    /// Reads the record of a branch's directory, which is ours alone: the compute's user cannot write there.
    pub fn load(branch_dir: &Path) -> anyhow::Result<RunRecord> {
        let path = branch_dir.join("agent.json");
        let text = fs::read(&path).with_context(|| path.display().to_string())?;
        serde_json::from_slice(&text).with_context(|| path.display().to_string())
    }

    /// Writes it, durably: replaced as a whole or not at all.
    pub fn save(&self, branch_dir: &Path) -> anyhow::Result<()> {
        let fresh = branch_dir.join("agent.json.new");
        let mut file = File::create(&fresh)?;
        file.write_all(&serde_json::to_vec(self)?)?;
        file.sync_all()?;
        fs::rename(&fresh, branch_dir.join("agent.json"))?;
        Ok(File::open(branch_dir)?.sync_all()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terms_are_remembered() {
        let dir = tempfile::tempdir().unwrap();
        let log = TimelineIdentity {
            tenant: TenantId([1; 16]),
            timeline: TimelineId([2; 16]),
            system_id: u64::MAX,
            pg_major: 15,
            pg_tli: 3,
            start_lsn: Lsn(0x16B3748),
        };
        let mut record = RunRecord::new(&log, Path::new("/run/x"), Path::new("/run/x/s"), Term(4));
        record.save(dir.path()).unwrap();
        record.add(Term(7));
        record.save(dir.path()).unwrap();
        let loaded = RunRecord::load(dir.path()).unwrap();
        assert_eq!((loaded.log(), &loaded), (log, &record));
        assert!(loaded.wrote_in(Term(4)) && loaded.wrote_in(Term(7)) && !loaded.wrote_in(Term(5)));
    }
}
