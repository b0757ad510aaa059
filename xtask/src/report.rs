//! What a verification found, on the terminal and as JSON for the coverage table.

use std::{collections::BTreeMap, fmt, fs, path::Path, time::Duration};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use treering_pgfmt::{judge::Tally, redo::rmgr_name, version::PgMajor};

use crate::{
    compare::Comparison,
    record_types::{Changes, RECORD_TYPES, name_of},
};

/// Faults printed in full.
const SHOWN_MAX: usize = 25;

/// The outcome of [`crate::verify::verify`].
#[derive(Clone, Debug)]
pub struct Report {
    pub major: PgMajor,
    pub records: u64,
    pub wal_bytes: u64,
    /// Bytes that the store would keep for these records.
    pub stored_bytes: u64,
    pub end: String,
    pub tallies: BTreeMap<(u8, u8), Tally>,
    /// Differences from the images in the records, and what could not be redone.
    pub findings: Vec<String>,
    /// `None` if no standby was asked for.
    pub files: Option<Comparison>,
    pub redo_time: Duration,
    pub standby_time: Duration,
}

impl Report {
    /// Everything agreed.
    pub fn is_clean(&self) -> bool {
        self.mismatches() == 0
    }

    pub fn mismatches(&self) -> usize {
        self.findings.len() + self.files.as_ref().map_or(0, |files| files.faults.len())
    }

    /// Types that change pages or files and did not occur.
    pub fn never_seen(&self) -> Vec<String> {
        RECORD_TYPES
            .iter()
            .filter(|kind| matters(kind.changes) && kind.is_in(self.major))
            .filter(|kind| !self.tallies.contains_key(&(kind.rmid, kind.info)))
            .map(|kind| {
                format!("{} {}", rmgr_name(kind.rmid), name_of(kind.rmid, kind.info, self.major))
            })
            .collect()
    }
}

/// The types whose coverage counts.
pub fn matters(changes: Changes) -> bool {
    matches!(changes, Changes::Pages | Changes::Images | Changes::Files)
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let heads = ["record", "records", "redone", "compared", "images", "newer", "unhandled"];
        let [name, rest @ ..] = heads;
        write!(f, "{name:<38}")?;
        rest.iter().try_for_each(|head| write!(f, " {head:>9}"))?;
        writeln!(f)?;
        let line = |f: &mut fmt::Formatter<'_>, name: &str, tally: &Tally| {
            let Tally { records, applied, compared, restored, skipped, unhandled } = *tally;
            write!(f, "{name:<38}")?;
            let counts = [records, applied, compared, restored, skipped, unhandled];
            counts.iter().try_for_each(|count| write!(f, " {count:>9}"))?;
            writeln!(f)
        };
        let mut total = Tally::default();
        for ((rmid, info), tally) in &self.tallies {
            let name = format!("{} {}", rmgr_name(*rmid), name_of(*rmid, *info, self.major));
            line(f, &name, tally)?;
            total.records += tally.records;
            total.applied += tally.applied;
            total.compared += tally.compared;
            total.restored += tally.restored;
            total.skipped += tally.skipped;
            total.unhandled += tally.unhandled;
        }
        line(f, "total", &total)?;
        writeln!(
            f,
            "\nPostgreSQL {}: {} records, {:.1} MB of WAL, {:.1} MB as stored; it ends with: {}",
            self.major,
            self.records,
            self.wal_bytes as f64 / 1e6,
            self.stored_bytes as f64 / 1e6,
            self.end
        )?;
        writeln!(f, "redo and comparison took {:.1?}", self.redo_time)?;
        if let Some(files) = &self.files {
            writeln!(
                f,
                "against a stock standby ({:.1?}): {} forks, {} pages, {} map pages ({} without a bit on one side \
                 only), {} SLRU pages",
                self.standby_time,
                files.relations,
                files.pages,
                files.map_pages,
                files.empty_map_pages,
                files.slru_pages
            )?;
        }
        let faults = self.files.iter().flat_map(|files| &files.faults);
        for fault in self.findings.iter().take(SHOWN_MAX).chain(faults.take(SHOWN_MAX)) {
            writeln!(f, "MISMATCH {fault}")?;
        }
        writeln!(f, "never seen: {}", self.never_seen().join(", "))?;
        write!(f, "{} pages compared, {} mismatches", total.compared, self.mismatches())
    }
}

/// What the coverage table needs of a report.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Summary {
    pub major: u32,
    pub mismatches: usize,
    /// Records, redone, compared, restored by `rmid:info`.
    pub types: BTreeMap<String, [u64; 4]>,
}

impl Summary {
    pub fn of(report: &Report) -> Summary {
        let types = report.tallies.iter().map(|((rmid, info), tally)| {
            let counts = [tally.records, tally.applied, tally.compared, tally.restored];
            (format!("{rmid}:{info:02x}"), counts)
        });
        Summary {
            major: report.major.number(),
            mismatches: report.mismatches(),
            types: types.collect(),
        }
    }

    /// Counts another run of the same major with this one.
    pub fn add(&mut self, run: &Summary) {
        self.major = run.major;
        self.mismatches += run.mismatches;
        for (kind, counts) in &run.types {
            let sum = self.types.entry(kind.clone()).or_default();
            sum.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
        }
    }

    /// Writes it where [`crate::coverage`] looks for it.
    pub fn save(&self, path: &Path) -> Result<()> {
        let parent = path.parent().context("a file name")?;
        fs::create_dir_all(parent).with_context(|| parent.display().to_string())?;
        fs::write(path, serde_json::to_vec_pretty(self)?)
            .with_context(|| path.display().to_string())
    }
}
