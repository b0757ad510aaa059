//! Bytes that nobody wrote: an error that says where, or a page, never a panic. (`fuzz/` does the same for hours.)

use proptest::prelude::*;
use treering_pgfmt::{
    change::{PageChange, PartBlock, RecordPart},
    mask::mask_page,
    redo::{RedoReason, Section, apply, rmgr},
    version::PgMajor,
    wal::{
        effects::{EffectError, EffectFault, effects},
        encode::{self, Origin},
        error::WalError,
        reader::WalDecoder,
        record::{RawRecord, Record},
        state::ClusterState,
    },
};
use treering_types::{Fork, Key, Lsn, PAGE_SIZE, RelTag};

const REL: RelTag = RelTag { tablespace: 1663, database: 5, relation: 16384, fork: Fork::Main };

/// Numbers from a seed, many at once: a page from proptest's own strategies costs a millisecond.
struct Noise(u64);

impl Noise {
    fn below(&mut self, limit: u32) -> u32 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        ((mixed >> 32) as u32) % limit
    }

    /// Mostly small: looks like an offset, a count or a length.
    fn number(&mut self) -> u16 {
        let limit = match self.below(12) {
            0..6 => 12,
            6..9 => 400,
            9..11 => 8192,
            _ => 65536,
        };
        self.below(limit) as u16
    }

    /// `value`, or anything.
    fn nearly(&mut self, value: u16) -> u16 {
        if self.below(8) == 0 { self.below(65536) as u16 } else { value }
    }

    fn bytes(&mut self, numbers: u32) -> Vec<u8> {
        let count = self.below(numbers);
        (0..count).flat_map(|_| self.number().to_le_bytes()).collect()
    }

    /// A page whose header is nearly right and whose line pointers mostly lead into the page.
    fn page(&mut self) -> Box<[u8; PAGE_SIZE]> {
        let filler = (0..PAGE_SIZE / 2).flat_map(|_| self.number().to_le_bytes());
        let mut bytes: Box<[u8; PAGE_SIZE]> = filler.collect::<Vec<u8>>().try_into().unwrap();
        let pointers = self.below(60) as u16;
        let upper = (4000 + self.below(3000) as u16) & !7;
        let special = 8192 - [0, 8, 16, 16, 16][self.below(5) as usize];
        for (at, value) in [(12, 24 + 4 * pointers), (14, upper), (16, special)] {
            let value = self.nearly(value);
            bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
        }
        if self.below(4) > 0 {
            for index in 0..usize::from(pointers) {
                let (offset, state) = (400 + self.below(616), self.below(4));
                let pointer = (offset * 8) | state << 15 | self.below(200) << 17;
                bytes[24 + index * 4..28 + index * 4].copy_from_slice(&pointer.to_le_bytes());
            }
        }
        bytes
    }

    fn part(&mut self) -> RecordPart<'static> {
        const HANDLED: [u8; 10] = [
            rmgr::HEAP,
            rmgr::HEAP2,
            rmgr::BTREE,
            rmgr::HASH,
            rmgr::GIN,
            rmgr::GIST,
            rmgr::SEQUENCE,
            rmgr::SPGIST,
            rmgr::BRIN,
            rmgr::GENERIC,
        ];
        let rmid = HANDLED.get(self.below(11) as usize).copied();
        let block_count = 1 + self.below(4) as u8;
        RecordPart {
            rmid: rmid.unwrap_or(self.below(256) as u8),
            info: self.below(256) as u8,
            xid: self.below(u32::MAX),
            block_id: self.below(u32::from(block_count) + 1) as u8 % 5,
            will_init: self.below(4) == 0,
            hints_logged: self.below(2) == 0,
            blocks: (0..block_count)
                .map(|id| PartBlock {
                    id,
                    block: self.below(u32::MAX),
                    has_data: self.below(2) == 0,
                })
                .collect(),
            data: self.bytes(80).into(),
            main: self.bytes(40).into(),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..Default::default() })]

    #[test]
    fn records_never_panic(seed in any::<u64>()) {
        let mut noise = Noise(seed);
        let page = noise.page();
        for _ in 0..40 {
            let (part, block) = (noise.part(), noise.below(u32::MAX));
            let (rmid, major) = (part.rmid, PgMajor::ALL[noise.below(4) as usize]);
            let mut page = page.clone();
            let change = PageChange::Record(part);
            let _ = apply(major, &Key::rel_block(REL, block), Lsn(1 << 28), &change, &mut page);
            mask_page(rmid, &mut page, block);
        }
    }

    #[test]
    fn map_changes_never_panic(seed in any::<u64>(), number in any::<u32>(), bits in any::<u8>()) {
        let key = Key::rel_block(REL.with_fork(Fork::VisibilityMap), 0);
        let mut page = Noise(seed).page();
        for change in [
            PageChange::VisibilityClear { heap_block: number, bits },
            PageChange::VisibilityTruncate { heap_blocks: number },
        ] {
            let _ = apply(PgMajor::V15, &key, Lsn(8), &change, &mut page);
        }
    }

    #[test]
    fn masks_never_panic(seed in any::<u64>(), block in any::<u32>()) {
        let page = Noise(seed).page();
        for rmid in 0..24 {
            mask_page(rmid, &mut page.clone(), block);
        }
    }
}

const START: Lsn = Lsn(0x200_0028);
const PREV: Lsn = Lsn(0x1FF_FF00);
/// Where the parts of [`heap_insert`] are: block header, main data header, block data, main data.
const BLOCK: usize = 24;
const MAIN_HEAD: usize = BLOCK + 20;
const DATA: usize = MAIN_HEAD + 2;
const MAIN: usize = DATA + 8;

/// A heap INSERT: block 0 with 8 bytes of data, 3 bytes of main data.
fn heap_insert() -> Vec<u8> {
    let mut body = vec![0, 0x20, 8, 0];
    for number in [1663, 5, 16384, 7_u32] {
        body.extend_from_slice(&number.to_le_bytes());
    }
    body.extend_from_slice(&[255, 3]);
    body.extend_from_slice(&[2, 0, 2, 8, 24, 1, 2, 3]);
    body.extend_from_slice(&[1, 0, 0]);
    encode::record(700, PREV, 0, rmgr::HEAP, &body)
}

/// The record with its length made right, as if its checksum had been too.
fn raw(mut bytes: Vec<u8>) -> RawRecord<'static> {
    let length = bytes.len() as u32;
    if let Some(field) = bytes.first_chunk_mut::<4>() {
        *field = length.to_le_bytes();
    }
    RawRecord { start: START, end: START + 96, bytes: bytes.into() }
}

/// Decodes what must not decode: which byte is at fault and why.
fn fault(bytes: Vec<u8>) -> (usize, &'static str) {
    let error = Record::decode(PgMajor::V15, &raw(bytes)).unwrap_err();
    let WalError::Malformed { at: START, rmid: rmgr::HEAP, offset, what } = error else {
        panic!("{error}");
    };
    let text = format!("record at 0/2000028 (Heap), byte {offset}: {what}");
    assert_eq!(error.to_string(), text);
    (offset, what)
}

/// Every bit of a record counts: flipped, the decoder waits for what the length promises or names the place.
#[test]
fn flipped_bits_are_found_before_anything_is_read() {
    let origin = Origin { major: PgMajor::V15, tli: 1, system_id: 42 };
    let at = Lsn(0x200_0000);
    let good = encode::lay_out(&origin, at, &heap_insert());
    let read = |bytes: &[u8]| {
        let mut decoder = WalDecoder::new(PgMajor::V15, at).with_prev(PREV);
        decoder.feed(bytes);
        decoder.next_record().map(|found| found.map(|_| ()))
    };
    assert!(read(&good.bytes).unwrap().is_some());
    let first = (good.record_start.0 - at.0) as usize;
    for bit in first * 8..(first + heap_insert().len()) * 8 {
        let mut bytes = good.bytes.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        match read(&bytes) {
            Ok(found) => assert_eq!((found, bit < (first + 4) * 8), (None, true), "bit {bit}"),
            Err(error) => assert!(error.to_string().contains("0/2000028"), "{error}"),
        }
    }
    let mut bytes = good.bytes;
    bytes[first + MAIN] ^= 1;
    let text = read(&bytes).unwrap_err().to_string();
    assert_eq!(text, "record at 0/2000028 (Heap, 57 bytes) fails its checksum");
}

#[test]
fn truncated_records_say_where_they_end() {
    let good = heap_insert();
    assert!(Record::decode(PgMajor::V15, &raw(good.clone())).is_ok());
    // Cuts within the block's header: which field is not all there.
    for size in BLOCK + 1..MAIN_HEAD {
        let field = match size {
            25 => 25,
            26..28 => 26,
            _ => size - size % 4,
        };
        assert_eq!(fault(good[..size].to_vec()), (field, "ends within a header"), "{size} bytes");
    }
    for size in MAIN_HEAD..good.len() {
        // As many bytes as the block's data has: a sound record without main data, for its effects to refuse.
        if size == MAIN_HEAD + 8 {
            continue;
        }
        // With fewer left than that, they are taken for the block's data; with more, a header comes first.
        let expected = match size {
            MAIN_HEAD..52 => MAIN_HEAD,
            52..MAIN => DATA,
            _ => MAIN,
        };
        let (offset, what) = fault(good[..size].to_vec());
        assert_eq!((offset, what), (expected, "shorter than its parts"), "{size} bytes");
    }
}

#[test]
fn lying_records_say_where_they_lie() {
    let lie = |at: usize, byte: u8| {
        let mut bytes = heap_insert();
        bytes[at] = byte;
        fault(bytes)
    };
    assert_eq!(lie(BLOCK, 77), (BLOCK + 1, "unknown fragment id"));
    assert_eq!(lie(BLOCK + 1, 0x29), (BLOCK + 2, "unknown fork"));
    assert_eq!(lie(BLOCK + 1, 0x00), (BLOCK + 4, "block data flag and length differ"));
    assert_eq!(lie(BLOCK + 1, 0xA0), (BLOCK + 4, "same relation as nothing"));
    assert_eq!(lie(BLOCK + 2, 12), (DATA, "shorter than its parts"));
    assert_eq!(lie(MAIN_HEAD + 1, 2), (MAIN + 2, "longer than its parts"));
    assert_eq!(lie(MAIN_HEAD + 1, 4), (MAIN, "shorter than its parts"));
    let (offset, what) = lie(MAIN_HEAD, 254);
    assert_eq!((offset, what), (MAIN_HEAD + 5 + 8, "shorter than its parts"));
}

/// The effects of a record without blocks.
fn effects_of(rmid: u8, info: u8, main: &[u8]) -> Result<(), EffectError> {
    let body = [&[255, main.len() as u8][..], main].concat();
    let bytes = encode::record(700, PREV, info, rmid, &body);
    let raw = raw(bytes);
    let record = Record::decode(PgMajor::V15, &raw).unwrap();
    let mut state = ClusterState::default();
    let done = effects(&mut state, &record, PgMajor::V15).map(drop);
    assert!(done.is_ok() || state == ClusterState::default(), "an error leaves the state alone");
    done
}

/// Main data begins at byte 26 of these records.
#[test]
fn effects_say_where_main_data_ends() {
    let word = u32::to_le_bytes;
    let commit = [&[0; 8][..], &word(2), &word(2), &word(701), &word(702)].concat();
    assert!(effects_of(rmgr::XACT, 0x80, &commit).is_ok());
    let ends = [(7, 0), (11, 8), (15, 12), (23, 16)];
    for (size, offset) in ends {
        let error = effects_of(rmgr::XACT, 0x80, &commit[..size]).unwrap_err();
        assert_eq!((error.offset, error.fault), (26 + offset, EffectFault::Malformed));
        let begin =
            format!("record Transaction (rmid 1) info 0x80 at 0/2000028, byte {}: ", 26 + offset);
        assert!(error.to_string().starts_with(&begin), "{error}");
    }
    // Counts that promise gigabytes, or less than nothing.
    for count in [3, i32::MAX as u32, u32::MAX] {
        let lying = [&[0; 8][..], &word(2), &word(count), &word(701), &word(702)].concat();
        assert!(effects_of(rmgr::XACT, 0x80, &lying).is_err());
        let multixact = [word(1), word(1), word(count), word(5)].concat();
        assert!(effects_of(rmgr::MULTIXACT, 0x20, &multixact).is_err());
        let database = [word(5), word(count), word(1663)].concat();
        assert!(effects_of(rmgr::DATABASE, 0x20, &database).is_err());
    }
}

fn redo_insert(data: &'static [u8], main: &'static [u8]) -> Result<(), String> {
    let mut page = [0; PAGE_SIZE];
    treering_pgfmt::page::Page::new(&mut page).init(0);
    let part = RecordPart {
        rmid: rmgr::HEAP,
        info: 0,
        xid: 700,
        block_id: 0,
        will_init: false,
        hints_logged: false,
        blocks: [PartBlock { id: 0, block: 7, has_data: true }].into_iter().collect(),
        data: data.into(),
        main: main.into(),
    };
    let change = PageChange::Record(part);
    let key = Key::rel_block(REL, 7);
    let done = apply(PgMajor::V15, &key, Lsn(0x200_0080), &change, &mut page);
    done.map_err(|error| {
        assert_eq!((error.lsn, error.key, error.rmgr), (Lsn(0x200_0080), key, "Heap"));
        let text = error.to_string();
        assert!(text.starts_with("redo of Heap (rmid 10) info 0x00 at 0/2000080 on "), "{text}");
        assert!(text.ends_with(&error.reason.to_string()), "{text}");
        error.reason.to_string()
    })
}

#[test]
fn redo_says_where_a_record_ends_or_leads_to() {
    assert_eq!(redo_insert(&[2, 0, 2, 8, 24, 1, 2, 3], &[1, 0, 0]), Ok(()));
    let short = |section, offset| Err(RedoReason::Short { section, offset }.to_string());
    assert_eq!(redo_insert(&[2, 0, 2, 8, 24], &[1, 0]), short(Section::Main, 2));
    assert_eq!(redo_insert(&[2, 0, 2], &[1, 0, 0]), short(Section::Data, 2));
    assert_eq!(redo_insert(&[2, 0, 2, 8], &[1, 0, 0]), short(Section::Data, 4));
    let text = "main data ends within the field at byte 2";
    assert_eq!(redo_insert(&[2, 0, 2, 8, 24], &[1, 0]), Err(text.to_owned()));
    let gap = redo_insert(&[2, 0, 2, 8, 24], &[3, 0, 0]);
    assert_eq!(gap, Err("tuple offset leaves a gap".to_owned()));
}
