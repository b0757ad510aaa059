//! The log of a real cluster in the archive: a member that sleeps holds none of it, readers do not notice, writers go on
//! behind it, and a deletion leaves nothing anywhere. Needs Debian's `postgresql-15`; without it the test fails.

mod support;

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use support::*;
use treering_safekeeper::archive::ArchiveOptions;
use treering_types::Lsn;

fn options(store: &Path) -> ArchiveOptions {
    let store = store.display().to_string().parse().unwrap();
    ArchiveOptions { store, delay: Duration::from_secs(1), keep: 1 << 30 }
}

async fn info(safekeeper: &Safekeeper) -> serde_json::Value {
    let (status, body) = safekeeper.http("GET", &timeline_path()).await;
    assert_eq!(status, 200);
    serde_json::from_slice(&body).unwrap()
}

/// Segments that the member holds itself.
fn segments(own: &Path) -> usize {
    let names = fs::read_dir(own).unwrap().map(|entry| entry.unwrap().file_name());
    names.filter(|name| name.len() == 24).count()
}

/// Files below a folder that are no folders.
fn objects(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let paths = entries.map(|entry| entry.unwrap().path());
    paths.flat_map(|path| if path.is_dir() { objects(&path) } else { vec![path] }).collect()
}

/// Somebody who calls himself the pageserver has made all of the log durable, up to `to`.
async fn pageserver_has(safekeeper: &Safekeeper, folder: &Path, to: Lsn) {
    let into = folder.join(format!("pageserver-{:x}", to.0));
    let args = ["--synchronous", "-S", "slot"];
    let mut receiver = receivewal(safekeeper, &into, &args, "treering_pageserver");
    let to = to.to_string();
    eventually("reported", async || info(safekeeper).await["remote_consistent_lsn"] == to).await;
    receiver.kill().unwrap();
    receiver.wait().unwrap();
}

async fn asleep(safekeeper: &Safekeeper, own: &Path, at: Lsn) {
    let at = at.to_string();
    eventually("the log is elsewhere", async || info(safekeeper).await["trim_lsn"] == at).await;
    assert_eq!(info(safekeeper).await["archived_lsn"], at);
    assert_eq!(segments(own), 0);
}

async fn check_all_of_it(safekeeper: &Safekeeper, log: &Log, to: Lsn) {
    let mut at = log.start;
    while at < to {
        let next = (at + (1 << 20)).min(to);
        let (status, bytes) =
            safekeeper.http("GET", &format!("{}/wal?from={at}&to={next}", timeline_path())).await;
        assert_eq!(status, 200, "{at}: {}", String::from_utf8_lossy(&bytes));
        assert!(bytes == log.range(at, next), "bytes from {at} on differ");
        at = next;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sleeping_log_is_in_the_archive_alone_and_goes_on_from_there() {
    let folder = folder();
    let log = make_log(folder.path());
    let (data_dir, store) = (folder.path().join("safekeeper"), folder.path().join("objects"));
    let own = data_dir.join(TENANT.to_string()).join(TIMELINE.to_string());
    let safekeeper = Safekeeper::start_with(&data_dir, options(&store)).await;

    let mut writer = Writer::elect(&safekeeper, &log, 1).await;
    writer.append(&log, log.middle).await;
    let archived = log.middle.to_string();
    eventually("archived", async || info(&safekeeper).await["archived_lsn"] == archived).await;
    pageserver_has(&safekeeper, folder.path(), log.middle).await;
    let trim_lsn: Lsn = info(&safekeeper).await["trim_lsn"].as_str().unwrap().parse().unwrap();
    assert!(trim_lsn <= log.middle.segment_start().max(log.start), "the writer is still there");
    drop(writer);
    asleep(&safekeeper, &own, log.middle).await;
    let (_, status) = safekeeper.http("GET", "/v1/status").await;
    let status: serde_json::Value = serde_json::from_slice(&status).unwrap();
    assert_eq!(status["disk"]["used_bytes"], 0, "{status}");
    check_all_of_it(&safekeeper, &log, log.middle).await;

    // A restart knows where the log goes on, and so does a writer, in the middle of a segment.
    safekeeper.stop().await;
    let safekeeper = Safekeeper::start_with(&data_dir, options(&store)).await;
    check_all_of_it(&safekeeper, &log, log.middle).await;
    let mut writer = Writer::elect(&safekeeper, &log, 2).await;
    assert_eq!(writer.proposer.elected().unwrap().start_lsn, log.middle);
    writer.append(&log, log.end).await;
    check_all_of_it(&safekeeper, &log, log.end).await;
    drop(writer);
    pageserver_has(&safekeeper, folder.path(), log.end).await;
    asleep(&safekeeper, &own, log.end).await;

    // A stock receiver reads everything, as if it lay here.
    let received = folder.path().join("received");
    let end_text = last_byte(&log);
    fs::create_dir_all(&received).unwrap();
    // It goes on with what it has begun, be that nothing yet.
    let begun = received.join(format!("{}.partial", log.start.segment_file_name(1)));
    fs::File::create(&begun).unwrap();
    let anybody = std::os::unix::fs::PermissionsExt::from_mode(0o666);
    fs::set_permissions(&begun, anybody).unwrap();
    finish(receivewal(&safekeeper, &received, &["--endpos", &end_text], "standby")).await;
    assert!(received_bytes(&received, log.start, log.end) == log.bytes, "received bytes differ");
    let whole = objects(&store).iter().filter(|path| path.extension().unwrap() == "wal").count();
    assert_eq!(whole as u64, log.end.segment_number() - log.start.segment_number());
    eventually("nothing more", async || objects(&store).len() == whole + 1).await;

    // Without an archive nothing is made up for what is not here.
    safekeeper.stop().await;
    let safekeeper = Safekeeper::start(&data_dir).await;
    let path = format!("{}/wal?from={}&to={}", timeline_path(), log.middle, log.end);
    assert_eq!(safekeeper.http("GET", &path).await.0, 410);
    safekeeper.stop().await;
    let safekeeper = Safekeeper::start_with(&data_dir, options(&store)).await;

    assert_eq!(safekeeper.http("DELETE", &timeline_path()).await.0, 204);
    eventually("the archive is empty", async || objects(&store).is_empty()).await;
    let mark = own.join("deleted");
    eventually("the mark says so", async || fs::read(&mark).unwrap().is_empty()).await;
    assert_eq!(fs::read_dir(&own).unwrap().count(), 1);
    safekeeper.stop().await;
}

/// Members that have nothing in common but the store: the second finds what the first has put, and puts nothing twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_was_away_finds_what_another_one_has_archived() {
    let folder = folder();
    let log = make_log(folder.path());
    let store = folder.path().join("objects");
    let first = Safekeeper::start_with(&folder.path().join("a"), options(&store)).await;
    let mut writer = Writer::elect(&first, &log, 1).await;
    writer.append(&log, log.end).await;
    let archived = log.end.to_string();
    eventually("archived", async || info(&first).await["archived_lsn"] == archived).await;
    drop(writer);
    first.stop().await;
    let before = objects(&store);

    let data_dir = folder.path().join("b");
    let second = Safekeeper::start_with(&data_dir, options(&store)).await;
    let mut writer = Writer::elect(&second, &log, 2).await;
    writer.append(&log, log.end).await;
    eventually("found", async || info(&second).await["archived_lsn"] == archived).await;
    let (_, metrics) = second.http("GET", "/metrics").await;
    let metrics = String::from_utf8(metrics).unwrap();
    assert!(metrics.contains("treering_safekeeper_archive_put_objects_total 0"), "{metrics}");
    assert!(objects(&store).iter().all(|object| before.contains(object)));
    drop(writer);
    pageserver_has(&second, folder.path(), log.end).await;
    let own = data_dir.join(TENANT.to_string()).join(TIMELINE.to_string());
    asleep(&second, &own, log.end).await;
    check_all_of_it(&second, &log, log.end).await;
    second.stop().await;
}

/// Whoever writes faster than the pageserver reads is slowed down, and goes on at full speed once that has caught up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pageserver_that_lags_slows_writers_down() {
    const MIB: u64 = 1 << 20;
    let folder = folder();
    let log = make_log(folder.path());
    let options = Safekeeper::options(&folder.path().join("a"));
    let options = treering_safekeeper::SafekeeperOptions { lag_limit: 4 * MIB, ..options };
    let safekeeper = Safekeeper::run(options).await;
    let at = |from: Lsn, bytes: u64| {
        log.ends.iter().copied().find(|end| end.0 >= from.0 + bytes).expect("a longer log")
    };
    let mut writer = Writer::elect(&safekeeper, &log, 1).await;
    // Nobody has told how far the pageserver is.
    let first = at(log.start, 6 * MIB);
    let begin = Instant::now();
    writer.append(&log, first).await;
    let unthrottled = begin.elapsed();
    pageserver_has(&safekeeper, folder.path(), first).await;
    let begin = Instant::now();
    let second = at(first, 10 * MIB);
    writer.append(&log, second).await;
    // The last two MiB come in at 1 MiB/s.
    assert!(begin.elapsed() > Duration::from_secs(1), "in {:?}", begin.elapsed());
    pageserver_has(&safekeeper, folder.path(), second).await;
    let begin = Instant::now();
    writer.append(&log, at(second, 3 * MIB)).await;
    assert!(begin.elapsed() < Duration::from_secs(2) + unthrottled, "in {:?}", begin.elapsed());
    safekeeper.stop().await;
}
