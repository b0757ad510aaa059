//! Makes seeds of what a real server wrote: `seeds MAJOR FOLDER WAL_DIR SEEDS [RMGR...]`.
//!
//! FOLDER is the data directory as it was before the WAL in WAL_DIR, which begins at its checkpoint. For each kind
//! of record, page and image there is one seed, the first seen, and one more if a smaller one came later; only for
//! the resource managers named, if any are. Seeds are committed: they are where the fuzzer starts.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result, bail};
use treering_fuzz::{
    redo_case::RedoCase,
    wal_case::{Content, Item, WalCase},
};
use treering_pgfmt::{
    change::{PageChange, RecordPart},
    control::ControlFile,
    judge::Judge,
    redo::{self, rmgr, rmgr_name},
    version::PgMajor,
    wal::{
        effects::{Effect, effects},
        reader::WalDecoder,
        record::{RECORD_HEADER_SIZE, Record},
        state::ClusterState,
    },
};
use treering_types::{Key, Lsn, PAGE_SIZE, WAL_SEGMENT_SIZE};

/// Larger seeds are not worth their room.
const SEED_MAX: usize = 9 * 1024;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments) {
        Ok(count) => {
            println!("{count} seeds");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("seeds: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[String]) -> Result<usize> {
    let [major, before, wal_dir, seeds, only @ ..] = arguments else {
        bail!("usage: seeds MAJOR FOLDER WAL_DIR SEEDS [RMGR...]");
    };
    let major = PgMajor::from_number(major.parse()?)?;
    let file = fs::read(Path::new(before).join("global/pg_control")).context("pg_control")?;
    let control = ControlFile::parse(&file)?;
    let mut maker = Maker {
        major,
        only,
        judge: Judge::new(major, ClusterState::from_control(&control), ()),
        found: BTreeMap::new(),
    };
    if only.is_empty() {
        maker.offer("control", "pg_control", [&[0, index_of(major)], &file[..300]].concat());
        let map = fs::read(Path::new(before).join("global/pg_filenode.map"))?;
        maker.offer("control", "map", [&[1, index_of(major)], &map[..]].concat());
    }
    read_wal(major, Path::new(wal_dir), control.checkpoint_start(), &mut maker)?;
    maker.write(Path::new(seeds))
}

fn index_of(major: PgMajor) -> u8 {
    PgMajor::ALL.iter().position(|known| *known == major).unwrap_or(0) as u8
}

/// Feeds every record to `maker`, up to where the WAL ends.
fn read_wal(major: PgMajor, wal_dir: &Path, start: Lsn, maker: &mut Maker<'_>) -> Result<()> {
    let mut decoder = WalDecoder::new(major, start);
    let mut at = start;
    while let Ok(segment) = fs::read(wal_dir.join(at.segment_file_name(1))) {
        decoder.feed(&segment[at.segment_offset() as usize..]);
        if at.segment_offset() == 0 {
            maker.raw(&segment[..12_000]);
        }
        at = at.segment_start() + WAL_SEGMENT_SIZE;
        loop {
            match decoder.next_record() {
                Ok(Some(raw)) => maker.take(&Record::decode(major, &raw)?),
                Ok(None) => break,
                Err(error) => {
                    println!("WAL ends at {}: {error}", decoder.position());
                    return Ok(());
                }
            }
        }
    }
    Ok(())
}

/// A fuzz target and the name of a seed.
type Place = (&'static str, String);

struct Maker<'a> {
    major: PgMajor,
    /// Resource managers to keep; all if empty.
    only: &'a [String],
    judge: Judge<()>,
    /// The first and the smallest of each kind.
    found: BTreeMap<Place, (Vec<u8>, Vec<u8>)>,
}

impl Maker<'_> {
    fn offer(&mut self, target: &'static str, name: &str, seed: Vec<u8>) {
        if seed.len() > SEED_MAX && target != "wal_reader" {
            return;
        }
        let place = (target, format!("{name}-{}", self.major));
        let (_, smallest) = self.found.entry(place).or_insert_with(|| (seed.clone(), seed.clone()));
        if seed.len() < smallest.len() {
            *smallest = seed;
        }
    }

    fn wanted(&self, rmid: u8) -> bool {
        let name = rmgr_name(rmid);
        self.only.is_empty() || self.only.iter().any(|only| only.eq_ignore_ascii_case(name))
    }

    fn take(&mut self, record: &Record<'_>) {
        if self.wanted(record.rmid) {
            self.record(record);
            self.changes(record);
        }
        self.judge.judge(record);
    }

    fn record(&mut self, record: &Record<'_>) {
        let images = record.blocks.iter().filter_map(|block| block.image.as_ref());
        let mut packed = "";
        for image in images {
            packed = if image.apply { "-image" } else { "-check" };
            let method = image.compression as u8;
            let [offset, length] = [image.hole_offset, image.hole_length].map(u16::to_le_bytes);
            let seed = [&[method][..], &offset, &length, &image.bytes.join()].concat();
            self.offer("image", &format!("{:?}", image.compression).to_lowercase(), seed);
        }
        if packed == "-check" || record.raw.len() > SEED_MAX {
            return;
        }
        let item = Item {
            lies: 0,
            rmid: record.rmid,
            info: record.info,
            xid: record.xid,
            body: record.raw.whole()[RECORD_HEADER_SIZE..].to_vec(),
        };
        let content = Content::Records(vec![item]);
        let case = WalCase {
            major: self.major,
            flags: 8 | 32,
            start: record.xid as u8 % 6,
            cut: 0,
            patches: Vec::new(),
            content,
        };
        let name = format!("{}{packed}", kind_name(record.rmid, record.info));
        self.offer("wal_reader", &name, case.write());
    }

    /// The beginning of a segment as it is.
    fn raw(&mut self, bytes: &[u8]) {
        if self.only.is_empty() {
            let content = Content::Raw(bytes.to_vec());
            let patches = Vec::new();
            let case = WalCase { major: self.major, flags: 0, start: 0, cut: 7, patches, content };
            self.offer("wal_reader", "raw", case.write());
        }
    }

    fn changes(&mut self, record: &Record<'_>) {
        let mut state = self.judge.state.clone();
        for effect in effects(&mut state, record, self.major).unwrap_or_default() {
            match effect {
                Effect::Page { rel, block, change } => {
                    self.change(record, &Key::rel_block(rel, block), change);
                }
                Effect::PageIfExists { change, .. } | Effect::Slru { change, .. } => {
                    self.offer("page_change", tag_name(&change), change.encode().to_vec());
                }
                _ => {}
            }
        }
    }

    fn change(&mut self, record: &Record<'_>, key: &Key, change: PageChange<'_>) {
        self.offer("page_change", tag_name(&change), change.encode().to_vec());
        let before = self.judge.page(key).filter(|held| held.readable);
        let before = before.map_or_else(|| Box::new([0; PAGE_SIZE]), |held| held.bytes.clone());
        let (part, with_image, page) = match change.clone() {
            PageChange::Record(part) => (part, false, before),
            PageChange::ImageThenRecord(both) => (both.1, true, both.0.to_page()),
            _ => return,
        };
        let mut after = page.clone();
        if redo::apply(self.major, key, record.end, &change, &mut after).is_err() {
            return;
        }
        let image = if with_image { "-image" } else { "" };
        let init = if part.will_init { "-init" } else { "" };
        let name =
            format!("{}-block{}{init}{image}", kind_name(part.rmid, part.info), part.block_id);
        let page_number = key.block();
        let part = RecordPart {
            rmid: part.rmid,
            info: part.info,
            xid: part.xid,
            block_id: part.block_id,
            will_init: part.will_init,
            hints_logged: part.hints_logged,
            blocks: part.blocks,
            data: part.data.into_owned().into(),
            main: part.main.into_owned().into(),
        };
        let case = RedoCase { major: self.major, with_image, page_number, part, page };
        self.offer("redo", &name, case.write());
    }

    fn write(self, seeds: &Path) -> Result<usize> {
        let mut count = 0;
        for ((target, name), (first, smallest)) in self.found {
            let path: PathBuf = seeds.join(target).join(name);
            fs::create_dir_all(seeds.join(target))?;
            fs::write(&path, &first)?;
            count += 1;
            if smallest.len() * 2 < first.len() {
                fs::write(path.with_extension("small"), &smallest)?;
                count += 1;
            }
        }
        Ok(count)
    }
}

/// Resource manager and record type, as far as the info bits tell types apart.
fn kind_name(rmid: u8, info: u8) -> String {
    let info = if rmid == rmgr::XACT { info & 0xf8 } else { info & 0xf0 };
    format!("{}-{info:02x}", rmgr_name(rmid).to_lowercase())
}

fn tag_name(change: &PageChange<'_>) -> &'static str {
    match change {
        PageChange::Image(_) => "image",
        PageChange::Zero => "zero",
        PageChange::Record(_) => "record",
        PageChange::VisibilityClear { .. } => "visibility-clear",
        PageChange::VisibilityTruncate { .. } => "visibility-truncate",
        PageChange::XactStatus { .. } => "xact-status",
        PageChange::CommitTime { .. } => "commit-time",
        PageChange::MultiOffsets(_) => "multi-offsets",
        PageChange::MultiMembers(_) => "multi-members",
        PageChange::ZeroMultiOffsets => "zero-multi-offsets",
        PageChange::ImageThenRecord(_) => "image-then-record",
        PageChange::Unhandled { .. } => "unhandled",
    }
}
