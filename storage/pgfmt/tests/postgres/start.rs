//! Stock Postgres starts without recovery from a checkpoint record of ours, wherever in the log it stands.

use std::fs;

use treering_pgfmt::{
    control::{CheckPoint, ControlFile},
    version::PgMajor,
    wal::encode::{
        Origin, SyntheticCheckpoint, blank_segment_head, record_start_after, synthetic_checkpoint,
    },
};
use treering_stock::{Cluster, Postgres};
use treering_types::{Lsn, WAL_SEGMENT_SIZE};

use crate::{files::control_of, wal::read_log};

/// Forgets the log, and makes the cluster begin at the fork `at` with a checkpoint of ours.
fn fork(cluster: &Cluster, at: Lsn, tli: u32) -> Lsn {
    let mut control: ControlFile = control_of(cluster);
    let old = control.checkpoint();
    let checkpoint = CheckPoint {
        redo: record_start_after(at),
        this_tli: tli,
        prev_tli: old.this_tli,
        oldest_active_xid: 0,
        ..old
    };
    let system_id = control.system_id();
    let checkpoint = checkpoint.encode();
    let what = SyntheticCheckpoint { at, prev: Lsn(at.0 - 56), tli, system_id, checkpoint };
    let wal = synthetic_checkpoint(PgMajor::V15, &what);
    assert_eq!(wal.checkpoint, checkpoint);

    for entry in fs::read_dir(cluster.wal_dir()).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            fs::remove_file(path).unwrap();
        }
    }
    if tli > old.this_tli {
        let line = format!("{}\t{at}\tfork\n", old.this_tli);
        cluster.write(&format!("pg_wal/{tli:08X}.history"), line.as_bytes()).unwrap();
    }
    let origin = Origin { major: PgMajor::V15, tli, system_id };
    let mut bytes = blank_segment_head(&origin, at);
    bytes.extend_from_slice(&wal.bytes);
    for (index, segment) in bytes.chunks(WAL_SEGMENT_SIZE as usize).enumerate() {
        let name = (at.segment_start() + index as u64 * WAL_SEGMENT_SIZE).segment_file_name(tli);
        let mut segment = segment.to_vec();
        segment.resize(WAL_SEGMENT_SIZE as usize, 0);
        cluster.write(&format!("pg_wal/{name}"), &segment).unwrap();
    }
    control.shut_down_at(wal.record_start, &wal.checkpoint, old.time);
    cluster.write("global/pg_control", &control.encode()[..]).unwrap();
    wal.record_start
}

#[test]
fn the_server_starts_from_a_synthetic_checkpoint_anywhere() {
    let mut cluster = Cluster::create(
        &Postgres::find(15).unwrap(),
        "max_wal_size=1GB\nwal_keep_size=1GB\nautovacuum=off",
    )
    .unwrap();
    cluster.start().unwrap();
    cluster.sql("create table t(i int)").unwrap();
    cluster.stop("fast").unwrap();
    let segment = 0x1000_0000_u64;
    let size = WAL_SEGMENT_SIZE;
    let positions = [
        (0x8A_3790, 1, "mid page"),
        (2 * size + 0x8A_4000, 1, "page start"),
        (4 * size, 1, "segment start"),
        (6 * size + 0x8A_3FC0, 1, "64 bytes before a page end"),
        (8 * size + 0x8A_3FF8, 1, "8 bytes before a page end"),
        (10 * size + 0x8A_3F80, 1, "128 bytes before a page end"),
        (12 * size - 64, 1, "64 bytes before a segment end"),
        (14 * size - 8, 2, "8 bytes before a segment end, new timeline"),
        (0x7_0000_0000, 3, "far jump to a segment start, new timeline"),
    ];
    for (rows, (offset, tli, what)) in positions.into_iter().enumerate() {
        let at = Lsn(segment + offset);
        let start = fork(&cluster, at, tli);
        cluster.start().unwrap();
        let log = cluster.log();
        assert!(log.contains("database system was shut down at"), "{what}: {log}");
        for bad in ["redo", "recovery", "WARNING", "ERROR", "PANIC"] {
            assert!(!log.contains(bad), "{what}: {log}");
        }
        assert_eq!(cluster.sql("select count(*) from t").unwrap(), rows.to_string(), "{what}");
        cluster.sql("insert into t values (1)").unwrap();
        if rows % 3 == 0 {
            // Ordinary crash recovery runs over our record too.
            cluster.stop("immediate").unwrap();
            cluster.start().unwrap();
            assert!(cluster.log().contains("redo starts at"), "{what}: {}", cluster.log());
        }
        cluster.stop("fast").unwrap();
        // Our record and what the server wrote behind it read as one log.
        let (records, end) = read_log(&cluster, Some(at));
        assert_eq!(records[0].start, start, "{what}");
        assert!(records.len() > 2, "{what}");
        assert_eq!(records.last().unwrap().start, control_of(&cluster).checkpoint_start());
        assert_eq!(records.last().unwrap().end, end);
    }
}
