//! Memory: the most that a piece of work took, and free memory as every side of a comparison must find it.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use memmap2::{Advice, MmapMut};

const INTERVAL: Duration = Duration::from_millis(5);
/// Of a file that is read from front to end once, and then again.
const BALLAST_LEN: u64 = 1 << 40;
/// Read between two looks at what there is.
const BALLAST_STEP: u64 = 128 << 20;

/// What free memory is in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FreeMemory {
    /// For who takes ordinary pages, as stock Postgres and the page cache do: they come dearer out of whole huge ones.
    Pages,
    /// For who asks for huge pages, where the kernel has them.
    HugePages,
}

/// Leaves `bytes` of free memory in the pages that are wanted, and really there: see [`Ballast`].
///
/// # Errors
/// What the kernel says to a mapping of so much.
pub fn leave_free(free: FreeMemory, bytes: usize) -> io::Result<()> {
    let memory = MmapMut::map_anon(bytes)?;
    if free == FreeMemory::HugePages {
        // A kernel that has none refuses: then they are small.
        let _ = memory.advise(Advice::HugePage);
    }
    memory.advise(Advice::PopulateWrite)
}

/// Pages of a file that nobody needs, in all memory that nothing else is in: as on a machine that has run for long. Who needs memory gets
/// it from there.
///
/// A virtual machine has memory from its host at the first touch only, and gives free memory back. There the first touch is the host's
/// work: 1.5 GB written to a new file took 0.3 s in memory that was in use before, 2 to 4 s in memory that was not. Who writes
/// more files must not pay for that, nor who comes first.
pub struct Ballast {
    /// Nothing but holes: its pages take memory and no disk.
    file: File,
    at: AtomicU64,
}

impl Ballast {
    /// None yet.
    ///
    /// # Errors
    /// No temporary file can be made.
    pub fn new() -> io::Result<Ballast> {
        let file = tempfile::tempfile()?;
        file.set_len(BALLAST_LEN)?;
        Ok(Ballast { file, at: AtomicU64::new(0) })
    }

    /// Takes what memory has become free since.
    ///
    /// # Errors
    /// Of reading the file.
    pub fn fill(&self) -> io::Result<()> {
        let (mut buffer, most) = (vec![0; 1 << 20], memory_bytes("MemTotal")?);
        let mut read = 0;
        while read < most {
            let before = memory_bytes("Cached")?;
            let at = self.at.fetch_add(BALLAST_STEP, Ordering::Relaxed) % BALLAST_LEN;
            for offset in (at..at + BALLAST_STEP).step_by(buffer.len()) {
                self.file.read_exact_at(&mut buffer, offset)?;
            }
            read += BALLAST_STEP;
            // When all is taken, older pages go for the new ones.
            if memory_bytes("Cached")? < before + BALLAST_STEP / 2 {
                break;
            }
        }
        Ok(())
    }
}

/// A line of proc(5)'s `meminfo`.
fn memory_bytes(name: &str) -> io::Result<u64> {
    let facts = fs::read_to_string("/proc/meminfo")?;
    let line = facts.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.map(|kib| kib << 10).ok_or_else(|| io::Error::other(format!("no {name} in /proc/meminfo")))
}

/// The most memory that a piece of work took: what the process holds of its own (`RssAnon`), looked at every few milliseconds. Files that are
/// mapped are the kernel's, and not counted. Watches until dropped.
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
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kib: Option<u64> = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    kib.unwrap_or(0) << 10
}
