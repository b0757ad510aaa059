//! `storage inspect FILE`.

use std::path::Path;

use anyhow::{Context, bail};
use serde::Serialize;
use treering_engine::inspect::{
    Entry, Inspected, LayerReport, TenantReport, TimelineReport, inspect,
};
use treering_fs::RealFs;
use treering_types::Lsn;

use super::people;
use crate::output::{Format, table};

/// How much to print.
#[derive(Clone, Copy)]
pub struct Detail {
    pub keys: bool,
    pub blocks: bool,
}

/// A file's contents.
#[derive(Serialize)]
struct Shown<'a> {
    path: &'a Path,
    #[serde(flatten)]
    inspected: Inspected,
    /// With `--keys`.
    #[serde(skip_serializing_if = "Option::is_none")]
    entries: Option<Vec<Value>>,
}

/// One value of a layer.
#[derive(Serialize)]
struct Value {
    key: String,
    lsn: Lsn,
    base: bool,
    chain: u16,
    bytes: usize,
}

impl From<Entry<'_>> for Value {
    fn from(entry: Entry<'_>) -> Value {
        let Entry { key, lsn, base, chain, bytes } = entry;
        Value { key: format!("{key:?}"), lsn, base, chain, bytes: bytes.len() }
    }
}

/// Prints the file; fails when something is wrong with it.
pub fn run(path: &Path, detail: Detail, output: Format) -> anyhow::Result<()> {
    let mut entries = detail.keys.then(Vec::new);
    let mut each = |entry: Entry<'_>| {
        if let Some(entries) = &mut entries {
            entries.push(Value::from(entry));
        }
    };
    let inspected =
        inspect(&RealFs, path, &mut each).with_context(|| path.display().to_string())?;
    let count = inspected.damage().len();
    output.show(&Shown { path, inspected, entries }, |shown| text(shown, detail))?;
    if count > 0 {
        bail!("{} is damaged", path.display());
    }
    Ok(())
}

fn text(shown: &Shown<'_>, detail: Detail) -> String {
    let mut lines = match &shown.inspected {
        Inspected::Layer(report) => layer(report, detail),
        Inspected::TenantManifest(report) => tenant(report),
        Inspected::TimelineManifest(report) => timeline(report),
    };
    if let Some(entries) = &shown.entries {
        lines.push(String::new());
        lines.push(table(
            &["KEY", "LSN", "BASE", "CHAIN", "BYTES"],
            entries.iter().map(|value| {
                let base = if value.base { "yes" } else { "" };
                let gone =
                    if value.bytes == 0 { "gone".to_owned() } else { value.bytes.to_string() };
                let (lsn, chain) = (value.lsn.to_string(), value.chain.to_string());
                vec![value.key.clone(), lsn, base.to_owned(), chain, gone]
            }),
        ));
    }
    let damage = shown.inspected.damage();
    lines.push(String::new());
    lines.extend(damage.iter().map(|d| format!("damaged  offset {}: {}", d.offset, d.what)));
    if damage.is_empty() {
        lines.push("nothing is wrong with it".to_owned());
    }
    lines.join("\n")
}

fn layer(report: &LayerReport, detail: Detail) -> Vec<String> {
    let mut lines = vec![format!("layer file, {} bytes", report.size)];
    match &report.footer {
        Some(footer) => lines.extend([
            format!("project   {}", footer.tenant),
            format!("timeline  {}", footer.timeline),
            format!(
                "number    {}{}",
                footer.number,
                if footer.complete { ", complete" } else { "" }
            ),
            format!("keys      {} to {}", footer.key_first, footer.key_last),
            format!("lsns      {} to {}", footer.lsn_first, footer.lsn_last),
            format!("values    {}, by the footer", footer.entries),
            format!("bloom     {} bytes at {}", footer.bloom_len, footer.bloom_offset),
            format!("index     {} bytes at {}", footer.index_len, footer.index_offset),
            format!("sha-256   {}", footer.digest),
        ]),
        None => lines.push("the footer cannot be read".to_owned()),
    }
    let (stored, raw) = report
        .blocks
        .iter()
        .fold((0, 0), |(stored, raw), block| (stored + block.stored_len, raw + block.raw_len));
    lines.push(format!(
        "blocks    {} by {}: {} bytes of {} unpacked",
        report.blocks.len(),
        report.blocks_from,
        stored,
        raw
    ));
    lines.push(format!(
        "found     {} values of {}: {} bases, {} tombstones",
        report.values,
        people(report.value_bytes),
        report.bases,
        report.tombstones
    ));
    lines.extend(
        report.values_by_class.iter().map(|(class, count)| format!("  {count:>10} {class}")),
    );
    if report.bloom_bits > 0 {
        let share = 100.0 * report.bloom_bits_set as f64 / report.bloom_bits as f64;
        lines.push(format!("filter    {} bits, {share:.0} % set", report.bloom_bits));
    }
    if detail.blocks {
        lines.push(String::new());
        lines.push(table(
            &["OFFSET", "STORED", "UNPACKED", "VALUES", "FIRST KEY", "FIRST LSN"],
            report.blocks.iter().map(|block| {
                let values = block.entries.map_or("damaged".to_owned(), |count| count.to_string());
                let lsn = block.first_lsn.map_or_else(String::new, |lsn| lsn.to_string());
                let [offset, stored, raw] =
                    [block.offset, block.stored_len, block.raw_len].map(|n| n.to_string());
                vec![offset, stored, raw, values, block.first_key.clone(), lsn]
            }),
        ));
    }
    lines
}

fn version(version: Option<u32>) -> String {
    version.map_or_else(|| "?".to_owned(), |version| version.to_string())
}

fn tenant(report: &TenantReport) -> Vec<String> {
    let mut lines = vec![format!(
        "manifest of a project, version {}, {} bytes",
        version(report.head.version),
        report.head.size
    )];
    let Some(tenant) = report.tenant else {
        lines.push("its contents cannot be read".to_owned());
        return lines;
    };
    lines.extend([
        format!("project     {tenant}"),
        format!("written     {} times", report.sequence),
        format!("postgres    {}, system {}", report.pg_version, report.system_id),
        format!("next pg_tli {}", report.next_pg_tli),
        String::new(),
        table(
            &["TIMELINE", "ANCESTOR", "START", "PG_TLI", "FLUSHED"],
            report.timelines.iter().map(|timeline| {
                let ancestor = timeline.ancestor.map_or("-".to_owned(), |id| id.to_string());
                let flushed = if timeline.flushed { "yes" } else { "no" };
                let (id, start) = (timeline.timeline.to_string(), timeline.start_lsn.to_string());
                vec![id, ancestor, start, timeline.pg_tli.to_string(), flushed.to_owned()]
            }),
        ),
    ]);
    lines
}

fn timeline(report: &TimelineReport) -> Vec<String> {
    let mut lines = vec![format!(
        "manifest of a timeline, version {}, {} bytes",
        version(report.head.version),
        report.head.size
    )];
    let (Some(tenant), Some(timeline)) = (report.tenant, report.timeline) else {
        lines.push("its contents cannot be read".to_owned());
        return lines;
    };
    let cut_off = if report.cut_off.is_valid() { report.cut_off.to_string() } else { "-".into() };
    lines.extend([
        format!("project     {tenant}"),
        format!("timeline    {timeline}, pg_tli {}", report.pg_tli),
        format!("written     {} times", report.sequence),
        format!("complete up to  {}", report.disk_consistent_lsn),
        format!("cut-off     {cut_off}"),
        format!("next layer  {}", report.next_layer),
    ]);
    lines.extend(report.leases.iter().map(|lsn| format!("leased      {lsn}")));
    let rows = report.runs.iter().enumerate().flat_map(|(number, run)| {
        run.layers.iter().map(move |layer| {
            let complete = if layer.complete { "yes" } else { "" };
            vec![
                number.to_string(),
                layer.file.clone(),
                layer.size.to_string(),
                layer.entries.to_string(),
                format!("{} to {}", layer.lsn_first, layer.lsn_last),
                complete.to_owned(),
                format!("{} to {}", layer.key_first, layer.key_last),
            ]
        })
    });
    lines.push(String::new());
    lines.push(table(&["RUN", "FILE", "BYTES", "VALUES", "LSNS", "COMPLETE", "KEYS"], rows));
    lines
}
