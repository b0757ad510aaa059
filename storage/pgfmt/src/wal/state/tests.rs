use super::*;

fn at(next_xid: u64) -> ClusterState {
    ClusterState { next_xid, ..ClusterState::default() }
}

#[test]
fn next_xid_is_one_above_the_highest_seen() {
    let mut state = at(700);
    state.note_xid(699);
    state.note_xid(0);
    assert_eq!(state.next_xid, 700);
    state.note_xid(700);
    assert_eq!(state.next_xid, 701);
    state.note_xid(705);
    assert_eq!(state.next_xid, 706);
    state.advance_next_xid(800);
    state.advance_next_xid(10);
    assert_eq!(state.next_xid, 800);
}

#[test]
fn the_epoch_turns_with_the_xid_and_skips_reserved_ones() {
    let mut state = at(0xffff_fff0);
    state.note_xid(u32::MAX);
    assert_eq!(state.next_xid, 1 << 32 | 3);
    assert_eq!(state.full_xid(u32::MAX), 0xffff_ffff);
    let mut state = at(0xffff_fff0);
    state.note_xid(3);
    assert_eq!(state.next_xid, 1 << 32 | 4);
    let mut state = at(1 << 32 | 5);
    state.note_xid(0xffff_fff0);
    assert_eq!(state.next_xid, 1 << 32 | 5);
    let mut state = at(u64::MAX);
    state.note_xid(7);
    assert_eq!(at(5).full_xid(0xffff_fff0), 0xffff_fff0);
}

#[test]
fn multi_counters_advance_on_their_own() {
    let mut state = ClusterState::default();
    state.advance_multi(10, 5);
    state.advance_multi(9, 6);
    assert_eq!((state.next_multi, state.next_multi_offset), (10, 6));
    state.advance_multi(10u32.wrapping_sub((1 << 31) - 1), 6);
    assert_eq!(state.next_multi, 10);
}

#[test]
fn online_checkpoints_are_minima_and_shutdown_ones_exact() {
    let mut state = at(900);
    state.next_oid = 20_000;
    state.oldest_xid = 800;
    let checkpoint = CheckPoint {
        next_xid: 850,
        next_oid: 17_000,
        oldest_xid: 720,
        next_multi: 4,
        ..CheckPoint::default()
    };
    state.believe_at_least(&checkpoint);
    assert_eq!((state.next_xid, state.next_oid, state.oldest_xid), (900, 20_000, 800));
    assert_eq!(state.next_multi, 4);
    state.believe(&checkpoint);
    assert_eq!((state.next_xid, state.next_oid, state.oldest_xid), (850, 17_000, 720));
}

#[test]
fn every_field_comes_back() {
    let state = ClusterState {
        next_xid: 3 << 32 | 77,
        next_oid: 2,
        next_multi: 3,
        next_multi_offset: 4,
        oldest_xid: 5,
        oldest_xid_db: 6,
        oldest_multi: 7,
        oldest_multi_db: 8,
        oldest_commit_ts_xid: 9,
        newest_commit_ts_xid: 10,
        parameters: Parameters {
            wal_level: 1,
            max_connections: 100,
            max_worker_processes: 8,
            max_wal_senders: 10,
            max_prepared_xacts: 11,
            max_locks_per_xact: 64,
            wal_log_hints: false,
            track_commit_timestamp: true,
            full_page_writes: false,
            data_checksums: true,
        },
        checkpoint: Some(LastCheckpoint { start: Lsn(0x28), payload: [7; CHECKPOINT_SIZE] }),
    };
    assert!(state.parameters.hints_logged());
    let mut again = ClusterState::default();
    assert_eq!(again.encode(ControlField::Checkpoint), None);
    for field in STATE_FIELDS {
        let bytes = state.encode(field).unwrap();
        assert_eq!(again.load(field, &bytes.slice(1..)), Err(StateError(field)));
        assert_eq!(
            again.load(field, &Bytes::from([&bytes[..], &[0]].concat())),
            Err(StateError(field))
        );
        again.load(field, &bytes).unwrap();
    }
    assert_eq!(again, state);
    again.load(ControlField::Imported, &Bytes::from_static(b"anything")).unwrap();
    assert_eq!(again, state);
}

#[test]
fn the_starting_checkpoint_carries_wal_level_only_where_the_log_does() {
    let mut state = at(700);
    state.parameters.wal_level = 1;
    let payload = CheckPoint::default().encode();
    state.checkpoint = Some(LastCheckpoint { start: Lsn(8), payload });
    let start = state.checkpoint_for_start(3, 1, Lsn(0x100), 1000);
    assert_eq!((start.redo, start.this_tli, start.prev_tli), (Lsn(0x100), 3, 1));
    assert_eq!((start.wal_level, start.next_xid, start.oldest_active_xid), (0, 700, 0));
    let payload = CheckPoint { wal_level: 2, ..CheckPoint::default() }.encode();
    state.checkpoint = Some(LastCheckpoint { start: Lsn(8), payload });
    assert_eq!(state.checkpoint_for_start(3, 1, Lsn(0x100), 1000).wal_level, 1);
}
