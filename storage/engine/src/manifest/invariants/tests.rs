use std::collections::BTreeMap;

use treering_pgfmt::version::PgMajor;
use treering_types::{Key, KeyClass, Lsn, LsnRange, TenantId, TimelineId};

use super::*;
use crate::manifest::Kept;

const ROOT: TimelineId = TimelineId([1; 16]);
const CHILD: TimelineId = TimelineId([2; 16]);

fn entry(ancestor: Option<(TimelineId, Lsn)>, pg_tli: u32, start_lsn: u64) -> TimelineEntry {
    TimelineEntry {
        ancestor,
        pg_tli,
        start_lsn: Lsn(start_lsn),
        created_at: 7,
        flushed: false,
        archived: false,
    }
}

fn sample_tenant() -> TenantManifest {
    let child = entry(Some((ROOT, Lsn(200))), 2, 200);
    TenantManifest {
        tenant: TenantId([9; 16]),
        sequence: 1,
        pg_major: PgMajor::V15,
        system_id: 42,
        next_pg_tli: 3,
        timelines: BTreeMap::from([(ROOT, entry(None, 1, 100)), (CHILD, child)]),
    }
}

fn layer(number: u64, lsns: (u64, u64)) -> LayerDesc {
    let keys = Key::class_range(KeyClass::RelBlock);
    LayerDesc {
        number,
        size: 4096,
        digest: [7; 32],
        key_first: keys.start,
        key_last: keys.end,
        lsns: LsnRange { start: Lsn(lsns.0), end: Lsn(lsns.1) },
        entries: 5,
        complete: false,
    }
}

fn run(layers: Vec<LayerDesc>) -> RunDesc {
    RunDesc { layers, kept: Kept::default() }
}

fn sample_timeline() -> TimelineManifest {
    TimelineManifest {
        sequence: 3,
        disk_consistent_lsn: Lsn(300),
        next_layer: 3,
        runs: vec![run(vec![layer(2, (200, 301))]), run(vec![layer(1, (101, 200))])],
        ..TimelineManifest::empty(TenantId([9; 16]), ROOT, 1, Lsn(100))
    }
}

#[test]
fn good_ones_hold() {
    assert_eq!(tenant(&sample_tenant()), Ok(()));
    assert_eq!(timeline(&sample_timeline()), Ok(()));
}

#[test]
fn broken_tenants_are_noticed() {
    let breaks = |change: fn(&mut TenantManifest)| {
        let mut manifest = sample_tenant();
        change(&mut manifest);
        tenant(&manifest).unwrap_err()
    };
    breaks(|m| m.next_pg_tli = 2);
    breaks(|m| {
        m.timelines.insert(TimelineId([3; 16]), entry(None, 1, 100));
    });
    breaks(|m| {
        m.timelines.remove(&ROOT);
    });
    breaks(|m| {
        m.timelines.insert(CHILD, entry(Some((ROOT, Lsn(99))), 2, 99));
    });
    breaks(|m| {
        m.timelines.insert(CHILD, entry(Some((ROOT, Lsn(200))), 2, 300));
    });
    breaks(|m| {
        m.timelines.insert(CHILD, entry(Some((CHILD, Lsn(200))), 2, 200));
    });
}

#[test]
fn tenants_step_forward_only() {
    let old = sample_tenant();
    let breaks = |change: fn(&mut TenantManifest)| {
        let mut next = old.clone();
        next.sequence += 1;
        change(&mut next);
        tenant_step(&old, &next).is_err()
    };
    assert!(!breaks(|_| ()));
    assert!(breaks(|m| m.sequence += 1));
    assert!(breaks(|m| m.system_id = 1));
    assert!(breaks(|m| m.timelines.get_mut(&ROOT).unwrap().created_at = 1));
    assert!(!breaks(|m| m.timelines.get_mut(&ROOT).unwrap().flushed = true));
    assert!(!breaks(|m| {
        m.timelines.remove(&CHILD);
    }));
}

#[test]
fn broken_timelines_are_noticed() {
    let breaks = |change: fn(&mut TimelineManifest)| {
        let mut manifest = sample_timeline();
        change(&mut manifest);
        timeline(&manifest).unwrap_err()
    };
    breaks(|m| m.next_layer = 2);
    breaks(|m| m.disk_consistent_lsn = Lsn(299));
    breaks(|m| m.runs.reverse());
    breaks(|m| m.runs.push(run(vec![])));
    breaks(|m| m.runs[0].layers.push(layer(1, (200, 301))));
    breaks(|m| m.runs[0].layers[0].lsns.end = Lsn(200));
    breaks(|m| m.leases = vec![Lsn(9), Lsn(8)]);
}

#[test]
fn timelines_step_forward_only() {
    let old = sample_timeline();
    let breaks = |change: fn(&mut TimelineManifest)| {
        let mut next = old.clone();
        next.sequence += 1;
        change(&mut next);
        timeline_step(&old, &next).is_err()
    };
    assert!(!breaks(|_| ()));
    assert!(breaks(|m| m.pg_tli = 4));
    assert!(breaks(|m| m.disk_consistent_lsn = Lsn(299)));
    assert!(breaks(|m| m.runs[0].layers[0].entries = 7));
    assert!(!breaks(|m| m.cut_off = Lsn(300)));
    assert!(breaks(|m| m.cut_off = Lsn(301)));
    assert!(!breaks(|m| {
        m.disk_consistent_lsn = Lsn(400);
        m.next_layer = 4;
        m.runs.insert(0, run(vec![layer(3, (301, 401))]));
    }));
}

#[test]
fn version_2_comes_back_whole() {
    let mut manifest = sample_timeline();
    manifest.cut_off = Lsn(250);
    manifest.leases = vec![Lsn(120), Lsn(130)];
    manifest.runs[1].kept = Kept { cut_off: Lsn(150), points: 2, history_bytes: 77 };
    let bytes = crate::manifest::store::encode_file(&manifest);
    let path = std::path::Path::new("manifest");
    let back = crate::manifest::store::decode_file::<TimelineManifest>(path, &bytes);
    assert_eq!(back.unwrap(), manifest);
}
