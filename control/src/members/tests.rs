//! Changes of members against real acceptors behind HTTP, with a real proposer as the agent.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use axum::{
    Json, Router,
    body::Bytes,
    extract::{Path, State},
    http::{Method as Verb, StatusCode},
    response::{IntoResponse, Response},
    routing::{any, post},
};
use parking_lot::Mutex;
use tokio::net::TcpListener;
use treering_consensus::{
    Acceptor, Action, Effect, Input, Promises, Proposer, ProposerConfig, ProposerId,
    ProposerMessage, TimelineIdentity,
};

use super::*;
use crate::ControlOptions;

const START: Lsn = Lsn(0x1000000);
const TENANT: TenantId = TenantId([1; 16]);
const TIMELINE: TimelineId = TimelineId([2; 16]);

#[derive(Default)]
struct Nodes {
    acceptors: BTreeMap<NodeId, Acceptor>,
    down: BTreeSet<NodeId>,
    elections: u64,
}

type World = Arc<Mutex<Nodes>>;

impl Nodes {
    fn with(members: &[u64]) -> World {
        let configuration = match members {
            [] => Configuration::none(),
            members => Configuration::first(nodes(members)).unwrap(),
        };
        let promises = || Promises { configuration: configuration.clone(), ..Promises::at(START) };
        let acceptor = |id: &NodeId| (*id, Acceptor::open(*id, promises(), START));
        let acceptors = nodes(members).iter().map(acceptor).collect();
        Arc::new(Mutex::new(Nodes { acceptors, ..Nodes::default() }))
    }

    /// An election under `configuration`, to the end: nothing is lost on the way.
    fn elect(&mut self, configuration: Configuration) -> bool {
        self.elections += 1;
        let id = ProposerId([self.elections as u8; 16]);
        let all = configuration.all_members();
        let timeline = TimelineIdentity {
            tenant: TENANT,
            timeline: TIMELINE,
            system_id: 1,
            pg_major: 15,
            pg_tli: 1,
            start_lsn: START,
        };
        let mut proposer = Proposer::new(ProposerConfig {
            proposer: id,
            configuration,
            timeline,
            window_bytes_max: 64,
        });
        let mut actions: Vec<_> =
            all.into_iter().flat_map(|node| proposer.on_connected(node)).collect();
        while let Some(action) = actions.pop() {
            let Action::Send { to, message } = action else { continue };
            if self.down.contains(&to) {
                continue;
            }
            if matches!(message, ProposerMessage::Greeting(_)) {
                let fresh = || Acceptor::open(to, Promises::at(START), START);
                self.acceptors.entry(to).or_insert_with(fresh);
            }
            let Some(acceptor) = self.acceptors.get_mut(&to) else { continue };
            for effect in acceptor.step(Input::Received { from: id, message }) {
                if let Effect::Send { message, .. } = effect {
                    actions.extend(proposer.on_message(to, message));
                }
            }
        }
        proposer.term_is_committed()
    }
}

fn nodes(ids: &[u64]) -> Vec<NodeId> {
    ids.iter().copied().map(NodeId).collect()
}

/// A safekeeper's configuration API.
async fn configuration(
    State((world, node)): State<(World, NodeId)>,
    verb: Verb,
    body: Bytes,
) -> Response {
    let request = match verb {
        Verb::GET => AdminRequest::Read,
        Verb::PUT => {
            let members: Members = serde_json::from_slice(&body).unwrap();
            AdminRequest::Accept(members.configuration().unwrap())
        }
        _ => {
            let body: Value = serde_json::from_slice(&body).unwrap();
            AdminRequest::Promise(Generation(body["generation"].as_u64().unwrap()))
        }
    };
    let mut world = world.lock();
    let problem = |status: StatusCode, code: &str| {
        (status, Json(json!({"code": code, "message": "as told"}))).into_response()
    };
    if world.down.contains(&node) {
        return problem(StatusCode::SERVICE_UNAVAILABLE, "unavailable");
    }
    let Some(acceptor) = world.acceptors.get_mut(&node) else {
        return problem(StatusCode::NOT_FOUND, "not_found");
    };
    let effects = acceptor.step(Input::Administered(request));
    let answer = effects.into_iter().find_map(|effect| match effect {
        Effect::Answer(answer) => Some(answer),
        _ => None,
    });
    let answer = answer.unwrap();
    let status = if answer.granted { StatusCode::OK } else { StatusCode::CONFLICT };
    let body = json!({
        "granted": answer.granted,
        "promised": answer.promised.0,
        "configuration": Members::of(&answer.configuration),
        "term": answer.term, "last_log_term": answer.last_log_term,
        "flush_lsn": answer.flush_lsn, "commit_lsn": answer.commit_lsn,
    });
    (status, Json(body)).into_response()
}

async fn serve(router: Router) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async { axum::serve(listener, router).await });
    format!("http://{address}")
}

async fn peers(world: &World, ids: &[u64]) -> Peers {
    let mut safekeepers = Vec::new();
    for node in nodes(ids) {
        let path = "/v1/tenant/{tenant}/timeline/{timeline}/configuration";
        let router = Router::new()
            .route(path, any(configuration))
            .route(&format!("{path}/promise"), any(configuration))
            .with_state((world.clone(), node));
        safekeepers.push(Safekeeper { node, http: serve(router).await });
    }
    let elect = |State(world): State<World>,
                 Path(_): Path<(String, String)>,
                 Json(to): Json<Members>| async move {
        match world.lock().elect(to.configuration().unwrap()) {
            true => Json(json!({})).into_response(),
            false => StatusCode::SERVICE_UNAVAILABLE.into_response(),
        }
    };
    let agent = Router::new()
        .route("/v1/tenant/{tenant}/timeline/{timeline}/elect", post(elect))
        .with_state(world.clone());
    let options = ControlOptions {
        data_dir: "/nonexistent".into(),
        listen_http: "127.0.0.1:0".parse().unwrap(),
        pageserver_http: "http://127.0.0.1:1".to_owned(),
        agent_http: serve(agent).await,
        safekeepers,
        client_address: "127.0.0.1:1".to_owned(),
        pg_version: 15,
    };
    Peers::new(&options).unwrap()
}

async fn change(peers: &Peers, wanted: &[u64]) -> Result<Option<Members>, ApiError> {
    peers.change_members(TENANT, TIMELINE, &nodes(wanted)).await
}

/// The case that it is for: one has lost its disk and is gone, another one takes its place.
#[tokio::test]
async fn a_lost_safekeeper_is_replaced() {
    let world = Nodes::with(&[1, 2, 3]);
    world.lock().down.insert(NodeId(3));
    let peers = peers(&world, &[1, 2, 3, 4]).await;
    let done = change(&peers, &[1, 2, 4]).await.unwrap().unwrap();
    assert_eq!((done.generation % 2, done.new_members), (1, None));
    assert_eq!(done.members, nodes(&[1, 2, 4]));
    let followed = world.lock().acceptors[&NodeId(1)].promises().configuration.clone();
    assert_eq!(followed.members(), nodes(&[1, 2, 4]));
    // Again: nothing is left to do, and that is confirmed.
    let again = change(&peers, &[1, 2, 4]).await.unwrap().unwrap();
    assert_eq!(again.members, done.members);
}

/// New members without a log, and no compute that could fill them.
#[tokio::test]
async fn somebody_is_elected_to_fill_new_members() {
    let world = Nodes::with(&[1]);
    let peers = peers(&world, &[1, 2, 3, 4]).await;
    let done = change(&peers, &[2, 3, 4]).await.unwrap().unwrap();
    assert_eq!(done.members, nodes(&[2, 3, 4]));
    let world = world.lock();
    assert!(world.elections > 0);
    let follows = |id: u64| {
        let acceptor = world.acceptors.get(&NodeId(id));
        acceptor.is_some_and(|a| a.promises().configuration.members() == nodes(&[2, 3, 4]))
    };
    assert!([2, 3, 4].into_iter().filter(|id| follows(*id)).count() >= 2);
}

#[tokio::test]
async fn what_cannot_be_is_refused() {
    let world = Nodes::with(&[1, 2, 3]);
    let peers = peers(&world, &[1, 2, 3]).await;
    for (wanted, says) in [(&[1, 2, 9][..], "safekeeper 9"), (&[1, 2], "odd"), (&[1, 1, 2], "odd")]
    {
        let error = change(&peers, wanted).await.unwrap_err();
        assert_eq!((&error.code[..], error.field.as_deref()), ("invalid", Some("members")));
        assert!(error.message.contains(says), "{error}");
    }
    let nobody = Nodes::with(&[]);
    let peers = self::peers(&nobody, &[1, 2, 3]).await;
    assert_eq!(change(&peers, &[1, 2, 3]).await.unwrap(), None, "a branch without a log");
}
