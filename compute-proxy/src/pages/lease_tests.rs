use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use tokio::{net::TcpListener, sync::mpsc};
use treering_wire::{
    backend::Writer,
    frontend,
    startup::{self, CancelKey, StartupPacket},
};

use super::*;

/// For what must come.
const LIMIT: Duration = Duration::from_secs(20);

#[test]
fn a_third_of_the_time_and_one_warning() {
    let (mut term, began) = (Term::default(), Instant::now());
    let after = |seconds| began + Duration::from_secs(seconds);
    assert_eq!(term.granted(began, Duration::from_secs(600)), Duration::from_secs(200));
    let pauses: Vec<_> = (200..208).map(|second| term.failed(after(second))).collect();
    assert!(pauses.iter().all(|failed| !failed.has_run_out));
    let pauses: Vec<_> = pauses.iter().map(|failed| failed.pause.as_millis()).collect();
    assert_eq!(pauses, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
    assert!(!term.failed(after(599)).has_run_out && !term.had_run_out());
    assert!(term.failed(after(600)).has_run_out && term.had_run_out());
    assert!(!term.failed(after(601)).has_run_out);
    term.granted(after(700), Duration::from_secs(600));
    assert!(!term.had_run_out());
    assert_eq!(term.failed(after(900)), Failed { pause: PAUSE_MIN, has_run_out: false });
    assert!(term.failed(after(1300)).has_run_out);
    // One that was never had is missed at once; lengths that make no sense are bounded.
    assert!(Term::default().failed(began).has_run_out);
    assert_eq!(term.granted(began, Duration::ZERO), PAUSE_MIN);
    assert_eq!(term.granted(began, Duration::MAX), LEFT_MAX / 3);
}

/// A pageserver that grants leases of `left`, tells of each request, and breaks every stream after so many.
async fn pageserver(
    left: Duration,
    requests_a_stream: usize,
) -> (String, mpsc::UnboundedReceiver<Request>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (heard, requests) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let heard = heard.clone();
            tokio::spawn(async move { serve(stream, left, requests_a_stream, &heard).await });
        }
    });
    (address, requests)
}

async fn serve(
    mut stream: TcpStream,
    left: Duration,
    requests: usize,
    heard: &mpsc::UnboundedSender<Request>,
) -> std::io::Result<()> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let (mut input, mut out) = (BytesMut::new(), Writer::new());
    while !matches!(startup::parse(&mut input).unwrap(), Some(StartupPacket::Startup(_))) {
        stream.read_buf(&mut input).await?;
    }
    out.session_start("15.0", &CancelKey { pid: 0, secret: Bytes::from_static(&[0; 4]) });
    stream.write_all_buf(out.buffer_mut()).await?;
    let mut answered = 0;
    while answered < requests {
        let Some(frame) = next_frame(&mut input, BODY_BYTES_MAX).unwrap() else {
            if stream.read_buf(&mut input).await? == 0 {
                return Ok(());
            }
            continue;
        };
        match frontend::Message::parse(frame).unwrap() {
            frontend::Message::Query(query) => {
                assert_eq!(query, "lsn_lease_v1 t l");
                out.copy_both_response();
            }
            frontend::Message::CopyData(payload) => {
                let request = Request::parse(payload).unwrap();
                let answer = match &request {
                    Request::Take { lsn: Lsn(0), .. } => Answer::Refused { message: "no".into() },
                    Request::Take { lsn, .. } => Answer::Granted { lsn: *lsn, left },
                    Request::Release { .. } => Answer::Released,
                };
                let _ = heard.send(request);
                out.copy_data_with(|body| answer.encode(body));
                answered += 1;
            }
            other => panic!("{other:?}"),
        }
        stream.write_all_buf(out.buffer_mut()).await?;
    }
    Ok(())
}

fn lease(address: String, at: &Arc<AtomicU64>) -> Lease {
    let holder = Holder::new("run-1").unwrap();
    let at = Arc::clone(at);
    let source = LeaseSource { address, query: "lsn_lease_v1 t l".to_owned(), holder };
    Lease::keep(source, move || Lsn(at.load(Ordering::Relaxed)))
}

async fn next(requests: &mut mpsc::UnboundedReceiver<Request>) -> Option<Lsn> {
    let request = timeout(LIMIT, requests.recv()).await.expect("in time").expect("a request");
    match request {
        Request::Take { holder, lsn } => {
            assert_eq!(holder.as_str(), "run-1");
            Some(lsn)
        }
        Request::Release { .. } => None,
    }
}

async fn next_at(requests: &mut mpsc::UnboundedReceiver<Request>, lsn: Lsn) {
    while next(requests).await.expect("it is not released") != lsn {}
}

#[tokio::test]
async fn it_is_renewed_moves_and_is_released() {
    let (address, mut requests) = pageserver(Duration::from_millis(300), usize::MAX).await;
    let at = Arc::new(AtomicU64::new(8));
    let lease = lease(address, &at);
    lease.granted().await.unwrap();
    assert_eq!(next(&mut requests).await, Some(Lsn(8)));
    assert_eq!(next(&mut requests).await, Some(Lsn(8)));
    at.store(16, Ordering::Relaxed);
    next_at(&mut requests, Lsn(16)).await;
    timeout(LIMIT, lease.release()).await.expect("in time");
    while next(&mut requests).await.is_some() {}
    assert!(requests.try_recv().is_err(), "nothing after the release");
}

#[tokio::test]
async fn a_stream_that_breaks_is_made_anew_at_once() {
    // Renewed by the clock it would be in five minutes.
    let (address, mut requests) = pageserver(Duration::from_secs(900), 1).await;
    let lease = lease(address, &Arc::new(AtomicU64::new(8)));
    for _ in 0..3 {
        assert_eq!(next(&mut requests).await, Some(Lsn(8)));
    }
    // However its owner ended.
    drop(lease);
    while next(&mut requests).await.is_some() {}
}

#[tokio::test]
async fn a_refusal_is_told_at_once() {
    let (address, _requests) = pageserver(Duration::from_secs(900), usize::MAX).await;
    let lease = lease(address, &Arc::new(AtomicU64::new(0)));
    let error = timeout(FIRST_LIMIT / 2, lease.granted()).await.expect("at once").unwrap_err();
    assert_eq!(error.message, "no LSN lease: the pageserver refuses: no");
}

#[tokio::test]
async fn without_a_pageserver_nobody_waits_for_the_release() {
    let lease = lease("127.0.0.1:1".to_owned(), &Arc::new(AtomicU64::new(8)));
    timeout(LIMIT, lease.release()).await.expect("in time");
}
