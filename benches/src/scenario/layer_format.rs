//! `layer-format`: what zstd level and block size cost and bring, on the values of real layer files.
//!
//! TPC-B and a table of real text (the sources and documents of this repository, updated once) are written through `treering up`.
//! `flushed`: the newest layers, mostly changes of rows. `merged`: the one run that is left once history has left the window, mostly page
//! images. Both are read value by value and packed again as the engine packs them, in each setting: a block ends once its entries
//! reach the size; zstd frame, crc32, 42 bytes of index.
//!
//! Figures, for each setting: bytes in the file for a byte of values; time on the core to pack a megabyte of them; time on the core
//! to read the blocks of one page (crc32, unpack), drawn at random. `apart` packs page images and everything else in blocks of their own: a
//! read of a page that has both needs two.

use std::{collections::HashMap, path::Path, time::Duration};

use anyhow::{Context, ensure};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::SliceRandom};
use treering_bench::cpu::{Pinned, thread_time};
use treering_engine::inspect::{Inspected, inspect};
use treering_fs::RealFs;
use treering_tests::Treering;
use treering_types::{Key, KeyClass};

use super::{Load, Size};
use crate::report::{Report, Spread};

/// Bytes of an entry beside its value, of a block in the index, and of a checksum: `docs/formats/layer.md`.
const ENTRY_BYTES: usize = 33;
const INDEX_BYTES: usize = 42;
const CRC_BYTES: usize = 4;
/// A value of this size is a page image, or next to one.
const IMAGE_BYTES_MIN: usize = 4096;
const LEVELS: [i32; 5] = [-3, 1, 3, 6, 9];
const BLOCK_KIB: [usize; 5] = [8, 16, 32, 64, 128];
/// The setting that the others are compared with.
const KIB_KEPT: usize = 32;
const LEVEL_KEPT: i32 = 1;
/// Values that one setting packs at most: enough for steady figures, and little enough for many settings.
const SAMPLE_BYTES: usize = 96 << 20;

pub fn run(size: Size) -> anyhow::Result<Vec<Report>> {
    let (scale, seconds, reads) = if size == Size::Full { (20, 60, 3000) } else { (1, 2, 50) };
    let data = Data::make(scale, Duration::from_secs(seconds))?;
    let _pinned = Pinned::to_last_core()?;
    let mut reports = Vec::new();
    for (name, entries) in [("flushed", &data.flushed), ("merged", &data.merged)] {
        let images = entries.iter().filter(|entry| is_image(entry)).count();
        let megabytes = entries.iter().map(|entry| entry.bytes.len()).sum::<usize>() / 1_000_000;
        eprintln!("  {name}: {} values of {megabytes} MB, {images} of them images", entries.len());
        let settings =
            BLOCK_KIB.iter().map(|kib| Setting { level: LEVEL_KEPT, kib: *kib, apart: false });
        let levels =
            LEVELS.iter().map(|level| Setting { level: *level, kib: KIB_KEPT, apart: false });
        let apart =
            LEVELS.iter().map(|level| Setting { level: *level, kib: KIB_KEPT, apart: true });
        for setting in settings.chain(levels).chain(apart) {
            let measured = measure(entries, setting, reads)?;
            reports.extend(measured.reports(format!("{name}, {setting}")));
        }
    }
    Ok(reports)
}

#[derive(Clone, Copy)]
struct Setting {
    level: i32,
    kib: usize,
    /// Images in blocks of their own.
    apart: bool,
}

impl std::fmt::Display for Setting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let apart = if self.apart { ", apart" } else { "" };
        write!(f, "level {}, {} KiB{apart}", self.level, self.kib)
    }
}

struct Entry {
    key: Key,
    bytes: Vec<u8>,
}

fn is_image(entry: &Entry) -> bool {
    entry.bytes.len() >= IMAGE_BYTES_MIN
}

/// Values in the order of their files.
struct Data {
    flushed: Vec<Entry>,
    merged: Vec<Entry>,
}

impl Data {
    fn make(scale: u32, load: Duration) -> anyhow::Result<Data> {
        let treering = Treering::start_with(&["--pitr-window", "1s", "--lsn-lease-length", "1s"]);
        treering.run("pgbench", "main", &["-i", "-q", "-s", &scale.to_string()]);
        real_table(&treering)?;
        let busy = Load::start(&treering, 4)?;
        std::thread::sleep(load);
        drop(busy);
        treering.sql("main", "UPDATE texts SET line = upper(line) WHERE n % 5 = 0");
        treering.ok(&["stop", "main"]);
        let branch = treering.json(&["branch", "get", "main"]);
        let id = |name: &str| branch[name].as_str().context("an id").map(str::to_owned);
        let (tenant, timeline) = (id("tenant_id")?, id("timeline_id")?);
        let path = format!("/v1/tenant/{tenant}/timeline/{timeline}");
        let directory =
            treering.data_dir().join("pageserver/tenants").join(&tenant).join(&timeline);
        post(&treering, &format!("{path}/flush"), "{}")?;
        let flushed = values(&directory)?;
        post(&treering, &format!("{path}/gc"), "{}")?;
        post(&treering, &format!("{path}/compact"), r#"{"force": true}"#)?;
        let merged = values(&directory)?;
        Ok(Data { flushed, merged })
    }
}

/// A table of lines that people wrote, with an index.
fn real_table(treering: &Treering) -> anyhow::Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the repository")?;
    let mut text = String::new();
    for part in ["storage", "docs", "safekeeper", "compute-proxy", "pageserver", "control"] {
        gather(&root.join(part), &mut text)?;
    }
    let mut psql = treering.program("psql", "main");
    psql.args(["-X", "-q", "-v", "ON_ERROR_STOP=1"]).stdin(std::process::Stdio::piped());
    let mut child = psql.spawn()?;
    {
        use std::io::Write;
        let mut stdin = child.stdin.take().context("standard input")?;
        writeln!(stdin, "CREATE TABLE texts (n serial, at timestamptz DEFAULT now(), line text);")?;
        writeln!(stdin, "COPY texts (line) FROM stdin;")?;
        for line in text.lines().filter(|line| !line.is_empty()) {
            writeln!(stdin, "{}", line.replace('\\', "\\\\").replace('\t', "  "))?;
        }
        writeln!(stdin, "\\.")?;
        writeln!(stdin, "CREATE INDEX ON texts (n); CREATE INDEX ON texts (md5(line));")?;
    }
    ensure!(child.wait()?.success(), "the table of texts cannot be loaded");
    Ok(())
}

fn gather(directory: &Path, text: &mut String) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        let is_text = path.extension().is_some_and(|e| e == "rs" || e == "md");
        if path.is_dir() {
            gather(&path, text)?;
        } else if is_text && let Ok(more) = std::fs::read_to_string(&path) {
            text.push_str(&more);
            text.push('\n');
        }
    }
    Ok(())
}

fn post(treering: &Treering, path: &str, body: &'static str) -> anyhow::Result<()> {
    let url = format!("{}{path}", treering.address("pageserver_http"));
    let client = reqwest::blocking::Client::builder().timeout(None).build()?;
    let request = client.post(&url).header("content-type", "application/json").body(body);
    request.send()?.error_for_status()?;
    Ok(())
}

/// Of all layers below a directory, newest file first, up to the size of a sample.
fn values(directory: &Path) -> anyhow::Result<Vec<Entry>> {
    let mut layers: Vec<_> = std::fs::read_dir(directory)?
        .map(|entry| Ok(entry?.path()))
        .collect::<std::io::Result<Vec<_>>>()?;
    layers.retain(|path| path.extension().is_some_and(|e| e == "layer"));
    // Newest first: what the load wrote, before what was there when it began.
    layers.sort_by_key(|path| std::cmp::Reverse(path.clone()));
    let (mut entries, mut bytes) = (Vec::new(), 0);
    for path in layers {
        let mut each = |entry: treering_engine::inspect::Entry<'_>| {
            if bytes < SAMPLE_BYTES {
                bytes += entry.bytes.len();
                entries.push(Entry { key: entry.key, bytes: entry.bytes.to_vec() });
            }
        };
        let Inspected::Layer(report) = inspect(&RealFs, &path, &mut each)? else {
            anyhow::bail!("{} is no layer", path.display());
        };
        ensure!(report.damage.is_empty(), "{} is damaged", path.display());
    }
    ensure!(!entries.is_empty(), "no values below {}", directory.display());
    Ok(entries)
}

/// What one setting comes to.
struct Measured {
    /// Bytes in the file for a byte of values.
    share: f64,
    /// Milliseconds on the core to pack a megabyte.
    packing: Spread,
    /// Microseconds on the core to unpack what a page lies in.
    reading: Spread,
}

impl Measured {
    fn reports(&self, label: String) -> [Report; 3] {
        let mut share = Spread::default();
        share.push(100.0 * self.share);
        [
            Report::figure("layer-format", format!("{label}: size"), "% of values", &share),
            Report::figure("layer-format", format!("{label}: write"), "ms/MB", &self.packing),
            Report::figure("layer-format", format!("{label}: read"), "us", &self.reading),
        ]
    }
}

struct Packed {
    frame: Vec<u8>,
    raw_len: usize,
}

fn measure(entries: &[Entry], setting: Setting, reads: usize) -> anyhow::Result<Measured> {
    let values: usize = entries.iter().map(|entry| entry.bytes.len()).sum();
    let mut packing = Spread::default();
    let (mut packed, mut homes) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        let began = thread_time();
        (packed, homes) = pack(entries, setting)?;
        let took = thread_time() - began;
        packing.push(took.as_secs_f64() * 1e3 / (values as f64 / 1e6));
    }
    let stored: usize =
        packed.iter().map(|block| block.frame.len() + CRC_BYTES + INDEX_BYTES).sum();
    let reading = read(entries, &packed, &homes, reads)?;
    Ok(Measured { share: stored as f64 / values as f64, packing, reading })
}

/// Blocks, and the block of each entry.
fn pack(entries: &[Entry], setting: Setting) -> anyhow::Result<(Vec<Packed>, Vec<usize>)> {
    let mut compressor = zstd::bulk::Compressor::new(setting.level)?;
    let mut blocks: Vec<Packed> = Vec::new();
    let mut homes = vec![0; entries.len()];
    // One under construction of each kind: its bytes, and who lies in it.
    let mut open: [(Vec<u8>, Vec<usize>); 2] = Default::default();
    let mut end = |(raw, members): &mut (Vec<u8>, Vec<usize>), homes: &mut Vec<usize>| {
        if members.is_empty() {
            return Ok::<(), std::io::Error>(());
        }
        raw.resize(raw.len() + 4 * members.len() + 4, 7);
        members.drain(..).for_each(|member| homes[member] = blocks.len());
        blocks.push(Packed { frame: compressor.compress(raw)?, raw_len: raw.len() });
        raw.clear();
        Ok(())
    };
    for (number, entry) in entries.iter().enumerate() {
        let block = &mut open[usize::from(setting.apart && is_image(entry))];
        block.0.extend_from_slice(&entry.key.0);
        block.0.extend_from_slice(&(number as u64).to_le_bytes());
        block.0.resize(block.0.len() + ENTRY_BYTES - 26, 0);
        block.0.extend_from_slice(&entry.bytes);
        block.1.push(number);
        if block.0.len() >= setting.kib << 10 {
            end(block, &mut homes)?;
        }
    }
    open.iter_mut().try_for_each(|block| end(block, &mut homes))?;
    Ok((blocks, homes))
}

/// Pages drawn at random; each reads the blocks of all its values.
fn read(
    entries: &[Entry],
    packed: &[Packed],
    homes: &[usize],
    reads: usize,
) -> anyhow::Result<Spread> {
    let mut of_key: HashMap<Key, Vec<usize>> = HashMap::new();
    let is_page = |entry: &Entry| entry.key.class() == Ok(KeyClass::RelBlock);
    for (entry, home) in entries.iter().zip(homes).filter(|(entry, _)| is_page(entry)) {
        let blocks = of_key.entry(entry.key).or_default();
        if !blocks.contains(home) {
            blocks.push(*home);
        }
    }
    let mut keys: Vec<&Vec<usize>> = of_key.values().collect();
    let mut dice = StdRng::seed_from_u64(1);
    keys.sort();
    keys.shuffle(&mut dice);
    let mut unpacker = zstd::bulk::Decompressor::new()?;
    let mut spread = Vec::with_capacity(reads);
    let mut sum = 0u64;
    for _ in 0..reads {
        let blocks = keys[dice.random_range(0..keys.len())];
        let began = thread_time();
        for block in blocks {
            let Packed { frame, raw_len } = &packed[*block];
            let raw = unpacker.decompress(frame, *raw_len)?;
            ensure!(raw.len() == *raw_len, "a block unpacks to something else");
            sum = sum.wrapping_add(u64::from(crc32fast::hash(frame)));
        }
        spread.push((thread_time() - began).as_secs_f64() * 1e6);
    }
    ensure!(sum > 0, "nothing was read");
    let mut reading = Spread::default();
    spread.into_iter().for_each(|value| reading.push(value));
    Ok(reading)
}
