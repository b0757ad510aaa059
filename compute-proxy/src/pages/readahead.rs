//! What one process will probably miss next, from what it has missed.

use std::ops::Range;

/// Widest window: a mebibyte.
pub const WINDOW_BLOCKS_MAX: u32 = 128;
const WINDOW_BLOCKS_FIRST: u32 = 8;
/// The window grows by this at each miss that continues a scan.
const GROWTH: u32 = 4;
/// A scan waits for as many blocks at once: as the pageserver sends together.
const RUN_BLOCKS: u32 = 32;
/// Scans that one process keeps apart: a join reads several relations by turns.
const SCANS_MAX: usize = 6;

/// What to answer a miss with.
#[derive(Debug, PartialEq, Eq)]
pub struct Wanted {
    /// What the process waits for: what it misses, and in a scan a run of blocks from there, so that it need not ask for
    /// each as it comes.
    pub now: Range<u32>,
    /// What should be fetched beyond, if anything.
    pub ahead: Range<u32>,
}

/// The scans of one process, the latest last.
#[derive(Debug, Default)]
pub struct ReadAhead {
    scans: Vec<Scan>,
}

#[derive(Debug)]
struct Scan {
    file: u32,
    /// All blocks before this one have been asked for.
    end: u32,
    window: u32,
}

impl ReadAhead {
    /// The process misses these blocks of a file that ends at `block_count`.
    pub fn missed(&mut self, file: u32, blocks: Range<u32>, block_count: u32) -> Wanted {
        let continued = self.scans.iter().position(|scan| scan.is_continued_by(file, &blocks));
        let Some(index) = continued else {
            if self.scans.len() >= SCANS_MAX {
                self.scans.remove(0);
            }
            self.scans.push(Scan { file, end: blocks.end, window: WINDOW_BLOCKS_FIRST });
            return Wanted { ahead: blocks.end..blocks.end, now: blocks };
        };
        let mut scan = self.scans.remove(index);
        let ahead = scan.advance(&blocks, block_count);
        let now =
            blocks.start..blocks.end.max(scan.end.min(blocks.start.saturating_add(RUN_BLOCKS)));
        self.scans.push(scan);
        Wanted { now, ahead }
    }
}

impl Scan {
    /// A miss just behind what was asked for, or in it: fetched, but not yet there.
    fn is_continued_by(&self, file: u32, blocks: &Range<u32>) -> bool {
        let reach = self.window.saturating_mul(2).max(WINDOW_BLOCKS_FIRST);
        self.file == file
            && blocks.start <= self.end
            && blocks.start >= self.end.saturating_sub(reach)
            && blocks.end > self.end.saturating_sub(reach)
    }

    /// Keeps between one and two windows asked for beyond the miss.
    fn advance(&mut self, blocks: &Range<u32>, block_count: u32) -> Range<u32> {
        let start = self.end.max(blocks.end);
        if start.saturating_sub(blocks.end) >= self.window {
            return start..start;
        }
        let end = start.saturating_add(self.window).min(block_count).max(start);
        self.end = end;
        self.window = (self.window * GROWTH).min(WINDOW_BLOCKS_MAX);
        start..end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ahead(scans: &mut ReadAhead, file: u32, block: u32, block_count: u32) -> Range<u32> {
        scans.missed(file, block..block + 1, block_count).ahead
    }

    #[test]
    fn a_scan_widens_to_a_mebibyte_and_stays_ahead() {
        let mut scans = ReadAhead::default();
        assert!(ahead(&mut scans, 3, 0, 10_000).is_empty());
        assert_eq!(ahead(&mut scans, 3, 1, 10_000), 2..10);
        assert_eq!(ahead(&mut scans, 3, 10, 10_000), 11..43);
        assert_eq!(ahead(&mut scans, 3, 43, 10_000), 44..172);
        // A miss inside what is on its way asks for the next window once.
        assert_eq!(ahead(&mut scans, 3, 50, 10_000), 172..300);
        assert!(ahead(&mut scans, 3, 60, 10_000).is_empty());
    }

    #[test]
    fn a_scan_waits_for_a_run_of_what_it_asked_for() {
        let mut scans = ReadAhead::default();
        assert_eq!(scans.missed(3, 0..1, 10_000).now, 0..1);
        assert_eq!(scans.missed(3, 1..2, 10_000).now, 1..10);
        assert_eq!(scans.missed(3, 10..11, 10_000).now, 10..42);
        // What a call misses is waited for, however much it is.
        assert_eq!(scans.missed(3, 43..143, 10_000).now, 43..143);
    }

    #[test]
    fn random_misses_fetch_nothing_more() {
        let mut scans = ReadAhead::default();
        for block in [5, 900, 33, 7_000, 12, 4_000, 2_500, 801] {
            let wanted = scans.missed(3, block..block + 1, 10_000);
            assert!(wanted.ahead.is_empty() && wanted.now == (block..block + 1), "{wanted:?}");
        }
    }

    #[test]
    fn scans_by_turns_are_kept_apart_and_end_with_the_file() {
        let mut scans = ReadAhead::default();
        assert!(ahead(&mut scans, 1, 0, 20).is_empty());
        assert!(ahead(&mut scans, 2, 0, 20).is_empty());
        assert_eq!(ahead(&mut scans, 1, 1, 20), 2..10);
        assert_eq!(ahead(&mut scans, 2, 1, 20), 2..10);
        assert_eq!(ahead(&mut scans, 1, 10, 20), 11..20);
        assert!(ahead(&mut scans, 1, 19, 20).is_empty());
    }
}
