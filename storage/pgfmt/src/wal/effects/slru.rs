//! Records that change `pg_xact`, `pg_commit_ts` and `pg_multixact` pages directly (WAL.md E7, E13), and the
//! grouping of entries by page that transaction ends share.
//!
//! Truncations move the oldest values only: pages before them are not served.

use treering_types::SlruKind;

use super::{Effect, Effects};
use crate::{
    change::PageChange,
    cursor::Cursor,
    redo::slru::{COMMIT_TIMES_PER_PAGE, MEMBERS_PER_PAGE, MULTIS_PER_PAGE, XACTS_PER_PAGE},
    version::PgMajor,
    wal::{record::Record, state::ClusterState},
};

const ZERO_PAGE: u8 = 0x00;
const TRUNCATE: u8 = 0x10;

pub(super) fn clog(
    state: &mut ClusterState,
    record: &Record<'_>,
    fields: &mut Cursor<'_>,
    major: PgMajor,
    out: &mut Effects<'_>,
) -> Option<()> {
    let page = page_number(fields, major)?;
    match record.rmgr_info() {
        ZERO_PAGE => out.push(slru(SlruKind::Xact, page, PageChange::Zero)),
        TRUNCATE => state.advance_oldest_xid(fields.u32()?, fields.u32()?),
        _ => return None,
    }
    Some(())
}

pub(super) fn commit_ts(
    state: &mut ClusterState,
    record: &Record<'_>,
    fields: &mut Cursor<'_>,
    major: PgMajor,
    out: &mut Effects<'_>,
) -> Option<()> {
    let page = page_number(fields, major)?;
    match record.rmgr_info() {
        ZERO_PAGE => out.push(slru(SlruKind::CommitTs, page, PageChange::Zero)),
        TRUNCATE => state.advance_oldest_commit_ts(fields.u32()?),
        _ => return None,
    }
    Some(())
}

pub(super) fn multixact(
    state: &mut ClusterState,
    record: &Record<'_>,
    fields: &mut Cursor<'_>,
    major: PgMajor,
    out: &mut Effects<'_>,
) -> Option<()> {
    const ZERO_OFFSETS_PAGE: u8 = 0x00;
    const ZERO_MEMBERS_PAGE: u8 = 0x10;
    const CREATE_ID: u8 = 0x20;
    const TRUNCATE_ID: u8 = 0x30;
    match record.rmgr_info() {
        ZERO_OFFSETS_PAGE => {
            let page = page_number(fields, major)?;
            out.push(slru(SlruKind::MultiOffsets, page, PageChange::ZeroMultiOffsets));
        }
        ZERO_MEMBERS_PAGE => {
            let page = page_number(fields, major)?;
            out.push(slru(SlruKind::MultiMembers, page, PageChange::Zero));
        }
        CREATE_ID => create_multixact(state, fields, out)?,
        TRUNCATE_ID => {
            let database = fields.u32()?;
            fields.skip(4)?;
            (state.oldest_multi, state.oldest_multi_db) = (fields.u32()?, database);
        }
        _ => return None,
    }
    Some(())
}

/// `RecordNewMultiXact`: the multixact's first member, the next one's (its end, E13), and the members.
fn create_multixact(
    state: &mut ClusterState,
    fields: &mut Cursor<'_>,
    out: &mut Effects<'_>,
) -> Option<()> {
    let (multi, first, count) = (fields.u32()?, fields.u32()?, fields.count()?);
    let words = fields.u32s(count.checked_mul(2)?)?;
    let members: Vec<(u32, u32, u8)> = words
        .as_chunks::<2>()
        .0
        .iter()
        .scan(first, |offset, [xid, status]| {
            let member = (*offset, *xid, *status as u8);
            *offset = offset.wrapping_add(1);
            Some(member)
        })
        .collect();
    let end = first.wrapping_add(count as u32);
    // Neither multixact 0 nor member 0 exists; a wrap-around skips them.
    let entries = [(multi, first), (multi.wrapping_add(1).max(1), end.max(1))];
    let by_page = group_by_page(&entries, |(multi, _)| multi / MULTIS_PER_PAGE);
    out.extend(by_page.map(|(page, entries)| {
        slru(SlruKind::MultiOffsets, page, PageChange::MultiOffsets(entries.to_vec()))
    }));
    let by_page = group_by_page(&members, |(offset, ..)| offset / MEMBERS_PER_PAGE);
    out.extend(by_page.map(|(page, members)| {
        slru(SlruKind::MultiMembers, page, PageChange::MultiMembers(members.to_vec()))
    }));
    state.advance_multi(multi.wrapping_add(1), end);
    members.iter().for_each(|(_, xid, _)| state.note_xid(*xid));
    Some(())
}

/// The status bits of a transaction and its subtransactions.
pub(super) fn xact_status<'a>(status: u8, xids: &[u32]) -> impl Iterator<Item = Effect<'a>> {
    let by_page = group_by_page(xids, |xid| xid / XACTS_PER_PAGE);
    by_page.map(move |(page, xids)| {
        slru(SlruKind::Xact, page, PageChange::XactStatus { status, xids: xids.into() })
    })
}

/// The commit time of a transaction and its subtransactions.
pub(super) fn commit_time<'a>(
    time: i64,
    origin: u16,
    xids: &[u32],
) -> impl Iterator<Item = Effect<'a>> {
    let by_page = group_by_page(xids, |xid| xid / COMMIT_TIMES_PER_PAGE);
    by_page.map(move |(page, xids)| {
        slru(SlruKind::CommitTs, page, PageChange::CommitTime { time, origin, xids: xids.into() })
    })
}

/// The `pg_commit_ts` page that switching commit timestamps on creates without a record (E11).
pub(super) fn first_commit_ts_page(next_xid: u32) -> Effect<'static> {
    slru(SlruKind::CommitTs, next_xid / COMMIT_TIMES_PER_PAGE, PageChange::Zero)
}

fn slru(kind: SlruKind, page: u32, change: PageChange<'static>) -> Effect<'static> {
    Effect::Slru { kind, page, change }
}

/// Page numbers are C `int`s up to 16 and 64 bits wide from 17 on.
fn page_number(fields: &mut Cursor<'_>, major: PgMajor) -> Option<u32> {
    if major.layout().slru_page_number_size == 4 {
        return fields.u32();
    }
    u32::try_from(fields.u64()?).ok()
}

/// Runs of entries with the same page, in order. Entries of a page that come in several runs stay apart.
fn group_by_page<T: Copy>(
    entries: &[T],
    page_of: impl Fn(T) -> u32 + Copy,
) -> impl Iterator<Item = (u32, &[T])> {
    let runs = entries.chunk_by(move |a, b| page_of(*a) == page_of(*b));
    runs.filter_map(move |run| Some((page_of(*run.first()?), run)))
}
