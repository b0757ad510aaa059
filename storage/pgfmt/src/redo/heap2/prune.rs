//! Pruning, vacuuming and freezing of a heap page, in the formats of every major.
//!
//! | major | PRUNE | VACUUM | FREEZE_PAGE |
//! |---|---|---|---|
//! | 15 | counts, offsets | count, offsets | one 12-byte plan with its offset per tuple |
//! | 16 | as 15 | as 15 | shared plans, then the offsets of each |
//! | 17, 18 | one format for the three: flags, freeze plans, redirections, dead, unused, plan offsets |||

use super::super::heap::tuple::Header;
use crate::{
    change::RecordPart,
    fields::{Fields, U16s},
    page::{LinePointer, Page, PointerState},
    redo::RedoReason,
};

const FREEZE_XVAC: u8 = 0x02;
const INVALID_XVAC: u8 = 0x04;
const FROZEN_XID: u32 = 2;
const INVALID_XID: u32 = 0;

/// Flags of the 17 and 18 record (`XLHP_*`).
mod unified_flag {
    pub const CLEANUP_LOCK: u8 = 1 << 2;
    pub const HAS_FREEZE_PLANS: u8 = 1 << 4;
    pub const HAS_REDIRECTIONS: u8 = 1 << 5;
    pub const HAS_DEAD: u8 = 1 << 6;
    pub const HAS_UNUSED: u8 = 1 << 7;
}

/// PRUNE of 15 and 16; what is left of the block data after redirections and dead items becomes unused.
pub(super) fn prune(part: &RecordPart<'_>, page: &mut Page<'_>) -> Result<(), RedoReason> {
    let mut main = Fields::main(part);
    main.skip(4)?; // the conflict horizon
    let redirect_count = usize::from(main.u16()?);
    let dead_count = usize::from(main.u16()?);
    let mut data = Fields::data(part);
    redirect(page, data.u16s(redirect_count * 2)?)?;
    set_state(page, data.u16s(dead_count)?, PointerState::Dead)?;
    let unused_count = data.rest().len() / 2;
    set_state(page, data.u16s(unused_count)?, PointerState::Unused)?;
    page.repair_fragmentation()
}

/// VACUUM of 15 and 16: dead items become unused, tuples stay where they are.
pub(super) fn vacuum(part: &RecordPart<'_>, page: &mut Page<'_>) -> Result<(), RedoReason> {
    let count = usize::from(Fields::main(part).u16()?);
    let unused = Fields::data(part).u16s(count)?;
    set_state(page, unused, PointerState::Unused)?;
    page.truncate_line_pointer_array()
}

/// FREEZE_PAGE of 15.
pub(super) fn freeze_tuples(part: &RecordPart<'_>, page: &mut Page<'_>) -> Result<(), RedoReason> {
    let mut main = Fields::main(part);
    main.skip(4)?; // the cutoff
    let count = main.u16()?;
    let mut data = Fields::data(part);
    for _ in 0..count {
        let xmax = data.u32()?;
        let offset = data.u16()?;
        let plan =
            FreezePlan { xmax, infomask2: data.u16()?, infomask: data.u16()?, flags: data.u8()? };
        data.skip(data.rest().len().min(1))?; // padding
        plan.execute(page, offset)?;
    }
    Ok(())
}

/// FREEZE_PAGE of 16.
pub(super) fn freeze_plans(part: &RecordPart<'_>, page: &mut Page<'_>) -> Result<(), RedoReason> {
    let mut main = Fields::main(part);
    main.skip(4)?; // the conflict horizon
    let count = usize::from(main.u16()?);
    let mut data = Fields::data(part);
    let plans = data.take(count * FreezePlan::SIZE)?;
    execute_plans(page, plans, &mut data)
}

/// PRUNE_ON_ACCESS, PRUNE_VACUUM_SCAN and PRUNE_VACUUM_CLEANUP of 17 and 18.
pub(super) fn unified(part: &RecordPart<'_>, page: &mut Page<'_>) -> Result<(), RedoReason> {
    use unified_flag::*;
    let mut main = Fields::main(part);
    main.skip(1)?; // the reason
    let flags = main.u8()?;
    let mut data = Fields::data(part);
    let plans = match flags & HAS_FREEZE_PLANS {
        0 => &[][..],
        _ => {
            let count = usize::from(data.u16()?);
            data.skip(2)?;
            data.take(count * FreezePlan::SIZE)?
        }
    };
    let mut counted = |flag: u8, each: usize| {
        let count = if flags & flag == 0 { 0 } else { usize::from(data.u16()?) };
        data.u16s(count * each)
    };
    let redirections = counted(HAS_REDIRECTIONS, 2)?;
    let dead = counted(HAS_DEAD, 1)?;
    let unused = counted(HAS_UNUSED, 1)?;
    if !(redirections.is_empty() && dead.is_empty() && unused.is_empty()) {
        redirect(page, redirections)?;
        set_state(page, dead, PointerState::Dead)?;
        set_state(page, unused, PointerState::Unused)?;
        if flags & CLEANUP_LOCK == 0 {
            page.truncate_line_pointer_array()?;
        } else {
            page.repair_fragmentation()?;
        }
    }
    execute_plans(page, plans, &mut data)
}

/// `pairs` holds the redirected offset, then the one it points to from now on.
fn redirect(page: &mut Page<'_>, pairs: U16s<'_>) -> Result<(), RedoReason> {
    let mut offsets = pairs.iter();
    while let (Some(from), Some(to)) = (offsets.next(), offsets.next()) {
        let pointer = LinePointer::new(usize::from(to), PointerState::Redirect, 0);
        page.set_line_pointer(from, pointer)?;
    }
    Ok(())
}

fn set_state(
    page: &mut Page<'_>,
    offsets: U16s<'_>,
    state: PointerState,
) -> Result<(), RedoReason> {
    let pointer = LinePointer::new(0, state, 0);
    offsets.iter().try_for_each(|offset| page.set_line_pointer(offset, pointer))
}

/// What freezing makes of a tuple header.
struct FreezePlan {
    xmax: u32,
    infomask2: u16,
    infomask: u16,
    flags: u8,
}

impl FreezePlan {
    /// Bytes of a plan shared by tuples (16 on): ... flags, a byte of padding, tuple count.
    const SIZE: usize = 12;

    fn execute(&self, page: &mut Page<'_>, offset: u16) -> Result<(), RedoReason> {
        let mut header = Header::of(page, offset)?;
        header.set_xmax(self.xmax);
        if self.flags & FREEZE_XVAC != 0 {
            header.set_cid_or_xvac(FROZEN_XID);
        }
        if self.flags & INVALID_XVAC != 0 {
            header.set_cid_or_xvac(INVALID_XID);
        }
        header.set_infomask(self.infomask);
        header.set_infomask2(self.infomask2);
        Ok(())
    }
}

/// Plans in order, each taking its tuples' offsets from `offsets`.
fn execute_plans(
    page: &mut Page<'_>,
    plans: &[u8],
    offsets: &mut Fields<'_>,
) -> Result<(), RedoReason> {
    let mut plans = Fields::new(plans);
    while !plans.is_empty() {
        let plan = FreezePlan {
            xmax: plans.u32()?,
            infomask2: plans.u16()?,
            infomask: plans.u16()?,
            flags: plans.u8()?,
        };
        plans.skip(1)?;
        let count = usize::from(plans.u16()?);
        offsets.u16s(count)?.iter().try_for_each(|offset| plan.execute(page, offset))?;
    }
    Ok(())
}
