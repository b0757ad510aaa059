//! Stock Postgres 15 as the judge of our redo.
//!
//! A workload runs with `wal_consistency_checking=all`, so that nearly every record carries the page as it must
//! become. All WAL is then decoded and redone, and each page compared after each record. After the clean shutdown the
//! data files are the second judge: pages, visibility maps (which the WAL's images do not cover) and transaction
//! status must be what redo made of them. Some records are also applied with broken bytes: an error or a page, never a
//! panic. Postgres missing is a failure.

#[allow(dead_code)]
#[path = "postgres/cluster.rs"]
mod cluster;
#[path = "judge/files.rs"]
mod files;
#[path = "judge/mutants.rs"]
mod mutants;
#[path = "judge/names.rs"]
mod names;
#[path = "judge/report.rs"]
mod report;

use std::{
    fs,
    io::Write,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::Instant,
};

use treering_pgfmt::{
    control::ControlFile,
    judge::Judge,
    version::PgMajor,
    wal::{reader::WalDecoder, record::Record, state::ClusterState},
};
use treering_types::{Lsn, WAL_SEGMENT_SIZE};

use crate::{
    cluster::{Cluster, output_of},
    files::Files,
    mutants::Mutants,
};

const MAJOR: PgMajor = PgMajor::V15;
const SETTINGS: &str = "
wal_level=replica
wal_consistency_checking='all'
max_wal_size=20GB
checkpoint_timeout=1h
wal_keep_size=16GB
max_prepared_transactions=10
track_commit_timestamp=on
autovacuum=off
shared_buffers=256MB
synchronous_commit=off
";

/// The records that this workload must have had checked: (resource manager, info).
const MUST_BE_COMPARED: &[(u8, u8)] = &[
    // Heap
    (10, 0x00),
    (10, 0x80),
    (10, 0x10),
    (10, 0x20),
    (10, 0xa0),
    (10, 0x40),
    (10, 0x50),
    (10, 0x60),
    (10, 0x70),
    // Heap2
    (9, 0x10),
    (9, 0x20),
    (9, 0x30),
    (9, 0x40),
    (9, 0x50),
    (9, 0xd0),
    (9, 0x60),
    // Btree: all but REUSE_PAGE, which has no page
    (11, 0x00),
    (11, 0x10),
    (11, 0x20),
    (11, 0x30),
    (11, 0x40),
    (11, 0x50),
    (11, 0x60),
    (11, 0x70),
    (11, 0x80),
    (11, 0x90),
    (11, 0xa0),
    (11, 0xb0),
    (11, 0xc0),
    (11, 0xe0),
    // Gin: all but VACUUM_PAGE, which is only an image
    (13, 0x10),
    (13, 0x20),
    (13, 0x30),
    (13, 0x50),
    (13, 0x60),
    (13, 0x70),
    (13, 0x80),
    (13, 0x90),
    // Sequence, Generic
    (15, 0x00),
    (20, 0x00),
];

#[test]
fn redo_agrees_with_postgres() {
    let mut cluster = Cluster::create(SETTINGS);
    let before = cluster.data().with_file_name("before");
    let mut copy = Command::new("cp");
    output_of(copy.arg("-a").arg(cluster.data()).arg(&before));

    let began = Instant::now();
    cluster.start();
    run_workload(&cluster);
    cluster.stop("fast");
    let ran = began.elapsed();

    let control = fs::read(before.join("global/pg_control")).unwrap();
    let control = ControlFile::parse(&control).unwrap();
    let mut judge =
        Judge::new(MAJOR, ClusterState::from_control(&control), Files::new(MAJOR, &before));
    let mut mutants = Mutants::new(MAJOR);
    let began = Instant::now();
    let records = for_each_record(&cluster.wal_dir(), control.checkpoint_start(), |record| {
        judge.judge(record);
        mutants.try_some(&judge, record);
    });
    let judged = began.elapsed();

    let differing_files = files::compare(&judge, &Files::new(MAJOR, &cluster.data()), &control);
    println!("{} broken records applied, {} refused", mutants.tried, mutants.refused);
    report::print(&judge, records, ran, judged);
    report::check(&judge, &differing_files, MUST_BE_COMPARED);
}

fn run_workload(cluster: &Cluster) {
    cluster.write("locks.pgbench", include_bytes!("sql/locks.pgbench"));
    let locks = cluster.data().join("locks.pgbench").display().to_string();
    cluster.pgbench(&["-i", "-q", "-s", "1"]);
    cluster.sql("create table locked (id int primary key, v int)");
    cluster.sql("insert into locked select g, 0 from generate_series(1, 12) g");
    cluster.sql("create table contended (k int primary key)");
    thread::scope(|scope| {
        scope.spawn(|| psql(cluster, include_str!("sql/heap.sql")));
        scope.spawn(|| {
            cluster.pgbench(&["-n", "-c", "4", "-j", "1", "-T", "2"]);
            cluster.pgbench(&["-n", "-c", "5", "-j", "1", "-T", "2", "-f", &locks]);
        });
    });
    // Without full-page writes every change is redone from what redo made, right after a checkpoint too.
    cluster.sql("alter system set full_page_writes = off");
    cluster.sql("select pg_reload_conf()");
    cluster.sql("checkpoint");
    psql(cluster, include_str!("sql/after_checkpoint.sql"));
    psql(cluster, include_str!("sql/btree_gin.sql"));
}

/// Runs a script statement by statement; the first error fails the test.
fn psql(cluster: &Cluster, script: &str) {
    let socket_dir = cluster.data().with_file_name("");
    let mut command = cluster.command("psql");
    command.args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-h"]).arg(socket_dir);
    // A script that waits for itself fails instead of hanging.
    command.env("PGOPTIONS", "-c statement_timeout=60s");
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Every record of a cluster that was shut down, from a record's start on; answers with their number.
fn for_each_record(wal_dir: &Path, start: Lsn, mut take: impl FnMut(&Record)) -> u64 {
    let mut decoder = WalDecoder::new(MAJOR, start);
    let (mut at, mut count) = (start, 0);
    while let Ok(segment) = fs::read(wal_dir.join(at.segment_file_name(1))) {
        decoder.feed(&segment[at.segment_offset() as usize..]);
        at = at.segment_start() + WAL_SEGMENT_SIZE;
        loop {
            match decoder.next_record() {
                Ok(Some(raw)) => {
                    take(&Record::decode(MAJOR, &raw).unwrap());
                    count += 1;
                }
                Ok(None) => break,
                // The rest of the last segment is zeros or, being recycled, older WAL.
                Err(error) => {
                    println!("WAL ends at {}: {error}", decoder.position());
                    return count;
                }
            }
        }
    }
    count
}
