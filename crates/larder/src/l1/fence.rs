//! What an in-memory store remembers of removals: the fences of `DESIGN.md`, "Coherence".
//!
//! Owns positions, stripes and markers. Never holds entries: its callers insert and delete inside the
//! closures, so that "check, then store" and "count, then delete" are one step each.

use crate::backend::{Mark, Miss, Ticket};
use crate::entry::{EntryKind, Tags};
use crate::key::Namespace;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{Mutex, RwLock};
use std::collections::HashMap;

/// Fences per store. Two keys share one with probability 1/4096, which costs at worst a miss.
const STRIPES: usize = 4096;
/// Locks over the stripes: writers of different keys rarely meet.
const LOCKS: usize = 64;
/// Most markers kept. Pruning drops the older half and clears what was written before them.
const MARKERS_MAX: usize = 65_536;

/// The removals and sets that a store knows of, by position.
pub(crate) struct Fences {
    inc: u64,
    pos: AtomicU64,
    stripes: Box<[Stripe]>,
    locks: Box<[Mutex<()>]>,
    markers: RwLock<Markers>,
    /// The position of the last marker: while an entry was checked at or after it, nothing is to check.
    marker_pos: AtomicU64,
}

#[derive(Default)]
struct Stripe {
    removed: AtomicU64,
    set: AtomicU64,
}

#[derive(Default)]
struct Markers {
    /// Everything written before is invalid.
    clear: u64,
    /// Writes with an older ticket are refused; what is stored stays valid.
    floor: u64,
    namespaces: HashMap<Namespace, u64>,
    tags: HashMap<(Namespace, Box<str>), u64>,
}

/// Why a write was refused, or where it stands.
pub(crate) enum Admission {
    /// `seen`: the position that the entry is valid from.
    Admitted {
        seen: u64,
    },
    Fenced,
}

/// The entry that a set meets, as far as ordering needs to know.
pub(crate) enum Present {
    /// A valid set entry whose stamp is not distrusted.
    ValidSet,
    Other,
}

impl Fences {
    pub(crate) fn new(inc: u64) -> Self {
        Fences {
            inc,
            // 1: an entry or ticket of position 0 never existed.
            pos: AtomicU64::new(1),
            stripes: (0..STRIPES).map(|_| Stripe::default()).collect(),
            locks: (0..LOCKS).map(|_| Mutex::new(())).collect(),
            markers: RwLock::new(Markers::default()),
            marker_pos: AtomicU64::new(0),
        }
    }

    pub(crate) fn inc(&self) -> u64 {
        self.inc
    }

    /// A ticket for a read, load or set that begins now.
    pub(crate) fn ticket(&self) -> Ticket {
        Ticket { inc: self.inc, pos: self.pos.load(Ordering::SeqCst) }
    }

    /// The position of the last marker. Compared with an entry's `checked` on every hit.
    #[inline]
    pub(crate) fn marker_pos(&self) -> u64 {
        self.marker_pos.load(Ordering::Acquire)
    }
}
