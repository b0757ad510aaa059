//! Generic WAL: byte ranges to overwrite, then the hole is zeroed (`generic_redo` in `access/transam/generic_xlog.c`).

#![deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::panic)]

use super::{Context, RedoReason};
use crate::{change::RecordPart, fields::Fields, page::Page};

pub(super) fn redo(
    ctx: &Context<'_>,
    part: &RecordPart<'_>,
    page: &mut Page<'_>,
) -> Result<(), RedoReason> {
    let mut fields = Fields::data(part);
    while !fields.is_empty() {
        let (at, length) = (fields.u16()?, fields.u16()?);
        page.write(usize::from(at), fields.take(usize::from(length))?)?;
    }
    page.check_bounds()?;
    let (lower, upper) = (page.lower(), page.upper());
    page.slice_mut(lower, upper - lower)?.fill(0);
    page.set_lsn(ctx.lsn);
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use treering_types::{Fork, Key, Lsn, PAGE_SIZE, RelTag};

    use super::*;
    use crate::version::PgMajor;

    fn apply(data: &'static [u8], bytes: &mut [u8; PAGE_SIZE]) -> Result<(), RedoReason> {
        let rel = RelTag { tablespace: 1663, database: 5, relation: 16384, fork: Fork::Main };
        let key = Key::rel_block(rel, 3);
        let ctx = Context { major: PgMajor::V15, lsn: Lsn(0x100), key: &key };
        let part = RecordPart {
            rmid: super::super::rmgr::GENERIC,
            info: 0,
            xid: 0,
            block_id: 0,
            will_init: false,
            hints_logged: false,
            blocks: Default::default(),
            data: Cow::Borrowed(data),
            main: Cow::Borrowed(&[]),
        };
        redo(&ctx, &part, &mut Page::new(bytes))
    }

    #[test]
    fn ranges_are_written_and_the_hole_is_zeroed() {
        let mut bytes = [0; PAGE_SIZE];
        Page::new(&mut bytes).init(16);
        bytes[5000] = 9;
        apply(&[0xf0, 0x1f, 2, 0, 0xaa, 0xbb, 0xff, 0x1f, 1, 0, 0xcc], &mut bytes).unwrap();
        assert_eq!((bytes[5000], bytes[8176], bytes[8177], bytes[8191]), (0, 0xaa, 0xbb, 0xcc));
        assert_eq!(Page::new(&mut bytes).lsn(), Lsn(0x100));
    }

    #[test]
    fn ranges_outside_the_page_are_refused() {
        let mut bytes = [0; PAGE_SIZE];
        Page::new(&mut bytes).init(16);
        assert!(apply(&[0xff, 0x1f, 2, 0, 1, 1], &mut bytes).is_err());
        assert!(apply(&[0, 0, 9, 0, 1], &mut bytes).is_err());
        assert!(apply(&[0, 0, 9], &mut bytes).is_err());
    }
}
