use bytes::Bytes;
use treering_types::Lsn;

use super::*;
use crate::{generation::Generation, index::TimelineAt};

const TENANT: TenantId = TenantId([7; 16]);
const ONE: TimelineId = TimelineId([1; 16]);

fn found(before: Before, index: Option<Index>) -> Found {
    let claimed = Claimed { generation: Generation(9), before };
    Found { claimed, index, objects: BTreeMap::new() }
}

fn index() -> Index {
    let at = TimelineAt {
        pg_tli: 1,
        generation: Generation(3),
        sequence: 10,
        disk_consistent_lsn: Lsn(1),
    };
    Index {
        tenant: TENANT,
        generation: Generation(8),
        version: 4,
        sequence: 20,
        manifest: Some(Bytes::from_static(b"x")),
        timelines: BTreeMap::from([(ONE, at)]),
    }
}

fn local(sequence: u64, timeline: Option<(u32, u64)>) -> LocalState {
    LocalState { sequence, timelines: timeline.map(|at| (ONE, at)).into_iter().collect() }
}

#[test]
fn the_local_disk_counts_only_as_a_continuation() {
    let ours = found(Before::Ourselves, Some(index()));
    let begin = |local: LocalState| begin(TENANT, &ours, Some(&local)).unwrap();
    assert_eq!(begin(local(20, Some((1, 10)))), Begin::Local);
    assert_eq!(begin(local(25, Some((1, 12)))), Begin::Local);
    assert_eq!(begin(local(25, None)), Begin::Local, "deleted since");
    assert_eq!(begin(local(25, Some((2, 1)))), Begin::Local, "deleted and made again");
    // A disk that was set back.
    assert_eq!(begin(local(19, Some((1, 10)))), Begin::Store);
    assert_eq!(begin(local(20, Some((1, 9)))), Begin::Store);
    assert_eq!(begin(local(20, None)), Begin::Store);
}

#[test]
fn the_store_counts_when_others_were_there() {
    let others = found(Before::Others { ourselves_once: true }, Some(index()));
    let ahead = local(99, Some((1, 99)));
    assert_eq!(begin(TENANT, &others, Some(&ahead)).unwrap(), Begin::Store);
    assert_eq!(begin(TENANT, &others, None).unwrap(), Begin::Store);
    for before in [Before::Nobody, Before::Others { ourselves_once: false }] {
        let strange = found(before, Some(index()));
        let refused = begin(TENANT, &strange, Some(&ahead));
        assert!(matches!(refused, Err(RemoteError::TwoTruths { .. })));
        assert_eq!(begin(TENANT, &strange, None).unwrap(), Begin::Store);
    }
}

#[test]
fn an_empty_store_takes_what_there_is() {
    for before in [Before::Nobody, Before::Ourselves, Before::Others { ourselves_once: false }] {
        let empty = found(before, None);
        assert_eq!(begin(TENANT, &empty, Some(&local(1, None))).unwrap(), Begin::Local);
        assert_eq!(begin(TENANT, &empty, None).unwrap(), Begin::Nothing);
    }
}

/// What is told to those who hold nothing must be found by whoever claims next.
#[test]
fn an_index_is_published_while_nobody_can_have_missed_it() {
    let store = crate::sim::SimStore::new();
    let asking = Asking::new(crate::retry::Patience::NONE);
    let published = || published(&store, &asking, TENANT).unwrap();
    let claim = |generation| {
        let name = names::claim(TENANT, Generation(generation));
        store.put_new(&name, Bytes::from_static(b"x")).unwrap();
    };
    assert_eq!(published(), None);
    claim(8);
    let older = Index { version: 3, ..index() };
    store.put_new(&older.name(), older.encode()).unwrap();
    assert_eq!(published(), Some(older));
    let newer = index();
    store.put_new(&newer.name(), newer.encode()).unwrap();
    assert_eq!(published(), Some(newer));
    // Its maker may have looked before version 4 was put.
    claim(9);
    assert_eq!(published(), None);
    let next = Index { generation: Generation(9), version: 1, ..index() };
    store.put_new(&next.name(), next.encode()).unwrap();
    assert_eq!(published(), Some(next));
}
