//! Redo and masks on bytes that nobody wrote: an error or a page, never a panic.

use bytes::Bytes;
use proptest::prelude::*;
use treering_pgfmt::{
    change::{PageChange, PartBlock, RecordPart},
    mask::mask_page,
    redo::{apply, rmgr},
    version::PgMajor,
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

    fn part(&mut self) -> RecordPart {
        const HANDLED: [u8; 6] =
            [rmgr::HEAP, rmgr::HEAP2, rmgr::BTREE, rmgr::GIN, rmgr::GENERIC, rmgr::SEQUENCE];
        let rmid = HANDLED.get(self.below(7) as usize).copied();
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
            data: Bytes::from(self.bytes(80)),
            main: Bytes::from(self.bytes(40)),
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
