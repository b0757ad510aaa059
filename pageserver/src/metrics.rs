//! What the pageserver counts. Names and units are in `docs/operations`; base units throughout.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

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

use crate::remote::{Remote, TenantRemote};

/// 10 µs to 10 s.
fn latency() -> Histogram {
    Histogram::new(exponential_buckets(10e-6, 2.0, 20))
}

/// The object store and the cache before it.
#[derive(Debug)]
struct StoreMetrics {
    queue_layers: Gauge<u64, AtomicU64>,
    queue_bytes: Gauge<u64, AtomicU64>,
    garbage_objects: Gauge<u64, AtomicU64>,
    fenced_tenants: Gauge<u64, AtomicU64>,
    layer_cache_bytes: Gauge<u64, AtomicU64>,
    /// In the order of [`STORE_COUNTERS`].
    counters: Vec<Counter>,
}

const STORE_COUNTERS: [(&str, &str); 8] = [
    ("remote_requests", "Requests to the object store"),
    ("remote_failures", "Requests to the object store that failed, tried again or not"),
    ("remote_uploaded_bytes", "Bytes of layers uploaded"),
    ("remote_downloaded_bytes", "Bytes of layers downloaded"),
    ("remote_published_indexes", "Indexes published"),
    ("remote_deleted_objects", "Objects deleted"),
    ("evicted_bytes", "Bytes of layer files evicted from the local disk"),
    ("failed_fetches", "Fetches of evicted layers that failed"),
];

impl StoreMetrics {
    fn new(registry: &mut Registry) -> StoreMetrics {
        let mut gauge = |name: &str, help: &str| {
            let gauge = Gauge::<u64, AtomicU64>::default();
            registry.register(name, help, gauge.clone());
            gauge
        };
        let queue_layers = gauge("remote_queue_layers", "Layers that wait to be uploaded");
        let queue_bytes = gauge("remote_queue_bytes", "Bytes of layers that wait to be uploaded");
        let garbage_objects = gauge("remote_garbage_objects", "Objects that wait to be deleted");
        let fenced_tenants =
            gauge("remote_fenced_tenants", "Tenants that another pageserver has taken over");
        let layer_cache_bytes = gauge("layer_cache_bytes", "Layer files on the local disk");
        let counters = STORE_COUNTERS.map(|(name, help)| {
            let counter = Counter::default();
            registry.register(name, help, counter.clone());
            counter
        });
        let counters = counters.into();
        StoreMetrics {
            queue_layers,
            queue_bytes,
            garbage_objects,
            fenced_tenants,
            layer_cache_bytes,
            counters,
        }
    }

    fn update(&self, engine: &Engine, remote: Option<&Remote>) {
        let local = engine.timelines().iter().map(|at| at.info().local_layer_bytes).sum();
        self.layer_cache_bytes.set(local);
        let Some(remote) = remote else { return };
        let tenants = remote.tenants();
        let sum = |of: fn(&TenantRemote) -> u64| tenants.iter().map(|tenant| of(tenant)).sum();
        self.queue_layers.set(sum(|tenant| tenant.queued_layers.load(Ordering::Relaxed)));
        self.queue_bytes.set(sum(|tenant| tenant.queued_bytes.load(Ordering::Relaxed)));
        self.garbage_objects.set(sum(|tenant| tenant.attached.garbage_count() as u64));
        self.fenced_tenants.set(sum(|tenant| u64::from(tenant.attached.is_fenced())));
        let (asked, cache) = (&remote.asking.counters, engine.residence());
        let now = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counted = [
            now(&asked.requests),
            now(&asked.failures),
            now(&asked.uploaded_bytes),
            now(&asked.downloaded_bytes),
            now(&asked.published_indexes),
            now(&asked.deleted_objects),
            cache.evicted_bytes,
            cache.failed_fetches,
        ];
        for (counter, count) in self.counters.iter().zip(counted) {
            counter.inner().fetch_max(count, Ordering::Relaxed);
        }
    }
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
    lsn_leases: Gauge,
    layer_bytes: Gauge<u64, AtomicU64>,
    layers: Gauge,
    runs_max: Gauge,
    compaction_due_bytes: Gauge<u64, AtomicU64>,
    garbage_bytes: Gauge<u64, AtomicU64>,
    flushed_bytes: Counter,
    compaction_read_bytes: Counter,
    compaction_written_bytes: Counter,
    open_bytes: Gauge<u64, AtomicU64>,
    store: StoreMetrics,
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
        let lsn_leases = Gauge::default();
        let (layer_bytes, open_bytes) = (Gauge::default(), Gauge::default());
        let (layers, runs_max) = (Gauge::default(), Gauge::default());
        let (compaction_due_bytes, garbage_bytes) = (Gauge::default(), Gauge::default());
        let (flushed_bytes, compaction_read_bytes, compaction_written_bytes) =
            (Counter::default(), Counter::default(), Counter::default());
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
        let help = "LSNs leased to computes, of all timelines";
        registry.register("lsn_leases", help, lsn_leases.clone());
        registry.register("layer_bytes", "Bytes in layer files", layer_bytes.clone());
        registry.register("layers", "Layer files", layers.clone());
        let help =
            "Runs of layer files, the timeline with the most: what a read may have to look at";
        registry.register("runs_max", help, runs_max.clone());
        let help = "Bytes of layer files that the merges that are due would read";
        registry.register("compaction_due_bytes", help, compaction_due_bytes.clone());
        let help = "Bytes of layer files that nobody can ask for any more, an estimate";
        registry.register("garbage_bytes", help, garbage_bytes.clone());
        let help = "Bytes of layer files written by flushes";
        registry.register("flushed_bytes", help, flushed_bytes.clone());
        let help = "Bytes of layer files read by compaction";
        registry.register("compaction_read_bytes", help, compaction_read_bytes.clone());
        let help = "Bytes of layer files written by compaction";
        registry.register("compaction_written_bytes", help, compaction_written_bytes.clone());
        registry.register("open_bytes", "Memory in open and frozen layers", open_bytes.clone());
        let store = StoreMetrics::new(&mut registry);
        Metrics {
            store,
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
            lsn_leases,
            layer_bytes,
            layers,
            runs_max,
            compaction_due_bytes,
            garbage_bytes,
            flushed_bytes,
            compaction_read_bytes,
            compaction_written_bytes,
            open_bytes,
            registry: Arc::new(registry),
        }
    }
}

impl Metrics {
    /// Everything, in the OpenMetrics text format.
    pub fn text(
        &self,
        engine: &Engine,
        remote: Option<&Remote>,
        ingest_lag_bytes: u64,
        leases: usize,
    ) -> String {
        let infos: Vec<_> = engine.timelines().iter().map(|timeline| timeline.info()).collect();
        self.timelines.set(infos.len() as i64);
        self.ingest_lag_bytes.set(ingest_lag_bytes);
        self.lsn_leases.set(leases as i64);
        self.layers.set(infos.iter().map(|info| info.layers as i64).sum());
        self.runs_max.set(infos.iter().map(|info| info.runs as i64).max().unwrap_or(0));
        self.compaction_due_bytes.set(infos.iter().map(|info| info.compaction_due_bytes).sum());
        self.garbage_bytes.set(infos.iter().map(|info| info.garbage_bytes).sum());
        // The engine counts; what it says only grows.
        let traffic = engine.traffic();
        let counted = [
            (&self.flushed_bytes, traffic.flushed_bytes),
            (&self.compaction_read_bytes, traffic.merge_read_bytes),
            (&self.compaction_written_bytes, traffic.merge_written_bytes),
        ];
        for (counter, bytes) in counted {
            counter.inner().fetch_max(bytes, Ordering::Relaxed);
        }
        self.layer_bytes.set(infos.iter().map(|info| info.layer_bytes).sum());
        self.open_bytes
            .set(infos.iter().map(|info| (info.open_bytes + info.frozen_bytes) as u64).sum());
        self.store.update(engine, remote);
        let mut out = String::new();
        match encode(&mut out, &self.registry) {
            Ok(()) => out,
            Err(error) => format!("# {error}\n"),
        }
    }
}
