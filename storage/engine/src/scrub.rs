//! The scrubber: reads everything that manifests name, past the caches, and names what is wrong.

use treering_pgfmt::change::PageChange;
use treering_types::{KeyClass, TenantId, TimelineId};

use crate::{
    engine::Engine,
    error::EngineError,
    layer::{block::Block, file::LayerFile},
    read::fetch::Found,
    record_ends::RecordEnds,
    relation::RelMeta,
    time_index::TimeEntry,
    timeline::{Timeline, is_page},
    unhandled::Unhandled,
};

/// One thing that is wrong.
#[derive(Clone, Debug)]
pub struct Finding {
    pub tenant: TenantId,
    pub timeline: TimelineId,
    /// Names the file, the offset or the key.
    pub error: EngineError,
}

/// What a scrub read, and what it found.
#[derive(Clone, Debug, Default)]
pub struct ScrubReport {
    pub layers: usize,
    pub blocks: usize,
    pub values: u64,
    pub findings: Vec<Finding>,
}

impl Engine {
    /// Reads every block of every layer of every timeline.
    pub fn scrub(&self) -> ScrubReport {
        let mut report = ScrubReport::default();
        for timeline in self.timelines() {
            timeline.verify_into(&mut report);
        }
        report
    }
}

impl Timeline {
    /// Reads every block of every layer of this timeline: digests, checksums, order, counts, and that each value decodes.
    pub fn verify(&self) -> ScrubReport {
        let mut report = ScrubReport::default();
        self.verify_into(&mut report);
        report
    }

    fn verify_into(&self, report: &mut ScrubReport) {
        for file in self.layers().files.files() {
            report.layers += 1;
            let mut errors = Vec::new();
            verify_file(self, file, report, &mut errors);
            let (tenant, timeline) = (self.identity().tenant, self.id());
            report.findings.extend(errors.into_iter().map(|error| Finding {
                tenant,
                timeline,
                error,
            }));
        }
    }
}

fn verify_file(
    timeline: &Timeline,
    file: &LayerFile,
    report: &mut ScrubReport,
    errors: &mut Vec<EngineError>,
) {
    if let Some(error) = file.broken() {
        errors.push(error);
        return;
    }
    errors.extend(file.verify_digest().err());
    let mut values = 0;
    let mut whole = true;
    for number in 0..file.block_count() {
        match file.read_block(number) {
            Ok(block) => {
                report.blocks += 1;
                values += block.heads().len() as u64;
                verify_block(timeline, file, &block, errors);
            }
            Err(error) => {
                whole = false;
                errors.push(error);
            }
        }
    }
    report.values += values;
    if whole && values != file.desc.entries {
        let what = format!("holds {values} values, the manifest says {}", file.desc.entries);
        errors.push(file.corrupt(0, what));
    }
}

fn verify_block(
    timeline: &Timeline,
    file: &LayerFile,
    block: &Block,
    errors: &mut Vec<EngineError>,
) {
    for head in block.heads() {
        let found = Found { timeline: timeline.id(), lsn: head.lsn, bytes: block.value(head) };
        if !file.desc.lsns.contains(head.lsn) {
            errors.push(found.corrupt(head.key, "lies outside its layer's LSNs"));
        }
        if let Err(what) = verify_value(&head.key.class(), is_page(&head.key), &found.bytes) {
            errors.push(found.corrupt(head.key, what));
        }
    }
}

fn verify_value(
    class: &Result<KeyClass, treering_types::KeyError>,
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
