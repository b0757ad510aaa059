//! `storage scrub`.

use std::path::PathBuf;

use anyhow::{Context, bail};
use serde::Serialize;
use treering_engine::{EngineError, Finding, Leftover, ScrubReport, Span, scrub_directory};
use treering_fs::RealFs;
use treering_types::{Fork, Key, KeyClass, Lsn, TimelineId};

use super::{engine_root, is_cache, names::Names, people};
use crate::{cli::Place, output::Format};

/// What was read and found.
#[derive(Serialize)]
struct Scrubbed {
    /// Nothing is damaged.
    clean: bool,
    projects: usize,
    branches: usize,
    layers: usize,
    layer_bytes: u64,
    blocks: usize,
    values: u64,
    /// Layers that only the object store has: not read.
    absent_layers: usize,
    damage: Vec<Damage>,
    /// `None` while Treering runs: what is left over cannot be told from what is being made.
    leftovers: Option<Vec<Leftover>>,
}

/// One thing that is wrong.
#[derive(Serialize)]
struct Damage {
    project: String,
    /// The branch whose file it is; `None` for a project's manifest.
    branch: Option<String>,
    timeline_id: Option<TimelineId>,
    path: PathBuf,
    error: String,
    /// What cannot be read.
    what: String,
    key_first: Option<String>,
    key_last: Option<String>,
    /// Reads below it do not need it; `None`: all reads do.
    from_lsn: Option<Lsn>,
    /// What it means.
    consequence: String,
    /// Branches that need it.
    harmed: Vec<String>,
}

/// Reads everything; fails when something is damaged.
pub fn run(place: &Place, output: Format) -> anyhow::Result<()> {
    let is_in_use = place.data_dir().is_in_use()?;
    let names = Names::find(place, is_in_use);
    let root = engine_root(place);
    let report = scrub_directory(&RealFs, &root, is_in_use, is_cache(place))
        .with_context(|| format!("list {}", root.display()))?;
    let damage: Vec<Damage> =
        report.findings.iter().map(|f| describe(f, &report, &names)).collect();
    let damaged = damage.len();
    let scrubbed = Scrubbed {
        clean: damaged == 0,
        projects: report.tenants,
        branches: report.timelines,
        layers: report.layers,
        layer_bytes: report.bytes,
        blocks: report.blocks,
        values: report.values,
        absent_layers: report.absent_layers,
        damage,
        leftovers: (!is_in_use).then_some(report.leftovers),
    };
    output.show(&scrubbed, text)?;
    if is_in_use {
        eprintln!("treering is running: files that no manifest names were not looked for");
    }
    if report.absent_layers > 0 {
        let absent = self::count(report.absent_layers as u64, "layer is", "layers are");
        eprintln!("{absent} in the object store only: not read");
    }
    match damaged {
        0 => Ok(()),
        1 => bail!("one thing is damaged"),
        _ => bail!("{damaged} things are damaged"),
    }
}

fn describe(finding: &Finding, report: &ScrubReport, names: &Names) -> Damage {
    let mut harmed: Vec<String> =
        report.harmed_by(finding).into_iter().map(|id| names.branch(id)).collect();
    harmed.sort();
    let project = names.project(finding.tenant);
    let branch = finding.timeline.map(|id| names.branch(id));
    let (what, consequence) = match (&finding.span, &branch) {
        (Some(span), _) => (
            span_text(span),
            format!(
                "reads that need it fail; nothing wrong is served. Reads below {} do not",
                span.from
            ),
        ),
        (None, Some(branch)) => (
            format!("which layers branch {branch} has"),
            "the pageserver does not start, for any branch".to_owned(),
        ),
        (None, None) => (
            format!("which branches project {project} has"),
            "the pageserver does not start, for any branch".to_owned(),
        ),
    };
    let key = |key: Key| format!("{key:?}");
    Damage {
        project,
        branch,
        timeline_id: finding.timeline,
        path: finding.path.clone(),
        error: sentence(&finding.error),
        what,
        key_first: finding.span.map(|span| key(span.keys.0)),
        key_last: finding.span.map(|span| key(span.keys.1)),
        from_lsn: finding.span.map(|span| span.from),
        consequence,
        harmed,
    }
}

/// The error without the path, which is printed before it.
fn sentence(error: &EngineError) -> String {
    match error {
        EngineError::Corrupt { offset: 0, what, .. } => what.clone(),
        EngineError::Corrupt { offset, what, .. } => format!("{what}, at offset {offset}"),
        other => other.to_string(),
    }
}

fn span_text(Span { keys: (first, last), .. }: &Span) -> String {
    let class = |key: &Key| match key.class() {
        Ok(KeyClass::RelMeta) => "sizes of relations",
        Ok(KeyClass::RelBlock) => "pages of relations",
        Ok(KeyClass::Slru) => "transaction status",
        Ok(KeyClass::RelMap) => "relation maps",
        Ok(KeyClass::TwoPhase) => "prepared transactions",
        Ok(KeyClass::Control) => "control state",
        Ok(KeyClass::TimeIndex) => "the index of commit times",
        Ok(KeyClass::RecordEnds) => "the index of record ends",
        Ok(KeyClass::Unhandled) => "notes of records that cannot be redone",
        Ok(KeyClass::Origin) => "replication origins",
        Err(_) => "an unknown kind of key",
    };
    match (first.rel(), last.rel()) {
        (Some(a), Some(b)) if a == b && first.class() == Ok(KeyClass::RelBlock) => {
            let fork = if a.fork == Fork::Main { "" } else { "side " };
            match (first.block(), last.block()) {
                (from, to) if from == to => format!("{fork}page {from} of relation {a}"),
                (from, to) => format!("{fork}pages {from} to {to} of relation {a}"),
            }
        }
        (Some(a), Some(b)) if first.class() == last.class() => {
            format!("{}, from {a} to {b}", class(first))
        }
        _ if first.class() == last.class() => class(first).to_owned(),
        _ => format!("everything from {} to {}", class(first), class(last)),
    }
}

fn text(scrubbed: &Scrubbed) -> String {
    let mut lines = Vec::new();
    for damage in &scrubbed.damage {
        let whose = match &damage.branch {
            Some(branch) => format!("branch {branch}"),
            None => format!("project {}", damage.project),
        };
        lines.push(format!("damaged  {whose}: {}", damage.path.display()));
        lines.push(format!("         {}", damage.error));
        lines.push(format!("  lost   {}", damage.what));
        lines.push(format!("         {}", damage.consequence));
        lines.push(format!("  needed by  {}", damage.harmed.join(", ")));
    }
    for leftover in scrubbed.leftovers.iter().flatten() {
        lines.push(format!("left over  {}: {}", leftover.path.display(), leftover.what));
    }
    let verdict = if scrubbed.clean { "nothing is damaged" } else { "damaged, see above" };
    let read = [
        count(scrubbed.branches as u64, "branch", "branches"),
        count(scrubbed.layers as u64, "layer", "layers") + " of " + &people(scrubbed.layer_bytes),
        count(scrubbed.blocks as u64, "block", "blocks"),
        count(scrubbed.values, "value", "values"),
    ];
    lines.push(format!("{}: {verdict}", read.join(", ")));
    lines.join("\n")
}

fn count(number: u64, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}
