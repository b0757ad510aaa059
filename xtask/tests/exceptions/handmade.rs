//! WAL written by hand, for what no server writes at will: judged by stock redo as all other.

use std::path::{Path, PathBuf};

use treering_pgfmt::{
    control::CheckPoint,
    redo::rmgr,
    version::PgMajor,
    wal::encode::{self, Origin},
};
use treering_types::{Fork, Lsn, PAGE_SIZE, RelTag};

use super::scene::{Scene, copy, end_of, overwrite, read_control};

/// A block reference.
#[derive(Clone, Default)]
pub struct Ref {
    pub fork: u8,
    pub relation: u32,
    pub block: u32,
    pub will_init: bool,
    pub data: Vec<u8>,
    /// A whole page that redo restores, without a hole; empty: none.
    pub image: Vec<u8>,
}

impl Ref {
    pub fn new(relation: u32, block: u32) -> Ref {
        Ref { relation, block, ..Ref::default() }
    }

    pub fn data(self, data: &[u8]) -> Ref {
        Ref { data: data.to_vec(), ..self }
    }

    pub fn image(self, image: &[u8; PAGE_SIZE]) -> Ref {
        Ref { image: image.to_vec(), ..self }
    }
}

/// Where hand-made relations are: `pg_default` and the database `postgres`.
pub const DATABASE: u32 = 5;

pub fn rel(relation: u32) -> RelTag {
    RelTag { tablespace: 1663, database: DATABASE, relation, fork: Fork::Main }
}

/// Appends records to the WAL of a stopped cluster.
pub struct Writer {
    base: PathBuf,
    origin: Origin,
    start: Lsn,
    at: Lsn,
    prev: Lsn,
    bytes: Vec<u8>,
    /// What the checkpoint at the end will say. Tests keep it as their records demand.
    pub counters: CheckPoint,
}

impl Writer {
    pub fn new(base: &Path) -> Writer {
        let control = read_control(base);
        let at = end_of(base);
        let origin = Origin { major: control.major(), tli: 1, system_id: control.system_id() };
        Writer {
            base: base.to_owned(),
            origin,
            start: at,
            at,
            prev: control.checkpoint_start(),
            bytes: Vec::new(),
            counters: control.checkpoint(),
        }
    }

    pub fn major(&self) -> PgMajor {
        self.origin.major
    }

    /// Returns the record's end.
    pub fn record(&mut self, xid: u32, rmid: u8, info: u8, refs: &[Ref], main: &[u8]) -> Lsn {
        let body = body(refs, main);
        let raw = encode::record(xid, self.prev, info, rmid, &body);
        let laid_out = encode::lay_out(&self.origin, self.at, &raw);
        self.bytes.extend_from_slice(&laid_out.bytes);
        (self.prev, self.at) = (laid_out.record_start, laid_out.end);
        self.at
    }

    /// A SLRU page number as this major writes it.
    pub fn page_number(&self, page: u32) -> Vec<u8> {
        let size = self.major().layout().slru_page_number_size;
        u64::from(page).to_le_bytes()[..size].to_vec()
    }

    /// Ends the WAL with a shutdown checkpoint and has it judged.
    pub fn judge(mut self) -> Scene {
        let start = encode::record_start_after(self.at);
        let checkpoint = CheckPoint { redo: start, ..self.counters };
        self.record(0, rmgr::XLOG, 0x00, &[], &checkpoint.encode());
        let wal = self.base.with_file_name("wal");
        copy(&self.base.join("pg_wal"), &wal).unwrap();
        overwrite(&wal, self.start, &self.bytes);
        Scene::judge(&self.base, &wal)
    }
}

/// Everything of a record behind its header.
pub fn body(refs: &[Ref], main: &[u8]) -> Vec<u8> {
    const HAS_IMAGE: u8 = 0x10;
    const HAS_DATA: u8 = 0x20;
    const WILL_INIT: u8 = 0x40;
    const IMAGE_APPLY: u8 = 0x02;
    let (mut out, mut data) = (Vec::new(), Vec::new());
    for (reference, id) in refs.iter().zip(0u8..) {
        let flag = |set: bool, flag: u8| if set { flag } else { 0 };
        let flags = flag(!reference.image.is_empty(), HAS_IMAGE)
            | flag(!reference.data.is_empty(), HAS_DATA)
            | flag(reference.will_init, WILL_INIT);
        out.extend_from_slice(&[id, reference.fork | flags]);
        out.extend_from_slice(&(reference.data.len() as u16).to_le_bytes());
        if !reference.image.is_empty() {
            out.extend_from_slice(&(reference.image.len() as u16).to_le_bytes());
            out.extend_from_slice(&[0, 0, IMAGE_APPLY]);
        }
        out.extend_from_slice(&words(&[1663, DATABASE, reference.relation, reference.block]));
        data.extend_from_slice(&reference.image);
        data.extend_from_slice(&reference.data);
    }
    if !main.is_empty() {
        out.push(encode_main(main.len(), &mut data, main));
        out.push(main.len() as u8);
    }
    out.extend_from_slice(&data);
    out
}

/// Puts the main data behind the block data; answers with the id of its header.
fn encode_main(length: usize, data: &mut Vec<u8>, main: &[u8]) -> u8 {
    const MAIN_SHORT: u8 = 255;
    assert!(length < 256, "hand-made records are short");
    data.extend_from_slice(main);
    MAIN_SHORT
}

pub fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}
