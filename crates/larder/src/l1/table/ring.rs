//! The last sampled hits of a shard, on their way to the panel.
//!
//! Written by readers under no lock. Two that meet may overwrite one another's sample, which costs the
//! panel one of thousands and the readers nothing.

use crate::sync::atomic::{AtomicU32, AtomicU64, Ordering};

const CELLS: usize = 32;

/// An access that the panel is to see.
#[derive(Clone, Copy)]
pub(super) struct Sample {
    pub(super) fingerprint: u32,
    pub(super) weight: u32,
}

/// Samples that wait for the panel.
#[derive(Default)]
pub(super) struct Ring {
    used: AtomicU32,
    /// The weight above the fingerprint, in one word so that they belong together.
    cells: [AtomicU64; CELLS],
}

impl Ring {
    /// Adds a sample; true if it is time to drain. While nobody does, the last one gives way.
    pub(super) fn push(&self, sample: Sample) -> bool {
        let at = (self.used.load(Ordering::Relaxed) as usize).min(CELLS - 1);
        let cell = u64::from(sample.weight) << 32 | u64::from(sample.fingerprint);
        self.cells[at].store(cell, Ordering::Relaxed);
        self.used.store(at as u32 + 1, Ordering::Relaxed);
        at + 1 == CELLS
    }

    /// Hands over what waits, oldest first.
    pub(super) fn drain(&self, mut each: impl FnMut(Sample)) {
        let used = (self.used.load(Ordering::Relaxed) as usize).min(CELLS);
        for cell in &self.cells[..used] {
            let cell = cell.load(Ordering::Relaxed);
            each(Sample { fingerprint: cell as u32, weight: (cell >> 32) as u32 });
        }
        self.used.store(0, Ordering::Relaxed);
    }
}
