use proptest::prelude::*;

use super::*;
use crate::{
    version::PgMajor,
    wal::encode::{self, Origin},
};

const ORIGIN: Origin = Origin { major: PgMajor::V16, tli: 1, system_id: 5 };
const START: Lsn = Lsn(3 * WAL_SEGMENT_SIZE - 20 * WAL_PAGE_SIZE + 640);
const SWITCH: u8 = 0x40;

/// A log of records of these lengths, and their ends. A length of none is an XLOG SWITCH.
fn log(lengths: &[Option<usize>]) -> (Vec<u8>, Vec<Lsn>) {
    let (mut bytes, mut ends, mut prev) = (Vec::new(), vec![START], Lsn(64));
    for length in lengths {
        let at = START + bytes.len() as u64;
        let record = match length {
            Some(length) => encode::record(9, prev, 0, 10, &vec![7; *length]),
            None => encode::record(0, prev, SWITCH, 0, &[]),
        };
        let laid_out = encode::lay_out(&ORIGIN, at, &record);
        prev = laid_out.record_start;
        bytes.extend(laid_out.bytes);
        if length.is_none() {
            let end = START + bytes.len() as u64;
            let next = end.0.next_multiple_of(WAL_SEGMENT_SIZE);
            bytes.resize(bytes.len() + (next - end.0) as usize, 0);
        }
        ends.push(START + bytes.len() as u64);
    }
    (bytes, ends)
}

fn lengths() -> impl Strategy<Value = Vec<Option<usize>>> {
    let length = prop_oneof![
        20 => (0..300_usize).prop_map(Some),
        4 => (8000..30_000_usize).prop_map(Some),
        1 => Just(None),
    ];
    prop::collection::vec(length, 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn ends_are_found_however_the_log_is_cut(lengths in lengths(), cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..40)) {
        let (bytes, ends) = log(&lengths);
        let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
        cuts.push(bytes.len());
        cuts.sort();
        let (mut scan, mut from) = (RecordEnds::from(START), 0);
        for cut in cuts {
            scan.feed(&bytes[from..cut]).unwrap();
            from = cut;
            let fed_to = START + cut as u64;
            prop_assert_eq!(scan.fed_to(), fed_to);
            // Known before its padding and filler are fed.
            let position = scan.position();
            prop_assert!(ends.contains(&position));
            prop_assert!(ends.iter().all(|end| *end > fed_to || *end <= position));
            // A copy goes on by itself.
            let mut copy = scan;
            copy.feed(&bytes[cut..]).unwrap();
            prop_assert_eq!(Some(&copy.position()), ends.last());
        }
    }

    #[test]
    fn a_changed_byte_ends_the_log_before_it(lengths in lengths(), at in any::<prop::sample::Index>(), change in 1..=255_u8) {
        let (mut bytes, ends) = log(&lengths);
        let at = at.index(bytes.len());
        bytes[at] ^= change;
        let mut scan = RecordEnds::from(START);
        let fed = scan.feed(&bytes);
        let damaged = START + at as u64;
        match fed {
            Err(NoRecord { at }) => {
                prop_assert!(at <= damaged);
                prop_assert!(scan.position() <= damaged && ends.contains(&scan.position()));
            }
            // Page headers, padding and filler are not a record's.
            Ok(()) if Some(&scan.position()) == ends.last() => {}
            // A record that claims to reach beyond what was fed looks like one that is not whole yet.
            Ok(()) => {
                prop_assert!(ends.contains(&scan.position()));
                let length = encode::record_start_after(scan.position());
                prop_assert!((length.0..length.0 + 4).contains(&damaged.0));
            }
        }
    }
}

#[test]
fn filler_need_not_be_fed() {
    let (bytes, ends) = log(&[Some(50), None, Some(50)]);
    let mut scan = RecordEnds::from(START);
    scan.feed(&bytes[..256]).unwrap();
    assert_eq!(scan.position(), ends[2]);
    assert!(scan.skip_filler() && !scan.skip_filler());
    assert_eq!(scan.fed_to(), ends[2]);
    let rest = ends[2].bytes_since(START).unwrap() as usize;
    scan.feed(&bytes[rest..]).unwrap();
    assert_eq!(scan.position(), ends[3]);
}

#[test]
fn nothing_was_written_here() {
    let mut scan = RecordEnds::from(START);
    assert_eq!(scan.feed(&[0; 100]), Err(NoRecord { at: START }));
    assert_eq!(scan.position(), START);
    // A length beyond what any reader takes is a record that is not whole yet.
    let mut scan = RecordEnds::from(START);
    assert_eq!(scan.feed(&[0xff; 7000]), Ok(()));
    assert_eq!(scan.position(), START);
}
