//! Which entries this process has used lately: finer than the files' times, which are written at most once per
//! some time and entry.
//!
//! A table of fixed size, half a MiB, that forgets: a later use of another entry may take a place. Wrong by a
//! collision with probability 2^-32, which costs an eviction out of order.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

const PLACES: usize = 1 << 16;

pub(super) struct Recent(Box<[AtomicU64]>);

impl Recent {
    pub(super) fn new() -> Self {
        Recent((0..PLACES).map(|_| AtomicU64::new(0)).collect())
    }

    /// Half of the hash, and the lower half of the time: enough for seven weeks.
    pub(super) fn visit(&self, hash: u64, now_ms: u64) {
        self.place(hash).store(hash >> 32 << 32 | now_ms & u64::from(u32::MAX), Relaxed);
    }

    /// When it was used last, if that is known.
    pub(super) fn visited_ms(&self, hash: u64, now_ms: u64) -> Option<u64> {
        let word = self.place(hash).load(Relaxed);
        let ago = (now_ms as u32).wrapping_sub(word as u32);
        (word != 0 && word >> 32 == hash >> 32).then(|| now_ms.saturating_sub(u64::from(ago)))
    }

    fn place(&self, hash: u64) -> &AtomicU64 {
        &self.0[hash as usize % PLACES]
    }
}

impl std::fmt::Debug for Recent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Recent(..)")
    }
}
