use treering_types::{Fork, RelTag, SlruKind, WAL_PAGE_SIZE};

use super::*;

const REL: RelTag = RelTag { tablespace: 1663, database: 5, relation: 16384, fork: Fork::Main };

/// Cuts of the one relation, and images that name the LSN they were asked for.
struct Given {
    cuts: Vec<u64>,
    images: bool,
}

impl Past for Given {
    fn floor(&mut self, _: &Key, at: Lsn) -> Lsn {
        let cut = self.cuts.iter().rev().find(|cut| **cut <= at.0);
        Lsn(cut.copied().unwrap_or(0))
    }

    fn image(&mut self, _: &Key, _: Lsn, at: Lsn) -> Option<Bytes> {
        self.images.then(|| format!("image {}", at.0).into())
    }
}

const RULES: Rules = Rules { chain_max: 4, is_bottom: false, pending_bytes_max: 1 << 20 };
const PLAIN: Given = Given { cuts: Vec::new(), images: false };

fn sieve(
    points: &Points,
    given: Given,
    rules: Rules,
    entries: impl IntoIterator<Item = Entry>,
) -> Vec<Entry> {
    let mut sieve = Sieve::new(points, given, rules);
    let mut kept = Vec::new();
    for entry in entries {
        sieve.push(entry);
        kept.extend(sieve.take_kept());
    }
    sieve.finish();
    kept.extend(sieve.take_kept());
    kept
}

fn entry(key: Key, lsn: u64, text: &'static str) -> Entry {
    let base = text.starts_with('B') || text.is_empty();
    Entry { key, lsn: Lsn(lsn), base, chain: 1, bytes: Bytes::from_static(text.as_bytes()) }
}

/// (LSN, text) of one page's entries: capital B begins a base.
fn page(entries: &[(u64, &'static str)]) -> Vec<Entry> {
    entries.iter().map(|(lsn, text)| entry(Key::rel_block(REL, 3), *lsn, text)).collect()
}

fn texts(entries: &[Entry]) -> Vec<(u64, String)> {
    let text = |entry: &Entry| String::from_utf8(entry.bytes.to_vec()).unwrap();
    entries.iter().map(|entry| (entry.lsn.0, text(entry))).collect()
}

fn lsns(entries: &[Entry]) -> Vec<u64> {
    entries.iter().map(|entry| entry.lsn.0).collect()
}

#[test]
fn each_point_keeps_its_base_and_the_changes_after() {
    let points = Points::new(Lsn(100), [35].map(Lsn));
    let history = [(10, "B"), (20, "B"), (30, "c"), (40, "d"), (50, "B"), (60, "e"), (90, "B")];
    let history = [&history[..], &[(95, "f"), (100, "g"), (110, "B"), (120, "h")]].concat();
    let kept = sieve(&points, PLAIN, RULES, page(&history));
    assert_eq!(lsns(&kept), [20, 30, 90, 95, 100, 110, 120]);
    let chains: Vec<u16> = kept.iter().map(|entry| entry.chain).collect();
    assert_eq!(chains, [0, 1, 0, 1, 2, 0, 1]);
}

#[test]
fn what_has_no_base_here_is_kept_for_the_runs_below() {
    let points = Points::new(Lsn(100), []);
    let kept = sieve(&points, PLAIN, RULES, page(&[(10, "a"), (20, "b"), (200, "c")]));
    assert_eq!(lsns(&kept), [10, 20, 200]);
}

#[test]
fn values_at_one_lsn() {
    let points = Points::new(Lsn(5), []);
    let kept = sieve(&points, PLAIN, RULES, page(&[(10, "a"), (10, "b"), (10, "B"), (10, "c")]));
    assert_eq!(texts(&kept), [(10, "B".to_owned()), (10, "c".to_owned())]);
    let points = Points::new(Lsn(10), []);
    let kept = sieve(&points, PLAIN, RULES, page(&[(10, "a"), (10, "B"), (10, "c"), (11, "B")]));
    assert_eq!(texts(&kept), [(10, "B".to_owned()), (10, "c".to_owned()), (11, "B".to_owned())]);
}

#[test]
fn cuts_hide_what_lies_below_them() {
    // The relation was cut at 50; a single LSN at 45 still sees what lies below.
    let history = [(10, "B"), (20, "c"), (60, "d"), (120, "e")];
    let cut = || Given { cuts: vec![50], images: false };
    let kept = sieve(&Points::new(Lsn(100), []), cut(), RULES, page(&history));
    assert_eq!(lsns(&kept), [60, 120]);
    let kept = sieve(&Points::new(Lsn(100), [Lsn(45)]), cut(), RULES, page(&history));
    assert_eq!(lsns(&kept), [10, 20, 60, 120]);
    // Not below the cut-off: the cut is no concern of this merge.
    let kept = sieve(&Points::new(Lsn(5), []), cut(), RULES, page(&history));
    assert_eq!(lsns(&kept), [10, 20, 60, 120]);
}

#[test]
fn long_rests_become_images() {
    let given = || Given { cuts: vec![], images: true };
    let history = [(10, "B"), (20, "a"), (30, "b"), (40, "c"), (50, "d"), (120, "e")];
    let kept = sieve(&Points::new(Lsn(100), []), given(), RULES, page(&history));
    assert_eq!(texts(&kept), [(50, "image 100".to_owned()), (120, "e".to_owned())]);
    assert_eq!((kept[0].base, kept[0].chain, kept[1].chain), (true, 0, 1));
    // What a single LSN sees stays as it is.
    let kept = sieve(&Points::new(Lsn(100), [Lsn(35)]), given(), RULES, page(&history));
    let kept_texts = texts(&kept);
    assert_eq!(lsns(&kept), [10, 20, 30, 50, 120]);
    assert_eq!(kept_texts[3].1, "image 100");
    // Above the cut-off an image stands at the LSN that passes the bound, and nothing is lost.
    let kept = sieve(&Points::new(Lsn(1), []), given(), RULES, page(&history));
    assert_eq!(lsns(&kept), [10, 20, 30, 40, 50, 120]);
    assert_eq!(texts(&kept)[4].1, "image 50");
    // The chain goes on below the merge: its length counts.
    let mut history = page(&[(110, "a"), (120, "b")]);
    history[0].chain = 4;
    let kept = sieve(&Points::new(Lsn(1), []), given(), RULES, history);
    assert_eq!(texts(&kept)[0].1, "image 110");
}

#[test]
fn tombstones_go_at_the_bottom_only() {
    let points = Points::new(Lsn(100), []);
    let history = [(10, "B"), (20, ""), (120, "B"), (130, "")];
    let kept = sieve(&points, PLAIN, RULES, page(&history));
    assert_eq!(lsns(&kept), [20, 120, 130]);
    let bottom = Rules { is_bottom: true, ..RULES };
    assert_eq!(lsns(&sieve(&points, PLAIN, bottom, page(&history))), [120, 130]);
    assert!(sieve(&points, PLAIN, bottom, page(&[(10, "B"), (20, "")])).is_empty());
}

#[test]
fn a_chain_without_end_is_kept_and_takes_no_memory() {
    let points = Points::new(Lsn(1 << 40), []);
    let mut sieve = Sieve::new(&points, PLAIN, RULES);
    let mut kept = 0;
    for lsn in 1..=10_000u64 {
        sieve.push(entry(Key::slru(SlruKind::Xact, 1), lsn, "x"));
        assert!(sieve.pending.len() <= PENDING_MAX);
        kept += sieve.take_kept().count();
    }
    sieve.finish();
    assert_eq!(kept + sieve.take_kept().count(), 10_000);
}

#[test]
fn the_time_index_keeps_the_newest_entry_of_each_point() {
    let stamps = |lsns: &[u64]| -> Vec<Entry> {
        lsns.iter().map(|lsn| entry(Key::time_index(*lsn as i64 * 1000), *lsn, "B")).collect()
    };
    let points = Points::new(Lsn(100), [Lsn(25)]);
    let kept = sieve(&points, PLAIN, RULES, stamps(&[10, 20, 30, 40, 90, 100, 110, 120]));
    assert_eq!(lsns(&kept), [20, 100, 110, 120]);
    let kept = sieve(&points, PLAIN, RULES, stamps(&[10, 20, 30, 40]));
    assert_eq!(lsns(&kept), [20, 40]);
}

#[test]
fn record_ends_keep_the_last_three_pages_of_each_point() {
    let page_of = |n: u64| Lsn(n * WAL_PAGE_SIZE);
    let value = |n: u64, lsn: u64, text| entry(Key::record_ends(page_of(n)), lsn, text);
    let mut values: Vec<Entry> = Vec::new();
    for n in 1..=20 {
        values.push(value(n, page_of(n).0 + 50, "B old"));
        values.push(value(n, page_of(n).0 + 99, "B new"));
    }
    let pages = |points: &Points| -> Vec<u64> {
        let kept = sieve(points, PLAIN, RULES, values.clone());
        assert!(kept.iter().all(|entry| entry.bytes == "B new"));
        kept.iter().map(|entry| entry.key.wal_page().unwrap().0 / WAL_PAGE_SIZE).collect()
    };
    let points = Points::new(page_of(16) + 8, [page_of(7) + 8]);
    assert_eq!(pages(&points), [5, 6, 7, 14, 15, 16, 17, 18, 19, 20]);
    // An end exactly at a page's start belongs to the page before.
    let points = Points::new(page_of(16), [page_of(7)]);
    assert_eq!(pages(&points), [4, 5, 6, 13, 14, 15, 16, 17, 18, 19, 20]);
    // What newer runs hold is not known here: the last three always stay.
    assert_eq!(pages(&Points::new(page_of(400), [])), [18, 19, 20]);
}
