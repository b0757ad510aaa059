//! What `/metrics` tells, in Prometheus's base units.

use std::time::Instant;

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};
use treering_consensus::{AcceptorMessage, ProposerId, ProposerMessage};

use crate::{member::Outgoing, timelines::Timelines};

/// Upper bounds of the write histogram's buckets, in seconds: a batch is one write and one sync.
const WRITE_SECONDS: [f64; 11] =
    [0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.2, 1.0];

/// Counters of one safekeeper. Watermarks are read from the timelines when they are asked for.
pub struct Metrics {
    appended_bytes: Counter,
    refusals: Counter,
    write_seconds: Histogram,
    sent_bytes: Counter,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct TimelineLabels {
    tenant_id: String,
    timeline_id: String,
}

impl Default for Metrics {
    fn default() -> Metrics {
        Metrics {
            appended_bytes: Counter::default(),
            refusals: Counter::default(),
            write_seconds: Histogram::new(WRITE_SECONDS),
            sent_bytes: Counter::default(),
        }
    }
}

impl Metrics {
    /// Runs the work on a batch, and counts what it did.
    pub(crate) fn observe_batch(
        &self,
        messages: Vec<(ProposerId, ProposerMessage)>,
        work: impl FnOnce(Vec<(ProposerId, ProposerMessage)>) -> Vec<Outgoing>,
    ) -> Vec<Outgoing> {
        let bytes: usize = messages.iter().map(|(_, message)| append_bytes(message)).sum();
        let begin = Instant::now();
        let answers = work(messages);
        if bytes > 0 {
            self.write_seconds.observe(begin.elapsed().as_secs_f64());
            self.appended_bytes.inc_by(bytes as u64);
        }
        let is_refusal = |answer: &&Outgoing| matches!(answer.message, AcceptorMessage::Refusal(_));
        self.refusals.inc_by(answers.iter().filter(is_refusal).count() as u64);
        answers
    }

    /// WAL bytes given to a receiver.
    pub(crate) fn count_sent(&self, bytes: usize) {
        self.sent_bytes.inc_by(bytes as u64);
    }

    /// The text that Prometheus scrapes.
    pub fn render(&self, timelines: &Timelines) -> String {
        let mut registry = Registry::with_prefix("treering_safekeeper");
        let bytes = || Unit::Bytes;
        let of = |counter: &Counter| counter.clone();
        let r = &mut registry;
        r.register_with_unit("wal_appended", "WAL received", bytes(), of(&self.appended_bytes));
        r.register_with_unit("wal_sent", "WAL given to receivers", bytes(), of(&self.sent_bytes));
        r.register("refusals", "Connections of proposers refused", of(&self.refusals));
        let seconds = self.write_seconds.clone();
        let help = "One write and sync of queued appends";
        r.register_with_unit("wal_write", help, Unit::Seconds, seconds);
        let broken = Gauge::<i64>::default();
        broken.set(timelines.broken() as i64);
        r.register("timelines_broken", "Timelines that could not be opened", broken);
        register_watermarks(r, timelines);
        let mut text = String::new();
        // Formatting into a String cannot fail.
        let _ = encode(&mut text, &registry);
        text
    }
}

fn register_watermarks(registry: &mut Registry, timelines: &Timelines) {
    let family = Family::<TimelineLabels, Gauge>::default;
    let (commit, flush, trim, term) = (family(), family(), family(), family());
    for timeline in timelines.list() {
        let (identity, status) = (timeline.identity(), timeline.status());
        let labels = TimelineLabels {
            tenant_id: identity.tenant.to_string(),
            timeline_id: identity.timeline.to_string(),
        };
        commit.get_or_create(&labels).set(status.commit_lsn.0 as i64);
        flush.get_or_create(&labels).set(status.flush_lsn.0 as i64);
        trim.get_or_create(&labels).set(status.trim_lsn.0 as i64);
        term.get_or_create(&labels).set(status.term.0 as i64);
    }
    registry.register("commit_lsn", "Known to be on a majority", commit);
    registry.register("flush_lsn", "On this disk", flush);
    registry.register("trim_lsn", "Oldest position held", trim);
    registry.register("term", "Epoch of the writer", term);
}

fn append_bytes(message: &ProposerMessage) -> usize {
    match message {
        ProposerMessage::Append(append) => append.bytes.len(),
        ProposerMessage::Greeting(_)
        | ProposerMessage::VoteRequest(_)
        | ProposerMessage::Elected(_)
        | ProposerMessage::Commit(_) => 0,
    }
}
