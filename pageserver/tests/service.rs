//! The whole service over its sockets. A stock server stands in for the safekeeper: its walsender speaks the same protocol, and a
//! few lines of HTTP list its one timeline.

mod support;

use std::{
    io::{ErrorKind, Read, Write},
    net::TcpStream,
    os::{linux::net::SocketAddrExt, unix::net::UnixListener},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{Json, Router, routing::get};
use bytes::BytesMut;
use serde_json::{Value, json};
use socket2::{Domain, SockAddr, Socket, Type};
use support::{MAIN, Server, TENANT};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::oneshot,
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;
use treering_pageserver::{Listening, PageserverOptions, Safekeeper};
use treering_pgfmt::{checksum, mask};
use treering_types::{Fork, Lsn, PAGE_SIZE, RelTag};
use treering_wire::{
    backend::{self, Message},
    client::{Handshake, Outcome, Reply},
    frame::{BODY_BYTES_MAX, next_frame},
    frontend, neighbour,
    pagestream::{self, Answer, Header, Question, Request, Response},
    replication::StandbyMessage,
    startup::{self, StartupMessage},
};

const HEAP_RMID: u8 = 10;

/// What the stand-in lists: the commit LSN of the one timeline, once there is one.
type Committed = Arc<Mutex<Option<Lsn>>>;

async fn listing(committed: Committed) -> String {
    let handler = move || {
        let committed = *committed.lock().expect("lock");
        let entry =
            |lsn| json!({ "tenant_id": TENANT, "timeline_id": MAIN, "commit_lsn": lsn, "term": 1 });
        async move { Json(committed.map(entry).into_iter().collect::<Vec<_>>()) }
    };
    let router = Router::new().route("/v1/timelines", get(handler));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("listen");
    let address = listener.local_addr().expect("address");
    tokio::spawn(async move { axum::serve(listener, router).await });
    format!("http://{address}")
}

/// Stands between the pageserver and the server at `port`, and counts the status updates that ask for a reply.
async fn tap(port: u16, asked: Arc<AtomicUsize>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("listen");
    let address = listener.local_addr().expect("address");
    tokio::spawn(async move {
        loop {
            let (client, _) = listener.accept().await.expect("accept");
            let (from_client, mut to_client) = client.into_split();
            // Before the server runs, nobody is there.
            let Ok(server) = tokio::net::TcpStream::connect(("127.0.0.1", port)).await else {
                continue;
            };
            let (mut from_server, to_server) = server.into_split();
            tokio::spawn(async move { tokio::io::copy(&mut from_server, &mut to_client).await });
            tokio::spawn(pass(from_client, to_server, Arc::clone(&asked)));
        }
    });
    address.to_string()
}

/// What the pageserver sends, as it comes, until it or the server closes.
async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, asked: Arc<AtomicUsize>) {
    let (mut input, mut is_started) = (BytesMut::new(), false);
    loop {
        let before = input.len();
        match from.read_buf(&mut input).await {
            Ok(count) if count > 0 => {}
            _ => return,
        }
        if to.write_all(&input[before..]).await.is_err() {
            return;
        }
        is_started = is_started || startup::parse(&mut input).expect("startup").is_some();
        while is_started && let Some(frame) = next_frame(&mut input, BODY_BYTES_MAX).expect("frame")
        {
            if let frontend::Message::CopyData(payload) =
                frontend::Message::parse(frame).expect("message")
                && let Ok(StandbyMessage::StatusUpdate { reply_requested: true, .. }) =
                    StandbyMessage::parse(payload)
            {
                asked.fetch_add(1, Ordering::SeqCst);
            }
        }
    }
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
    stream: Socket,
    input: BytesMut,
}

impl Pages {
    fn connect(listening: Listening) -> Pages {
        Pages::start(TcpStream::connect(listening.pg).expect("connect").into())
    }

    /// Over the Unix socket.
    fn beside(listening: Listening) -> Pages {
        let name = neighbour::abstract_name(listening.pg).expect("loopback");
        let stream = Socket::new(Domain::UNIX, Type::STREAM, None).expect("socket");
        stream.connect(&SockAddr::unix(name).expect("name")).expect("connect");
        Pages::start(stream)
    }

    fn start(stream: Socket) -> Pages {
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
            put_copy_data(&mut out, &payload);
        }
        self.send(&mut out);
        let answer = |_| match self.message() {
            Message::CopyData(payload) => Response::parse(payload).expect("response"),
            other => panic!("{other:?}"),
        };
        requests.iter().map(answer).collect()
    }
}

fn put_copy_data(out: &mut BytesMut, payload: &[u8]) {
    out.extend_from_slice(b"d");
    out.extend_from_slice(&(payload.len() as u32 + 4).to_be_bytes());
    out.extend_from_slice(payload);
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

/// The way of a page: written by stock Postgres, streamed, ingested, asked for, branched; and everything an operator asks over HTTP.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_follow_the_log() {
    let folder = tempfile::tempdir().expect("folder");
    let committed = Committed::default();
    let port = free_port();
    let http = listing(Arc::clone(&committed)).await;
    let safekeeper = Safekeeper::alone(http, format!("127.0.0.1:{port}"));
    let mut options = PageserverOptions::new(folder.path(), safekeeper);
    options.wait_lsn_max = Duration::from_secs(3);
    let running = run(options.clone()).await;

    let (status, body) = running.post(running.url("/v1/tenant"), json!({ "tenant": 1 })).await;
    assert_eq!(
        (status, body["field"].as_str(), body["code"].as_str()),
        (400, Some("tenant"), Some("invalid"))
    );
    let (status, _) = running.get(running.timelines()).await;
    assert_eq!(status, 404);
    let (status, _) = running.post(running.url("/v1/tenant"), json!({ "tenant_id": TENANT })).await;
    assert_eq!(status, 201);
    let (status, root) =
        running.post(running.timelines(), json!({ "new_timeline_id": MAIN })).await;
    assert_eq!(status, 201, "{root}");
    let start_lsn = lsn_of(&root["last_record_lsn"]);

    let mut pages = Pages::connect(running.listening);
    let archive = pages.archive(&format!("basebackup {TENANT} {MAIN} {start_lsn}"));
    let error = pages.query(&format!("basebackup {TENANT} {MAIN} {}", start_lsn + 8));
    assert!(error.is_err(), "not ingested, and does not come");
    let start = support::description(&archive);
    let settings = [format!("port={port}"), "listen_addresses=127.0.0.1".to_owned()];
    let server = Server::start_on(&archive, &start, port, &settings.each_ref().map(String::as_str));
    server.sql("postgres", "CREATE ROLE treering_pageserver LOGIN REPLICATION; CREATE TABLE t(a int, b text); INSERT INTO t SELECT g, repeat('x', 200) FROM generate_series(1, 20000) g;");
    let first = server.insert_lsn();
    *committed.lock().expect("lock") = Some(first);

    // A branch waits for its LSN, which is on its way.
    let body = json!({ "ancestor_timeline_id": MAIN, "ancestor_start_lsn": first });
    let (status, branch) = running.post(running.timelines(), body).await;
    assert_eq!(status, 201, "{branch}");
    assert_eq!((lsn_of(&branch["start_lsn"]), branch["pg_tli"].as_u64()), (first, Some(2)));
    assert_eq!(branch["unhandled"], json!([]));
    // Streamed on the same connection: no list entry is needed any more.
    server.sql(
        "postgres",
        "SELECT pg_sleep(0.01); UPDATE t SET b = 'new' WHERE a <= 100; CHECKPOINT",
    );
    let second = server.insert_lsn();

    let path = server.sql("postgres", "SELECT pg_relation_filepath('t')");
    let relation =
        path.rsplit('/').next().and_then(|name| name.parse().ok()).expect("relfilenumber");
    let database: u32 = server
        .sql("postgres", "SELECT oid FROM pg_database WHERE datname = 'postgres'")
        .parse()
        .expect("oid");
    let rel = RelTag { tablespace: 1663, database, relation, fork: Fork::Main };
    let file = std::fs::read(server.data.join(&path)).expect("relation");
    let blocks = (file.len() / PAGE_SIZE) as u32;
    let stream = format!("pagestream_v3 {TENANT} {MAIN}");
    assert!(matches!(pages.query(&stream), Ok(Outcome::Copy { .. })));
    let mut requests: Vec<Request> = (0..blocks)
        .map(|block| request(block.into(), Lsn::MAX, second, Question::Page { rel, block }))
        .collect();
    requests.push(request(1 << 40, second, second, Question::Blocks(rel)));
    requests.push(request(1 << 41, second, second, Question::Page { rel, block: blocks }));
    requests.push(request(1 << 42, first, first, Question::Page { rel, block: 0 }));
    requests.push(request(1 << 43, second, second, Question::SlruSegment { kind: 0, segment: 0 }));
    requests.push(request(1 << 44, second, second, Question::Exists(rel.with_fork(Fork::Init))));
    let responses = pages.ask(&requests);
    for (block, own) in file.chunks(PAGE_SIZE).enumerate() {
        let Answer::Page { page, .. } = &responses[block].answer else {
            panic!("{:?}", responses[block])
        };
        let mut ours: [u8; PAGE_SIZE] = page[..].try_into().expect("page");
        checksum::verify(&ours, block as u32).expect("checksum");
        let mut own: [u8; PAGE_SIZE] = own.try_into().expect("page");
        mask::mask_page(HEAP_RMID, &mut ours, block as u32);
        mask::mask_page(HEAP_RMID, &mut own, block as u32);
        assert!(ours == own, "block {block} differs");
    }
    let rest = &responses[blocks as usize..];
    assert_eq!(rest[0].answer, Answer::Blocks { rel, blocks });
    assert!(
        matches!(&rest[1].answer, Answer::Error { message } if message.contains("past its end"))
    );
    let Answer::Page { page, .. } = &rest[2].answer else { panic!("{:?}", rest[2]) };
    assert!(Lsn(u64::from(u32::from_le_bytes(page[4..8].try_into().expect("lsn")))) <= first);
    assert!(
        matches!(&rest[3].answer, Answer::SlruSegment { pages, .. } if pages.len() == PAGE_SIZE)
    );
    assert!(matches!(&rest[4].answer, Answer::Exists { exists: false, .. }));

    // A neighbour gets the same, all at once and one by one, wherever it says that it runs.
    let mut beside = Pages::beside(running.listening);
    assert!(matches!(beside.query(&stream), Ok(Outcome::Copy { .. })));
    assert!(beside.ask(&requests) == responses);
    for (core, (request, response)) in (0..).step_by(500).zip(requests.iter().zip(&responses)) {
        let (mut out, mut payload) = (BytesMut::new(), BytesMut::new());
        pagestream::put_core(&mut payload, core);
        put_copy_data(&mut out, &payload);
        beside.send(&mut out);
        assert!(beside.ask(std::slice::from_ref(request)) == std::slice::from_ref(response));
    }

    // Before the update, by time and by LSN.
    let timeline = format!("{}/{MAIN}", running.timelines());
    let (status, found) = running.get(format!("{timeline}/timestamp_by_lsn?lsn={first}")).await;
    assert_eq!(status, 200, "{found}");
    let time = found["timestamp"].as_str().expect("time");
    let (_, found) = running.get(format!("{timeline}/lsn_by_timestamp?timestamp={time}")).await;
    let at = lsn_of(&found["lsn"]);
    assert!(found["kind"] == "present" && first <= at && at < second, "{found}");
    let (status, found) =
        running.get(format!("{timeline}/lsn_by_timestamp?timestamp=1999-01-01T00:00:00Z")).await;
    assert_eq!((status, found["code"].as_str()), (410, Some("gone")));
    let (_, found) = running.get(format!("{timeline}/record_boundary?lsn={second}")).await;
    assert_eq!(lsn_of(&found["end"]), second);
    let (status, found) = running.get(format!("{timeline}/record_boundary?lsn=x")).await;
    assert_eq!((status, found["code"].as_str()), (400, Some("invalid")));

    // What is durable is told to the sender.
    let (status, detail) = running.post(format!("{timeline}/flush"), json!({})).await;
    assert_eq!((status, &detail["disk_consistent_lsn"]), (200, &detail["last_record_lsn"]));
    let flushed = "SELECT count(*) FROM pg_stat_replication WHERE application_name = 'treering_pageserver' AND flush_lsn >= ";
    let deadline = Instant::now() + Duration::from_secs(10);
    while server.sql("postgres", &format!("{flushed} '{second}'")) != "1" {
        assert!(
            Instant::now() < deadline,
            "{}",
            server.sql("postgres", "SELECT * FROM pg_stat_replication")
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let (status, detail) = running.post(format!("{timeline}/gc"), json!({})).await;
    // Everything is younger than the window.
    assert_eq!((status, &detail["earliest_lsn"]), (200, &detail["start_lsn"]), "{detail}");
    let (status, detail) =
        running.post(format!("{timeline}/compact"), json!({ "force": true })).await;
    assert_eq!((status, &detail["runs"]), (200, &json!(1)), "{detail}");
    let (status, found) = running.post(format!("{timeline}/verify"), json!({})).await;
    assert_eq!((status, found), (200, json!({ "findings": [] })));
    let metrics =
        reqwest::get(running.url("/metrics")).await.expect("metrics").text().await.expect("text");
    for name in ["ingested_bytes_total", "compaction_written_bytes_total", "runs_max"] {
        assert!(metrics.contains(&format!("treering_pageserver_{name}")), "{metrics}");
    }

    // A parent with branches stays; a stop and a start change nothing.
    let delete = |url: String| async {
        reqwest::Client::new().delete(url).send().await.expect("delete").status().as_u16()
    };
    assert_eq!(delete(timeline.clone()).await, 409);
    let child = branch["timeline_id"].as_str().expect("id").to_owned();
    running.stop().await;
    let running = run(options).await;
    let timeline = format!("{}/{MAIN}", running.timelines());
    let (_, detail) = running.get(timeline.clone()).await;
    assert!(lsn_of(&detail["last_record_lsn"]) >= second, "{detail}");
    assert_eq!(detail["unhandled_relations"], json!(0));
    assert_eq!(delete(format!("{}/{child}", running.timelines())).await, 204);
    assert_eq!(delete(timeline).await, 204);
    running.stop().await;
}

#[tokio::test]
async fn a_name_that_is_taken_is_refused_like_a_port() {
    let folder = tempfile::tempdir().expect("folder");
    let safekeeper = Safekeeper::alone("http://127.0.0.1:1".to_owned(), "127.0.0.1:1".to_owned());
    let mut options = PageserverOptions::new(folder.path(), safekeeper);
    options.listen_pg.set_port(free_port());
    let name = neighbour::abstract_name(options.listen_pg).expect("loopback");
    let name = std::os::unix::net::SocketAddr::from_abstract_name(&name[1..]).expect("name");
    let _taken = UnixListener::bind_addr(&name).expect("bind");
    let ready = |_| panic!("it listens");
    let refused = treering_pageserver::run(options, CancellationToken::new(), ready).await;
    let error = refused.expect_err("refused");
    let cause = error.root_cause().downcast_ref::<std::io::Error>().map(std::io::Error::kind);
    assert_eq!(cause, Some(ErrorKind::AddrInUse), "{error:#}");
}

/// Log that nobody waits for may come late, so that it costs little. Who waits for it must be heard of.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_is_asked_for_while_somebody_waits() {
    let folder = tempfile::tempdir().expect("folder");
    let committed = Committed::default();
    let port = free_port();
    let http = listing(Arc::clone(&committed)).await;
    let asked = Arc::new(AtomicUsize::new(0));
    let safekeeper = Safekeeper::alone(http, tap(port, Arc::clone(&asked)).await);
    let mut options = PageserverOptions::new(folder.path(), safekeeper);
    options.wait_lsn_max = Duration::from_secs(30);
    let running = run(options).await;
    let tenant = json!({ "tenant_id": TENANT });
    assert_eq!(running.post(running.url("/v1/tenant"), tenant).await.0, 201);
    let (_, root) = running.post(running.timelines(), json!({ "new_timeline_id": MAIN })).await;
    let start_lsn = lsn_of(&root["last_record_lsn"]);

    let mut pages = Pages::connect(running.listening);
    let archive = pages.archive(&format!("basebackup {TENANT} {MAIN} {start_lsn}"));
    let start = support::description(&archive);
    let settings = [format!("port={port}"), "listen_addresses=127.0.0.1".to_owned()];
    let server = Server::start_on(&archive, &start, port, &settings.each_ref().map(String::as_str));
    server.sql(
        "postgres",
        "CREATE ROLE treering_pageserver LOGIN REPLICATION; CREATE TABLE t(a int)",
    );
    let first = server.insert_lsn();
    *committed.lock().expect("lock") = Some(first);
    let timeline = format!("{}/{MAIN}", running.timelines());
    let deadline = Instant::now() + Duration::from_secs(30);
    while lsn_of(&running.get(timeline.clone()).await.1["last_record_lsn"]) < first {
        assert!(Instant::now() < deadline, "not ingested");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(asked.load(Ordering::SeqCst), 0, "nobody waited");

    // What is not written yet.
    let ahead = first + (1 << 20);
    let stream = format!("pagestream_v3 {TENANT} {MAIN}");
    assert!(matches!(pages.query(&stream), Ok(Outcome::Copy { .. })));
    let question = Question::SlruSegment { kind: 0, segment: 0 };
    let answers =
        tokio::task::spawn_blocking(move || pages.ask(&[request(1, ahead, ahead, question)]));
    while asked.load(Ordering::SeqCst) == 0 {
        assert!(Instant::now() < deadline, "not asked for");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    while server.insert_lsn() <= ahead {
        server.sql("postgres", "INSERT INTO t SELECT generate_series(1, 5000)");
    }
    let answers = answers.await.expect("join");
    assert!(matches!(answers[0].answer, Answer::SlruSegment { .. }), "{answers:?}");
    running.stop().await;
}
