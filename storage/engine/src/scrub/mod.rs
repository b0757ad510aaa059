//! The scrubber: reads everything that manifests name, past the caches, and names what is wrong.
//!
//! Two ways in, one way of reading: [`Engine::scrub`] takes the layers of an open engine, [`scrub_directory`] a directory of files,
//! which it never writes to. What is wrong with a layer comes with the keys and the LSNs that it is wrong about: who reads
//! them is who is harmed.

mod directory;
mod layer;

use std::path::PathBuf;

use serde::Serialize;
use treering_types::{Key, Lsn, TenantId, TimelineId};

use crate::{
    engine::Engine,
    error::EngineError,
    layer::{LayerDesc, file::LayerFile},
    timeline::Timeline,
};

pub use directory::scrub_directory;

/// One thing that is wrong.
#[derive(Clone, Debug)]
pub struct Finding {
    pub tenant: TenantId,
    /// `None` when it is about the tenant's own manifest: all timelines of the tenant are concerned.
    pub timeline: Option<TimelineId>,
    /// The damaged file, or the one that is missing.
    pub path: PathBuf,
    /// Names the file, the offset or the key.
    pub error: EngineError,
    /// The part of the timeline's history that cannot be trusted; `None`: all of it.
    pub span: Option<Span>,
}

/// Values that a damaged part of a layer holds, or held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Smallest and largest key.
    pub keys: (Key, Key),
    /// The lowest LSN of its values: reads below it do not need the part.
    pub from: Lsn,
}

impl Span {
    /// All of a layer.
    fn of(desc: &LayerDesc) -> Span {
        Span { keys: (desc.key_first, desc.key_last), from: desc.lsns.start }
    }
}

/// A file or directory that nothing names: it costs room and harms nobody, and goes when the engine is opened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Leftover {
    pub path: PathBuf,
    pub what: &'static str,
}

/// What a scrub read, and what it found.
#[derive(Clone, Debug, Default)]
pub struct ScrubReport {
    pub tenants: usize,
    pub timelines: usize,
    /// Layer files, and their bytes as the manifests have them.
    pub layers: usize,
    pub bytes: u64,
    pub blocks: usize,
    pub values: u64,
    /// Layers that were not read because they are in an object store only.
    pub absent_layers: usize,
    pub findings: Vec<Finding>,
    pub leftovers: Vec<Leftover>,
    /// Every timeline that a readable tenant manifest names, with its ancestor and fork: what a finding means for whom.
    pub family: Vec<Relative>,
}

/// A timeline as its tenant's manifest has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Relative {
    pub tenant: TenantId,
    pub timeline: TimelineId,
    pub ancestor: Option<(TimelineId, Lsn)>,
}

impl ScrubReport {
    /// The timelines that may ask for what a finding is about: its own, and those whose history goes through it there.
    pub fn harmed_by(&self, finding: &Finding) -> Vec<TimelineId> {
        let family = || self.family.iter().filter(|of| of.tenant == finding.tenant);
        let Some(timeline) = finding.timeline else {
            return family().map(|of| of.timeline).collect();
        };
        let mut harmed = vec![timeline];
        let from = finding.span.map_or(Lsn::INVALID, |span| span.from);
        let mut seen = 0;
        while let Some(above) = harmed.get(seen).copied() {
            seen += 1;
            // Below a child's fork its own branches see no more of this than it does.
            let reaches = |fork: Lsn| above != timeline || fork >= from;
            harmed.extend(family().filter_map(|of| {
                of.ancestor.filter(|(id, fork)| *id == above && reaches(*fork))?;
                Some(of.timeline)
            }));
        }
        harmed
    }

    fn add_layer(&mut self, (tenant, timeline): (TenantId, TimelineId), file: &LayerFile) {
        self.layers += 1;
        self.bytes += file.desc.size;
        let (counts, faults) = layer::verify(timeline, file);
        self.blocks += counts.blocks;
        self.values += counts.values;
        self.findings.extend(faults.into_iter().map(|fault| Finding {
            tenant,
            timeline: Some(timeline),
            path: file.path.clone(),
            error: fault.error,
            span: Some(fault.span),
        }));
    }
}

impl Engine {
    /// Reads every block of every layer of every timeline.
    pub fn scrub(&self) -> ScrubReport {
        let tenants = self.tenants().len();
        let mut report = ScrubReport { tenants, ..ScrubReport::default() };
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
        let (tenant, timeline) = (self.identity().tenant, self.id());
        report.timelines += 1;
        let ancestor = self.ancestor().map(|(ancestor, fork)| (ancestor.id(), fork));
        report.family.push(Relative { tenant, timeline, ancestor });
        for file in self.layers().files.files() {
            report.add_layer((tenant, timeline), file);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TENANT: TenantId = TenantId([9; 16]);

    fn id(number: u8) -> TimelineId {
        TimelineId([number; 16])
    }

    /// 1 is the root; 2 and 3 fork from it at 100 and 200; 4 forks from 2 at 150, 5 from 1 at 90.
    fn report() -> ScrubReport {
        let relative = |timeline, ancestor: Option<(u8, u64)>| Relative {
            tenant: TENANT,
            timeline: id(timeline),
            ancestor: ancestor.map(|(above, fork)| (id(above), Lsn(fork))),
        };
        let family = vec![
            relative(1, None),
            relative(2, Some((1, 100))),
            relative(3, Some((1, 200))),
            relative(4, Some((2, 150))),
            relative(5, Some((1, 90))),
            Relative { tenant: TenantId([8; 16]), ..relative(6, Some((1, 300))) },
        ];
        ScrubReport { family, ..ScrubReport::default() }
    }

    fn harmed(timeline: Option<u8>, from: Option<u64>) -> Vec<u8> {
        let finding = Finding {
            tenant: TENANT,
            timeline: timeline.map(id),
            path: PathBuf::new(),
            error: EngineError::Shutdown,
            span: from.map(|from| Span { keys: (Key::MIN, Key::MAX), from: Lsn(from) }),
        };
        let mut harmed: Vec<u8> =
            report().harmed_by(&finding).into_iter().map(|id| id.0[0]).collect();
        harmed.sort_unstable();
        harmed
    }

    #[test]
    fn who_reads_through_damage_is_harmed() {
        assert_eq!(harmed(Some(1), Some(50)), [1, 2, 3, 4, 5]);
        assert_eq!(harmed(Some(1), Some(100)), [1, 2, 3, 4]);
        assert_eq!(harmed(Some(1), Some(101)), [1, 3]);
        assert_eq!(harmed(Some(1), Some(250)), [1]);
        assert_eq!(harmed(Some(2), Some(120)), [2, 4]);
        assert_eq!(harmed(Some(2), Some(160)), [2]);
        // Without its manifest nothing of a timeline can be read; without the tenant's, nothing at all.
        assert_eq!(harmed(Some(2), None), [2, 4]);
        assert_eq!(harmed(None, None), [1, 2, 3, 4, 5]);
    }
}
