//! The last sampled hits of a shard, on their way to the panel.
//!
//! Written by readers under no lock. Two that meet may overwrite one another's sample, which costs the
//! panel one of thousands and the readers nothing.

use crate::sync::atomic::{AtomicU32, Ordering};

const CELLS: usize = 32;

/// Fingerprints that wait for the panel.
#[derive(Default)]
pub(super) struct Ring {
    used: AtomicU32,
    cells: [AtomicU32; CELLS],
}

impl Ring {
    /// Adds a fingerprint; true if it is time to drain. While nobody does, the last one gives way.
    pub(super) fn push(&self, fingerprint: u32) -> bool {
        let at = (self.used.load(Ordering::Relaxed) as usize).min(CELLS - 1);
        self.cells[at].store(fingerprint, Ordering::Relaxed);
        self.used.store(at as u32 + 1, Ordering::Relaxed);
        at + 1 == CELLS
    }

    /// Hands over what waits, oldest first.
    pub(super) fn drain(&self, mut each: impl FnMut(u32)) {
        let used = (self.used.load(Ordering::Relaxed) as usize).min(CELLS);
        for cell in &self.cells[..used] {
            each(cell.load(Ordering::Relaxed));
        }
        self.used.store(0, Ordering::Relaxed);
    }
}
