//! The most memory that a piece of work took: what the process holds of its own (`RssAnon`), looked at every few
//! milliseconds. Files that are mapped are the kernel's, and not counted.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

const INTERVAL: Duration = Duration::from_millis(5);

/// Watches until dropped.
pub struct PeakMemory {
    before: u64,
    peak: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl PeakMemory {
    /// Begins to watch; what the process holds already does not count.
    pub fn watch() -> PeakMemory {
        let (peak, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (shared, stopped) = (Arc::clone(&peak), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                shared.fetch_max(anonymous_bytes(), Ordering::Relaxed);
                std::thread::sleep(INTERVAL);
            }
        });
        PeakMemory { before: anonymous_bytes(), peak, stop, thread: Some(thread) }
    }

    /// The most that was held since, in bytes.
    pub fn bytes(&self) -> u64 {
        self.peak.load(Ordering::Relaxed).max(anonymous_bytes()).saturating_sub(self.before)
    }
}

impl Drop for PeakMemory {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn anonymous_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kib: Option<u64> = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    kib.unwrap_or(0) << 10
}
