use proptest::{collection::vec, prelude::*};
use smallvec::smallvec;

use super::*;

fn bytes(max: usize) -> impl Strategy<Value = Cow<'static, [u8]>> {
    vec(any::<u8>(), 0..max).prop_map(Cow::Owned)
}

fn part() -> impl Strategy<Value = RecordPart<'static>> {
    let head = (any::<u8>(), any::<u8>(), any::<u32>(), 0u8..33, any::<bool>(), any::<bool>());
    let block = (0u8..33, any::<u32>(), any::<bool>())
        .prop_map(|(id, block, has_data)| PartBlock { id, block, has_data });
    (head, vec(block, 0..33), bytes(200), bytes(200)).prop_map(|(head, blocks, data, main)| {
        let (rmid, info, xid, block_id, will_init, hints_logged) = head;
        let blocks = blocks.into();
        RecordPart { rmid, info, xid, block_id, will_init, hints_logged, blocks, data, main }
    })
}

fn change() -> impl Strategy<Value = PageChange<'static>> {
    let words = || vec(any::<u32>(), 0..50);
    prop_oneof![
        any::<u8>().prop_map(|byte| PageChange::Image(Box::new([byte; PAGE_SIZE]).into())),
        Just(PageChange::Zero),
        part().prop_map(PageChange::Record),
        (any::<u32>(), 1u8..4)
            .prop_map(|(heap_block, bits)| PageChange::VisibilityClear { heap_block, bits }),
        any::<u32>().prop_map(|heap_blocks| PageChange::VisibilityTruncate { heap_blocks }),
        (0u8..4, words())
            .prop_map(|(status, xids)| PageChange::XactStatus { status, xids: xids.into() }),
        (any::<i64>(), any::<u16>(), words()).prop_map(|(time, origin, xids)| {
            PageChange::CommitTime { time, origin, xids: xids.into() }
        }),
        vec(any::<(u32, u32)>(), 0..50).prop_map(PageChange::MultiOffsets),
        vec(any::<(u32, u32, u8)>(), 0..50).prop_map(PageChange::MultiMembers),
        Just(PageChange::ZeroMultiOffsets),
        (any::<u8>(), any::<u8>(), bytes(100))
            .prop_map(|(rmid, info, record)| PageChange::Unhandled { rmid, info, record }),
    ]
}

proptest! {
    #[test]
    fn round_trip(change in change()) {
        let encoded = change.encode();
        prop_assert_eq!(PageChange::decode(&encoded), Ok(change));
    }

    #[test]
    fn hostile_bytes_are_an_error_or_canonical(tag in 0u8..14, body in bytes(300)) {
        let mut all = vec![tag];
        all.extend_from_slice(&body);
        if let Ok(change) = PageChange::decode(&all) {
            prop_assert_eq!(&change.encode()[..], &all[..]);
        }
    }

    /// Redo of anything decodable, on any page, may fail but never panics.
    #[test]
    fn redo_of_hostile_changes_never_panics(change in change(), fill in any::<u8>(), block in any::<u32>()) {
        use treering_types::{Key, Lsn, SlruKind};
        let mut page = [fill; PAGE_SIZE];
        let key = Key::slru(SlruKind::MultiOffsets, block);
        let _ = crate::redo::apply(crate::version::PgMajor::V15, &key, Lsn(8), &change, &mut page);
    }
}

#[test]
fn cut_bytes_are_an_error() {
    let part = RecordPart {
        rmid: 10,
        info: 0,
        xid: 700,
        block_id: 0,
        will_init: true,
        hints_logged: false,
        blocks: smallvec![PartBlock { id: 0, block: 7, has_data: true }],
        data: b"data".into(),
        main: Cow::Borrowed(&[]),
    };
    let change = PageChange::Record(part);
    assert!(change.is_base());
    let encoded = change.encode();
    for end in 0..encoded.len() {
        assert!(PageChange::decode(&encoded.slice(..end)).is_err(), "{end}");
    }
    assert_eq!(PageChange::decode(&[99]), Err(ChangeError::UnknownTag(99)));
}

/// The disk format does not move by accident.
#[test]
fn golden_record_part() {
    let part = RecordPart {
        rmid: 9,
        info: 0x40,
        xid: 0x0102_0304,
        block_id: 1,
        will_init: false,
        hints_logged: true,
        blocks: smallvec![
            PartBlock { id: 0, block: 0, has_data: false },
            PartBlock { id: 1, block: 0x1234, has_data: true },
        ],
        data: Cow::Borrowed(&[0xaa]),
        main: Cow::Borrowed(&[0xbb, 0xcc]),
    };
    let expected = [
        3, 9, 0x40, 2, 1, 4, 3, 2, 1, 2, 0, 0, 0, 0, 0, 0x81, 0x34, 0x12, 0, 0, 1, 0, 0xaa, 0xbb,
        0xcc,
    ];
    assert_eq!(PageChange::Record(part).encode().as_ref(), &expected);
}
