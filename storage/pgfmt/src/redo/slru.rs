//! SLRU pages: arrays without page header or LSN, keyed by transaction, multixact or member number.
//!
//! Every change is idempotent and total: an entry is found by its number modulo the entries of a page, so no
//! input can reach outside of one (`access/transam/{clog,commit_ts,multixact}.c`).

use treering_types::PAGE_SIZE;

/// Transactions in one `pg_xact` page: two bits each.
pub const XACTS_PER_PAGE: u32 = PAGE_SIZE as u32 * 4;
/// Entries in one `pg_commit_ts` page: 10 bytes each, time and origin.
pub const COMMIT_TIMES_PER_PAGE: u32 = (PAGE_SIZE / COMMIT_TIME_SIZE) as u32;
/// Entries in one `pg_multixact/offsets` page: 4 bytes each.
pub const MULTIS_PER_PAGE: u32 = PAGE_SIZE as u32 / 4;
/// Entries in one `pg_multixact/members` page.
pub const MEMBERS_PER_PAGE: u32 = MEMBER_GROUPS_PER_PAGE * MEMBERS_PER_GROUP;
/// Pages in one SLRU segment file.
pub const PAGES_PER_SEGMENT: u32 = 32;

const COMMIT_TIME_SIZE: usize = 10;
/// Members come in groups of four: four status bytes, then four transaction ids.
const MEMBERS_PER_GROUP: u32 = 4;
const MEMBER_GROUP_SIZE: u32 = 20;
const MEMBER_GROUPS_PER_PAGE: u32 = PAGE_SIZE as u32 / MEMBER_GROUP_SIZE;

/// Sets the two status bits of each transaction.
pub(super) fn xact_status(status: u8, xids: &[u32], page: &mut [u8; PAGE_SIZE]) {
    for xid in xids {
        let entry = xid % XACTS_PER_PAGE;
        let shift = 2 * (entry % 4);
        let byte = &mut page[(entry / 4) as usize];
        *byte = *byte & !(3 << shift) | (status & 3) << shift;
    }
}

pub(super) fn commit_time(time: i64, origin: u16, xids: &[u32], page: &mut [u8; PAGE_SIZE]) {
    for xid in xids {
        let at = (xid % COMMIT_TIMES_PER_PAGE) as usize * COMMIT_TIME_SIZE;
        page[at..at + 8].copy_from_slice(&time.to_le_bytes());
        page[at + 8..at + COMMIT_TIME_SIZE].copy_from_slice(&origin.to_le_bytes());
    }
}

pub(super) fn multi_offsets(entries: &[(u32, u32)], page: &mut [u8; PAGE_SIZE]) {
    for (multi, offset) in entries {
        put_word(page, multi % MULTIS_PER_PAGE * 4, *offset);
    }
}

pub(super) fn multi_members(members: &[(u32, u32, u8)], page: &mut [u8; PAGE_SIZE]) {
    for (offset, xid, status) in members {
        let entry = offset % MEMBERS_PER_PAGE;
        let group = entry / MEMBERS_PER_GROUP * MEMBER_GROUP_SIZE;
        let member = entry % MEMBERS_PER_GROUP;
        page[(group + member) as usize] = *status;
        put_word(page, group + MEMBERS_PER_GROUP + 4 * member, *xid);
    }
}

/// ZERO_OFF_PAGE (WAL.md E13): in WAL of older minors the creation of the last multixact of the page before has
/// already spilled its end into the first entry of this one. A page with nothing but that entry exists only
/// because of the spill and stays; anything else is what a wrapped-around lap left.
pub(super) fn zero_multi_offsets(page_number: u32, page: &mut [u8; PAGE_SIZE]) {
    // Multixact 0 does not exist: after a wrap-around the spill goes to entry 1 of page 0.
    let spill = if page_number == 0 { 8 } else { 4 };
    if page[spill..].iter().any(|byte| *byte != 0) {
        page.fill(0);
    }
}

fn put_word(page: &mut [u8; PAGE_SIZE], at: u32, value: u32) {
    let at = at as usize;
    page[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn geometry_matches_postgres() {
        let geometry = (XACTS_PER_PAGE, COMMIT_TIMES_PER_PAGE, MULTIS_PER_PAGE, MEMBERS_PER_PAGE);
        assert_eq!(geometry, (32768, 819, 2048, 1636));
    }

    #[test]
    fn status_bits_are_replaced_not_mixed() {
        let mut page = [0; PAGE_SIZE];
        xact_status(2, &[32768 + 5], &mut page);
        assert_eq!(page[1], 0b1000);
        xact_status(1, &[5, 6], &mut page);
        assert_eq!(page[1], 0b01_0100);
    }

    #[test]
    fn the_last_entries_fit() {
        let mut page = [0; PAGE_SIZE];
        xact_status(3, &[u32::MAX], &mut page);
        commit_time(-1, u16::MAX, &[818], &mut page);
        multi_offsets(&[(2047, u32::MAX)], &mut page);
        multi_members(&[(1635, u32::MAX, 5)], &mut page);
        assert_eq!(page[8176..8180], [255; 4]);
    }

    /// E13, both orders: the spill survives a late ZERO_OFF_PAGE, an old lap's page does not.
    #[test]
    fn a_spill_survives_zeroing() {
        let mut page = [0; PAGE_SIZE];
        multi_offsets(&[(4096, 77)], &mut page);
        zero_multi_offsets(2, &mut page);
        assert_eq!(page[..4], 77u32.to_le_bytes());
        multi_offsets(&[(4097, 79)], &mut page);
        zero_multi_offsets(2, &mut page);
        assert_eq!(page, [0; PAGE_SIZE]);
        zero_multi_offsets(2, &mut page);
        multi_offsets(&[(4096, 77)], &mut page);
        assert_eq!(page[..4], 77u32.to_le_bytes());
    }

    #[test]
    fn the_spill_of_a_wrap_around_goes_to_entry_one() {
        let mut page = [0; PAGE_SIZE];
        multi_offsets(&[(1, 9)], &mut page);
        zero_multi_offsets(0, &mut page);
        assert_eq!(page[4], 9);
    }
}
