//! Fetching a base backup from the pageserver. Blocking: a start waits for it on a thread of its own.

use std::{
    io::{self, Read},
    time::Duration,
};

use bytes::{Buf, Bytes};
use treering_types::{Lsn, TenantId, TimelineId};

use crate::pageserver;

/// How long the pageserver may be silent: it waits for ingest before it begins.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// What to fetch.
pub struct Source {
    /// `host:port` of the pageserver's Postgres-protocol face.
    pub pageserver: String,
    pub tenant: TenantId,
    pub timeline: TimelineId,
    pub lsn: Lsn,
    /// Without the pages that can be fetched later.
    pub is_lazy: bool,
}

/// Opens the backup: a tar stream.
pub fn open(source: &Source) -> anyhow::Result<impl Read> {
    let Source { tenant, timeline, lsn, .. } = source;
    let lazy = if source.is_lazy { " lazy" } else { "" };
    let query = format!("basebackup {tenant} {timeline} {lsn}{lazy}");
    let copy = pageserver::open(&source.pageserver, &query, SILENCE_MAX)?;
    Ok(Backup { copy, piece: Bytes::new(), done: false })
}

/// The payloads of the copy, as one stream. It ends only at CopyDone: a stream that breaks off is an error.
struct Backup {
    copy: pageserver::Copy,
    piece: Bytes,
    done: bool,
}

impl Read for Backup {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() && !self.done {
            match self.copy.payload()? {
                Some(piece) => self.piece = piece,
                None => self.done = true,
            }
        }
        let now = buffer.len().min(self.piece.len());
        self.piece.copy_to_slice(&mut buffer[..now]);
        Ok(now)
    }
}
