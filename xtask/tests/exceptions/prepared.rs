//! Two-phase state and replication origins.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use treering_pgfmt::{
    redo::{rmgr, slru::XACTS_PER_PAGE},
    twophase,
    wal::effects::{Effect, OriginChange, effects},
};
use treering_types::{Key, SlruKind};

use super::ordinary::{assert_all_clean, lives};

/// The status bits of a transaction.
fn status(replica: &xtask::replica::Replica, xid: u32) -> u8 {
    let page = replica.page(&Key::slru(SlruKind::Xact, xid / XACTS_PER_PAGE)).unwrap();
    page[(xid % XACTS_PER_PAGE / 4) as usize] >> (2 * (xid % 4)) & 3
}

/// The xid that a prepared transaction's end names in its record, where the header has none or another.
#[test]
fn e07_prepared_ends_are_of_the_transaction_in_the_record() {
    for life in lives() {
        let replica = life.scene.replayed();
        let mut ends = BTreeSet::new();
        for record in &life.scene.records {
            let mut state = replica.judge.state.clone();
            let info = record.info & 0x70;
            if record.rmid != rmgr::XACT || !matches!(info, 0x30 | 0x40) {
                continue;
            }
            let found = effects(&mut state, record, life.scene.major).unwrap();
            let ended = found.iter().find_map(|effect| match effect {
                Effect::TwoPhaseEnded { full_xid } => Some(*full_xid as u32),
                _ => None,
            });
            let xid = ended.unwrap();
            assert_ne!(record.xid, xid);
            let expected = if info == 0x30 { 1 } else { 2 };
            assert_eq!(status(&replica, xid), expected);
            ends.insert(info);
        }
        assert_eq!(ends, BTreeSet::from([0x30, 0x40]));
    }
    assert_all_clean();
}

/// PREPARE is kept until the transaction ends: over checkpoints, byte for byte the server's file.
#[test]
fn e12_two_phase_files_are_the_servers() {
    for life in lives() {
        let mut at_checkpoint: Vec<BTreeMap<String, Bytes>> = Vec::new();
        let replica = life.scene.replay(|replica, record| {
            if record.rmid == rmgr::XLOG && record.info & 0xf0 == 0x10 {
                at_checkpoint.push(replica.inventory.two_phase.clone());
            }
        });
        assert!(
            at_checkpoint.iter().any(|files| files.len() == 3),
            "three lived over a checkpoint"
        );
        let ours = &replica.inventory.two_phase;
        assert_eq!(ours.len(), 1);
        let (name, file) = ours.first_key_value().unwrap();
        assert!(twophase::main_data_of(file).is_some());
        assert_eq!(name.len(), if life.scene.major.number() < 17 { 8 } else { 16 });
        assert_eq!(*ours, life.scene.primary.as_ref().unwrap().inventory.two_phase);
        // In progress: neither committed nor aborted, its subtransaction too.
        let xid = u32::from_str_radix(&name[name.len() - 8..], 16).unwrap();
        assert_eq!((status(&replica, xid), status(&replica, xid + 1)), (0, 0));
    }
    assert_all_clean();
}

/// Prepared transactions of a subscription end out of order: what they say of their origin may be old news.
#[test]
fn origins_go_back_by_hand_only() {
    for life in lives() {
        let mut said = Vec::new();
        let mut state = life.scene.replica().judge.state;
        for record in &life.scene.records {
            let found = effects(&mut state, record, life.scene.major).unwrap();
            said.extend(found.into_iter().filter_map(|effect| match effect {
                Effect::Origin { id, change } => Some((id, change)),
                _ => None,
            }));
        }
        let by_commit = [0x7_0000_0070, 0x6_0000_0060].map(|lsn| (1, OriginChange::AtLeast(lsn)));
        let by_hand = [0x9_0000_0090, 0x8_0000_0080].map(|lsn| (2, OriginChange::Set(lsn)));
        assert_eq!(said, [by_commit, by_hand].concat());
        let origins = life.scene.replayed().inventory.origins;
        assert_eq!(origins, BTreeMap::from([(1, 0x7_0000_0070), (2, 0x8_0000_0080)]));
        assert_eq!(origins, life.scene.primary.as_ref().unwrap().inventory.origins);
    }
    assert_all_clean();
}
