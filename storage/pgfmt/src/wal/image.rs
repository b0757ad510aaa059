//! Full-page images: packed bytes of a record to a page.

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::panic))]

use treering_types::{ErrorKind, Lsn, PAGE_SIZE, PageImage};

use super::record::{BlockImage, ImageCompression};
use crate::{le::u16_at, pglz};

/// An image that does not unpack to exactly one page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "a full-page image ({compression:?}, {packed} bytes, hole {hole_offset}+{hole_length}) does not unpack"
)]
pub struct ImageError {
    pub compression: ImageCompression,
    pub packed: usize,
    pub hole_offset: u16,
    pub hole_length: u16,
}

impl ImageError {
    /// Always damage.
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::Corrupt
    }
}

/// `pd_upper` of a page header; zero means that the page was never initialised.
const PD_UPPER_OFFSET: usize = 14;

impl BlockImage {
    /// Unpacks the image: decompresses it and puts the hole back as zeros. The page LSN is the one the image
    /// carries, usually stale: see [`BlockImage::restore_at`].
    ///
    /// # Errors
    /// [`ImageError`] when the bytes do not make exactly one page. Never reads or writes beyond it.
    pub fn restore(&self) -> Result<PageImage, ImageError> {
        self.unpack().ok_or(ImageError {
            compression: self.compression,
            packed: self.bytes.len(),
            hole_offset: self.hole_offset,
            hole_length: self.hole_length,
        })
    }

    /// As [`BlockImage::restore`], with the page LSN set to `lsn` (the record's end) unless the page was never
    /// initialised, as `XLogReadBufferForRedoExtended` does. The page's checksum is stale.
    ///
    /// # Errors
    /// [`ImageError`].
    pub fn restore_at(&self, lsn: Lsn) -> Result<PageImage, ImageError> {
        let mut page = self.restore()?;
        let is_new = u16_at(&page[..], PD_UPPER_OFFSET) == Some(0);
        if let Some(page_lsn) = page.first_chunk_mut::<8>().filter(|_| !is_new) {
            // PageXLogRecPtr: high half first, each half in native order.
            *page_lsn = lsn.0.rotate_left(32).to_le_bytes();
        }
        Ok(page)
    }

    fn unpack(&self) -> Option<PageImage> {
        let size = PAGE_SIZE.checked_sub(usize::from(self.hole_length))?;
        if self.compression == ImageCompression::None {
            return self.with_hole(&self.bytes);
        }
        let mut unpacked = [0; PAGE_SIZE];
        let target = unpacked.get_mut(..size)?;
        match self.compression {
            ImageCompression::None => {}
            ImageCompression::Pglz => pglz::decompress(&self.bytes, target).ok()?,
            ImageCompression::Lz4 => {
                let count = lz4_flex::block::decompress_into(&self.bytes, target).ok()?;
                (count == size).then_some(())?;
            }
            ImageCompression::Zstd => {
                let count = zstd::bulk::decompress_to_buffer(&self.bytes, target).ok()?;
                (count == size).then_some(())?;
            }
        }
        self.with_hole(target)
    }

    /// A page of `bytes` and the hole between them, each byte written once.
    fn with_hole(&self, bytes: &[u8]) -> Option<PageImage> {
        let hole = usize::from(self.hole_length);
        if bytes.len() + hole != PAGE_SIZE {
            return None;
        }
        let (before, after) = bytes.split_at_checked(usize::from(self.hole_offset))?;
        let mut page = Vec::with_capacity(PAGE_SIZE);
        page.extend_from_slice(before);
        page.resize(before.len() + hole, 0);
        page.extend_from_slice(after);
        page.into_boxed_slice().try_into().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn page() -> PageImage {
        let mut page: PageImage = Box::new([0; PAGE_SIZE]);
        for (index, byte) in page.iter_mut().enumerate() {
            *byte = if (100..4000).contains(&index) { 0 } else { (index / 3) as u8 };
        }
        page
    }

    fn image(compression: ImageCompression, bytes: Vec<u8>, hole: (u16, u16)) -> BlockImage {
        let (hole_offset, hole_length) = hole;
        let bytes = Bytes::from(bytes);
        BlockImage { apply: true, hole_offset, hole_length, compression, bytes }
    }

    #[test]
    fn every_packing_comes_back() {
        let page = page();
        let whole = page.to_vec();
        let without_hole = [&page[..100], &page[4000..]].concat();
        for (bytes, hole) in [(whole, (0, 0)), (without_hole, (100, 3900))] {
            let lz4 = lz4_flex::block::compress(&bytes);
            let zstd = zstd::bulk::compress(&bytes, 1).unwrap();
            for (compression, packed) in [
                (ImageCompression::None, bytes.clone()),
                (ImageCompression::Lz4, lz4),
                (ImageCompression::Zstd, zstd),
            ] {
                let good = image(compression, packed.clone(), hole);
                assert_eq!(good.restore().unwrap(), page, "{compression:?}");
                let mut short = packed;
                short.pop();
                assert!(image(compression, short, hole).restore().is_err(), "{compression:?}");
            }
        }
    }

    #[test]
    fn lsn_is_set_high_half_first() {
        let page = image(ImageCompression::None, page().to_vec(), (0, 0));
        let restored = page.restore_at(Lsn(0x1_0000_0002)).unwrap();
        assert_eq!(restored[..8], [1, 0, 0, 0, 2, 0, 0, 0]);
        let new = image(ImageCompression::None, vec![0; PAGE_SIZE], (0, 0));
        assert_eq!(new.restore_at(Lsn(7)).unwrap(), Box::new([0; PAGE_SIZE]));
    }

    #[test]
    fn impossible_holes_are_errors() {
        for hole in [(8000, 3900), (u16::MAX, u16::MAX), (0, 8192)] {
            let bytes = vec![1; PAGE_SIZE.saturating_sub(usize::from(hole.1))];
            let result = image(ImageCompression::None, bytes, hole).restore();
            assert_eq!(result.is_ok(), hole == (0, 8192));
        }
    }
}
