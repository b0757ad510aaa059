//! The record ends of the WAL page that ingest stands in.

use treering_engine::{EngineError, RecordEnds, Timeline, Value};
use treering_types::{Key, Lsn};

/// Collects ends; hands out a page's value when the page is left and when asked.
#[derive(Debug)]
pub(super) struct PageEnds {
    key: Key,
    page: RecordEnds,
    /// `page` holds ends that were not handed out.
    is_dirty: bool,
}

impl PageEnds {
    /// At `at`, the timeline's `last_record_lsn`: with the ends of its page that are known.
    pub(super) fn open(timeline: &Timeline, at: Lsn) -> Result<PageEnds, EngineError> {
        let key = RecordEnds::key_of(at);
        let mut page = RecordEnds::default();
        if let Some((lsn, bytes)) = timeline.get_value(key, at)? {
            page = RecordEnds::decode(&bytes).map_err(|what| EngineError::CorruptValue {
                timeline: timeline.info().timeline,
                key,
                lsn,
                what: what.to_owned(),
            })?;
        }
        page.ends.retain(|end| *end <= at);
        if page.ends.last() != Some(&at) {
            page.ends.push(at);
        }
        Ok(PageEnds { key, page, is_dirty: false })
    }

    /// Notes a record that ends at `end`. Returns the value of the page before, when this record leaves it.
    pub(super) fn advance(&mut self, end: Lsn) -> Option<(Key, Value)> {
        let key = RecordEnds::key_of(end);
        let mut left = None;
        if key != self.key {
            left = self.take_current();
            let before = self.page.ends.last().copied().unwrap_or_default();
            self.page = RecordEnds { before, ends: Vec::new() };
            self.key = key;
        }
        self.page.ends.push(end);
        self.is_dirty = true;
        left
    }

    /// The current page's value, if it changed since it was last handed out.
    pub(super) fn take_current(&mut self) -> Option<(Key, Value)> {
        let is_dirty = std::mem::replace(&mut self.is_dirty, false);
        is_dirty.then(|| (self.key, Value::whole(self.page.encode())))
    }
}
