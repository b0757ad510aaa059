//! What the judge saw: a table, the differences, and the verdict.

use std::time::Duration;

use treering_pgfmt::{
    judge::{Bases, Finding, Judge},
    redo::rmgr_name,
};

use crate::names::record_name;

/// Differences printed in full.
const SHOWN_MAX: usize = 25;

/// One line per record type.
pub fn print<B: Bases>(judge: &Judge<B>, records: u64, ran: Duration, judged: Duration) {
    println!("{records} records; workload {ran:.1?}, redo and comparison {judged:.1?}");
    println!(
        "{:<42} {:>8} {:>8} {:>8} {:>8} {:>9}",
        "record", "records", "applied", "compared", "images", "unhandled"
    );
    for ((rmid, info), tally) in &judge.tallies {
        let name = format!("{} {info:02x} {}", rmgr_name(*rmid), record_name(*rmid, *info));
        println!(
            "{name:<42} {:>8} {:>8} {:>8} {:>8} {:>9}",
            tally.records, tally.applied, tally.compared, tally.restored, tally.unhandled
        );
    }
    let total = |field: fn(&treering_pgfmt::judge::Tally) -> u64| {
        judge.tallies.values().map(field).sum::<u64>()
    };
    println!(
        "{:<42} {:>8} {:>8} {:>8} {:>8} {:>9}",
        "total",
        total(|t| t.records),
        total(|t| t.applied),
        total(|t| t.compared),
        total(|t| t.restored),
        total(|t| t.unhandled)
    );
}

/// Fails on any difference, and when a record type that the workload is for was not compared.
pub fn check<B: Bases>(judge: &Judge<B>, files: &[String], must: &[(u8, u8)]) {
    let lines: Vec<String> = judge.findings.iter().map(Finding::to_string).collect();
    for line in lines.iter().take(SHOWN_MAX).chain(files.iter().take(SHOWN_MAX)) {
        println!("{line}");
    }
    let missing: Vec<String> = must
        .iter()
        .filter(|kind| judge.tallies.get(kind).is_none_or(|tally| tally.compared == 0))
        .map(|(rmid, info)| format!("{} {}", rmgr_name(*rmid), record_name(*rmid, *info)))
        .collect();
    assert!(lines.is_empty(), "{} differences from Postgres's images", lines.len());
    assert!(files.is_empty(), "{} differences from Postgres's files", files.len());
    assert!(missing.is_empty(), "never compared: {missing:?}");
}
