//! Our data directory against the one that stock recovery left: every file, byte for byte.
//!
//! What may differ, and is counted: free space maps (redo writes hints into them, WAL never has them), page checksums
//! (set when a page is written, so compared by being valid), visibility-map pages without a bit (redo makes them when
//! it has a bit to clear), a flag of GiST pages that only some minors set, and SLRU pages before the oldest that is kept (truncation removes whole segments).

use std::{collections::BTreeSet, path::Path};

use anyhow::Result;
use treering_pgfmt::{
    judge::Bases,
    page::HEADER_SIZE,
    redo::{
        rmgr_name,
        slru::{COMMIT_TIMES_PER_PAGE, MULTIS_PER_PAGE, PAGES_PER_SEGMENT, XACTS_PER_PAGE},
    },
};
use treering_types::{Fork, Key, Lsn, PAGE_SIZE, PageImage, RelTag, SlruKind};

use crate::replica::{Files, Inventory, Replica};

/// What was compared, and what differs.
#[derive(Clone, Debug, Default)]
pub struct Comparison {
    pub relations: u64,
    pub pages: u64,
    pub map_pages: u64,
    pub slru_pages: u64,
    /// Map pages without a bit that only one side has.
    pub empty_map_pages: u64,
    /// One line for each file or page that is not the same.
    pub faults: Vec<String>,
}

/// Compares with the data directory `theirs`. `redo` is the redo pointer of the last checkpoint: state that only
/// checkpoints write to files is there up to it.
pub fn compare(replica: &Replica, theirs: &Path, redo: Lsn) -> Result<Comparison> {
    let disk = Inventory::read(replica.major, theirs)?;
    let files = Files::new(replica.major, theirs);
    let mut found = Comparison::default();
    relations(replica, &disk, &files, &mut found);
    slrus(replica, &disk, &files, &mut found);
    let ours = &replica.inventory;
    same("database directories", &ours.databases, &disk.databases, &mut found);
    same("tablespaces", &ours.tablespaces, &disk.tablespaces, &mut found);
    for key in ours.maps.keys().chain(disk.maps.keys()).collect::<BTreeSet<_>>() {
        if ours.maps.get(key) != disk.maps.get(key) {
            found.faults.push(format!("relation map of {key:?} differs"));
        }
    }
    for name in ours.two_phase.keys().chain(disk.two_phase.keys()).collect::<BTreeSet<_>>() {
        let late = replica.prepared_at.get(name).is_some_and(|at| *at > redo);
        let not_yet = late && !disk.two_phase.contains_key(name);
        if ours.two_phase.get(name) != disk.two_phase.get(name) && !not_yet {
            found.faults.push(format!("two-phase file {name} differs"));
        }
    }
    if ours.origins != disk.origins {
        let (ours, theirs) = (&ours.origins, &disk.origins);
        found.faults.push(format!("replication origins: ours {ours:?}, standby {theirs:?}"));
    }
    Ok(found)
}

fn same<T: Ord + std::fmt::Debug>(
    what: &str,
    ours: &BTreeSet<T>,
    theirs: &BTreeSet<T>,
    found: &mut Comparison,
) {
    for missing in theirs.difference(ours) {
        found.faults.push(format!("{what}: the standby has {missing:?}, we do not"));
    }
    for extra in ours.difference(theirs) {
        found.faults.push(format!("{what}: we have {extra:?}, the standby does not"));
    }
}

fn relations(replica: &Replica, disk: &Inventory, files: &Files, found: &mut Comparison) {
    let ours = &replica.inventory.rels;
    let rels: BTreeSet<RelTag> = ours.keys().chain(disk.rels.keys()).copied().collect();
    for rel in rels.into_iter().filter(|rel| rel.fork != Fork::Fsm) {
        let (own, their) = (ours.get(&rel).copied(), disk.rels.get(&rel).copied());
        found.relations += 1;
        let map = rel.fork == Fork::VisibilityMap;
        if own != their && !map {
            found.faults.push(format!("{rel}: we have {own:?} blocks, the standby {their:?}"));
        }
        for block in 0..own.unwrap_or(0).max(their.unwrap_or(0)) {
            let key = Key::rel_block(rel, block);
            let own = own.is_some_and(|blocks| block < blocks).then(|| page(replica, &key));
            let their = their.is_some_and(|blocks| block < blocks).then(|| stored(files, &key));
            match (own, their) {
                (own, their) if map => map_page(&key, own, their, found),
                (Some(own), Some(their)) => rel_page(replica, &key, &own, &their, found),
                _ => {}
            }
        }
    }
}

/// Our page; one that was never written is zeros.
fn page(replica: &Replica, key: &Key) -> PageImage {
    replica.page(key).unwrap_or_else(|| Box::new([0; PAGE_SIZE]))
}

fn stored(files: &Files, key: &Key) -> PageImage {
    files.page(key).unwrap_or_else(|| Box::new([0; PAGE_SIZE]))
}

fn rel_page(
    replica: &Replica,
    key: &Key,
    ours: &PageImage,
    theirs: &PageImage,
    found: &mut Comparison,
) {
    found.pages += 1;
    let held = replica.judge.page(key);
    if held.is_some_and(|held| !held.readable) {
        found.faults.push(format!("{key:?}: unreadable, no redo for its records"));
        return;
    }
    if let Some(at) = differs(ours, theirs) {
        let last = held.map_or("nothing", |held| rmgr_name(held.rmid));
        let end = (at + 16).min(PAGE_SIZE);
        let count = (0..PAGE_SIZE).filter(|i| ours[*i] != theirs[*i]).count();
        found.faults.push(format!(
            "{key:?}: last changed by {last}; from byte {at} ours {:02x?}, the standby's {:02x?} ({count} bytes differ)",
            &ours[at..end],
            &theirs[at..end],
        ));
    }
}

/// The first byte that differs; the checksum is set only where a page is written to a file.
fn differs(ours: &PageImage, theirs: &PageImage) -> Option<usize> {
    const CHECKSUM: std::ops::Range<usize> = 8..10;
    let is_same = |at: usize| match at == GIST_FLAGS_AT && is_gist(ours) && is_gist(theirs) {
        true => (ours[at] ^ theirs[at]) & !GIST_TUPLES_DELETED == 0,
        false => ours[at] == theirs[at],
    };
    (0..PAGE_SIZE).find(|at| !is_same(*at) && !CHECKSUM.contains(at))
}

/// Low byte of a GiST page's flags, and in it `F_TUPLES_DELETED`, which is a matter of minors and which nothing reads (`access/gist.h`).
const GIST_FLAGS_AT: usize = PAGE_SIZE - 4;
const GIST_TUPLES_DELETED: u8 = 1 << 2;

/// By `GIST_PAGE_ID` at its end.
fn is_gist(page: &PageImage) -> bool {
    page.ends_with(&[0x81, 0xFF])
}

/// A page without a bit may be missing.
fn map_page(key: &Key, ours: Option<PageImage>, theirs: Option<PageImage>, found: &mut Comparison) {
    found.map_pages += 1;
    let has_bits = |page: &PageImage| page[HEADER_SIZE..].iter().any(|byte| *byte != 0);
    match (ours, theirs) {
        (Some(ours), Some(theirs)) if has_bits(&ours) || has_bits(&theirs) => {
            if let Some(at) = differs(&ours, &theirs) {
                let (ours, theirs) = (ours[at], theirs[at]);
                found.faults.push(format!("{key:?}: byte {at} is {ours:08b}, {theirs:08b} there"));
            }
        }
        (Some(_), Some(_)) | (None, None) => {}
        (Some(page), None) | (None, Some(page)) if has_bits(&page) => {
            found.faults.push(format!("{key:?}: only one side has the map page"));
        }
        _ => found.empty_map_pages += 1,
    }
}

fn slrus(replica: &Replica, disk: &Inventory, files: &Files, found: &mut Comparison) {
    let pages: BTreeSet<(SlruKind, u32)> =
        replica.inventory.slru.union(&disk.slru).copied().collect();
    for (kind, number) in pages {
        let key = Key::slru(kind, number);
        found.slru_pages += 1;
        match (replica.page(&key), files.page(&key)) {
            (Some(ours), Some(theirs)) => {
                if let Some(at) = (0..PAGE_SIZE).find(|at| ours[*at] != theirs[*at]) {
                    let (ours, theirs) = (ours[at], theirs[at]);
                    found.faults.push(format!(
                        "{kind:?} page {number}: byte {at} is {ours:#04x}, {theirs:#04x} there"
                    ));
                }
            }
            (Some(_), None) if !is_kept(replica, kind, number) => {}
            // A segment file is as long as its last page; what lies before it is zeros.
            (None, Some(theirs)) if theirs.iter().all(|byte| *byte == 0) => {}
            (ours, _) => {
                let who = if ours.is_some() { "only we have" } else { "only the standby has" };
                found.faults.push(format!("{kind:?} page {number}: {who} it"));
            }
        }
    }
}

/// False where truncation has removed the segment by now.
fn is_kept(replica: &Replica, kind: SlruKind, page: u32) -> bool {
    let state = &replica.judge.state;
    let oldest = match kind {
        SlruKind::Xact => state.oldest_xid / XACTS_PER_PAGE,
        SlruKind::CommitTs if state.oldest_commit_ts_xid == 0 => return false,
        SlruKind::CommitTs => state.oldest_commit_ts_xid / COMMIT_TIMES_PER_PAGE,
        SlruKind::MultiOffsets => state.oldest_multi / MULTIS_PER_PAGE,
        // The oldest member is named by the offsets page of the oldest multixact, whose own check stands.
        SlruKind::MultiMembers => return false,
    };
    page >= oldest - oldest % PAGES_PER_SEGMENT
}
