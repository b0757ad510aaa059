//! The service between a real proposer's protocol and real Postgres 15 clients: WAL of a real cluster goes in through
//! the WAL port, comes out through the Postgres port with `pg_receivewal`, and lies on disk as segments that
//! `pg_waldump` reads. Needs Debian's `postgresql-15`; without it the test fails.

mod support;

use std::{fs, path::Path};

use support::*;
use treering_pgfmt::{version::PgMajor, wal::reader::find_first_record};
use treering_types::{Lsn, Term, TimelineId, WAL_SEGMENT_SIZE};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wal_of_a_real_cluster_through_the_service() {
    let folder = folder();
    let log = make_log(folder.path());
    assert!(log.end.segment_number() > log.start.segment_number());
    let data_dir = folder.path().join("safekeeper");
    let safekeeper = Safekeeper::start(&data_dir).await;

    let mut first = Writer::elect(&safekeeper, &log, 1).await;
    assert_eq!(first.proposer.elected().unwrap().start_lsn, log.start);
    // The receiver is there before the log, and follows it live.
    let received = folder.path().join("received");
    let end_text = last_byte(&log);
    let until_end = ["--endpos", &end_text[..]];
    let receiver = receivewal(&safekeeper, &received, &until_end, "standby");
    eventually("the receiver streams", async || has_partial(&received)).await;
    first.append(&log, log.middle).await;

    // A crash of the writer in the middle of a record: the next one takes over at the last record end.
    let half = Lsn(log.middle.0 + 11);
    let actions = first.proposer.append(log.middle, log.range(log.middle, half)).unwrap();
    first.carry_out(actions).await;
    let mut second = Writer::elect(&safekeeper, &log, 2).await;
    let election = second.proposer.elected().unwrap();
    assert_eq!(election.start_lsn, log.middle);
    assert_eq!((election.term, election.donor_last_log_term), (Term(2), Term(1)));
    second.append(&log, log.end).await;
    let actions = first.proposer.heartbeat();
    first.carry_out(actions).await;
    while first.proposer.fenced_by().is_none() {
        first.receive().await;
    }

    finish(receiver).await;
    assert!(received_bytes(&received, log.start, log.end) == log.bytes, "received bytes differ");
    let own = data_dir.join(TENANT.to_string()).join(TIMELINE.to_string());
    assert!(wal_bytes(&own, log.start, log.end) == log.bytes, "stored bytes differ");
    assert_eq!(waldump(&own, log.start, log.end), waldump(&log.wal, log.start, log.end));

    // Of the first segment nothing is stored in front of the log; readers are led to where it begins all the same.
    let file = fs::metadata(own.join(log.start.segment_file_name(1))).unwrap();
    let stored = std::os::unix::fs::MetadataExt::blocks(&file) * 512;
    let written = WAL_SEGMENT_SIZE - log.start.segment_offset();
    assert!(log.start.segment_offset() > 1 << 20 && stored <= written + (32 << 10), "{stored}");
    let head =
        format!("{}/wal?from={}&to={}", timeline_path(), log.start.segment_start(), log.start);
    let (status, bytes) = safekeeper.http("GET", &head).await;
    let mut padded = bytes;
    padded.resize(padded.len().next_multiple_of(8192), 0);
    let found = find_first_record(PgMajor::V15, log.start.segment_start(), &padded).unwrap();
    assert_eq!((status, found), (200, Some(log.start)));

    // A restart remembers everything; a third writer finds the log at its end.
    drop(second);
    safekeeper.stop().await;
    let safekeeper = Safekeeper::start(&data_dir).await;
    let third = Writer::elect(&safekeeper, &log, 3).await;
    let election = third.proposer.elected().unwrap();
    assert_eq!((election.start_lsn, election.donor_last_log_term), (log.end, Term(2)));

    check_http(&safekeeper, &log).await;
    check_trim(&safekeeper, &log, folder.path()).await;

    let (status, _) = safekeeper.http("DELETE", &timeline_path()).await;
    assert_eq!(status, 204);
    let (status, _) = safekeeper.http("GET", &timeline_path()).await;
    assert_eq!(status, 410);
    assert_eq!(fs::read_dir(&own).unwrap().count(), 1, "only the mark is left");
    safekeeper.stop().await;
}

async fn check_http(safekeeper: &Safekeeper, log: &Log) {
    let (status, body) = safekeeper.http("GET", "/v1/timelines").await;
    let list: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert_eq!((status, list.as_array().unwrap().len()), (200, 1));
    assert_eq!(list[0]["commit_lsn"], log.end.to_string());
    assert_eq!(list[0]["flush_lsn"], log.end.to_string());
    assert_eq!(list[0]["start_lsn"], log.start.to_string());
    assert_eq!((&list[0]["term"], &list[0]["last_log_term"]), (&3.into(), &3.into()));
    let wal = |from: Lsn, to: Lsn, more: &str| {
        format!("{}/wal?from={from}&to={to}{more}", timeline_path())
    };
    let (from, to) = (log.middle, Lsn(log.middle.0 + 5000));
    let (status, bytes) = safekeeper.http("GET", &wal(from, to, "&term=3")).await;
    assert_eq!((status, bytes), (200, log.range(from, to).to_vec()));
    let refusals = [
        (wal(from, to, "&term=2"), 409),
        (wal(from, Lsn(log.end.0 + 1), ""), 409),
        (wal(to, from, ""), 400),
        (wal(from, to, "&colour=red"), 400),
        ("/v1/tenant/x/timeline/y".to_owned(), 400),
        (format!("/v1/tenant/{TENANT}/timeline/{}", TimelineId([1; 16])), 404),
    ];
    for (path, expected) in refusals {
        let (status, body) = safekeeper.http("GET", &path).await;
        let problem: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(status, expected, "{path}: {problem}");
        assert!(problem["code"].is_string() && problem["message"].is_string());
    }
    let (_, metrics) = safekeeper.http("GET", "/metrics").await;
    let metrics = String::from_utf8(metrics).unwrap();
    let line = format!("treering_safekeeper_commit_lsn{{tenant_id=\"{TENANT}\"");
    assert!(metrics.contains(&line), "{metrics}");
    assert_eq!(safekeeper.http("GET", "/readyz").await.0, 200);
}

/// The pageserver's name moves the horizon, once it has made the WAL durable; nobody else's does.
async fn check_trim(safekeeper: &Safekeeper, log: &Log, folder: &Path) {
    let trim_lsn = async || {
        let (_, body) = safekeeper.http("GET", &timeline_path()).await;
        let info: serde_json::Value = serde_json::from_slice(&body).unwrap();
        info["trim_lsn"].as_str().unwrap().parse::<Lsn>().unwrap()
    };
    assert_eq!(trim_lsn().await, log.start);
    let end_text = last_byte(log);
    let args = ["--synchronous", "-S", "slot", "--endpos", &end_text];
    let into = folder.join("trimming");
    finish(receivewal(safekeeper, &into, &args, "treering_pageserver")).await;
    eventually("trimmed", async || trim_lsn().await == log.end.segment_start()).await;
    let path = format!("{}/wal?from={}&to={}", timeline_path(), log.start, Lsn(log.start.0 + 64));
    assert_eq!(safekeeper.http("GET", &path).await.0, 410);
}
