//! The redo target's case: one record part, one page, one major.
//!
//! ```text
//!  0      1     2     3      4         5       6    10           14        16        18         20
//!  +------+-----+-----+------+---------+-------+----+------------+---------+---------+----------+--------
//!  | major| rmid| info| flags| block id| blocks| xid| page number| data len| main len| front len| ...
//!  +------+-----+-----+------+---------+-------+----+------------+---------+---------+----------+--------
//!  ... blocks (id u8, number u32), data, main, first bytes of the page, last bytes of the page
//! ```
//!
//! What a page holds between its first and last bytes are zeros, so that a case stays small.

use std::borrow::Cow;

use treering_pgfmt::{
    change::{PageChange, PartBlock, RecordPart},
    page::{HEADER_SIZE, LinePointer, Page},
    redo::{self, rmgr},
    version::PgMajor,
    wal::{
        pieces::RecordBytes,
        record::{Block, Record},
    },
};
use treering_types::{Fork, Lsn, PAGE_SIZE, PageImage, RelTag};

use crate::input::{Input, Mutate, Noise, give, mutate_section};

/// `XLR_MAX_BLOCK_ID` and one more.
const BLOCKS_MAX: u8 = 33;
const HEAD_SIZE: usize = 20;
/// Zeros are looked for in steps of so many bytes: a look at each byte would cost more than redo.
const STEP: usize = 32;
const SECTION_MAX: usize = u16::MAX as usize;

const FLAG_WILL_INIT: u8 = 1;
const FLAG_HINTS_LOGGED: u8 = 2;
const FLAG_WITH_IMAGE: u8 = 4;
const BLOCK_HAS_DATA: u8 = 0x80;

/// Resource managers whose records change pages.
const HANDLED: [u8; 11] = [
    rmgr::XLOG,
    rmgr::HEAP2,
    rmgr::HEAP,
    rmgr::BTREE,
    rmgr::HASH,
    rmgr::GIN,
    rmgr::GIST,
    rmgr::SEQUENCE,
    rmgr::SPGIST,
    rmgr::BRIN,
    rmgr::GENERIC,
];

/// A record part and the page it meets.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RedoCase {
    pub major: PgMajor,
    /// The page comes as the record's image, on which redo goes on.
    pub with_image: bool,
    /// Number of the page in its relation.
    pub page_number: u32,
    pub part: RecordPart<'static>,
    pub page: PageImage,
}

impl RedoCase {
    /// The case that `bytes` stand for.
    pub fn read(bytes: &[u8]) -> RedoCase {
        let mut input = Input(bytes);
        let major = PgMajor::ALL[usize::from(input.u8() % 4)];
        let (rmid, info, flags) = (input.u8(), input.u8(), input.u8());
        let (block_id, blocks) = (input.u8(), input.u8() % (BLOCKS_MAX + 1));
        let (xid, page_number) = (input.u32(), input.u32());
        let [data, main, front] = [input.u16(), input.u16(), input.u16()].map(usize::from);
        let part = RecordPart {
            rmid,
            info,
            xid,
            block_id,
            will_init: flags & FLAG_WILL_INIT != 0,
            hints_logged: flags & FLAG_HINTS_LOGGED != 0,
            blocks: (0..blocks).map(|_| read_block(&mut input)).collect(),
            data: input.take(data).to_vec().into(),
            main: input.take(main).to_vec().into(),
        };
        let mut page: PageImage = Box::new([0; PAGE_SIZE]);
        let front = give(input.take(front), &mut page[..]);
        let tail = input.take(PAGE_SIZE - front);
        page[PAGE_SIZE - tail.len()..].copy_from_slice(tail);
        RedoCase { major, with_image: flags & FLAG_WITH_IMAGE != 0, page_number, part, page }
    }

    /// Bytes that [`RedoCase::read`] makes this case of, if data and main data are no longer than 64 KiB.
    pub fn write(&self) -> Vec<u8> {
        let part = &self.part;
        let bit = |set: bool, bit: u8| if set { bit } else { 0 };
        let flags = bit(part.will_init, FLAG_WILL_INIT)
            | bit(part.hints_logged, FLAG_HINTS_LOGGED)
            | bit(self.with_image, FLAG_WITH_IMAGE);
        let (front, tail) = ends_of(&self.page);
        let data = &part.data[..part.data.len().min(SECTION_MAX)];
        let main = &part.main[..part.main.len().min(SECTION_MAX)];
        let mut out = Vec::with_capacity(HEAD_SIZE + data.len() + main.len() + PAGE_SIZE);
        let major = PgMajor::ALL.iter().position(|major| *major == self.major);
        let blocks = part.blocks.len().min(usize::from(BLOCKS_MAX));
        out.push(major.unwrap_or(0) as u8);
        out.extend_from_slice(&[part.rmid, part.info, flags, part.block_id, blocks as u8]);
        out.extend_from_slice(&part.xid.to_le_bytes());
        out.extend_from_slice(&self.page_number.to_le_bytes());
        for length in [data.len(), main.len(), front.len()] {
            out.extend_from_slice(&(length as u16).to_le_bytes());
        }
        for block in &part.blocks[..blocks] {
            out.push(block.id & !BLOCK_HAS_DATA | bit(block.has_data, BLOCK_HAS_DATA));
            out.extend_from_slice(&block.block.to_le_bytes());
        }
        [data, main, front, tail].iter().for_each(|section| out.extend_from_slice(section));
        out
    }

    /// The change that meets `page`.
    pub fn change(&self) -> PageChange<'static> {
        let part = self.part.clone();
        if self.with_image {
            PageChange::ImageThenRecord(Box::new((self.page.clone().into(), part)))
        } else {
            PageChange::Record(part)
        }
    }

    /// The same with main data cut to what the page needs, as it is at ingest.
    pub fn cut(&self) -> RedoCase {
        let part = &self.part;
        let blocks = part.blocks.iter().map(|block| Block {
            id: block.id,
            rel: RelTag { tablespace: 1663, database: 5, relation: 16384, fork: Fork::Main },
            block: block.block,
            will_init: false,
            data: &[],
            image: None,
        });
        let raw = RecordBytes::from(&[][..]);
        let record = Record {
            start: Lsn(0),
            end: Lsn(0),
            prev: Lsn(0),
            xid: part.xid,
            rmid: part.rmid,
            info: part.info,
            toplevel_xid: None,
            origin: None,
            main: &part.main,
            blocks: blocks.collect(),
            raw: &raw,
        };
        let main = redo::main_for(&record, part.block_id).into_owned();
        assert!(main.len() <= part.main.len(), "cutting adds bytes");
        RedoCase { part: RecordPart { main: main.into(), ..part.clone() }, ..self.clone() }
    }

    /// One part of the case is changed; the others stay valid.
    fn mutated(mut self, noise: &mut Noise, mutate: Mutate) -> RedoCase {
        match noise.below(17) {
            0 => self.mutate_kind(noise),
            1 => self.mutate_blocks(noise),
            2..5 => mutate_bytes(&mut self.part.data, noise, mutate),
            5..8 => mutate_bytes(&mut self.part.main, noise, mutate),
            8 => self.mutate_words(noise, 0, HEADER_SIZE),
            9 => self.mutate_words(noise, HEADER_SIZE, 200),
            10 => self.mutate_words(noise, PAGE_SIZE - 24, 24),
            11 => self.mutate_words(noise, HEADER_SIZE, PAGE_SIZE - HEADER_SIZE),
            12 => self.mutate_pointer(noise),
            13 => self.mutate_region(noise),
            _ => self.mutate_tuple(noise),
        }
        self
    }

    fn mutate_kind(&mut self, noise: &mut Noise) {
        match noise.below(6) {
            0 => self.part.rmid = noise.pick(&HANDLED),
            1 => self.part.info = noise.below(256) as u8,
            2 => self.part.block_id = noise.below(5) as u8,
            3 => self.major = noise.pick(&PgMajor::ALL),
            4 => self.part.will_init ^= true,
            _ => self.with_image ^= true,
        }
    }

    fn mutate_blocks(&mut self, noise: &mut Noise) {
        let blocks = &mut self.part.blocks;
        match noise.below(3) {
            0 if !blocks.is_empty() => drop(blocks.remove(noise.below(blocks.len()))),
            1 if !blocks.is_empty() => {
                let at = noise.below(blocks.len());
                blocks[at].has_data ^= true;
                blocks[at].block = noise.pick(&[0, 1, self.page_number, u32::MAX]);
            }
            _ if blocks.len() < usize::from(BLOCKS_MAX) => {
                let id = noise.below(6) as u8;
                blocks.push(PartBlock { id, block: noise.below(99) as u32, has_data: true });
            }
            _ => {}
        }
    }

    /// The number of some line pointer, the first ones most often.
    fn some_pointer(&mut self, noise: &mut Noise) -> Option<(u16, LinePointer)> {
        let page = Page::new(&mut self.page);
        let reach = noise.pick(&[1, 3, usize::MAX]).min(usize::from(page.max_offset()));
        let number = 1 + noise.below(reach) as u16;
        page.line_pointer(number).ok().map(|pointer| (number, pointer))
    }

    fn mutate_pointer(&mut self, noise: &mut Noise) {
        if let Some((number, _)) = self.some_pointer(noise) {
            self.mutate_words(noise, HEADER_SIZE + 4 * usize::from(number - 1), 4);
        }
    }

    /// A stretch of the page becomes a copy of another or one byte over and over: pages get full.
    fn mutate_region(&mut self, noise: &mut Noise) {
        let size = noise.pick(&[8, 64, 512, 4096]);
        let to = HEADER_SIZE + noise.below(PAGE_SIZE - HEADER_SIZE - size);
        if noise.below(2) == 0 {
            let from = HEADER_SIZE + noise.below(PAGE_SIZE - HEADER_SIZE - size);
            self.page.copy_within(from..from + size, to);
        } else {
            self.page[to..to + size].fill(noise.pick(&[0, 1, 0x7f, 0xff]));
        }
    }

    /// The first bytes of a tuple, where its lengths and counts are.
    fn mutate_tuple(&mut self, noise: &mut Noise) {
        if let Some((_, pointer)) = self.some_pointer(noise) {
            let reach = noise.pick(&[8, 16, 32]);
            self.mutate_words(noise, pointer.offset().min(PAGE_SIZE - reach), reach);
        }
    }

    /// Some 16-bit words of the page, within `size` bytes from `at` on.
    fn mutate_words(&mut self, noise: &mut Noise, at: usize, size: usize) {
        for _ in 0..=noise.below(3) {
            let at = at + noise.below(size - 1);
            let word = u16::from_le_bytes([self.page[at], self.page[at + 1]]);
            let limit = noise.pick(&[4, 40, 500, 8200, 65536]);
            let word = match noise.below(4) {
                0 => word.wrapping_add(noise.below(17) as u16).wrapping_sub(8),
                1 => word ^ 1 << noise.below(16),
                _ => noise.below(limit) as u16,
            };
            self.page[at..at + 2].copy_from_slice(&word.to_le_bytes());
        }
    }
}

fn read_block(input: &mut Input<'_>) -> PartBlock {
    let (id, block) = (input.u8(), input.u32());
    PartBlock { id: id & !BLOCK_HAS_DATA, block, has_data: id & BLOCK_HAS_DATA != 0 }
}

/// The page without the longest run of zeros in it.
fn ends_of(page: &[u8; PAGE_SIZE]) -> (&[u8], &[u8]) {
    let (mut longest, mut run) = (0..0, 0..0);
    for (index, step) in page.chunks_exact(STEP).enumerate() {
        let end = (index + 1) * STEP;
        run = if *step == [0; STEP] { run.start..end } else { end..end };
        if run.len() > longest.len() {
            longest = run.clone();
        }
    }
    (&page[..longest.start], &page[longest.end..])
}

/// What libFuzzer does to bytes, and what lists and counts call for: repeated, a list of tuples is a longer list.
fn mutate_bytes(bytes: &mut Cow<'static, [u8]>, noise: &mut Noise, mutate: Mutate) {
    let mut section = bytes.to_vec();
    match noise.below(12) {
        0 => repeat(&mut section, noise.pick(&[0, 1000, 8200])),
        1 => section.truncate(noise.below(section.len())),
        2..5 => put_count(&mut section, noise),
        _ => mutate_section(&mut section, SECTION_MAX, mutate),
    }
    *bytes = section.into();
}

/// At least once, and up to so many bytes.
fn repeat(section: &mut Vec<u8>, size: usize) {
    let once = section.clone();
    while section.len() + once.len() <= SECTION_MAX {
        section.extend_from_slice(&once);
        if once.is_empty() || section.len() >= size {
            return;
        }
    }
}

/// One of the first 16-bit words becomes a number at which something ends: tuples of a page, the section, the type.
fn put_count(section: &mut [u8], noise: &mut Noise) {
    let length = section.len();
    let at = noise.below(length.min(32)) & !1;
    let count = noise.pick(&[0, 1, 2, 255, 291, 292, 408, 409, length / 2, length, 8192, 0xffff]);
    if let Some(word) = section.get_mut(at..at + 2) {
        word.copy_from_slice(&(count as u16).to_le_bytes());
    }
}

/// Mutates the case in `data[..size]` in place and answers with its new size.
pub fn mutate(data: &mut [u8], size: usize, seed: u32, mutate: Mutate) -> usize {
    let mut noise = Noise::new(seed);
    let mut case = RedoCase::read(&data[..size]);
    for _ in 0..=noise.below(4) {
        case = case.mutated(&mut noise, mutate);
    }
    give(&case.write(), data)
}

/// The record of one case on the page of another.
pub fn cross(record: &[u8], page: &[u8], out: &mut [u8]) -> usize {
    let other = RedoCase::read(page);
    let case =
        RedoCase { page: other.page, page_number: other.page_number, ..RedoCase::read(record) };
    give(&case.write(), out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cases_round_trip() {
        let bytes: Vec<u8> = (0..9000_u32).map(|at| (at * 7 / 5) as u8).collect();
        for size in [0, 3, 20, 60, 300, 9000] {
            let case = RedoCase::read(&bytes[..size]);
            assert_eq!(RedoCase::read(&case.write()), case, "{size} bytes");
        }
    }
}
