//! The other files of a data directory, against `pg_controldata` and against themselves.

use std::{collections::HashMap, fs, path::Path};

use treering_pgfmt::{
    checksum,
    control::{ClusterStatus, ControlFile},
    relmap::{self, RelMap},
    relpath, twophase,
    version::PgMajor,
    wal::record::Record,
};
use treering_stock::{Cluster, run};
use treering_types::{Lsn, PAGE_SIZE};

const MAJOR: PgMajor = PgMajor::V15;

/// All checks on a cluster that was shut down, whose log holds `records` and one prepared transaction.
pub fn check(cluster: &Cluster, records: &[Record]) {
    check_control(cluster, records);
    check_checksums(cluster);
    check_maps(cluster);
    check_two_phase(cluster, records);
}

pub fn control_of(cluster: &Cluster) -> ControlFile {
    ControlFile::parse(&fs::read(cluster.data().join("global/pg_control")).unwrap()).unwrap()
}

fn check_control(cluster: &Cluster, records: &[Record]) {
    let file = fs::read(cluster.data().join("global/pg_control")).unwrap();
    let control = ControlFile::parse(&file).unwrap();
    assert_eq!(file, control.encode()[..]);
    assert_eq!((control.major(), control.state()), (MAJOR, ClusterStatus::ShutDown));

    let text = run(cluster.command("pg_controldata").unwrap().arg(cluster.data())).unwrap();
    let facts: HashMap<&str, &str> = text
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name, value.trim()))
        .collect();
    let checkpoint = control.checkpoint();
    let parameters = control.parameters();
    let on_off = |flag: bool| if flag { "on" } else { "off" }.to_owned();
    let epoch_and_xid = format!("{}:{}", checkpoint.next_xid >> 32, checkpoint.next_xid as u32);
    let nonce: String = control.nonce().iter().map(|byte| format!("{byte:02x}")).collect();
    for (name, ours) in [
        ("Database system identifier", control.system_id().to_string()),
        ("Latest checkpoint location", control.checkpoint_start().to_string()),
        ("Latest checkpoint's REDO location", checkpoint.redo.to_string()),
        ("Latest checkpoint's REDO WAL file", checkpoint.redo.segment_file_name(1)),
        ("Latest checkpoint's TimeLineID", checkpoint.this_tli.to_string()),
        ("Latest checkpoint's PrevTimeLineID", checkpoint.prev_tli.to_string()),
        ("Latest checkpoint's full_page_writes", on_off(checkpoint.full_page_writes)),
        ("Latest checkpoint's NextXID", epoch_and_xid),
        ("Latest checkpoint's NextOID", checkpoint.next_oid.to_string()),
        ("Latest checkpoint's NextMultiXactId", checkpoint.next_multi.to_string()),
        ("Latest checkpoint's NextMultiOffset", checkpoint.next_multi_offset.to_string()),
        ("Latest checkpoint's oldestXID", checkpoint.oldest_xid.to_string()),
        ("Latest checkpoint's oldestXID's DB", checkpoint.oldest_xid_db.to_string()),
        ("Latest checkpoint's oldestActiveXID", checkpoint.oldest_active_xid.to_string()),
        ("Latest checkpoint's oldestMultiXid", checkpoint.oldest_multi.to_string()),
        ("Latest checkpoint's oldestMulti's DB", checkpoint.oldest_multi_db.to_string()),
        ("Latest checkpoint's oldestCommitTsXid", checkpoint.oldest_commit_ts_xid.to_string()),
        ("Latest checkpoint's newestCommitTsXid", checkpoint.newest_commit_ts_xid.to_string()),
        ("Fake LSN counter for unlogged rels", control.unlogged_lsn().to_string()),
        ("Minimum recovery ending location", control.min_recovery_point().0.to_string()),
        ("wal_log_hints setting", on_off(parameters.wal_log_hints)),
        ("max_connections setting", parameters.max_connections.to_string()),
        ("max_worker_processes setting", parameters.max_worker_processes.to_string()),
        ("max_wal_senders setting", parameters.max_wal_senders.to_string()),
        ("max_prepared_xacts setting", parameters.max_prepared_xacts.to_string()),
        ("max_locks_per_xact setting", parameters.max_locks_per_xact.to_string()),
        ("track_commit_timestamp setting", on_off(parameters.track_commit_timestamp)),
        ("Data page checksum version", control.data_checksum_version().to_string()),
        ("Mock authentication nonce", nonce),
    ] {
        assert_eq!(facts.get(name), Some(&ours.as_str()), "{name}");
    }
    // The shutdown checkpoint is the log's last record and its payload is in the file.
    let last = records.last().unwrap();
    assert_eq!(last.start, control.checkpoint_start());
    assert_eq!(last.main, control.checkpoint().encode());
    assert!(control.checkpoint().redo > Lsn(0));
}

/// Every file below `folder` as a path relative to `root`.
fn walk(root: &Path, folder: &Path, found: &mut Vec<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            walk(root, &path, found);
        } else {
            found.push(path.strip_prefix(root).unwrap().to_str().unwrap().to_owned());
        }
    }
}

fn check_checksums(cluster: &Cluster) {
    let mut paths = Vec::new();
    walk(&cluster.data(), &cluster.data(), &mut paths);
    let mut pages = 0;
    for path in paths {
        let Some((rel, segment_no)) = relpath::parse_path(MAJOR, &path) else { continue };
        assert_eq!(relpath::path_of(MAJOR, rel, segment_no), path);
        let bytes = fs::read(cluster.data().join(&path)).unwrap();
        let (chunks, rest) = bytes.as_chunks::<PAGE_SIZE>();
        assert!(rest.is_empty(), "{path}");
        for (index, page) in chunks.iter().enumerate() {
            let block = segment_no * relpath::SEGMENT_BLOCKS + index as u32;
            checksum::verify(page, block).unwrap_or_else(|error| panic!("{path}: {error}"));
            let mut again = *page;
            again[8..10].fill(0);
            checksum::set_checksum(&mut again, block);
            assert_eq!(again, *page, "{path} block {block}");
            pages += 1;
        }
    }
    assert!(pages > 2000, "{pages}");
}

fn check_maps(cluster: &Cluster) {
    let dirs = ["global".to_owned(), relpath::db_dir(MAJOR, relpath::DEFAULT_TABLESPACE, 5)];
    for dir in dirs {
        let bytes = fs::read(cluster.data().join(dir).join(relmap::FILE_NAME)).unwrap();
        let map = RelMap::parse(MAJOR, &bytes).unwrap();
        assert!(map.entries.len() > 10);
        assert_eq!(map.encode(MAJOR).unwrap(), bytes);
    }
}

fn check_two_phase(cluster: &Cluster, records: &[Record]) {
    let prepare = records.iter().find(|r| r.rmid == 1 && r.rmgr_info() & 0x70 == 0x10).unwrap();
    let name = twophase::file_name(MAJOR, u64::from(prepare.xid));
    let file = fs::read(cluster.data().join(twophase::DIRECTORY).join(name)).unwrap();
    assert_eq!(file, twophase::file_bytes(prepare.main));
    assert_eq!(twophase::main_data_of(&file), Some(prepare.main));
}
