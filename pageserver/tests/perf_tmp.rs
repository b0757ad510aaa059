mod support;
use std::{sync::Arc, time::Instant};
use support::{backup, service, Server};
use treering_pageserver::ingest::apply::Applier;
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn perf() {
    let folder = tempfile::tempdir().unwrap();
    let (service, live) = service(folder.path()).await;
    let (archive, start) = backup(&service, &live, live.timeline.last_record_lsn()).await;
    let parent = Server::start(&archive, &start, &["shared_buffers=256MB","max_wal_size=10GB"]);
    let t = Instant::now();
    parent.pgbench(&["-i", "-s", "10", "-q"]);
    parent.pgbench(&["-c", "4", "-t", "10000"]);
    println!("pgbench {:?}", t.elapsed());
    let mut applier = Applier::open(Arc::clone(&live.timeline)).unwrap();
    let (from, to) = (applier.fed_to(), parent.insert_lsn());
    let wal = parent.wal(1, from, to);
    let t = Instant::now();
    let mut at = from;
    for piece in wal.chunks(1 << 20) {
        applier.feed(at, piece).unwrap();
        applier.apply().unwrap();
        at = at + piece.len() as u64;
    }
    let s = t.elapsed().as_secs_f64();
    println!("ingest {} MB in {s:.2}s = {:.0} MB/s", wal.len() >> 20, wal.len() as f64 / 1e6 / s);
    for _ in 0..3 {
        let t = Instant::now();
        let (archive, _) = backup(&service, &live, live.timeline.last_record_lsn()).await;
        println!("backup {} MB in {:?}", archive.len() >> 20, t.elapsed());
    }
    let t = Instant::now();
    live.timeline.flush().unwrap();
    println!("flush {:?}", t.elapsed());
    for _ in 0..2 {
        let t = Instant::now();
        let (archive, _) = backup(&service, &live, live.timeline.last_record_lsn()).await;
        println!("backup {} MB in {:?}", archive.len() >> 20, t.elapsed());
    }
    println!("{:?}", live.timeline.info());
}
