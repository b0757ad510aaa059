//! XLOG records that restore pages (FPI, FPI_FOR_HINT).
//!
//! Their images are restored when the record is taken apart and stored as whole pages; one that got here came
//! without an image. Postgres does nothing with such an FPI_FOR_HINT (`full_page_writes` was off) and
//! refuses such an FPI (`xlog_redo` in `access/transam/xlog.c`).

use super::{Context, RedoReason};
use crate::{change::RecordPart, page::Page};

/// Info bits of FPI_FOR_HINT.
pub(crate) const FPI_FOR_HINT: u8 = 0xa0;
/// Info bits of FPI.
pub(crate) const FPI: u8 = 0xb0;

pub(super) fn redo(
    _ctx: &Context<'_>,
    part: &RecordPart<'_>,
    _page: &mut Page<'_>,
) -> Result<(), RedoReason> {
    match part.info & 0xf0 {
        FPI_FOR_HINT => Ok(()),
        FPI => Err(RedoReason::Malformed("full-page image record without an image")),
        _ => Err(RedoReason::Unhandled),
    }
}
