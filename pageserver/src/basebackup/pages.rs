//! Pages for the archive, read ahead of its writer.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use treering_engine::{EngineError, Timeline};
use treering_pgfmt::redo::{RedoError, RedoReason};
use treering_types::{Key, Lsn, PAGE_SIZE, PageImage};

use crate::error::ServiceError;

/// Pages in one engine read: 2 MiB.
const BATCH_PAGES: usize = 256;
/// Batches read before the writer wants them.
const BATCHES_AHEAD: usize = 4;

/// One page or why there is none.
pub(super) type Page = Result<PageImage, EngineError>;

/// Reads the pages of `keys` at `lsn`, in order, on a thread of its own, while `consume` runs here.
///
/// # Errors
/// What `consume` gives. It may stop early; the reader then stops too.
pub(super) fn with_read_ahead<K>(
    timeline: &Timeline,
    lsn: Lsn,
    keys: K,
    consume: impl FnOnce(&mut Pages) -> Result<(), ServiceError>,
) -> Result<(), ServiceError>
where
    K: Iterator<Item = Key> + Send,
{
    let (sender, receiver) = sync_channel(BATCHES_AHEAD);
    std::thread::scope(|scope| {
        scope.spawn(move || read(timeline, lsn, keys, &sender));
        let mut pages = Pages { receiver, batch: Vec::new().into_iter() };
        consume(&mut pages)
    })
}

fn read(
    timeline: &Timeline,
    lsn: Lsn,
    mut keys: impl Iterator<Item = Key>,
    sender: &SyncSender<Vec<Page>>,
) {
    loop {
        let batch: Vec<Key> = keys.by_ref().take(BATCH_PAGES).collect();
        if batch.is_empty() || sender.send(timeline.get_pages(&batch, lsn)).is_err() {
            return;
        }
    }
}

/// The pages, in the order of their keys.
pub(super) struct Pages {
    receiver: Receiver<Vec<Page>>,
    batch: std::vec::IntoIter<Page>,
}

impl Pages {
    /// The next page.
    ///
    /// # Errors
    /// That page's. Shutdown when the reader has died or more is asked for than there are keys.
    pub(super) fn next(&mut self) -> Page {
        loop {
            if let Some(page) = self.batch.next() {
                return page;
            }
            self.batch = self.receiver.recv().map_err(|_| EngineError::Shutdown)?.into_iter();
        }
    }
}

/// True for a page that is not damaged, only beyond this version: its records are kept.
pub(super) fn is_unhandled(error: &EngineError) -> bool {
    matches!(error, EngineError::Redo(RedoError { reason: RedoReason::Unhandled, .. }))
}

/// A page that Postgres refuses to read (`PageIsVerifiedExtended`): its header is out of bounds whatever its checksum.
/// It says why, for whoever looks at the file.
pub(super) fn refused_page(why: &str) -> PageImage {
    let mut page: PageImage = Box::new([0xff; PAGE_SIZE]);
    let text = format!("\ntreering: this page cannot be read: {why}\n");
    let text = &text.as_bytes()[..text.len().min(PAGE_SIZE / 2)];
    page[64..64 + text.len()].copy_from_slice(text);
    page
}
