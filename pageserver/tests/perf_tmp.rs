//! The whole service over its sockets. A stock server stands in for the safekeeper: its walsender speaks the same protocol, and a
//! few lines of HTTP list its one timeline.

mod support;

use std::{
    io::{Read, Write},
    net::TcpStream,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use axum::{Json, Router, routing::get};
use bytes::BytesMut;
use serde_json::{Value, json};
use support::{MAIN, Server, TENANT};
use tokio::{net::TcpListener, sync::oneshot, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use treering_pageserver::{Listening, PageserverOptions};
use treering_pgfmt::{checksum, mask};
use treering_types::{Fork, Lsn, PAGE_SIZE, RelTag};
use treering_wire::{
    backend::{self, Message},
    client::{Handshake, Outcome, Reply},
    frame::{BODY_BYTES_MAX, next_frame},
    pagestream::{Answer, Header, Question, Request, Response},
    startup::StartupMessage,
};

const HEAP_RMID: u8 = 10;

/// What the stand-in lists: the commit LSN of the one timeline, once there is one.
type Committed = Arc<Mutex<Option<Lsn>>>;

async fn listing(committed: Committed) -> String {
    let handler = move || {
        let committed = *committed.lock().expect("lock");
        let entry = |lsn| json!({ "tenant_id": TENANT, "timeline_id": MAIN, "commit_lsn": lsn, "term": 1 });
        async move { Json(committed.map(entry).into_iter().collect::<Vec<_>>()) }
    };
    let router = Router::new().route("/v1/timelines", get(handler));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("listen");
    let address = listener.local_addr().expect("address");
    tokio::spawn(async move { axum::serve(listener, router).await });
    format!("http://{address}")
}

struct Running {
    listening: Listening,
    cancel: CancellationToken,
    task: JoinHandle<anyhow::Result<()>>,
}

async fn run(options: PageserverOptions) -> Running {
    let cancel = CancellationToken::new();
    let (sender, receiver) = oneshot::channel();
    let ready = |listening| sender.send(listening).expect("the test waits");
    let task = tokio::spawn(treering_pageserver::run(options, cancel.clone(), ready));
    let listening = receiver.await.expect("ready");
    Running { listening, cancel, task }
}

impl Running {
    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.listening.http)
    }

    fn timelines(&self) -> String {
        self.url(&format!("/v1/tenant/{TENANT}/timeline"))
    }

    async fn get(&self, url: String) -> (u16, Value) {
        answer(reqwest::get(url).await.expect("get")).await
    }

    async fn post(&self, url: String, body: Value) -> (u16, Value) {
        answer(reqwest::Client::new().post(url).json(&body).send().await.expect("post")).await
    }

    async fn stop(self) {
        let begun = Instant::now();
        self.cancel.cancel();
        self.task.await.expect("join").expect("run");
        assert!(begun.elapsed() < Duration::from_secs(8));
    }
}

async fn answer(response: reqwest::Response) -> (u16, Value) {
    (response.status().as_u16(), response.json().await.expect("json"))
}

/// A connection to the page service, past start-up.
struct Pages {
    stream: TcpStream,
    input: BytesMut,
}

impl Pages {
    fn connect(listening: Listening) -> Pages {
        let stream = TcpStream::connect(listening.pg).expect("connect");
        stream.set_read_timeout(Some(Duration::from_secs(30))).expect("timeout");
        let mut pages = Pages { stream, input: BytesMut::new() };
        let startup = StartupMessage::new([("user", "test")]);
        let mut out = BytesMut::new();
        let mut handshake = Handshake::start(&startup, None, &mut out).expect("startup");
        loop {
            pages.send(&mut out);
            if handshake.receive(&mut pages.input, &mut out).expect("handshake").is_some() {
                return pages;
            }
            pages.receive();
        }
    }

    fn send(&mut self, out: &mut BytesMut) {
        self.stream.write_all(&out.split()).expect("send");
    }

    fn receive(&mut self) {
        let mut buffer = vec![0; 256 << 10];
        let count = self.stream.read(&mut buffer).expect("receive");
        assert!(count > 0, "closed");
        self.input.extend_from_slice(&buffer[..count]);
    }

    fn query(&mut self, text: &str) -> Result<Outcome, String> {
        let mut out = BytesMut::new();
        let mut reply = Reply::to_query(text, &mut out).expect("query");
        self.send(&mut out);
        loop {
            match reply.receive(&mut self.input) {
                Ok(Some(outcome)) => return Ok(outcome),
                Ok(None) => self.receive(),
                Err(error) => return Err(error.to_string()),
            }
        }
    }

    fn message(&mut self) -> Message {
        loop {
            if let Some(frame) = next_frame(&mut self.input, BODY_BYTES_MAX).expect("frame") {
                return backend::parse(frame).expect("message");
            }
            self.receive();
        }
    }

    fn archive(&mut self, query: &str) -> Vec<u8> {
        assert!(matches!(self.query(query), Ok(Outcome::Copy { .. })), "{query}");
        let mut archive = Vec::new();
        loop {
            match self.message() {
                Message::CopyData(bytes) => archive.extend_from_slice(&bytes),
                Message::CopyDone => {}
                Message::ReadyForQuery(_) => return archive,
                Message::CommandComplete(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// All at once; the answers in order.
    fn ask(&mut self, requests: &[Request]) -> Vec<Response> {
        let mut out = BytesMut::new();
        for request in requests {
            let mut payload = BytesMut::new();
            request.encode(&mut payload);
            out.extend_from_slice(&[b'd']);
            out.extend_from_slice(&(payload.len() as u32 + 4).to_be_bytes());
            out.extend_from_slice(&payload);
        }
        self.send(&mut out);
        let answer = |_| match self.message() {
            Message::CopyData(payload) => Response::parse(payload).expect("response"),
            other => panic!("{other:?}"),
        };
        requests.iter().map(answer).collect()
    }
}

fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    listener.local_addr().expect("address").port()
}

fn request(request_id: u64, lsn: Lsn, not_modified_since: Lsn, question: Question) -> Request {
    Request { header: Header { request_id, lsn, not_modified_since }, question }
}

fn lsn_of(value: &Value) -> Lsn {
    value.as_str().expect("text").parse().expect("lsn")
}


#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn perf() {
    let folder = tempfile::tempdir().expect("folder");
    let options = PageserverOptions::new(folder.path(), "http://127.0.0.1:1", "127.0.0.1:1");
    let running = run(options.clone()).await;
    running.post(running.url("/v1/tenant"), json!({ "tenant_id": TENANT })).await;
    let (_, root) = running.post(running.timelines(), json!({ "new_timeline_id": MAIN })).await;
    let lsn = lsn_of(&root["last_record_lsn"]);
    let mut pages = Pages::connect(running.listening);
    assert!(matches!(pages.query(&format!("pagestream_v3 {TENANT} {MAIN}")), Ok(Outcome::Copy { .. })));
    let rel = RelTag { tablespace: 1663, database: 5, relation: 1255, fork: Fork::Main };
    for round in 0..4 {
        let mut times = Vec::new();
        for i in 0..5000u32 {
            let t = Instant::now();
            let r = pages.ask(&[request(1, Lsn::MAX, lsn, Question::Page { rel, block: i % 80 })]);
            times.push(t.elapsed());
            assert!(matches!(r[0].answer, Answer::Page { .. }), "{:?}", r[0]);
        }
        times.sort();
        println!("round {round}: p50 {:?} p99 {:?}", times[2500], times[4950]);
    }
    let t = Instant::now();
    let mut n = 0;
    while t.elapsed() < Duration::from_secs(2) {
        let requests: Vec<_> = (0..80).map(|block| request(1, Lsn::MAX, lsn, Question::Page { rel, block })).collect();
        pages.ask(&requests);
        n += 80;
    }
    println!("pipelined: {} pages/s", n as f64 / t.elapsed().as_secs_f64());
    for i in 0..20u8 {
        let t = Instant::now();
        let body = json!({ "ancestor_timeline_id": MAIN, "ancestor_start_lsn": lsn });
        let (status, _) = running.post(running.timelines(), body).await;
        println!("branch {i} {status} {:?}", t.elapsed());
    }
    running.stop().await;
}
