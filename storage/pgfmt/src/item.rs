//! Tuples of a page: adding, deleting, overwriting and closing the gaps.
//!
//! Where Postgres leaves old bytes in the hole these leave the same bytes: every function writes exactly the
//! bytes its counterpart in `storage/page/bufpage.c` writes. A function that fails may have changed the page;
//! the page is then not served.

#![deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::panic)]

use std::ops::Range;

use treering_types::PAGE_SIZE;

use crate::{
    page::{
        HEADER_SIZE, HEAP_TUPLES_MAX, INDEX_TUPLES_MAX, LINE_POINTER_SIZE, LinePointer, Page,
        PointerState, flag, max_align, pointer_at,
    },
    redo::RedoReason,
};

/// How [`Page::add_item`] treats a line pointer that exists already.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Placement {
    /// Shift the later line pointers up (indexes; flags 0).
    Insert,
    /// Take the free line pointer (`PAI_OVERWRITE`).
    Reuse,
    /// As `Reuse`, and no more line pointers than a heap page can have (`PAI_OVERWRITE | PAI_IS_HEAP`).
    Heap,
}

const NO_ROOM: RedoReason = RedoReason::Malformed("no room for the tuple");
const BAD_POINTER: RedoReason = RedoReason::Malformed("line pointer outside the tuple area");

impl Page<'_> {
    /// Adds a tuple at `offset` (0: the first free one) and returns its offset number (`PageAddItemExtended`).
    ///
    /// # Errors
    /// `Malformed` when the page has no room, the offset leaves a gap, or the line pointer is taken.
    pub fn add_item(
        &mut self,
        item: &[u8],
        offset: u16,
        placement: Placement,
    ) -> Result<u16, RedoReason> {
        let (offset, at) = self.reserve_item(item.len(), offset, placement)?;
        self.write(at, item)?;
        Ok(offset)
    }

    /// As [`Page::add_item`] without copying: returns the offset number and where the tuple's bytes begin.
    pub fn reserve_item(
        &mut self,
        size: usize,
        offset: u16,
        placement: Placement,
    ) -> Result<(u16, usize), RedoReason> {
        self.check_order()?;
        let limit = self.max_offset() + 1;
        let offset = if offset == 0 { self.free_offset(limit)? } else { offset };
        let taken = offset < limit;
        if taken && placement != Placement::Insert {
            let pointer = self.line_pointer(offset)?;
            if pointer.is_used() || pointer.has_storage() {
                return Err(RedoReason::Malformed("line pointer is taken"));
            }
        }
        if offset > limit {
            return Err(RedoReason::Malformed("tuple offset leaves a gap"));
        }
        if placement == Placement::Heap && usize::from(offset) > HEAP_TUPLES_MAX {
            return Err(RedoReason::Malformed("too many tuples for a heap page"));
        }
        let shift = taken && placement == Placement::Insert;
        let grows = if !taken || shift { LINE_POINTER_SIZE } else { 0 };
        let lower = self.lower() + grows;
        let upper = self.upper().checked_sub(max_align(size)).ok_or(NO_ROOM)?;
        if lower > upper {
            return Err(NO_ROOM);
        }
        if shift {
            let from = pointer_at(offset);
            let count = usize::from(limit - offset);
            self.move_within(from, from + LINE_POINTER_SIZE, count * LINE_POINTER_SIZE)?;
        }
        self.put_u32(pointer_at(offset), LinePointer::new(upper, PointerState::Normal, size).0)?;
        self.set_lower(lower);
        self.set_upper(upper);
        Ok((offset, upper))
    }

    /// As [`Page::check_bounds`] but special may be unaligned, as in `PageAddItemExtended`.
    fn check_order(&self) -> Result<(), RedoReason> {
        let (lower, upper, special) = (self.lower(), self.upper(), self.special());
        let ordered = HEADER_SIZE <= lower && lower <= upper && upper <= special;
        let fits = special <= PAGE_SIZE;
        (ordered && fits).then_some(()).ok_or(RedoReason::Malformed("page pointers out of order"))
    }

    fn free_offset(&mut self, limit: u16) -> Result<u16, RedoReason> {
        if self.flags() & flag::HAS_FREE_LINES == 0 {
            return Ok(limit);
        }
        for offset in 1..limit {
            let pointer = self.line_pointer(offset)?;
            if !pointer.is_used() && !pointer.has_storage() {
                return Ok(offset);
            }
        }
        self.clear_flags(flag::HAS_FREE_LINES);
        Ok(limit)
    }

    /// Removes a tuple and its line pointer (`PageIndexTupleDelete`).
    pub fn index_tuple_delete(&mut self, offset: u16) -> Result<(), RedoReason> {
        let tuple = self.index_pointer(offset)?;
        let gone = pointer_at(offset);
        let after = gone + LINE_POINTER_SIZE;
        let count = self.lower().saturating_sub(after);
        self.move_within(after, gone, count)?;
        self.close_gap(tuple)?;
        self.set_lower(self.lower() - LINE_POINTER_SIZE);
        self.shift_pointers(tuple.offset(), max_align(tuple.length()) as isize)
    }

    /// Removes several tuples, named in ascending order (`PageIndexMultiDelete`).
    pub fn index_multi_delete(
        &mut self,
        offsets: impl DoubleEndedIterator<Item = u16> + ExactSizeIterator,
    ) -> Result<(), RedoReason> {
        if offsets.len() <= 2 {
            return offsets.rev().try_for_each(|offset| self.index_tuple_delete(offset));
        }
        self.check_bounds()?;
        let mut offsets = offsets.peekable();
        let mut kept = Kept::new(self.special());
        let mut pointers = [LinePointer::UNUSED; INDEX_TUPLES_MAX];
        for offset in 1..=self.max_offset() {
            let pointer = self.index_pointer(offset)?;
            if offsets.peek() == Some(&offset) {
                offsets.next();
                continue;
            }
            *pointers.get_mut(kept.count).ok_or(TOO_MANY)? = pointer;
            kept.push(kept.count as u16 + 1, pointer)?;
        }
        if offsets.peek().is_some() {
            return Err(RedoReason::Malformed("deleted offsets not ascending or not there"));
        }
        self.check_total(&kept)?;
        for (index, pointer) in pointers.iter().take(kept.count).enumerate() {
            self.put_u32(pointer_at(index as u16 + 1), pointer.0)?;
        }
        self.set_lower(HEADER_SIZE + kept.count * LINE_POINTER_SIZE);
        self.compact(&kept)
    }

    /// Removes a tuple but keeps the numbering: its line pointer becomes free, or goes if it is the last
    /// (`PageIndexTupleDeleteNoCompact`).
    pub fn index_tuple_delete_no_compact(&mut self, offset: u16) -> Result<(), RedoReason> {
        let tuple = self.index_pointer(offset)?;
        if offset < self.max_offset() {
            self.set_line_pointer(offset, LinePointer::UNUSED)?;
        } else {
            self.set_lower(self.lower() - LINE_POINTER_SIZE);
        }
        self.close_gap(tuple)?;
        self.shift_pointers(tuple.offset(), max_align(tuple.length()) as isize)
    }

    /// Replaces a tuple in place, moving others as its size changes (`PageIndexTupleOverwrite`).
    ///
    /// # Errors
    /// `Malformed` also when the new tuple does not fit.
    pub fn index_tuple_overwrite(&mut self, offset: u16, item: &[u8]) -> Result<(), RedoReason> {
        let tuple = self.index_pointer(offset)?;
        let (old_size, new_size) = (max_align(tuple.length()), max_align(item.len()));
        if new_size > old_size + (self.upper() - self.lower()) {
            return Err(NO_ROOM);
        }
        let shrinks_by = old_size as isize - new_size as isize;
        if shrinks_by != 0 {
            let upper = self.upper();
            let new_upper = upper.checked_add_signed(shrinks_by).ok_or(NO_ROOM)?;
            self.move_within(upper, new_upper, tuple.offset() - upper)?;
            self.set_upper(new_upper);
            self.shift_pointers(tuple.offset(), shrinks_by)?;
        }
        let at = tuple.offset().checked_add_signed(shrinks_by).ok_or(NO_ROOM)?;
        self.set_line_pointer(offset, LinePointer::new(at, tuple.state(), item.len()))?;
        self.write(at, item)
    }

    /// Closes the gaps between tuples and drops free line pointers at the end (`PageRepairFragmentation`).
    pub fn repair_fragmentation(&mut self) -> Result<(), RedoReason> {
        self.check_bounds()?;
        let count = self.max_offset();
        let (mut last_used, mut unused) = (0, 0u16);
        let mut kept = Kept::new(self.special());
        for (offset, bytes) in (1..).zip(self.line_pointers()) {
            let pointer = LinePointer::from_bytes(*bytes);
            if !pointer.is_used() {
                unused += 1;
                continue;
            }
            last_used = offset;
            if pointer.has_storage() {
                self.check_inside(pointer)?;
                kept.push(offset, pointer)?;
            }
        }
        let unused_pointers = self.line_pointers_mut().iter_mut();
        unused_pointers
            .filter(|bytes| !LinePointer::from_bytes(**bytes).is_used())
            .for_each(|bytes| *bytes = LinePointer::UNUSED.0.to_le_bytes());
        self.check_total(&kept)?;
        self.compact(&kept)?;
        let trailing = count - last_used;
        self.set_lower(self.lower() - usize::from(trailing) * LINE_POINTER_SIZE);
        self.hint_free_lines(unused > trailing);
        Ok(())
    }

    /// Drops free line pointers at the end, but never the first (`PageTruncateLinePointerArray`).
    pub fn truncate_line_pointer_array(&mut self) -> Result<(), RedoReason> {
        let mut keep = self.max_offset();
        while keep > 1 && !self.line_pointer(keep)?.is_used() {
            keep -= 1;
        }
        let dropped = usize::from(self.max_offset() - keep) * LINE_POINTER_SIZE;
        self.set_lower(self.lower() - dropped);
        let mut free = false;
        for offset in 1..=keep {
            free |= !self.line_pointer(offset)?.is_used();
        }
        self.hint_free_lines(free);
        Ok(())
    }

    fn hint_free_lines(&mut self, free: bool) {
        if free {
            self.set_flags(flag::HAS_FREE_LINES);
        } else {
            self.clear_flags(flag::HAS_FREE_LINES);
        }
    }

    /// A line pointer whose tuple lies aligned within the tuple area of a sound page.
    fn index_pointer(&self, offset: u16) -> Result<LinePointer, RedoReason> {
        self.check_bounds()?;
        let pointer = self.line_pointer(offset)?;
        self.check_inside(pointer)?;
        Ok(pointer)
    }

    fn check_inside(&self, pointer: LinePointer) -> Result<(), RedoReason> {
        let begin = pointer.offset();
        let end = begin + max_align(pointer.length());
        let inside = begin >= self.upper() && end <= self.special() && begin.is_multiple_of(8);
        inside.then_some(()).ok_or(BAD_POINTER)
    }

    /// Moves the tuples below `gone` up over it and raises `pd_upper`.
    fn close_gap(&mut self, gone: LinePointer) -> Result<(), RedoReason> {
        let size = max_align(gone.length());
        let upper = self.upper();
        let length = gone.offset().checked_sub(upper).ok_or(BAD_POINTER)?;
        self.move_within(upper, upper + size, length)?;
        self.set_upper(upper + size);
        Ok(())
    }

    /// Adds `by` to the place of every tuple at or before `place`.
    fn shift_pointers(&mut self, place: usize, by: isize) -> Result<(), RedoReason> {
        for offset in 1..=self.max_offset() {
            let pointer = self.line_pointer(offset)?;
            if pointer.has_storage() && pointer.offset() <= place {
                let moved = pointer.offset().checked_add_signed(by).ok_or(BAD_POINTER)?;
                self.set_line_pointer(offset, pointer.with_offset(moved))?;
            }
        }
        Ok(())
    }

    fn check_total(&self, kept: &Kept) -> Result<(), RedoReason> {
        let room = self.special().saturating_sub(self.lower());
        if kept.total > room { Err(RedoReason::Malformed("tuples overlap")) } else { Ok(()) }
    }

    /// Packs the kept tuples against the special area in the order given and sets `pd_upper`.
    ///
    /// Bytes below the new `pd_upper` keep their old contents, as in Postgres. Tuples in descending order can be
    /// moved in place, since none lands on one not yet moved; others go by way of a copy of the page. Tuples that lie
    /// where they belong are not touched: no other lands there.
    fn compact(&mut self, kept: &Kept) -> Result<(), RedoReason> {
        let (settled, mut upper) = kept.settled(self.special());
        let copy = if kept.descending || settled == kept.count {
            None
        } else {
            Some(self.copy_of(self.upper()..upper)?)
        };
        let mut run = Run { begin: upper, end: upper };
        for entry in kept.entries().skip(settled) {
            if run.begin != entry.end() {
                self.place(upper, &run, copy.as_ref())?;
                run.end = entry.end();
            }
            upper = upper.checked_sub(usize::from(entry.size)).ok_or(BAD_POINTER)?;
            run.begin = usize::from(entry.begin);
            let index = usize::from(entry.offset).saturating_sub(1);
            let bytes = self.line_pointers_mut().get_mut(index).ok_or(BAD_POINTER)?;
            *bytes = LinePointer::from_bytes(*bytes).with_offset(upper).0.to_le_bytes();
        }
        self.place(upper, &run, copy.as_ref())?;
        self.set_upper(upper);
        Ok(())
    }

    /// The bytes of `range` where they are in the page, zeros elsewhere.
    fn copy_of(&self, range: Range<usize>) -> Result<[u8; PAGE_SIZE], RedoReason> {
        let mut copy = [0; PAGE_SIZE];
        let (from, to) = (self.bytes().get(range.clone()), copy.get_mut(range));
        to.ok_or(BAD_POINTER)?.copy_from_slice(from.ok_or(BAD_POINTER)?);
        Ok(copy)
    }

    fn place(
        &mut self,
        to: usize,
        run: &Run,
        copy: Option<&[u8; PAGE_SIZE]>,
    ) -> Result<(), RedoReason> {
        let length = run.end.checked_sub(run.begin).ok_or(BAD_POINTER)?;
        if to == run.begin {
            return Ok(());
        }
        match copy {
            None => self.move_within(run.begin, to, length),
            Some(copy) => self.write(to, copy.get(run.begin..run.end).ok_or(BAD_POINTER)?),
        }
    }
}

/// Adjoining tuples that move together.
struct Run {
    begin: usize,
    end: usize,
}

/// A tuple that stays.
#[derive(Clone, Copy)]
struct Entry {
    /// Its line pointer's number after the change.
    offset: u16,
    begin: u16,
    /// Bytes, rounded up to 8.
    size: u16,
}

impl Entry {
    fn end(&self) -> usize {
        usize::from(self.begin) + usize::from(self.size)
    }
}

const TOO_MANY: RedoReason = RedoReason::Malformed("too many tuples on the page");

/// The tuples that stay on a page, in line pointer order.
struct Kept {
    list: [Entry; INDEX_TUPLES_MAX],
    count: usize,
    total: usize,
    last_begin: usize,
    /// Each tuple lies below the one before.
    descending: bool,
}

impl Kept {
    fn new(special: usize) -> Self {
        let none = Entry { offset: 0, begin: 0, size: 0 };
        Kept {
            list: [none; INDEX_TUPLES_MAX],
            count: 0,
            total: 0,
            last_begin: special,
            descending: true,
        }
    }

    fn push(&mut self, offset: u16, pointer: LinePointer) -> Result<(), RedoReason> {
        let size = max_align(pointer.length());
        let begin = pointer.offset();
        let slot = self.list.get_mut(self.count).ok_or(TOO_MANY)?;
        *slot = Entry { offset, begin: begin as u16, size: size as u16 };
        // Overlapping tuples of a hostile page must not be moved in place either.
        self.descending &= begin + size <= self.last_begin;
        self.last_begin = begin;
        self.count += 1;
        self.total += size;
        Ok(())
    }

    /// How many of the first tuples lie where they belong, packed from `special` on, and where the next one does.
    fn settled(&self, special: usize) -> (usize, usize) {
        let mut upper = special;
        let lie_right = self.entries().take_while(|entry| {
            let right = entry.end() == upper;
            if right {
                upper = usize::from(entry.begin);
            }
            right
        });
        (lie_right.count(), upper)
    }

    fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.list.iter().take(self.count)
    }
}

#[cfg(test)]
mod tests;
