//! Sequence LOG: the whole page from the record (`seq_redo` in `commands/sequence.c`).

use super::{Context, RedoReason};
use crate::{change::RecordPart, item::Placement, page::Page};

/// `xl_seq_rec` (a relation file locator) before the tuple.
const TUPLE_OFFSET: usize = 12;
/// `SEQ_MAGIC`, the first word of the special area.
const MAGIC: u32 = 0x1717;
const SPECIAL_SIZE: usize = 4;

pub(super) fn redo(
    ctx: &Context<'_>,
    part: &RecordPart<'_>,
    page: &mut Page<'_>,
) -> Result<(), RedoReason> {
    let is_log = part.info & 0xf0 == 0 && part.block_id == 0;
    if !is_log {
        return Err(RedoReason::Malformed("unknown sequence record"));
    }
    let tuple = part.main.get(TUPLE_OFFSET..).ok_or(RedoReason::Malformed("no sequence tuple"))?;
    page.init(SPECIAL_SIZE);
    page.put_u32(page.special(), MAGIC)?;
    page.add_item(tuple, 1, Placement::Insert)?;
    page.set_lsn(ctx.lsn);
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use treering_types::{Fork, Key, Lsn, PAGE_SIZE, RelTag};

    use super::*;
    use crate::version::PgMajor;

    #[test]
    fn the_page_is_built_from_nothing() {
        let rel = RelTag { tablespace: 1663, database: 5, relation: 16384, fork: Fork::Main };
        let key = Key::rel_block(rel, 0);
        let ctx = Context { major: PgMajor::V15, lsn: Lsn(0x1_0000_0010), key: &key };
        let mut part = RecordPart {
            rmid: super::super::rmgr::SEQUENCE,
            info: 0,
            xid: 0,
            block_id: 0,
            will_init: true,
            hints_logged: false,
            blocks: Default::default(),
            data: Cow::Borrowed(&[]),
            main: Cow::Borrowed(&[7; 12 + 44]),
        };
        let mut bytes = [0xff; PAGE_SIZE];
        redo(&ctx, &part, &mut Page::new(&mut bytes)).unwrap();
        let page = Page::new(&mut bytes);
        assert_eq!((page.lower(), page.upper(), page.special()), (28, 8184 - 48, 8184));
        assert_eq!((page.item(1).unwrap(), page.lsn()), (&[7; 44][..], ctx.lsn));
        assert_eq!(page.u32_at(8184), Ok(0x1717));
        part.main = Cow::Borrowed(&[7; 11]);
        assert!(redo(&ctx, &part, &mut Page::new(&mut bytes)).is_err());
    }
}
