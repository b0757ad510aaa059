use proptest::{collection::vec, prelude::*};
use smallvec::smallvec;
use treering_types::{Fork, PAGE_SIZE};

use super::*;
use crate::{
    change::RecordPart,
    wal::{
        pieces::{Pieces, RecordBytes},
        record::{Block, BlockImage, ImageCompression},
    },
};

const REL: RelTag = RelTag { tablespace: 1663, database: 5, relation: 16384, fork: Fork::Main };
const END: Lsn = Lsn(0x2000);

fn record(rmid: u8, info: u8, main: Vec<u8>) -> Record<'static> {
    Record {
        start: Lsn(0x1000),
        end: END,
        prev: Lsn(0xf00),
        xid: 700,
        rmid,
        info,
        toplevel_xid: None,
        origin: None,
        main: main.leak(),
        blocks: Default::default(),
        raw: Box::leak(Box::new(RecordBytes::from(&b"the whole record"[..]))),
    }
}

fn block(id: u8, number: u32) -> Block<'static> {
    let data = vec![id; 3].leak();
    Block { id, rel: REL, block: number, will_init: false, data, image: None }
}

fn image(apply: bool, fill: u8) -> BlockImage<'static> {
    BlockImage {
        apply,
        hole_offset: 0,
        hole_length: 0,
        compression: ImageCompression::None,
        bytes: Pieces::from(&*vec![fill; PAGE_SIZE].leak()),
    }
}

fn state() -> ClusterState {
    ClusterState { next_xid: 701, next_multi: 1, oldest_xid: 3, ..ClusterState::default() }
}

fn run(state: &mut ClusterState, record: &Record<'static>) -> Vec<Effect<'static>> {
    let record = Box::leak(Box::new(record.clone()));
    effects(state, record, PgMajor::V15).unwrap().into_vec()
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn slru(kind: SlruKind, page: u32, change: PageChange<'static>) -> Effect<'static> {
    Effect::Slru { kind, page, change }
}

fn vm_clear(block: u32, heap_block: u32, bits: u8) -> Effect<'static> {
    Effect::PageIfExists {
        rel: REL.with_fork(Fork::VisibilityMap),
        block,
        change: PageChange::VisibilityClear { heap_block, bits },
    }
}

#[test]
fn an_applied_image_becomes_the_page_with_its_lsn() {
    let mut fpi = record(rmgr::XLOG, 0xb0, Vec::new());
    fpi.blocks = smallvec![Block { image: Some(image(true, 1)), ..block(0, 9) }];
    let out = run(&mut state(), &fpi);
    let [Effect::Page { block: 9, change: PageChange::Image(page), .. }] = &out[..] else {
        panic!("{out:?}");
    };
    let page = page.to_page();
    assert_eq!((&page[..8], page[8]), (&[0, 0, 0, 0, 0, 0x20, 0, 0][..], 1));
    fpi.blocks[0].image = Some(image(true, 0));
    let out = run(&mut state(), &fpi);
    assert!(
        matches!(&out[..], [Effect::Page { change: PageChange::Image(page), .. }] if page.to_page()[5] == 0)
    );
    fpi.blocks[0].image = None;
    assert_eq!(effects(&mut state(), &fpi, PgMajor::V15).unwrap_err().fault, EffectFault::NoImage);
    fpi.info = 0xa0;
    assert_eq!(run(&mut state(), &fpi), []);
}

#[test]
fn a_check_image_is_ignored_and_the_record_is_cut_for_each_block() {
    let mut update = record(rmgr::HEAP, 0x22, vec![0; 14]);
    update.blocks = smallvec![
        Block { image: Some(image(false, 1)), will_init: true, ..block(0, 9) },
        block(1, 4)
    ];
    let mut state = state();
    state.parameters.data_checksums = true;
    let out = run(&mut state, &update);
    let [
        Effect::Page { change: PageChange::Record(new), .. },
        Effect::Page { block: 4, change: PageChange::Record(old), .. },
    ] = &out[..]
    else {
        panic!("{out:?}");
    };
    assert!(new.will_init && !old.will_init && new.hints_logged);
    assert_eq!((&new.data[..], &old.data[..], old.main.len()), (&[0; 3][..], &[1; 3][..], 14));
    let RecordPart { blocks, block_id, .. } = old;
    assert_eq!((blocks[0].block, blocks[1].id, blocks[0].has_data, *block_id), (9, 1, true, 1));
}

#[test]
fn resource_managers_of_extensions_keep_the_record() {
    let mut custom = record(200, 0x10, Vec::new());
    let out = run(&mut state(), &custom);
    assert!(matches!(out[..], [Effect::Unhandled { rel: None, rmid: 200, .. }]));
    custom.blocks = smallvec![block(0, 1), Block { image: Some(image(true, 1)), ..block(1, 2) }];
    let out = run(&mut state(), &custom);
    let kept =
        PageChange::Unhandled { rmid: 200, info: 0x10, record: Cow::Borrowed(b"the whole record") };
    assert_eq!(out[0], Effect::Page { rel: REL, block: 1, change: kept });
    assert!(matches!(&out[1], Effect::Page { change: PageChange::Image(_), .. }));
}

#[test]
fn five_blocks_change_after_their_image_and_three_not_at_all() {
    let with_image = |id, number| Block { image: Some(image(true, 1)), ..block(id, number) };
    let after_image = |rmid, info, id| {
        let mut record = record(rmid, info, Vec::new());
        record.blocks = smallvec![with_image(0, 1), with_image(1, 2), with_image(2, 3)];
        let out = run(&mut state(), &record);
        let Effect::Page { change, .. } = &out[id] else { panic!("{out:?}") };
        assert!(change.is_base());
        matches!(change, PageChange::ImageThenRecord(both) if usize::from(both.1.block_id) == id)
    };
    let found: Vec<(u8, u8, usize)> = [rmgr::HASH, rmgr::GIST]
        .into_iter()
        .flat_map(|rmid| (0..0xd_u8).map(move |info| (rmid, info << 4)))
        .flat_map(|(rmid, info)| (0..3).map(move |id| (rmid, info, id)))
        .filter(|(rmid, info, id)| after_image(*rmid, *info, *id))
        .collect();
    let (hash, gist) = (rmgr::HASH, rmgr::GIST);
    assert_eq!(
        found,
        [(hash, 0x40, 0), (hash, 0x60, 0), (hash, 0x60, 1), (gist, 0x00, 1), (gist, 0x30, 0)]
    );
    // E9: a page that is only locked.
    for info in [0x70, 0x80, 0x90] {
        let mut locked = record(rmgr::HASH, info, Vec::new());
        locked.blocks = smallvec![block(0, 1), block(1, 2)];
        let out = run(&mut state(), &locked);
        assert!(matches!(&out[..], [Effect::Page { block: 2, change: PageChange::Record(_), .. }]));
    }
}

#[test]
fn heap_records_clear_the_visibility_map() {
    let far = 32672 + 5;
    let with = |rmid, info, main: &[u8], blocks: &[u32]| {
        let mut heap = record(rmid, info, main.to_vec());
        heap.blocks = blocks.iter().zip(0..).map(|(number, id)| block(id, *number)).collect();
        let mut out = run(&mut state(), &heap);
        out.split_off(blocks.len())
    };
    assert_eq!(with(rmgr::HEAP, 0x00, &[1, 0, 1], &[far]), [vm_clear(1, far, 3)]);
    assert_eq!(with(rmgr::HEAP, 0x00, &[1, 0, 2], &[far]), []);
    let update = [0, 0, 0, 0, 1, 0, 0, 3, 0, 0, 0, 0, 2, 0];
    let both = [vm_clear(1, far, 3), vm_clear(0, 8, 3)];
    assert_eq!(with(rmgr::HEAP, 0x20, &update, &[8, far]), both);
    assert_eq!(with(rmgr::HEAP, 0x40, &update, &[8]), [vm_clear(0, 8, 3), vm_clear(0, 8, 3)]);
    assert_eq!(with(rmgr::HEAP, 0x10, &update[..8], &[8]), [vm_clear(0, 8, 3)]);
    assert_eq!(with(rmgr::HEAP, 0x60, &update[..8], &[8]), [vm_clear(0, 8, 2)]);
    assert_eq!(with(rmgr::HEAP2, 0x50, &[1, 0], &[8]), [vm_clear(0, 8, 3)]);
    assert_eq!(with(rmgr::HEAP2, 0x60, &update[..8], &[8]), [vm_clear(0, 8, 2)]);
}

/// Commit of a prepared transaction with every optional part, by another header xid.
#[test]
fn a_prepared_commit_ends_the_transaction_inside_the_record() {
    let mut main = words(&[5, 0, 0x1bf]);
    main.extend(words(&[5, 1663, 2, 32767, 32768]));
    main.extend(words(&[1, 1663, 5, 999]));
    main.extend(words(&[1, 0, 0, 0]));
    main.extend(words(&[1, 9, 9, 9, 9]));
    main.extend(words(&[32766]));
    main.extend(b"gid\0");
    main.extend(77u64.to_le_bytes());
    main.extend(6i64.to_le_bytes());
    let mut commit = record(rmgr::XACT, 0x80 | 0x30, main);
    commit.xid = 0;
    commit.origin = Some(4);
    let mut state = state();
    state.parameters.track_commit_timestamp = true;
    let out = run(&mut state, &commit);
    let time = |xids: &[u32]| PageChange::CommitTime { time: 6, origin: 4, xids: xids.into() };
    let committed = |xids: &[u32]| PageChange::XactStatus { status: 1, xids: xids.into() };
    let expected = [
        slru(SlruKind::CommitTs, 40, time(&[32766, 32767, 32768])),
        slru(SlruKind::Xact, 0, committed(&[32766, 32767])),
        slru(SlruKind::Xact, 1, committed(&[32768])),
        Effect::Origin { id: 4, change: OriginChange::AtLeast(77) },
        Effect::RelDrop(RelTag { relation: 999, ..REL }),
        Effect::TwoPhaseEnded { full_xid: 32766 },
        Effect::Ended { stamp: 5, committed: true },
    ];
    assert_eq!(out[..expected.len()], expected);
    assert_eq!((state.next_xid, state.newest_commit_ts_xid), (32769, 32768));
    let fields: Vec<ControlField> = out[expected.len()..]
        .iter()
        .map(|effect| match effect {
            Effect::Control { field, .. } => *field,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(fields, [ControlField::NextXid, ControlField::CommitTs]);
}

#[test]
fn a_plain_abort_uses_the_header_xid_and_no_commit_time() {
    let abort = record(rmgr::XACT, 0x20, words(&[5, 0]));
    let aborted = PageChange::XactStatus { status: 2, xids: [700][..].into() };
    let expected = [slru(SlruKind::Xact, 0, aborted), Effect::Ended { stamp: 5, committed: false }];
    assert_eq!(run(&mut state(), &abort), expected);
}

/// E13: the end of a multixact is the start of the next, on the next page if need be; members cross pages too.
#[test]
fn a_multixact_may_touch_four_pages() {
    let create = record(rmgr::MULTIXACT, 0x20, words(&[2047, 1635, 2, 900, 4, 901, 5]));
    let mut state = state();
    let out = run(&mut state, &create);
    let expected = [
        slru(SlruKind::MultiOffsets, 0, PageChange::MultiOffsets(vec![(2047, 1635)])),
        slru(SlruKind::MultiOffsets, 1, PageChange::MultiOffsets(vec![(2048, 1637)])),
        slru(SlruKind::MultiMembers, 0, PageChange::MultiMembers(vec![(1635, 900, 4)])),
        slru(SlruKind::MultiMembers, 1, PageChange::MultiMembers(vec![(1636, 901, 5)])),
    ];
    assert_eq!(out[..4], expected);
    assert_eq!((state.next_multi, state.next_multi_offset, state.next_xid), (2048, 1637, 902));
    let truncate = record(rmgr::MULTIXACT, 0x30, words(&[13, 1, 500, 1, 800]));
    run(&mut state, &truncate);
    assert_eq!((state.oldest_multi, state.oldest_multi_db), (500, 13));
}

#[test]
fn a_truncation_derives_the_sizes_of_the_maps() {
    let main = |blocks| words(&[blocks, 1663, 5, 16384, 7]);
    let (fsm, map) = (REL.with_fork(Fork::Fsm), REL.with_fork(Fork::VisibilityMap));
    let out = run(&mut state(), &record(rmgr::SMGR, 0x20, main(32673)));
    let expected = [
        Effect::RelCreate(REL),
        Effect::RelTruncate { rel: REL, blocks: 32673 },
        Effect::RelTruncate { rel: fsm, blocks: 11 },
        Effect::RelTruncate { rel: map, blocks: 2 },
        Effect::PageIfExists {
            rel: map,
            block: 1,
            change: PageChange::VisibilityTruncate { heap_blocks: 32673 },
        },
    ];
    assert_eq!(out, expected);
    let out = run(&mut state(), &record(rmgr::SMGR, 0x20, main(0)));
    assert_eq!(
        out[2..],
        [Effect::RelTruncate { rel: fsm, blocks: 2 }, Effect::RelTruncate { rel: map, blocks: 0 },]
    );
}

#[test]
fn commit_timestamps_switch_on_and_off() {
    let change = |on: u8| {
        let mut main = words(&[100, 8, 10, 0, 64, 1]);
        main.extend([0, on, 0, 0]);
        record(rmgr::XLOG, 0x60, main)
    };
    let mut state = state();
    state.next_xid = 819;
    let out = run(&mut state, &change(1));
    assert_eq!(out[0], slru(SlruKind::CommitTs, 1, PageChange::Zero));
    assert_eq!((state.oldest_commit_ts_xid, state.newest_commit_ts_xid), (819, 819));
    assert_eq!(state.parameters.max_connections, 100);
    assert_eq!(run(&mut state, &change(1)), []);
    let out = run(&mut state, &change(0));
    assert_eq!((out.len(), state.oldest_commit_ts_xid), (2, 0));
}

#[test]
fn page_numbers_are_wider_from_17_on() {
    let main = [&7u64.to_le_bytes()[..], &words(&[800, 13])].concat();
    let mut state = state();
    let truncate = record(rmgr::CLOG, 0x10, main.clone());
    effects(&mut state, &truncate, PgMajor::V17).unwrap();
    assert_eq!((state.oldest_xid, state.oldest_xid_db), (800, 13));
    let zero = record(rmgr::CLOG, 0x00, main);
    let out = effects(&mut state, &zero, PgMajor::V18).unwrap();
    assert_eq!(out[..], [slru(SlruKind::Xact, 7, PageChange::Zero)]);
}

#[test]
fn a_failed_record_leaves_the_state() {
    let mut state = state();
    let before = state.clone();
    let mut cut = record(rmgr::XACT, 0x80, words(&[5, 0, 2, 9]));
    cut.xid = 9000;
    let error = effects(&mut state, &cut, PgMajor::V15).unwrap_err();
    assert_eq!((error.fault, error.kind()), (EffectFault::Malformed, ErrorKind::Corrupt));
    assert_eq!(state, before);
}

/// The effects name each field of the state that the record changes, and no other.
fn told(state: &mut ClusterState, record: &Record<'_>, major: PgMajor) {
    let before = state.clone();
    let Ok(out) = effects(state, record, major) else { return assert_eq!(*state, before) };
    for field in STATE_FIELDS {
        let effect = Effect::Control { field, value: state.encode(field).unwrap_or_default() };
        assert_eq!(out.contains(&effect), !before.agrees(state, field), "{field:?}");
    }
}

proptest! {
    #[test]
    fn hostile_records_never_panic_and_tell_what_they_change(
        rmid in 0u8..24,
        info in any::<u8>(),
        main in vec(any::<u8>(), 0..120),
        seed in any::<(u32, u64, u32, bool)>(),
        major in 0usize..4,
    ) {
        let (xid, next_xid, number, apply) = seed;
        let mut hostile = record(rmid, info, main);
        hostile.xid = xid;
        hostile.blocks = smallvec![Block { image: Some(image(apply, 3)), ..block(0, number) }, block(1, !number)];
        let mut state = ClusterState { next_xid, ..ClusterState::default() };
        told(&mut state, &hostile, PgMajor::ALL[major]);
        hostile.blocks.clear();
        told(&mut state, &hostile, PgMajor::ALL[major]);
    }
}
