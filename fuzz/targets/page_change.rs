//! Stored page changes: what decodes encodes to the same bytes, and can be applied to any page.
#![no_main]

use libfuzzer_sys::fuzz_target;
use treering_fuzz::memory;
use treering_pgfmt::{change::PageChange, mask::mask_page, redo, version::PgMajor};
use treering_types::{Fork, Key, Lsn, PAGE_SIZE, RelTag, SlruKind};

const REL: RelTag = RelTag { tablespace: 1663, database: 5, relation: 16384, fork: Fork::Main };

fuzz_target!(|bytes: &[u8]| {
    let allowed = 64 * 1024 + 16 * bytes.len();
    let Ok(change) = memory::bounded(allowed, || PageChange::decode(bytes)) else { return };
    assert_eq!(&change.encode()[..], bytes, "encoding is not unique");
    let major = PgMajor::ALL[bytes.len() % 4];
    let (rmid, _) = change.resource_manager();
    for key in [Key::rel_block(REL, 7), Key::slru(SlruKind::Xact, 0)] {
        let mut page = [0; PAGE_SIZE];
        let _ = memory::bounded(256 * 1024, || {
            redo::apply(major, &key, Lsn(0x200_0000), &change, &mut page)
        });
        mask_page(rmid, &mut page, key.block());
    }
});
