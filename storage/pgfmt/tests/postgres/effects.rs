//! Everything beside heap and index pages, against what stock Postgres left on disk: the effects of a cluster's
//! whole log on the directory that initdb made must give the directory after a clean stop.

use std::{collections::BTreeSet, fs::File, path::Path};

use treering_pgfmt::{
    control::CheckPoint,
    redo::slru::{COMMIT_TIMES_PER_PAGE, PAGES_PER_SEGMENT},
    wal::{record::Record, state::ClusterState},
};
use treering_types::{Fork, Lsn, RelTag, SlruKind};

use crate::{
    cluster::{Cluster, output_of},
    files::control_of,
    model::{MAJOR, Model},
    wal::read_log,
};

const SETTINGS: &str = "
max_prepared_transactions=10
track_commit_timestamp=on
allow_in_place_tablespaces=on
autovacuum=off
checkpoint_timeout=1h
max_wal_size=10GB
wal_keep_size=10GB
";

/// Share locks of parallel sessions on few rows make multixacts of several transactions.
const SHARERS: &str = "
\\set id random(7001, 7005)
BEGIN;
SELECT n FROM t WHERE id = :id FOR SHARE;
INSERT INTO other VALUES (:id, 'shared');
SELECT n FROM t WHERE id = 7006 FOR KEY SHARE;
COMMIT;
";

fn run_script(cluster: &Cluster, name: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sql").join(name);
    let mut psql = cluster.client("psql");
    psql.args(["-X", "-q", "-v", "ON_ERROR_STOP=1"]).stdin(File::open(path).unwrap());
    output_of(&mut psql);
}

#[test]
fn effects_of_the_log_are_what_postgres_left_on_disk() {
    let mut cluster = Cluster::create(SETTINGS);
    let mut model = Model::read(&cluster.data());
    let from = control_of(&cluster).checkpoint_start();

    cluster.start();
    run_script(&cluster, "effects.sql");
    cluster.write("sharers.sql", SHARERS.as_bytes());
    let script = cluster.data().join("sharers.sql");
    let script = script.to_str().unwrap();
    cluster.pgbench(&["-n", "-c", "4", "-j", "2", "-t", "250", "-f", script, "postgres"]);
    run_script(&cluster, "effects_end.sql");
    cluster.stop("fast");

    let (log, _) = read_log(&cluster, Some(from));
    let (last, before_last) = log.split_last().unwrap();
    for raw in &before_last[1..] {
        model.apply(&Record::decode(MAJOR, raw).unwrap());
    }
    let last = Record::decode(MAJOR, last).unwrap();
    check_state_before_shutdown(&model.state, &last);
    model.apply(&last);

    let disk = Model::read(&cluster.data());
    assert_eq!(model.state, disk.state, "pg_control");
    check_slrus(&model, &disk);
    check_relations(&model, &disk);
    check_visibility_maps(&model, &disk);
    assert_eq!(model.maps, disk.maps, "relation maps");
    assert_eq!(model.databases, disk.databases, "databases");
    assert_eq!(model.two_phase, disk.two_phase, "two-phase files");
    assert_eq!(disk.two_phase.len(), 1);
    assert_eq!(model.origins, disk.origins, "replication origins");
    assert_eq!(disk.origins.len(), 2);
    assert_eq!(model.tablespaces.len(), 1);
    assert!(model.unhandled.is_empty(), "{:?}", model.unhandled);
    assert!(model.ends.iter().any(|(_, committed)| !committed) && model.ends.len() > 1000);
}

/// A shutdown checkpoint carries the counters exactly: we must have known them before reading it.
fn check_state_before_shutdown(state: &ClusterState, shutdown: &Record) {
    let theirs = CheckPoint::decode(MAJOR, &shutdown.main).unwrap();
    let (tli, time) = (theirs.this_tli, theirs.time);
    let ours = state.checkpoint_for_start(tli, theirs.prev_tli, Lsn(shutdown.start.0), time);
    // Oids are logged 8192 ahead of use.
    let ahead = ours.next_oid - theirs.next_oid;
    assert!(ahead <= 8192, "{ahead}");
    assert_eq!(CheckPoint { next_oid: theirs.next_oid, ..ours }, theirs);
    assert!(theirs.next_xid > 36_000 && theirs.next_multi > 2600, "{theirs:?}");
    assert!(theirs.oldest_multi > 1 && theirs.oldest_commit_ts_xid > 0, "{theirs:?}");
}

fn check_slrus(model: &Model, disk: &Model) {
    // Truncation removes whole segment files; the effects only move the oldest values.
    let oldest = disk.state.oldest_commit_ts_xid / COMMIT_TIMES_PER_PAGE;
    let oldest = oldest - oldest % PAGES_PER_SEGMENT;
    assert!(oldest > 0, "a commit timestamp segment was removed");
    let is_served = |(kind, page): &(SlruKind, u32)| *kind != SlruKind::CommitTs || *page >= oldest;
    let keys =
        |model: &Model| -> BTreeSet<_> { model.slru.keys().copied().filter(is_served).collect() };
    assert_eq!(keys(model), keys(disk));
    for ((kind, page), image) in &disk.slru {
        let ours = &model.slru[&(*kind, *page)];
        let differs = ours.iter().zip(image.iter()).position(|(ours, theirs)| ours != theirs);
        assert_eq!(differs, None, "first different byte of {kind:?} page {page}");
    }
    let count = |kind| disk.slru.keys().filter(|(of, _)| *of == kind).count();
    let pages = SlruKind::ALL.map(count);
    // Each kind has turned its page.
    assert!(pages.iter().all(|count| *count >= 2), "{pages:?}");
}

/// Main and init forks of logged relations. Postgres may have extended a file by zero pages that the log does not
/// know of; free space maps are not logged.
fn check_relations(model: &Model, disk: &Model) {
    let is_unlogged = |rel: &RelTag| disk.rels.contains_key(&rel.with_fork(Fork::Init));
    let is_logged =
        |rel: &RelTag| rel.fork == Fork::Init || (rel.fork == Fork::Main && !is_unlogged(rel));
    let logged =
        |model: &Model| model.rels.keys().copied().filter(is_logged).collect::<BTreeSet<_>>();
    assert_eq!(logged(model), logged(disk));
    let mut truncated = 0;
    for rel in logged(disk) {
        let (ours, theirs) = (&model.rels[&rel], &disk.rels[&rel]);
        assert!(ours.len() <= theirs.len(), "{rel}: {} > {}", ours.len(), theirs.len());
        let rest = &theirs[ours.len()..];
        assert!(rest.iter().all(|page| page[..] == [0; 8192]), "{rel} is longer on disk");
        truncated += usize::from(theirs.is_empty());
    }
    assert!(truncated > 10, "empty relations exist as files");
    assert!(disk.rels.keys().any(|rel| rel.fork == Fork::Init));
}

/// The bits of every visibility map but those that CREATE DATABASE STRATEGY WAL_LOG loses (WAL.md 3).
fn check_visibility_maps(model: &Model, disk: &Model) {
    let mut bits_set = 0;
    for (rel, pages) in disk.rels.iter().filter(|(rel, _)| rel.fork == Fork::VisibilityMap) {
        let unlogged = disk.rels.contains_key(&rel.with_fork(Fork::Init));
        if unlogged || model.logged_copies.contains(&(rel.tablespace, rel.database)) {
            continue;
        }
        let ours = model.rels.get(rel);
        for (block, page) in pages.iter().enumerate() {
            let bits = ours
                .and_then(|ours| ours.get(block))
                .map_or([0; 8168], |page| *page.last_chunk().unwrap());
            let differs = bits.iter().zip(&page[24..]).position(|(ours, theirs)| ours != theirs);
            assert_eq!(differs, None, "first different byte of {rel} block {block}");
            bits_set += bits.iter().map(|byte| byte.count_ones()).sum::<u32>();
        }
    }
    assert!(bits_set > 1000, "{bits_set}");
}
