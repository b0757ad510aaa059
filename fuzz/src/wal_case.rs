//! The WAL reader target's case: records or raw pages, laid out as WAL, with lies and patches.
//!
//! ```text
//!  0       1      2    3         4                             4 + 3n
//!  +-------+------+----+---------+-----------------------------+---------------------------
//!  | flags | start| cut| n: patches | n x (position u16, xor u8) | records, or raw WAL
//!  +-------+------+----+---------+-----------------------------+---------------------------
//!  a record: lies u8, rmid u8, info u8, xid u32, size u16, then what follows its header
//! ```
//!
//! Lengths, links, checksums and page headers are made right unless a record's `lies` say otherwise, so that the
//! fuzzer gets behind them.

use treering_pgfmt::{
    version::PgMajor,
    wal::{
        encode::{self, Origin},
        page_header::{self, FIRST_IS_OVERWRITE},
        reader::WalDecoder,
        record::{RECORD_HEADER_SIZE, record_crc},
        state::ClusterState,
    },
};
use treering_types::{Lsn, WAL_PAGE_SIZE, WAL_SEGMENT_SIZE};

use crate::input::{Input, Mutate, Noise, give, mutate_section};

const SYSTEM_ID: u64 = 7_000_000_000_000_000_042;
/// Where logs start: a segment, a page, within a page, short of a segment's end, at odd places.
const STARTS: [Lsn; 9] = [
    Lsn(0x200_0000),
    Lsn(0x200_2000),
    Lsn(0x200_2018),
    Lsn(0x2FF_D000),
    Lsn(0x2FF_FFE8),
    Lsn(0x200_3F80),
    Lsn(0x200_0008),
    Lsn(0x200_2019),
    Lsn(u64::MAX / 2 - 0x3FFF),
];
/// What is left of a segment after a SWITCH is laid out only if it is no more than this.
const FILLER_MAX: u64 = 32 * 1024;

const FLAG_RAW: u8 = 4;
const FLAG_WITH_PREV: u8 = 8;
const FLAG_WITH_SYSTEM_ID: u8 = 16;
const FLAG_SETTINGS: u8 = 32;
const FLAG_LATE_XIDS: u8 = 64;

/// What is wrong with a record.
mod lie {
    pub const CHECKSUM: u8 = 1;
    pub const PREV: u8 = 2;
    /// The xid field is the length that the record claims.
    pub const LENGTH: u8 = 4;
    /// Only what is on its first page was written; the record after it replaces it.
    pub const BROKEN: u8 = 8;
}

/// A record before it is laid out.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Item {
    pub lies: u8,
    pub rmid: u8,
    pub info: u8,
    pub xid: u32,
    /// Block headers, data headers, data: what follows the record header.
    pub body: Vec<u8>,
}

/// What the log holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Content {
    Records(Vec<Item>),
    /// From a page start on; addresses and sizes in page headers are made right.
    Raw(Vec<u8>),
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WalCase {
    pub major: PgMajor,
    /// Bits above the major's two and the raw one.
    pub flags: u8,
    pub start: u8,
    pub cut: u8,
    pub patches: Vec<(u16, u8)>,
    pub content: Content,
}

/// A log as a decoder is fed it.
pub struct Wal {
    pub start: Lsn,
    pub bytes: Vec<u8>,
    /// Start of the record before the first.
    prev: Lsn,
}

impl WalCase {
    /// The case that `bytes` stand for.
    pub fn read(bytes: &[u8]) -> WalCase {
        let mut input = Input(bytes);
        let (flags, start, cut) = (input.u8(), input.u8(), input.u8());
        let patches = input.u8() % 8;
        let patches = (0..patches).map(|_| (input.u16(), input.u8())).collect();
        let content = if flags & FLAG_RAW != 0 {
            Content::Raw(input.0.to_vec())
        } else {
            let mut items = Vec::new();
            while !input.0.is_empty() {
                items.push(read_item(&mut input));
            }
            Content::Records(items)
        };
        let major = PgMajor::ALL[usize::from(flags & 3)];
        WalCase { major, flags: flags & !(3 | FLAG_RAW), start, cut, patches, content }
    }

    /// Bytes that [`WalCase::read`] makes this case of.
    pub fn write(&self) -> Vec<u8> {
        let major = PgMajor::ALL.iter().position(|major| *major == self.major).unwrap_or(0) as u8;
        let raw = if matches!(self.content, Content::Raw(_)) { FLAG_RAW } else { 0 };
        let patches = &self.patches[..self.patches.len().min(7)];
        let mut out = vec![self.flags | raw | major, self.start, self.cut, patches.len() as u8];
        for (at, xor) in patches {
            out.extend_from_slice(&at.to_le_bytes());
            out.push(*xor);
        }
        match &self.content {
            Content::Raw(bytes) => out.extend_from_slice(bytes),
            Content::Records(items) => items.iter().for_each(|item| write_item(item, &mut out)),
        }
        out
    }

    /// The log.
    pub fn lay_out(&self) -> Wal {
        let start = STARTS[usize::from(self.start) % STARTS.len()];
        let mut wal = Wal { start, bytes: Vec::new(), prev: Lsn(start.0 - 64) };
        match &self.content {
            Content::Raw(bytes) => wal.add_raw(self.major, bytes),
            Content::Records(items) => wal.add_records(self.major, items),
        }
        for (at, xor) in &self.patches {
            if let Some(byte) = wal.bytes.get_mut(usize::from(*at)) {
                *byte ^= xor;
            }
        }
        wal
    }

    /// A decoder that knows as much about the log as the case says.
    pub fn decoder(&self, wal: &Wal) -> WalDecoder {
        let mut decoder = WalDecoder::new(self.major, wal.start);
        if self.flags & FLAG_WITH_PREV != 0 {
            decoder = decoder.with_prev(wal.prev);
        }
        if self.flags & FLAG_WITH_SYSTEM_ID != 0 {
            decoder = decoder.with_system_id(SYSTEM_ID);
        }
        decoder
    }

    /// The state of the cluster before the first record.
    pub fn state(&self) -> ClusterState {
        let mut state = ClusterState { next_xid: 700, ..ClusterState::default() };
        if self.flags & FLAG_LATE_XIDS != 0 {
            state.next_xid = u64::MAX - u64::from(self.cut);
            state.next_multi = u32::MAX;
            state.next_multi_offset = u32::MAX;
        }
        if self.flags & FLAG_SETTINGS != 0 {
            state.parameters.data_checksums = true;
            state.parameters.track_commit_timestamp = true;
            state.oldest_commit_ts_xid = 3;
            state.newest_commit_ts_xid = 3;
        }
        state
    }

    fn mutated(mut self, noise: &mut Noise, size_max: usize, mutate: Mutate) -> WalCase {
        match &mut self.content {
            Content::Raw(bytes) => mutate_section(bytes, size_max, mutate),
            Content::Records(items) if items.is_empty() => self.flags ^= 1 << (3 + noise.below(5)),
            Content::Records(items) => mutate_items(items, noise, size_max, mutate),
        }
        if noise.below(8) == 0 {
            self.start = noise.below(STARTS.len()) as u8;
        }
        if noise.below(8) == 0 {
            self.patches.truncate(noise.below(3));
            self.patches.push((noise.below(300) as u16, 1 << noise.below(8)));
        }
        self
    }
}

fn mutate_items(items: &mut Vec<Item>, noise: &mut Noise, size_max: usize, mutate: Mutate) {
    let at = noise.below(items.len());
    match noise.below(10) {
        0 => items[at].lies ^= 1 << noise.below(4),
        1 => items[at].info = noise.below(256) as u8,
        2 => items[at].rmid = noise.below(23) as u8,
        3 => items[at].xid = noise.pick(&[0, 2, 3, 24, 25, 699, 700, 1 << 30, u32::MAX]),
        4 => items.push(items[at].clone()),
        5 if items.len() > 1 => drop(items.remove(at)),
        _ => mutate_section(&mut items[at].body, size_max, mutate),
    }
}

fn read_item(input: &mut Input<'_>) -> Item {
    let (lies, rmid, info, xid) = (input.u8(), input.u8(), input.u8(), input.u32());
    let size = usize::from(input.u16());
    Item { lies, rmid, info, xid, body: input.take(size).to_vec() }
}

fn write_item(item: &Item, out: &mut Vec<u8>) {
    let body = &item.body[..item.body.len().min(usize::from(u16::MAX))];
    out.extend_from_slice(&[item.lies, item.rmid, item.info]);
    out.extend_from_slice(&item.xid.to_le_bytes());
    out.extend_from_slice(&(body.len() as u16).to_le_bytes());
    out.extend_from_slice(body);
}

impl Wal {
    fn end(&self) -> Lsn {
        self.start + self.bytes.len() as u64
    }

    fn add_records(&mut self, major: PgMajor, items: &[Item]) {
        let origin = Origin { major, tli: 1, system_id: SYSTEM_ID };
        if self.start != self.start.align_up() {
            return;
        }
        let (mut prev, mut overwrites) = (self.prev, false);
        for item in items {
            let laid = encode::lay_out(&origin, self.end(), &record_of(item, prev));
            let at = self.bytes.len();
            self.bytes.extend_from_slice(&laid.bytes);
            if overwrites && let Some(info) = self.bytes.get_mut(at + 2) {
                *info |= FIRST_IS_OVERWRITE as u8;
            }
            let room = WAL_PAGE_SIZE as usize - laid.record_start.page_offset();
            let broken_at = (laid.record_start.0 - self.start.0) as usize + room;
            overwrites = item.lies & lie::BROKEN != 0 && broken_at < self.bytes.len();
            if overwrites {
                self.bytes.truncate(broken_at);
                continue;
            }
            prev = laid.record_start;
            if item.rmid == 0 && item.info & 0xF0 == 0x40 && !self.fill_segment() {
                return;
            }
        }
    }

    /// Fills the rest of the segment if that is little; `false` if it is not.
    fn fill_segment(&mut self) -> bool {
        let filler = (WAL_SEGMENT_SIZE - self.end().segment_offset()) % WAL_SEGMENT_SIZE;
        if filler <= FILLER_MAX {
            self.bytes.resize(self.bytes.len() + filler as usize, 0);
        }
        filler <= FILLER_MAX
    }

    fn add_raw(&mut self, major: PgMajor, bytes: &[u8]) {
        self.start = self.start.page_start();
        for (index, page) in bytes.chunks(WAL_PAGE_SIZE as usize).enumerate() {
            let address = self.start + index as u64 * WAL_PAGE_SIZE;
            let field = |at: usize| page.get(at).copied().unwrap_or(0);
            let info = u16::from_le_bytes([field(2), field(3)]);
            let left = u32::from_le_bytes([16, 17, 18, 19].map(field));
            let header = encode::page_header(major, 1, address, SYSTEM_ID, info, left);
            let size = page_header::size_at(address);
            self.bytes.extend_from_slice(&header);
            self.bytes.extend_from_slice(page.get(size..).unwrap_or(&[]));
        }
    }
}

/// The record's bytes, lies included.
fn record_of(item: &Item, prev: Lsn) -> Vec<u8> {
    let prev = if item.lies & lie::PREV != 0 { Lsn(prev.0 ^ 8) } else { prev };
    let mut record = encode::record(item.xid, prev, item.info, item.rmid, &item.body);
    let mut covered = record.len();
    if item.lies & lie::LENGTH != 0 {
        record[..4].copy_from_slice(&item.xid.to_le_bytes());
        covered = covered.min(item.xid as usize).max(RECORD_HEADER_SIZE);
    }
    let wrong = u32::from(item.lies & lie::CHECKSUM);
    let crc = record_crc(&record[..covered]) ^ wrong;
    record[RECORD_HEADER_SIZE - 4..RECORD_HEADER_SIZE].copy_from_slice(&crc.to_le_bytes());
    record
}

/// Mutates the case in `data[..size]` in place and answers with its new size.
pub fn mutate(data: &mut [u8], size: usize, seed: u32, mutate: Mutate) -> usize {
    let mut noise = Noise::new(seed);
    let size_max = data.len();
    let mut case = WalCase::read(&data[..size]);
    for _ in 0..=noise.below(3) {
        case = case.mutated(&mut noise, size_max, mutate);
    }
    give(&case.write(), data)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cases_round_trip() {
        let bytes: Vec<u8> = (0..500_u32).map(|at| (at * 7 / 5) as u8).collect();
        for size in [4, 30, 100, 500] {
            for flags in 0..=255 {
                let bytes = [&[flags][..], &bytes[..size]].concat();
                let case = WalCase::read(&bytes);
                assert_eq!(WalCase::read(&case.write()), case, "{size} bytes");
            }
        }
    }

    #[test]
    fn records_that_do_not_lie_are_read() {
        let item = Item { lies: 0, rmid: 10, info: 0, xid: 7, body: vec![255, 3, 1, 2, 3] };
        let long =
            Item { body: [&[254, 0x10, 0x27, 0, 0][..], &[9; 10000]].concat(), ..item.clone() };
        for start in [0, 1, 2, 3, 4, 5] {
            let items = vec![item.clone(), long.clone(), item.clone()];
            let content = Content::Records(items);
            let patches = Vec::new();
            let case = WalCase { major: PgMajor::V16, flags: 24, start, cut: 1, patches, content };
            let wal = case.lay_out();
            let mut decoder = case.decoder(&wal);
            decoder.feed(&wal.bytes);
            for _ in 0..3 {
                assert!(decoder.next_record().unwrap().is_some(), "start {start}");
            }
            assert_eq!(decoder.next_record(), Ok(None));
            assert_eq!(decoder.position(), wal.end());
        }
    }
}
