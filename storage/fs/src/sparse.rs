//! File contents for the crash simulator: pages shared between images, so that a copy costs no bytes.

use std::{collections::BTreeMap, io, sync::Arc};

const PAGE: usize = 4096;

/// Bytes of a file; pages never written are zeros.
#[derive(Clone, Default, Debug)]
pub(crate) struct SparseBytes {
    len: u64,
    pages: BTreeMap<u64, Arc<[u8; PAGE]>>,
}

/// The pieces of `offset..offset + len` that lie in one page each: page number, offset in it, length.
fn pieces(offset: u64, len: usize) -> impl Iterator<Item = (u64, usize, usize)> {
    let end = offset + len as u64;
    let mut at = offset;
    std::iter::from_fn(move || {
        (at < end).then(|| {
            let within = (at % PAGE as u64) as usize;
            let take = (PAGE - within).min((end - at) as usize);
            let piece = (at / PAGE as u64, within, take);
            at += take as u64;
            piece
        })
    })
}

impl SparseBytes {
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    pub(crate) fn write(&mut self, bytes: &[u8], offset: u64) {
        let mut rest = bytes;
        for (number, within, take) in pieces(offset, bytes.len()) {
            let (now, later) = rest.split_at(take);
            rest = later;
            let page = self.pages.entry(number).or_insert_with(|| Arc::new([0; PAGE]));
            Arc::make_mut(page)[within..within + take].copy_from_slice(now);
        }
        if !bytes.is_empty() {
            self.len = self.len.max(offset + bytes.len() as u64);
        }
    }

    pub(crate) fn set_len(&mut self, len: u64) {
        if len < self.len {
            let whole = len.div_ceil(PAGE as u64);
            self.pages.split_off(&whole);
            let within = (len % PAGE as u64) as usize;
            if let (true, Some(page)) = (within > 0, self.pages.get_mut(&(len / PAGE as u64))) {
                Arc::make_mut(page)[within..].fill(0);
            }
        }
        self.len = len;
    }

    pub(crate) fn read_exact(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        if offset + buf.len() as u64 > self.len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut rest = &mut buf[..];
        for (number, within, take) in pieces(offset, rest.len()) {
            let (now, later) = rest.split_at_mut(take);
            rest = later;
            match self.pages.get(&number) {
                Some(page) => now.copy_from_slice(&page[within..within + take]),
                None => now.fill(0),
            }
        }
        Ok(())
    }
}
