//! `docs/redo.md`: every record type, and what was seen of it under the judge.

use std::{
    collections::BTreeMap,
    fmt::Write,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use treering_pgfmt::{
    redo::{rmgr, rmgr_name},
    version::PgMajor,
};

use crate::{
    record_types::{Changes, RECORD_TYPES, RecordType, name_of},
    report::{Summary, matters},
};

/// Why a type that changes pages or files is in no run.
const REASONS: &[((u8, u8), &str)] = &[(
    (rmgr::CLOG, 0x10),
    "it takes a million transactions to fill a segment; `xtask/tests/exceptions/slrus.rs` starts that far along \
     and compares with the standby",
)];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn folder() -> PathBuf {
    root().join("target/redo")
}

/// Where a run of this name is saved.
pub fn saved(name: &str) -> PathBuf {
    folder().join(format!("{name}.json"))
}

/// The saved runs of a major, added up.
fn totals() -> Result<BTreeMap<u32, Summary>> {
    let mut totals: BTreeMap<u32, Summary> = BTreeMap::new();
    let dir = folder();
    for entry in fs::read_dir(&dir).with_context(|| dir.display().to_string())? {
        let path = entry?.path();
        let run: Summary = serde_json::from_slice(&fs::read(&path)?)
            .with_context(|| path.display().to_string())?;
        totals.entry(run.major).or_default().add(&run);
    }
    ensure!(!totals.is_empty(), "no run was saved in {}", dir.display());
    Ok(totals)
}

/// Writes the document and answers with its path.
///
/// # Errors
/// No run was saved, or the file cannot be written.
pub fn write() -> Result<PathBuf> {
    let path = root().join("docs/redo.md");
    fs::write(&path, document(&totals()?)?)?;
    Ok(path)
}

/// How many of the types that change pages or files were judged, in percent, and the names of those that were not.
///
/// # Errors
/// No such major.
pub fn judged(summary: &Summary, major: u32) -> Result<(f64, Vec<String>)> {
    let major = PgMajor::from_number(major)?;
    let (missing, seen) = covered(summary, major);
    let percent = 100.0 * seen as f64 / (seen + missing.len()) as f64;
    Ok((percent, missing.into_iter().map(|kind| full_name(kind, major)).collect()))
}

fn full_name(kind: &RecordType, major: PgMajor) -> String {
    format!("{} {}", rmgr_name(kind.rmid), name_of(kind.rmid, kind.info, major))
}

/// The types of a major that change pages or files: those not judged, and the number of those that were.
fn covered(summary: &Summary, major: PgMajor) -> (Vec<&'static RecordType>, usize) {
    let wanted = RECORD_TYPES.iter().filter(|kind| matters(kind.changes) && kind.is_in(major));
    let (seen, missing): (Vec<&RecordType>, Vec<&RecordType>) =
        wanted.partition(|kind| is_seen(summary, kind));
    (missing, seen.len())
}

fn counts(summary: &Summary, kind: &RecordType) -> [u64; 4] {
    let key = format!("{}:{:02x}", kind.rmid, kind.info);
    summary.types.get(&key).copied().unwrap_or_default()
}

/// Seen means judged: a type that computes pages must have been compared.
fn is_seen(summary: &Summary, kind: &RecordType) -> bool {
    let [records, _, compared, _] = counts(summary, kind);
    match kind.changes {
        Changes::Pages => compared > 0,
        _ => records > 0,
    }
}

fn document(totals: &BTreeMap<u32, Summary>) -> Result<String> {
    let mut out = String::from(INTRODUCTION);
    let majors: Vec<PgMajor> = PgMajor::ALL.to_vec();
    for major in &majors {
        let Some(summary) = totals.get(&major.number()) else { continue };
        let (missing, seen) = covered(summary, *major);
        let all = seen + missing.len();
        let percent = 100.0 * seen as f64 / all as f64;
        writeln!(
            out,
            "- **{major}**: {seen} of {all} types that change a page or a file judged ({percent:.1} %), \
             {} mismatches.",
            summary.mismatches
        )?;
        for kind in missing {
            let reason = REASONS.iter().find(|(of, _)| *of == (kind.rmid, kind.info));
            let name = full_name(kind, *major);
            let reason = reason.map_or("not seen", |(_, reason)| *reason);
            writeln!(out, "  - {name}: {reason}.")?;
        }
    }
    out.push_str("\n## Record by record\n\nPages compared with Postgres's own image; for types whose images are restored (i) or that \
                  change files (f), records.\n\n| record | changes |");
    for major in &majors {
        write!(out, " {major} |")?;
    }
    out.push_str("\n|---|---|---:|---:|---:|---:|\n");
    for kind in RECORD_TYPES {
        let newest = PgMajor::V18;
        let (old, new) = (kind.name, name_of(kind.rmid, kind.info, newest));
        let name = if old == new { old.to_owned() } else { format!("{old} / {new}") };
        write!(out, "| {} {name} | {} |", rmgr_name(kind.rmid), word(kind.changes))?;
        for major in &majors {
            let cell = totals.get(&major.number()).map_or(String::new(), |summary| {
                let [records, _, compared, _] = counts(summary, kind);
                match kind.changes {
                    _ if !kind.is_in(*major) => "-".to_owned(),
                    Changes::Pages => compared.to_string(),
                    Changes::Images => format!("{records} i"),
                    Changes::Files => format!("{records} f"),
                    Changes::Counters | Changes::Nothing => format!("({records})"),
                }
            });
            write!(out, " {cell} |")?;
        }
        out.push('\n');
    }
    Ok(out)
}

fn word(changes: Changes) -> &'static str {
    match changes {
        Changes::Pages => "pages",
        Changes::Images => "pages, as images",
        Changes::Files => "files",
        Changes::Counters => "counters",
        Changes::Nothing => "nothing",
    }
}

const INTRODUCTION: &str = "# Redo, judged by Postgres

This file is generated: `make test-all` and `make verify-redo` run what it counts, the second writes it.

Redo is native code (`storage/pgfmt/src/redo`, one folder per resource manager); stock Postgres is the judge of every
byte. `cargo xtask verify-redo` replays a base and WAL that was written with `wal_consistency_checking = all`: after each
record, each page is compared with the image that Postgres itself put beside the redo data, under Postgres's own masks;
at the end, every file is compared byte for byte with those of a stock standby that replayed the same WAL: visibility
maps, transaction status, multixacts, commit times, relation maps, sizes, databases, tablespaces, prepared transactions.
Sources of WAL: the workloads in `tests/workloads` on 15 to 18, and Postgres 15's regression suite.

";
