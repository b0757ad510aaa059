//! A meter for memory: hostile bytes may not make us allocate more than a bound that the target names.
//!
//! Two counters around the system's allocator. libFuzzer's own limits see only what was touched, which a vector
//! with a lying capacity never does.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

struct Metered;

#[global_allocator]
static ALLOCATOR: Metered = Metered;

fn note(grown: usize, shrunk: usize) {
    let live = LIVE.fetch_add(grown.wrapping_sub(shrunk), Relaxed).wrapping_add(grown);
    PEAK.fetch_max(live.wrapping_sub(shrunk), Relaxed);
}

#[allow(unsafe_code)]
// SAFETY: every call goes to the system's allocator as it is; the counters are not looked at.
unsafe impl GlobalAlloc for Metered {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size(), 0);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        note(layout.size(), 0);
        // SAFETY: the caller's promise.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        note(0, layout.size());
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note(size, layout.size());
        // SAFETY: the caller's promise.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

/// Does `work`, during which no more than `bytes_max` may be in use beyond what was before.
///
/// # Panics
/// When more was: a finding.
pub fn bounded<T>(bytes_max: usize, work: impl FnOnce() -> T) -> T {
    let before = LIVE.load(Relaxed);
    PEAK.store(before, Relaxed);
    let result = work();
    let used = PEAK.load(Relaxed).saturating_sub(before);
    assert!(used <= bytes_max, "{used} bytes in use at once, {bytes_max} allowed");
    result
}
