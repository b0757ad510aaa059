//! Bytes that pass for WAL: cut into records however they arrive, the records taken apart, their effects derived.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};
use treering_fuzz::{
    input::Noise,
    memory,
    wal_case::{self, Wal, WalCase},
};
use treering_pgfmt::{
    change::PageChange,
    wal::{
        effects::{Effect, effects},
        error::WalError,
        reader::find_first_record,
        record::{RawRecord, Record},
        state::ClusterState,
    },
};

/// What the decoder may use beside what it was fed, whatever lengths it reads.
const DECODER_BYTES: usize = 512 * 1024;
/// What a record's effects may use: 33 images, and for each byte of the record what one effect takes.
const EFFECTS_BYTES: usize = 40 * 8192;
const EFFECTS_BYTES_PER_BYTE: usize = 128;

fuzz_target!(|bytes: &[u8]| {
    let case = WalCase::read(bytes);
    let wal = case.lay_out();
    let whole = decode(&case, &wal, None);
    let in_pieces = decode(&case, &wal, Some(Noise::new(u32::from(case.cut))));
    assert_eq!(whole, in_pieces, "chunks change what is read");
    let mut state = case.state();
    for raw in &whole.0 {
        take_apart(&case, raw, &mut state);
    }
    let _ = find_first_record(case.major, wal.start.page_start(), &wal.bytes);
});

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    if seed.is_multiple_of(16) {
        return fuzzer_mutate(data, size, max_size);
    }
    wal_case::mutate(data, size, seed, fuzzer_mutate)
});

/// Every record of the log and the error it ends with, fed at once or in pieces of either kind.
fn decode(
    case: &WalCase,
    wal: &Wal,
    mut pieces: Option<Noise>,
) -> (Vec<RawRecord<'static>>, Option<WalError>) {
    let mut rest = &wal.bytes[..];
    let mut found = Vec::new();
    let end = memory::bounded(DECODER_BYTES + 4 * wal.bytes.len(), || {
        let mut decoder = case.decoder(wal);
        let mut lets_go = false;
        loop {
            match decoder.next_record() {
                Ok(Some(raw)) => {
                    let raw = raw.into_owned();
                    assert!(raw.end <= decoder.fed_to() && decoder.position() == raw.end);
                    found.push(raw);
                }
                Ok(None) if rest.is_empty() => return None,
                Ok(None) => {
                    if std::mem::take(&mut lets_go) {
                        decoder.let_go();
                    }
                    let limit = pieces.as_mut().map(|noise| match noise.below(3) {
                        0 => 1 + noise.below(8),
                        1 => 1 + noise.below(100),
                        _ => 1 + noise.below(9000),
                    });
                    let now = limit.unwrap_or(usize::MAX).min(rest.len());
                    match pieces.as_mut().map_or(0, |noise| noise.below(3)) {
                        0 => decoder.feed(&rest[..now]),
                        way => {
                            decoder.feed_shared(Bytes::copy_from_slice(&rest[..now]));
                            lets_go = way == 2;
                        }
                    }
                    rest = &rest[now..];
                }
                Err(error) => {
                    assert_eq!(decoder.next_record(), Err(error.clone()), "errors are final");
                    return Some(error);
                }
            }
        }
    });
    (found, end)
}

fn take_apart(case: &WalCase, raw: &RawRecord<'_>, state: &mut ClusterState) {
    let size = raw.bytes.len();
    let record = match Record::decode(case.major, raw) {
        Ok(record) => record,
        Err(error) => return assert!(error.to_string().contains(&raw.start.to_string())),
    };
    let before = state.clone();
    let found = memory::bounded(EFFECTS_BYTES + EFFECTS_BYTES_PER_BYTE * size, || {
        effects(state, &record, case.major)
    });
    match found {
        Ok(found) => found.iter().for_each(check_effect),
        Err(error) => {
            assert_eq!((error.start, error.rmid), (raw.start, record.rmid));
            assert_eq!(*state, before, "an error leaves the state alone");
        }
    }
}

/// What is stored comes back.
fn check_effect(effect: &Effect<'_>) {
    if let Effect::Page { change, .. }
    | Effect::PageIfExists { change, .. }
    | Effect::Slru { change, .. } = effect
    {
        let encoded = change.encode();
        assert_eq!(PageChange::decode(&encoded).as_ref(), Ok(change));
    }
}
