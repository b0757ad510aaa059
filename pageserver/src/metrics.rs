//! What the pageserver counts. Names and units are in `docs/operations`; base units throughout.

use std::sync::{Arc, atomic::AtomicU64};

use prometheus_client::{
    encoding::text::encode,
    metrics::{
        counter::Counter,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};
use treering_engine::Engine;

/// 10 µs to 10 s.
fn latency() -> Histogram {
    Histogram::new(exponential_buckets(10e-6, 2.0, 20))
}

/// Counters that events move; gauges are computed when asked for.
#[derive(Debug)]
pub struct Metrics {
    pub ingested_bytes: Counter,
    pub ingest_failures: Counter,
    pub pages_served: Counter,
    pub page_errors: Counter,
    pub page_batch_seconds: Histogram,
    pub backups: Counter,
    pub backup_seconds: Histogram,
    pub branches_created: Counter,
    pub branch_create_seconds: Histogram,
    timelines: Gauge,
    ingest_lag_bytes: Gauge<u64, AtomicU64>,
    layer_bytes: Gauge<u64, AtomicU64>,
    open_bytes: Gauge<u64, AtomicU64>,
    registry: Arc<Registry>,
}

impl Default for Metrics {
    fn default() -> Metrics {
        let mut registry = Registry::with_prefix("treering_pageserver");
        let (ingested_bytes, ingest_failures) = (Counter::default(), Counter::default());
        let (pages_served, page_errors) = (Counter::default(), Counter::default());
        let (page_batch_seconds, backup_seconds) = (latency(), latency());
        let (backups, branches_created) = (Counter::default(), Counter::default());
        let branch_create_seconds = latency();
        let (timelines, ingest_lag_bytes) = (Gauge::default(), Gauge::default());
        let (layer_bytes, open_bytes) = (Gauge::default(), Gauge::default());
        registry.register("ingested_bytes", "WAL applied", ingested_bytes.clone());
        registry.register("ingest_failures", "Receivers that failed", ingest_failures.clone());
        registry.register("pages_served", "Pages answered", pages_served.clone());
        registry.register(
            "page_errors",
            "Page requests answered with an error",
            page_errors.clone(),
        );
        let help = "Time to answer one batch of page requests";
        registry.register("page_batch_seconds", help, page_batch_seconds.clone());
        registry.register("backups", "Base backups sent", backups.clone());
        registry.register("backup_seconds", "Time to send a base backup", backup_seconds.clone());
        registry.register("branches_created", "Branches created", branches_created.clone());
        let help = "Time to create a branch, waiting for ingest included";
        registry.register("branch_create_seconds", help, branch_create_seconds.clone());
        registry.register("timelines", "Timelines", timelines.clone());
        let help = "Committed WAL that is not ingested, the furthest behind timeline";
        registry.register("ingest_lag_bytes", help, ingest_lag_bytes.clone());
        registry.register("layer_bytes", "Bytes in layer files", layer_bytes.clone());
        registry.register("open_bytes", "Memory in open and frozen layers", open_bytes.clone());
        Metrics {
            ingested_bytes,
            ingest_failures,
            pages_served,
            page_errors,
            page_batch_seconds,
            backups,
            backup_seconds,
            branches_created,
            branch_create_seconds,
            timelines,
            ingest_lag_bytes,
            layer_bytes,
            open_bytes,
            registry: Arc::new(registry),
        }
    }
}

impl Metrics {
    /// Everything, in the OpenMetrics text format.
    pub fn text(&self, engine: &Engine, ingest_lag_bytes: u64) -> String {
        let infos: Vec<_> = engine.timelines().iter().map(|timeline| timeline.info()).collect();
        self.timelines.set(infos.len() as i64);
        self.ingest_lag_bytes.set(ingest_lag_bytes);
        self.layer_bytes.set(infos.iter().map(|info| info.layer_bytes).sum());
        self.open_bytes
            .set(infos.iter().map(|info| (info.open_bytes + info.frozen_bytes) as u64).sum());
        let mut out = String::new();
        match encode(&mut out, &self.registry) {
            Ok(()) => out,
            Err(error) => format!("# {error}\n"),
        }
    }
}
