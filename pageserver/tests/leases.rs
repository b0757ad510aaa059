//! LSN leases over the page service's port, and what the admin API shows of them.

mod support;

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::Arc,
    time::Duration,
};

use bytes::{BufMut, Bytes, BytesMut};
use serde_json::{Value, json};
use support::{MAIN, TENANT};
use tokio::net::TcpListener;
use treering_engine::{EngineOptions, WriteBatch};
use treering_pageserver::{http, page_service, service::Service};
use treering_types::{Fork, Lsn, RelTag, TimelineId};
use treering_wire::{
    backend::{self, Message},
    client::{Handshake, Outcome, Reply},
    frame::{BODY_BYTES_MAX, next_frame},
    lease::{Answer, Holder, Request},
    pagestream,
    startup::StartupMessage,
};

const BRANCH: TimelineId = TimelineId([2; 16]);

/// A stream of leases, or of pages.
struct Stream {
    stream: TcpStream,
    input: BytesMut,
}

impl Stream {
    fn of_leases(address: SocketAddr, timeline: TimelineId) -> Stream {
        Stream::open(address, &format!("lsn_lease_v1 {TENANT} {timeline}"))
    }

    fn open(address: SocketAddr, query: &str) -> Stream {
        let stream = TcpStream::connect(address).expect("connect");
        stream.set_read_timeout(Some(Duration::from_secs(30))).expect("timeout");
        let mut opened = Stream { stream, input: BytesMut::new() };
        let mut out = BytesMut::new();
        let startup = StartupMessage::new([("user", "test")]);
        let mut handshake = Handshake::start(&startup, None, &mut out).expect("startup");
        loop {
            opened.send(&mut out);
            if handshake.receive(&mut opened.input, &mut out).expect("handshake").is_some() {
                break;
            }
            opened.receive();
        }
        let mut reply = Reply::to_query(query, &mut out).expect("query");
        opened.send(&mut out);
        loop {
            match reply.receive(&mut opened.input).expect("reply") {
                Some(Outcome::Copy { .. }) => return opened,
                Some(Outcome::Done(_)) => panic!("no copy"),
                None => opened.receive(),
            }
        }
    }

    fn send(&mut self, out: &mut BytesMut) {
        self.stream.write_all(&out.split()).expect("send");
    }

    fn receive(&mut self) {
        let mut buffer = [0; 4096];
        let count = self.stream.read(&mut buffer).expect("receive");
        assert!(count > 0, "closed");
        self.input.extend_from_slice(&buffer[..count]);
    }

    fn ask(&mut self, request: &Request) -> Answer {
        let mut payload = BytesMut::new();
        request.encode(&mut payload);
        Answer::parse(self.exchange(&payload)).expect("answer")
    }

    /// The first block of a relation, read at `lsn`.
    fn page(&mut self, rel: RelTag, lsn: Lsn) -> pagestream::Answer {
        let header = pagestream::Header { request_id: 1, lsn, not_modified_since: lsn };
        let question = pagestream::Question::Page { rel, block: 0 };
        let mut payload = BytesMut::new();
        pagestream::Request { header, question }.encode(&mut payload);
        pagestream::Response::parse(self.exchange(&payload)).expect("response").answer
    }

    fn exchange(&mut self, payload: &[u8]) -> Bytes {
        let mut out = BytesMut::new();
        out.put_u8(b'd');
        out.put_u32(payload.len() as u32 + 4);
        out.put_slice(payload);
        self.send(&mut out);
        loop {
            match next_frame(&mut self.input, BODY_BYTES_MAX).expect("frame").map(backend::parse) {
                Some(Ok(Message::CopyData(payload))) => return payload,
                Some(other) => panic!("{other:?}"),
                None => self.receive(),
            }
        }
    }

    fn take(&mut self, name: &str, lsn: Lsn) -> Answer {
        self.ask(&Request::Take { holder: holder(name), lsn })
    }
}

fn holder(name: &str) -> Holder {
    Holder::new(name).expect("a name")
}

/// The two faces of a service.
async fn listen(service: &Arc<Service>) -> (SocketAddr, String) {
    let pg = TcpListener::bind("127.0.0.1:0").await.expect("listen");
    let admin = TcpListener::bind("127.0.0.1:0").await.expect("listen");
    let pg_address = pg.local_addr().expect("address");
    let url = format!("http://{}", admin.local_addr().expect("address"));
    tokio::spawn(page_service::run(Arc::clone(service), pg));
    let router = http::router(Arc::clone(service));
    tokio::spawn(async move { axum::serve(admin, router).await });
    (pg_address, url)
}

async fn text(url: String) -> String {
    reqwest::get(url).await.expect("get").text().await.expect("text")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leases_are_taken_shown_moved_and_released() {
    let folder = tempfile::tempdir().expect("folder");
    let (service, main) = support::service(folder.path()).await;
    let (pg, url) = listen(&service).await;
    let start = main.timeline.start_lsn();
    let patience = Duration::from_secs(1);
    let branch = service.branch(TENANT, BRANCH, MAIN, Some(start), patience).await.expect("branch");
    assert_eq!(branch.live.timeline.start_lsn(), start);
    let shown = async |timeline: TimelineId| -> Value {
        let detail = text(format!("{url}/v1/tenant/{TENANT}/timeline/{timeline}")).await;
        serde_json::from_str::<Value>(&detail).expect("JSON")["leases"].take()
    };
    assert_eq!(shown(MAIN).await, json!([]));

    let left = Duration::from_secs(600);
    let mut leases = Stream::of_leases(pg, MAIN);
    assert_eq!(leases.take("run-b", start), Answer::Granted { lsn: start, left });
    // Above what is ingested.
    let ahead = start + 4096;
    assert_eq!(leases.take("run-a", ahead), Answer::Granted { lsn: ahead, left });
    assert_eq!(leases.take("run-b", ahead + 8), Answer::Granted { lsn: ahead + 8, left });
    let before = Lsn(start.0 - 8);
    let Answer::Refused { message } = leases.take("run-b", before) else { panic!("granted") };
    assert!(message.contains(&format!("{before} lies before the history")), "{message}");

    let found = shown(MAIN).await;
    let entry = |holder: &str, lsn: Lsn| (json!(holder), json!(lsn));
    let held: Vec<_> = found.as_array().expect("a list").iter().collect();
    assert_eq!(
        held.iter().map(|l| (l["holder"].clone(), l["lsn"].clone())).collect::<Vec<_>>(),
        [entry("run-a", ahead), entry("run-b", ahead + 8)]
    );
    assert!(held.iter().all(|l| (590..=600).contains(&l["seconds_left"].as_u64().expect("s"))));
    assert_eq!(shown(BRANCH).await, json!([]));
    assert_eq!(
        Stream::of_leases(pg, BRANCH).take("run-c", start),
        Answer::Granted { lsn: start, left }
    );
    let metrics = text(format!("{url}/metrics")).await;
    assert!(metrics.contains("treering_pageserver_lsn_leases 3"), "{metrics}");

    // They outlive the stream; a release does not wait.
    drop(leases);
    let mut leases = Stream::of_leases(pg, MAIN);
    assert_eq!(leases.ask(&Request::Release { holder: holder("run-a") }), Answer::Released);
    assert_eq!(leases.ask(&Request::Release { holder: holder("nobody") }), Answer::Released);
    let found = shown(MAIN).await;
    assert_eq!((found.as_array().map(Vec::len), &found[0]["holder"]), (Some(1), &json!("run-b")));
    service.cancel.cancel();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_below_the_cut_off_are_read_with_a_lease_only() {
    let folder = tempfile::tempdir().expect("folder");
    let engine = EngineOptions { gc_delay: Duration::ZERO, ..EngineOptions::default() };
    let (service, main) = support::service_with(folder.path(), engine).await;
    let (pg, _) = listen(&service).await;
    let timeline = &main.timeline;
    let start = timeline.start_lsn();
    let (leased, last) = (start + 64, start + 128);
    for lsn in [leased, last] {
        timeline.write(WriteBatch::new(lsn)).expect("written");
    }
    timeline.flush().expect("flushed");
    // pg_database.
    let rel = RelTag { tablespace: 1664, database: 0, relation: 1262, fork: Fork::Main };
    let mut pages = Stream::open(pg, &format!("pagestream_v3 {TENANT} {MAIN}"));
    let mut outcome = |lsn| match pages.page(rel, lsn) {
        pagestream::Answer::Page { page, .. } => Ok(page.len()),
        pagestream::Answer::Error { message } => Err(message),
        other => panic!("{other:?}"),
    };
    assert_eq!([start, leased, last].map(&mut outcome), [Ok(8192), Ok(8192), Ok(8192)]);

    timeline.set_leases([leased]).expect("leased");
    timeline.gc_below(last).expect("gc");
    let refused = outcome(start).expect_err("below the cut-off");
    assert!(refused.contains(&last.to_string()), "it names the earliest LSN: {refused}");
    assert_eq!([leased, last].map(&mut outcome), [Ok(8192), Ok(8192)]);
    timeline.set_leases([]).expect("released");
    assert!(outcome(leased).is_err());
    assert_eq!(outcome(last), Ok(8192));
    service.cancel.cancel();
}
