//! A compute: its Postgres, which has a log of its own on a local disk, and the proposer that carries it out.

use std::collections::BTreeSet;

use treering_consensus::*;
use treering_types::{Lsn, NodeId, TenantId, Term, TimelineId};

use crate::{Bug, record::START};

/// A data directory with a running server.
pub struct Postgres {
    /// Its `pg_wal`, from `START` on.
    pub log: Vec<u8>,
    /// The terms that this data directory recorded as its own.
    own_terms: BTreeSet<Term>,
}

impl Postgres {
    /// May this server go on, in a term that begins at `election.start_lsn`?
    fn may_go_on(&self, election: &Election, bug: Option<Bug>) -> bool {
        let is_own = self.own_terms.contains(&election.donor_last_log_term);
        let reaches = START + self.log.len() as u64 >= election.start_lsn.0;
        reaches && (is_own || bug == Some(Bug::KeptByLsn))
    }
}

pub struct Compute {
    pub id: ProposerId,
    pub proposer: Proposer,
    /// One that an earlier agent left running, or that was started once the election was won.
    pub postgres: Option<Postgres>,
    pub has_office: bool,
}

impl Compute {
    pub fn new(id: ProposerId, configuration: Configuration, left: Option<Postgres>) -> Compute {
        let proposer = Proposer::new(ProposerConfig {
            proposer: id,
            configuration,
            timeline: TimelineIdentity {
                tenant: TenantId([0; 16]),
                timeline: TimelineId([0; 16]),
                system_id: 1,
                pg_major: 15,
                pg_tli: 1,
                start_lsn: Lsn(START),
            },
            window_bytes_max: 64,
        });
        Compute { id, proposer, postgres: left, has_office: false }
    }

    /// The election is won: the server that was left goes on, or a new one starts on the adopted log.
    pub fn take_office(&mut self, election: &Election, adopted: &[u8], bug: Option<Bug>) {
        let left = self.postgres.take().filter(|postgres| postgres.may_go_on(election, bug));
        let new = || Postgres { log: adopted.to_vec(), own_terms: BTreeSet::new() };
        let postgres = self.postgres.insert(left.unwrap_or_else(new));
        postgres.own_terms.insert(election.term);
        self.has_office = true;
    }

    /// What the server has written and the proposer has not been given, up to `bytes_max` of it.
    pub fn unsent(&self, bytes_max: usize) -> Option<(Lsn, Vec<u8>)> {
        let log = &self.postgres.as_ref()?.log;
        let lsn = self.proposer.end_lsn();
        let rest = log.get((lsn.0 - START) as usize..)?;
        (!rest.is_empty()).then(|| (lsn, rest[..rest.len().min(bytes_max)].to_vec()))
    }

    pub fn log(&self) -> &[u8] {
        self.postgres.as_ref().map_or(&[], |postgres| &postgres.log)
    }

    pub fn commit_len(&self) -> usize {
        (self.proposer.commit_lsn().0 - START) as usize
    }
}

/// Somebody who changes the members.
pub struct Admin {
    pub id: u64,
    pub change: Change,
}

pub fn nodes(ids: impl IntoIterator<Item = u64>) -> Vec<NodeId> {
    ids.into_iter().map(NodeId).collect()
}
