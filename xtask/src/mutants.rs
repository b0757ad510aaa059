//! Real records with a few bytes broken, applied to real pages: what random bytes seldom get as far as.

use std::borrow::Cow;

use treering_pgfmt::{
    change::{PageChange, RecordPart},
    judge::{Bases, Judge},
    mask::mask_page,
    redo::apply,
    version::PgMajor,
    wal::{
        effects::{Effect, effects},
        record::Record,
    },
};
use treering_types::Key;

/// Every so many records of one kind are broken.
const SAMPLE: u64 = 97;
const MUTANTS_OF_EACH: u32 = 6;

pub struct Mutants {
    major: PgMajor,
    seed: u64,
    pub tried: u64,
    pub refused: u64,
    /// Records that give another page when redone from the whole record, as one kept by an earlier version is.
    pub kept_differs: u64,
}

impl Mutants {
    pub fn new(major: PgMajor) -> Mutants {
        Mutants { major, seed: 1, tried: 0, refused: 0, kept_differs: 0 }
    }

    fn below(&mut self, limit: usize) -> usize {
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(99);
        (self.seed >> 33) as usize % limit
    }

    /// Breaks the record if its kind's turn has come. The judge's pages stay as they are.
    pub fn try_some<B: Bases>(&mut self, judge: &Judge<B>, record: &Record<'_>) {
        let seen = judge.tallies.get(&(record.rmid, record.info & 0xf0));
        let due = seen.is_some_and(|tally| tally.records % SAMPLE == 1 || tally.records < 8);
        if record.blocks.is_empty() || !due {
            return;
        }
        let mut state = judge.state.clone();
        for effect in effects(&mut state, record, self.major).unwrap_or_default() {
            if let Effect::Page { rel, block, change: PageChange::Record(part) } = effect {
                let key = Key::rel_block(rel, block);
                (0..MUTANTS_OF_EACH).for_each(|_| self.try_one(judge, record, &key, &part));
                self.try_kept(judge, record, &key, part);
            }
        }
    }

    /// The record is redone from its part and from its whole, on the page it was for.
    fn try_kept<B: Bases>(
        &mut self,
        judge: &Judge<B>,
        record: &Record<'_>,
        key: &Key,
        part: RecordPart<'_>,
    ) {
        let Some(held) = judge.page(key).filter(|_| !part.hints_logged) else { return };
        let (mut by_part, mut by_whole) = (held.bytes.clone(), held.bytes.clone());
        let (rmid, info) = (record.rmid, record.info);
        let kept = PageChange::Unhandled { rmid, info, record: record.raw.whole().into() };
        let part = apply(self.major, key, record.end, &PageChange::Record(part), &mut by_part);
        let whole = apply(self.major, key, record.end, &kept, &mut by_whole);
        let same = part.is_ok() == whole.is_ok() && (part.is_err() || by_part == by_whole);
        self.kept_differs += u64::from(!same);
    }

    fn try_one<B: Bases>(
        &mut self,
        judge: &Judge<B>,
        record: &Record<'_>,
        key: &Key,
        part: &RecordPart<'_>,
    ) {
        let Some(held) = judge.page(key) else { return };
        let mut page = held.bytes.clone();
        let mut part = part.clone();
        match self.below(4) {
            0 => part.main = self.broken(&part.main),
            1 => part.data = self.broken(&part.data),
            2 => (0..3).for_each(|_| page[self.below(200)] = self.below(256) as u8),
            _ => (0..3).for_each(|_| page[self.below(8192)] = self.below(256) as u8),
        }
        let rmid = part.rmid;
        let change = PageChange::Record(part);
        self.tried += 1;
        if apply(self.major, key, record.end, &change, &mut page).is_err() {
            self.refused += 1;
        }
        mask_page(rmid, &mut page, key.block());
    }

    /// One to three bytes changed, or the end cut off.
    fn broken(&mut self, bytes: &[u8]) -> Cow<'static, [u8]> {
        let mut bytes = bytes.to_vec();
        if bytes.is_empty() || self.below(5) == 0 {
            let keep = self.below(bytes.len() + 1);
            bytes.truncate(keep);
            return bytes.into();
        }
        for _ in 0..=self.below(3) {
            // The beginning holds counts and offsets.
            let reach = if self.below(2) == 0 { bytes.len().min(16) } else { bytes.len() };
            let at = self.below(reach);
            bytes[at] = self.below(256) as u8;
        }
        bytes.into()
    }
}
