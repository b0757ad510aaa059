use super::*;
use crate::error::RemoteError;

const TENANT: TenantId = TenantId([1; 16]);
const LIFE: TimelineLife = TimelineLife { timeline: TimelineId([2; 16]), pg_tli: 3 };

fn index() -> Index {
    let at = TimelineAt {
        pg_tli: 3,
        generation: Generation(4),
        sequence: 5,
        disk_consistent_lsn: Lsn(0x0123_4567),
    };
    Index {
        tenant: TENANT,
        generation: Generation(6),
        version: 7,
        sequence: 8,
        manifest: Some(Bytes::from_static(b"tenant")),
        timelines: BTreeMap::from([(LIFE.timeline, at)]),
    }
}

fn object() -> TimelineObject {
    let layers = BTreeMap::from([(1, Generation(4)), (9, Generation(6))]);
    TimelineObject { manifest: Bytes::from_static(b"timeline"), layers }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The format, version 1. What these are read from lies in users' buckets: they only grow, they never change.
const GOLDEN_INDEX: &str = include_str!("golden-index-1.hex");
const GOLDEN_TIMELINE: &str = include_str!("golden-timeline-1.hex");

#[test]
fn version_1_stays_what_it_is() {
    assert_eq!(hex(&index().encode()), GOLDEN_INDEX.trim());
    assert_eq!(hex(&object().encode(TENANT, LIFE)), GOLDEN_TIMELINE.trim());
}

#[test]
fn what_is_written_is_read() {
    let read = Index::decode(TENANT, Generation(6), 7, &index().encode()).unwrap();
    assert_eq!(read, index());
    let gone = Index { manifest: None, timelines: BTreeMap::new(), ..index() };
    assert_eq!(Index::decode(TENANT, Generation(6), 7, &gone.encode()).unwrap(), gone);
    let bytes = object().encode(TENANT, LIFE);
    assert_eq!(TimelineObject::decode(TENANT, LIFE, "x", &bytes).unwrap(), object());
}

#[test]
fn every_flipped_bit_and_every_cut_is_noticed() {
    let bytes = index().encode();
    for at in 0..bytes.len() {
        for bit in 0..8 {
            let mut broken = bytes.to_vec();
            broken[at] ^= 1 << bit;
            let read = Index::decode(TENANT, Generation(6), 7, &broken);
            assert!(matches!(read, Err(RemoteError::Corrupt { .. })), "byte {at}, bit {bit}");
        }
        let read = Index::decode(TENANT, Generation(6), 7, &bytes[..at]);
        assert!(matches!(read, Err(RemoteError::Corrupt { .. })), "cut at {at}");
    }
}

#[test]
fn objects_of_other_places_and_later_versions_are_refused() {
    let bytes = index().encode();
    for (generation, version) in [(5, 7), (6, 8)] {
        let read = Index::decode(TENANT, Generation(generation), version, &bytes);
        assert!(matches!(read, Err(RemoteError::Corrupt { .. })));
    }
    let other = TimelineLife { pg_tli: 4, ..LIFE };
    let read = TimelineObject::decode(TENANT, other, "x", &object().encode(TENANT, LIFE));
    assert!(matches!(read, Err(RemoteError::Corrupt { .. })));
    let newer = Writer::default().sealed(INDEX_MAGIC, VERSION + 1);
    let read = Index::decode(TENANT, Generation(6), 7, &newer);
    assert!(matches!(read, Err(RemoteError::Newer { found: 2, known: 1, .. })));
}
