//! Full-page images: packed bytes of a record to a page.
//!
//! An [`Image`] is a page that was not copied yet: it is once, to where the page is wanted.

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::panic))]

use treering_types::{ErrorKind, Lsn, PAGE_SIZE, PageImage};

use super::{
    pieces::Pieces,
    record::{BlockImage, ImageCompression},
};
use crate::{page::Page, pglz};

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

/// A whole page, perhaps with a hole of zeros left out.
#[derive(Clone, Debug)]
pub struct Image<'a> {
    /// As many as fill a page together with the hole, which is inside or at the end of them.
    bytes: Bytes<'a>,
    hole_offset: usize,
    hole_length: usize,
    /// Becomes the page's LSN, unless the page was never initialised.
    lsn: Option<Lsn>,
}

#[derive(Clone, Debug)]
enum Bytes<'a> {
    Borrowed(Pieces<'a>),
    Owned(Box<[u8]>),
}

impl Bytes<'_> {
    fn pieces(&self) -> Pieces<'_> {
        match self {
            Bytes::Borrowed(pieces) => *pieces,
            Bytes::Owned(bytes) => Pieces::from(&bytes[..]),
        }
    }
}

impl<'a> Image<'a> {
    /// A page as it is.
    pub fn whole(page: &'a [u8; PAGE_SIZE]) -> Image<'a> {
        let bytes = Bytes::Borrowed(Pieces::from(&page[..]));
        Image { bytes, hole_offset: 0, hole_length: 0, lsn: None }
    }

    fn with_hole(bytes: Bytes<'a>, hole_offset: u16, hole_length: u16) -> Option<Image<'a>> {
        let (hole_offset, hole_length) = (usize::from(hole_offset), usize::from(hole_length));
        let len = bytes.pieces().len();
        let fits = len + hole_length == PAGE_SIZE && hole_offset <= len;
        fits.then_some(Image { bytes, hole_offset, hole_length, lsn: None })
    }

    /// Copies the page to `page`, each byte written once. The page's checksum is stale.
    pub fn copy_to(&self, page: &mut [u8; PAGE_SIZE]) {
        let (before, after) = self.bytes.pieces().split_at(self.hole_offset);
        let (front, rest) = page.split_at_mut(self.hole_offset);
        let (hole, back) = rest.split_at_mut(self.hole_length);
        before.copy_to(front);
        hole.fill(0);
        after.copy_to(back);
        let mut page = Page::new(page);
        if let Some(lsn) = self.lsn.filter(|_| !page.is_new()) {
            page.set_lsn(lsn);
        }
    }

    /// A copy.
    pub fn to_page(&self) -> PageImage {
        let mut page = Box::new([0; PAGE_SIZE]);
        self.copy_to(&mut page);
        page
    }
}

impl From<PageImage> for Image<'_> {
    fn from(page: PageImage) -> Self {
        Image { bytes: Bytes::Owned(page), hole_offset: 0, hole_length: 0, lsn: None }
    }
}

/// The same page, however it is kept.
impl PartialEq for Image<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.to_page() == other.to_page()
    }
}

impl Eq for Image<'_> {}

impl<'a> BlockImage<'a> {
    /// Unpacks the image: decompresses it. The page LSN is the one the image carries, usually stale: see
    /// [`BlockImage::restore_at`].
    ///
    /// # Errors
    /// [`ImageError`] when the bytes do not make exactly one page. Never reads or writes beyond it.
    pub fn restore(&self) -> Result<Image<'a>, ImageError> {
        self.unpack().ok_or(ImageError {
            compression: self.compression,
            packed: self.bytes.len(),
            hole_offset: self.hole_offset,
            hole_length: self.hole_length,
        })
    }

    /// As [`BlockImage::restore`], with the page LSN set to `lsn` (the record's end) unless the page was never
    /// initialised, as `XLogReadBufferForRedoExtended` does.
    ///
    /// # Errors
    /// [`ImageError`].
    pub fn restore_at(&self, lsn: Lsn) -> Result<Image<'a>, ImageError> {
        Ok(Image { lsn: Some(lsn), ..self.restore()? })
    }

    fn unpack(&self) -> Option<Image<'a>> {
        let bytes = match self.compression {
            ImageCompression::None => Bytes::Borrowed(self.bytes),
            ImageCompression::Pglz | ImageCompression::Lz4 | ImageCompression::Zstd => {
                Bytes::Owned(self.decompress()?.into())
            }
        };
        Image::with_hole(bytes, self.hole_offset, self.hole_length)
    }

    fn decompress(&self) -> Option<Vec<u8>> {
        let size = PAGE_SIZE.checked_sub(usize::from(self.hole_length))?;
        let packed = self.bytes.join();
        let mut unpacked = vec![0; size];
        let count = match self.compression {
            ImageCompression::None => return None,
            ImageCompression::Pglz => {
                pglz::decompress(&packed, &mut unpacked).ok()?;
                size
            }
            ImageCompression::Lz4 => {
                lz4_flex::block::decompress_into(&packed, &mut unpacked).ok()?
            }
            ImageCompression::Zstd => {
                zstd::bulk::decompress_to_buffer(&packed[..], &mut unpacked[..]).ok()?
            }
        };
        (count == size).then_some(unpacked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page() -> PageImage {
        let mut page: PageImage = Box::new([0; PAGE_SIZE]);
        for (index, byte) in page.iter_mut().enumerate() {
            *byte = if (100..4000).contains(&index) { 0 } else { (index / 3) as u8 };
        }
        page
    }

    fn image(
        compression: ImageCompression,
        bytes: Vec<u8>,
        hole: (u16, u16),
    ) -> BlockImage<'static> {
        let (hole_offset, hole_length) = hole;
        let bytes = Pieces::from(&*bytes.leak());
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
                assert_eq!(good.restore().unwrap().to_page(), page, "{compression:?}");
                let mut short = packed;
                short.pop();
                assert!(image(compression, short, hole).restore().is_err(), "{compression:?}");
            }
        }
    }

    #[test]
    fn lsn_is_set_high_half_first() {
        let page = image(ImageCompression::None, page().to_vec(), (0, 0));
        let restored = page.restore_at(Lsn(0x1_0000_0002)).unwrap().to_page();
        assert_eq!(restored[..8], [1, 0, 0, 0, 2, 0, 0, 0]);
        let new = image(ImageCompression::None, vec![0; PAGE_SIZE], (0, 0));
        assert_eq!(new.restore_at(Lsn(7)).unwrap().to_page(), Box::new([0; PAGE_SIZE]));
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
