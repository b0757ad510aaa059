//! One core and its time: what two programs must share to be compared.

use std::time::Duration;

use rustix::{
    thread::{CpuSet, sched_getaffinity, sched_setaffinity},
    time::{ClockId, clock_gettime},
};

/// The calling thread stays on one core while this lives, and so does every process it starts meanwhile.
pub struct Pinned {
    before: CpuSet,
    pub core: usize,
}

impl Pinned {
    /// To the last core that the thread may use: interrupts prefer the first.
    pub fn to_last_core() -> anyhow::Result<Pinned> {
        let before = sched_getaffinity(None)?;
        let core = (0..CpuSet::MAX_CPU).rfind(|core| before.is_set(*core)).unwrap_or(0);
        let mut one = CpuSet::new();
        one.set(core);
        sched_setaffinity(None, &one)?;
        Ok(Pinned { before, core })
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        let _ = sched_setaffinity(None, &self.before);
    }
}

/// Time that all threads of this process have spent on cores, in the kernel too.
pub fn process_time() -> Duration {
    let now = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

/// Time that the calling thread has spent on a core, in the kernel too.
pub fn thread_time() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

/// The kernel's part of [`thread_time`], as far as it says (`stime` of proc(5), in hundredths of a second).
pub fn thread_system_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap_or_default();
    // Behind the name, which may hold anything, `stime` is the 13th field.
    let fields = stat.rsplit(')').next().unwrap_or_default();
    let ticks = fields.split_whitespace().nth(12).and_then(|ticks| ticks.parse::<u64>().ok());
    Duration::from_millis(10 * ticks.unwrap_or(0))
}
