//! What `/metrics` tells, in Prometheus's base units.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{
        counter::{ConstCounter, Counter},
        family::Family,
        gauge::Gauge,
        histogram::Histogram,
    },
    registry::{Registry, Unit},
};
use treering_consensus::{AcceptorMessage, ProposerId, ProposerMessage};

use crate::{archive::Archive, member::Outgoing, timeline::Timeline, timelines::Timelines};

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
    pub(crate) fn count_appended(&self, messages: &[(ProposerId, ProposerMessage)]) {
        let bytes: usize = messages.iter().map(|(_, message)| append_bytes(message)).sum();
        self.appended_bytes.inc_by(bytes as u64);
    }

    pub(crate) fn count_refusals(&self, answers: &[Outgoing]) {
        let is_refusal = |answer: &&Outgoing| matches!(answer.message, AcceptorMessage::Refusal(_));
        self.refusals.inc_by(answers.iter().filter(is_refusal).count() as u64);
    }

    /// A sync has ended that came to be needed so long ago.
    pub(crate) fn observe_write(&self, elapsed: Duration) {
        self.write_seconds.observe(elapsed.as_secs_f64());
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
        register_disk(r, timelines);
        if let Some(archive) = timelines.archive() {
            register_archive(r, archive);
        }
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

fn register_disk(registry: &mut Registry, timelines: &Timelines) {
    let mut register = |name: &str, help: &str, value: u64| {
        let gauge = Gauge::<i64>::default();
        gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        registry.register_with_unit(name, help, Unit::Bytes, gauge);
    };
    let room = timelines.room();
    register("disk_used", "Log on this disk", room.used());
    register("disk_limit", "Most log that this disk may hold", room.limit());
    if let Ok(free) = timelines.free_bytes() {
        register("disk_free", "Left on the file system", free);
    }
    let refusing = Gauge::<i64>::default();
    let refuses = |timeline: &std::sync::Arc<Timeline>| timeline.status().refusing.is_some();
    refusing.set(timelines.list().iter().filter(|timeline| refuses(timeline)).count() as i64);
    let help = "Timelines whose last append was refused for lack of room";
    registry.register("timelines_without_room", help, refusing);
}

fn register_archive(registry: &mut Registry, archive: &Archive) {
    let of = |count: &AtomicU64| ConstCounter::new(count.load(Ordering::Relaxed));
    let c = &archive.counters;
    let bytes = || Unit::Bytes;
    let put = "Log put into the archive, packed";
    registry.register_with_unit("archive_put", put, bytes(), of(&c.put_bytes));
    let fetched = "Log read from the archive, packed";
    registry.register_with_unit("archive_fetched", fetched, bytes(), of(&c.fetched_bytes));
    registry.register("archive_put_objects", "Pieces of log put", of(&c.put_objects));
    registry.register("archive_deleted_objects", "Pieces of log deleted", of(&c.deleted_objects));
    let failures = "Tries to bring a timeline's archive up to date that failed";
    registry.register("archive_failures", failures, of(&c.failures));
}

fn register_watermarks(registry: &mut Registry, timelines: &Timelines) {
    let family = Family::<TimelineLabels, Gauge>::default;
    let (commit, flush, trim, term) = (family(), family(), family(), family());
    let (archived, horizon, ingested) = (family(), family(), family());
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
        horizon.get_or_create(&labels).set(status.horizon_lsn.0 as i64);
        ingested.get_or_create(&labels).set(status.ingested_lsn.0 as i64);
        if let Some(lsn) = status.archived_lsn {
            archived.get_or_create(&labels).set(lsn.0 as i64);
        }
    }
    registry.register("commit_lsn", "Known to be on a majority", commit);
    registry.register("flush_lsn", "On this disk", flush);
    registry.register("trim_lsn", "Oldest position held", trim);
    registry.register("term", "Epoch of the writer", term);
    registry.register("archived_lsn", "Before this the log is in the archive", archived);
    let help = "Before this the pageserver has what it makes of the log in the object store";
    registry.register("remote_consistent_lsn", help, horizon);
    registry.register("ingested_lsn", "How far the pageserver has read", ingested);
}

/// Bytes of log in a message.
fn append_bytes(message: &ProposerMessage) -> usize {
    match message {
        ProposerMessage::Append(append) => append.bytes.len(),
        ProposerMessage::Greeting(_)
        | ProposerMessage::VoteRequest(_)
        | ProposerMessage::Elected(_)
        | ProposerMessage::Commit(_) => 0,
    }
}
