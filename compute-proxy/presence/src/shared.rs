//! A word of shared memory, so that the protocol runs on the real atomics and on a model checker's.

use core::sync::atomic::{AtomicU32, Ordering, fence};

/// A 32-bit atomic, shared between processes.
pub trait SharedWord {
    /// Reads it.
    fn load(&self, ordering: Ordering) -> u32;
    /// Writes it. Only before the map is published, and for marks that never go back.
    fn store(&self, value: u32, ordering: Ordering);
    /// Replaces `current` by `new`; the value met.
    fn compare_exchange(
        &self,
        current: u32,
        new: u32,
        success: Ordering,
        failure: Ordering,
    ) -> Result<u32, u32>;
    /// A fence of the memory that these words are in.
    fn fence(ordering: Ordering);
}

impl SharedWord for AtomicU32 {
    #[inline]
    fn load(&self, ordering: Ordering) -> u32 {
        AtomicU32::load(self, ordering)
    }

    #[inline]
    fn store(&self, value: u32, ordering: Ordering) {
        AtomicU32::store(self, value, ordering);
    }

    #[inline]
    fn compare_exchange(
        &self,
        current: u32,
        new: u32,
        success: Ordering,
        failure: Ordering,
    ) -> Result<u32, u32> {
        AtomicU32::compare_exchange(self, current, new, success, failure)
    }

    #[inline]
    fn fence(ordering: Ordering) {
        fence(ordering);
    }
}

/// Replaces `current` by `new`; the value met on failure. The only way a block's word changes: acquires what the
/// last owner did to the bytes, releases what this one did.
#[inline]
pub(crate) fn replace<W: SharedWord>(word: &W, current: u32, new: u32) -> Result<(), u32> {
    word.compare_exchange(current, new, Ordering::AcqRel, Ordering::Acquire).map(|_| ())
}

/// Changes a word as `change` says until it takes or `change` refuses.
///
/// Lock-free: a failed round means that somebody else's change took.
#[inline]
pub(crate) fn update<W: SharedWord, E>(
    word: &W,
    change: impl Fn(u32) -> Result<u32, E>,
) -> Result<u32, E> {
    let mut seen = word.load(Ordering::Relaxed);
    loop {
        let new = change(seen)?;
        match replace(word, seen, new) {
            Ok(()) => return Ok(seen),
            Err(met) => seen = met,
        }
    }
}
