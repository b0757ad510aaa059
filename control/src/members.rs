//! Changing which safekeepers keep a log: the consensus crate's [`Change`], given HTTP and a clock.
//!
//! It may be cut short anywhere and begun again, by anybody: the members decide (`docs/formats/quorum.md`).

use std::{collections::BTreeSet, time::Duration};

use reqwest::Method;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::{task::JoinSet, time::Instant};
use treering_consensus::{
    AdminRequest, AdminResponse, Change, ChangeAction, ChangePhase, Configuration, Generation,
};
use treering_types::{Lsn, NodeId, TenantId, Term, TimelineId};

use crate::{Safekeeper, error::ApiError, peers::Peers};

/// How long one log's change may take before the caller is told how far it came.
const CHANGE_LIMIT: Duration = Duration::from_secs(60);
/// Between two rounds of asking those who have not answered.
const ROUND_PAUSE: Duration = Duration::from_millis(200);
/// How long a safekeeper may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(3);
/// How long an election may take.
const ELECT_LIMIT: Duration = Duration::from_secs(20);
/// Between two elections that are asked for: a compute that runs fills the new members by itself.
const ELECT_PAUSE: Duration = Duration::from_secs(2);

/// A configuration as the safekeepers' API has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Members {
    pub generation: u64,
    pub members: Vec<NodeId>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub new_members: Option<Vec<NodeId>>,
}

impl Members {
    fn of(configuration: &Configuration) -> Members {
        Members {
            generation: configuration.generation().0,
            members: configuration.members().to_vec(),
            new_members: configuration.new_members().map(<[NodeId]>::to_vec),
        }
    }

    fn configuration(self) -> Result<Configuration, ApiError> {
        Configuration::new(Generation(self.generation), self.members, self.new_members)
            .map_err(ApiError::internal)
    }
}

/// A safekeeper's answer to who changes the members.
#[derive(Deserialize)]
struct MemberState {
    granted: bool,
    promised: u64,
    configuration: Members,
    term: Term,
    last_log_term: Term,
    flush_lsn: Lsn,
    commit_lsn: Lsn,
}

impl MemberState {
    fn response(self) -> Result<AdminResponse, ApiError> {
        Ok(AdminResponse {
            granted: self.granted,
            promised: Generation(self.promised),
            configuration: self.configuration.configuration()?,
            term: self.term,
            last_log_term: self.last_log_term,
            flush_lsn: self.flush_lsn,
            commit_lsn: self.commit_lsn,
        })
    }
}

type Answers = JoinSet<(NodeId, Result<AdminResponse, ApiError>)>;

impl Peers {
    /// Has the safekeepers `wanted`, and nobody else, keep a timeline's log. `None`: nobody has a log of it yet.
    ///
    /// # Errors
    /// Nodes that are not known; a change that does not end in time goes on when it is asked for again.
    pub async fn change_members(
        &self,
        tenant: TenantId,
        timeline: TimelineId,
        wanted: &[NodeId],
    ) -> Result<Option<Members>, ApiError> {
        self.check_known(wanted)?;
        let Some(known) = self.newest_configuration(tenant, timeline).await? else {
            return Ok(None);
        };
        let deadline = Instant::now() + CHANGE_LIMIT;
        let is_final = |done: &Configuration| {
            done.new_members().is_none()
                && BTreeSet::from_iter(done.members()) == BTreeSet::from_iter(wanted)
        };
        let mut known = known;
        while Instant::now() < deadline {
            let change = Change::new(known.clone(), wanted.to_vec()).map_err(|error| {
                ApiError::refused(format!(
                    "the log of timeline {timeline} has no members on record: {error}"
                ))
                .hint("start the branch once, then try again")
            })?;
            match self.drive(tenant, timeline, change, deadline).await? {
                ChangePhase::Done(done) if is_final(&done) => return Ok(Some(Members::of(&done))),
                // An earlier change had to be ended first.
                ChangePhase::Done(done) => known = done,
                ChangePhase::Superseded(_) => {
                    tokio::time::sleep(ROUND_PAUSE).await;
                    let newest = self.newest_configuration(tenant, timeline).await?;
                    known =
                        newest.filter(|new| new.generation() > known.generation()).unwrap_or(known);
                }
                ChangePhase::Promising(_)
                | ChangePhase::Joining(_)
                | ChangePhase::Filling(_)
                | ChangePhase::Finishing(_) => break,
            }
        }
        Err(ApiError::new(
            "timeout",
            format!("the members of timeline {timeline} are not changed within {CHANGE_LIMIT:?}"),
        )
        .hint("are the new safekeepers and a majority of the old ones up? Asked again, it goes on"))
    }

    fn check_known(&self, wanted: &[NodeId]) -> Result<(), ApiError> {
        let is_unknown =
            |node: &&NodeId| !self.safekeepers.iter().any(|known| known.node == **node);
        if let Some(unknown) = wanted.iter().find(is_unknown) {
            let why = format!("safekeeper {unknown} is not one that this service was started with");
            return Err(ApiError::invalid("members", why));
        }
        let distinct: BTreeSet<_> = wanted.iter().collect();
        if wanted.len().is_multiple_of(2) || distinct.len() < wanted.len() {
            return Err(ApiError::invalid(
                "members",
                "an odd number of different safekeepers decides",
            ));
        }
        Ok(())
    }

    /// The newest configuration that any safekeeper follows.
    async fn newest_configuration(
        &self,
        tenant: TenantId,
        timeline: TimelineId,
    ) -> Result<Option<Configuration>, ApiError> {
        let mut asked = Answers::new();
        for safekeeper in &self.safekeepers {
            self.send(&mut asked, safekeeper, (tenant, timeline), &AdminRequest::Read);
        }
        let (mut newest, mut failure, mut without) = (None::<Configuration>, None, 0);
        for (_, answer) in asked.join_all().await {
            match answer {
                Ok(response) => {
                    let is_newer = |known: &Configuration| {
                        response.configuration.generation() > known.generation()
                    };
                    if newest.as_ref().is_none_or(is_newer) {
                        newest = Some(response.configuration);
                    }
                }
                Err(error) if error.code == "not_found" || error.code == "gone" => without += 1,
                Err(error) => failure = Some(error),
            }
        }
        match (newest, failure) {
            (Some(newest), _) => Ok(Some(newest)),
            // Whoever is away might have one.
            (None, Some(error)) if without * 2 <= self.safekeepers.len() => Err(error),
            (None, _) => Ok(None),
        }
    }

    /// One run, to its end or the deadline.
    async fn drive(
        &self,
        tenant: TenantId,
        timeline: TimelineId,
        mut change: Change,
        deadline: Instant,
    ) -> Result<ChangePhase, ApiError> {
        let mut asked = Answers::new();
        let mut next_election = Instant::now() + ELECT_PAUSE;
        loop {
            let mut actions = change.tick();
            loop {
                for ChangeAction::Send { to, request } in actions.drain(..) {
                    if let Some(found) = self.safekeepers.iter().find(|known| known.node == to) {
                        self.send(&mut asked, found, (tenant, timeline), &request);
                    }
                }
                match asked.join_next().await {
                    None => break,
                    Some(Ok((from, Ok(response)))) => actions = change.on_response(from, response),
                    Some(Ok((node, Err(error)))) => {
                        tracing::debug!(%node, %timeline, %error, "a safekeeper does not take part in a change");
                    }
                    Some(Err(error)) => return Err(ApiError::internal(error)),
                }
            }
            match change.phase() {
                done @ (ChangePhase::Done(_) | ChangePhase::Superseded(_)) => {
                    return Ok(done.clone());
                }
                ChangePhase::Filling(joint) if Instant::now() >= next_election => {
                    let joint = Members::of(joint);
                    if let Err(error) = self.elect(tenant, timeline, &joint).await {
                        tracing::info!(%timeline, %error, "nobody could be elected to fill new members yet");
                    }
                    next_election = Instant::now() + ELECT_PAUSE;
                }
                ChangePhase::Promising(_)
                | ChangePhase::Joining(_)
                | ChangePhase::Filling(_)
                | ChangePhase::Finishing(_) => {}
            }
            if Instant::now() >= deadline {
                return Ok(change.phase().clone());
            }
            tokio::time::sleep(ROUND_PAUSE).await;
        }
    }

    async fn elect(
        &self,
        tenant: TenantId,
        timeline: TimelineId,
        joint: &Members,
    ) -> Result<(), ApiError> {
        let url = self.agent_url(tenant, timeline, "elect");
        let body = json!(joint);
        self.call_within::<Value>(ELECT_LIMIT, Method::POST, url, Some(body)).await.map(drop)
    }

    fn send(
        &self,
        asked: &mut Answers,
        to: &Safekeeper,
        (tenant, timeline): (TenantId, TimelineId),
        request: &AdminRequest,
    ) {
        let base = to.http.trim_end_matches('/');
        let url = format!("{base}/v1/tenant/{tenant}/timeline/{timeline}/configuration");
        let (method, url, body) = match request {
            AdminRequest::Read => (Method::GET, url, None),
            AdminRequest::Promise(generation) => {
                let body = json!({"generation": generation.0});
                (Method::POST, format!("{url}/promise"), Some(body))
            }
            AdminRequest::Accept(configuration) => {
                (Method::PUT, url, Some(json!(Members::of(configuration))))
            }
        };
        let (peers, node) = (self.clone(), to.node);
        asked.spawn(async move {
            let answer = peers.ask_member(method, url, body).await;
            (node, answer.and_then(MemberState::response))
        });
    }

    /// A refusal (409) has the member's state as well.
    async fn ask_member(
        &self,
        method: Method,
        url: String,
        body: Option<Value>,
    ) -> Result<MemberState, ApiError> {
        let (status, bytes) = self.exchange(ANSWER_LIMIT, method, &url, body).await?;
        if let Ok(state) = serde_json::from_slice(&bytes) {
            return Ok(state);
        }
        Err(Peers::error_in(&url, status, &bytes))
    }
}

#[cfg(test)]
mod tests;
