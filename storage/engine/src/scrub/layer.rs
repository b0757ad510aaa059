//! One layer file, read from end to end.

use treering_pgfmt::change::PageChange;
use treering_types::{Key, KeyClass, KeyError, Lsn, TimelineId};

use super::Span;
use crate::{
    error::EngineError,
    layer::{block::Block, file::LayerFile},
    read::fetch::Found,
    record_ends::RecordEnds,
    relation::RelMeta,
    time_index::TimeEntry,
    timeline::is_page,
    unhandled::Unhandled,
};

/// What was read.
#[derive(Default)]
pub(super) struct Counts {
    pub blocks: usize,
    pub values: u64,
}

/// What is wrong, and about what.
pub(super) struct Fault {
    pub error: EngineError,
    pub span: Span,
}

/// Digest, checksums, order, counts, LSNs, and that each value decodes. A file can have several faults; one that cannot be opened
/// has one.
pub(super) fn verify(timeline: TimelineId, file: &LayerFile) -> (Counts, Vec<Fault>) {
    let mut counts = Counts::default();
    let whole = Span::of(&file.desc);
    let fault = |error| Fault { error, span: whole };
    if let Some(error) = file.broken() {
        return (counts, vec![fault(error)]);
    }
    let mut faults: Vec<Fault> = Vec::new();
    let mut read_all = true;
    for number in 0..file.block_count() {
        let span = file.block_span(number).unwrap_or(whole);
        match file.read_block(number) {
            Ok(block) => {
                counts.blocks += 1;
                counts.values += block.heads().len() as u64;
                let errors = verify_block(timeline, file, &block);
                faults.extend(errors.into_iter().map(|(key, lsn, error)| Fault {
                    error,
                    span: Span { keys: (key, key), from: lsn },
                }));
            }
            Err(error) => {
                read_all = false;
                faults.push(Fault { error, span });
            }
        }
    }
    if read_all && counts.values != file.desc.entries {
        let what =
            format!("holds {} values, the manifest says {}", counts.values, file.desc.entries);
        faults.push(fault(file.corrupt(0, what)));
    }
    // Whatever is damaged spoils the digest too, and says more about where.
    if faults.is_empty() {
        faults.extend(file.verify_digest().err().map(fault));
    }
    (counts, faults)
}

fn verify_block(
    timeline: TimelineId,
    file: &LayerFile,
    block: &Block,
) -> Vec<(Key, Lsn, EngineError)> {
    let mut errors = Vec::new();
    for head in block.heads() {
        let found = Found { timeline, lsn: head.lsn, bytes: block.value(head) };
        let mut note = |what: &str| {
            errors.push((head.key, head.lsn, found.corrupt(head.key, what)));
        };
        if !file.desc.lsns.contains(head.lsn) {
            note("lies outside its layer's LSNs");
        }
        if !(file.desc.key_first..=file.desc.key_last).contains(&head.key) {
            note("lies outside its layer's keys");
        }
        if !file.may_hold_key(&head.key) {
            note("is missing from its layer's bloom filter");
        }
        if let Err(what) = verify_value(head.key.class(), is_page(&head.key), &found.bytes) {
            note(&what);
        }
    }
    errors
}

fn verify_value(
    class: Result<KeyClass, KeyError>,
    page: bool,
    bytes: &bytes::Bytes,
) -> Result<(), String> {
    let class = class.map_err(|error| error.to_string())?;
    if bytes.is_empty() {
        return Ok(());
    }
    if page {
        return PageChange::decode(bytes).map(drop).map_err(|error| error.to_string());
    }
    let decoded = match class {
        KeyClass::RelMeta => RelMeta::decode(bytes).map(drop),
        KeyClass::TimeIndex => TimeEntry::decode(bytes).map(drop),
        KeyClass::RecordEnds => RecordEnds::decode(bytes).map(drop),
        KeyClass::Unhandled => Unhandled::decode(bytes).map(drop),
        // Page classes were handled above; the rest is the writer's own bytes.
        KeyClass::RelBlock
        | KeyClass::Slru
        | KeyClass::RelMap
        | KeyClass::TwoPhase
        | KeyClass::Control
        | KeyClass::Origin => Ok(()),
    };
    decoded.map_err(str::to_owned)
}
