//! The meta page: how many buckets there are, where they lie, and where overflow pages are free
//! (`HashMetaPageData` in `access/hash.h`).
//!
//! ```text
//!  24    28      32     40   42    44     46    48  52   56   60    64    68   72   76          468        4568
//!  +-----+-------+------+----+-----+------+-----+---+----+----+-----+-----+----+----+-----------+----------+
//!  |magic|version|tuples|fill|bytes|bitmap|shift|max|high|low |point|first|maps|proc|98 spares  |1024 maps |
//!  +-----+-------+------+----+-----+------+-----+---+----+----+-----+-----+----+----+-----------+----------+
//! ```
//!
//! Buckets are allocated in phases; spare `i` counts the overflow pages that lie before the buckets of phase
//! `i + 1`. The number of tuples is a double.

#![deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::panic)]

use super::{
    RedoReason, bucket,
    page::{self, SPECIAL, Special, flag},
};
use crate::{
    change::RecordPart,
    fields::Fields,
    page::{HEADER_SIZE, Page},
    version::RecordRules,
};

const MAGIC: u32 = 0x0644_0640;
const VERSION: u32 = 4;
/// Phases of bucket allocation (`HASH_MAX_SPLITPOINTS`).
const SPARES_MAX: u32 = 98;
/// Bitmap pages (`HASH_MAX_BITMAPS`).
const MAPS_MAX: u32 = 1024;
/// Groups of buckets, each doubling their number, that are allocated at once; later ones take four phases.
const GROUPS_WITH_ONE_PHASE: u32 = 10;
/// Two to this power is the number of phases of the later groups.
const PHASE_BITS: u32 = 2;
const PHASE_MASK: u32 = (1 << PHASE_BITS) - 1;
/// Most buckets that an index is made with.
const INITIAL_BUCKETS_MAX: u32 = 0x4000_0000;

/// Byte offsets in the page.
mod at {
    pub const MAGIC: usize = 24;
    pub const VERSION: usize = 28;
    pub const TUPLES: usize = 32;
    pub const FILL_FACTOR: usize = 40;
    pub const BYTES_FOR_BITMAP: usize = 42;
    pub const BITMAP_SIZE: usize = 44;
    pub const BITMAP_SHIFT: usize = 46;
    pub const MAX_BUCKET: usize = 48;
    pub const HIGH_MASK: usize = 52;
    pub const LOW_MASK: usize = 56;
    pub const OVERFLOW_POINT: usize = 60;
    pub const FIRST_FREE: usize = 64;
    pub const MAP_COUNT: usize = 68;
    pub const PROCEDURE: usize = 72;
    pub const SPARES: usize = 76;
    pub const MAPS: usize = 468;
    /// The struct's end, rounded up to 8.
    pub const END: usize = 4568;
}

/// INIT_META_PAGE: the page is computed from the expected number of tuples, the hash function and the tuples
/// per bucket (`_hash_init_metabuffer`).
pub(super) fn init(part: &RecordPart<'_>, page: &mut Page<'_>) -> Result<(), RedoReason> {
    let mut main = Fields::main(part);
    let tuples = f64::from_bits(main.u64()?);
    let (procedure, fill_factor) = (main.u32()?, main.u16()?);
    if fill_factor == 0 {
        return Err(RedoReason::Malformed("hash index without tuples per bucket"));
    }
    let buckets = initial_buckets(tuples / f64::from(fill_factor));
    let phase = phase_of(buckets);
    let high_mask = (buckets + 1).next_power_of_two() - 1;
    let bitmap_room = (SPECIAL - HEADER_SIZE) as u16;
    let bitmap_bits = bitmap_room.ilog2() as u16;

    page::init(page, Special { flags: flag::META, ..Special::default() })?;
    page.put_u32(at::MAGIC, MAGIC)?;
    page.put_u32(at::VERSION, VERSION)?;
    page.put_u16(at::FILL_FACTOR, fill_factor)?;
    page.put_u16(at::BYTES_FOR_BITMAP, bitmap_room)?;
    page.put_u16(at::BITMAP_SIZE, 1 << bitmap_bits)?;
    page.put_u16(at::BITMAP_SHIFT, bitmap_bits + 3)?;
    page.put_u32(at::MAX_BUCKET, buckets - 1)?;
    page.put_u32(at::HIGH_MASK, high_mask)?;
    page.put_u32(at::LOW_MASK, high_mask >> 1)?;
    page.put_u32(at::OVERFLOW_POINT, phase)?;
    page.put_u32(at::PROCEDURE, procedure)?;
    // The first bitmap page.
    put_spare(page, phase, 1)?;
    page.set_lower(at::END);
    Ok(())
}

/// The wanted number of buckets, cut to a whole one and rounded up to whole phases; at least 2.
fn initial_buckets(wanted: f64) -> u32 {
    if wanted >= f64::from(INITIAL_BUCKETS_MAX) {
        INITIAL_BUCKETS_MAX
    } else if wanted > 2.0 {
        buckets_up_to(phase_of(wanted as u32))
    } else {
        2
    }
}

/// The phase ("splitpoint phase") in which the last of `buckets` is allocated (`_hash_spareindex`).
pub(super) fn phase_of(buckets: u32) -> u32 {
    let group = if buckets < 2 { 0 } else { (buckets - 1).ilog2() + 1 };
    if group < GROUPS_WITH_ONE_PHASE {
        return group;
    }
    let whole_groups = (group - GROUPS_WITH_ONE_PHASE) << PHASE_BITS;
    let within_group = ((buckets - 1) >> (group - (PHASE_BITS + 1))) & PHASE_MASK;
    GROUPS_WITH_ONE_PHASE + whole_groups + within_group
}

/// How many buckets there are once `phase` is allocated (`_hash_get_totalbuckets`).
pub(super) fn buckets_up_to(phase: u32) -> u32 {
    if phase < GROUPS_WITH_ONE_PHASE {
        return 1 << phase;
    }
    let phase = phase - GROUPS_WITH_ONE_PHASE;
    let before_group = 1 << (GROUPS_WITH_ONE_PHASE + (phase >> PHASE_BITS) - 1);
    before_group + (before_group >> PHASE_BITS) * ((phase & PHASE_MASK) + 1)
}

/// INIT_BITMAP_PAGE: the first bitmap page lies after the buckets.
pub(super) fn add_first_bitmap(page: &mut Page<'_>) -> Result<(), RedoReason> {
    check(page)?;
    let max_bucket = page.u32_at(at::MAX_BUCKET)?;
    add_map(page, max_bucket.wrapping_add(2))
}

/// ADD_OVFL_PAGE: block data is the first page that may be free. Main data says, after the bitmap size, whether
/// a freed page was taken; if not the index grew, perhaps by a bitmap page too, which is block 3.
pub(super) fn add_overflow(part: &RecordPart<'_>, page: &mut Page<'_>) -> Result<(), RedoReason> {
    set_first_free(part, page)?;
    let mut main = Fields::main(part);
    main.skip(2)?;
    let page_was_free = main.u8()? != 0;
    if page_was_free {
        return Ok(());
    }
    let mut grown_by = 1;
    if let Some(new_map) = part.block_number(3) {
        add_map(page, new_map)?;
        grown_by = 2;
    }
    let phase = page.u32_at(at::OVERFLOW_POINT)?;
    let spare = page.u32_at(spare_at(phase)?)?;
    put_spare(page, phase, spare.wrapping_add(grown_by))
}

/// SPLIT_ALLOCATE_PAGE: one bucket more; perhaps it starts a doubling, perhaps a phase.
pub(super) fn add_bucket(part: &RecordPart<'_>, page: &mut Page<'_>) -> Result<(), RedoReason> {
    const HAS_MASKS: u8 = 1;
    const HAS_PHASE: u8 = 2;
    check(page)?;
    let mut main = Fields::main(part);
    let new_bucket = main.u32()?;
    // The flags of the two buckets.
    main.skip(4)?;
    let flags = main.u8()?;
    let mut data = Fields::data(part);
    page.put_u32(at::MAX_BUCKET, new_bucket)?;
    if flags & HAS_MASKS != 0 {
        page.put_u32(at::LOW_MASK, data.u32()?)?;
        page.put_u32(at::HIGH_MASK, data.u32()?)?;
    }
    if flags & HAS_PHASE != 0 {
        let (phase, overflow_pages) = (data.u32()?, data.u32()?);
        put_spare(page, phase, overflow_pages)?;
        page.put_u32(at::OVERFLOW_POINT, phase)?;
    }
    Ok(())
}

/// Block data is the bit number of the first overflow page that may be free.
pub(super) fn set_first_free(part: &RecordPart<'_>, page: &mut Page<'_>) -> Result<(), RedoReason> {
    check(page)?;
    page.put_u32(at::FIRST_FREE, Fields::data(part).u32()?)
}

/// Adds to the number of tuples.
pub(super) fn add_tuples(page: &mut Page<'_>, count: f64) -> Result<(), RedoReason> {
    check(page)?;
    let tuples = f64::from_bits(page.u64_at(at::TUPLES)?) + count;
    page.put_u64(at::TUPLES, tuples.to_bits())
}

/// VACUUM_ONE_PAGE block 1: the deleted tuples count no more.
pub(super) fn subtract_vacuumed(
    rules: &RecordRules,
    part: &RecordPart<'_>,
    page: &mut Page<'_>,
) -> Result<(), RedoReason> {
    let count = bucket::vacuumed(rules, &mut Fields::main(part))?;
    add_tuples(page, -f64::from(count))
}

/// UPDATE_META_PAGE: main data is the number of tuples that vacuum counted.
pub(super) fn set_tuples(part: &RecordPart<'_>, page: &mut Page<'_>) -> Result<(), RedoReason> {
    check(page)?;
    page.put_u64(at::TUPLES, Fields::main(part).u64()?)
}

fn check(page: &Page<'_>) -> Result<(), RedoReason> {
    if page.u32_at(at::MAGIC)? == MAGIC {
        Ok(())
    } else {
        Err(RedoReason::Malformed("not a hash meta page"))
    }
}

fn add_map(page: &mut Page<'_>, block: u32) -> Result<(), RedoReason> {
    let count = page.u32_at(at::MAP_COUNT)?;
    if count >= MAPS_MAX {
        return Err(RedoReason::Malformed("too many bitmap pages"));
    }
    page.put_u32(at::MAPS + 4 * count as usize, block)?;
    page.put_u32(at::MAP_COUNT, count + 1)
}

fn put_spare(page: &mut Page<'_>, phase: u32, pages: u32) -> Result<(), RedoReason> {
    page.put_u32(spare_at(phase)?, pages)
}

fn spare_at(phase: u32) -> Result<usize, RedoReason> {
    if phase < SPARES_MAX {
        Ok(at::SPARES + 4 * phase as usize)
    } else {
        Err(RedoReason::Malformed("no such phase of bucket allocation"))
    }
}
