//! The decoder against logs written by `encode`: any chunking gives the same records, damage gives errors.

use proptest::prelude::*;

use super::*;
use crate::wal::{
    encode::{self, LaidOut, Origin},
    page_header::FIRST_IS_OVERWRITE,
    record::{ID_MAIN_LONG, Record},
};

const ORIGIN: Origin = Origin { major: PgMajor::V15, tli: 1, system_id: 42 };

/// One thing that a log can hold.
#[derive(Clone, Debug)]
enum Entry {
    /// A record with so many bytes of main data.
    Plain(usize),
    Switch,
    /// A record of which only the part on its first page was written, then its replacement.
    Broken,
}

/// Start, end and bytes of a record.
type Span = (Lsn, Lsn, Vec<u8>);

/// A log under construction.
struct Log {
    start: Lsn,
    bytes: Vec<u8>,
    prev: Lsn,
    records: Vec<Span>,
}

fn body(data: &[u8]) -> Vec<u8> {
    [&[ID_MAIN_LONG][..], &(data.len() as u32).to_le_bytes(), data].concat()
}

impl Log {
    fn new(start: Lsn, entries: &[Entry]) -> Log {
        let prev = Lsn(start.0 - 64);
        let mut log = Log { start, bytes: Vec::new(), prev, records: Vec::new() };
        for entry in entries {
            match entry {
                Entry::Plain(size) => log.push(10, 0, &body(&vec![0xA5; *size])),
                Entry::Switch => log.switch(),
                Entry::Broken => log.broken(),
            }
        }
        log
    }

    fn end(&self) -> Lsn {
        self.start + self.bytes.len() as u64
    }

    fn lay(&self, rmid: u8, info: u8, body: &[u8]) -> (Vec<u8>, LaidOut) {
        let record = encode::record(7, self.prev, info, rmid, body);
        let laid = encode::lay_out(&ORIGIN, self.end(), &record);
        (record, laid)
    }

    fn push(&mut self, rmid: u8, info: u8, body: &[u8]) {
        let (record, laid) = self.lay(rmid, info, body);
        self.bytes.extend_from_slice(&laid.bytes);
        self.records.push((laid.record_start, laid.end, record));
        self.prev = laid.record_start;
    }

    fn switch(&mut self) {
        self.push(0, 0x40, &[]);
        let filler = match self.end().segment_offset() {
            0 => 0,
            offset => WAL_SEGMENT_SIZE - offset,
        };
        self.bytes.resize(self.bytes.len() + filler as usize, 0);
        let end = self.end();
        self.records.last_mut().unwrap().1 = end;
    }

    fn broken(&mut self) {
        let (_, laid) = self.lay(10, 0, &body(&[1; 9000]));
        let written = WAL_PAGE_SIZE as usize - self.end().page_offset();
        self.bytes.extend_from_slice(&laid.bytes[..written]);
        let page = self.bytes.len();
        let main = [&laid.record_start.0.to_le_bytes()[..], &[0; 8]].concat();
        self.push(0, 0xD0, &[&[255, 16][..], &main].concat());
        self.bytes[page + 2] |= FIRST_IS_OVERWRITE as u8;
    }
}

/// Everything that comes out of feeding `bytes` cut at `cuts` (cyclic chunk sizes).
fn decode(log: &Log, bytes: &[u8], cuts: &[usize]) -> (Vec<Span>, Option<WalError>) {
    let mut decoder = WalDecoder::new(ORIGIN.major, log.start);
    let mut found = Vec::new();
    let (mut rest, mut cuts) = (bytes, cuts.iter().cycle());
    loop {
        match decoder.next_record() {
            Ok(Some(raw)) => {
                let span = (raw.start, raw.end, raw.bytes.to_vec());
                assert!(span.1 <= decoder.fed_to() && decoder.position() == span.1);
                found.push(span);
            }
            Ok(None) if rest.is_empty() => return (found, None),
            Ok(None) => {
                let (now, later) = rest.split_at((*cuts.next().unwrap()).min(rest.len()));
                decoder.feed(now);
                rest = later;
            }
            Err(error) => {
                assert_eq!(decoder.next_record(), Err(error.clone()));
                return (found, Some(error));
            }
        }
    }
}

fn entries() -> impl Strategy<Value = Vec<Entry>> {
    let size = prop_oneof![6 => 0..300_usize, 2 => 7_000..9_000_usize, 1 => 9_000..40_000_usize];
    let entry = prop_oneof![
        20 => size.prop_map(Entry::Plain),
        2 => Just(Entry::Broken),
        1 => Just(Entry::Switch)
    ];
    prop::collection::vec(entry, 1..40)
}

/// Positions where records can end: anywhere, page starts, near page and segment ends.
fn starts() -> impl Strategy<Value = Lsn> {
    prop_oneof![
        (5..1000_u64).prop_map(|unit| Lsn(0x300_0000 + unit * 8)),
        (1..16_u64).prop_map(|unit| Lsn(0x400_0000 - unit * 8)),
        (1..16_u64).prop_map(|unit| Lsn(0x3F0_0000 - unit * 8)),
        Just(Lsn(0x400_0000)),
        Just(Lsn(0x400_2000)),
    ]
}

/// Segments of zeros make a log with several switches slow to feed byte by byte: large chunks are mixed in.
fn cuts() -> impl Strategy<Value = Vec<usize>> {
    let cut = prop_oneof![3 => 1..30_usize, 2 => 1..9_000_usize, 1 => 100_000..400_000_usize];
    prop::collection::vec(cut, 1..20).prop_map(|mut cuts| {
        cuts.push(300_000);
        cuts
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..Default::default() })]

    #[test]
    fn any_chunking_gives_the_same_records(start in starts(), entries in entries(), cuts in cuts()) {
        let log = Log::new(start, &entries);
        let (found, error) = decode(&log, &log.bytes, &cuts);
        prop_assert_eq!(error, None);
        prop_assert_eq!(&found, &log.records);
        for (start, end, bytes) in found {
            let raw = RawRecord { start, end, bytes: bytes.into() };
            prop_assert!(Record::decode(ORIGIN.major, &raw).is_ok());
        }
    }

    #[test]
    fn a_flipped_bit_never_gives_a_wrong_record(
        start in starts(),
        entries in entries(),
        at in any::<prop::sample::Index>(),
        bit in 0..8_u32,
    ) {
        let log = Log::new(start, &entries);
        let mut bytes = log.bytes.clone();
        bytes[at.index(log.bytes.len())] ^= 1 << bit;
        let (found, _) = decode(&log, &bytes, &[100_000]);
        prop_assert!(log.records.starts_with(&found));
    }

    #[test]
    fn noise_never_panics(start in starts(), bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let log = Log::new(start, &[]);
        let (found, _) = decode(&log, &bytes, &[7]);
        prop_assert!(found.is_empty());
        let _ = find_first_record(ORIGIN.major, start.page_start(), &bytes);
        let raw = RawRecord { start, end: start, bytes: bytes.into() };
        let _ = Record::decode(ORIGIN.major, &raw);
    }

    #[test]
    fn a_record_with_noise_inside_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let start = Lsn(0x300_0028);
        let bytes = encode::record(1, Lsn(0), 0, 10, &bytes).into();
        if let Ok(record) = Record::decode(ORIGIN.major, &RawRecord { start, end: start, bytes }) {
            for block in record.blocks {
                let _ = block.image.map(|image| image.restore());
            }
        }
    }
}

fn plain_log(start: u64) -> Log {
    Log::new(Lsn(start), &[Entry::Plain(100), Entry::Plain(20_000), Entry::Plain(3)])
}

#[test]
fn zeros_are_the_end_of_wal() {
    let log = plain_log(0x400_0000);
    let bytes = [&log.bytes[..], &[0; 100]].concat();
    let (found, error) = decode(&log, &bytes, &[1]);
    assert_eq!((found, error), (log.records.clone(), Some(WalError::EndOfWal { at: log.end() })));
    // A page of zeros where the rest of a record should be: the log ends where that record began.
    let mut bytes = log.bytes[..0x2000].to_vec();
    bytes.resize(0x4000, 0);
    let (found, error) = decode(&log, &bytes, &[4096]);
    assert_eq!(found, log.records[..1]);
    assert_eq!(error, Some(WalError::EndOfWal { at: log.records[1].0 }));
}

#[test]
fn links_and_identity_are_checked() {
    let log = plain_log(0x400_0000);
    let mut decoder = WalDecoder::new(ORIGIN.major, log.start).with_prev(Lsn(8));
    decoder.feed(&log.bytes);
    let (at, found) = (log.records[0].0, Lsn(0x400_0000 - 64));
    let error = WalError::PrevLink { at, expected: Some(Lsn(8)), found };
    assert_eq!(decoder.next_record(), Err(error));

    let mut decoder = WalDecoder::new(ORIGIN.major, log.start).with_system_id(41);
    decoder.feed(&log.bytes);
    let fault = PageHeaderFault::SystemId { found: 42, expected: 41 };
    assert_eq!(decoder.next_record(), Err(WalError::PageHeader { at: log.start, fault }));
}

#[test]
fn only_boundaries_are_starts() {
    for bad in [0x400_0004, 0x400_0008, 0x400_2010, u64::MAX - 7] {
        let mut decoder = WalDecoder::new(ORIGIN.major, Lsn(bad));
        assert_eq!(decoder.next_record(), Err(WalError::BadStart { at: Lsn(bad) }));
    }
    for good in [0x400_0000, 0x400_0028, 0x400_2018, 0x400_3000] {
        assert_eq!(WalDecoder::new(ORIGIN.major, Lsn(good)).next_record(), Ok(None));
    }
    // A page start inside a record.
    let log = plain_log(0x400_0000);
    let page = Lsn(0x400_2000);
    let mut decoder = WalDecoder::new(ORIGIN.major, page);
    decoder.feed(&log.bytes[0x2000..]);
    assert_eq!(decoder.next_record(), Err(WalError::InsideRecord { page }));
}

#[test]
fn the_first_boundary_is_found_from_any_page() {
    let log = plain_log(0x3FF_FFC0);
    let ends: Vec<Lsn> = log.records.iter().map(|(_, end, _)| *end).collect();
    for page in [0x400_0000, 0x400_2000, 0x400_4000] {
        let bytes = &log.bytes[(page - log.start.0) as usize..];
        let found = find_first_record(ORIGIN.major, Lsn(page), bytes).unwrap().unwrap();
        assert_eq!(Some(&found), ends.iter().find(|end| end.0 > page), "{page:x}");
        let mut decoder = WalDecoder::new(ORIGIN.major, found);
        decoder.feed(&log.bytes[(found.0 - log.start.0) as usize..]);
        let next = log.records.iter().find(|(start, ..)| *start >= found).unwrap();
        assert_eq!(decoder.next_record().unwrap().unwrap().start, next.0);
    }
    let short = &log.bytes[64..64 + 0x2000];
    assert_eq!(find_first_record(ORIGIN.major, Lsn(0x400_2000), &short[..10]), Ok(None));
}
