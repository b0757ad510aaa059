//! Full-page images: packed bytes become one page or an error, in bounded memory.
#![no_main]

use libfuzzer_sys::fuzz_target;
use treering_fuzz::{input::Input, memory};
use treering_pgfmt::{
    pglz,
    wal::record::{BlockImage, ImageCompression},
};
use treering_types::{Lsn, PAGE_SIZE};

const METHODS: [ImageCompression; 4] =
    [ImageCompression::None, ImageCompression::Pglz, ImageCompression::Lz4, ImageCompression::Zstd];
/// A page and what one decompressor needs.
const BYTES_MAX: usize = 64 * 1024;

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input(bytes);
    let compression = METHODS[usize::from(input.u8() % 4)];
    let (hole_offset, hole_length) = (input.u16(), input.u16());
    let image =
        BlockImage { apply: true, hole_offset, hole_length, compression, bytes: input.0.into() };
    let lsn = Lsn(0x1_0000_0028);
    if let Ok(page) =
        memory::bounded(BYTES_MAX, || image.restore_at(lsn).map(|image| image.to_page()))
    {
        let (from, to) = (usize::from(hole_offset), usize::from(hole_length));
        let hole = &page[from.max(8)..(from + to).max(8)];
        assert!(hole.iter().all(|byte| *byte == 0), "the hole is not empty");
        assert_eq!(
            image.restore_at(lsn).map(|image| image.to_page()).as_ref(),
            Ok(&page),
            "unpacking is not repeatable"
        );
    }
    let size = usize::from(hole_length) % (PAGE_SIZE + 1);
    let _ = pglz::decompress(input.0, &mut vec![0; size]);
});
