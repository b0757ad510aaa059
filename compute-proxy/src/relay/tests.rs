//! The relay between a TCP client and a fake backend on a unix socket pair.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{net::TcpListener, sync::watch, task::JoinHandle, time::timeout};
use treering_types::Lsn;
use treering_wire::{
    backend::{Report, Severity, Writer, field, sqlstate},
    startup::CancelKey,
};

use super::*;
use crate::wake::BoxFuture;

/// A gate that the test opens.
struct FakeGate {
    commit: watch::Sender<Lsn>,
    flush: Lsn,
    asked: AtomicUsize,
    logged: AtomicBool,
    broken: AtomicBool,
}

impl FakeGate {
    fn new() -> Arc<FakeGate> {
        Arc::new(FakeGate {
            commit: watch::channel(Lsn(50)).0,
            flush: Lsn(100),
            asked: AtomicUsize::new(0),
            logged: AtomicBool::new(false),
            broken: AtomicBool::new(false),
        })
    }
}

impl CommitGate for FakeGate {
    fn commit_lsn(&self) -> Lsn {
        *self.commit.borrow()
    }

    fn flush_lsn(&self) -> BoxFuture<'_, Result<Lsn, GateError>> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        Box::pin(async {
            match self.broken.load(Ordering::SeqCst) {
                true => Err(GateError("gone".into())),
                false => Ok(self.flush),
            }
        })
    }

    fn wait_for(&self, lsn: Lsn) -> BoxFuture<'_, Result<(), GateError>> {
        let mut commit = self.commit.subscribe();
        Box::pin(async move {
            let covered = commit.wait_for(|commit| *commit >= lsn).await;
            covered.map(|_| ()).map_err(|error| GateError(error.to_string()))
        })
    }

    fn drained_cancelled_waits(&self, _: i32) -> bool {
        self.logged.swap(false, Ordering::SeqCst)
    }
}

struct Fixture {
    client: TcpStream,
    backend: UnixStream,
    gate: Arc<FakeGate>,
    relay: JoinHandle<Result<(), RelayError>>,
}

async fn fixture() -> Fixture {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (mut accepted, _) = listener.accept().await.unwrap();
    let (backend, mut compute) = UnixStream::pair().unwrap();
    let gate = FakeGate::new();
    let gate_of_relay = gate.clone();
    let relay =
        tokio::spawn(async move { run(&mut accepted, &mut compute, &*gate_of_relay).await });
    Fixture { client, backend, gate, relay }
}

fn bytes(build: impl FnOnce(&mut Writer)) -> Vec<u8> {
    let mut out = Writer::new();
    build(&mut out);
    out.take().to_vec()
}

fn login() -> Vec<u8> {
    let key = CancelKey { pid: 9, secret: bytes::Bytes::from_static(b"abcd") };
    bytes(|out| out.session_start("15.18", &key))
}

fn cancelled_wait() -> Vec<u8> {
    let report = Report::new(Severity::Warning, sqlstate::WARNING, "x")
        .with(field::ROUTINE, "SyncRepWaitForLSN");
    bytes(|out| out.notice(&report))
}

fn commit() -> Vec<u8> {
    bytes(|out| {
        out.command_complete("COMMIT");
        out.ready_for_query();
    })
}

async fn expect(client: &mut TcpStream, wanted: &[u8]) {
    let mut got = vec![0; wanted.len()];
    timeout(Duration::from_secs(10), client.read_exact(&mut got)).await.unwrap().unwrap();
    assert_eq!(got, wanted);
}

/// Nothing comes for as long as it takes the relay to have asked the gate, and a little more.
async fn expect_silence(fixture: &mut Fixture, gate_asked: usize) {
    let asked = async {
        while fixture.gate.asked.load(Ordering::SeqCst) < gate_asked {
            tokio::task::yield_now().await;
        }
    };
    timeout(Duration::from_secs(10), asked).await.unwrap();
    let mut byte = [0; 1];
    let read = timeout(Duration::from_millis(30), fixture.client.read(&mut byte)).await;
    assert!(read.is_err(), "the answer must be held");
}

#[tokio::test]
async fn an_answer_is_held_until_the_quorum_covers_it() {
    let mut f = fixture().await;
    f.backend.write_all(&login()).await.unwrap();
    expect(&mut f.client, &login()).await;
    // The notice itself goes through, in one piece or in two.
    let (notice, done) = (cancelled_wait(), commit());
    f.backend.write_all(&notice[..7]).await.unwrap();
    f.backend.write_all(&[&notice[7..], &done].concat()).await.unwrap();
    expect(&mut f.client, &notice).await;
    expect_silence(&mut f, 1).await;
    f.gate.commit.send_replace(Lsn(99));
    expect_silence(&mut f, 1).await;
    f.gate.commit.send_replace(Lsn(100));
    expect(&mut f.client, &done).await;
    // The next one is not held.
    f.backend.write_all(&done).await.unwrap();
    expect(&mut f.client, &done).await;
    assert_eq!(f.gate.asked.load(Ordering::SeqCst), 1);
    drop(f.backend);
    assert_eq!(f.client.read(&mut [0; 1]).await.unwrap(), 0);
    f.relay.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_warning_seen_only_in_the_log_holds_too() {
    let mut f = fixture().await;
    f.backend.write_all(&login()).await.unwrap();
    expect(&mut f.client, &login()).await;
    f.gate.logged.store(true, Ordering::SeqCst);
    f.backend.write_all(&commit()).await.unwrap();
    expect_silence(&mut f, 1).await;
    f.gate.commit.send_replace(Lsn(200));
    expect(&mut f.client, &commit()).await;
}

#[tokio::test]
async fn without_the_gate_the_client_is_dropped() {
    let mut f = fixture().await;
    f.gate.broken.store(true, Ordering::SeqCst);
    f.backend.write_all(&[login(), cancelled_wait(), commit()].concat()).await.unwrap();
    assert!(matches!(f.relay.await.unwrap(), Err(RelayError::Gate(_))));
    let mut got = Vec::new();
    let _ = f.client.read_to_end(&mut got).await;
    assert!([login(), cancelled_wait()].concat().starts_with(&got), "nothing after the notice");
    // The backend is told.
    assert_eq!(f.backend.read(&mut [0; 1]).await.unwrap_or(0), 0);
}

#[tokio::test]
async fn a_half_closed_client_still_gets_its_answer() {
    let mut f = fixture().await;
    f.client.write_all(b"question").await.unwrap();
    f.client.shutdown().await.unwrap();
    let mut question = Vec::new();
    f.backend.read_to_end(&mut question).await.unwrap();
    assert_eq!(question, b"question");
    f.backend.write_all(&login()).await.unwrap();
    drop(f.backend);
    let mut got = Vec::new();
    f.client.read_to_end(&mut got).await.unwrap();
    assert_eq!(got, login());
    f.relay.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_slow_client_slows_the_backend() {
    let mut f = fixture().await;
    let row = bytes(|out| out.data_row(&[Some(vec![7u8; 100_000])]));
    let mut written = 0;
    // Kernel buffers and ours fill, then the backend must wait.
    while let Ok(sent) = timeout(Duration::from_millis(200), f.backend.write(&row)).await {
        written += sent.unwrap();
        assert!(written < 64 << 20, "nothing bounds what the relay takes");
    }
    let mut drained = vec![0; written];
    f.client.read_exact(&mut drained).await.unwrap();
}

#[tokio::test]
async fn a_compute_that_talks_nonsense_is_cut_off() {
    let mut f = fixture().await;
    f.backend.write_all(b"C\0\0\0\x01").await.unwrap();
    assert!(matches!(f.relay.await.unwrap(), Err(RelayError::Wire(_))));
    assert_eq!(f.client.read(&mut [0; 1]).await.unwrap_or(0), 0);
}
