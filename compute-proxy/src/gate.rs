//! What the client port asks for, answered by the agent: branches to computes, commits to the quorum's word.

use std::{path::PathBuf, sync::Arc};

use treering_types::{ErrorKind, Lsn};

use crate::{
    agent::Agent,
    endpoint::Compute,
    error::AgentError,
    wake::{BoxFuture, BranchName, CommitGate, GateError, Target, Wake, WakeError},
};

impl Wake for Agent {
    fn ensure_running<'a>(
        &'a self,
        branch: &'a BranchName,
    ) -> BoxFuture<'a, Result<Target, WakeError>> {
        Box::pin(async move {
            let found =
                self.peers.resolve(branch.as_str()).await.map_err(|error| match error.kind {
                    ErrorKind::NotFound => WakeError::UnknownBranch { branch: branch.clone() },
                    _ => WakeError::Lost { branch: branch.clone(), reason: error.message },
                })?;
            let endpoint = self.endpoint(found.tenant_id, found.timeline_id);
            let started = match found.stopped {
                true => Err(AgentError::new(ErrorKind::Conflict, stopped(branch))),
                false => self.start(&endpoint, Some(branch)).await,
            };
            let compute = started.map_err(|error| match error.kind {
                ErrorKind::Conflict | ErrorKind::Shutdown => {
                    WakeError::NotNow { branch: branch.clone(), reason: error.message }
                }
                _ => WakeError::Lost { branch: branch.clone(), reason: error.message },
            })?;
            let socket = compute.socket();
            let takes_clients = compute.pages.is_some();
            Ok(Target { socket, takes_clients, gate: compute })
        })
    }

    fn socket_of_backend(&self, pid: i32) -> Option<PathBuf> {
        let endpoint = self.endpoint_of_process(pid)?;
        Some(endpoint.current()?.socket())
    }
}

impl CommitGate for Compute {
    fn commit_lsn(&self) -> Lsn {
        self.session.commit_lsn()
    }

    fn flush_lsn(&self) -> BoxFuture<'_, Result<Lsn, GateError>> {
        Box::pin(async move { Compute::flush_lsn(self).await.map_err(lost) })
    }

    fn wait_for(&self, lsn: Lsn) -> BoxFuture<'_, Result<(), GateError>> {
        Box::pin(async move { self.session.wait_for(lsn).await.map_err(lost) })
    }

    fn drained_cancelled_waits(&self, backend_pid: i32) -> bool {
        self.log.take_warning(backend_pid)
    }
}

/// Why a branch that its user stopped is not woken.
pub fn stopped(branch: &BranchName) -> String {
    format!("it was stopped; `treering start {branch}` starts it")
}

fn lost(error: AgentError) -> GateError {
    GateError(error.message)
}

/// The agent as the client port knows it.
pub fn wake(agent: &Arc<Agent>) -> Arc<dyn Wake> {
    agent.clone()
}
