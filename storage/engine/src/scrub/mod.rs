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
